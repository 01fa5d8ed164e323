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
from mlnb.evaluation.metrics import METRICS, metric_value
from mlnb.evaluation.gates import DEFAULT_SLICE_THRESHOLDS, DEFAULT_THRESHOLDS, Bound, judge, parse_bounds

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
    verdict = judge(table(value), thresholds={}, slice_thresholds={})
    assert not verdict.blessed
    json.dumps(verdict.as_dict(), allow_nan=False)


@pytest.mark.parametrize("task", list(DEFAULT_THRESHOLDS))
def test_defaults_only_name_metrics_of_their_task(task):
    assert set(DEFAULT_THRESHOLDS[task]) | set(DEFAULT_SLICE_THRESHOLDS[task]) <= set(METRICS[task])
    for text in (*DEFAULT_THRESHOLDS[task].values(), *DEFAULT_SLICE_THRESHOLDS[task].values()):
        assert parse_bounds(text)


def test_a_failure_says_what_where_and_by_how_much():
    (failure,) = judge(
        table(0.8, 0.6), thresholds={"auc": ">= 0.7"}, slice_thresholds={"auc": ">= overall - 0.1"}
    ).failures
    assert (failure.what, failure.where, failure.value) == ("auc", "g=1", 0.6)
    assert failure.limit == pytest.approx(0.7) and failure.by == pytest.approx(-0.1)


def test_no_rows_is_never_blessed_even_without_bounds():
    verdict = judge(table()[:0], thresholds={}, slice_thresholds={})
    assert not verdict.blessed and "empty" in repr(verdict)


def test_unequal_rows_are_refused():
    with pytest.raises(EvaluationError, match="different lengths"):
        judge(table(), labels=[0, 1], scores=[0.1, 0.9], baselines={"prior": [0.5]})


def test_html_escapes_what_tables_are_called():
    assert (
        "<script>" not in judge(table().replace("g=1", "g=<script>"), slice_thresholds={"auc": "> 0.9"})._repr_html_()
    )


@given(st.integers(0, 10_000))
def test_replicates_of_equal_scores_are_one_half(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 20)]
    assert metric_value("auc", labels, np.full(22, 0.3)) == 0.5
    drawn = replicates("auc", labels, np.full(22, 0.3), count=20, seed=seed)
    assert set(drawn[np.isfinite(drawn)]) <= {0.5}
