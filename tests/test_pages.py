"""Pages of comparison: built from data only, nothing fetched, hostile text harmless; and what they do in a browser."""
import itertools
import json
import math
import random
import re
from typing import NamedTuple

import pytest
from pages import HOSTILE, Parts, outside, until
from projects import ProjectFolder

from mlnb import markup
from mlnb.design import Section, frame, page
from mlnb.settings import find_project
from mlnb.tracking import charts
from mlnb.tracking.curves import thin
from mlnb.tracking.rendered import notebook_html
from mlnb.tracking.report import report
from mlnb.tracking.safe_html import safe_html
from mlnb.tracking.shown import shown
from mlnb.tracking.table import run_table


class Field(NamedTuple):
    """As `mlnb.tracking.tracked` has it."""

    name: str
    kind: str
    stage: str = ""
    best: str = ""
    unit: str = ""


class Row(NamedTuple):
    """As `mlnb.tracking.tracked` has it."""

    id: str
    label: str
    source: str = "mlnb"
    status: str = "done"
    started: float | None = None
    seconds: float | None = None
    pipeline: str = ""
    tags: tuple = ()
    star: bool = False
    note: str = ""
    values: dict = {}
    folder: str = ""


FIELDS = [Field("train.lr", "parameter", "train"), Field("train.optimizer", "parameter", "train"), Field("train.seed", "parameter", "train"),
          Field("train.epochs", "parameter", "train"), Field("evaluate.auc", "metric", "evaluate", "max"),
          Field("train.val_loss", "metric", "train", "min"), Field("train.code", "code", "train"),
          Field("train.seconds", "timing", "train", "min", "s"), Field("train.memory", "resource", "train", "min", "B")]


def runs(count: int) -> tuple[list[Row], dict]:
    """Runs of a grid and their curves."""
    draw, rows, curves = random.Random(0), [], {"loss": {}, "val_loss": {}}
    grid = itertools.cycle(itertools.product([1e-4, 1e-3, 1e-2], ["adam", "sgd"], [0, 1, 2, 3]))
    for i, (rate, optimizer, seed) in zip(range(count), grid, strict=False):
        auc = 0.8 - 0.02 * (math.log10(rate) + 3) ** 2 - 0.01 * (optimizer == "sgd") + draw.gauss(0, 0.001)
        values = {"train.lr": rate, "train.optimizer": optimizer, "train.seed": seed, "train.epochs": 10, "evaluate.auc": auc,
                  "train.val_loss": float("nan") if i == 3 else 1 - auc, "train.code": "a" * 64, "train.seconds": 60 + i, "train.memory": 1e9 + i}
        rows.append(Row(f"run-{i:04d}", f"run {i}", started=1.76e9 + 60 * i, seconds=60.0 + i, tags=("grid",), values=values))
        for name in curves:
            curves[name][f"run-{i:04d}"] = {"step": list(range(30)), "value": [1 - auc + math.exp(-k / 5) for k in range(30)]}
    return rows, curves


def comparison(rows: list[Row], curves: dict, fields: list[Field] = FIELDS, **asked) -> str:
    """A page with everything on it."""
    return page("Comparison", "<p>of runs</p>", [
        Section("table", "Runs", run_table(fields, rows, **asked)), Section("curves-of", "Curves", charts.curves_chart(curves, rows), True),
        Section("axes", "Parallel axes", charts.parallel_coordinates(fields, rows)), Section("two", "Two fields", charts.scatter(fields, rows), True),
        Section("all", "Matrix", charts.scatter_matrix(fields, rows)),
        Section("why", "Importance", charts.importance(fields, rows, "evaluate.auc"))])


def hostile_runs() -> tuple[list[Row], dict, list[Field]]:
    """Every text that a run can bring is an attack."""
    fields = [*FIELDS, Field("constructor", "parameter"), Field("__proto__", "metric", best="max"), *[Field(f"x.{text}", "parameter", text) for text in HOSTILE]]
    rows = [Row("constructor" if i == 8 else "__proto__" if i == 9 else f"{text}-{i}", text, status=text, tags=(text,), note=text, pipeline=text, started=0.0, seconds=1.0, star=True,
                values={f"x.{text}": text for text in HOSTILE} | {"train.lr": 0.1 + i, "evaluate.auc": 0.5 + i / 10, "train.optimizer": text, "constructor": i, "__proto__": i})
            for i, text in enumerate(HOSTILE)]
    return rows, {text: {rows[0].id: {"value": [1.0, 2.0]}, rows[1].id: {"value": [1.0, 3.0]}} for text in HOSTILE}, fields


