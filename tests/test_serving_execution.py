"""A servable under fire: upstream's refusals, batches under random concurrency, warm-up files, reloads, closing while busy."""

import asyncio
import gc
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import ServingError
from mlnb.serving.batches import BatchLimits, read_limits
from mlnb.serving.batching import Batcher
from mlnb.serving.codes import Refusal
from mlnb.serving.messages import BatchingParameters, PredictionLog, SignatureDefMap
from mlnb.serving.tensors import to_tensor

CASES = Path(__file__).resolve().parents[2]/"shared/conformance/tfserving.json"


def limits(text):
    """Limits from a batching file's text."""
    from google.protobuf import text_format

    return read_limits(text_format.Parse(text, BatchingParameters()))


def refused(work, *given, **more):
    """The refusal of a call, as text."""
    with pytest.raises(Refusal) as caught:
        work(*given, **more)
    return str(caught.value)


# ---- batching, with an echo for a model -----------------------------------------------------------------------------


class Echo:
    """A model that gives back what it gets, refuses negative numbers, and remembers its executions."""

    def __init__(self, seconds=0.0):
        self.seconds, self.seen = seconds, []

    def __call__(self, feeds, outputs):
        self.seen.append({name: array.shape for name, array in feeds.items()})
        if self.seconds:
            time.sleep(self.seconds)
        if any(array.dtype.kind == "f" and (array < 0).any() for array in feeds.values()):
            raise Refusal("INVALID_ARGUMENT", "negative")
        return {f"{name}!": array for name, array in feeds.items() if outputs is None or f"{name}!" in outputs}


def array_of(kind, rows, tail, mark):
    """An array that no other request has."""
    shape = (rows, *tail)
    if kind == "text":
        found = np.empty(shape, object)
        found[...] = b"%d" % mark
        return found
    return np.full(shape, mark, "float32" if kind == "float" else "int64")


REQUEST = st.fixed_dictionaries(
    {
        "inputs": st.dictionaries(st.sampled_from("abc"), st.sampled_from(["float", "int", "text"]), min_size=1, max_size=3),
        "rows": st.integers(0, 9),
        "tail": st.sampled_from([(), (1,), (2, 3)]),
        "filter": st.booleans(),
        "fate": st.sampled_from(["served", "served", "served", "poisoned", "cancelled", "expired", "scalar"]),
        "pause": st.sampled_from([0, 0, 0.001]),
    }
)


async def one_asker(batcher, request, mark):
    """Ask, and check that what comes back is what was sent; "ok", "poisoned", "cancelled" or "expired"."""
    feeds = {name: array_of(kind, request["rows"], request["tail"], mark) for name, kind in sorted(request["inputs"].items())}
    if request["fate"] == "scalar":
        feeds = {name: np.array(b"%d" % mark if kind == "text" else mark, object if kind == "text" else "int64") for name, kind in request["inputs"].items()}
    if request["fate"] == "poisoned":
        feeds["z"] = np.full((max(1, request["rows"]), *request["tail"]), -1.0, "float32")
    outputs = (f"{sorted(feeds)[0]}!",) if request["filter"] else None
    deadline = time.monotonic() - 1 if request["fate"] == "expired" else None
    await asyncio.sleep(request["pause"])
    task = asyncio.ensure_future(batcher.answer(feeds, outputs, deadline))
    if request["fate"] == "cancelled":
        await asyncio.sleep(0)
        task.cancel()
    try:
        found = await task
    except asyncio.CancelledError:
        return "cancelled"
    except Refusal as e:
        return {"INVALID_ARGUMENT": "poisoned", "DEADLINE_EXCEEDED": "expired"}[e.code]
    assert found.keys() == set(outputs or [f"{name}!" for name in feeds])
    for name, array in found.items():
        sent = feeds[name[:-1]]
        assert array.shape == sent.shape and array.dtype == sent.dtype and (array == sent).all()
    return "ok"


EXPECTED = {"served": {"ok"}, "scalar": {"ok"}, "poisoned": {"poisoned"}, "expired": {"expired"}, "cancelled": {"cancelled", "ok"}}


