"""Explanations at their hard edges: exact where the truth is known, honest where it is not, and the stage on real tables."""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import ROOT

from mlnb.data.labels import label_table
from mlnb.data.leaks import find_leaks, ignore_leaks
from mlnb.data.schemas import describe_table, measure
from mlnb.data.splits import split_table
from mlnb.data.tables import read_table
from mlnb.errors import EvaluationError, MissingExtraError
from mlnb.evaluation import shap_values as shapley_module
from mlnb.evaluation.ablation import coverage, drop_columns
from mlnb.evaluation.attributions import beeswarm, row_picture
from mlnb.evaluation.concepts import concept_scores
from mlnb.evaluation.dependence import dependence, dependence_map, dependence_picture, interactions
from mlnb.evaluation.drawings import page
from mlnb.evaluation.examples import explain_examples, pick_examples
from mlnb.evaluation.glass_box import fit_glass_box, glass_box_picture, glass_box_predictor
from mlnb.evaluation.gradients import image_gradients, integrated_gradients, path_gradients
from mlnb.evaluation.importance import importance_picture, permutation_importance, together
from mlnb.evaluation.predictors import ask_mixed, predictor_of, typed_rows
from mlnb.evaluation.rows import check_rows
from mlnb.evaluation.shap_values import shap_tree_values, shap_values, shapley_values
from mlnb.evaluation.surrogates import local_surrogates
from mlnb.testing import run_stage
from mlnb.training.models import build_model, fit_model

TAXI = ROOT.parent / "shared" / "data" / "chicago_taxi.csv"
STAGE = ROOT / "nbs" / "stages" / "tabular" / "66_explain.ipynb"


def strange(n=400, seed=0):
    "Gaps, text, unicode, a constant, an empty column, a copy, a date, flags; the index is no range."
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"größe/m²": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
                          "<b>": rng.choice(["Köln", "a&b", None], n), "flag": rng.choice([True, False], n),
                          "on": pd.date_range("2024-01-01", periods=n, freq="7h", tz="Europe/Berlin"),
                          "fixed": 1, "leer": None, "noise": rng.normal(size=n)}, index=np.arange(n) * 3 + 5)
    frame["copy"] = frame["größe/m²"] * 2
    frame["y"] = ((frame["größe/m²"].fillna(1) > 0) ^ (frame["<b>"] == "Köln")).astype(int)
    return frame


def judge(frame):
    "A model of two columns; gaps count as one."
    logit = 3 * frame["größe/m²"].astype(float).fillna(1) + 2 * (frame["<b>"] == "Köln") - 1
    return (1 / (1 + np.exp(-logit))).to_numpy(float)


COLUMNS = ["größe/m²", "<b>", "flag", "on", "fixed", "leer", "noise", "copy"]


# --- importance


def test_what_the_model_ignores_is_exactly_nothing_and_gaps_stay():
    seen = []

    def model(frame):
        seen.append((frame["größe/m²"].isna().mean(), frame.dtypes.astype(str).to_dict()))
        return judge(frame)

    table = strange()
    found = permutation_importance(model, table, "y", columns=COLUMNS, groups={}, repeats=3).table.set_index("column")
    quiet = [name for name in COLUMNS if name not in ("größe/m²", "<b>")]
    assert (found.loc[quiet, ["importance", "low", "high"]] == 0).all(axis=None) and not found.loc[quiet, "uses"].any()
    assert found.loc["größe/m²", "uses"]
    assert {share for share, _ in seen} == {seen[0][0]} and all(types == seen[0][1] for _, types in seen)
    assert len(seen) == 2, "all shuffles in one call"


def test_perfectly_correlated_columns_are_found_and_shuffled_together():
    table = strange()

    def model(frame):
        return 1 / (1 + np.exp(-2 * (frame["größe/m²"].fillna(0) + frame["copy"].fillna(0) / 2).to_numpy(float)))

    found = permutation_importance(model, table, "y", columns=["größe/m²", "copy", "noise"]).table.set_index("column")
    assert together(table, COLUMNS) == {"größe/m² + copy": ["größe/m²", "copy"]}
    both = found.loc["größe/m² + copy", "importance"]
    assert both > found.loc[["größe/m²", "copy"], "importance"].max() and found.loc["copy", "together"] == "größe/m²"
    assert "shuffled alone" in importance_picture(
        permutation_importance(model, table, "y", columns=["größe/m²", "copy"])).html


