"""Calibration against scikit-learn, at the edges, and only on validation rows; abstention by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import EvaluationError
from mlnb.evaluation.abstention import abstention_curve, confidence_needed
from mlnb.evaluation.calibration import (
    METHODS,
    calibration_error,
    calibrator,
    compare_calibrations,
    fit_calibration,
    reliability,
)
from mlnb.evaluation.rows import check_rows


def binary(seed=0, n=1000, power=2.0, **more):
    rng = np.random.default_rng(seed)
    true = rng.beta(1, 2, n)
    frame = pd.DataFrame({"p": 1 / (1 + ((1 - true) / true) ** power), "y": (rng.random(n) < true) * 1, "w": rng.integers(1, 4, n), "ä": rng.random(n)})
    frame.loc[:1, "y"] = [0, 1]
    return check_rows(frame, "y", "p", **more)


def multiclass(seed=0, n=1500, power=2.0):
    rng = np.random.default_rng(seed)
    true = rng.dirichlet([1, 1, 1], n)
    y = (true.cumsum(1) < rng.random(n)[:, None]).sum(1).clip(0, 2)
    scores = true**power / (true**power).sum(1, keepdims=True)
    return check_rows(pd.DataFrame({"y": y, "x": rng.random(n)}), "y", scores, "multiclass", classes=[0, 1, 2])


@pytest.mark.parametrize("method", ["isotonic", "sigmoid", "temperature"])
@pytest.mark.parametrize("make", [binary, multiclass])
def test_repairs_agree_with_scikit_learn(method, make):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    rows = make()
    many = rows.scores.ndim == 2

    class Held(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(3 if many else 2)

        def fit(self, features, labels):
            return self

        def predict(self, features):
            return self.decision_function(features).argmax(1) if many else (features[:, 0] > 0) * 1

        def decision_function(self, features):
            return features if many else features[:, 0]

        def __sklearn_is_fitted__(self):
            return True

    clipped = np.clip(rows.scores, 1e-7, 1 - 1e-7)
    inputs = clipped if many and method == "isotonic" else np.log(clipped) if method == "temperature" and many else np.log(clipped / (1 - clipped))
    inputs = inputs if many else inputs[:, None]
    theirs = CalibratedClassifierCV(FrozenEstimator(Held()), method=method).fit(inputs, rows.labels.astype(int))
    expected = theirs.predict_proba(inputs)
    ours = fit_calibration(rows, "platt" if method == "sigmoid" else method).apply(rows.scores)
    assert np.abs(ours - (expected if many else expected[:, 1])).max() < (0.02 if method == "isotonic" else 2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_repair_helps_on_rows_it_has_not_seen_and_survives_json(method):
    for make in (binary, multiclass):
        repair = fit_calibration(make(1, 4000), method)
        back = calibrator(json.loads(json.dumps(repair.as_dict(), allow_nan=False)))
        table = compare_calibrations(make(2, 4000), {method: back}).table
        assert table.debiased[1] < 0.5 * table.debiased[0] and table.log_loss[1] < table.log_loss[0]


@pytest.mark.parametrize("part", [slice(None), slice(0, 400), slice(300, None)])
def test_rows_that_it_was_fitted_on_are_refused_also_among_others(part):
    valid, other = binary(1), binary(2)
    repair = fit_calibration(valid)
    mixed = pd.concat([valid.frame.iloc[part], other.frame.iloc[:50]])
    if len(mixed) < 500:
        mixed = pd.concat([valid.frame, mixed])
    with pytest.raises(EvaluationError, match="not judged on the rows"):
        compare_calibrations(check_rows(mixed, "y", "p"), {"t": repair})
    assert len(compare_calibrations(other, {"t": repair}).table) == 2


def test_weights_are_repeated_rows():
    rows = binary(weights="w")
    times = np.repeat(np.arange(len(rows.labels)), rows.weights.astype(int))
    again = check_rows(rows.frame.iloc[times].drop(columns="w"), "y", "p")
    for method in METHODS:
        a, b = fit_calibration(rows, method), fit_calibration(again, method)
        assert np.abs(a.apply(rows.scores) - b.apply(rows.scores)).max() < 2e-3, method
    assert np.isclose(calibration_error(rows, 1).ece, calibration_error(again, 1).ece)
    assert np.isclose(abstention_curve(rows).area, abstention_curve(again).area)


def test_no_part_of_the_error_is_chance_when_it_is_debiased():
    small = [calibration_error(binary(seed, 300, power=1.0)) for seed in range(40)]
    assert np.mean([one.ece for one in small]) > 0.06 > 2 * np.mean([one.debiased for one in small])
    assert sum(one.p < 0.05 for one in small) <= 6
    assert all(calibration_error(binary(seed, 2000)).p < 1e-6 for seed in range(3))


def test_every_task_with_something_to_say_has_a_reliability_curve():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (200, 3))
    labels = check_rows(pd.DataFrame(y, columns=list("abc")), list("abc"), np.clip(y + rng.normal(0, 0.3, y.shape), 0, 1), "multilabel")
    numbers = check_rows(pd.DataFrame({"y": rng.normal(5e6, 1e6, 200), "p": 5e6}), "y", "p", "regression")
    assert reliability(labels).examples.sum() == 600 and len(reliability(numbers)) == 1
    assert np.isnan(calibration_error(numbers).p) and compare_calibrations(numbers)._repr_html_()
    assert fit_calibration(labels, "platt").apply(labels.scores).shape == (200, 3)
    for equal in ("mass", "width"):
        assert compare_calibrations(multiclass(), {}, equal=equal)._repr_html_()
    ranking = check_rows(pd.DataFrame({"y": [0, 1], "p": [0.0, 1], "q": [1, 1]}), "y", "p", "ranking", query="q")
    with pytest.raises(EvaluationError, match="ranking"):
        reliability(ranking)


@pytest.mark.parametrize("method", METHODS)
def test_perfect_and_constant_scores_can_be_repaired(method):
    y = np.array([0, 1] * 20)
    for scores in (y.astype(float), np.full(40, 0.5), 1.0 - y, np.full(40, 1.0)):
        repaired = fit_calibration(check_rows(pd.DataFrame({"y": y}), "y", scores), method).apply(scores)
        assert np.isfinite(repaired).all() and repaired.min() >= 0 and repaired.max() <= 1


def test_a_class_that_validation_rows_lack_does_not_break_the_repair():
    rows = multiclass()
    keep = rows.labels < 2
    few = check_rows(rows.frame[keep], "y", rows.scores[keep], "multiclass", classes=[0, 1, 2])
    for method in METHODS:
        repaired = fit_calibration(few, method).apply(rows.scores)
        assert np.allclose(repaired.sum(1), 1) and np.isfinite(repaired).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=3, max_size=40))
def test_the_risk_coverage_curve_by_hand(given_rows):
    sure, right = (np.array(part, float) for part in zip(*given_rows, strict=True))
    frame = pd.DataFrame({"y": [0, 1, *([1] * (len(sure) - 2))]})
    rows = check_rows(frame, "y", np.full(len(sure), 0.9))
    found = abstention_curve(rows, sure, 1 - right)
    for line in found.curve.itertuples():
        answered = sure >= line.confidence
        assert np.isclose(line.share, answered.mean()) and np.isclose(line.risk, 1 - right[answered].mean())
        assert line.low - 1e-9 <= line.risk <= line.high + 1e-9
    assert found.best - 1e-9 <= found.area and np.isclose(found.curve.risk.iloc[-1], found.worst)
    assert found._repr_html_() and repr(found)


def test_a_hundred_rows_without_an_error_are_no_proof_of_none():
    n = 100
    rows = check_rows(pd.DataFrame({"y": [0, 1] * (n // 2)}), "y", np.array([0.1, 0.9] * (n // 2)))
    with pytest.raises(EvaluationError, match="nowhere sure"):
        confidence_needed(rows, 0.01)
    assert confidence_needed(rows, 0.05) == (0.9, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: fit_calibration(r, "beta"), "no calibration 'beta'"),
        (lambda r: reliability(r, 0), "no bins"),
        (lambda r: reliability(r, 5, "size"), "equal 'size'"),
        (lambda r: fit_calibration(r).apply(np.ones((2, 2))), "no scores of this model"),
        (lambda r: abstention_curve(r, np.full(len(r.labels), np.nan)), "one finite number a row"),
        (lambda r: confidence_needed(r, -1), "nowhere sure"),
    ],
)
def test_wrong_input_gets_one_clear_line(call, message):
    with pytest.raises(EvaluationError) as caught:
        call(binary())
    assert message in str(caught.value)
