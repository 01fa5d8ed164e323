"""Behaviour tests at their hard edges: models that ignore, crash or answer NaN, one row, odd columns, every kind of change."""

import numpy as np
import pandas as pd
import pytest
from small_models import odd_shop, reference

from mlnb.data.schemas import column_values, describe_table
from mlnb.errors import EvaluationError
from mlnb.evaluation.behaviour import run_behaviours
from mlnb.evaluation.changes import CHANGES, change_column, parse_change
from mlnb.evaluation.expectations import default_behaviours, read_behaviours
from mlnb.testing import run_stage
from mlnb.training.models import build_model, predict

pytestmark = pytest.mark.tensorflow
TABLE, SCHEMA = odd_shop()


def asked(kind, column, change, **more):
    return read_behaviours([{"kind": kind, "column": column, "change": change, **more}], SCHEMA)


def tried(predict_, tests, rows=TABLE, **more):
    return run_behaviours(predict_, rows, tests, SCHEMA, **more)


def test_a_model_that_ignores_a_column_is_invariant_in_it_and_has_no_direction():
    def blind(rows):
        return rows["価格"].to_numpy() / 100

    assert tried(blind, asked("invariance", "class", "other")).passed
    found = tried(blind, asked("directional", "größe/m²", "+ 10", expect="higher"))
    assert not found.passed and found.outcomes[0].failed == found.outcomes[0].tried == int(TABLE["größe/m²"].notna().sum())
    assert tried(blind, asked("directional", "größe/m²", "+ 10", expect="not lower")).passed


def test_the_rows_a_model_cannot_stand_are_found_among_those_it_can():
    bad = TABLE.index[[3, 77]]

    def picky(rows):
        if rows.index.isin(bad).any() and (rows["class"] == "never seen before").any():
            raise ValueError("unknown <class>")
        return np.full(len(rows), 0.5)

    outcome = tried(picky, asked("survival", "class", "unseen"), examples=9).outcomes[0]
    assert (outcome.failed, outcome.error) == (2, "ValueError: unknown <class>")
    assert sorted(outcome.examples.index) == sorted(bad)
    page = tried(picky, asked("survival", "class", "unseen"))._repr_html_()
    assert "unknown &lt;class&gt;" in page and "<class>" not in page


def test_a_model_that_raises_on_everything_is_not_asked_forever():
    calls = []

    def broken(rows):
        calls.append(len(rows))
        if len(calls) > 1:
            raise RuntimeError("no")
        return np.zeros(len(rows))

    outcome = tried(broken, asked("survival", "class", "unseen")).outcomes[0]
    assert outcome.failed == outcome.tried == len(TABLE) and len(calls) < 200


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_never_pass(bad):
    def half(rows):
        return np.where(column_values(rows["größe/m²"], {"kind": "numeric"}) > 50, bad, 0.5)

    tests = [*asked("perturbation", "価格", "noise 0.1"), *asked("directional", "価格", "+ 1", expect="not lower"), *asked("survival", "価格", "missing")]
    for outcome in tried(half, tests).outcomes:
        assert outcome.failed == int((TABLE["größe/m²"] > 50).sum()) and not outcome.passed and 0 < outcome.share < 1


def test_one_row_is_enough_and_none_is_an_error():
    one = tried(lambda rows: np.zeros(len(rows)), default_behaviours(SCHEMA), TABLE.head(1))
    assert one.passed and {o.tried for o in one.outcomes} <= {0, 1}
    with pytest.raises(EvaluationError, match="no rows to try"):
        tried(lambda rows: np.zeros(len(rows)), default_behaviours(SCHEMA), TABLE.head(0))


def test_a_test_that_could_not_be_tried_passes_only_if_nobody_asked_for_it():
    empty = TABLE.assign(**{"größe/m²": np.nan})
    assert not tried(lambda rows: np.zeros(len(rows)), asked("perturbation", "größe/m²", "noise 0.1"), empty).passed
    usual = [test for test in default_behaviours(SCHEMA) if test.columns == ("größe/m²",) and test.kind == "perturbation"]
    outcome = tried(lambda rows: np.zeros(len(rows)), usual, empty).outcomes[0]
    assert (outcome.tried, outcome.passed, outcome.error) == (0, True, "no row could be changed in this way")


def test_wrong_number_of_scores_is_said():
    with pytest.raises(EvaluationError, match="another number of scores than rows"):
        tried(lambda rows: np.zeros(3), default_behaviours(SCHEMA))
    with pytest.raises(EvaluationError, match="another number of scores"):
        tried(lambda rows: np.zeros((len(rows), 3)), default_behaviours(SCHEMA))
    with pytest.raises(EvaluationError, match="must name one"):
        tried(lambda rows: np.zeros((len(rows), 2)), asked("directional", "価格", "+ 1", expect="higher"), outputs=["a", "b"])
    named = asked("directional", "価格", "+ 1", expect="higher", output="b")
    assert tried(lambda rows: np.stack([rows["価格"] * 0, rows["価格"]], 1), named, outputs=["a", "b"]).passed