def test_importance_of_an_interval_holds_the_truth():
    "The loss of mean squared error of y = x is twice the variance of x: the intervals hold it about as often as said."
    held = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        table = pd.DataFrame({"x": rng.normal(size=300)})
        table["y"] = table["x"] + rng.normal(0, 0.1, 300)
        found = permutation_importance(lambda f: f["x"], table, "y", "regression", metric="mean_squared_error",
                                       seed=seed).table.iloc[0]
        held += found["low"] <= 2 <= found["high"]
    assert held >= 34


def test_importance_with_many_classes_one_row_and_wrong_input():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.integers(0, 3, 200), "z": rng.normal(size=200)})
    table["y"] = table["x"]
    found = permutation_importance(lambda f: np.eye(3)[f["x"]] * 0.9 + 0.1 / 3, table, "y", "multiclass",
                                   classes=[0, 1, 2]).table.set_index("column")
    assert found.loc["x", "importance"] > 0.3 and found.loc["z", "importance"] == 0
    alone = permutation_importance(lambda f: f["z"], table.head(1), "y", "regression", columns=["z"]).table
    assert alone["importance"][0] == 0
    with pytest.raises(EvaluationError, match="no metric"):
        permutation_importance(lambda f: f["z"], table, "y", "regression", metric="auc")
    with pytest.raises(EvaluationError, match="learnt from"):
        permutation_importance(lambda f: f["z"], table, "y", "regression", train=table)
    with pytest.raises(EvaluationError, match="no finite numbers"):
        permutation_importance(lambda f: f["z"] * np.nan, table, "y", "regression")


def test_a_large_table_is_asked_in_parts():
    sizes = []

    def model(frame):
        sizes.append(len(frame))
        return frame["a"].to_numpy()

    pool = pd.DataFrame({"a": np.arange(10.0)})
    choice = np.arange(25)[:, None] % 10
    assert ask_mixed(model, pool, ["a"], choice, choice[:, 0], most=10)[:, 0].tolist() == list(choice[:, 0])
    assert sizes == [10, 10, 5]


# --- dependence


def test_dependence_gives_each_kind_of_column_its_own_axis():
    table = strange()
    kinds = {name: dependence(judge, table, name).scale for name in COLUMNS if name != "leer"}
    assert kinds == {"größe/m²": True, "<b>": False, "flag": False, "on": True, "fixed": False, "noise": True, "copy": True}
    text = dependence(judge, table, "<b>")
    assert set(text.values) == {"Köln", "a&b", None} and text.values[-1] is None
    assert np.isclose(text.share.sum(), 1) and dependence(judge, table, "noise").range == 0
    with pytest.raises(EvaluationError, match="no value"):
        dependence(judge, table, "leer")
    shown = dependence_picture(*[dependence(judge, table, name) for name in kinds]).html
    assert "<b></b>" not in shown and "&lt;b&gt;" in shown and "nan" not in shown.lower().replace("nano", "")


def test_interaction_is_found_where_it_is_and_nowhere_else():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(300, 4)), columns=list("abcd"))

    def model(frame):
        return (frame["a"] * frame["b"] + frame["c"] ** 2).to_numpy()

    pairs = interactions(model, table).set_index(["one", "other"])
    assert pairs["h"].idxmax() == ("a", "b") and pairs.loc[("a", "b"), "h"] > 0.8
    assert pairs["h"].drop(("a", "b")).max() < 1e-6
    assert dependence(model, table, "a").crossing > 0.9 > 0.01 > dependence(model, table, "c").crossing
    values, _ = dependence_map(model, table, "a", "b", grid=5)
    assert values.shape == (5, 5) and values.to_numpy()[0, 0] > 0 > values.to_numpy()[0, -1]


