"""Figures against scikit-learn on inputs that break formulas, intervals against what they promise, conditions against SQLite."""

import re
import sqlite3
import warnings
from math import erf

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlnb.errors import EvaluationError
from mlnb.evaluation.bootstrap import (
    interval,
    jackknife_draws,
    jackknife_intervals,
    paired_difference,
    percentile_intervals,
    poisson_draws,
    replicates,
)
from mlnb.evaluation.metrics import METRICS, Measured, metric_names, metric_value
from mlnb.evaluation.rows import Rows, check_rows
from mlnb.evaluation.slicing import Group, cut_slices, groups_in
from mlnb.evaluation.tallies import Order
from mlnb.evaluation.vectorised import vectorised_figures
from mlnb.evaluation.where import rows_where

TOLERANCE = {  # of the vectorised path, absolute; what is not here: 1e-12
    "auc_precision_recall": 1e-6,  # the reference integrates in steps
    "mean_squared_error": 1e-2,  # of 1e14, in the rows with targets of 1e7
    "squared_pearson_correlation": 1e-8,  # the reference subtracts means of 1e7
    "mean_label": 1e-8,
    "mean_prediction": 1e-8,
    "root_mean_squared_error": 1e-8,
    "mean_absolute_error": 1e-8,
}


def make(task, labels, scores, weights=None, queries=(), classes=(), threshold=0.5):
    """Rows of arrays, unchecked."""
    labels, scores = np.asarray(labels, float), np.asarray(scores, float)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    frame = pd.DataFrame(index=range(len(labels)))
    return Rows(frame, labels, scores, weights, np.asarray(queries, int), task, tuple(classes), "y", threshold)


def figures(rows, thresholds=()):
    """Figures of all rows by metric."""
    found = Measured(rows, np.zeros(len(rows.frame), int), 1, thresholds).figures()
    return {name: float(value[0, 0]) for name, value in found.items()}


def close(name, value, expected):
    """Is a figure what scikit-learn says, NaN where there is none?"""
    if np.isnan(expected):
        assert np.isnan(value), (name, value)
    else:
        assert value == pytest.approx(expected, abs=TOLERANCE.get(name, 1e-12), rel=1e-9), name


def interpolated(y, s, w):
    """Area under the precision-recall curve: precision integrated over true positives between neighbouring scores."""
    area, positives, negatives = 0.0, w[y == 1].sum(), w[y == 0].sum()
    if not positives or not negatives:
        return np.nan
    tp = fp = 0.0
    for threshold in np.unique(s[w > 0])[::-1]:
        up, down = w[(s == threshold) & (y == 1)].sum(), w[(s == threshold) & (y == 0)].sum()
        steps = np.r_[0.0, np.geomspace(1e-20, 1, 20_001)]  # precision turns fast where few rows meet many
        with np.errstate(invalid="ignore"):
            precision = (tp + up * steps) / (tp + fp + (up + down) * steps)
        precision[0] = precision[1] if tp + fp == 0 else precision[0]
        area += np.trapezoid(precision, steps) * up
        tp, fp = tp + up, fp + down
    return area / positives