# ---- what is in the file

def test_nothing_is_fetched():
    """No element, style or script of a page leads out of it."""
    made = comparison(*runs(24))
    assert outside(made) == []
    policy = dict(next(a for t, a in Parts(made).elements if a.get("http-equiv")))["content"]
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "http" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0] and "unsafe-eval" not in policy


@pytest.mark.parametrize("planted", ['<img src="http://x">', '<a href="//x">', "<link rel=x>", "<p onclick=x>", "<style>@import 'x'</style>",
                                     "<style>p{background:url(x)}</style>", "<script>fetch('x')</script>"])
def test_the_check_sees_what_leads_out(planted):
    """The check itself."""
    assert outside(planted)


def test_hostile_text_stays_text():
    """Names, notes, tags, values and fields that are attacks make no element, no attribute and no script."""
    rows, curves, fields = hostile_runs()
    made, plain = comparison(rows, curves, fields), comparison(*runs(10))
    assert outside(made) == []
    tags = [{t for t, _ in Parts(m).elements} for m in (made, plain)]
    assert tags[0] <= tags[1]
    bare = [sum(t == "script" and "type" not in a for t, a in Parts(m).elements) for m in (made, plain)]
    assert bare[0] == bare[1]
    for body in (s for t, s in zip((a for t, a in Parts(made).elements if t == "script"), Parts(made).raw["script"], strict=True) if t.get("type")):
        json.loads(body)
    made.encode()


def test_every_script_that_runs_is_allowed_by_its_digest():
    """And a script that came from elsewhere is not."""
    planted = "<script>document.title='owned'</script>"
    made = page("x", "", [Section("a", "A", run_table(FIELDS, runs(3)[0]) + planted)])
    policy = next(a for t, a in Parts(made).elements if a.get("http-equiv"))["content"]
    scripts = [s for (t, a), s in zip([e for e in Parts(made).elements if e[0] == "script"], Parts(made).raw["script"], strict=True) if "type" not in a]
    assert [s for s in scripts if (markup.source_digest(s) or "not ours") not in policy] == ["document.title='owned'"]


def test_sections_are_named_and_reached():
    """The bar leads to every section; ids are unique; each section has a heading."""
    parts = Parts(comparison(*runs(10)))
    ids = [a["id"] for _, a in parts.elements if a.get("id")]
    links = [a["href"][1:] for t, a in parts.elements if t == "a"]
    assert len(ids) == len(set(ids)) and set(links) <= set(ids)
    assert {"table", "curves-of", "axes", "two", "all", "why"} <= set(links)
    assert sum(t == "h1" for t, _ in parts.elements) == 1 and sum(t == "h2" for t, _ in parts.elements) == 6


def test_plotly_and_data_are_there_once():
    """However many charts need them."""
    made = comparison(*runs(10))
    assert len(re.findall(r"\* plotly\.js v", made)) == 1
    assert sum("application/json" in (a.get("type") or "") for _, a in Parts(made).elements) == 2  # the runs, the curves
    assert "plotly.js v" not in page("x", "", [Section("t", "T", run_table(FIELDS, runs(3)[0]))])


def test_a_page_without_scripts_is_of_use():
    """The first rows stand there as an ordinary table, only with what differs."""
    static = re.sub(r"<script.*?</script>", "", comparison(*runs(60)), flags=re.DOTALL)
    assert static.count("<tr>") >= 50 and "The first 50 of 60 runs" in static
    assert "<th class=\"n\">train.lr</th>" in static and ">train.epochs<" not in static


def test_a_thousand_runs_fit():
    """The page stays a file that can be sent: what is in it grows with what can be seen."""
    rows, curves = runs(1000)
    long = {m: {i: {"step": range(3000), "value": [math.sin(k / 50) for k in range(3000)]} for i in list(found)[:300]} for m, found in curves.items()}
    assert len(comparison(rows, long)) < 12_000_000


def test_thinning_keeps_extremes():
    """Any curve, any limit: both ends, the lowest and the highest point, never more than asked."""
    draw = random.Random(1)
    for _ in range(200):
        values = [draw.choice([draw.gauss(0, 1), math.nan, math.inf]) for _ in range(draw.randint(1, 400))]
        kept, finite = thin(values, 40), [v for v in values if math.isfinite(v)]
        assert len(kept) <= 40 and kept == sorted(set(kept)) and {0, len(values) - 1} <= set(kept)
        shown = [values[k] for k in kept if math.isfinite(values[k])]
        assert not finite or (min(shown), max(shown)) == (min(finite), max(finite))


