"""The model card: no card without the words of a person, nothing of a stranger becomes markup, both forms say the same."""

import html.parser
import json
import re

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import figures, reference

from mlnb.data.schemas import describe_table
from mlnb.errors import EvaluationError, StageError
from mlnb.evaluation.card import fill_card
from mlnb.evaluation.card_words import HEADINGS, MARKER, Words, card_template, read_card, write_card_template
from mlnb.serving.registry import register
from mlnb.testing import run_stage

NEEDED = [heading.title for heading in HEADINGS if heading.needed]
SCHEMA = describe_table(pd.DataFrame({"a": [0.5, 1.5, 2.25] * 20, "y": [0, 1] * 30}), {"name": "y", "task": "binary", "classes": [0, 1]})


def words_of(**changed):
    answers = {title: f"About {title.lower()}." for title in NEEDED} | changed
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in answers.items() if text is not None)


def row(name, by, key, value, examples=100, small=False, metric="auc"):
    return {"slice": name, "by": by, "key": json.dumps(key), "metric": metric, "value": value, "low": value - 0.1, "high": value + 0.1,
            "examples": examples, "small": small}


def card_of(rows=(), words=None, **more):
    table = pd.DataFrame([row("Overall", "Overall", [], 0.7), *rows])
    given_ = {"schema": SCHEMA, "metrics": table, "verdict": {"blessed": True, "metric": "auc", "checks": [], "failures": []}} | more
    return fill_card("model", words or Words({}, [], {}), **given_)


