"""The page of an evaluation: what is in the file, whatever is judged; and what it does in a browser."""
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from pages import HOSTILE, Parts, outside, until
from sklearn import metrics as sk

from mlnb import markup
from mlnb.evaluation.gates import judge
from mlnb.evaluation.page import EvaluationPage, evaluation_page
from mlnb.evaluation.rows import Rows, check_rows
from mlnb.evaluation.slices import evaluate_slices
from mlnb.evaluation.slicing import groups_of
from mlnb.evaluation.vectorised import vectorised_figures


def people(count: int = 2000, plans: int = 6) -> pd.DataFrame:
    """Rows of a binary model that is blind in plan 2."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"plan": [f"p{i}" for i in rng.integers(0, plans, count)], "sex": rng.choice(["f", "m"], count), "y": rng.integers(0, 2, count)})
    frame["p"] = np.clip(rng.normal(0.35 + 0.3 * frame.y * (frame.plan != "p2"), 0.15), 0, 1).round(3)
    return frame


def made(rows: Rows, slices: list, intervals: str = "none", gates: list | None = None, max_values: int = 500, **options) -> EvaluationPage:
    """The page of rows."""
    groups = groups_of(rows, slices, max_values=max_values)
    figures = vectorised_figures(rows, groups, intervals=intervals, samples=40)
    verdict = None if gates is None else judge(figures, rows.task, gates, rows=rows, others=options.get("baselines"))
    return evaluation_page(rows, figures, groups, verdict, **options)


@pytest.fixture(scope="module")
def plans() -> EvaluationPage:
    """Six slices, a verdict that fails in one, a baseline, intervals."""
    frame = people()
    rows = check_rows(frame, "y", "p")
    return made(rows, ["plan"], "bootstrap", ["auc >= 0.6", "auc in every slice: high >= overall - 0.1"], baselines={"prior": np.full(len(frame), 0.5)})


def task_rows(task: str, count: int = 600) -> Rows:
    """Rows of any task."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"camera": rng.choice(list("abc"), count), "y": rng.integers(0, 2, count), "hot": rng.integers(0, 2, count),
                          "kind": rng.choice(["cat", "dog", "bird"], count), "value": rng.normal(0, 1e7, count), "q": np.arange(count) // 6})
    score = np.clip(rng.normal(0.4 + 0.2 * frame.y, 0.2), 0, 1)
    if task == "multiclass": return check_rows(frame, "kind", rng.dirichlet(np.ones(3), count), task, classes=["cat", "dog", "bird"])
    if task == "multilabel": return check_rows(frame, ["y", "hot"], np.stack([score, score], 1), task)
    if task == "regression": return check_rows(frame, "value", frame.value + rng.normal(0, 1e6, count), task)
    if task == "ranking": return check_rows(frame, "y", score, task, query="q")
    return check_rows(frame, "y", score)


TASKS = {"binary": ["roc", "pr", "calibration", "scores"], "multiclass": ["roc", "pr", "calibration", "scores"],
         "multilabel": ["roc", "pr", "calibration", "scores"], "regression": ["fit", "residuals", "errors"], "ranking": ["ndcg", "gains"]}


def page_data(page: EvaluationPage) -> dict:
    """The JSON in a page."""
    (found,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page.html)
    return json.loads(found)


def static(html: str) -> str:
    """What is there without scripts."""
    return re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)


# ---- what is in the file

@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_has_its_views(task):
    """Tables, charts and data, without scripts too; nothing leads out; JSON is JSON."""
    page = made(task_rows(task), ["camera"], gates=[])
    assert outside(page.html) == []
    assert re.findall(r'data-plot="(\w+)"', static(page.html)) == TASKS[task]
    assert "camera=a" in static(page.html) and len(page_data(page)["slices"]) == 4
    assert [s.id for s in page.sections] == ["verdict", "figures", "slices", "views"]
    policy = next(a for t, a in Parts(page.html).elements if a.get("http-equiv"))["content"]
    bare = [s for (t, a), s in zip([e for e in Parts(page.html).elements if e[0] == "script"], Parts(page.html).raw["script"], strict=True) if "type" not in a]
    assert bare and [s[:60] for s in bare if (markup.source_digest(s) or "not ours") not in policy] == []


