"""What goes over the wire, against TensorFlow Serving's own cases, its stubs, TensorFlow, and bytes nobody would send."""
import json
import math
import re
import struct
import subprocess
import sys

import house
import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlnb.serving import json_read, message_fields, messages, tensors
from mlnb.serving.codes import CODES, Refusal
from mlnb.serving.json_examples import read_examples
from mlnb.serving.json_read import parse_body, read_tensors, signature_of
from mlnb.serving.json_scan import JsonError, quote, scan, show
from mlnb.serving.json_write import write_classifications, write_error, write_predictions, write_regressions
from mlnb.serving.paths import Route, in_api, read_path
from mlnb.serving.tensors import DTYPES, dtype_name, find_dtype, to_array, to_tensor

CASES_FILE = house.ROOT.parent/"shared/conformance/tfserving.json"
CASES = json.loads(CASES_FILE.read_text())["cases"] if CASES_FILE.is_file() else []
LAYERS = {"predict_json": 34, "response_json": 14, "examples_json": 10, "results_json": 5, "url": 13}
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def layer(name):
    """Parameters: the cases of a layer by their id; one skipped case where the file is absent."""
    cases = [pytest.param(case, id=case["id"]) for case in CASES if case["layer"] == name]
    return cases or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"{CASES_FILE} is not here"))]


def array_of(tensor):
    """A tensor of the conformance file."""
    values = [WORDS.get(value, value) if tensor["dtype"] != "DT_STRING" else value.encode() for value in tensor["values"]]
    array = np.empty(len(values), DTYPES[tensor["dtype"]])
    array[:] = values
    return array.reshape(tensor["shape"])


def body_of(case):
    """A case's body, with its brackets as deep as upstream has them."""
    deep = case.get("repeat_brackets")
    if not deep: return case["body"].encode()
    nest = "[[[[[]]]]]"
    assert case["body"].count(nest) == 1
    return case["body"].replace(nest, "["*deep + "]"*deep).encode()


def refused(expected, action):
    """Run something that must be refused as the case says."""
    with pytest.raises(Refusal) as caught: action()
    assert caught.value.code == expected["code"]
    assert expected["error_contains"] in caught.value.message


def compare_body(case, body):
    """The answer is what the case expects, numbers by value or by their text."""
    texts = case.get("compare") == "numbers_as_strings"
    how = {"parse_float": str, "parse_int": str, "parse_constant": str} if texts else {}
    assert json.loads(body, **how) == json.loads(case["expect"]["body"], **how)


# --- upstream's cases ------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not CASES, reason=f"{CASES_FILE} is not here")
def test_the_conformance_file_holds_what_we_replay():
    """No layer is silently empty."""
    assert {name: sum(case["layer"] == name for case in CASES) for name in LAYERS} == LAYERS


@pytest.mark.parametrize("case", layer("predict_json"))
def test_predict_request(case):
    """Bodies of predict requests become upstream's tensors, or its refusals."""
    def read():
        document = parse_body(body_of(case))
        return signature_of(document), *read_tensors(document, case["signature_inputs"])
    if "code" in case["expect"]:
        refused(case["expect"], read)
        return
    name, form, arrays = read()
    assert (form, name) == (case["expect"]["format"], case.get("expect_signature", ""))
    assert set(arrays) == set(case["expect"]["tensors"])
    for alias, expected in case["expect"]["tensors"].items():
        array = arrays[alias]
        assert (dtype_name(array), list(array.shape)) == (expected["dtype"], expected["shape"])
        np.testing.assert_array_equal(array, array_of(expected))


@pytest.mark.parametrize("case", layer("response_json"))
def test_predict_answer(case):
    """Outputs become upstream's JSON, or its refusals."""
    outputs = {alias: array_of(tensor) for alias, tensor in case["outputs"].items()}
    if "code" in case["expect"]: refused(case["expect"], lambda: write_predictions(outputs, case["format"]))
    else: compare_body(case, write_predictions(outputs, case["format"]))


