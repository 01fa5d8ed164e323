"""Figures per slice against scikit-learn, on tasks and column names the notebook does not show; three methods agree."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mlnb.errors import EvaluationError
from mlnb.evaluation.metrics import metric_names
from mlnb.evaluation.rows import check_rows
from mlnb.evaluation.slices import evaluate_slices
from mlnb.evaluation.slicing import slice_values

RNG = np.random.default_rng(7)


def figures(table):
    return {(tuple(map(tuple, json.loads(row.key))), row.metric): row for row in table.itertuples()}


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
            assert found[key, metric].value == pytest.approx(value, abs=1e-12), (
                key,
                metric,
            )
        assert found[key, "auc"].examples == mask.sum()
    for key in labels:
        assert np.isnan(found[key, "auc"].value), "one class has no AUC"
    assert list(table.slice.drop_duplicates())[:3] == ["Overall", "7=1", "7=2"]
    assert (tmp_path / "tfma" / "eval_config.json").is_file()


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
            assert found[key, metric].value == pytest.approx(value, abs=1e-9), (
                key,
                metric,
            )
        row = found[key, "auc_macro"]
        assert row.low < row.value < row.high


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
            assert found[key, metric].value == pytest.approx(value, rel=1e-12), (key, metric)
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


@pytest.mark.tensorflow
def test_three_methods_give_one_table(tmp_path):
    """Names, slices, counts and flags are the same; figures agree as closely as TFMA's 10,000 thresholds and bins allow."""
    n = 900
    frame = pd.DataFrame({"y": RNG.choice(["no", "yes"], n), "a,b": RNG.choice(["ü=1", "2"], n), "age": RNG.normal(40, 9, n)})
    frame["p"] = np.clip(RNG.normal(0.4 + 0.2 * (frame.y == "yes"), 0.2), 0, 1).round(3)
    frame["w"] = RNG.integers(0, 3, n) / 2
    given = {
        "slices": ["a,b", {"age": {"young": [0, 40], "old": [40, None]}}, ["a,b", "age > 60 or p < 0.1"]],
        "classes": ["no", "yes"],
        "weights": "w",
        "thresholds": [0.25],
        "min_examples": 100,
    }
    tables = {
        method: evaluate_slices(frame, "y", "p", method=method, folder=tmp_path / method, **given).set_index(["key", "metric"])
        for method in ("vectorised", "histograms", "tfma")
    }
    ours = tables["vectorised"]
    assert set(ours.computed) == {"vectorised"} and ours.small.any() and not ours.small.all()
    assert ours.examples.max() == (frame.w > 0).sum(), "rows of weight 0 are in no slice"
    for method, most in (("histograms", 2e-2), ("tfma", 2e-3)):
        table = tables[method]
        assert set(table.computed) == {method if method == "tfma" else "tfma histograms"}
        assert sorted(table.index) == sorted(ours.index)
        table = table.loc[ours.index]
        same = ["slice", "by", "examples", "small", "intervals"]
        pd.testing.assert_frame_equal(table[same], ours[same], check_dtype=False)
        np.testing.assert_allclose(table[["low", "high"]], ours[["low", "high"]], equal_nan=True)
        area = ours.index.get_level_values("metric").str.startswith("auc") & (ours.examples > 20)
        np.testing.assert_allclose(table.value[area], ours.value[area], atol=most)
        loss = ours.index.get_level_values("metric") == "binary_crossentropy"  # of a bin's mean score in histograms
        np.testing.assert_allclose(table.value[loss], ours.value[loss], atol=1e-3 if method == "histograms" else 1e-6)
        rest = ~loss & ~ours.index.get_level_values("metric").str.startswith("auc")
        np.testing.assert_allclose(table.value[rest], ours.value[rest], rtol=1e-6, atol=1e-6)
    import tensorflow_model_analysis as tfma

    found = tfma.load_eval_result(str(tmp_path / "vectorised"))
    assert len(found.slicing_metrics) == ours.index.get_level_values("key").nunique()


def test_checked_rows_and_a_function_can_be_given():
    frame = pd.DataFrame({"y": [0, 1] * 30, "p": RNG.random(60), "g": ["a", "b", "c"] * 20})
    rows = check_rows(frame, "y", "p")
    table = evaluate_slices(rows, slices=[("early", lambda f: f.index < 20)], intervals="jackknife")
    assert table.slice.drop_duplicates().tolist() == ["Overall", "early=yes", "early=no"]
    whole = evaluate_slices(frame, "y", "p", intervals="jackknife")
    pd.testing.assert_frame_equal(table[table.by == "Overall"], whole)
    assert whole.set_index("metric").loc["auc", ["low", "high"]].notna().all()


def test_the_same_call_gives_the_same_intervals():
    frame = pd.DataFrame({"y": [0, 1] * 30, "p": RNG.random(60)})
    first, second, other = (evaluate_slices(frame, "y", "p", seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, second)
    assert not first.low.equals(other.low)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression", "ranking"])
def test_every_task_is_judged_by_slice_with_weights(task):
    n, names = 240, ["u", "v", "w"]
    frame = pd.DataFrame(RNG.dirichlet([1, 1, 1], n), columns=names).assign(g=np.repeat(["a", "b"], n // 2))
    frame = frame.assign(q=np.arange(n) // 6, weight=np.arange(n) // 6 % 4, y=RNG.integers(0, 2, n), k=RNG.choice(names, n))
    frame[["lu", "lv", "lw"]] = RNG.integers(0, 2, (n, 3))
    label = {"multiclass": "k", "multilabel": ["lu", "lv", "lw"]}.get(task, "y")
    many = task in ("multiclass", "multilabel")
    table = evaluate_slices(
        frame,
        label,
        names if many else "u",
        task,
        ["g"],
        classes=names if many else (),
        weights="weight",
        query="q" if task == "ranking" else None,
        min_examples=100,
    )
    assert table.metric.drop_duplicates().tolist() == metric_names(task, names if many else ())
    assert table[["value", "low", "high"]][table.metric != "example_count"].notna().all(axis=None)
    assert (table.low <= table.high)[table.metric != "example_count"].all()
    assert table.examples.drop_duplicates().tolist() == [180, 90] and table.small.drop_duplicates().tolist() == [False, True]
    row = table[(table.slice == "g=b") & (table.metric == "example_count")].iloc[0]
    assert row.value == frame.weight[frame.g == "b"].sum()
