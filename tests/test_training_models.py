"""Models and tuning beyond their lessons: all tasks, saving, exporting, broken training, interrupted searches."""

import numpy as np
import pandas as pd
import pytest

from mlnb.data.labels import label_table
from mlnb.data.schemas import describe_table
from mlnb.data.splits import split_table
from mlnb.errors import TrainingError
from mlnb.training import baselines, models, tuning
from mlnb.training.metrics import MAIN_METRIC, score

pytestmark = pytest.mark.tensorflow


def trips(rows=900):
    "A table with every kind of feature, and three labels of its own."
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({
        "größe/m²": np.where(draw.random(rows) < 0.2, np.nan, draw.normal(50, 20, rows)),
        "class": draw.choice(["a", "b", "ü", None], rows), "street": draw.choice([f"s {i}" for i in range(300)], rows),
        "on": pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 9000, rows), unit="h"),
        "new": draw.choice([True, False], rows)})
    size = frame["größe/m²"].fillna(65)
    return frame.assign(amount=size * 1000 + 5000 * frame["new"],
                        sold=np.where((size > 55) ^ frame["new"], "yes", "no"),
                        band=pd.cut(size, [-1e9, 40, 60, 1e9], labels=["small", "mid", "big"]).astype(str))


def prepared(label):
    rows, facts = label_table(trips().drop(columns={"amount", "sold", "band"} - {label}), label)
    schema = describe_table(rows, facts)
    return schema, split_table(rows, schema)


@pytest.fixture(scope="session", params=["sold", "band", "amount"])
def trained(request):
    schema, parts = prepared(request.param)
    fitted = models.fit_model(parts["train"], parts["valid"], schema, epochs=12, batch_size=64, learning_rate=0.01,
                              report=False)
    return schema, parts, *fitted


def test_every_task_beats_knowing_nothing(trained):
    schema, parts, model, history = trained
    task, name = schema["label"]["task"], schema["label"]["name"]
    nothing = baselines.fit_baselines(parts["train"], parts["valid"], schema, names=("zero_rule",))
    found = score(parts["valid"][name], models.predict(model, parts["valid"], schema), task)
    metric = MAIN_METRIC[task]
    assert found[metric] == pytest.approx(history.best(history.monitor), rel=0.02)
    better, worse = (found[metric], nothing.metrics.loc["zero_rule", metric])[:: -1 if task == "regression" else 1]
    assert better > 1.2 * worse


def test_a_saved_model_scores_the_same_without_our_code(trained, tmp_path):
    schema, parts, model, _ = trained
    import keras
    import tensorflow as tf
    scores = models.predict(model, parts["test"], schema).to_numpy()
    model.save(tmp_path / "model.keras")
    assert (models.predict(keras.saving.load_model(tmp_path / "model.keras"), parts["test"],
                           schema).to_numpy() == scores).all()
    model.export(tmp_path / "exported", verbose=False)
    serve = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    inputs = {name: tf.constant(array) for name, array in models.to_inputs(parts["test"], schema).items()}
    assert np.allclose(next(iter(serve(**inputs).values())).numpy().reshape(scores.shape), scores, rtol=1e-5, atol=1e-5)


def test_inputs_do_not_depend_on_dtypes(trained):
    schema, parts, model, _ = trained
    frame = parts["test"].head(50)
    other = frame.assign(**{"größe/m²": frame["größe/m²"].map(lambda v: None if np.isnan(v) else repr(v)),
                            "new": frame["new"].astype(str),
                            "class": frame["class"].astype("category"),
                            "on": frame["on"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")})
    same = [models.predict(model, table, schema).to_numpy() for table in (frame, other.iloc[:, ::-1])]
    assert np.allclose(*same, rtol=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights():
    schema, parts = prepared("sold")
    def weights(seed):
        model, _ = models.fit_model(parts["train"], parts["valid"], schema, epochs=2, seed=seed, balanced=True,
                                    report=False)
        return np.concatenate([w.numpy().ravel() for w in model.trainable_variables])
    first = weights(1)
    assert (first == weights(1)).all() and (first != weights(2)).any()


def test_a_loss_that_is_no_number_is_an_error_with_a_cure():
    schema, parts = prepared("amount")
    broken = parts["train"].assign(amount=parts["train"].amount.where(parts["train"].index > 3))
    with pytest.raises(TrainingError, match="loss is no number"):
        models.fit_model(broken, parts["valid"], schema, epochs=1)


class Stopped(BaseException):
    "As a kernel interrupt: nothing catches it."


@pytest.mark.slow
def test_an_interrupted_search_goes_on(tmp_path, monkeypatch):
    schema, parts = prepared("sold")
    build, built = tuning.build_model, []
    def stopping(*given):
        built.append(given[1:])
        if len(built) == stop_at: raise Stopped
        return build(*given)
    monkeypatch.setattr(tuning, "build_model", stopping)
    stop_at = 3  # keras-tuner builds once to learn the space, then once a trial
    with pytest.raises(Stopped):
        tuning.tune(parts["train"], parts["valid"], schema, tmp_path, trials=3, epochs=1, report=False)
    before, stop_at = len(built), 0
    found = tuning.tune(parts["train"], parts["valid"], schema, tmp_path, trials=3, epochs=1, report=False)
    assert len(found.table) == 3 and found.table[found.monitor].notna().all()
    assert len(built) - before < 4, "finished trials are not run again"
    whole = tuning.tune(parts["train"], parts["valid"], schema, tmp_path / "other", trials=3, epochs=1, report=False)
    pd.testing.assert_frame_equal(whole.table, found.table)


@pytest.mark.slow
def test_hyperband_finds_settings_that_fit(tmp_path):
    schema, parts = prepared("band")
    found = tuning.tune(parts["train"], parts["valid"], schema, tmp_path, epochs=2, method="hyperband", report=False)
    assert set(found.best) == {"units", "dropout", "learning_rate"} and found.monitor == "val_accuracy"
    models.build_model(models.measure(parts["train"], schema), tuple(found.best["units"]), found.best["dropout"])


def test_a_search_in_which_everything_fails_says_why(tmp_path, monkeypatch):
    schema, parts = prepared("sold")
    def failing(*_): raise ValueError("no such layer")
    monkeypatch.setattr(tuning, "compile_model", failing)
    with pytest.raises((TrainingError, ValueError), match="failed|no such layer"):
        tuning.tune(parts["train"], parts["valid"], schema, tmp_path, trials=2, epochs=1, report=False)