def features_of(data):
    """An example as the conformance file writes it."""
    found = {}
    for name, feature in messages.Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value
        found[name] = {kind.removesuffix("_list"): [v.decode() if kind == "bytes_list" else v for v in values]}
    return found


@pytest.mark.parametrize("case", layer("examples_json"))
def test_examples(case):
    """Examples get upstream's types; the context is merged into each."""
    def read():
        document = parse_body(body_of(case))
        return signature_of(document), read_examples(document)
    if "code" in case["expect"]:
        refused(case["expect"], read)
        return
    name, examples = read()
    assert name == case["expect"].get("signature", "")
    expected = [case["expect"].get("context", {}) | features for features in case["expect"]["examples"]]
    for features in expected:
        for kinds in features.values():
            if "float" in kinds: kinds["float"] = [WORDS.get(value, value) for value in kinds["float"]]
    assert repr([dict(sorted(features_of(data).items())) for data in examples]) == \
        repr([dict(sorted(features.items())) for features in expected])


@pytest.mark.parametrize("case", layer("results_json"))
def test_results(case):
    """Classifications, regressions and errors are written as upstream does."""
    def write():
        if case["kind"] == "error": return write_error(case["result"])
        if case["kind"] == "regression": return write_regressions(np.array([WORDS.get(v, v) for v in case["result"]], "f4"))
        labels, scores = ([[pair[at] for pair in row] for row in case["result"]] for at in (0, 1))
        return write_classifications(np.array(labels, object), np.array(scores, "f4"))
    if "code" in case["expect"]: refused(case["expect"], write)
    else: compare_body(case, write())


@pytest.mark.parametrize("case", layer("url"))
def test_path(case):
    """Paths mean what they mean upstream."""
    expected = case["expect"]
    if not expected["parsed"]:
        with pytest.raises(Refusal, match="Malformed request"): read_path(case["method"], case["path"])
        return
    action = expected.get("verb") or expected.get("subresource") or "status"
    assert read_path(case["method"], case["path"]) == \
        Route(action, expected["model"], expected.get("version"), expected.get("label"))


# --- JSON ------------------------------------------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                      max_leaves=12)
B64 = st.fixed_dictionaries({"b64": st.text("aZ09+/= *", max_size=6)})
KINDS = st.sampled_from([name for name, dtype in DTYPES.items() if not dtype.names])
CELLS = st.recursive(PLAIN | B64 | st.integers(-300, 300), lambda inner: st.lists(inner, max_size=3), max_leaves=6)
NAMED = st.dictionaries(st.sampled_from("ab"), CELLS, max_size=2)
DOCUMENTS = st.dictionaries(st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]),
                            st.lists(CELLS | NAMED, max_size=3) | CELLS | NAMED, max_size=3)
INPUTS = st.dictionaries(st.sampled_from("ab"), KINDS, min_size=1, max_size=2)


def read_all(document, inputs):
    """Every reader of a document; only refusals may come out."""
    for read in (signature_of, lambda d: read_tensors(d, inputs), read_examples):
        try: read(document)
        except Refusal as refusal: assert refusal.code in CODES and refusal.message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,.eE+-0123456789nulltruefalsNaIity\\/bx \n', max_size=60).map(str.encode))
@example(b'{"instances":[1e400]}')
@example(b"\xef\xbb\xbf\x00")
@example(b'{"\xed\xa0\x80":"\\ud800\\udc00\\udc00"}')
@example(b'{"a":' + b"9"*5000 + b"}")
@example(b"-")
def test_any_bytes_are_read_or_refused(body):
    """Whatever bytes arrive, the reader gives an object or a refusal."""
    try: document = parse_body(body)
    except Refusal as refusal: assert refusal.code == "INVALID_ARGUMENT"
    else: read_all(document, {"a": "DT_FLOAT"})


