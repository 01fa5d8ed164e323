"""The slice finder, trends that turn, and groups of errors: planted ones are named, others are not."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import EvaluationError
from mlnb.evaluation.error_analysis import confusion_pairs, residuals, unusual_cells, worst_rows
from mlnb.evaluation.error_groups import error_groups, mistake_clusters
from mlnb.evaluation.finder import _slicefinder, find_slices, holm, welch
from mlnb.evaluation.losses import row_loss
from mlnb.evaluation.rows import check_rows
from mlnb.evaluation.simpson import find_reversals, model_reversals, trend

TAXI = Path(__file__).resolve().parents[2] / "shared/data/chicago_taxi.csv"


def scored(table, label, ignore):
    """The table with scores of trees that were fitted on the other half of it."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    table = table.reset_index(drop=True).dropna(axis=1, how="all")
    features = pd.get_dummies(table.drop(columns=[label, *ignore]), dtype=float).fillna(-1)
    half = np.random.default_rng(0).permutation(len(table)) < len(table) // 2
    for mine in (half, ~half):
        with threadpool_limits(1):
            model = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(features[~mine], table[label][~mine])
        table.loc[mine, "score"] = model.predict_proba(features[mine])[:, 1]
    return table.drop(columns=list(ignore))


def shuffled(table, label, bad):
    """The table with the labels of one slice shuffled among themselves."""
    table, bad = table.copy(), np.asarray(bad)
    table.loc[bad, label] = np.random.default_rng(0).permutation(table.loc[bad, label])
    return check_rows(table, label, "score")


def test_a_cross_with_shuffled_labels_is_named_on_the_reference_data():
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data.assign(high_use=lambda f: (f.mdvis > 4).astype(int))
    table = scored(table, "high_use", ["mdvis"])
    assert not len(find_slices(check_rows(table, "high_use", "score"), loss="surprise").table)
    found = find_slices(shuffled(table, "high_use", (table.physlm == 1) & (table.hlthg == 0)), loss="surprise")
    assert found.table.slice[0] == "physlm=1, hlthg=0" and found.table.q[0] < 1e-4
    assert "physlm=1, hlthg=0" in repr(found) and "physlm" in found._repr_html_()


@pytest.mark.skipif(not TAXI.is_file(), reason="shared/data/chicago_taxi.csv is not here")
def test_a_cross_with_shuffled_labels_is_named_on_taxi_rides():
    table = pd.read_csv(TAXI).assign(big_tip=lambda f: (f.tips > 0.2 * f.fare).astype(int))
    table = scored(table, "big_tip", ["tips"])
    bad = (table.trip_start_day == 5) & table.company.isna()
    rows = shuffled(table, "big_tip", bad)
    found = find_slices(rows, loss="surprise")
    assert found.table.slice[0] == "trip_start_day=5, company=(missing)"
    assert "trip_start_day=5" in found.table.merged[0].split("; ")
    named = find_slices(rows).table.slice.tolist()
    assert "trip_start_day=5, company=(missing)" in named, "also by plain log loss, beside what is hard anyway"
    turned = find_reversals(check_rows(table, "big_tip", "score"), ["fare"], ["payment_type"], outcomes=["label"]).table
    assert turned.kind.tolist() == ["turns"], "tips of more than a fifth rise with the fare, but not for those who pay by card"


def null_rows(seed, n=800, **more):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "a": rng.choice(list("abcd"), n, p=[0.7, 0.1, 0.1, 0.1]),
            "b": rng.integers(0, 3, n),
            "c": rng.normal(size=n),
            "d": rng.choice(["x", "y"], n),
            "p": rng.beta(0.5, 2, n),
        }
    )
    frame["y"] = (rng.random(n) < frame.p).astype(int)
    return check_rows(frame, "y", "p", **more)