def reference(y, s, w, t):
    """scikit-learn's and NumPy's word on a binary task."""
    hard, nan = s > t, np.nan

    def average(values):
        return np.average(values, weights=w) if w.sum() else nan

    def share(over, under):
        return w[over].sum() / w[under].sum() if w[under].sum() else nan

    alive = w > 0
    both = len(np.unique(y[alive])) == 2
    inside = np.clip(s, 1e-7, 1 - 1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many = {"sample_weight": w, "zero_division": nan}
        f1 = sk.f1_score(y, hard, **many) if w[hard | (y == 1)].sum() else nan
        loss = sk.log_loss(y, inside, sample_weight=w, labels=[0, 1]) if w.sum() else nan
        found = {
            "auc": sk.roc_auc_score(y[alive], s[alive], sample_weight=w[alive]) if both else nan,
            "auc_precision_recall": interpolated(y, s, w),
            "binary_accuracy": sk.accuracy_score(y, hard, sample_weight=w) if w.sum() else nan,
            "precision": sk.precision_score(y, hard, **many),
            "recall": sk.recall_score(y, hard, **many),
            "specificity": sk.recall_score(1 - y, ~hard, **many),
            "f1_score": f1,
            "binary_crossentropy": loss,
        }
    return found | {
        "example_count": w.sum(),
        "false_positive_rate": share(hard & (y == 0), y == 0),
        "false_negative_rate": share(~hard & (y == 1), y == 1),
        "predicted_positive_rate": average(hard),
        "mean_label": average(y),
        "mean_prediction": average(s),
        "calibration": average(s) / average(y) if w[y == 1].sum() else nan,
    }


RNG = np.random.default_rng(3)
N = 240
ODD = {
    "random": (RNG.integers(0, 2, N), RNG.random(N)),
    "ties": (RNG.integers(0, 2, N), RNG.choice([0.1, 0.5, 0.9], N)),
    "all scores equal": (RNG.integers(0, 2, N), np.full(N, 0.5)),
    "scores 0 and 1": (RNG.integers(0, 2, N), RNG.integers(0, 2, N)),
    "always right": (np.arange(N) % 2, np.arange(N) % 2),
    "always wrong": (np.arange(N) % 2, 1 - np.arange(N) % 2),
    "one class": (np.ones(N), RNG.random(N)),
    "nothing positive": (np.zeros(N), RNG.random(N)),
    "nothing called": (RNG.integers(0, 2, N), RNG.random(N) / 4),
    "one row": (np.ones(1), np.array([0.7])),
    "two rows": (np.array([0, 1]), np.array([0.7, 0.7])),
    "scores a hair apart": (RNG.integers(0, 2, N), 0.5 + RNG.integers(0, 3, N) * 1e-16),
}
WEIGHTS = {
    "none": lambda n: np.ones(n),
    "zeros": lambda n: np.r_[1.0, RNG.integers(0, 2, n - 1)],
    "tenths": lambda n: RNG.integers(1, 10, n) / 10,
    "huge and tiny": lambda n: RNG.choice([1e-9, 1.0, 1e9], n),
}


@pytest.mark.parametrize("weights", list(WEIGHTS))
@pytest.mark.parametrize("case", list(ODD))
def test_binary_figures_are_those_of_scikit_learn(case, weights):
    y, s = (np.asarray(v, float) for v in ODD[case])
    w = WEIGHTS[weights](len(y))
    found = figures(make("binary", y, s, w), [0.25])
    assert list(found) == metric_names("binary", (), [0.25])
    expected = reference(y, s, w, 0.5)
    assert set(METRICS["binary"]) | {"example_count"} == set(expected)
    for name, value in expected.items():
        close(name, found[name], value)
    for name, value in reference(y, s, w, 0.25).items():
        if f"{name}@0.25" in found:
            close(name, found[f"{name}@0.25"], value)


@pytest.mark.parametrize("weights", ["none", "zeros", "tenths"])
@pytest.mark.parametrize("ties", [False, True])
def test_multiclass_figures_are_those_of_scikit_learn(ties, weights):
    k, names = 4, tuple("abcd")
    y, s = RNG.integers(0, k, N), RNG.dirichlet(np.ones(k), N)
    if ties:
        s = RNG.choice([0.1, 0.3], (N, k))
    w = WEIGHTS[weights](N)
    found, top, alive = figures(make("multiclass", y, s, w, classes=names)), s.argmax(1), w > 0
    assert list(found) == metric_names("multiclass", names)
    close("", found["sparse_categorical_accuracy"], sk.accuracy_score(y, top, sample_weight=w))
    loss = sk.log_loss(y, s / s.sum(1, keepdims=True), sample_weight=w)
    close("", found["sparse_categorical_crossentropy"], loss)
    one_hot = (y[:, None] == np.arange(k)).astype(int)
    scores = {"precision": sk.precision_score, "recall": sk.recall_score, "f1_score": sk.f1_score}
    for name, function in scores.items():
        for how in ("macro", "micro", "weighted"):
            close("", found[f"{name}_{how}"], function(y, top, average=how, sample_weight=w))
        for i, value in enumerate(function(y, top, average=None, sample_weight=w)):
            close("", found[f"{name}[{names[i]}]"], value)
    for how in ("macro", "micro", "weighted"):
        value = sk.roc_auc_score(one_hot[alive], s[alive], average=how, sample_weight=w[alive])
        close("", found[f"auc_{how}"], value)


def test_a_class_that_is_absent_leaves_the_macro_average_undefined_and_the_weighted_one_defined():
    s = RNG.dirichlet(np.ones(3), 50)
    found = figures(make("multiclass", RNG.integers(0, 2, 50), s, classes="abc"))
    assert np.isnan([found[n] for n in ("recall[c]", "auc[c]", "recall_macro", "auc_macro")]).all()
    assert np.isfinite([found[n] for n in ("recall_weighted", "auc_weighted", "auc_micro", "recall[a]")]).all()


def test_multilabel_figures_are_those_of_scikit_learn():
    y, s, w = RNG.integers(0, 2, (N, 3)), RNG.random((N, 3)).round(2), WEIGHTS["zeros"](N)
    found = figures(make("multilabel", y, s, w, classes="abc", threshold=0.4), [0.25])
    assert list(found) == metric_names("multilabel", "abc", [0.25])
    for t, end in ((0.4, ""), (0.25, "@0.25")):
        for how in ("macro", "micro", "weighted"):
            value = sk.f1_score(y, s > t, average=how, sample_weight=w)
            close("", found[f"f1_score_{how}{end}"], value)
        for i, name in enumerate("abc"):
            close("", found[f"recall[{name}]{end}"], sk.recall_score(y[:, i], s[:, i] > t, sample_weight=w))
        close("", found[f"binary_accuracy{end}"], np.average(((s > t) == y).mean(1), weights=w))
    alive = w > 0
    for how in ("macro", "micro", "weighted"):
        close("", found[f"auc_{how}"], sk.roc_auc_score(y[alive], s[alive], average=how, sample_weight=w[alive]))
    inside = np.clip(s, 1e-7, 1 - 1e-7)
    losses = [sk.log_loss(y[:, i], inside[:, i], sample_weight=w) for i in range(3)]
    close("", found["binary_crossentropy"], np.mean(losses))


REGRESSIONS = {
    "random": (RNG.normal(0, 1, N), RNG.normal(0, 1, N)),
    "targets of 1e7, spread of 1": (1e7 + RNG.normal(0, 1, N), 1e7 + RNG.normal(0, 1, N)),
    "one outlier of 1e7": (np.r_[1e7, RNG.normal(0, 1, N - 1)], RNG.normal(0, 1, N)),
    "equal targets": (np.full(N, 1e7 / 3), RNG.normal(0, 1, N)),
    "equal predictions": (RNG.normal(0, 1, N), np.full(N, 0.1)),
    "one row": (np.array([3.0]), np.array([4.0])),
}


@pytest.mark.parametrize("weights", list(WEIGHTS))
@pytest.mark.parametrize("case", list(REGRESSIONS))
def test_regression_figures_are_those_of_scikit_learn(case, weights):
    y, s = REGRESSIONS[case]
    w = WEIGHTS[weights](len(y))
    found, given = figures(make("regression", y, s, w)), {"sample_weight": w}
    constant = len(set(y[w > 0])) == 1 or len(set(s[w > 0])) == 1
    covariance = np.cov(y - np.average(y, weights=w), s - np.average(s, weights=w), aweights=w, ddof=0)
    expected = {
        "example_count": w.sum(),
        "mean_absolute_error": sk.mean_absolute_error(y, s, **given),
        "mean_squared_error": sk.mean_squared_error(y, s, **given),
        "root_mean_squared_error": sk.root_mean_squared_error(y, s, **given),
        "squared_pearson_correlation": np.nan
        if constant
        else covariance[0, 1] ** 2 / covariance[0, 0] / covariance[1, 1],
        "mean_label": np.average(y, weights=w),
        "mean_prediction": np.average(s, weights=w),
    }
    assert list(found) == metric_names("regression")
    for name, value in expected.items():
        close(name, found[name], value)


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_figures_are_those_of_scikit_learn(ties):
    queries, size = 40, 7
    gains = RNG.integers(0, 4, (queries, size)).astype(float)
    gains[0] = 0  # says nothing
    scores = RNG.choice([1.0, 2, 3], (queries, size)) if ties else RNG.normal(size=(queries, size))
    weight, shuffled = RNG.integers(0, 3, queries).astype(float), RNG.permutation(queries * size)
    place = np.repeat(np.arange(queries), size)
    parts = [v.ravel()[shuffled] for v in (gains, scores, np.repeat(weight, size), place)]
    found = figures(make("ranking", *parts), [2, 5])
    assert list(found) == ["example_count", "ndcg@2", "ndcg@5", "min_label_position"]
    for k in (2, 5):
        each = [sk.ndcg_score(gains[[q]], scores[[q]], k=k) for q in range(1, queries)]
        close("", found[f"ndcg@{k}"], np.average(each, weights=weight[1:]))
    first = []
    for q in range(1, queries):
        jitter = scores[q] + RNG.random((4000, size)) * 1e-6
        hit = (gains[q] > 0)[np.argsort(-jitter, axis=1)]
        first.append((hit.argmax(axis=1) + 1).mean() if hit.any() else np.nan)
    known = np.isfinite(first)
    expected = np.average(np.array(first)[known], weights=weight[1:][known])
    assert found["min_label_position"] == pytest.approx(expected, abs=0.02)


def draw(task, n=120):
    """Rows of a task as arrays that can be repeated."""
    rng = np.random.default_rng(5)
    if task == "binary":
        return rng.integers(0, 2, n).astype(float), rng.random(n).round(1), ()
    if task == "multiclass":
        return rng.integers(0, 3, n).astype(float), rng.dirichlet(np.ones(3), n), ("a", "b", "c")
    if task == "multilabel":
        return rng.integers(0, 2, (n, 2)).astype(float), rng.random((n, 2)).round(1), ("a", "b")
    return rng.integers(0, 4, n).astype(float), rng.normal(size=n), ()


@pytest.mark.parametrize("task", list(METRICS))
def test_a_weight_is_a_number_of_rows(task):
    """Weight 2 is the row twice, weight 0 is no row; for a ranking, the query."""
    labels, scores, classes = draw(task)
    queries = np.repeat(np.arange(20), 6)
    counts = RNG.integers(0, 4, 20)[queries] if task == "ranking" else RNG.integers(0, 4, len(labels))
    weighted = figures(make(task, labels, scores, counts, queries, classes))
    rows = np.repeat(np.arange(len(labels)), counts)
    copy = np.concatenate([np.arange(c) for c in counts])
    again = np.unique(queries[rows] * 10 + copy, return_inverse=True)[1]
    repeated = figures(make(task, labels[rows], scores[rows], None, again, classes))
    assert weighted == pytest.approx(repeated, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("task", list(METRICS))
def test_groups_that_overlap_are_each_judged_as_if_alone(task):
    labels, scores, classes = draw(task)
    queries = np.repeat(np.arange(20), 6)
    rows = make(task, labels, scores, queries=queries, classes=classes)
    members = [np.sort(RNG.choice(20, size, replace=False)) for size in (20, 12, 7, 1)]
    members = [np.flatnonzero(np.isin(queries, one)) for one in members] + [np.zeros(0, int)]
    groups = [Group("hand", (("g", str(i)),), one) for i, one in enumerate(members)]
    table = vectorised_figures(rows, groups).set_index(["slice", "metric"])
    for i, own in enumerate(members[:-1]):
        alone = figures(make(task, labels[own], scores[own], queries=np.unique(queries[own], return_inverse=True)[1], classes=classes))
        found = table.loc[f"g={i}"].value.to_dict()
        assert found == pytest.approx(alone, abs=1e-9, nan_ok=True)
        assert (table.loc[f"g={i}"].examples == len(own)).all()
    empty = table.loc["g=4"]
    assert (empty.examples == 0).all() and empty.drop("example_count").value.isna().all() and empty.small.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_a_score_that_is_no_probability_is_an_error_and_never_a_figure(bad):
    frame = pd.DataFrame({"y": [0, 1, 0, 1], "s": [0.1, 0.2, 0.3, bad]})
    with pytest.raises(EvaluationError):
        check_rows(frame, "y", "s")
    if not np.isfinite(bad):
        assert np.isnan(metric_value("auc", frame.y, frame.s))
        assert np.isnan(replicates("auc", frame.y, frame.s, count=20)).all()


# ---- intervals


def test_bins_of_many_scores_change_no_sample_by_more_than_a_hair(monkeypatch):
    """The shortcut of groups with more than 1,024 scores, against samples without it."""
    n = 30_000
    y = RNG.integers(0, 2, n)
    s = np.clip(RNG.normal(0.3 + 0.2 * y, 0.2), 0, 1)
    for metric, most in (("auc", 5e-5), ("auc_precision_recall", 3e-4)):
        short = replicates(metric, y, s, count=20)
        with monkeypatch.context() as patched:
            patched.setattr(Order, "MOST", n + 1)
            whole = replicates(metric, y, s, count=20)
        assert 0 < np.abs(short - whole).max() < most
        assert np.abs(short - whole).max() < 0.1 * whole.std()


def coverage(one_set, truth, metric, method, sets=160):
    """Share of intervals that hold the truth."""
    hits = []
    for seed in range(sets):
        y, s = one_set(np.random.default_rng(seed))
        rows = make("binary" if set(y) <= {0, 1} else "regression", y, s)
        table = vectorised_figures(rows, [Group("Overall", (), np.arange(len(y)))], intervals=method, seed=seed)
        row = table[table.metric == metric].iloc[0]
        hits.append(row.low <= truth <= row.high)
    return np.mean(hits)


def shifted(rng, n=200, by=0.8):
    y = np.arange(n) % 2
    return y, 1 / (1 + np.exp(-(rng.normal(size=n) + by * y)))


@pytest.mark.parametrize(("method", "least", "most"), [("bootstrap", 0.89, 0.99), ("jackknife", 0.89, 0.99)])
def test_intervals_hold_the_truth_as_often_as_they_say(method, least, most):
    """AUC of two normal populations, known exactly: the normal distribution at shift over root two."""
    truth = 0.5 * (1 + erf(0.8 / np.sqrt(2) / np.sqrt(2)))
    assert least <= coverage(shifted, truth, "auc", method) <= most
    assert least <= coverage(lambda rng: (rng.normal(3, 1, 80), np.zeros(80)), 3.0, "mean_label", method) <= most


def test_a_sample_is_what_repeating_the_drawn_rows_gives():
    """For every task and metric: the definition of the bootstrap, without weights."""
    for task in METRICS:
        labels, scores, classes = draw(task, 60)
        queries = np.repeat(np.arange(10), 6)
        measured = Measured(make(task, labels, scores, queries=queries, classes=classes), np.zeros(60, int), 1)
        (draws,) = poisson_draws(measured.unit_count, 3, seed=1)
        samples = measured.figures(draws)
        for k in range(3):
            counts = draws[:, k].astype(int)[queries] if task == "ranking" else draws[:, k].astype(int)
            rows = np.repeat(np.arange(60), counts)
            copy = np.concatenate([np.arange(c) for c in counts])
            again = np.unique(queries[rows] * 20 + copy, return_inverse=True)[1]
            alone = figures(make(task, labels[rows], scores[rows], None, again, classes))
            assert {n: float(v[0, k]) for n, v in samples.items()} == pytest.approx(alone, abs=1e-12, nan_ok=True), task


def test_documents_of_one_query_are_drawn_together():
    """Writing every document twice adds no knowledge, so it must not narrow the interval."""
    queries, gains = np.repeat(np.arange(30), 4), RNG.integers(0, 2, 120)
    scores = RNG.normal(size=120)
    once = interval(replicates("min_label_position", gains, scores, "ranking", queries=queries))
    twice = interval(replicates("ndcg@3", np.tile(gains, 2), np.tile(scores, 2), "ranking", queries=np.tile(queries, 2)))
    single = interval(replicates("ndcg@3", gains, scores, "ranking", queries=queries))
    assert once[1] > once[0] and (twice[1] - twice[0]) > 0.7 * (single[1] - single[0])


def test_a_jackknife_leaves_each_row_out_once():
    (kept,) = jackknife_draws(50, 20)
    assert (kept == 0).sum() == 50 and ((kept == 0).sum(axis=1) == 1).all()
    assert np.isnan(jackknife_intervals(np.array(1.0), np.array([1.0, np.nan, 2.0]))).all()


def test_intervals_of_many_figures_are_those_of_each():
    many = RNG.normal(size=(4, 3, 100))
    many[0, 0, :5], many[1, 1, :40], many[2, 2] = np.nan, np.nan, np.nan
    found = percentile_intervals(many)
    for i in range(4):
        for j in range(3):
            assert found[i, j].tolist() == pytest.approx(list(interval(many[i, j])), nan_ok=True)
    assert np.isnan(found[1, 1]).all() and np.isnan(found[2, 2]).all() and np.isfinite(found[0, 0]).all()


@pytest.mark.parametrize("task", list(METRICS))
def test_a_model_is_as_good_as_itself_and_better_than_noise(task):
    labels, scores, _ = draw(task)
    queries = np.repeat(np.arange(20), 6) if task == "ranking" else None
    good = labels
    if task == "multiclass":
        good = (labels[:, None] == np.arange(3)) * 1.0
    same = paired_difference(labels, scores, scores, task, queries=queries)
    assert same[1:] == (0, 0, 0)
    better = paired_difference(labels, good, scores, task, queries=queries)
    assert better.low > 0 and better.low <= better.value <= better.high + 1e-9
    weighted = paired_difference(labels, good, scores, task, queries=queries, weights=np.full(len(labels), 3.0))
    assert weighted.value == pytest.approx(better.value)


def test_block_boundaries_do_not_change_the_draws(monkeypatch):
    from mlnb.evaluation import bootstrap

    whole = np.concatenate(list(poisson_draws(1000, 10)), axis=1)
    monkeypatch.setattr(bootstrap, "_CELLS", 3000)
    parts = list(poisson_draws(1000, 10))
    assert [p.shape[1] for p in parts] == [3, 3, 3, 1]
    assert np.concatenate(parts, axis=1).shape == whole.shape
    again = np.concatenate(list(poisson_draws(1000, 10)), axis=1)
    assert (np.concatenate(parts, axis=1) == again).all()


# ---- conditions, held against SQLite

TABLE = pd.DataFrame(
    {
        "a": [1.0, 2.0, None, 0.0, -3.5, 2.0, None, 7.25],
        "b": [2.0, 2.0, 1.0, None, 0.0, -1.0, None, 0.5],
        "t": ["x", "y", None, "x%", "o'k", "", "Y", "xy_"],
        "u": ["x", None, "z", "x", "x", "", None, "y"],
        "two words": [0.0, 1.0, 2.0, 3.0, None, 5.0, 6.0, 7.0],
    }
)
numbers = st.recursive(
    st.sampled_from(["a", "b", '"two words"', "0", "1", "2.5", "7.25", ".5", "1e1"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda v: f"({v[0]} {v[1]} {v[2]})"),
        inner.map(lambda v: f"- {v}"),  # two of them side by side are a comment in SQL
    ),
    max_leaves=4,
)
texts = st.sampled_from(["t", "u", "'x'", "'o''k'", "''", "'Y'"])
signs = st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="])


def negated(strategy, before, after):
    return st.tuples(strategy, st.booleans(), *after).map(lambda v: before(v[0], "not " if v[1] else "", *v[2:]))


simple = st.one_of(
    st.tuples(numbers, signs, numbers).map(" ".join),
    st.tuples(texts, signs, texts).map(" ".join),
    negated(numbers, lambda v, n, a, b: f"{v} {n}between {a} and {b}", (numbers, numbers)),
    negated(numbers, lambda v, n, a: f"{v} {n}in ({', '.join(a)})", (st.lists(numbers, min_size=1, max_size=3),)),
    negated(texts, lambda v, n, a: f"{v} {n}in ({', '.join(a)})", (st.lists(texts, min_size=1, max_size=3),)),
    negated(texts, lambda v, n, p: f"{v} {n}like '{p}'", (st.sampled_from(["x%", "%", "_", "x_", "%y%", "o''k", ""]),)),
    st.tuples(st.one_of(numbers, texts), st.sampled_from(["is null", "is not null"])).map(" ".join),
    st.sampled_from(["true", "false"]),
)
conditions = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "AND", "OR"]), inner).map(lambda v: f"({v[0]} {v[1]} {v[2]})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda v: f"not ({v})"),
        inner.map(lambda v: f"not {v}"),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def database():
    with sqlite3.connect(":memory:") as base:
        base.execute("pragma case_sensitive_like=on")
        base.execute('create table r (a real, b real, t text, u text, "two words" real)')
        rows = TABLE.astype(object).where(TABLE.notna(), None).to_numpy().tolist()
        base.executemany("insert into r values (?, ?, ?, ?, ?)", rows)
        yield base


@settings(max_examples=400, deadline=None)
@given(conditions)
def test_conditions_answer_as_sqlite_does(database, condition):
    """Also where something is missing: yes, no and unknown, row by row."""
    sql = re.sub(r"(?<![\w.'])([01])(?![\w.'])", r"\1.0", condition)  # SQLite divides whole numbers by whole numbers
    expected = [None if v is None else bool(v) for (v,) in database.execute(f"select ({sql}) from r order by rowid")]
    found = rows_where(TABLE, condition)
    assert [None if pd.isna(v) else bool(v) for v in found] == expected


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab t()'\"`<>=!,.+-*/0123andornotislke_%@;[]{}\\\n", max_size=60))
def test_any_text_is_a_condition_or_one_clear_line(text):
    try:
        found = rows_where(TABLE, text)
    except EvaluationError as e:
        assert str(e)
    else:
        assert found.dtype == "boolean" and len(found) == len(TABLE)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "a.__class__",
        "a > 1; drop table r",
        "a @ b",
        "@pd.eval('1')",
        "[x for x in a]",
        "lambda: 1",
        "a := 1",
        "not" * 500,
        "(" * 3000,
        "not " * 900 + "a > 1 and",
    ],
)
def test_nothing_but_comparing_can_be_written(text):
    with pytest.raises(EvaluationError):
        rows_where(TABLE, text)