def test_figures_on_the_page_are_those_of_scikit_learn(plans):
    """The headline, each slice, the confusion matrix, and the gap."""
    frame = people()
    overall = sk.roc_auc_score(frame.y, frame.p)
    assert f"<strong>{overall:.3f}</strong>" in plans.html
    for name, rows in frame.groupby("plan"):
        assert f'plan={name}' in static(plans.html)
        gap = sk.roc_auc_score(rows.y, rows.p) - overall
        line = next(x for x in re.findall(r"<tr.*?</tr>", static(plans.html)) if re.search(f'class="where">plan={name}[ <]', x))
        assert f"{abs(gap):.3f}" in line
    for count in sk.confusion_matrix(frame.y, frame.p > 0.5).ravel(): assert f"<b>{count:,}</b>" in static(plans.html)


def test_the_worst_is_first_and_says_what_failed(plans):
    """Without scripts as well; the verdict stands before everything else."""
    names = re.findall(r'class="where">([^< ]+)', static(plans.html))
    assert names[:2] == ["Overall", "plan=p2"] and len(names) == 7
    assert "✗ auc (high end)" in static(plans.html) and "not blessed" in plans.sections[0].html
    assert page_data(plans)["worst"] == [s["name"] for s in page_data(plans)["slices"]].index("plan=p2")


def test_hostile_names_stay_text():
    """Slices, classes, labels, baselines and the title are attacks."""
    frame = people()
    frame["<img src=x onerror=1>"] = [HOSTILE[i % len(HOSTILE)].replace("\ud800", "") for i in range(len(frame))]
    rows = check_rows(frame.assign(y=frame.y.map({0: "</script>", 1: "<b>"})), "y", "p", classes=["</script>", "<b>"])
    page = made(rows, ["<img src=x onerror=1>"], gates=["auc in every slice: > 0.99"], baselines={name: frame.p for name in HOSTILE[:3]}, title=HOSTILE[0])
    plain = made(check_rows(frame, "y", "p"), ["plan"], gates=["auc in every slice: > 0.99"], baselines={"x": frame.p})
    assert outside(page.html) == [] and outside(page._repr_html_()) == []
    assert {t for t, _ in Parts(page.html).elements} <= {t for t, _ in Parts(plain.html).elements}
    assert sum(t == "script" for t, _ in Parts(page.html).elements) == sum(t == "script" for t, _ in Parts(plain.html).elements)
    assert len(page_data(page)["slices"]) == len(set(frame["<img src=x onerror=1>"])) + 1


@pytest.mark.parametrize(("plans_there", "most"), [(80, 400_000), (400, 700_000)])
def test_many_slices_are_a_small_file(plans_there, most):
    """Far below the megabyte and a half that a mail takes."""
    rows = check_rows(people(8000, plans_there), "y", "p")
    page = made(rows, ["plan", "sex"], "bootstrap")
    assert len(page.html.encode()) < most and len(page._repr_html_().encode()) < most
    known = page_data(page)
    assert len(known["slices"]) == plans_there + 3 and all(of is not None for of in known["curves"]["of"])
    assert len(known["curves"]["grid"]) <= 205
    assert f"The 60 worst of {plans_there + 2} slices" in static(page.html)


def test_slices_without_a_figure_are_last_and_explained():
    """One class, one row, no predicted positive: in words, and never as NaN in JSON."""
    frame = people(400)
    frame.loc[:30, ["plan", "y"]] = ["all yes", 1]
    frame.loc[40, "plan"] = "lonely"
    frame.loc[50:60, ["plan", "p"]] = ["low", 0.1]
    page = made(check_rows(frame, "y", "p"), ["plan"])
    names = re.findall(r'class="where">([^<]+?)(?: <span|<)', static(page.html))
    assert set(names[-2:]) == {"plan=all yes", "plan=lonely"} or "plan=low" in names[-3:]
    assert "not defined: all rows have the same label" in static(page.html)
    assert "no row is called positive" in page.html and "NaN" not in json.dumps(page_data(page))
    assert "few rows" in static(page.html)