# --- Shapley values


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_shapley_values_keep_their_promises(seed, count):
    "Sums, nothing for the ignored, equal for equals, whatever the model: here random tables of values."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.integers(0, 2, (12, count + 2)), columns=[f"c{i}" for i in range(count + 2)])
    table["c0"] = table["c1"]
    worth = rng.normal(size=2 ** (count + 1))

    def model(frame):
        same = (frame["c0"] + frame["c1"]).to_numpy()
        rest = frame[[f"c{i}" for i in range(2, count + 1)]].to_numpy()
        return worth[(rest @ (2 ** np.arange(2, count + 1)) + same).astype(int) % len(worth)]

    found = shapley_values(model, table.head(2), table.tail(8))
    assert np.allclose(found.error, 0, atol=1e-9) and np.allclose(found.values[f"c{count + 1}"], 0)
    assert np.allclose(found.values["c0"], found.values["c1"])


def test_samples_agree_with_the_enumeration_within_their_interval():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 8)), columns=list("abcdefgh"))

    def model(frame):
        return (frame["a"] * frame["b"] + np.maximum(frame["c"], frame["d"]) - frame["e"]).to_numpy()

    exact = shapley_values(model, table.head(5), table)
    many = shapley_values(model, table.assign(i=0).head(5), table.assign(i=0), draws=10)
    assert exact.method.startswith("exact") and many.method.startswith("sampled")
    off = (many.values[list("abcdefgh")] - exact.values).abs()
    assert (off <= 1.5 * many.margin[list("abcdefgh")] + 1e-9).mean().mean() > 0.95 and np.allclose(many.error, 0)


def test_shapley_values_of_strange_rows_of_one_row_and_of_many_outputs():
    table = strange()
    found = shapley_values(judge, table.head(6), table, columns=COLUMNS, size=20)
    assert np.allclose(found.error, 0) and (found.values[["flag", "on", "fixed", "leer", "noise", "copy"]] == 0).all(axis=None)
    never = table.head(1).assign(**{"<b>": "never seen", "größe/m²": np.inf * 0})
    assert np.allclose(shapley_values(judge, never, table, columns=COLUMNS, size=10).error, 0)

    def both(frame):
        return np.stack([judge(frame), 1 - judge(frame)], axis=1)

    one, other = (shapley_values(both, table.head(2), table, columns=["größe/m²", "<b>"], output=k) for k in (0, 1))
    assert np.allclose(one.values, -other.values)


@pytest.mark.slow
def test_the_package_shap_gives_the_same():
    pytest.importorskip("shap")
    from sklearn.ensemble import RandomForestClassifier

    table = strange()
    rows, columns = table.head(2), ["größe/m²", "<b>", "flag", "noise"]
    ours = shapley_values(judge, rows, table, columns=columns, size=15)
    theirs = shap_values(judge, rows, table, columns=columns, size=15)
    assert theirs.method == "SHAP, exact" and np.allclose(theirs.values, ours.values, atol=1e-6)
    walked = shap_values(judge, rows, table, columns=columns, size=15, explainer="permutation")
    assert np.allclose(walked.error, 0, atol=1e-6) and np.allclose(walked.values, ours.values, atol=0.1)

    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 4)), columns=list("abcd"))
    forest = RandomForestClassifier(20, max_depth=3, random_state=0).fit(numbers, numbers["a"] * numbers["b"] > 0)
    trees = shap_tree_values(forest, numbers.head(4), numbers, size=50)
    same = shapley_values(lambda f: forest.predict_proba(f)[:, 1], numbers.head(4), numbers, size=50)
    assert np.allclose(trees.values, same.values, atol=1e-6) and np.allclose(trees.error, 0, atol=1e-6)
    with pytest.raises(EvaluationError, match="cannot look inside"):
        shap_tree_values(object(), numbers, numbers)