def test_a_frame_is_a_world_of_its_own():
    """In a notebook a page may run its scripts and nothing else."""
    made = frame(page("x", "", []))
    (tag, attributes), = [e for e in Parts(made).elements if e[0] == "iframe"]
    assert attributes["sandbox"] == "allow-scripts allow-modals" and "src" not in attributes


# ---- reports of runs

PREPARE = ["parameters: rows: int = 40  # how many", "from mlnb import glue\nimport pandas as pd\nimport matplotlib.pyplot as plt",
           "table = pd.DataFrame({'<b>x</b>': range(rows)})\nglue('table', table)\nglue('count', rows)\nglue('note', '<script>document.title=1</script>')",
           "figure, axes = plt.subplots(figsize=(3, 2)); axes.plot([1, 2]); glue('picture', figure)",
           "import plotly.graph_objects as go\nglue('drawn', go.Figure(go.Scatter(y=[1, 3, 2], name='<i>')))",
           "from IPython.display import HTML\nHTML('<p onclick=1 class=grid>shown</p><script>document.title=2</script>')"]
SLICES = """
import math
import pandas as pd
from mlnb import glue, ref
table = ref('prepare.table')
row = {'by': '', 'key': '', 'metric': 'auc', 'examples': 40, 'small': False}
glue('metrics', pd.DataFrame([{'slice': 'Overall', 'value': 0.7, 'low': 0.65, 'high': 0.75, **row},
                              {'slice': 'sex=<f>', 'value': 0.6, 'low': 0.5, 'high': 0.7, **row}]))
check = {'what': 'auc', 'where': 'sex=<f>', 'value': 0.6, 'limit': 0.65, 'by': -0.05, 'passed': False, 'text': ''}
glue('verdict', {'blessed': False, 'metric': 'auc', 'value': 0.7, 'examples': 40, 'checks': [check], 'skipped': []})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that ran: one stage well, one that judges, one that fails."""
    folder = ProjectFolder(tmp_path_factory.mktemp("reported")/"p", {
        "10_prepare": PREPARE, "20_evaluate": [SLICES],
        "30_train": ["from mlnb import ref", "table = ref('prepare.table')\nraise ValueError('no <img src=x> here')"]})
    folder.run("--keep-going", code=1)
    return find_project(folder.root)


def titles(made: str) -> list[str]:
    """Ids of the sections of a page, in order."""
    return [a["id"] for t, a in Parts(made).elements if t == "section"]


def test_a_report_says_first_what_failed(project):
    """Then the verdict; the rest in reading order; notebooks last."""
    made = report(project)
    assert titles(made) == ["failures", "evaluation", "pipeline", "figures", "parameters", "results", "environment", "notebooks"]
    assert "no &lt;img src=x&gt; here" in made and "30_train.ipynb, cell" in made
    assert "✗ not blessed" in made and "auc 0.7 (0.65 to 0.75) on 40 test rows" in made and "sex=&lt;f&gt;" in made
    assert made.count('<details class="notebook">') == 3


def test_a_report_is_one_harmless_file(project):
    """What stages glued, printed and showed is in it as text and pictures."""
    made = report(project)
    assert outside(re.sub(r'<a href="https?://[^"]*" rel="noopener noreferrer">', "", made)) == []
    policy = next(a for t, a in Parts(made).elements if a.get("http-equiv"))["content"]
    bare = [s for e, s in zip([e for e in Parts(made).elements if e[0] == "script"], Parts(made).raw["script"], strict=True) if "type" not in e[1]]
    assert [s[:60] for s in bare if (markup.source_digest(s) or "not ours") not in policy] == []
    assert ">shown</p>" in made and "onclick" not in re.sub(r"(?s)<script.*?</script>|<pre.*?</pre>", "", made)


def test_a_report_needs_no_content(project, tmp_path):
    """After gc took artifacts away, and for a run that a kill interrupted, there is still a report."""
    import shutil
    shutil.copytree(project.root, tmp_path/"p", symlinks=True)
    shutil.rmtree(tmp_path/"p"/"runs"/"store")
    shutil.rmtree(tmp_path/"p"/"nbs")
    made = report(find_project(tmp_path/"p"))
    assert "failures" in titles(made) and "figures" not in titles(made)
    path = next((tmp_path/"p"/"runs").glob("2*/run.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running", "stages": {}}))
    assert "interrupted" in report(find_project(tmp_path/"p"))


