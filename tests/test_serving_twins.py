"""Twins and warm-up requests of the models that the reference pipeline builds; read with the official stubs and runtimes."""

import builtins
import json
import subprocess
import sys

import numpy as np
import pytest
from test_serving_export import ROWS, build  # noqa: F401 - a fixture

from mlnb.errors import ServingError
from mlnb.serving.export import export_model
from mlnb.serving.parity import Twin, compare_twin, edge_rows, read_twins
from mlnb.serving.twins import add_twins
from mlnb.serving.warm_up_records import WARM_UP, add_warm_up, replay_warm_up

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The tabular model of mlnb on a table with gaps, dates, unicode and truth values, exported."""
    import small_models

    from mlnb.training.models import build_model, to_inputs

    table, schema = small_models.odd_shop()
    inputs = to_inputs(table, schema)
    return export_model(build_model(schema), schema, tmp_path_factory.mktemp("shop") / "m", inputs, classes=["0", "1"]), inputs


def test_the_reference_model_has_both_twins(shop):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    export, inputs = shop
    onnx, lite, js = add_twins(export.folder, inputs, ("onnx", "lite", "js"))
    for twin in (onnx, lite):
        assert twin.accepted, twin.reason
        assert twin.difference < 1e-6 and twin.rows == 300 and twin.edges > 60
    assert not js.accepted and "packaging" in js.reason
    assert {kind: one["accepted"] for kind, one in read_twins(export.folder).items()} == {"js": False, "lite": True, "onnx": True}
    facts = json.loads((export.folder / "assets.extra/onnx/twin.json").read_text())
    assert facts["inputs"].keys() == export.signatures["serving_default"]["inputs"].keys() and facts["signature"] == "serving_default"


ANSWERS = """
import json, sys
from pathlib import Path
import numpy as np
folder, runtime = Path(sys.argv[1]), sys.argv[2]
rows = {name: np.array(values, kind) for name, (kind, values) in json.load(open(sys.argv[3])).items()}
expected = rows.pop("expected")
if runtime == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder/"model.onnx"))
    found = session.run(None, rows)[0]
else:
    from ai_edge_litert.interpreter import Interpreter
    ask = Interpreter(str(folder/"model.tflite")).get_signature_runner("serving_default")
    found = ask(**{n: np.array([t.encode() for t in v], object) if v.dtype == object else v for n, v in rows.items()})["scores"]
np.testing.assert_allclose(found, expected, atol=1e-5)
assert "tensorflow" not in sys.modules
print("same")
"""


@pytest.mark.parametrize("kind", ["onnx", "lite"])
def test_a_twin_answers_in_a_process_without_tensorflow(shop, kind, tmp_path):
    pytest.importorskip("onnxruntime" if kind == "onnx" else "ai_edge_litert")
    from mlnb.serving.served import Served

    export, inputs = shop
    add_twins(export.folder, inputs, (kind,))
    served = Served(export.folder)
    rows = edge_rows(served.cast(inputs))
    arrays = {**rows, "expected": served(rows)[:, None]}
    (tmp_path / "rows.json").write_text(json.dumps({name: (array.dtype.str, array.tolist()) for name, array in arrays.items()}))
    command = [sys.executable, "-c", ANSWERS, export.folder / "assets.extra" / kind, kind, tmp_path / "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_a_model_of_every_input_type_has_twins_or_reasons(build, tmp_path):  # noqa: F811
    """A vector and a whole number as inputs; nothing clips, so the largest floats overflow in both or are refused."""
    pytest.importorskip("onnxruntime")
    export_model(build(lambda keras: keras.layers.Dense(3, "softmax")), {}, tmp_path / "m", ROWS, task="multiclass", classes=["a", "b", "c"])
    for twin in add_twins(tmp_path / "m", ROWS):
        assert twin.accepted or "differently" in twin.reason, twin.reason
        assert (tmp_path / "m/assets.extra" / twin.kind / twin.file).exists() is twin.accepted


def test_several_outputs_are_compared_by_name(tmp_path):
    pytest.importorskip("onnxruntime")
    import tensorflow as tf

    class Two(tf.Module):
        def __call__(self, given): return {"low": given["x"] * 2.0, "high": given["x"] * 3.0, "word": tf.where(given["x"] > 0, "yes", "no")}

    takes = {"x": tf.TensorSpec([None, 1], tf.float32)}
    export = export_model(Two(), {}, tmp_path / "m", {"x": [1.0, -2.0]}, task="regression", inputs=takes)
    assert export.difference == 0 and set(export.signatures["serving_default"]["outputs"]) == {"low", "high", "word"}
    regress = tf.saved_model.load(str(tmp_path / "m")).signatures["regress"]
    example = tf.train.Example(features=tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[2]))}))
    assert regress(inputs=tf.constant([example.SerializeToString()]))["outputs"].numpy().tolist() == [[4.0]]
    twin = add_twins(tmp_path / "m", {"x": [1.0, -2.0]}, ("onnx",))[0]
    assert twin.accepted and set(twin.outputs) == {"low", "high", "word"}, twin.reason


def test_without_the_extras_an_export_says_what_to_install(shop, monkeypatch):
    export, inputs = shop
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] in ("onnxruntime", "onnx", "tf2onnx", "ai_edge_litert"): raise ImportError(f"No module named '{name}'", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    onnx, lite = add_twins(export.folder, inputs)
    monkeypatch.undo()
    assert "pip install 'mlnb[onnx]'" in onnx.reason and "pip install 'mlnb[edge]'" in lite.reason
    assert [path.name for kind in ("onnx", "lite") for path in (export.folder / "assets.extra" / kind).iterdir()] == ["twin.json"] * 2


def test_a_twin_that_differs_in_one_word_is_refused(shop):
    from mlnb.serving.served import Served

    export, inputs = shop
    served = Served(export.folder)

    def sly(rows):
        scores = served.answers(rows)["scores"].copy()
        texts = next(values for values in rows.values() if values.dtype == object)
        scores[[text == "never seen" for text in texts.reshape(-1).tolist()]] += 1e-4
        return {"scores": scores}

    twin = compare_twin(Twin("onnx", "model.onnx", False, ""), export.folder, sly, inputs, 1e-5)
    assert not twin.accepted and "never seen" in twin.reason and 9e-5 < twin.difference < 2e-4
    assert compare_twin(twin, export.folder, sly, inputs, 1e-3).accepted


# warm-up requests


def test_the_official_stubs_read_the_requests(shop):
    """Every door is asked about every row; a server finds the same values in them that the rows have."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    export, inputs = shop
    found = add_warm_up(export.folder, inputs, "shop", rows=3)
    logs = [prediction_log_pb2.PredictionLog.FromString(one.numpy()) for one in tf.data.TFRecordDataset(str(export.folder / WARM_UP))]
    assert found.doors == {"classify": 4, "serving_default": 4, "serving_tf_example": 4} and len(logs) == 12
    assert {log.WhichOneof("log_type") for log in logs} == {"classify_log", "predict_log"}
    last = next(log.predict_log.request for log in reversed(logs) if log.predict_log.request.model_spec.signature_name == "serving_default")
    assert last.model_spec.name == "shop"
    for name, facts in export.signatures["serving_default"]["inputs"].items():
        values = tf.make_ndarray(last.inputs[name])
        assert values.shape == (3,)
        if facts["dtype"] == "float32": np.testing.assert_array_equal(values, inputs[name][:3, 0].astype("float32"))
        else: assert [v.decode() for v in values] == inputs[name][:3, 0].tolist()


