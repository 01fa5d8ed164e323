"""Questions to runs: what Python would answer where nothing is missing, and never an error of Python's own."""

import json
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from projects import ProjectFolder

from mlnb.errors import SelectionError
from mlnb.files import write_json
from mlnb.settings import find_project
from mlnb.tracking.facts import Facts, all_facts
from mlnb.tracking.notes import Note, set_note
from mlnb.tracking.where import matching, read_where, runs_table

NAMES = ("a", "b", "word", "flag", "none", "tags")
NUMBERS = st.integers(-1000, 1000) | st.floats(-1e6, 1e6, allow_nan=False)
WORDS = st.text("abc 'é", max_size=4)
VALUES = st.fixed_dictionaries(
    {"a": NUMBERS, "b": NUMBERS, "word": WORDS, "flag": st.booleans(), "none": st.none(), "tags": st.lists(WORDS, max_size=3)}
)


def numbers() -> st.SearchStrategy[str]:
    """Expressions that are numbers."""
    leaf = st.sampled_from(["a", "b", "flag"]) | st.integers(0, 50).map(str) | st.floats(0, 50).map(repr)
    return st.recursive(
        leaf,
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner)
        | st.builds("-{}".format, inner)
        | st.builds("abs({})".format, inner),
        max_leaves=4,
    )


def questions() -> st.SearchStrategy[str]:
    """Expressions that are true or false."""
    order = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    text = st.sampled_from(["word"]) | WORDS.map(repr)
    leaf = (
        st.builds("{} {} {}".format, numbers(), order, numbers())
        | st.builds("{} {} {} {} {}".format, numbers(), order, numbers(), order, numbers())
        | st.builds("{} {} {}".format, text, order, text)
        | st.builds("{} {} tags".format, text, st.sampled_from(["in", "not in"]))
        | st.builds("{} {} {}".format, text, st.sampled_from(["in", "not in"]), text)
        | st.builds("{} in [{}, {}]".format, numbers(), numbers(), numbers())
        | st.builds("{} is {}".format, st.sampled_from(NAMES), st.sampled_from(["None", "not None"]))
        | st.builds("len(tags) {} {}".format, order, st.integers(0, 3))
        | st.sampled_from(["flag", "none", "word", "tags", "has(a)"])
    )
    return st.recursive(
        leaf,
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("not ({})".format, inner),
        max_leaves=6,
    )


def ask(question: str, values: dict) -> str:
    """The answer for one run: True, False or unknown."""
    where = read_where(question)
    return repr(where.test([values[name] for name in where.names]))


