"""Attacks stay in their box, are as strong as ART's, and hardening helps on the reference model."""

import numpy as np
import pandas as pd
import pytest
from small_models import odd_shop, reference

from mlnb.data.labels import label_table
from mlnb.data.schemas import describe_table, measure
from mlnb.errors import EvaluationError
from mlnb.evaluation.attacks import ATTACKS, attack, attack_box, attack_curve, box_values, robust_figure, swap_attack
from mlnb.evaluation.hardening import harden
from mlnb.testing import run_stage
from mlnb.training.metrics import score
from mlnb.training.models import build_model, fit_model, predict

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def shop():
    table, schema = odd_shop(600)
    model, _ = fit_model(table, table, schema, epochs=6, batch_size=64, learning_rate=1e-2, units=(16,), report=False)
    return model, table, schema


@pytest.mark.parametrize("how", ATTACKS)
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.7, 5.0])
def test_no_attack_leaves_its_box(shop, how, strength):
    model, table, schema = shop
    box = attack_box(schema, whole=["価格"])
    attacked = attack(model, table, schema, how, strength, box=box, steps=4)
    after, before = box_values(attacked, box, schema), box_values(table, box, schema)
    assert (np.isnan(after) == np.isnan(before)).all()
    assert (np.nan_to_num(np.abs(after - before)) <= strength * box.scale * (1 + 1e-9)).all()
    assert (np.isnan(after) | ((after >= box.low) & (after <= box.high))).all()
    assert (after[:, 1] == np.round(after[:, 1])).all(), "whole numbers stay whole"
    others = [name for name in table if name not in box.columns]
    pd.testing.assert_frame_equal(attacked[others], table[others])
    assert strength == 0 or np.nanmax(np.abs(after - before)) > 0


def test_rows_outside_of_the_range_do_not_go_further(shop):
    model, table, schema = shop
    far = table.head(40).assign(**{"größe/m²": np.resize([1e6, -1e6], 40), "価格": 99})
    after = attack(model, far, schema, "pgd", 2.0, steps=3)
    assert after["größe/m²"].abs().max() <= 1e6 and after["価格"].max() <= 99


def test_attacks_are_seeded_and_at_least_as_bad_as_they_should_be(shop):
    model, table, schema = shop
    rows = {how: attack(model, table, schema, how, 0.5, seed=3) for how in ATTACKS}
    pd.testing.assert_frame_equal(rows["pgd"], attack(model, table, schema, "pgd", 0.5, seed=3))
    assert not rows["noise"].equals(attack(model, table, schema, "noise", 0.5, seed=4))
    loss = {how: score(table.y, predict(model, table_, schema), "binary")["log_loss"] for how, table_ in (rows | {"none": table}).items()}
    assert loss["none"] < loss["noise"] < loss["fgsm"] <= loss["pgd"] * 1.02


def test_the_gradient_is_as_good_as_the_toolbox():
    """On numbers alone ART can take the model: its FGSM moves every number as ours does, its PGD is no stronger."""
    from mlnb.training.quiet import import_quietly

    tf = import_quietly("tensorflow")
    import keras

    art = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import TensorFlowV2Classifier

    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(500, 4)) * [1, 5, 0.1, 30], columns=list("abcd"))
    frame["y"] = (frame.a + frame.b / 5 + (frame.c * 10) ** 2 - frame.d / 30 > 0.5).astype(int)
    table, facts = label_table(frame, "y")
    schema = measure(table, describe_table(table, facts))
    model, _ = fit_model(table, table, schema, epochs=8, batch_size=64, learning_rate=1e-2, units=(16,), dropout=0.0, report=False)
    box = attack_box(schema)
    low, high, scale = (part.astype("float32") for part in (box.low, box.high, box.scale))
    vector = keras.Input((4,))
    plain = vector * scale
    inside = model({name: plain[:, i : i + 1] for i, name in enumerate(box.inputs)})
    both = keras.Model(vector, keras.ops.concatenate([1 - inside, inside], axis=1))
    classifier = TensorFlowV2Classifier(
        both, nb_classes=2, input_shape=(4,), clip_values=(low / scale, high / scale), loss_object=tf.keras.losses.SparseCategoricalCrossentropy()
    )
    values, labels = box_values(table, box, schema), np.eye(2)[table.y.to_numpy(int)]
    theirs = art.FastGradientMethod(classifier, eps=0.3).generate((values / box.scale).astype("float32"), labels) * box.scale
    ours = box_values(attack(model, table, schema, "fgsm", 0.3), box, schema)
    assert np.isclose(theirs, ours, rtol=1e-4, atol=1e-4 * box.scale).mean() > 0.99

    def hurt(numbers):
        return score(table.y, predict(model, table.assign(**dict(zip("abcd", np.asarray(numbers).T, strict=True))), schema), "binary")["log_loss"]

    walk = art.ProjectedGradientDescent(classifier, eps=0.3, eps_step=0.075, max_iter=10, verbose=False)
    theirs = hurt(walk.generate((values / box.scale).astype("float32"), labels) * box.scale)
    assert hurt(ours) > hurt(values) + 0.1 and hurt(box_values(attack(model, table, schema, "pgd", 0.3), box, schema)) >= theirs - 1e-3