def test_notebooks_of_others_are_harmless():
    """Every output form, with an attack in it."""
    for attack in HOSTILE:
        cells = [{"cell_type": "markdown", "source": attack}, {"cell_type": "code", "source": attack, "metadata": {}, "outputs": [
            {"output_type": "stream", "text": attack}, {"output_type": "error", "traceback": [attack]},
            *[{"output_type": "display_data", "data": {mime: attack}} for mime in ("text/html", "text/markdown", "text/plain", "image/svg+xml")]]}]
        made = notebook_html({"cells": cells, "metadata": {"language_info": {"name": attack}}})
        assert outside(made) == [] and outside(safe_html(attack)) == [] and "<script" not in made


# ---- in a browser

def labels(tab) -> list[str]:
    """Names of the rows in sight."""
    return tab.locator(".grid tbody .name").all_text_contents()


def cells(tab, key: str, inside: str = "") -> list[str]:
    """What stands below the head of a column, row by row."""
    number = head(tab, key).evaluate("b => [...b.closest('tr').children].indexOf(b.closest('th')) + 1")
    return tab.locator(f".grid tbody td:nth-child({number}) {inside}").all_text_contents()


def head(tab, key: str):
    """The head of a column."""
    return tab.locator(f'.grid [data-key="{key}"]')


def test_table_sorts_filters_and_searches(visit):
    """By mouse and keyboard; best first where there is a best; missing and NaN last."""
    tab = visit(comparison(*runs(24)))
    head(tab, "evaluate.auc").click()
    values = [float(v) for v in cells(tab, "evaluate.auc")[:10]]
    assert values == sorted(values, reverse=True)
    head(tab, "train.val_loss").focus()
    tab.keyboard.press("Enter")
    assert head(tab, "train.val_loss").evaluate("b => b === document.activeElement && b.closest('th').ariaSort") == "ascending"
    assert labels(tab)[-1] == "run 3"
    tab.get_by_role("button", name="Filters").click()
    box = tab.get_by_label("Filter evaluate.auc")
    box.fill("> 0.79")
    assert 0 < len(labels(tab)) < 24 and box.evaluate("b => b === document.activeElement")
    box.fill("nonsense")
    assert box.get_attribute("aria-invalid") == "true" and len(labels(tab)) == 24
    box.fill("")
    tab.get_by_label("Search all runs").fill("sgd")
    assert len(labels(tab)) == 12


def test_only_what_differs_is_shown(visit):
    """Until somebody asks."""
    tab = visit(comparison(*runs(24)))
    assert head(tab, "train.epochs").count() == 0 and head(tab, "train.lr").count() == 1
    tab.get_by_label("Only what differs").uncheck()
    assert head(tab, "train.epochs").count() == 1
    tab.get_by_role("button", name="Columns").click()
    tab.locator(".grid .kinds").get_by_text("train.seed", exact=False).first.click()
    assert head(tab, "train.seed").count() == 0


def test_baseline_best_and_noise(visit):
    """Deltas have a sign and a mark; a best that noise explains says so."""
    rows, curves = runs(6)
    auc = [r.values["evaluate.auc"] for r in rows]
    tab = visit(comparison(rows, curves, baseline=rows[1].id))
    assert tab.locator(".grid thead tr.base .name").text_content() == "run 1" and "run 1" not in labels(tab)
    deltas = cells(tab, "evaluate.auc", ".delta")
    assert len(deltas) == 5 and all(re.match(r"[▲▼] [+−][\d.e−]+$", d) for d in deltas)
    assert "inside the noise" not in tab.locator(".grid table").text_content()
    noisy = visit(comparison(rows, curves, noise={"evaluate.auc": (max(auc) - min(auc)) * 2}))
    assert noisy.locator(".grid .pill").first.text_content() == "inside the noise"
    noisy.get_by_label("Baseline run 2").click()
    assert "≈" in noisy.locator(".grid tbody").text_content()