def test_a_baseline_that_is_better_is_marked(plans):
    """In both directions of a metric."""
    frame = people()
    rows = check_rows(frame, "y", "p")
    page = made(rows, [], baselines={"truth": frame.y, "prior": np.full(len(frame), 0.5)})
    head = page.sections[0].html
    assert head.count("▲ better") >= 10 and [s.id for s in page.sections] == ["figures", "views"]
    assert page_data(page)["curves"]["baselines"].keys() == {"truth", "prior"}


def test_weights_count():
    """Curves and matrices are sums of weights; a row of weight 0 is not there."""
    frame = people().assign(w=lambda f: (f.plan != "p2") * 2.0)
    known = page_data(made(check_rows(frame, "y", "p", weights="w"), ["plan"]))
    pair = known["curves"]["of"][0][0]
    assert sum(pair["n"]) + sum(pair["p"]) == frame.w.sum()
    worst = next(s for s in known["slices"] if s["name"] == "plan=p2")
    assert all(v is None for v in worst["values"])


def test_everything_but_the_slice_is_on_it(tmp_path):
    """Extra sections, a title, saving, and what `evaluate_slices` gives."""
    frame = people(600)
    rows = check_rows(frame, "y", "p")
    figures = evaluate_slices(rows, slices=["plan"], intervals="none", thresholds=[0.25])
    page = evaluation_page(rows, figures, groups_of(rows, ["plan"]), extra=[("Fairness", "<p>Gaps</p>")], title="Today", metric="recall@0.25")
    path = page.save(tmp_path/"page.html")
    assert path.read_text() == page.html and "<p>Gaps</p>" in page.html and repr(page).startswith("Today: Overall, Slices, Curves, Fairness.")
    known = page_data(page)
    assert known["metrics"][known["main"]]["name"] == "recall@0.25" and "8 figures at other thresholds" in page.html


# ---- in a browser

def table(tab, column: int = 1) -> list[str]:
    """A column of the slice table, overall left out."""
    return tab.locator(f".slices tbody tr:not(.first) > :nth-child({column})").all_text_contents()


def test_the_table_sorts_searches_and_filters(visit):
    """By mouse and keyboard; the slice without a figure stays last."""
    frame = people(2000, 12)
    frame.loc[:20, ["plan", "y"]] = ["all yes", 1]
    tab = visit(made(check_rows(frame, "y", "p"), ["plan", "sex"], "bootstrap").html)
    first = table(tab)
    assert first[0] == "plan=p2" and first[-1].startswith("plan=all yes") and len(first) == 15
    assert "not defined: all rows have the same label" in table(tab, 3)[-1]
    gaps = [float(g.replace("−", "-")) for g in table(tab, 4)[:-1]]
    assert gaps == sorted(gaps)
    head = tab.locator('.slices [data-key="rows"]')
    head.focus()
    tab.keyboard.press("Enter")
    sizes = [int(v.replace(",", "")) for v in table(tab, 2)]
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True) and head.evaluate("b => b === document.activeElement && b.closest('th').ariaSort") == "descending"
    tab.get_by_label("Find a slice").fill("SEX")
    assert sorted(table(tab)) == ["sex=f", "sex=m"]
    tab.get_by_label("Find a slice").fill("")
    tab.get_by_label("Cut by").select_option("plan")
    assert len(table(tab)) == 13
    tab.get_by_label("At least so many rows").fill("100")
    assert 0 < len(table(tab)) < 13 and "all yes" not in "".join(table(tab))
    tab.locator('.slices [data-key="gap"]').click()
    tab.get_by_label("Metric").select_option(label="binary_crossentropy")
    assert "lower is better" in tab.locator("#slices [role=status]").text_content() and table(tab)[0] == "plan=p2"