def test_without_the_package_there_is_one_line_to_type(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shap", None)
    with pytest.raises(MissingExtraError, match="shap") as told:
        shap_values(judge, strange().head(1), strange())
    assert "mlnb[explain]" in str(told.value) and shapley_module.EXACT_COLUMNS == 8
    monkeypatch.setitem(__import__("sys").modules, "interpret.glassbox", None)
    with pytest.raises(MissingExtraError, match="interpret-core"):
        fit_glass_box(strange(), "y")


# --- surrogates


def test_a_surrogate_says_how_well_it_fits_and_is_the_same_again():
    table = strange(800)
    found = local_surrogates(judge, table.head(6), table, columns=COLUMNS)
    again = local_surrogates(judge, table.head(6), table, columns=COLUMNS)
    assert found.values.equals(again.values) and found.fidelity.max() > 0.75 and found.fidelity.min() > 0.3
    assert found.values[["fixed", "leer"]].abs().max().max() < 1e-9
    assert found.values["größe/m²"].abs().mean() > 5 * found.values["noise"].abs().mean()

    def parity(frame):
        return ((frame["größe/m²"].fillna(0) > 0) ^ (frame["noise"] > 0) ^ frame["flag"].astype(bool)).to_numpy(float)

    lost = local_surrogates(parity, table.head(4), table, columns=COLUMNS)
    assert not lost.trusted.any() and "do not read" in row_picture(lost, 0).html
    assert "No row is described" in beeswarm(lost).html


# --- gradients


@pytest.fixture(scope="module")
def trained():
    "A model of this package on the strange table; typed rows, schema."
    table, facts = label_table(strange(900).reset_index(drop=True), "y")
    schema = measure(table, describe_table(table, facts))
    model, _ = fit_model(table, table.head(200), schema, epochs=4, batch_size=64, learning_rate=5e-3, report=False)
    return model, typed_rows(table, schema), schema


@pytest.mark.tensorflow
def test_gradients_are_complete_for_text_gaps_and_what_training_never_saw(trained):
    model, rows, schema = trained
    asked = rows.head(6).copy()
    asked.loc[asked.index[0], ["größe/m²", "<b>"]] = [np.nan, "never seen"]
    found = integrated_gradients(model, asked, rows, schema, steps=64)
    assert np.abs(found.error).max() < 0.02 and set(found.values) == {"größe/m²", "<b>", "flag", "on", "noise", "copy"}
    finer = integrated_gradients(model, asked, rows, schema, steps=256)
    assert np.abs(finer.error).max() <= np.abs(found.error).max() + 1e-4
    ground = shapley_values(predictor_of(model, schema), asked, rows, columns=list(found.values), size=20)
    assert np.allclose(found.base, ground.base, atol=1e-4) and np.allclose(found.scores, ground.scores, atol=1e-4)
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.values.to_numpy(), ground.values.to_numpy(), strict=True)]
    assert min(pairs) > 0.7


@pytest.mark.tensorflow
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_gradients_of_linear_models_are_exact_for_every_task(task):
    table = strange(60)[["größe/m²", "<b>"]].assign(y=np.arange(60) % 3 if task == "multiclass" else np.arange(60) % 2)
    classes = {"binary": ["0", "1"], "multiclass": ["0", "1", "2"], "regression": []}[task]
    schema = measure(table, describe_table(table, {"name": "y", "task": task, "classes": classes}))
    model, outputs = build_model(schema, units=()), max(1, len(classes) if task == "multiclass" else 1)
    for output in range(outputs):
        found = integrated_gradients(model, table.head(3), table, schema, output=output)
        assert np.abs(found.error).max() < 1e-4
    one = integrated_gradients(build_model(measure(table, describe_table(table[["größe/m²", "y"]], schema["label"]))),
                               table.head(1), table, describe_table(table[["größe/m²", "y"]], schema["label"]))
    assert list(one.values) == ["größe/m²"] and abs(one.error[0]) < 1e-2
    with pytest.raises(EvaluationError, match="no output 7"):
        integrated_gradients(model, table.head(1), table, schema, output=7)


@pytest.mark.tensorflow
def test_gradients_along_a_path_know_a_formula_and_refuse_what_has_none():
    import tensorflow as tf

    ends = np.random.default_rng(0).normal(size=(5, 3))
    begins = np.random.default_rng(1).normal(size=(4, 3))
    shares = path_gradients(lambda x: tf.exp(tf.reduce_sum(x, axis=1)), ends, begins, most=40)
    assert np.allclose(shares.sum(1), np.exp(ends.sum(1)) - np.exp(begins.sum(1)).mean(), atol=1e-3)
    with pytest.raises(EvaluationError, match="no gradient"):
        path_gradients(lambda x: tf.ones((tf.shape(x)[0], 1)), ends, begins)
    colour, error = image_gradients(lambda x: tf.reduce_sum(x ** 2, axis=(1, 2, 3))[:, None], np.ones((2, 4, 4, 3)))
    assert colour.shape == (2, 4, 4) and np.allclose(colour, 3, atol=1e-4) and np.abs(error).max() < 1e-3


