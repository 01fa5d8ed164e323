"""Gaps between groups: against fairlearn and by hand, at the edges, and after repair."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import EvaluationError
from mlnb.evaluation.fairness import RATES, measure_fairness, one_class
from mlnb.evaluation.mitigation import compare_decisions, fit_group_thresholds, fit_mixture, group_thresholds
from mlnb.evaluation.rows import check_rows


def people(seed=0, n=2000, **more):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"sex": rng.choice(["f", "m"], n), "place": rng.choice(["Ä", "<b>", None], n), "p": rng.random(n)})
    frame["p"] **= np.where(frame.sex == "f", 0.7, 1.4)
    frame["y"] = (rng.random(n) < frame.p ** np.where(frame.sex == "f", 0.5, 1.5)).astype(int)
    frame["w"] = rng.integers(1, 4, n)
    return check_rows(frame, "y", "p", **more)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_rates_agree_with_fairlearn(seed, threshold):
    from fairlearn import metrics

    rows = people(seed, 300, weights="w")
    table = measure_fairness(rows, "sex", [threshold, 0.6], count=20).table.set_index(["slice", "metric"]).value
    for theirs, name in (
        (metrics.selection_rate, "selection_rate"),
        (metrics.false_positive_rate, "false_positive_rate"),
        (metrics.false_negative_rate, "false_negative_rate"),
        (metrics.true_positive_rate, "true_positive_rate"),
    ):
        decided = (rows.scores > threshold).astype(int)
        frame = metrics.MetricFrame(
            metrics=theirs,
            y_true=rows.labels,
            y_pred=decided,
            sensitive_features=rows.frame.sex,
            sample_params={"sample_weight": rows.weights},
        )
        for group, value in frame.by_group.items():
            assert np.isclose(table[f"sex={group}", f"{name}@{threshold:g}"], value)


def test_intervals_of_gaps_hold_what_they_promise():
    from math import isfinite

    inside = total = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"g": np.repeat(["a", "b"], 300), "p": rng.random(600)})
        frame["y"] = (rng.random(600) < 0.5) * 1
        table = measure_fairness(check_rows(frame, "y", "p"), "g", reference="g=a").table
        row = table[(table.slice == "g=b") & (table.metric == "false_positive_rate")].iloc[0]
        assert isfinite(row.gap_low)
        inside, total = inside + (row.gap_low <= 0 <= row.gap_high), total + 1
    assert inside >= 0.87 * total, inside


def test_groups_of_one_row_one_label_or_one_value_do_not_break_anything():
    frame = pd.DataFrame({"g": ["a"] * 60 + ["b"] * 60 + ["c"], "p": [0.2, 0.8] * 60 + [0.7], "y": [0, 1] * 30 + [0] * 60 + [1]})
    fair = measure_fairness(check_rows(frame, "y", "p"), "g", [0.3, 0.5])
    table = fair.table.set_index(["slice", "metric"])
    assert np.isnan(table.loc[("g=b", "false_negative_rate@0.5"), ["value", "low", "gap"]].astype(float)).all()
    assert np.isinf(table.loc[("g=b", "calibration"), "value"]) or np.isnan(table.loc[("g=b", "calibration"), "value"])
    assert table.loc[("g=c", "selection_rate@0.3"), "small"] and not table.loc[("g=b", "selection_rate@0.3"), "small"]
    between = fair.summary.set_index("metric").between
    assert "g=c" not in " ".join(between) and between["equal_opportunity_difference@0.5"] == "not defined"
    assert "nan" not in fair._repr_html_()
    alone = measure_fairness(check_rows(frame.assign(g="x"), "y", "p"), "g")
    assert np.isnan(alone.summary.value).all() and repr(alone) and alone._repr_html_()


def test_crosses_gaps_in_columns_and_odd_names_are_groups():
    fair = measure_fairness(people(), ["sex", "place"], reference="Overall")
    assert set(fair.table.by) == {"Overall", "sex x place"} and "sex=f, place=(missing)" in set(fair.table.slice)
    assert "<b>" not in fair._repr_html_().replace('<b style', "") and "&lt;b&gt;" in fair._repr_html_()
    assert fair.table[fair.table.slice == "Overall"].gap.dropna().eq(0).all()
    assert len(fair.table) == 7 * (len(RATES) + 3)


def test_many_classes_are_compared_one_at_a_time():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 3, 400), rng.dirichlet([1, 1, 1], 400)
    frame = pd.DataFrame({"y": np.array(["a", "b", "c"])[y], "g": rng.choice(["x", "z"], 400)})
    rows = check_rows(frame, "y", scores, "multiclass", classes=["a", "b", "c"])
    with pytest.raises(EvaluationError, match="one class"):
        measure_fairness(rows, "g")
    found = measure_fairness(one_class(rows, "b"), "g", [0.4]).table.set_index(["slice", "metric"]).value
    mask = (frame.g == "x").to_numpy()
    assert np.isclose(found["g=x", "selection_rate"], (scores[mask, 1] > 0.4).mean())


@pytest.mark.parametrize("constraint", ["equalized_odds", "demographic_parity", "true_positive_rate_parity"])
def test_thresholds_by_group_close_their_gap_on_other_rows(constraint):
    valid, test = people(1, 4000), people(2, 4000)
    rule = fit_group_thresholds(valid, "sex", constraint)
    prices = compare_decisions(test, {"plain": test.scores > 0.5, "repaired": rule.chances(test)}, "sex").table.set_index("decided")
    metric = "demographic_parity" if constraint == "demographic_parity" else "equalized_odds"
    if constraint != "true_positive_rate_parity":
        assert prices.loc["repaired", metric] < 0.5 * prices.loc["plain", metric]
    assert prices.loc["repaired", "price_low"] <= prices.loc["repaired", "price"] <= prices.loc["repaired", "price_high"]
    assert group_thresholds(json.loads(json.dumps(rule.as_dict(), allow_nan=False))).rules == rule.rules


def test_thresholds_by_group_are_fairlearns_own():
    from fairlearn.postprocessing import ThresholdOptimizer

    from mlnb.evaluation.mitigation import _held_scores

    valid = people(3, 1500)
    theirs = ThresholdOptimizer(estimator=_held_scores(), constraints="equalized_odds", prefit=True, predict_method="predict")
    theirs.fit(valid.scores[:, None], valid.labels.astype(int), sensitive_features=valid.frame.sex)
    expected = theirs._pmf_predict(valid.scores[:, None], sensitive_features=valid.frame.sex)[:, 1]
    assert np.allclose(fit_group_thresholds(valid, "sex").chances(valid), expected)


def test_a_fairer_fit_needs_no_group_later():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 3000)
    x = np.c_[rng.normal(size=3000) + group, rng.normal(size=3000)]
    y = (x.sum(1) + rng.normal(size=3000) > 0.5) * 1
    mixture = fit_mixture(LogisticRegression(), x[:1500], y[:1500], group[:1500], "demographic_parity")
    plain = LogisticRegression().fit(x[:1500], y[:1500]).predict(x[1500:])
    rows = check_rows(pd.DataFrame({"g": group[1500:], "y": y[1500:]}), "y", np.full(1500, 0.5))
    prices = compare_decisions(rows, {"plain": plain, "fair": mixture.chances(x[1500:])}, "g").table
    assert prices.demographic_parity[1] < 0.5 * prices.demographic_parity[0] and prices.price[1] > 0
    assert np.isclose(sum(mixture.shares), 1) and prices.price[0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: measure_fairness(r, "sxe"), "no column 'sxe'"),
        (lambda r: measure_fairness(r, []), "no column to compare"),
        (lambda r: measure_fairness(r, "sex", reference="sex=d"), "no group 'sex=d'"),
        (lambda r: measure_fairness(r, "sex", decisions=np.ones(3)), "one chance of being chosen"),
        (lambda r: fit_group_thresholds(r, "sex", objective="luck"), "no objective 'luck'"),
        (lambda r: fit_group_thresholds(r, "y"), "one label only"),
        (lambda r: fit_mixture(None, r.scores, r.labels, r.frame.sex, "luck"), "no constraint 'luck' in training"),
        (lambda r: one_class(r, "2"), "no class '2'"),
    ],
)
def test_wrong_input_gets_one_clear_line(call, message):
    with pytest.raises(EvaluationError) as caught:
        call(people())
    assert message in str(caught.value)