def test_groups_show_mean_and_interval(visit):
    """As numpy would compute it."""
    rows, curves = runs(24)
    tab = visit(comparison(rows, curves))
    tab.get_by_label("Group by").select_option("train.optimizer")
    values = [r.values["evaluate.auc"] for r in rows if r.values["train.optimizer"] == "adam"]
    mean = sum(values) / 12
    half = 2.201 * math.sqrt(sum((v - mean) ** 2 for v in values) / 11) / math.sqrt(12)
    group = tab.locator(".grid tr.group", has_text="adam")
    assert f"{mean:.4f}".rstrip("0") in group.text_content() and f"± {half:.2g}" in group.text_content()
    group.get_by_role("button").click()
    assert len(labels(tab)) == 12


def test_state_survives_in_the_address(visit):
    """Reload, and a sent link, show the same; the browser's own links still work."""
    rows, curves = runs(24)
    tab = visit(comparison(rows, curves))
    head(tab, "evaluate.auc").click()
    tab.get_by_label("Choose run 5").check()
    tab.get_by_label("Only what differs").uncheck()
    before, address = labels(tab), tab.evaluate("location.hash")
    again = visit(comparison(rows, curves), address)
    assert labels(again) == before and again.get_by_label("Choose run 5").is_checked()
    assert not again.get_by_label("Only what differs").is_checked()
    again.locator(".top nav a", has_text="Matrix").click()
    assert again.evaluate("location.hash").startswith("#all~")
    broken = visit(comparison(rows, curves), "#~%7Bbroken")
    assert len(labels(broken)) == 24


def test_selection_is_told(visit):
    """Charts, and anybody else, hear which rows are shown, chosen, hidden, and their colours."""
    tab = visit(comparison(*runs(24)))
    tab.evaluate("document.addEventListener('mlnb:selection', e => { window.heard = e.detail; })")
    tab.get_by_label("Choose run 7").check()
    heard = tab.evaluate("heard")
    assert heard["selected"] == ["run-0007"] and list(heard["colours"]) == ["run-0007"] and len(heard["visible"]) == 24
    assert tab.locator(".legend").text_content().startswith("run 7and 23 more")
    tab.get_by_role("button", name="Hide", exact=True).click()
    assert "run-0007" not in tab.evaluate("heard.visible") and len(labels(tab)) == 23
    tab.get_by_role("button", name="Show 1 hidden").click()
    assert len(labels(tab)) == 24


def test_brush_filters_the_table(visit):
    """Dragging along an axis keeps the runs inside; Escape lets go; the same with the keyboard."""
    tab = visit(comparison(*runs(24)))
    zone = tab.locator(".par .zone").first
    zone.scroll_into_view_if_needed()
    box = zone.bounding_box()
    tab.mouse.move(box["x"] + 5, box["y"] - 3)
    tab.mouse.move(box["x"] + 5, box["y"] + 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 5, box["y"] + box["height"] * 0.25, steps=4)
    tab.mouse.up()
    assert len(labels(tab)) == 8
    zone.press("Escape")
    assert len(labels(tab)) == 24
    for _ in range(6): zone.press("ArrowUp")
    assert len(labels(tab)) == 8


def test_a_thousand_rows_are_a_window(visit):
    """Only rows in sight exist, and scrolling reaches the last."""
    tab = visit(page("x", "", [Section("t", "T", run_table(FIELDS, runs(1000)[0]))]))
    assert tab.locator(".grid tbody tr").count() < 80
    tab.evaluate("document.querySelector('.grid .window').scrollTop = 1e6")
    until(tab, "[...document.querySelectorAll('.grid tbody .name')].some(n => n.textContent === 'run 999')")
    assert tab.locator(".grid tbody tr").count() < 80
    shown = tab.evaluate("""() => { const w = document.querySelector('.grid .window'), b = w.getBoundingClientRect();
        return [...w.querySelectorAll('tbody .name')].filter(n => n.getBoundingClientRect().bottom <= b.bottom + 1).at(-1).textContent; }""")
    assert shown == "run 999"


def test_curves_are_drawn(visit):
    """One panel a metric, a line for each of eight runs, and the rest below them."""
    rows, curves = runs(24)
    tab = visit(comparison(rows, curves))
    tab.locator(".curves").scroll_into_view_if_needed()
    tab.wait_for_selector(".curves .scatterlayer .trace")
    assert tab.locator(".curves figure").count() == 2
    assert tab.evaluate("document.querySelector('.curves .plot').data.filter(t => t.y.length === 30).length") == 8
    ink = "c => { const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return p.some(v => v > 0); }"
    assert tab.locator(".curves canvas").first.evaluate(ink)
    before = tab.evaluate("document.querySelector('.curves .plot').data.at(-2).y[29]")
    tab.locator(".curves input[type=range]").evaluate("i => { i.value = 0.9; i.dispatchEvent(new Event('input')); }")
    until(tab, f"document.querySelector('.curves .plot').data.at(-2).y[29] !== {before}")
    last, mean, weight = [], 0.0, 0.0
    for value in curves["val_loss"]["run-0000"]["value"]: mean, weight = 0.9 * mean + 0.1 * value, 0.9 * weight + 0.1; last = mean / weight
    assert tab.evaluate("document.querySelector('.curves .plot').data.at(-2).y[29]") == pytest.approx(last, rel=1e-4)