@settings(max_examples=400, deadline=None)
@given(DOCUMENTS, INPUTS)
def test_any_document_is_read_or_refused(document, inputs):
    """Whatever values stand in a document, tensors, examples or a refusal come out; and no answer depends on the way taken."""
    document = parse_body(json.dumps(document).encode())
    read_all(document, inputs)

    def outcome():
        try: form, arrays = read_tensors(document, inputs)
        except Refusal as refusal: return str(refusal)
        return form, {alias: (array.dtype, array.shape, repr(array.tolist())) for alias, array in arrays.items()}
    fast, kept = outcome(), json_read._read_fast
    try:
        json_read._read_fast = lambda values, kind: None
        assert outcome() == fast
    finally: json_read._read_fast = kept


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_all_readers_of_json_agree(value, ascii_only, indent):
    """orjson, Python's reader and the scanner see the same document."""
    text = json.dumps({"a": value}, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    slow = scan(text)
    assert repr(slow) == repr(parse_body(text)) == repr(parse_body(text + b"}"))
    show(slow), quote(text.decode("utf-8", "replace"))


@settings(max_examples=200, deadline=None)
@given(st.text('[]{}:,"ab1.e-NI \\', max_size=25).map('{"a":'.__add__))
def test_the_scanner_refuses_what_python_refuses(text):
    """On standard JSON the scanner is no more liberal than Python's reader, except for what follows the document."""
    try: expected = json.JSONDecoder().raw_decode(text)[0]
    except ValueError: expected = JsonError
    try: found = scan(text.encode())
    except JsonError as error:
        assert 0 <= int(str(error).rpartition(" ")[2]) <= len(text)
        found = JsonError
    assert repr(found) == repr(expected) or "Inf" in text


def test_brackets_without_end_anywhere():
    """Documents deeper than any stack are read or refused in every place; the cases above have upstream's half a million."""
    deep, objects = b"["*50_000 + b"]"*50_000, b'{"a":'*50_000 + b"1" + b"}"*50_000
    for body in (b'{"instances": %b}', b'{"inputs": %b}', b'{"inputs": {"a": %b}}', b'{"instances": [{"a": %b}]}', b'{"examples": [%b]}',
                 b'{"examples": [{"a": %b}]}', b'{"examples": %b}', b'{"context": %b}', b'{"signature_name": %b}'):
        for nest in (deep, objects): read_all(parse_body(body.replace(b"%b", nest)), {"a": "DT_STRING"})
    with pytest.raises(Refusal, match="Is not object"): parse_body(deep)


def test_a_row_with_more_dimensions_than_an_array_has_is_refused():
    """65 dimensions are legal JSON and no array."""
    for leaf, kind in ((b"1", "DT_INT32"), (b'{"b64": ""}', "DT_STRING")):
        for depth in (63, 64, 65, 300):
            document = parse_body(b'{"instances": [' + b"["*depth + leaf + b"]"*depth + b"]}")
            if depth == 63: assert read_tensors(document, {"a": kind})[1]["a"].ndim == 64
            else:
                with pytest.raises(Refusal, match="tensor parsing error"): read_tensors(document, {"a": kind})


# --- answers ---------------------------------------------------------------------------------------------------------

def arrays(name):
    """Arrays of up to three dimensions of a type that JSON can carry both ways."""
    dtype = DTYPES[name]
    if name == "DT_STRING": values = st.binary(max_size=6)
    elif dtype.kind == "f": values = st.floats(width=8*dtype.itemsize)
    elif dtype.kind == "b": values = st.booleans()
    else: values = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))

    def build(shape, data):
        array = np.empty(math.prod(shape), dtype)
        array[:] = [data.draw(values) for _ in range(math.prod(shape))]
        return array.reshape(shape)
    return st.builds(build, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([name for name, dtype in DTYPES.items()
                        if not dtype.names and name not in ("DT_HALF", "DT_COMPLEX64", "DT_COMPLEX128", "DT_UINT16")]),
       st.sampled_from(["row", "col"]), st.sampled_from(["a", "a_bytes"]), st.integers(1, 2), st.data())