@settings(max_examples=120, deadline=None)
@given(
    st.lists(REQUEST, min_size=1, max_size=40),
    st.sampled_from([0.0, 0.0, 0.002]),
    st.sampled_from(
        [
            BatchLimits(),
            BatchLimits(rows=1, threads=4),
            BatchLimits(rows=4, sizes=(1, 2, 4)),
            BatchLimits(rows=4, split=True, threads=2),
            BatchLimits(rows=8, wait_seconds=0.002),
        ]
    ),
)
def test_every_asker_gets_exactly_its_own_rows(requests, seconds, given_limits):
    async def all_of_them():
        batcher = Batcher(Echo(seconds), limits=given_limits)
        found = await asyncio.wait_for(asyncio.gather(*(one_asker(batcher, one, mark) for mark, one in enumerate(requests))), 60)
        await asyncio.to_thread(batcher.close)
        return found

    for request, fate in zip(requests, asyncio.run(all_of_them()), strict=True):
        assert fate in EXPECTED[request["fate"]], request


def ask_together(batcher, *feeds, **more):
    """Answers, or errors, of requests that arrive at once."""

    async def gather():
        return await asyncio.gather(*(batcher.answer(one, **more) for one in feeds), return_exceptions=True)

    return asyncio.run(gather())


def floats(*values):
    return {"x": np.array(values, "float32")}


def values_of(found):
    return [str(one) if isinstance(one, Exception) else one["x!"].tolist() for one in found]


def test_a_poisoned_row_costs_few_runs_and_no_neighbour():
    echo = Echo()
    batcher = Batcher(echo)
    found = values_of(ask_together(batcher, *(floats(-1 if i == 37 else i) for i in range(64))))
    assert found[37] == "INVALID_ARGUMENT: negative"
    assert [one for i, one in enumerate(found) if i != 37] == [[float(i)] for i in range(64) if i != 37]
    assert len(echo.seen) <= 2 * 6 + 1


def test_a_slow_model_leaves_the_loop_free_and_its_queue_becomes_a_batch():
    echo, ticks = Echo(0.05), []

    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.001)

    async def main():
        batcher = Batcher(echo)
        ticker = asyncio.ensure_future(tick())
        await batcher.answer(floats(1))
        first = asyncio.ensure_future(batcher.answer(floats(1)))
        await asyncio.sleep(0.01)
        rest = await asyncio.gather(*(batcher.answer(floats(i)) for i in range(30)))
        ticker.cancel()
        return [await first, *rest]

    assert len(asyncio.run(main())) == 31
    assert [one["x"] for one in echo.seen] == [(1,), (1,), (30,)]
    assert len(ticks) > 20   # the loop went round while the model slept


def test_a_deadline_is_kept_although_the_model_is_busy():
    async def main():
        batcher = Batcher(Echo(0.3))
        slow = asyncio.ensure_future(batcher.answer(floats(1)))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(Refusal) as caught:
            await batcher.answer(floats(2), deadline=began + 0.02)
        waited = time.monotonic() - began
        await slow
        return caught.value, waited

    error, waited = asyncio.run(main())
    assert (error.code, error.message) == ("DEADLINE_EXCEEDED", "Run() timeout exceeded while waiting in batching queue")
    assert waited < 0.25


def test_the_requests_of_a_full_queue_are_refused_in_upstreams_words():
    plain = Batcher(Echo(), limits=limits("max_batch_size { value: 2 } max_enqueued_batches { value: 2 }"))
    found = values_of(ask_together(plain, *(floats(i) for i in range(6))))
    full = ("UNAVAILABLE: The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
            "max_enqueued_batches is 2")
    assert found == [[0.0], [1.0], [2.0], [3.0], full, full]
    text = "max_batch_size { value: 8 } max_execution_batch_size { value: 2 } max_enqueued_batches { value: 2 } enable_large_batch_splitting { value: true }"
    echo = Echo()
    found = values_of(ask_together(Batcher(echo, limits=limits(text)), floats(1, 2, 3), floats(4, 5), floats(6, 7, 8, 9, 10, 11, 12, 13, 14)))
    assert found[0] == [1.0, 2.0, 3.0]
    assert "full; task size is 2" in found[1] or found[1] == [4.0, 5.0]
    assert found[2] == "INVALID_ARGUMENT: Task size 9 is larger than maximum input batch size 8"
    assert all(one["x"][0] <= 2 for one in echo.seen)