# --- concepts


@pytest.mark.tensorflow
def test_a_planted_concept_is_found_and_random_pictures_are_not():
    import keras

    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    anything = rng.random((500, 8, 8, 1)).astype("float32")
    marked = anything.copy()
    marked[::2, 3:5, 3:5] += 0.7
    picture_in = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="shapes")(picture_in)
    model = keras.Model(picture_in, keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(x)))
    model.compile("adam", "binary_crossentropy")
    model.fit(marked, np.arange(500) % 2 == 0, epochs=5, verbose=0)
    spot = rng.random((60, 8, 8, 1)).astype("float32")
    spot[:, 3:5, 3:5] += 0.7
    found = concept_scores(model, "shapes", marked[:80:2], {"spot": spot, "none": anything[100:160]}, anything,
                           heaps=150).table.set_index("concept")
    assert found["uses"].to_dict() == {"spot": True, "none": False} and found.loc["spot", "score"] > 0.95
    false = [concept_scores(model, "shapes", marked[:80:2], {"r": rng.random((40, 8, 8, 1))}, anything, heaps=60,
                            seed=seed).table["uses"][0] for seed in range(20)]
    assert sum(false) <= 1


# --- glass box


def test_the_json_of_a_glass_box_scores_as_its_object_does(monkeypatch):
    pytest.importorskip("interpret")
    from interpret.glassbox import ExplainableBoostingClassifier, ExplainableBoostingRegressor

    from mlnb.evaluation import glass_box

    table, kept = strange(800), {}

    def remember(*given):
        kept["fitted"] = real(*given)
        return kept["fitted"]

    real = glass_box._estimator
    monkeypatch.setattr(glass_box, "_estimator", remember)
    odd = table.head(40).assign(**{"<b>": ["never seen", None, "Köln", ""] * 10, "größe/m²": [np.inf, -np.inf, np.nan, 1e30] * 10})
    for task, label in (("binary", "y"), ("regression", "noise"), ("multiclass", "three")):
        frame = table.assign(three=np.arange(800) % 3)
        names = [name for name in COLUMNS if name != label]
        box = fit_glass_box(frame, label, task, columns=names, classes=[0, 1, 2] if task == "multiclass" else (), rounds=60)
        read = json.loads(json.dumps(box, allow_nan=False))
        kind = ExplainableBoostingRegressor if task == "regression" else ExplainableBoostingClassifier
        assert isinstance(kept["fitted"], kind) and (task == "multiclass" or any(len(t["features"]) == 2 for t in box["terms"]))
        for rows in (frame.head(100), odd.assign(three=0)):
            cells = pd.DataFrame({f"f{i}": glass_box._cells(rows, one) for i, one in enumerate(box["features"])})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = (kept["fitted"].predict(cells) if task == "regression" else kept["fitted"].predict_proba(cells))
            ours = glass_box_predictor(read)(rows)
            assert np.allclose(ours, theirs[:, 1] if task == "binary" else theirs, atol=1e-6), task
        assert "NaN" not in glass_box_picture(read).html


# --- coverage and ablation


def test_coverage_and_doing_without():
    train, new = strange(400), strange(200, seed=1)
    new.loc[new.index[:50], "<b>"] = "never seen"
    found = coverage(new, train, COLUMNS, by=["flag"])
    whole = found[found.slice == "Overall"].set_index("column")
    assert whole.loc["<b>", "known"] < 0.75 and whole.loc["fixed", "known"] == 1 and whole.loc["leer", "has_value"] == 0
    assert (found.groupby("column")["rows"].sum() == 400).all()
    learnt = []

    def fit(rows):
        learnt.append(set(rows))
        if "größe/m²" in rows and "<b>" in rows:
            return judge
        return lambda frame: np.full(len(frame), 0.5)

    lost = drop_columns(fit, train, new, "y", columns=["größe/m²", "<b>", "noise"], groups={"pair": ["noise", "flag"]}, again=fit)
    table = lost.table.set_index("column")
    assert table.loc[["noise", "pair"], "loss"].tolist() == [0, 0] and lost.noise == 0
    assert learnt[0] == set(train) and learnt[1] == set(train) - {"größe/m²"} and learnt[4] == set(train) - {"noise", "flag"}