def test_what_is_written_is_read_again(name, form, alias, outputs, data):
    """An answer, sent back as a request, gives the same arrays; NaN, infinities and odd bytes included."""
    array = data.draw(arrays(name))
    sent = dict.fromkeys([alias, "b"][:outputs], array)
    body = write_predictions(sent, form)
    again = body.replace(b'"predictions"', b'"instances"', 1).replace(b'"outputs"', b'"inputs"', 1)
    found_form, found = read_tensors(parse_body(again), dict.fromkeys(sent, name))
    assert found_form == form
    for got in found.values():
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got, array)


@settings(max_examples=500)
@given(st.floats(width=32))
def test_floats_have_upstreams_digits(value):
    """At most nine digits, six if six will do, and always the look of a float."""
    text = json.loads(write_regressions(np.array([value], "f4")), parse_float=str, parse_int=str, parse_constant=str)["results"][0]
    if not math.isfinite(value):
        assert WORDS[text] == value or math.isnan(value)
        return
    digits = re.sub(r"e.*|[-.]", "", text.removesuffix(".0")).lstrip("0")
    six = np.float32(f"{value:.6g}") == np.float32(value)
    assert np.float32(text) == np.float32(value)
    assert len(digits) <= (6 if six else 9) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]{2})?", text) and ("." in text or "e" in text)


# --- tensors ---------------------------------------------------------------------------------------------------------

@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
@example(messages.TensorProto(dtype=7, tensor_content=b"\xff"*9 + b"\x7f", tensor_shape={"dim": [{"size": 2**62}]}).SerializeToString())
@example(messages.TensorProto(dtype=1, tensor_shape={"dim": [{"size": 0}, {"size": 2**62}]}).SerializeToString())
@example(messages.TensorProto(dtype=1, tensor_shape={"dim": [{"size": 2**62}]*3}).SerializeToString())
@example(messages.TensorProto(dtype=1, tensor_shape={"dim": [{"size": 1}]*65}).SerializeToString())
@example(messages.TensorProto(dtype=101, float_val=[1]).SerializeToString())
@example(messages.TensorProto(dtype=8, scomplex_val=[1]).SerializeToString())
def test_any_tensor_is_an_array_or_refused(data):
    """Whatever bytes pass for a tensor, an array or a refusal comes out, and no gigabytes."""
    try: tensor = messages.TensorProto.FromString(data)
    except DecodeError: return
    try: array = to_array(tensor, "a", most_bytes=2**20)
    except Refusal as refusal: assert refusal.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    else: assert list(array.shape) == [dim.size for dim in tensor.tensor_shape.dim]


def test_unknown_fields_do_not_hide_the_values():
    """A long list of floats is found also in a tensor with fields of tomorrow."""
    values = np.arange(500, dtype="f4")
    for unknown in (b"\xfd\x7f\x00\x00\x00\x00", b"\xf8\x7f\x01", b"\xfa\x7f\x02ab", b"\xf9\x7f" + b"\x00"*8):
        data = to_tensor(values).SerializeToString()
        for whole in (unknown + data, data + unknown):
            np.testing.assert_array_equal(to_array(messages.TensorProto.FromString(whole)), values)


def sample(name):
    """An array of a type, in every type the same small numbers."""
    dtype = find_dtype(name)
    if name == "DT_STRING": return np.array([[b"a", b"", b"c"], [b"\xff\x00", b"e", "é".encode()]], object)
    plain = np.array([[0, 1, 1], [1, 0, 1]])
    return plain.astype(dtype[0]).view(dtype).reshape(plain.shape) if dtype.names else plain.astype(dtype)


SHORT = [name for name in message_fields.DATA_TYPES if name.removeprefix("DT_") in tensors._SHORT]
ALL_TYPES = [*DTYPES, *SHORT]


@pytest.mark.parametrize("name", ALL_TYPES)
@pytest.mark.parametrize("content", [False, True])
def test_every_type_goes_over_the_wire_and_back(name, content):
    """The same bits, by typed field and as raw memory; few values and many."""
    for array in (sample(name), np.tile(sample(name), 40), sample(name)[:0], sample(name)[0, 0:1].reshape(())):
        tensor = messages.TensorProto.FromString(to_tensor(array, content).SerializeToString())
        back = to_array(tensor)
        assert (back.dtype, back.shape, dtype_name(back)) == (array.dtype, array.shape, name)
        assert back.tolist() == array.tolist()