def test_large_requests_are_split_and_put_together_again():
    echo = Echo()
    text = "max_batch_size { value: 100 } max_execution_batch_size { value: 4 } enable_large_batch_splitting { value: true }"
    found = ask_together(Batcher(echo, limits=limits(text)), floats(-0.0), floats(*range(11)), floats(7))
    assert values_of(found) == [[0.0], [float(i) for i in range(11)], [7.0]]
    assert [one["x"][0] for one in echo.seen] == [4, 4, 4, 1]   # the first piece joins the batch that is open


def test_allowed_sizes_are_filled_with_a_row_that_is_valid():
    echo = Echo()
    batcher = Batcher(echo, limits=limits("max_batch_size { value: 8 } allowed_batch_sizes: [4, 8]"))
    assert values_of(ask_together(batcher, floats(1), floats(2))) == [[1.0], [2.0]]
    assert echo.seen == [{"x": (4,)}]


def test_unequal_shapes_go_apart_or_are_padded_with_their_own_first_value():
    echo, asked = Echo(), [{"x": np.array([[1, 2, 3]], "float32")}, {"x": np.array([[9]], "float32")}]
    assert values_of(ask_together(Batcher(echo), *asked)) == [[[1.0, 2.0, 3.0]], [[9.0]]]
    assert len(echo.seen) == 2
    padding = Batcher(Echo(), limits=limits("pad_variable_length_inputs: true"))
    assert values_of(ask_together(padding, *asked)) == [[[1.0, 2.0, 3.0]], [[9.0, 9.0, 9.0]]]
    empty = {"x": np.zeros((1, 0), "float32")}
    found = values_of(ask_together(Batcher(Echo(), limits=limits("pad_variable_length_inputs: true")), *asked, empty))
    assert found == [[[1.0, 2.0, 3.0]], [[9.0]], [[]]]   # an empty row cannot be filled: it goes alone, and so do its neighbours


def test_upstreams_batching_refuses_what_has_no_rows():
    strict = limits("")
    for feeds, text in (
        ({}, "Batching Run() must have at least one input tensor"),
        ({"x": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "Batching Run() input tensors must have equal 0th-dimension size"),
    ):
        assert values_of(ask_together(Batcher(Echo(), limits=strict), feeds)) == [f"INVALID_ARGUMENT: {text}"]
        assert not isinstance(ask_together(Batcher(Echo()), feeds)[0], Exception)

    def total(feeds, outputs):
        return {"x!": feeds["x"].sum(keepdims=True)}

    def scalar(feeds, outputs):
        return {"x!": feeds["x"].sum()}

    found = values_of(ask_together(Batcher(total, limits=strict), floats(1), floats(2, 3)))
    assert "does not equal the sum of the 0th dimension sizes" in found[1]
    assert values_of(ask_together(Batcher(scalar, limits=strict), floats(1))) == ["FAILED_PRECONDITION: Batched output tensor has 0 dimensions"]
    assert values_of(ask_together(Batcher(scalar), floats(1), floats(2, 3))) == [1.0, 5.0]


def test_closing_lets_the_askers_finish_and_refuses_new_ones():
    async def main():
        batcher = Batcher(Echo(0.05))
        asked = [asyncio.ensure_future(batcher.answer(floats(i))) for i in range(5)]
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.01)
        with pytest.raises(Refusal, match="Session has been closed"):
            await batcher.answer(floats(9))
        await closing
        return [await one for one in asked]

    assert values_of(asyncio.run(main())) == [[float(i)] for i in range(5)]


