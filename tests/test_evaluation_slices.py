"""TFMA's figures per slice against scikit-learn, on the tasks and the column names that the notebook does not show."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mlnb.errors import EvaluationError
from mlnb.evaluation.slices import evaluate_slices
from mlnb.evaluation.slicing import slice_values

RNG = np.random.default_rng(7)


def figures(table):
    return {(tuple(map(tuple, json.loads(row.key))), row.metric): row for row in table.itertuples()}


@pytest.mark.tensorflow
def test_binary_with_odd_columns_agrees_with_scikit_learn_in_every_slice(tmp_path):
    n = 800
    frame = pd.DataFrame(
        {
            "label": RNG.choice(["yes", "no"], n),
            7: RNG.choice([1, 2], n),
            "prediction": RNG.choice(["ä", "a,b=c"], n),
            "": RNG.choice([None, "x"], n),
            "wide": RNG.normal(0, 1, n),
            "nothing": [np.nan] * n,
            "same": 1,
        }
    )
    frame["score"] = np.clip(RNG.normal(0.4 + 0.2 * (frame.label == "yes"), 0.2), 0, 1)
    frame.loc[:2, "score"] = [0.0, 1.0, 0.5]
    table = evaluate_slices(
        frame,
        "label",
        "score",
        slices=["7", ["prediction", ""], ["wide"], ["nothing"], ["same"], ["label"]],
        classes=["no", "yes"],
        intervals="none",
        folder=tmp_path / "tfma",
    )
    found = figures(table)
    masks = {(): frame.index >= 0, (("nothing", "(missing)"),): frame.index >= 0, (("same", "1"),): frame.index >= 0}
    for value in (1, 2):
        masks[(("7", str(value)),)] = frame[7] == value
    for a in ("ä", "a,b=c"):
        for b in ("x", "(missing)"):
            masks[(("prediction", a), ("(no name)", b))] = (frame.prediction == a) & (
                frame[""].fillna("(missing)") == b
            )
    for value in slice_values(frame.wide).cat.categories:
        masks[(("wide", value),)] = slice_values(frame.wide) == value
    labels = {(("label", value),): frame.label == value for value in ("no", "yes")}
    assert {key for key, _ in found} == set(masks) | set(labels)
    for key, mask in masks.items():
        y, s = (frame.label[mask] == "yes").astype(int), frame.score[mask]
        expected = {
            "auc": sk.roc_auc_score(y, s),
            "binary_accuracy": sk.accuracy_score(y, s > 0.5),
            "precision": sk.precision_score(y, s > 0.5),
            "specificity": sk.recall_score(1 - y, s <= 0.5),
            "binary_crossentropy": sk.log_loss(y, np.clip(s, 1e-7, 1 - 1e-7)),
        }
        for metric, value in expected.items():
            assert found[key, metric].value == pytest.approx(value, abs=2e-3 if metric == "auc" else 1e-5), (
                key,
                metric,
            )
        assert found[key, "auc"].examples == mask.sum()
    for key in labels:
        assert np.isnan(found[key, "auc"].value), "one class has no AUC"
    assert list(table.slice.drop_duplicates())[:3] == ["Overall", "7=1", "7=2"]
    assert (tmp_path / "tfma" / "eval_config.json").is_file()


@pytest.mark.tensorflow
def test_multiclass_agrees_with_scikit_learn():
    n, names = 600, ["red", "green", "blue"]
    y = RNG.integers(0, 3, n)
    scores = RNG.dirichlet([1, 1, 1], n)
    scores[np.arange(n), y] += 0.4
    scores /= scores.sum(1, keepdims=True)
    frame = pd.DataFrame(scores, columns=names).assign(colour=np.array(names)[y], group=RNG.choice(["a", "b"], n))
    found = figures(evaluate_slices(frame, "colour", names, "multiclass", [["group"]], classes=names))
    for key, mask in {(): np.full(n, True), (("group", "a"),): frame.group == "a"}.items():
        top = scores[mask].argmax(1)
        expected = {
            "sparse_categorical_accuracy": sk.accuracy_score(y[mask], top),
            "sparse_categorical_crossentropy": sk.log_loss(y[mask], scores[mask]),
            "auc_macro": sk.roc_auc_score(y[mask], scores[mask], multi_class="ovr"),
            "auc[blue]": sk.roc_auc_score(y[mask] == 2, scores[mask][:, 2]),
            "precision[red]": sk.precision_score(y[mask] == 0, top == 0),
            "recall[green]": sk.recall_score(y[mask] == 1, top == 1),
        }
        for metric, value in expected.items():
            assert found[key, metric].value == pytest.approx(value, abs=2e-3 if "auc" in metric else 1e-4), (
                key,
                metric,
            )
        row = found[key, "auc_macro"]
        assert row.low < row.value < row.high


@pytest.mark.tensorflow
def test_regression_agrees_with_scikit_learn():
    n = 300
    frame = pd.DataFrame({"y": RNG.normal(1e6, 3e5, n), "group": RNG.choice(["a", "b"], n)})
    frame["guess"] = frame.y + RNG.normal(0, 1e5, n)
    found = figures(evaluate_slices(frame, "y", "guess", "regression", [["group"]]))
    for key, mask in {(): frame.index >= 0, (("group", "b"),): frame.group == "b"}.items():
        y, s = frame.y[mask], frame.guess[mask]
        expected = {
            "mean_absolute_error": sk.mean_absolute_error(y, s),
            "root_mean_squared_error": sk.root_mean_squared_error(y, s),
            "squared_pearson_correlation": np.corrcoef(y, s)[0, 1] ** 2,
            "mean_label": y.mean(),
        }
        for metric, value in expected.items():
            assert found[key, metric].value == pytest.approx(value, rel=1e-4), (key, metric)
    row = found[(), "mean_absolute_error"]
    assert row.low < row.value < row.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "z"}, "no column 'z'"),
        ({"slices": [["grup"]]}, "group"),
        ({"scores": ["score", "score"]}, "needs one score column"),
        ({"classes": ["a", "b"]}, "none of the known"),
        ({"intervals": "t"}, "no intervals 't'"),
        ({"label": "holes"}, "missing in 3"),
        ({"intervals": "poisson_bootstrap"}, "method='tfma' also has"),
        ({"method": "fast"}, "no method 'fast'"),
        ({"method": "histograms", "task": "ranking"}, "no histogram"),
        ({"thresholds": [1.5]}, "makes no sense"),
        ({"thresholds": [0.2], "task": "regression"}, "has no thresholds"),
        ({"task": "multiclass", "scores": ["score"], "classes": ["a"]}, "one score column for each class"),
        ({"scores": "text"}, "no finite score"),
    ],
)
def test_wrong_input_gets_one_clear_line(change, message):
    frame = pd.DataFrame(
        {"y": [0, 1] * 10, "score": 0.5, "group": "g", "text": "high", "holes": [np.nan] * 3 + [1.0] * 17}
    )
    with pytest.raises(EvaluationError) as caught:
        evaluate_slices(frame, **({"label": "y", "scores": "score", "slices": [["group"]]} | change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([np.inf, -np.inf, *range(100)], dtype=float),
        pd.Series(pd.Categorical(["b", "a", None])),
        pd.Series([1, "x", 2.5, None]),
        pd.Series(pd.to_timedelta(range(50), "h")),
        pd.Series([None, None]),
        pd.Series([1, 2, None], dtype="Int64"),
        pd.Series(pd.date_range("2020", periods=60, tz="Europe/Rome")),
        pd.Series([True, False]),
        pd.Series([], dtype=float),
        pd.Series([pd.Timestamp("2020").date()] * 2),
        pd.Series([1e300, 1e-300] * 40 + list(range(80)), dtype=float),
    ],
)
def test_any_column_can_be_cut_into_slices(values):
    cut = slice_values(values)
    assert len(cut) == len(values) and not cut.isna().any() and cut.cat.ordered
    assert (cut == "(missing)").sum() == values.isna().sum()