# --- against TensorFlow and the official stubs ---------------------------------------------------------------------------

STUBS = ["classification", "get_model_metadata", "get_model_status", "inference", "input", "logging", "model", "model_management",
         "predict", "prediction_log", "prediction_service", "model_service", "regression", "session_service", "status"]
BEYOND_THE_WHEEL = {   # added upstream after 2.19, or never part of the wheel: read in the .proto files
    "fields": {"tensorflow.serving.PredictRequest.RequestOptions.return_all_stoptokens",
               "tensorflow.serving.PredictRequest.RequestOptions.max_cache_length",
               "tensorflow.serving.SamplingConfig.per_task_sampling_configs"},
    "messages": {f"tensorflow.serving.{name}" for name in ("PerTaskSamplingConfig", "PrometheusConfig", "MonitoringConfig", "SSLConfig",
                                                           "PlatformConfig", "PlatformConfigMap", "BatchingParameters")},
    "values": {"tensorflow.serving.PredictStreamedOptions.RequestState": {("CANCEL", 3)}}}
LEFT_OUT = {"tensorflow.MetaGraphDef": {"graph_def", "saver_def", "collection_def", "object_graph_def"},
            "tensorflow.MetaGraphDef.MetaInfoDef": {"stripped_op_list", "any_info", "function_aliases"},
            "tensorflow.TypeSpecProto": {"type_state"}, "tensorflow.serving.SessionRunRequest": {"options"},
            "tensorflow.serving.SessionRunResponse": {"metadata"}}
TABLES = {"tensorflow": message_fields.TENSORFLOW, "tensorflow.serving": message_fields.SERVING | message_fields.CONFIG}
NAMES = [f"{package}.{name}" for package, table in TABLES.items() for name in table]


@pytest.fixture(scope="module")
def official():
    """The pool of TensorFlow and tensorflow-serving-api, in this very process."""
    import importlib

    from google.protobuf import descriptor_pool

    from mlnb.training.quiet import import_quietly
    import_quietly("tensorflow")
    importlib.import_module("tensorflow.core.protobuf.saved_model_pb2")
    for name in STUBS:
        try: importlib.import_module(f"tensorflow_serving.apis.{name}_pb2")
        except AttributeError: pass   # 2.19.1 generates service modules that protobuf 6 cannot finish; their descriptors are in
    return descriptor_pool.Default()


def rows(descriptor):
    """All that the wire and JSON know about the fields of a message."""
    found = {}
    for field in descriptor.fields:
        kind = field.message_type or field.enum_type
        found[field.name] = (field.number, field.type, field.is_repeated, field.is_packed, field.has_presence,
                             kind.full_name if kind else "", field.containing_oneof.name if field.containing_oneof else "")
    return found


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_upstreams(official, name):
    """Name, number, type, label, oneof and packing of every field, and no field is missing unknowingly."""
    ours = messages.POOL.FindMessageTypeByName(name)
    if name in BEYOND_THE_WHEEL["messages"]:
        with pytest.raises(KeyError): official.FindMessageTypeByName(name)
        return
    theirs = rows(official.FindMessageTypeByName(name))
    newer = {field for field in rows(ours) if f"{name}.{field}" in BEYOND_THE_WHEEL["fields"]}
    assert {field: row for field, row in rows(ours).items() if field not in newer} == \
        {field: row for field, row in theirs.items() if field not in LEFT_OUT.get(name, ())}
    assert not newer & set(theirs) and LEFT_OUT.get(name, set()) <= set(theirs)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [name for name in message_fields.ENUMS if not name.startswith("grpc")])