def test_a_batcher_outlives_its_loop_but_serves_one_at_a_time():
    batcher = Batcher(Echo(0.1))
    assert values_of(ask_together(batcher, floats(1))) == [[1.0]]   # each call is a loop of its own
    assert values_of(ask_together(batcher, floats(2))) == [[2.0]]

    async def main():
        asked = asyncio.ensure_future(batcher.answer(floats(3)))
        await asyncio.sleep(0.01)
        other = await asyncio.to_thread(ask_together, batcher, floats(4))
        batcher.close()   # in the loop's thread: nothing to wait for
        return await asked, other[0]

    mine, other = asyncio.run(main())
    assert mine["x!"].tolist() == [3.0] and isinstance(other, ServingError)


# ---- models ---------------------------------------------------------------------------------------------------------


def half_plus_two(tf):
    """The fixture that the wire cases describe, and a signature with a default and one that looks at its whole batch."""
    number, texts = (lambda name: tf.TensorSpec(None, tf.float32, name)), (lambda name: tf.TensorSpec([None], tf.string, name))

    class Half(tf.Module):
        def __init__(self):
            self.a, self.b, self.c = tf.Variable(0.5), tf.Variable(2.0), tf.Variable(3.0)

        def parse(self, examples):
            return tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

        @tf.function(input_signature=[number("x")])
        def predict(self, x):
            return {"y": self.a * x + self.b}

        @tf.function(input_signature=[texts("inputs")])
        def regress(self, inputs):
            return {"outputs": self.a * self.parse(inputs) + self.b}

        @tf.function(input_signature=[texts("inputs")])
        def classify(self, inputs):
            return {"scores": self.a * self.parse(inputs) + self.b}

        @tf.function(input_signature=[number("inputs")])
        def regress3(self, inputs):
            return {"outputs": self.a * inputs + self.c}

        @tf.function(input_signature=[number("x"), number("offset")])
        def optional(self, x, offset=tf.constant(2.0)):
            return {"y": x + offset}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def centred(self, x):
            return {"y": x - tf.reduce_mean(x)}

    half = Half()
    return half, {
        "serving_default": half.predict,
        "regress_x_to_y": half.regress,
        "classify_x_to_y": half.classify,
        "regress_x2_to_y3": half.regress3,
        "optional": half.optional,
        "centred": half.centred,
    }


def tabular(keras, folder):
    """A classifier with a number and a word."""
    from mlnb.serving.export import export_model

    keras.utils.set_random_seed(0)
    inputs = {"age": keras.Input((1,), name="age", dtype="float32"), "plan": keras.Input((1,), name="plan", dtype="string")}
    words = keras.layers.StringLookup(vocabulary=["red", "grün"], output_mode="one_hot")(inputs["plan"])
    output = keras.layers.Dense(3, "softmax")(keras.layers.Concatenate()([inputs["age"] / 100, words]))
    rows = {"age": np.array([31.0, 77.0], "float32"), "plan": np.array(["red", "?"], object)}
    export_model(keras.Model(inputs, output), {}, folder, rows, task="multiclass", classes=["a", "b", "c"])