def test_a_model_that_fails_nowhere_in_particular_is_seldom_accused():
    draws = 80
    wrong = sum(len(find_slices(null_rows(i), loss=("log_loss", "error")[i % 2], seed=i).table) > 0 for i in range(draws))
    assert wrong <= 0.05 * draws + 2 * (0.05 * 0.95 * draws) ** 0.5, f"{wrong} of {draws}"
    turned = sum(len(find_reversals(null_rows(i)).table) > 0 for i in range(15))
    assert turned <= 3, turned
    groups = sum(error_groups(null_rows(i)).table.found.any() for i in range(15))
    assert groups <= 3, groups


def test_the_search_agrees_with_brute_force_at_the_ends_of_many_columns():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 9, (1500, 30))
    loss = rng.exponential(0.3, 1500)
    loss[(codes[:, 0] == 2) & (codes[:, 29] == 3)] += 3
    found = _slicefinder(0.999, 5, 2, 10, 1500).fit(codes.astype(float), loss)
    scores = {}
    for columns in [(j,) for j in range(30)] + list(itertools.combinations(range(30), 2)):
        number = codes[:, list(columns)] @ (9 ** np.arange(len(columns)))
        size, total = np.bincount(number), np.bincount(number, loss)
        for value in np.flatnonzero(size >= 10):
            score = 0.999 * (total[value] / size[value] / loss.mean() - 1) - 0.001 * (1500 / size[value] - 1)
            scores[columns, value] = score
    best = sorted(scores.values(), reverse=True)[:5]
    assert np.allclose([one["slice_score"] for one in found.top_slices_statistics_], best)
    assert found.top_slices_[0][0] == 2 and found.top_slices_[0][29] == 3


def test_weights_count_and_rows_without_weight_are_not_there():
    rng = np.random.default_rng(2)
    n = 3000
    frame = pd.DataFrame({"g": rng.choice(list("ab"), n), "h": rng.choice(list("xyz"), n), "p": 0.9, "w": 1.0})
    frame["y"] = (rng.random(n) < 0.9) * 1
    bad = (frame.g == "a") & (frame.h == "x")
    frame.loc[bad, "y"] = 0
    assert find_slices(check_rows(frame, "y", "p", weights="w")).table.slice.tolist() == ["g=a, h=x"]
    frame.loc[bad, "w"] = 0
    assert not len(find_slices(check_rows(frame, "y", "p", weights="w")).table)
    worst = worst_rows(check_rows(frame, "y", "p", weights="w"), 50).table.row
    assert not bad[worst].any()


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "ranking"])
def test_every_task_has_a_loss_a_search_and_groups(task):
    rng = np.random.default_rng(2)
    n = 2400
    frame = pd.DataFrame({"größe": rng.choice(["S", "<M>", None], n), 7: rng.choice([1, 2, 3], n), "x": rng.normal(size=n)})
    bad = ((frame["größe"] == "S") & (frame[7] == 2)).to_numpy()
    more = {}
    if task == "multiclass":
        y = rng.integers(0, 3, n)
        scores = np.full((n, 3), 0.05)
        scores[np.arange(n), np.where(bad, (y + 1) % 3, y)] = 0.9
        frame["y"], label, more = np.array(["ä", "b", "c"])[y], "y", {"classes": ["ä", "b", "c"]}
    elif task == "multilabel":
        y = rng.integers(0, 2, (n, 2))
        scores = np.where(bad[:, None], 1 - y, y) * 0.8 + 0.1
        frame["y0"], frame["y1"], label = y[:, 0], y[:, 1], ["y0", "y1"]
    elif task == "regression":
        frame["y"], label = rng.normal(1e6, 1e5, n), "y"
        scores = frame.y.to_numpy() + rng.normal(0, 1e3, n) * np.where(bad, 20, 1)
    else:
        frame["y"], label, more = rng.integers(0, 4, n), "y", {"query": np.arange(n) // 8}
        scores = frame.y.to_numpy() + rng.normal(0, 0.1, n)
        scores[bad] = -scores[bad]
    rows = check_rows(frame, label, scores, task, **more)
    found = find_slices(rows)
    assert found.table.slice[0] == "größe=S, 7=2", found
    assert "größe=S" in found._repr_html_() and "<M>" not in found._repr_html_()
    groups = error_groups(rows, ["größe", 7])
    assert groups.table.found[0] and "größe=S" in groups.table.condition[0]
    assert worst_rows(rows, 3)._repr_html_() and find_reversals(rows, ["größe"], [7])._repr_html_()
    if task == "multiclass":
        assert set(confusion_pairs(rows).table.columns) >= {"label", "taken_for"}
    if task == "regression":
        assert len(residuals(rows, ["x"]).tables) == 2


def test_strange_tables_are_searched_or_refused_in_one_line():
    from strange_tables import STRANGE

    for make in STRANGE:
        frame = make()[0].copy()
        rng = np.random.default_rng(0)
        rows = check_rows(frame, rng.integers(0, 2, len(frame)), rng.random(len(frame)))
        for look in (find_slices, error_groups, mistake_clusters, lambda r: find_reversals(r, held=list(r.frame)[:2])):
            try:
                found = look(rows)
            except EvaluationError as error:
                assert "\n" not in error.problem
            else:
                assert found._repr_html_() and repr(found)
        assert worst_rows(rows, 3)._repr_html_() and unusual_cells(frame).shape == frame.shape


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_between_the_p_values_and_bonferroni(values):
    p, q = np.array(values), holm(values)
    assert (q >= p - 1e-15).all() and (q <= np.minimum(p * len(p), 1) + 1e-12).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-15).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_whole_weights_are_repeated_rows_in_the_means(seed, most):
    rng = np.random.default_rng(seed)
    loss, inside, times = rng.exponential(1, 60), rng.random(60) < 0.5, rng.integers(1, most + 1, 60)
    inside[:4] = [True, True, False, False]
    one, many = welch(loss, times.astype(float), inside), welch(np.repeat(loss, times), np.ones(times.sum()), np.repeat(inside, times))
    assert np.isclose(one.difference, many.difference)
    assert one.p >= many.p - 0.2, "repeated rows are no more evidence"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_trend_does_not_depend_on_the_units_and_turns_when_it_is_turned(seed):
    rng = np.random.default_rng(seed)
    x, strata = (rng.random(300) < 0.5) * 1.0, rng.integers(0, 3, 300)
    y = rng.normal(size=300) + x * rng.normal() + strata
    a, b = trend(x, y, strata, np.ones(300)), trend(x, -100 * y + 7, strata, np.full(300, 3.0))
    assert np.allclose([-100 * a.overall, -100 * a.fixed], [b.overall, b.fixed])
    assert np.isclose(a.p_turns, b.p_turns) and a.turned == b.turned