class Page(html.parser.HTMLParser):
    """Tags, and what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.seen, self.links = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, pairs):
        self.tags.append(tag)
        self.fetched += [v for k, v in pairs if k in ("src", "srcset", "data") or k.startswith("on") or (tag == "link" and k == "href")]
        self.links += [v for k, v in pairs if k == "href"]

    def handle_data(self, text):
        self.seen += text


def test_a_missing_file_names_every_section(tmp_path):
    with pytest.raises(EvaluationError) as e:
        read_card(tmp_path / "card.md")
    assert all(title in str(e.value) for title in NEEDED) and "write_card_template" in str(e.value)


@pytest.mark.parametrize(
    "text", ["", " \n", "<!-- later -->", "...", "–", f"{MARKER} Something.", next(h.asks for h in HEADINGS if h.title == "Factors"), None]
)
def test_a_section_without_an_answer_is_named_and_no_other(tmp_path, text):
    (tmp_path / "card.md").write_text(words_of(Factors=text))
    with pytest.raises(EvaluationError, match="nobody has written") as e:
        read_card(tmp_path / "card.md")
    assert e.value.got == "Factors"
    assert read_card(tmp_path / "card.md", draft=True).unwritten == ["Factors"]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(NEEDED)))
def test_whatever_is_answered_in_the_template_only_the_rest_is_asked_for(done):
    import tempfile
    from pathlib import Path

    text = card_template()
    for heading in HEADINGS:
        if heading.title in done:
            text = text.replace(f"{MARKER} {heading.asks}", "An answer.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card.md"
        path.write_text(text)
        found = read_card(path, draft=True)
    assert found.unwritten == [title for title in NEEDED if title not in done] and set(found.sections) == done


def test_a_template_is_never_written_over(tmp_path):
    (tmp_path / "card.md").write_text("mine")
    assert not write_card_template(tmp_path / "card.md") and (tmp_path / "card.md").read_text() == "mine"


def test_headings_in_any_case_with_closing_marks_windows_lines_and_a_mark_at_the_top(tmp_path):
    text = words_of().replace("## Intended use", "##  intended USE ##").replace("\n", "\r\n")
    (tmp_path / "card.md").write_bytes(b"\xef\xbb\xbf" + b"---\r\nlicense: mit\r\n---\r\n" + text.encode())
    found = read_card(tmp_path / "card.md")
    assert found.facts == {"license": "mit"} and list(found.sections) == NEEDED


EVIL = ["<script>alert(1)</script>", "a|b", "`x`", "[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "</td></table>", "*b*\n\n# c", "a\\|b",
        "\u202e<img src=x onerror=alert(1)>", "__x__", "&lt;b&gt;"]


@pytest.mark.parametrize("evil", EVIL)
def test_what_strangers_wrote_stays_text_in_both_forms(evil):
    from markdown_it import MarkdownIt

    card = card_of([row(f"a={evil}", "a", [["a", evil]], 0.5)], Words({"Intended use": evil, evil: evil}, [], {"license": evil}),
                   lineage={evil: evil}, tests={evil: {evil: evil}}, training={evil: evil}, description={"data": evil, "details": {evil: evil}})
    plain = Page(card_of().html())
    page = Page(card.html())
    assert page.fetched == plain.fetched == [] and set(page.tags) - set(plain.tags) <= {"a", "em", "strong", "code", "h1", "hr", "p", "section", "div", "h2", "h3", "table"}
    assert not [link for link in page.links if link.lower().startswith("javascript")]
    front, body = card.markdown().split("\n---\n", 1)
    assert yaml.safe_load(front.removeprefix("---\n"))["license"] == evil
    words = [part.words for part in card.parts]
    for one in words:
        body = body.replace(one, "") if one else body
    shown = Page(MarkdownIt("commonmark").enable("table").render(body))
    assert {"script", "img", "a"} & set(shown.tags) == set()
    cells = " ".join(shown.seen.split())
    assert f"a={' '.join(evil.split())}" in cells


def test_slices_and_crossed_slices_stand_apart_the_worst_first_and_small_ones_say_so():
    rows = [row("a=1", "a", [["a", "1"]], 0.69), row("a=2", "a", [["a", "2"]], 0.4), row("a=3", "a", [["a", "3"]], float("nan")),
            row("b x c=1", "b x c", [["b x c", "1"]], 0.6, 7, True), row("a=1, b x c=1", "a x b x c", [["a", "1"], ["b x c", "1"]], 0.9)]
    text = card_of(rows).markdown()
    single, crossed = re.findall(r"\*\*auc by (?:crossed slices|slice),.*?(?=\n\n\*\*|\n## |\Z)", text, re.DOTALL)
    assert [line.split("|")[1].strip() for line in single.splitlines()[4:] if line.startswith("|")] == ["a=2", "b x c=1", "a=1", "a=3"]
    assert "few rows" in single and "a=1, b x c=1" in crossed and "a=2" not in crossed


def test_hundreds_of_slices_are_counted_not_listed():
    rows = [row(f"a={i}", "a", [["a", str(i)]], 0.7 - i / 1000) for i in range(300)]
    text = card_of(rows).markdown()
    assert text.count("| a=") == 40 and "and 260 more" in text and len(card_of(rows).html()) < 200_000


def test_a_card_of_a_refused_model_and_a_draft_say_so_on_top():
    card = card_of(words=Words({}, ["Factors"], {}), verdict={"blessed": False, "metric": "auc", "checks": [1], "failures": [{"text": "auc is low"}]})
    assert "did not let this model pass" in card.markdown() and "Draft: nobody has written Factors" in card.markdown()
    seen = Page(card.html()).seen
    assert "not blessed" in seen and "Draft: nobody has written Factors" in seen and "auc is low" in seen
    assert "did not let" not in card_of().markdown() and "Draft" not in card_of().markdown()


def test_figures_without_a_number_and_tables_without_figures():
    card = card_of([row("a=1", "a", [["a", "1"]], float("nan"))], verdict={"blessed": True, "metric": "nowhere"})
    assert "by slice" not in card.markdown() and "NaN" not in json.dumps(card.header)
    with pytest.raises(EvaluationError, match="needs figures"):
        fill_card("x", Words({}, [], {}), schema=SCHEMA, metrics=pd.DataFrame({"slice": []}), verdict={})


def test_the_card_lies_beside_the_registered_model(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "saved_model.pb").write_text("graph")
    places = card_of().write(tmp_path)
    version = register(tmp_path / "registry", "m", tmp_path / "export", {}, {path.name: path for path in places})
    kept = tmp_path / "registry" / "m" / "records" / str(version["number"])
    assert {path.name: path.read_text() for path in kept.iterdir()} == {path.name: path.read_text() for path in places}
    assert sorted(p.name for p in (tmp_path / "registry" / "m").iterdir() if p.name.isdigit()) == ["1"]


def refs_of(fitted):
    from mlnb.training.models import predict

    scores = predict(fitted.model, fitted.test, fitted.schema).score.to_numpy()
    metrics = figures(fitted.schema, fitted.test, scores, ["hlthp", "idp"])
    verdict = {"blessed": True, "metric": "auc", "value": float(metrics.value[0]), "checks": [{}] * 5, "failures": []}
    return {"ingest.rows_read": 20190, "evaluate.metrics": metrics, "evaluate.verdict": verdict, "prepare.schema": fitted.schema,
            "prepare.train": fitted.train, "prepare.valid": fitted.valid, "prepare.test": fitted.test,
            "train.val_metrics": {"auc": 0.66}, "train.epochs_run": 4, "tune.best": {"units": [64, 32], "dropout": 0.1, "learning_rate": 0.003},
            "behaviour.summary": {"passed": True, "tests": 34, "failed": []},
            "attack.robustness": {"metric": "accuracy", "clean": 0.8, "value": 0.79, "lost": 0.01, "attack": "pgd", "strength": 0.25, "rows": 1000}}


@pytest.mark.tensorflow
def test_the_stage_on_the_reference(tmp_path):
    fitted = reference()
    scraps = run_stage("nbs/stages/tabular/85_card.ipynb", {}, refs_of(fitted))
    text = scraps["card"].read_text()
    assert scraps["complete"] is True and [f"## {h.title}" in text for h in HEADINGS] == [True] * 9
    assert all(f"{len(part):,}" in text for part in (fitted.train, fitted.valid, fitted.test))
    assert "hlthp=1, idp=1" in text and "disea" in text and "RAND Health Insurance Experiment" in text and "34" in text
    page = Page(scraps["card_html"].read_text())
    assert page.fetched == [] and page.tags.count("section") == 9 and "✓ blessed" in page.seen
    write_card_template(tmp_path / "card.md")
    with pytest.raises(StageError, match="nobody has written"):
        run_stage("nbs/stages/tabular/85_card.ipynb", {"words": str(tmp_path / "card.md")}, refs_of(fitted))