def add_twin(tf, folder):
    """What an export with an accepted ONNX twin leaves in the folder."""
    from tf2onnx import optimizer, tf_loader, tfonnx

    graph, inputs, outputs, tables, names = tf_loader.from_saved_model(
        str(folder), None, None, tag=["serve"], signatures=["serving_default"], return_initialized_tables=True, return_tensors_to_rename=True
    )
    with tf.Graph().as_default() as place:
        tf.import_graph_def(graph, name="")
        made = tfonnx.process_tf_graph(
            place, opset=18, input_names=inputs, output_names=outputs, initialized_tables=tables, tensors_to_rename=names
        )
    (folder / "assets.extra/onnx").mkdir(parents=True)
    (folder / "assets.extra/onnx/model.onnx").write_bytes(optimizer.optimize_graph(made).make_model("m").SerializeToString())
    facts = {"format": 1, "signature": "serving_default", "accepted": True, "inputs": {names[one]: names[one] for one in inputs}}
    facts["outputs"] = {names[one]: names[one] for one in outputs}
    (folder / "assets.extra/onnx/twin.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with the models "half" and "tabular", the latter with an ONNX twin."""
    from mlnb.training.quiet import import_quietly, quiet

    tf = import_quietly("tensorflow")
    import keras

    folder = tmp_path_factory.mktemp("models")
    with quiet():
        half, doors = half_plus_two(tf)
        tf.saved_model.save(half, str(folder / "half"), doors)
        tabular(keras, folder / "tabular")
        add_twin(tf, folder / "tabular")
    return folder


@pytest.fixture(scope="module")
def half(models):
    from mlnb.serving.servable import load_servable

    servable = load_servable(models / "half")
    yield servable
    servable.close()


needs_tensorflow = pytest.mark.tensorflow


def copied(models, name, tmp_path):
    """A copy of a model that a test may damage."""
    shutil.copytree(models / name, tmp_path / name)
    return tmp_path / name


@needs_tensorflow
def test_the_wire_cases_signatures_answer(half):
    from mlnb.serving.export import serialize_examples

    x = np.array([[1, 2], [3, 4]], "float32")
    assert half.run("serving_default", {"x": x})["y"].tolist() == [[2.5, 3.0], [3.5, 4.0]]
    assert half.run("serving_default", {"x": np.array(2, "float32")})["y"].shape == ()
    assert half.run("serving_default", {"x": np.zeros((2, 0), "float32")})["y"].shape == (2, 0)
    examples = np.array(serialize_examples({"x": np.array([80.0, 2.0], "float32")}), object)
    assert half.run("regress_x_to_y", {"inputs": examples})["outputs"].tolist() == [[42.0], [3.0]]
    assert half.run("classify_x_to_y", {"inputs": examples})["scores"].tolist() == [[42.0], [3.0]]
    assert half.run("optional", {"x": x})["y"].tolist() == (x + 2).tolist()
    assert half.run("optional", {"x": x, "offset": np.array(1, "float32")})["y"].tolist() == (x + 1).tolist()


@needs_tensorflow
@pytest.mark.parametrize(
    ("signature", "feeds", "outputs", "text"),
    [
        ("nope", {"x": 1.0}, None, 'FAILED_PRECONDITION: Serving signature key "nope" not found.'),
        ("serving_default", {}, None, "INVALID_ARGUMENT: input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}."),
        ("serving_default", {"x": 1.0, "z": 1.0}, None, "2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}."),
        ("serving_default", {"z": 1.0}, None, "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value provided. Inputs expected to be in the request {z}, or default input alias set: "),
        ("optional", {"offset": 1.0}, None, "Signature input alias: x(feed name: optional_x:0) not found"),
        ("optional", {"x": 1.0, "z": 1.0}, None, "Inputs contains invalid name. Used request inputs: x, request input: x,z"),
        ("optional", {"x": 1.0, "offset": 1.0, "z": 1.0}, None, "input size does not match signature: 3!=2"),
        ("serving_default", {"x": b"any_key"}, ["y"], "INVALID_ARGUMENT: Expects arg[0] to be float but string is provided"),
        ("serving_default", {"x": 2}, None, "Expects arg[0] to be float but int64 is provided"),
        ("serving_default", {"x": 1.0}, ["output_filter"], "output tensor alias not found in signature: output_filter Outputs expected to be in the set {y}."),
        ("serving_default", {"x": 1.0}, ["y", "y"], "INVALID_ARGUMENT: duplicate output tensor alias: y"),
        ("regress_x_to_y", {"inputs": b"no example"}, None, "INVALID_ARGUMENT: "),
    ],
)
def test_upstreams_refusals(half, signature, feeds, outputs, text):
    dtypes = {float: "float32", int: "int64", bytes: object}
    feeds = {name: np.array([value], dtypes[type(value)]) for name, value in feeds.items()}
    outputs = outputs and tuple(outputs)
    assert text in refused(half.run, signature, feeds, outputs)
    assert text in refused(lambda: asyncio.run(half.answer(signature, feeds, outputs)))


@needs_tensorflow
def test_the_doors_differ_in_their_words(half):
    assert refused(half.check, "nope", ["x"], "rest") == 'INVALID_ARGUMENT: Serving signature name: "nope" not found in signature def'
    assert refused(half.check, "nope", ["x"], "grpc") == 'FAILED_PRECONDITION: Serving signature key "nope" not found.'
    assert half.check("", ["x"]).outputs.keys() == {"y"}


@needs_tensorflow
def test_only_signatures_with_independent_rows_are_batched(half):
    apart = {name: one["apart"] for name, one in half.facts()["signatures"].items()}
    assert apart["centred"] == "rows are answered differently in company"
    assert "open number of rows" in apart["serving_default"]
    found = asyncio.run(_gather(half, "centred", [floats(1, 3)] * 8))
    assert all(one["y"].tolist() == [-1.0, 1.0] for one in found)
    json.dumps(half.facts())


async def _gather(servable, signature, feeds):
    return await asyncio.gather(*(servable.answer(signature, one) for one in feeds), return_exceptions=True)


@needs_tensorflow
def test_signatures_are_read_without_tensorflow_and_are_those_of_tensorflow(half, models):
    from tensorflow.core.protobuf import saved_model_pb2

    true = saved_model_pb2.SavedModel.FromString((models / "half/saved_model.pb").read_bytes()).meta_graphs[0].signature_def
    found = SignatureDefMap.FromString(half.signature_def_map()).signature_def
    assert {name: one.SerializeToString(deterministic=True) for name, one in found.items()} == {
        name: one.SerializeToString(deterministic=True) for name, one in true.items()
    }


@needs_tensorflow
def test_twin_and_session_agree_and_what_is_unusual_goes_to_the_session(models):
    from mlnb.serving.servable import ServableOptions, load_servable

    both, alone = load_servable(models / "tabular"), load_servable(models / "tabular", ServableOptions(twin=False))
    assert [both.facts()["runtime"], alone.facts()["runtime"], alone.facts()["no_twin"]] == ["onnx", "tensorflow", "switched off"]
    assert all(one["batched"] for one in both.facts()["signatures"].values())
    ages, plans = [31, np.nan, 1e30, -5, 77], [b"red", "grün".encode(), b"never", b"", b"b'red'"]
    feeds = {"age": np.array(ages, "float32"), "plan": np.array(plans, object)}
    before = both.twin_answers
    np.testing.assert_allclose(both.run("serving_default", feeds)["scores"], alone.run("serving_default", feeds)["scores"], atol=1e-5)
    assert both.twin_answers == before + 1
    unusual = [feeds | {"plan": np.array([b"\xff"] * 5, object)}, {name: array[:0] for name, array in feeds.items()}]
    for one in unusual:
        np.testing.assert_array_equal(both.run("serving_default", one)["scores"], alone.run("serving_default", one)["scores"])
    for one in (feeds | {"age": feeds["age"][:2]}, feeds | {"age": feeds["age"].astype("float64")}, {"age": feeds["age"]}):
        assert refused(both.run, "serving_default", one) == refused(alone.run, "serving_default", one)
    assert both.twin_answers == before + 1
    examples = np.array([b""], object)
    assert both.run("classify", {"inputs": examples})["classes"].tolist() == [[b"a", b"b", b"c"]]
    rows = [{name: array[i : i + 1] for name, array in feeds.items()} for i in (0, 2, 3, 4)] * 10
    expected = [alone.run("serving_default", one)["scores"] for one in rows]
    for found, one in zip(asyncio.run(_gather(both, "serving_default", rows)), expected, strict=True):
        np.testing.assert_allclose(found["scores"], one, atol=1e-5)
    one = both.facts()["signatures"]["serving_default"]
    assert one["requests"] == 40 and one["executions"] < 10
    both.close()
    alone.close()


@needs_tensorflow
def test_many_threads_and_a_close_in_the_middle(models):
    from mlnb.serving.servable import load_servable

    servable = load_servable(models / "half")
    served, errors, wrong = [], [], []

    def ask(thread):
        for i in range(100_000):
            try:
                value = servable.run("serving_default", {"x": np.full(3, thread * 1000 + i % 1000, "float32")})["y"]
            except Refusal as e:
                errors.append(str(e))
                return
            if value.tolist() != [(thread * 1000 + i % 1000) / 2 + 2] * 3:
                wrong.append(value)
            served.append(1)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for one in threads:
        one.start()
    while len(served) < 500:
        time.sleep(0.001)
    servable.close()
    for one in threads:
        one.join(30)
    assert not wrong and errors == ["CANCELLED: Session has been closed."] * 4


@needs_tensorflow
def test_closing_a_servable_lets_its_askers_finish(models):
    from mlnb.serving.servable import load_servable

    servable = load_servable(models / "half")

    async def main():
        asked = [asyncio.ensure_future(servable.answer("serving_default", floats(i))) for i in range(50)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(servable.close))
        found = await asyncio.gather(*asked)
        await closing
        with pytest.raises(Refusal, match="Session has been closed"):
            await servable.answer("serving_default", floats(1))
        return [one["y"].tolist() for one in found]

    assert asyncio.run(main()) == [[i / 2 + 2] for i in range(50)]


# ---- warm-up and lifecycle ------------------------------------------------------------------------------------------


def record(kind="predict", signature="", **more):
    """A serialized warm-up record."""
    log = PredictionLog()
    request = getattr(log, f"{kind}_log").request
    if kind == "predict":
        request.model_spec.signature_name = signature
        request.inputs["x"].CopyFrom(to_tensor(more.get("x", np.array([1, 2], "float32"))))
        return log.SerializeToString()
    specs = [request.tasks.add().model_spec for _ in more["tasks"]] if kind == "multi_inference" else [request.model_spec]
    for spec, name in zip(specs, more.get("tasks", [signature]), strict=True):
        spec.signature_name = name
    example = request.input.example_list_with_context.examples.add()
    if more.get("feature", True):
        request.input.example_list_with_context.context.features.feature["x"].float_list.value.append(2.0)
    else:
        example.features.feature["other"].float_list.value.append(2.0)
    return log.SerializeToString()


@pytest.fixture
def warm(models, tmp_path):
    """Load a copy of "half" with such warm-up records."""
    from mlnb.serving.servable import load_servable
    from mlnb.training.quiet import import_quietly

    tf = import_quietly("tensorflow")
    folder = copied(models, "half", tmp_path)
    (folder / "assets.extra").mkdir()
    path = folder / "assets.extra/tf_serving_warmup_requests"

    def load(*records, raw=None):
        if raw is None:
            with tf.io.TFRecordWriter(str(path)) as writer:
                for one in records:
                    writer.write(one)
        else:
            path.write_bytes(raw(path.read_bytes()) if callable(raw) else raw)
        servable = load_servable(folder)
        servable.close()
        return servable.facts

    return load


@needs_tensorflow
def test_every_kind_of_record_is_replayed(warm, models, tmp_path):
    from mlnb.serving.servable import load_servable

    records = [record(), record("classify", "classify_x_to_y"), record("regress", "regress_x_to_y"), b"",
               record("multi_inference", tasks=["regress_x_to_y", "classify_x_to_y"])]
    warm(*records)
    servable = load_servable(tmp_path / "half")
    assert servable.facts()["warm_up_records"] == 5
    servable.close()
    warm(*[record()] * 1000)


@needs_tensorflow
def test_bad_warm_up_files_fail_the_load_in_upstreams_words(warm):
    assert "INVALID_ARGUMENT: Number of warmup records exceeds the maximum (1000) at " in refused(warm, *[b""] * 1001)
    assert refused(warm, raw=b"these are no records whatever the name of the file says").startswith("DATA_LOSS: corrupted record at 0")
    assert refused(warm, raw=b"x" * 12).endswith(". Please verify your warmup data is in TFRecord format.")
    warm(raw=b"short")   # TensorFlow's reader, which is upstream's too, takes less than a header for the end of the file
    assert "INVALID_ARGUMENT: Failed to parse warmup record: " in refused(warm, b"\x12\xff no log")
    warm(record())
    assert "DATA_LOSS: " in refused(warm, raw=lambda data: data[:-3])
    assert refused(warm, record(signature="nope")) == 'FAILED_PRECONDITION: Serving signature key "nope" not found.'
    assert "Expects arg[0] to be float" in refused(warm, record(), record(x=np.array([1])))
    assert refused(warm, record("regress", "regress_x_to_y", feature=False)).startswith("INVALID_ARGUMENT: ")
    stream = PredictionLog()
    stream.session_run_log.SetInParent()
    assert refused(warm, stream.SerializeToString()).startswith("UNIMPLEMENTED: Unsupported log_type for warmup: ")
    empty = PredictionLog()
    empty.regress_log.request.model_spec.signature_name = "regress_x_to_y"
    assert refused(warm, empty.SerializeToString()) == "INVALID_ARGUMENT: Input is empty."


@needs_tensorflow
def test_the_wire_cases_about_warm_up(warm):
    if not CASES.is_file():
        pytest.skip("no ../shared/conformance/tfserving.json beside the checkout")
    cases = [one for one in json.loads(CASES.read_text())["cases"] if one["id"].startswith("w-")]
    assert len(cases) >= 3
    for case in cases:
        given_file, expect = case["warmup"] or {}, case["expect"]
        load = (lambda: warm(raw=b"x" * 100)) if "not_tfrecord" in given_file else (lambda n=given_file.get("records", 0): warm(*[record()] * n))
        if expect["code"] == "OK":
            load()
            continue
        text = refused(load)
        assert text.startswith(expect["code"]) and expect.get("error_contains", "") in text, case["id"]


@needs_tensorflow
def test_models_that_cannot_be_loaded_say_why(models, tmp_path):
    from mlnb.serving.servable import ServableOptions, load_servable

    assert refused(load_servable, tmp_path / "nowhere").startswith("NOT_FOUND: Could not find SavedModel .pb or .pbtxt at supplied export directory path")
    assert "matching supplied tags: { gpu }" in refused(load_servable, models / "half", ServableOptions(tags=("gpu",)))
    folder = copied(models, "half", tmp_path)
    (folder / "variables/variables.index").unlink()
    assert refused(load_servable, folder).startswith("INVALID_ARGUMENT: The passed save_path is not a valid checkpoint")
    shutil.copy(models / "half/variables/variables.index", folder / "variables")
    (folder / "variables/variables.data-00000-of-00001").write_bytes(b"")
    assert refused(load_servable, folder).split(":")[0] in ("DATA_LOSS", "OUT_OF_RANGE", "INTERNAL")
    (folder / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    assert refused(load_servable, folder).startswith("DATA_LOSS: Can't parse ")
    bad = BatchingParameters()
    bad.max_batch_size.value = 8
    bad.allowed_batch_sizes.extend([2, 4])
    assert "last entry was 4; expected 8" in refused(load_servable, models / "half", ServableOptions(batching=bad))


@needs_tensorflow
def test_batching_parameters_in_the_models_folder_hold_for_it_alone(models, tmp_path):
    from mlnb.serving.servable import ServableOptions, load_servable

    folder, options = copied(models, "tabular", tmp_path), ServableOptions(per_model_batching=True, batching=BatchingParameters())
    (folder / "batching_params.pbtxt").write_text("max_batch_size { value: 1 }")
    servable = load_servable(folder, options)
    feeds = {"age": np.zeros(2, "float32"), "plan": np.array([b"red"] * 2, object)}
    assert "Task size 2 is larger than maximum input batch size 1" in refused(lambda: asyncio.run(servable.answer("serving_default", feeds)))
    servable.close()
    (folder / "batching_params.pbtxt").write_text("max_batch: 1")
    assert refused(load_servable, folder, options).startswith("INVALID_ARGUMENT: Error parsing text-format tensorflow.serving.BatchingParameters")


def resident_mb():
    """Memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@needs_tensorflow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc to see this process's memory")
def test_reloads_leave_nothing_behind(models):
    from mlnb.serving.servable import load_servable

    gc.collect()
    gc.freeze()
    try:
        sizes = []
        for _ in range(36):
            servable = load_servable(models / "tabular")
            servable.run("serving_default", {"age": np.zeros(2, "float32"), "plan": np.array([b"red"] * 2, object)})
            servable.close()
            sizes.append(resident_mb())
    finally:
        gc.unfreeze()
    assert sizes[-1] - sizes[11] < 3, [round(one) for one in sizes[::6]]
