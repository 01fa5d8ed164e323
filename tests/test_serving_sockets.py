"""TensorFlow Serving's wire cases over real sockets: REST by plain HTTP, gRPC by the official stubs; the server is a process."""
import http.client
import json
from pathlib import Path

import pytest

CASES = Path(__file__).parents[2] / "shared" / "conformance" / "tfserving.json"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the conformance cases are not in this checkout")


def cases(layer):
    """The cases of a layer, as parameters."""
    found = json.loads(CASES.read_text())["cases"] if CASES.exists() else []
    return [pytest.param(one, id=one["id"]) for one in found if one["layer"] == layer]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """half_plus_two, version 123 with a label, in a process of its own."""
    from half_plus_two import build

    from mlnb.serving.serve_options import ServerOptions
    from mlnb.serving.server import start_server

    folder = tmp_path_factory.mktemp("models") / "half_plus_two"
    folder.mkdir()
    build(str(folder / "123"))
    config = (f'model_config_list {{ config {{ name: "half_plus_two" base_path: "{folder}" model_platform: "tensorflow" '
              'version_labels { key: "Version_Label" value: 123 } } }')
    options = ServerOptions(model_config=config, rest_port=0, grpc_port=0, labels_for_unavailable=True)
    with start_server(options, process=True) as running: yield running


# ---- REST -----------------------------------------------------------------------------------------------------------


def ask(server, method, path, body=""):
    """Status, content type and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    try:
        connection.request(method, path, body.encode())
        response = connection.getresponse()
        return response.status, response.headers["content-type"], response.read()
    finally: connection.close()


@pytest.mark.parametrize("case", cases("http"))
def test_rest(server, case):
    expected = case["expect"]
    status, kind, body = ask(server, **case["request"])
    assert (status, kind) == (expected["status"], expected["content_type"]), body
    found = json.loads(body)
    if "json" in expected: assert found == expected["json"]
    if "error_contains" in expected: assert list(found) == ["error"] and expected["error_contains"] in found["error"]
    for path, value in expected.get("json_paths", {}).items():
        at = found
        for part in path.split("."): at = at[part]
        assert at == value, path


# ---- gRPC -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stubs(server):
    """The official stubs, of tensorflow-serving-api."""
    pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    with grpc.insecure_channel(server.target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel), model_service_pb2_grpc.ModelServiceStub(channel)


def fill_spec(spec, given):
    """A case's model_spec as a message."""
    for name in ("name", "signature_name"): setattr(spec, name, given.get(name, ""))
    if "version" in given: spec.version.value = given["version"]
    spec.SetInParent()


def fill_examples(target, given):
    """A case's examples as a message."""
    for row in given["example_list"]:
        example = target.example_list.examples.add()
        for name, kinds in row.items():
            for kind, values in kinds.items(): getattr(example.features.feature[name], f"{kind}_list").value.extend(values)


def request_of(case):
    """The request of a case, in the official messages."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        model_management_pb2,
        predict_pb2,
        regression_pb2,
    )
    kinds = {"Predict": predict_pb2.PredictRequest, "Classify": classification_pb2.ClassificationRequest,
             "Regress": regression_pb2.RegressionRequest, "MultiInference": inference_pb2.MultiInferenceRequest,
             "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
             "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
             "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest}
    request, given = kinds[case["rpc"]](), case["request"]
    if "model_spec" in given: fill_spec(request.model_spec, given["model_spec"])
    for name, tensor in given.get("inputs", {}).items():
        values = np.array(tensor["values"]).reshape(tensor["shape"])
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, getattr(tf.dtypes, tensor["dtype"][3:].lower().replace("float", "float32"))))
    if "output_filter" in given: request.output_filter.extend(given["output_filter"])
    if "input" in given: fill_examples(request.input, given["input"])
    if "metadata_field" in given: request.metadata_field.extend(given["metadata_field"])
    for task in given.get("tasks", ()):
        one = request.tasks.add(method_name=task["method_name"])
        fill_spec(one.model_spec, task["model_spec"])
    if "config" in given: request.config.custom_model_config.SetInParent()
    return request


def classes_of(result): return [[[one.label, one.score] for one in row.classes] for row in result.classifications]


def read_response(rpc, response):
    """A response, in the form of the cases."""
    import tensorflow as tf
    found = {}
    if hasattr(response, "model_spec"):
        spec = response.model_spec
        found["model_spec"] = {"name": spec.name, "version": spec.version.value}
        if spec.signature_name: found["model_spec"]["signature_name"] = spec.signature_name
    if rpc == "Predict":
        found["outputs"] = {name: {"dtype": f"DT_{tf.dtypes.as_dtype(one.dtype).name.upper().replace('FLOAT32', 'FLOAT')}",
                                   "shape": [size.size for size in one.tensor_shape.dim], "values": tf.make_ndarray(one).reshape(-1).tolist()}
                            for name, one in response.outputs.items()}
    if rpc == "Classify": found["result"] = classes_of(response.result)
    if rpc == "Regress": found["result"] = [one.value for one in response.result.regressions]
    if rpc == "MultiInference":
        found["results"] = [{"classification": classes_of(one.classification_result)} if one.HasField("classification_result")
                            else {"regression": [value.value for value in one.regression_result.regressions]} for one in response.results]
    if rpc == "GetModelStatus":
        found["model_version_status"] = [{"version": one.version, "error_code": one.status.error_code} for one in response.model_version_status]
    if rpc == "GetModelMetadata": found["metadata_keys"] = sorted(response.metadata)
    return found


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", cases("grpc"))
def test_grpc(stubs, case):
    import grpc
    stub = next(one for one in stubs if hasattr(one, case["rpc"]))
    expected, request = case["expect"], request_of(case)
    if expected["code"] == "OK":
        assert read_response(case["rpc"], getattr(stub, case["rpc"])(request, timeout=30)) == expected["response"]
        return
    with pytest.raises(grpc.RpcError) as caught: getattr(stub, case["rpc"])(request, timeout=30)
    assert caught.value.code().name == expected["code"], caught.value.details()
    assert expected.get("error_contains", "") in caught.value.details()