def test_the_same_seed_gives_the_same_and_the_order_of_tests_does_not_matter_to_rows():
    def noisy(rows):
        return np.sin(column_values(rows["größe/m²"], {"kind": "numeric"}).fillna(0))

    tests = asked("perturbation", "größe/m²", "noise 0.5") + asked("perturbation", "価格", "noise 0.5")
    assert tried(noisy, tests, rows=TABLE).as_dict() == tried(noisy, tests, rows=TABLE).as_dict()
    assert tried(noisy, tests, seed=1).as_dict() != tried(noisy, tests, seed=0).as_dict()


@pytest.mark.parametrize("column", [c["name"] for c in SCHEMA["columns"] if c["role"] == "feature"])
@pytest.mark.parametrize("text", ["noise 0.5", "+ 3", "- 3", "* 2", "+ 2 days", "- 1 hour", "= 1", "other", "missing", "extreme", "unseen", "typo", "case", "blanks"])
def test_every_change_fits_or_says_so_and_keeps_index_and_gaps(column, text):
    facts = next(c for c in SCHEMA["columns"] if c["name"] == column)
    change = parse_change(text)
    rows = TABLE.set_axis(np.arange(len(TABLE)) * 3)[column]
    try:
        new, differs = change_column(rows, facts, change, np.random.default_rng(0))
    except EvaluationError as e:
        assert column in str(e) and (CHANGES[change.word] or change.word == "=")
        return
    assert new.index.equals(rows.index) and new.name == column and len(differs) == len(rows)
    before, after = column_values(rows, facts), column_values(new, facts)
    if change.word in ("noise", "+", "-", "*", "typo", "case", "blanks", "other"):
        assert (after.isna() == before.isna()).all() or change.word == "other"
    assert ((before != after) & ~(before.isna() & after.isna())).to_numpy(bool)[differs].all()
    assert not ((before != after) & ~(before.isna() & after.isna())).to_numpy(bool)[~differs].any()


@pytest.mark.parametrize("dtype", ["Int64", "category", "float32", "object", "string"])
def test_columns_of_any_type_can_be_changed(dtype):
    frame = pd.DataFrame({"x": pd.Series([1, 2, None, 4] * 20).astype("Int64").astype(dtype), "y": [0, 1] * 40})
    schema = describe_table(frame, {"name": "y", "task": "binary", "classes": [0, 1]}, kinds={"x": "numeric"})
    new, differs = change_column(frame["x"], schema["columns"][0], parse_change("+ 1"), np.random.default_rng(0))
    assert new.dropna().tolist() == [2.0, 3.0, 5.0] * 20 and differs.sum() == 60


def test_untrained_model_of_an_odd_table_stands_what_holds_for_any_model():
    model = build_model(SCHEMA, (8,))
    found = tried(lambda rows: predict(model, rows, SCHEMA), default_behaviours(SCHEMA))
    assert not [o for o in found.failures if o.test.kind in ("survival", "invariance")], found
    assert found.table()["tried"].min() > 0


def test_markdown_with_bars_backticks_and_alignment_is_read():
    schema = describe_table(pd.DataFrame({"a | b": range(50), "y": [0, 1] * 25}).assign(**{"a | b": np.linspace(0, 1, 50)}), {"name": "y", "task": "binary"})
    tests = read_behaviours("|kind|column|change|tolerance|\n|:--|:-:|--:|---|\n| perturbation | `a \\| b` | noise 0.1 | 0.2 |", schema)
    assert (tests[0].columns, tests[0].tolerance) == (("a | b",), 0.2)
    with pytest.raises(EvaluationError, match="another number of cells"):
        read_behaviours("| kind | column |\n|---|---|\n| survival |", schema)


def test_the_stage_on_the_reference_and_a_model_that_fails_it():
    fitted = reference()
    refs = {"train.model": fitted.model, "prepare.valid": fitted.valid, "prepare.schema": fitted.schema}
    scraps = run_stage("nbs/stages/tabular/62_behaviour.ipynb", {"rows": 200}, refs)
    assert scraps["passed"] is True and len(scraps["results"]) == 34 and scraps["results"]["tried"].min() >= 50
    wrong = [{"name": "the wrong way", "kind": "directional", "column": "disea", "change": "+ 10", "expect": "lower"}]
    scraps = run_stage("nbs/stages/tabular/62_behaviour.ipynb", {"rows": 200, "behaviours": wrong, "defaults": False}, refs)
    assert scraps["passed"] is False and scraps["summary"] == {"passed": False, "tests": 1, "failed": ["the wrong way"]}
    assert scraps["failures"]["change"].str.startswith("disea: ").all() and len(scraps["failures"]) == 5
