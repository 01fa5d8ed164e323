"""Exports of the three tasks, loaded in a process that has no Keras model, and judged there by TFMA's own loader."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mlnb.errors import ServingError
from mlnb.serving.compatibility import breaking_changes
from mlnb.serving.export import export_model, serialize_examples
from mlnb.serving.registry import register

pytestmark = pytest.mark.tensorflow
ROWS = {
    "age": np.array([31.0, np.nan, 77.0, -1.0], "float32"),
    "plan": np.array(["a", "", "never seen", "b"], object),
    "embedding": np.arange(8, dtype="float32").reshape(4, 2),
    "visits": np.array([0, 1, 2, 3], "int64"),
}


@pytest.fixture(scope="session")
def build():
    """A small Keras model with a number, a word, a vector and a whole number as inputs, for any head."""
    from mlnb.training.quiet import import_quietly

    import_quietly("tensorflow")
    import keras

    def make(head, seed=0):
        keras.utils.set_random_seed(seed)
        inputs = {
            "age": keras.Input((1,), name="age", dtype="float32"),
            "plan": keras.Input((1,), name="plan", dtype="string"),
            "embedding": keras.Input((2,), name="embedding", dtype="float32"),
            "visits": keras.Input((1,), name="visits", dtype="int64"),
        }
        words = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs["plan"])
        age = keras.ops.where(keras.ops.isnan(inputs["age"]), 40.0, inputs["age"]) / 100
        visits = keras.ops.cast(inputs["visits"], "float32")
        parts = [age, words, inputs["embedding"], visits]
        return keras.Model(inputs, head(keras)(keras.layers.Concatenate()(parts)))

    return make


def test_every_door_of_a_classifier_answers_in_another_process(build, tmp_path):
    model = build(lambda keras: keras.layers.Dense(3, "softmax"))
    schema = {"columns": [{"name": "größe"}]}
    labels = ["red", "green", "blau é"]
    export = export_model(model, schema, tmp_path / "m", ROWS, task="multiclass", classes=labels)
    assert (export.rows, set(export.signatures)) == (4, {"serving_default", "serving_tf_example", "classify"})
    assert export.signatures["serving_default"]["inputs"]["age"] == {"dtype": "float32", "shape": [None]}
    assert export.signatures["serving_default"]["inputs"]["embedding"] == {"dtype": "float32", "shape": [None, 2]}
    assert json.loads((tmp_path / "m/assets.extra/input_schema.json").read_text()) == schema
    expected = np.asarray(
        model(ROWS | {"age": ROWS["age"][:, None], "plan": ROWS["plan"][:, None], "visits": ROWS["visits"][:, None]})
    )
    rows = {"examples": [one.hex() for one in serialize_examples(ROWS)], "expected": expected.tolist()}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    code = (
        "import json, sys, numpy as np, tensorflow as tf\n"
        "doors = tf.saved_model.load(sys.argv[1]).signatures\n"
        "rows = json.load(open(sys.argv[2]))\n"
        "examples = tf.constant([bytes.fromhex(one) for one in rows['examples']])\n"
        "given = dict(age=tf.constant([31., float('nan'), 77., -1.]), plan=tf.constant(['a', '', 'never seen', 'b']),\n"
        "             embedding=tf.reshape(tf.range(8.), [4, 2]), visits=tf.constant([0, 1, 2, 3], tf.int64))\n"
        "answers = [doors['serving_default'](**given), doors['serving_tf_example'](examples=examples)]\n"
        "for scores in (one['scores'] for one in [*answers, doors['classify'](inputs=examples)]):\n"
        "    np.testing.assert_allclose(scores, rows['expected'], atol=1e-6)\n"
        "empty = doors['classify'](inputs=tf.zeros([0], tf.string))\n"
        "assert empty['scores'].shape == (0, 3) and empty['classes'].shape == (0, 3)\n"
        "print(doors['classify'](inputs=examples[:1])['classes'].numpy()[0][2].decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m", tmp_path / "rows.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "blau é"


def test_a_regression_has_a_regress_door_and_no_labels(build, tmp_path):
    model = build(lambda keras: keras.layers.Dense(1))
    export = export_model(model, {}, tmp_path / "m", ROWS, task="regression")
    assert set(export.signatures) == {"serving_default", "serving_tf_example", "regress"}
    assert list(export.signatures["regress"]["outputs"]) == ["outputs"]
    assert not (tmp_path / "m" / "assets" / "labels.txt").exists()


def test_registering_real_exports_counts_versions_by_what_changed(build, tmp_path):
    binary = {"task": "binary", "classes": ["no", "yes"]}
    for name, seed in (("one", 0), ("two", 1)):
        export_model(build(lambda keras: keras.layers.Dense(1, "sigmoid"), seed), {}, tmp_path / name, ROWS, **binary)
    export_model(
        build(lambda keras: keras.layers.Dense(3, "softmax")), {}, tmp_path / "three", ROWS, classes=["a", "b", "c"]
    )
    versions = [register(tmp_path / "registry", "m", tmp_path / name) for name in ("one", "two", "one", "three")]
    assert [one["version"] for one in versions] == ["1.0.0", "1.0.1", "1.0.0", "2.0.0"]
    assert "labels were no, yes, are a, b, c" in versions[-1]["breaking_changes"]
    assert breaking_changes(versions[0], versions[1]) == []


def test_tfma_judges_the_export_itself(build, tmp_path):
    """TFMA loads the SavedModel and feeds it tf.Examples; its figure is the one of the scores that Keras gave."""
    import tensorflow as tf
    import tensorflow_model_analysis as tfma
    from tensorflow_model_analysis.proto import config_pb2

    from mlnb.training.quiet import quiet

    model = build(lambda keras: keras.layers.Dense(1, "sigmoid"))
    rng = np.random.default_rng(0)
    rows = {"age": rng.normal(50, 20, 60).astype("float32"), "plan": rng.choice(["a", "b", ""], 60).astype(object)}
    rows |= {"embedding": rng.normal(0, 1, (60, 2)).astype("float32"), "visits": rng.integers(0, 5, 60)}
    export_model(model, {}, tmp_path / "m", rows, classes=["no", "yes"])
    examples = [tf.train.Example.FromString(one) for one in serialize_examples(rows)]
    for number, one in enumerate(examples):
        one.features.feature["label"].float_list.value.append(number % 2)
    with tf.io.TFRecordWriter(str(tmp_path / "rows.tfrecord")) as writer:
        for one in examples:
            writer.write(one.SerializeToString())
    config = config_pb2.EvalConfig()
    config.model_specs.add(label_key="label", signature_name="serving_tf_example")
    config.metrics_specs.add().metrics.add(class_name="MeanPrediction")
    config.slicing_specs.add()
    with quiet():
        shared = tfma.default_eval_shared_model(str(tmp_path / "m"), eval_config=config)
        result = tfma.run_model_analysis(
            shared, config, str(tmp_path / "rows.tfrecord"), output_path=str(tmp_path / "tfma")
        )
    found = result.slicing_metrics[0][1][""][""]["mean_prediction"]["doubleValue"]
    arrays = {name: tf.constant(value.reshape(60, -1)) for name, value in rows.items()}
    assert found == pytest.approx(float(np.mean(model(arrays))), abs=1e-6)


def test_an_export_that_differs_or_cannot_be_leaves_nothing(build, tmp_path):
    model = build(lambda keras: keras.layers.Dense(1))
    with pytest.raises(ServingError, match="answers differently"):
        export_model(model, {}, tmp_path / "m", ROWS, tolerance=-1.0)
    with pytest.raises(ServingError, match="no table"):
        export_model(model, {}, tmp_path / "m", ROWS | {"age": [1.0]})
    with pytest.raises(ServingError, match="label name cannot be stored"):
        export_model(model, {}, tmp_path / "m", ROWS, classes=["a\nb", "c"])
    with pytest.raises(ServingError, match="input 'age' has values"):
        export_model(model, {}, tmp_path / "m", ROWS | {"age": ["old"] * 4})
    assert not list(tmp_path.iterdir())