def test_picking_a_slice_redraws(visit, plans):
    """In the list, in the table and in the picture; everybody stays beside it."""
    tab = visit(plans.html)
    roc = tab.locator("figure[data-plot=roc] .marks polyline")
    assert roc.count() == 2 and tab.get_by_label("Slice", exact=True).input_value() == str(page_data(plans)["worst"])
    before = [line.get_attribute("points") for line in roc.all()]
    tab.locator(".slices button", has_text="plan=p5").click()
    after = [line.get_attribute("points") for line in roc.all()]
    assert after[0] == before[0] and after[1] != before[1]
    assert tab.locator(".slices tr.picked").text_content().startswith("plan=p5") and "plan=p5" in tab.locator("#views .key").first.text_content()
    tab.locator(".forest g[data-pick] circle").first.click()
    assert tab.locator(".slices tr.picked").text_content().startswith("plan=p2")
    tab.get_by_label("prior").check()
    assert roc.count() == 3
    tab.get_by_label("Slice", exact=True).select_option("0")
    assert roc.count() == 2 and tab.locator("#views .confusion").count() == 1
    points = [tuple(map(float, p.split(","))) for p in before[0].split()]
    area = sum((a[0] - b[0]) * (2 * 248 - a[1] - b[1]) / 2 for a, b in zip(points, points[1:], strict=False)) / (282 * 238)
    assert area == pytest.approx(sk.roc_auc_score(people().y, people().p), abs=0.003)


def test_the_slider_moves_the_matrix(visit, plans):
    """To what scikit-learn counts at that threshold, for everybody and for the slice."""
    frame = people()
    tab = visit(plans.html)
    grid = page_data(plans)["curves"]["grid"]
    slider = tab.get_by_label("Threshold")
    for threshold in (0.3, 0.71):
        slider.evaluate(f"i => {{ i.value = {grid.index(threshold)}; i.dispatchEvent(new Event('input')); }}")
        cells = [c.replace(",", "") for c in tab.locator("#views .confusion td b").all_text_contents()]
        both = [frame, frame[frame.plan == "p2"]]
        assert cells == [str(v) for one in both for v in sk.confusion_matrix(one.y, one.p > threshold).ravel()]
        recall = tab.locator("[data-rate=recall]").all_text_contents()
        assert recall == [f"{sk.recall_score(one.y, one.p > threshold):.3f}" for one in both]
        assert slider.get_attribute("aria-valuetext") == str(threshold)
    slider.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#views output").text_content() != "score above 0.71"
    tab.get_by_role("button", name="Back to the model's").click()
    assert tab.locator("#views output").text_content() == "score above 0.5"


def test_a_cell_of_many_classes_tells_its_row(visit):
    """By keyboard too; classes are picked one by one."""
    rows = task_rows("multiclass")
    tab = visit(made(rows, ["camera"]).html)
    tab.locator('[data-cell="1,2"]').focus()
    tab.keyboard.press("Enter")
    told = tab.locator("#views [data-part=matrix] [role=status]")
    assert "Rows that are dog" in told.text_content()
    assert tab.locator('[data-cell="1,2"]').evaluate("b => b === document.activeElement && b.ariaPressed") == "true"
    counts = [int(c) for c in tab.locator("#views .confusion").first.locator("b").all_text_contents()]
    assert counts == sk.confusion_matrix(rows.labels, rows.scores.argmax(1)).ravel().tolist()
    roc = tab.locator("figure[data-plot=roc] .marks polyline").first
    before = roc.get_attribute("points")
    tab.get_by_label("Class").select_option(label="bird")
    assert roc.get_attribute("points") != before


@pytest.mark.parametrize("task", ["multilabel", "regression", "ranking"])
def test_other_tasks_redraw(visit, task):
    """A picked slice changes every chart."""
    tab = visit(made(task_rows(task), ["camera"]).html)
    marks = "[...document.querySelectorAll('figure[data-plot] .marks')].map(g => g.innerHTML)"
    seen = set()
    for slice_number in ("0", "1", "2"):
        tab.get_by_label("Slice", exact=True).select_option(slice_number)
        seen.add(tuple(tab.evaluate(marks)))
    assert len(seen) == 3 and all(len(set(one)) == 3 for one in zip(*seen, strict=True))