def test_trends_without_enough_of_anything_are_none():
    assert trend(np.array([0.0, 1]), np.zeros(2), np.zeros(2, int), np.ones(2)) is None
    assert trend(np.full(9, np.nan), np.zeros(9), np.zeros(9, int), np.ones(9)) is None
    flat = check_rows(pd.DataFrame({"a": [1, 2] * 50, "y": [0, 1] * 50, "p": 0.5}), "y", "p")
    assert not len(find_reversals(flat).table)
    assert model_reversals(flat, np.full(100, 0.5), ["a"]).turns.tolist() == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["z"]}, "no column 'z'"),
        ({"loss": "brier"}, "no loss 'brier'"),
        ({"loss": np.zeros(3)}, "one finite number a row"),
        ({"alpha": 0}, "alpha is no share"),
        ({"max_columns": 0}, "nothing to search"),
    ],
)
def test_wrong_input_gets_one_clear_line(change, message):
    with pytest.raises(EvaluationError) as caught:
        find_slices(null_rows(0), **change)
    assert message in str(caught.value)


def test_a_loss_of_nothing_finds_nothing():
    rows = null_rows(0)
    assert not len(find_slices(rows, loss=np.zeros(800)).table)
    assert row_loss(rows, np.full(800, -2.0))[0] == "loss"
    assert not len(find_slices(rows, loss=np.full(800, -2.0)).table)
    few = check_rows(rows.frame.head(20), "y", "p")
    assert not len(find_slices(few).table)
    assert json.dumps(find_slices(few).left)