def test_more_swaps_hurt_more_and_one_swap_changes_one_column(shop):
    draw = np.random.default_rng(1)
    frame = pd.DataFrame({name: draw.choice(["x", "y", "z"], 300) for name in ("eins", "zwei", "drei")})
    frame["y"] = ((frame.eins == "x") | (frame.zwei == "y")).astype(int)
    table, facts = label_table(frame, "y")
    schema = measure(table, describe_table(table, facts))
    model, _ = fit_model(table, table, schema, epochs=8, batch_size=64, learning_rate=1e-2, units=(16,), report=False)

    def scores(rows):
        return predict(model, rows, schema)

    once, twice = (swap_attack(scores, table, schema, swaps=n) for n in (1, 2))
    changed = [(table[["eins", "zwei", "drei"]] != rows[["eins", "zwei", "drei"]]).sum(axis=1) for rows in (once, twice)]
    assert changed[0].max() == 1 and changed[1].max() == 2
    losses = [score(table.y, scores(rows), "binary")["log_loss"] for rows in (table, once, twice)]
    assert losses[0] < losses[1] < losses[2]
    curve = attack_curve(model, table, schema)
    assert curve.attack.tolist() == ["none", "swap"] and robust_figure(curve)["attack"] == "swap"
    with pytest.raises(EvaluationError, match="no category can be swapped"):
        swap_attack(scores, table, schema | {"columns": [c | {"kind": "numeric"} for c in schema["columns"]]})


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_other_tasks_are_attacked_too(task):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=400), "b": draw.normal(size=400), "c": draw.choice(list("uv"), 400)})
    frame["y"] = frame.a * 3 + (frame.c == "u") if task == "regression" else np.select([frame.a > 0.5, frame.b > 0.5], ["p", "q"], "r")
    table, facts = label_table(frame, "y")
    schema = measure(table, describe_table(table, facts))
    model, _ = fit_model(table[:300], table[300:], schema, epochs=6, batch_size=50, learning_rate=1e-2, units=(16,), report=False)
    curve = attack_curve(model, table[300:], schema, [0.5], ["noise", "pgd"])
    figure = robust_figure(curve, 0.5)
    assert figure["attack"] == "pgd" and figure["lost"] > 0.05
    assert figure["metric"] == ("rmse" if task == "regression" else "accuracy")
    hardened = harden(model, table[:300], table[300:], schema, strength=0.5, epochs=1, batch_size=50)
    assert len(hardened.curves) == 2 and np.isfinite(hardened.curves.iloc[:, 1:].to_numpy()).all()


def test_a_model_with_nothing_to_attack_is_said_to_be_so():
    frame = pd.DataFrame({"flag": [True, False] * 60, "y": [0, 1, 1] * 40})
    table, facts = label_table(frame, "y")
    schema = measure(table, describe_table(table, facts))
    model = build_model(schema, (4,))
    curve = attack_curve(model, table, schema)
    assert curve.attack.tolist() == ["none"] and robust_figure(curve)["lost"] == 0
    with pytest.raises(EvaluationError, match="no numeric feature can be moved"):
        attack(model, table, schema)


def test_hardening_helps_on_the_reference_model_and_costs_little():
    """The promise of the issue: on the rows of the test split, which neither training nor hardening has seen."""
    fitted = reference()
    from mlnb.training.quiet import import_quietly

    import_quietly("tensorflow")
    import keras

    model = keras.models.clone_model(fitted.model)
    model.set_weights(fitted.model.get_weights())

    def figures(asked):
        attacked = attack(asked, fitted.test, fitted.schema, "pgd", 0.25)
        return [score(fitted.test.high_use, predict(asked, rows, fitted.schema), "binary")["auc"] for rows in (fitted.test, attacked)]

    before = figures(fitted.model)
    hardened = harden(model, fitted.train, fitted.valid, fitted.schema, strength=0.25, epochs=4, batch_size=512, learning_rate=3e-3)
    after = figures(hardened.model)
    assert before[1] < 0.45, "a quarter of a standard deviation turns the order of the rows"
    assert after[1] > before[1] + 0.05 and after[0] > before[0] - 0.03, (before, after)


def test_the_stage_on_the_reference():
    fitted = reference()
    refs = {"train.model": fitted.model, "prepare.valid": fitted.valid, "prepare.schema": fitted.schema}
    scraps = run_stage("nbs/stages/tabular/64_attack.ipynb", {"rows": 400, "steps": 3, "strengths": [0.5], "metric": "auc"}, refs)
    curve = scraps["curve"]
    assert set(curve.strength) == {0.0, 0.25, 0.5} and set(curve.rows) == {400}
    assert scraps["robust"] == scraps["robustness"]["value"] < scraps["robustness"]["clean"] and scraps["robustness"]["metric"] == "auc"