def test_every_enumeration_is_upstreams(official, name):
    """Names and numbers of every enumeration."""
    theirs = {(value.name, value.number) for value in official.FindEnumTypeByName(name).values}
    assert set(message_fields.ENUMS[name].items()) == theirs | BEYOND_THE_WHEEL["values"].get(name, set())


@pytest.mark.tensorflow
def test_the_services_are_upstreams(official):
    """Methods with their request and answer; SessionService is left out on purpose."""
    for service in ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
        methods = official.FindServiceByName(service).methods
        assert {method.name: (method.input_type.full_name, method.output_type.full_name) for method in methods} == \
            {name: tuple(kind.DESCRIPTOR.full_name for kind in pair) for name, pair in messages.SERVICES[service].items()}


def fill(message, depth=4):
    """Put something into every field, a few levels down."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type and (not depth or field.message_type.full_name == "google.protobuf.Any"): continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            if value.message_type:
                if value.message_type.full_name != "google.protobuf.Any": fill(getattr(message, field.name)["é"], depth - 1)
            else: getattr(message, field.name)["é"] = 7
        elif field.is_repeated:
            if field.message_type: fill(getattr(message, field.name).add(), depth - 1)
            else: getattr(message, field.name).extend([value_of(field), value_of(field)])
        elif field.message_type:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), depth - 1)
        else: setattr(message, field.name, value_of(field))
    return message


def value_of(field):
    """A value that is not the default."""
    kinds = {field.CPPTYPE_STRING: b"\xc3\xa9" if field.type == field.TYPE_BYTES else "é", field.CPPTYPE_BOOL: True,
             field.CPPTYPE_FLOAT: 1.5, field.CPPTYPE_DOUBLE: 1e300}
    if field.enum_type: return field.enum_type.values[1].number
    return kinds.get(field.cpp_type, 2**31 - 1)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in BEYOND_THE_WHEEL["messages"]])
def test_bytes_pass_between_both_sides(official, name):
    """A full message of ours, read and written by the official class, is the same message; so it is as text."""
    from google.protobuf.message_factory import GetMessageClass
    ours = fill(messages.message_class(name)())
    theirs = GetMessageClass(official.FindMessageTypeByName(name)).FromString(ours.SerializeToString())
    assert type(ours).FromString(theirs.SerializeToString()) == ours
    known = GetMessageClass(official.FindMessageTypeByName(name)).FromString(ours.SerializeToString())
    known.DiscardUnknownFields()
    text = text_format.MessageToString(known)
    assert text_format.MessageToString(text_format.Parse(text, type(ours)())) == text


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ALL_TYPES)
@pytest.mark.parametrize("content", [False, True])
def test_tensorflow_reads_our_tensors(official, name, content):
    """TensorFlow's own reader sees the array that was sent, by the official class."""
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    array = sample(name)
    tensor = TensorProto.FromString(to_tensor(array, content).SerializeToString())
    read = tf.io.parse_tensor(tensor.SerializeToString(), tf.dtypes.as_dtype(message_fields.DATA_TYPES[name])).numpy()
    plain = array.view(array.dtype[0]).reshape(array.shape) if array.dtype.names else array
    assert read.shape == plain.shape and read.astype(plain.dtype).tolist() == plain.tolist()


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [name for name in DTYPES if not DTYPES[name].names])
def test_we_read_tensorflows_tensors(official, name):
    """What TensorFlow's Python client sends, also where it sends a repeated value once."""
    import tensorflow as tf
    for array in (sample(name), np.full((3, 200), sample(name)[1, 0], find_dtype(name)), sample(name)[:0]):
        made = tf.make_tensor_proto(array, dtype=tf.dtypes.as_dtype(message_fields.DATA_TYPES[name]), shape=array.shape)
        back = to_array(messages.TensorProto.FromString(made.SerializeToString()))
        assert (back.dtype, back.shape, back.tolist()) == (array.dtype, array.shape, array.tolist())


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ALL_TYPES)
@pytest.mark.parametrize("kept", [0, 1, 2, 9])
def test_half_given_tensors_mean_what_they_mean_to_tensorflow(official, name, kept):
    """None, some and too many values for the shape."""
    import tensorflow as tf
    tensor = to_tensor(np.repeat(sample(name).ravel(), 2)[:kept] if kept else sample(name)[:0].ravel())
    if name == "DT_FLOAT4_E2M1FN" and not kept: return   # TensorFlow has no zero to fill in for this one
    del tensor.tensor_shape.dim[:]
    for size in (2, 3): tensor.tensor_shape.dim.add(size=size)
    read = tf.io.parse_tensor(tensor.SerializeToString(), tf.dtypes.as_dtype(message_fields.DATA_TYPES[name])).numpy()
    array = to_array(tensor)
    plain = array.view(array.dtype[0]).reshape(array.shape) if array.dtype.names else array
    assert read.astype(plain.dtype).tolist() == plain.tolist()