def test_four_hundred_slices_stay_readable(visit):
    """The worst have a line each, the others a band; the whole list and the other picture are a click away."""
    tab = visit(made(check_rows(people(8000, 400), "y", "p"), ["plan"], "bootstrap").html)
    assert len(table(tab)) == 30 and tab.locator(".forest svg").get_attribute("height") is not None
    assert float(tab.locator(".forest svg").get_attribute("height")) < 1000 and "370 more" in tab.locator(".forest").text_content()
    tab.get_by_role("button", name="All 400 slices").click()
    assert len(table(tab)) == 400
    tab.get_by_role("button", name="By size").click()
    assert tab.locator(".forest g[data-pick]").count() == 400 and "Rows" in tab.locator(".forest").text_content()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(visit, plans, width, scheme):
    """No sideways scrolling at either width, also with very long names; dark is dark, and text can be read."""
    frame = people()
    frame["plan"] = frame.plan.map({p: p * 90 for p in frame.plan.unique()}) + " " + frame.sex
    for html in (plans.html, made(check_rows(frame, "y", "p"), ["plan"]).html, made(task_rows("multiclass"), ["camera"]).html):
        tab = visit(html, viewport={"width": width, "height": 800}, color_scheme=scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        ink = tab.locator(".slices tbody td").first.evaluate("e => getComputedStyle(e).color")
        light = sum(map(int, re.findall(r"\d+", ink)[:3])) > 384
        assert light is (scheme == "dark")


def test_several_in_one_notebook(visit, plans):
    """Outputs in one document: each wakes, each obeys its own controls, the notebook's theme holds, no frame."""
    other = made(check_rows(people(900), "y", "p"), ["plan"])
    pair = f'<!doctype html><meta charset="utf-8"><body data-jp-theme-light="false">{plans._repr_html_()}{other._repr_html_()}</body>'
    tab = visit(pair, color_scheme="light")
    assert tab.locator("[data-awake]").count() == 4 and "<iframe" not in pair
    sliders, told = tab.get_by_label("Threshold"), tab.locator("output")
    sliders.first.evaluate("i => { i.value = 30; i.dispatchEvent(new Event('input')); }")
    assert told.nth(0).text_content() != told.nth(1).text_content() == "score above 0.5"
    tab.get_by_label("Find a slice").nth(1).fill("p3")
    assert tab.locator(".slices").nth(0).locator("tbody tr").count() == 7 and tab.locator(".slices").nth(1).locator("tbody tr").count() == 2
    ground = tab.locator(".mlnb").first.evaluate("e => getComputedStyle(e).backgroundColor")
    assert ground == "rgb(17, 22, 28)"


def test_without_scripts_there_is_everything_but_choice(visit, plans, browser):
    """Tables and pictures; no control that does nothing."""
    tab = visit(plans.html, java_script_enabled=False)
    assert tab.locator(".slices tbody tr").count() == 7 and tab.locator("#views img").count() == 4
    assert tab.locator(".ev button, .ev select, .ev input").count() == 0
    untrusted = re.sub(r"<(script|style|svg).*?</\1>", "", plans._repr_html_(), flags=re.DOTALL)   # as JupyterLab leaves it
    tab = visit(f'<!doctype html><meta charset="utf-8">{untrusted}')
    assert "plan=p2" in tab.locator("body").text_content() and tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_hostile_names_run_nothing(visit):
    """In a real browser, with everything opened."""
    frame = people()
    frame["x"] = [HOSTILE[i % 8] for i in range(len(frame))]
    rows = check_rows(frame.assign(y=frame.y.map({0: HOSTILE[0], 1: HOSTILE[1]})), "y", "p", classes=HOSTILE[:2])
    tab = visit(made(rows, ["x"], "bootstrap", ["auc in every slice: > 0.99"], baselines={HOSTILE[1]: frame.p}).html)
    tab.locator("#views input[type=checkbox]").check()
    for button in tab.locator(".slices .where button").all()[:4]: button.click()
    assert tab.title() == "Evaluation" and tab.evaluate("document.querySelectorAll('.ev img, svg[onload]').length") == 0


def test_numbers_are_written_alike(visit, plans):
    """The rule in Python and the rule in JavaScript."""
    from mlnb.evaluation.slice_table import figure
    tab, values = visit(plans.html), [0.0, 0.81249, -0.04, 1.0, 9.9994, 10.01, 123.456, 9999.4, 12345.6, -1e7, 0.0004]
    told = tab.evaluate("values => values.map(v => mlnb.figure(v))", values)
    assert [t.replace("−", "-") for t in told] == [figure(v) for v in values]
    until(tab, "mlnb.figure(null) === '–'")
    assert figure(math.nan) == "–"