# --- examples


def test_examples_are_the_extremes_and_no_row_twice():
    rng = np.random.default_rng(0)
    rows = check_rows(pd.DataFrame({"y": rng.integers(0, 2, 50)}), "y", rng.random(50))
    picked = pick_examples(rows, 3)
    assert picked["row"].is_unique and picked["why"].tolist() == ["right"] * 3 + ["wrong"] * 3 + ["undecided"] * 3
    losses = np.abs(rows.labels - rows.scores)
    assert picked["loss"].iloc[0] == losses.min() and picked["loss"].iloc[3] == losses.max()
    assert len(pick_examples(check_rows(pd.DataFrame({"y": [0, 1]}), "y", np.array([0.1, 0.2])), 5)) == 2
    table = strange()
    few = pick_examples(check_rows(table, "y", judge(table)))
    made = explain_examples(few, table, table, judge, methods=["shapley", "surrogate"], columns=COLUMNS)
    whole = page(made.pictures(), "<script>alert(1)</script>")
    assert "<script" not in whole and "&lt;b&gt; =" in whole and not re.search(r"https?://(?!www\.w3\.org)", whole)


# --- the stage


def inputs(table, facts, slices=()):
    "What the stage refs: a model that has seen the table for a moment."
    schema = describe_table(table, facts, slices=list(slices), ignore=ignore_leaks(find_leaks(table, facts), keep=()))
    parts = split_table(table, schema)
    schema = measure(parts["train"], schema)
    model, _ = fit_model(parts["train"], parts["valid"], schema, epochs=2, report=False)
    return {"train.model": model, "prepare.train": parts["train"], "prepare.valid": parts["valid"], "prepare.schema": schema}


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.skipif(not TAXI.is_file(), reason="shared/data/chicago_taxi.csv is not here")
def test_the_stage_explains_a_real_table():
    refs = inputs(*label_table(read_table(TAXI), "tips > 0.2 * fare", name="big_tip"), slices=["trip_start_day"])
    scraps = run_stage(STAGE, {"rows": 600, "examples": 2}, refs)
    found = scraps["importance"]
    assert {"column", "importance", "low", "high", "uses"} <= set(found) and found["importance"].is_monotonic_decreasing
    assert "payment_type" not in set(found["column"]), "a leak is no feature"
    rows = scraps["examples"]
    assert set(rows["method"]) == {"sampled Shapley values", "integrated gradients", "local surrogate"}
    assert rows["example"].nunique() == 6 and set(rows["why"]) == {"right", "wrong", "undecided"}
    assert scraps["dependence"]["column"].nunique() == 4 and set(scraps["coverage"]["slice"]) > {"Overall"}
    text = scraps["explanation"].read_text()
    assert text.count("<svg") > 20 and "<script" not in text and "NaN" not in text


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_stage_explains_classes_with_strange_names_beside_a_glass_box():
    pytest.importorskip("interpret")
    table = strange(700).reset_index(drop=True)
    table["art"] = np.select([table["größe/m²"] > 0.4, table["<b>"] == "Köln"], ["groß", "<i>"], "übrig")
    table, facts = label_table(table.drop(columns=["y", "copy"]), "art")
    scraps = run_stage(STAGE, {"glass_box": True, "ablation": ["noise"], "explained_class": "groß", "columns": 2,
                               "methods": ["shapley"]}, inputs(table, facts))
    assert set(scraps["examples"]["output"]) <= {"groß", "<i>", "übrig"} and np.abs(scraps["examples"]["error"]).max() < 1e-6
    text = scraps["explanation"].read_text()
    assert "Glass box" in text and "<i>" not in text and "&lt;i&gt;" in text