def test_a_damaged_warm_up_file_is_found(shop):
    export, inputs = shop
    add_warm_up(export.folder, inputs)
    path = export.folder / WARM_UP
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ServingError, match="no TFRecord"): replay_warm_up(export.folder)
    path.write_bytes(bytes(data[:40]))
    with pytest.raises(ServingError, match="no TFRecord"): replay_warm_up(export.folder)


def test_a_regression_is_warmed_through_regress(build, tmp_path):  # noqa: F811
    export_model(build(lambda keras: keras.layers.Dense(1)), {}, tmp_path / "m", ROWS, task="regression")
    assert add_warm_up(tmp_path / "m", ROWS, rows=2).doors == {"regress": 3, "serving_default": 3, "serving_tf_example": 3}
    with pytest.raises(ServingError, match="would refuse"): add_warm_up(tmp_path / "m", {name: value[:0] for name, value in ROWS.items()})
    assert not (tmp_path / "m" / WARM_UP).exists()


def test_business_rules_are_in_the_twins_too(tmp_path):
    """Conditions on words, numbers and dates, which override the score, on every edge row."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    import small_models

    from mlnb.evaluation.assertions import guard_model, read_rules
    from mlnb.training.models import build_model, to_inputs

    table, schema = small_models.odd_shop()
    words = [
        {"name": "late", "when": "class in ('a', 'b') and \"bezahlt am\" > '2024-02-01'", "at_least": 0.9},
        {"name": "dear", "when": "価格 > 30 or class = 'it''s'", "score": 0.25},
    ]
    inputs = to_inputs(table, schema)
    export_model(guard_model(build_model(schema), read_rules(words, schema), schema), schema, tmp_path / "m", inputs, classes=["0", "1"])
    for twin in add_twins(tmp_path / "m", inputs): assert twin.accepted and twin.difference < 1e-6, twin.reason
    assert set(add_warm_up(tmp_path / "m", inputs, rows=1).doors) == {"classify", "rules", "serving_default", "serving_tf_example"}


def test_a_model_that_fills_no_gaps_still_answers_as_the_saved_model_does(tmp_path):
    """A fused relu makes 0 of NaN in TensorFlow; the ONNX twin must too, and what cannot is refused."""
    pytest.importorskip("onnxruntime")
    from mlnb.training.quiet import import_quietly

    import_quietly("tensorflow")
    import keras

    names = ("a", "b")
    given = {name: keras.Input((1,), name=name) for name in names}
    hidden = keras.layers.Dense(16, "relu")(keras.layers.Concatenate()(list(given.values())))
    rows = {"a": np.arange(9.0), "b": np.ones(9)}
    export_model(keras.Model(given, keras.layers.Dense(1)(hidden)), {}, tmp_path / "m", rows, task="regression")
    onnx, lite = add_twins(tmp_path / "m", rows)
    assert onnx.accepted and onnx.difference < 1e-5, onnx.reason
    assert lite.accepted or "nan" in lite.reason