def test_columns_of_every_kind_can_be_compared():
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None, 2**60 + 1], dtype="Int64"),
            "truth": pd.array([True, None, False], dtype="boolean"),
            "kind": pd.Categorical(["b", None, "a"]),
            "mixed": [1, "x", None],
            "zone": pd.date_range("2024-01-01 23:30", periods=3, tz="Europe/Rome"),
            "or": [1, 2, 3],
            7: [1, 2, 3],
        }
    )

    def answers(text):
        return ["?" if pd.isna(v) else "yn"[not v] for v in rows_where(frame, text)]

    assert answers("whole >= 1") == ["y", "?", "y"]
    assert answers("truth") == answers("truth = 1") == answers("not truth = false") == ["y", "?", "n"]
    assert answers("kind = 'b'") == ["y", "?", "n"]
    assert answers("mixed = 1") == ["y", "n", "?"] and answers("mixed = 'x'") == ["n", "y", "?"]
    assert answers("zone < '2024-01-02 22:45'") == ["y", "y", "n"]
    assert answers("`or` = 2") == answers('"or" = 2.0') == answers("`7` = 2") == ["n", "y", "n"]


# ---- slices


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["p", "q", "n"]), max_size=3, unique=True), max_size=4), st.integers(0, 2**16))
def test_every_row_is_in_one_group_of_every_slicing(slices, seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"p": rng.choice(["a", None, "b"], 40), "q": rng.integers(0, 3, 40), "n": rng.normal(size=40)})
    cut, specs = cut_slices(frame, slices, max_values=8)
    assert specs[0] == () and len(set(specs)) == len(specs)
    groups = groups_in(cut, specs)
    for spec in specs:
        own = [g for g in groups if tuple(name for name, _ in g.key) == spec]
        assert sorted(np.concatenate([g.members for g in own])) == list(range(40))
        for group in own:
            for name, value in group.key:
                assert (cut[name].iloc[group.members] == value).all()


def test_named_bins_put_ends_where_they_say():
    frame = pd.DataFrame({"age": [-1.0, 0, 29.9, 30, 64, 65, None, np.inf]})
    bins = {"age": {"young": [0, 30], "old": [65, None]}}
    cut, _ = cut_slices(frame, [bins])
    missing, other = "(missing)", "(other)"
    assert cut.age.tolist() == [other, "young", "young", other, other, "old", missing, "old"]
    assert list(cut.age.cat.categories) == ["young", "old", other, missing]
    days = pd.DataFrame({"day": pd.to_datetime(["2023-12-31", "2024-01-01", None])})
    cut, _ = cut_slices(days, [{"day": {"before": [None, "2024-01-01"], "after": ["2024-01-01", None]}}])
    assert cut.day.tolist() == ["before", "after", missing]