@pytest.mark.tensorflow
def test_signatures_are_read_from_a_saved_model(official, tmp_path):
    """saved_model.pb, without TensorFlow's classes; and it is written back whole."""
    import tensorflow as tf
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": 0.5*x + 2}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.f})
    data = (tmp_path/"saved_model.pb").read_bytes()
    model = messages.SavedModel.FromString(data)
    signature = model.meta_graphs[0].signature_def["serving_default"]
    assert "serve" in model.meta_graphs[0].meta_info_def.tags
    assert (signature.inputs["x"].dtype, [dim.size for dim in signature.inputs["x"].tensor_shape.dim]) == (1, [-1])
    assert signature.method_name == "tensorflow/serving/predict" and set(signature.outputs) == {"y"}
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    assert SavedModel.FromString(model.SerializeToString()) == SavedModel.FromString(data)


# --- the rest --------------------------------------------------------------------------------------------------------

@settings(max_examples=300)
@given(st.sampled_from(["GET", "POST", "PUT"]), st.text("/v1models:predict%2Fé\n", max_size=40).map("/v1/models/".__add__))
def test_any_path_is_a_route_or_refused(method, path):
    """Whatever stands behind /v1/models/, a route or a refusal comes out."""
    assert in_api(path)
    try: route = read_path(method, path)
    except Refusal as refusal: assert refusal.code == "INVALID_ARGUMENT"
    else: assert route.action in ("predict", "classify", "regress", "status", "metadata") and route.model


def test_case_is_ignored_only_within_ascii():
    """A long s or a Kelvin sign is no s and no k."""
    with pytest.raises(Refusal, match="Malformed"): read_path("GET", "/v1/model\u017f/taxi")


@pytest.mark.parametrize(("module", "unwanted"), [
    ("codes", {"numpy", "google.protobuf", "orjson", "asyncio", "tensorflow"}),
    ("paths", {"numpy", "google.protobuf", "orjson", "asyncio", "tensorflow"}),
    ("json_write", {"tensorflow", "asyncio", "grpc", "pandas", "ml_dtypes"}),
    ("json_examples", {"tensorflow", "asyncio", "grpc", "pandas", "ml_dtypes"})])
def test_what_an_import_brings(module, unwanted):
    """The wire costs little to import, and never TensorFlow."""
    code = f"import sys, mlnb.serving.{module}; print(sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_codes_are_grpcs():
    """Numbers and names of gRPC's status codes."""
    grpc = pytest.importorskip("grpc")
    assert {code.name: code.value[0] for code in grpc.StatusCode} == {name: code.number for name, code in CODES.items()}


def test_float_bits_survive_json():
    """Every float32 exponent, both signs, written and read again bit by bit."""
    bits = [sign << 31 | exponent << 23 | fraction for sign in (0, 1) for exponent in range(255) for fraction in (0, 1, 0x2AAAAA, 0x7FFFFF)]
    values = np.array([struct.unpack("f", struct.pack("I", bit))[0] for bit in bits], "f4")
    body = write_predictions({"a": values}, "row").replace(b"predictions", b"instances")
    assert read_tensors(parse_body(body), {"a": "DT_FLOAT"})[1]["a"].tobytes() == values.tobytes()