@settings(max_examples=400, deadline=None)
@given(question=questions(), values=VALUES)
def test_answers_are_pythons(question, values):
    """On complete data; where Python raises, nothing is known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = repr(bool(eval(question, {"__builtins__": {}}, values | {"abs": abs, "len": len, "has": lambda v: True})))
    except (ArithmeticError, TypeError):
        assert ask(question, values) in ("unknown", "True", "False")  # `or` may know without that part
    else:
        assert ask(question, values) == expected


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=60) | st.text("()[]{}`'\"\\ abfortuisnad<>=!+-*/%0123.,:#\n", max_size=60))
@example("`")
@example("a" * 5000)
@example("(" * 3000)
@example("not " * 600 + "a")
@example("-" * 900 + "1 == 1")
@example("9" * 5000 + " > 1")
@example("a\0b")
@example("2 ** 999 ** 9 > 1")
@example("1 if a else 2")
@example("*a, b")
@example("\ud800 > 1")
def test_no_text_raises_anything_else(text):
    """Reading and answering: an answer, or the one error with a sentence in it."""
    try:
        where = read_where(text)
        for values in ([1] * len(where.names), ["x"] * len(where.names), [None] * len(where.names), [[1]] * len(where.names)):
            assert repr(where.test(values)) in ("True", "False", "unknown")
    except SelectionError as e:
        assert str(e).startswith("--where: ")


@settings(max_examples=200, deadline=None)
@given(question=questions(), values=VALUES, missing=st.sets(st.sampled_from(NAMES)))
def test_a_known_answer_does_not_depend_on_what_is_missing(question, values, missing):
    """If some values are missing and the answer is known nevertheless, it is the answer of the complete run; `has` asks otherwise."""
    complete = Facts("\n".join(["run", *values]), ["r", *values.values()])
    torn = {k: v for k, v in values.items() if k not in missing}
    torn = Facts("\n".join(["run", *torn]), ["r", *torn.values()])
    question = question.replace("has(a)", "a == a").replace("tags", "words")
    complete, torn = (Facts(f.names.replace("tags", "words"), f.values) for f in (complete, torn))
    try:
        yes, no = ("r" in matching(read_where(q), [torn]) for q in (question, f"not ({question})"))
        certainly = "r" in matching(read_where(question), [complete])
    except SelectionError:  # none has the name, or text was compared with numbers
        return
    assert not (yes and no) and (certainly if yes else True) and (not certainly if no else True)


# ------------------------------------------------------------------------------------------------ runs of a project


@pytest.fixture
def folder(tmp_path):
    """A project with four runs of real stages."""
    load = ["parameters: rows: int = 10", "from mlnb import glue\nglue('n', rows)"]
    train = [
        "parameters: from mlnb import Secret\nlr: float = 0.1\nsince: str = '2024'\nkey: Secret = Secret('API_KEY')",
        "from mlnb import glue, ref\nimport math\nglue('auc', 0.5 + lr if lr < 0.4 else math.nan)",
        "glue('val_metrics', {'auc': lr * ref('load.n'), 'per slice': {'a b': 1}, 'layers': [1, 2]})",
    ]
    made = ProjectFolder(tmp_path / "p", {"10_load": load, "20_train": train})
    for lr in (0.1, 0.2, 0.3, 0.5):
        made.run("-p", f"train.lr={lr}", API_KEY="verysecret")
    made.project = find_project(made.root)
    made.names = sorted(p.name for p in made.runs.glob("2*"))
    return made


def test_runs_of_a_project(folder):
    """From executed notebooks to rows; the second time from the kept facts, where no secret is."""

    def which(question) -> list[int]:
        rows, _ = runs_table(folder.project, question)
        return [folder.names.index(r["run"]) for r in reversed(rows)]

    set_note(folder.project, folder.names[2], "for the paper", add=["final"], star=True)
    for _ in range(2):
        assert which("auc > 0.65 and params.lr < 0.4") == [1, 2] == which("0.65 < train.auc and params.train.lr < .4")
        assert which("auc == auc") == [0, 1, 2] and which("not auc > 0") == [3]  # NaN
        assert which("val_metrics.auc >= 3") == [2, 3] == which('val_metrics["auc"] >= 3')
        assert which("`train.val_metrics.per slice.a b` == 1 and 2 in val_metrics.layers") == [0, 1, 2, 3]
        assert which('"final" in tags') == which("starred") == which('"paper" in note') == [2]
        assert which('status == "done" and started > "2020" and seconds > 0 and pipeline in ["p", "q"]') == [0, 1, 2, 3]
        assert which('params.since > "2023" and load.status == "skipped"') == [1, 2, 3]
    kept = (folder.runs / "cache" / "facts-1.jsonl").read_text()
    assert len(kept.splitlines()) == 4 and "verysecret" not in kept and "API_KEY" not in kept
    rows, text = runs_table(folder.project, "auc > 0.65 and params.lr > 0")
    assert json.loads(json.dumps(rows))[0]["values"] == {"auc": 0.8, "params.lr": 0.3}
    assert rows[0]["tags"] == ["final"] and rows[0]["star"] and rows[0]["stages"] == {"ran": 1, "skipped": 1}
    assert "params.lr" in text.splitlines()[0] and "★" in text and "final; for" in text
    assert "1 older" in runs_table(folder.project, "auc > 0.65", limit=1)[1]
    assert len(runs_table(folder.project)[0]) == 4
    assert "pipeline" not in text  # there is only one
    for question, says in (("ucc > 1", "train.auc"), ("lr > 1", "params.train.lr"), ("auc > 'high'", "in quotes")):
        with pytest.raises(SelectionError, match=says):
            runs_table(folder.project, question)


def test_ten_thousand_runs_are_read_once(tmp_path, monkeypatch):
    """The second question opens one file; a removed run is forgotten, a running one is asked again."""
    (tmp_path / "settings.ini").touch()
    project = find_project(tmp_path)
    for i in range(300):
        record = {"run": (run := f"20261120-{i:06d}-aaaa"), "pipeline": "p", "status": "done", "started": None, "seconds": i, "stages": {}}
        write_json(project.runs / run / "run.json", record, indent=None)
    assert len(matching(read_where("seconds >= 100"), all_facts(project))) == 200
    opened = []
    import mlnb.tracking.facts as facts

    monkeypatch.setattr(facts, "read_run", lambda project, run: opened.append(run))
    assert len(matching(read_where("seconds >= 100"), all_facts(project))) == 200 and not opened
    monkeypatch.undo()
    for i in range(250):
        (project.runs / f"20261120-{i:06d}-aaaa" / "run.json").unlink()
        (project.runs / f"20261120-{i:06d}-aaaa").rmdir()
    assert [row.values[-1] for row in all_facts(project)] == list(range(299, 249, -1))
    assert len((project.runs / "cache" / "facts-1.jsonl").read_text().splitlines()) == 50


def test_names_of_several_stages(folder):
    """A name is unclear if one run has it twice, and clear if two pipelines have it once each."""
    rows = [Facts("run\na.x\nparams.a.lr", ["1", 1, 2]), Facts("run\nb.x\nparams.b.lr", ["2", 3, 4])]
    assert matching(read_where("x > 0 and params.lr > 0"), rows) == {"1": [1, 2], "2": [3, 4]}
    assert matching(read_where("b.x > 0"), rows) == {"2": [3]}
    assert matching(read_where('"t" in tags or x > 2'), rows, {"1": Note("1", ("t",))}) == {"1": [["t"], 1], "2": [[], 3]}
    with pytest.raises(SelectionError, match="several stages"):
        matching(read_where("x > 0"), [Facts("run\na.x\nb.x", ["1", 1, 2])])
    assert matching(read_where("x > 0"), []) == {}
