"""Gates on figures that a notebook would not show: property tests of bounds, and nothing blessed by accident."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlnb.errors import EvaluationError
from mlnb.evaluation.bootstrap import replicates
from mlnb.evaluation.bounds import Bound, parse_bounds
from mlnb.evaluation.conditions import parse_condition, read_conditions
from mlnb.evaluation.gates import judge
from mlnb.evaluation.metrics import MAIN_METRIC, METRICS, metric_value
from mlnb.evaluation.rows import TASKS, check_rows

NAN = float("nan")
numbers = st.floats(-1e6, 1e6, allow_nan=False)
bounds = st.builds(
    Bound,
    st.sampled_from(["value", "low", "high"]),
    st.sampled_from([">=", "<=", ">", "<"]),
    st.sampled_from(["", "+", "-", "*"]),
    numbers,
)


def table(value=0.8, slice_value=0.8, metric="auc"):
    return pd.DataFrame(
        [
            {
                "slice": name,
                "by": by,
                "key": by,
                "metric": metric,
                "value": v,
                "low": v - 0.01,
                "high": v + 0.01,
                "examples": 100,
                "small": False,
            }
            for name, by, v in (("Overall", "Overall", value), ("g=1", "g", slice_value))
        ]
    )


@given(bounds)
def test_a_bound_reads_back_from_its_text(bound):
    text = (
        f"{bound.part} {bound.operator} "
        + (f"overall {bound.relative} " if bound.relative else "")
        + repr(bound.number)
    )
    assert parse_bounds(text) == [bound]


@given(st.text(max_size=30))
def test_any_text_is_a_bound_or_a_clear_error(text):
    try:
        assert parse_bounds(text)
    except EvaluationError as e:
        assert "this is no" in str(e)


@given(bounds, numbers, numbers)
def test_the_margin_tells_which_side_the_figure_is_on(bound, figure, overall):
    if bound.margin(figure, overall) > 0:
        assert bound.holds(figure, overall)
    if bound.margin(figure, overall) < 0:
        assert not bound.holds(figure, overall)
    assert not bound.holds(NAN, overall)


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_main_metric_that_is_no_number_is_never_blessed(value):
    verdict = judge(table(value))
    assert not verdict.blessed
    json.dumps(verdict.as_dict(), allow_nan=False)


@pytest.mark.parametrize("task", TASKS)
def test_defaults_only_name_metrics_of_their_task(task):
    named = {c.figure for c in read_conditions([], task, may_lose=0.02)}
    assert MAIN_METRIC[task] in named
    assert named <= set(METRICS[task])


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_a_clear_error(text):
    try:
        assert parse_condition(text).figure
    except EvaluationError as e:
        assert "this is no" in str(e) or "only a slice" in str(e)


@given(st.text(st.characters(exclude_categories=["Cs", "Zl", "Zp", "Cc"]), min_size=1).map(str.strip).filter(bool), bounds)
def test_a_slice_may_have_any_name(name, bound):
    text = f"{bound.part} {bound.operator} {bound.number!r}"
    found = parse_condition(f"recall[a b] in {name}: {text}")
    if name != "every slice":
        assert (found.figure, found.scope, found.of) == ("recall[a b]", "slice", name)


def test_a_failure_says_what_where_and_by_how_much():
    (failure,) = judge(
        table(0.8, 0.6), conditions=["auc >= 0.7", "auc in every slice: >= overall - 0.1"]
    ).failures
    assert (failure.what, failure.where, failure.value) == ("auc", "g=1", 0.6)
    assert failure.limit == pytest.approx(0.7) and failure.by == pytest.approx(-0.1)
    assert failure.condition == "auc in every slice: >= overall - 0.1"


def test_no_rows_is_never_blessed_even_without_bounds():
    verdict = judge(table()[:0])
    assert not verdict.blessed and "empty" in repr(verdict)


def test_a_list_of_conditions_names_every_mistake_at_once():
    with pytest.raises(EvaluationError, match="2 conditions") as caught:
        judge(table(), conditions=["auc ~ 1", "auc > 0.5", "recall == 2"])
    assert "auc ~ 1" in str(caught.value) and "recall == 2" in str(caught.value)


def test_unequal_rows_are_refused():
    rows = check_rows(pd.DataFrame({"y": [0, 1]}), "y", np.array([0.1, 0.9]))
    with pytest.raises(EvaluationError, match="different lengths"):
        judge(table(), rows=rows, others={"zero_rule": [0.5]})


def test_the_champion_stays_when_the_difference_is_noise():
    """The promise of the gate: over many pairs of equally good models, hardly one challenger dethrones the champion."""
    rng = np.random.default_rng(3)
    dethroned = refused = 0
    for _ in range(60):
        y = rng.integers(0, 2, 300)
        one, two = (np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1) for _ in range(2))
        rows = check_rows(pd.DataFrame({"y": y}), "y", one)
        verdict = judge(
            table(0.75), conditions=["auc against champion: high >= 0"], rows=rows, others={"champion": two}
        )
        dethroned += verdict.beats("champion")
        refused += not verdict.blessed
    assert dethroned <= 6 and refused <= 6, "each is a chance of 2.5 %"


def test_html_escapes_what_tables_are_called():
    shown = judge(table().replace("g=1", "g=<script>"), conditions=["auc by g: > 0.9"])._repr_html_()
    assert "<script>" not in shown and "g=&lt;script&gt;" in shown


@given(st.integers(0, 10_000))
def test_replicates_of_equal_scores_are_one_half(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 20)]
    assert metric_value("auc", labels, np.full(22, 0.3)) == 0.5
    drawn = replicates("auc", labels, np.full(22, 0.3), count=20, seed=seed)
    assert set(drawn[np.isfinite(drawn)]) <= {0.5}