def test_hostile_text_runs_nothing(visit):
    """In a real browser, with everything opened."""
    rows, curves, fields = hostile_runs()
    tab = visit(comparison(rows, curves, fields, baseline=rows[0].id) + "<script>document.title='owned'</script>")
    tab.get_by_role("button", name="Columns").click()
    tab.get_by_role("button", name="Filters").click()
    for section in ("curves-of", "axes", "two", "all"):
        tab.locator(f"section#{section}").scroll_into_view_if_needed()
        tab.wait_for_timeout(150)
    plot = tab.locator(".chart .plot .point").first
    if plot.count(): plot.hover(force=True)
    assert tab.title() == "Comparison" and tab.evaluate("document.querySelectorAll('img, svg[onload]').length") == 0
    assert sorted(labels(tab))[0] is not None and len(labels(tab)) == 9


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit(visit, width, scheme):
    """No sideways scrolling of the page itself, at both widths; the scheme of the system is followed and can be changed."""
    tab = visit(comparison(*runs(24)), viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = "getComputedStyle(document.body).backgroundColor"
    before = tab.evaluate(ground)
    assert (before == "rgb(255, 255, 255)") is (scheme == "light")
    tab.get_by_title("Light or dark").click()
    assert tab.evaluate(ground) != before


def test_few_runs_stand_as_columns(visit):
    """And can be turned."""
    tab = visit(comparison(*runs(3)))
    assert tab.locator(".grid table.across thead .name").all_text_contents() == ["run 0", "run 1", "run 2"]
    tab.get_by_label("Runs as columns").uncheck()
    assert labels(tab) == ["run 0", "run 1", "run 2"]


def test_print_shows_all_rows_on_white(visit):
    """Paper is light, has every row, and no controls."""
    tab = visit(page("x", "", [Section("t", "T", run_table(FIELDS, runs(120)[0]))]), color_scheme="dark")
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(labels(tab)) == 120 and not tab.locator(".grid .bar").first.is_visible()
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(labels(tab)) < 100


def test_numbers_are_written_alike(visit):
    """The rule in Python and the rule in JavaScript."""
    tab, draw = visit(page("x", "", [])), random.Random(2)
    values = [0, 1, -1, 0.5, 1e-5, 123456789, 1e15, 1e22, 12345.678, 0.99995, 999.95, 1e-4, 9.9999e-5]
    values += [draw.choice([-1, 1]) * 10 ** draw.uniform(-9, 18) for _ in range(500)] + [draw.randint(-10 ** 9, 10 ** 9) for _ in range(50)]
    told = tab.evaluate("values => values.map(v => mlnb.number(v))", values)
    assert [(v, a, b) for v, a, b in zip(values, told, map(markup.number, values), strict=True) if a != b and abs(v) != 0.5] == []
    spans = [0.04, 9.94, 59.4, 61.0, 3599.0, 3661.0, 90000.0]
    assert tab.evaluate("values => values.map(v => mlnb.shown(v, 's'))", spans) == [shown(v, "s") for v in spans]
    sizes = [0.0, 512.0, 12_345.0, 1.07e9, 5e12]
    assert tab.evaluate("values => values.map(v => mlnb.shown(v, 'B'))", sizes) == [shown(v, "B") for v in sizes]


def test_a_report_is_drawn(visit, project):
    """Figures of plotly and of matplotlib, the graph, a notebook that opens; nothing of what it holds runs."""
    tab = visit(report(project), viewport={"width": 390, "height": 800}, color_scheme="dark")
    tab.locator("section#figures").scroll_into_view_if_needed()
    tab.wait_for_selector("section#figures .scatterlayer .trace")
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert tab.locator(".graph svg rect").count() >= 3
    tab.locator("details.notebook summary").first.click()
    assert tab.locator("details.notebook .nb pre.code").first.is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390 and tab.title().startswith("p 2")
