"""The client against servers that refuse, break, drip and hang; and without TensorFlow."""

import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import MlnbError, ServingError
from mlnb.serving.client import Client, RequestError, Tls, connect
from mlnb.serving.feeds import Signature, Slot, to_feeds
from mlnb.serving.messages import SERVICES, Example, SignatureDefMap
from mlnb.serving.tensors import to_array, to_tensor

ROOT = Path(__file__).parents[1]
TENSORS = {"age": ("DT_FLOAT", [-1, 1]), "visits": ("DT_INT64", [-1]), "plan": ("DT_STRING", [-1, 1])}
ROWS = pd.DataFrame({"age": [39, 41.5, np.nan], "visits": [3, 4, 5], "plan": ["a", None, "ü"], "unused": [1, 2, 3]})
SCORES = [39 + 3 + 1, 41.5 + 4 + 0, 5 + 1]   # age + visits + length of plan; a missing age is 0


def score(feeds):
    """What the stand-in model says."""
    age = np.nan_to_num(feeds["age"].reshape(-1))
    return (age + feeds["visits"] + [len(one.decode()) for one in feeds["plan"].reshape(-1)]).astype("float32").reshape(-1, 1)


def described():
    """The signature as REST prints it."""
    def slot(dtype, sizes): return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(n), "name": ""} for n in sizes], "unknown_rank": False}, "name": "x:0"}
    return {"inputs": {name: slot(*one) for name, one in TENSORS.items()}, "outputs": {"scores": slot("DT_FLOAT", [-1, 1])},
            "method_name": "tensorflow/serving/predict"}


class Handler(http.server.BaseHTTPRequestHandler):
    """One model over HTTP; `trouble` holds what to do with the next requests instead of answering."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def answer(self, status, document, **headers):
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items(): self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self): self.reply(b"")

    def do_POST(self): self.reply(self.rfile.read(int(self.headers["content-length"])))

    def reply(self, body):
        state = self.server.state
        state["seen"].append((self.path, self.headers["x-request-id"], self.headers["authorization"], self.client_address[1]))
        trouble = state["trouble"].pop(0) if state["trouble"] and self.path.endswith(":predict") else None
        if trouble == "break": return self.connection.shutdown(socket.SHUT_RDWR)
        if trouble == "hang": return time.sleep(2)
        if trouble == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"outputs": [[1.0]]}')
            return self.connection.shutdown(socket.SHUT_RDWR)
        if trouble == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            return None
        if trouble: return self.answer(trouble[0], {"error": trouble[1]}, **trouble[2])
        if self.path.endswith("/metadata"): return self.answer(200, {"metadata": {"signature_def": {"signature_def": {"serving_default": described()}}}})
        if self.path.endswith(":predict"):
            given = json.loads(body)["inputs"]
            if set(given) != set(TENSORS): return self.answer(400, {"error": "wrong inputs"})
            kinds = {"age": "float32", "visits": "int64"}
            feeds = {n: np.array(v, kinds[n]) if n in kinds else np.array([[s.encode() for s in row] for row in v], object) for n, v in given.items()}
            return self.answer(200, {"outputs": score(feeds).tolist()}, x_request_id=self.headers["x-request-id"], x_mlnb_model_version="7", x_mlnb_fallback="")
        if self.path.endswith(":classify"):
            return self.answer(200, {"results": [[["no", 0.25], ["yes", 0.75]] for _ in json.loads(body)["examples"]]})
        if self.path.endswith(":regress"): return self.answer(200, {"results": [one["age"][0] for one in json.loads(body)["examples"]]})
        if self.path in ("/v1/models/m", "/v1/models/m/versions/7", "/v1/models/m/labels/stable"):
            return self.answer(200, {"model_version_status": [{"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]})
        return self.answer(404, {"error": "Could not find any versions of model " + self.path})


class Grpc(grpc.GenericRpcHandler):
    """The same model over gRPC."""

    def __init__(self): self.state = {"trouble": [], "seen": []}

    def service(self, details):
        _, service, method = details.method.split("/")
        question, answer = SERVICES[service][method]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: getattr(self, method)(request, context, answer),
                                                   question.FromString, answer.SerializeToString)

    def Predict(self, request, context, answer):
        self.state["seen"].append(dict(context.invocation_metadata()))
        if self.state["trouble"]:
            code, text, seconds = self.state["trouble"].pop(0)
            time.sleep(seconds)
            context.abort(code, text)
        context.send_initial_metadata((("x-mlnb-fallback", "rule;reason=open"),))
        outputs = {"scores": to_tensor(score({name: to_array(one) for name, one in request.inputs.items()}))}
        return answer(model_spec={"name": "m", "version": {"value": 7}}, outputs=outputs)

    def GetModelMetadata(self, request, context, answer):
        def slot(dtype, sizes): return {"dtype": dtype, "tensor_shape": {"dim": [{"size": n} for n in sizes]}, "name": "x:0"}
        signature = {"inputs": {name: slot(*one) for name, one in TENSORS.items()}, "outputs": {"scores": slot("DT_FLOAT", [-1, 1])}}
        found = answer(model_spec={"name": request.model_spec.name})
        found.metadata["signature_def"].Pack(SignatureDefMap(signature_def={"serving_default": signature}))
        return found

    def Classify(self, request, context, answer):
        rows = [{"classes": [{"label": "no", "score": 0.25}, {"label": "yes", "score": 0.75}]}] * len(request.input.example_list.examples)
        return answer(result={"classifications": rows})

    def Regress(self, request, context, answer):
        ages = [Example.FromString(one.SerializeToString()).features.feature["age"].float_list.value[0] for one in request.input.example_list.examples]
        return answer(result={"regressions": [{"value": age} for age in ages]})

    def GetModelStatus(self, request, context, answer):
        if request.model_spec.name != "m": context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model x")
        return answer(model_version_status=[{"version": 7, "state": 30}])


class Running:
    """A stand-in server: where it is, what it saw, what it does to the next requests."""

    def __init__(self, address, state, stop): self.address, self.state, self.stop = address, state, stop


def rest(port=0, context=None):
    """A stand-in over HTTP."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads, server.state = True, {"trouble": [], "seen": []}
    if context: server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    def stop():
        server.shutdown()
        server.server_close()
    return Running(f"http{'s' if context else ''}://127.0.0.1:{server.server_port}", server.state, stop)


def over_grpc(credentials=None):
    """A stand-in over gRPC."""
    handler, server = Grpc(), grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    server.start()
    return Running(f"grpc{'s' if credentials else ''}://{'localhost' if credentials else '127.0.0.1'}:{port}", handler.state, lambda: server.stop(0).wait())


@pytest.fixture(params=["rest", "grpc"])
def running(request):
    """Both doors."""
    made = rest() if request.param == "rest" else over_grpc()
    yield made
    made.stop()


def overload(running, seconds=0.0):
    """A refusal that another try may mend."""
    return (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full", seconds) if "grpc" in running.address else (429, "queue is full", {})


@pytest.mark.parametrize("rows", [ROWS, ROWS.to_dict("list"), ROWS.to_dict("records"), {name: ROWS[name].to_numpy() for name in ROWS}, ROWS.convert_dtypes()],
                         ids=["DataFrame", "columns", "rows", "arrays", "nullable"])
def test_rows_of_any_form_give_the_same_answer(running, rows):
    """(n,) scores in the order of the rows; missing values as the export has them."""
    with connect(running.address, model="m") as client:
        assert client.predict(rows).tolist() == SCORES
        assert client.predict({"age": 1, "visits": 2, "plan": "abc"}) == 6.0


def test_an_answer_says_who_and_what(running):
    """The id goes with the question and comes back; version and fallback mark are there."""
    with connect(running.address, model="m", token="secret-token") as client:
        answer = client.ask(ROWS, request_id="order-1")
        assert answer.request_id == "order-1" and answer.version == 7 and answer.outputs["scores"].dtype == np.float32
        assert answer.fallback == ("rule;reason=open" if "grpc" in running.address else "")
        assert len(client.ask(ROWS).request_id) == 32
    seen = running.state["seen"][-2]
    assert (seen["x-request-id"], seen["authorization"]) == ("order-1", "Bearer secret-token") if isinstance(seen, dict) else seen[1:3] == ("order-1", "Bearer secret-token")


def test_the_other_questions(running):
    """Classify, regress, status, metadata, ready."""
    with connect(running.address, model="m") as client:
        assert client.classify(ROWS[["age"]]) == [[("no", 0.25), ("yes", 0.75)]] * 3
        assert client.regress({"age": [1, 2]}).tolist() == [1, 2]
        assert client.status()[0][:2] == (7, "AVAILABLE")
        assert client.metadata()["serving_default"].inputs["visits"] == Slot("DT_INT64", (-1,))
        assert client.ready() and not client.ready("x")
        with pytest.raises(RequestError, match="Could not find any versions") as found: client.status("x")
        assert found.value.code == "NOT_FOUND"
        with pytest.raises(ServingError, match="no signature 'other'"): client.predict(ROWS, signature="other")


def test_an_overload_is_tried_again(running):
    """With the same id, within the tries."""
    with connect(running.address, model="m", retries=3) as client:
        running.state["trouble"] += [overload(running)] * 3
        assert client.predict(ROWS, request_id="once").tolist() == SCORES
        ids = [one["x-request-id"] if isinstance(one, dict) else one[1] for one in running.state["seen"] if isinstance(one, dict) or one[0].endswith("predict")]
        assert ids == ["once"] * 4
        running.state["trouble"] += [overload(running)] * 9
        with pytest.raises(RequestError, match="queue is full") as found: client.predict(ROWS)
        assert found.value.code == "RESOURCE_EXHAUSTED" and len(running.state["trouble"]) == 5


def test_the_clients_own_mistake_is_not_tried_again(running):
    """Nor a failure of the model, which another try would not mend."""
    with connect(running.address, model="m", retries=3) as client:
        client.predict(ROWS)
        for code, http_status in (("INVALID_ARGUMENT", 400), ("INTERNAL", 500), ("NOT_FOUND", 404)):
            running.state["trouble"] += [(getattr(grpc.StatusCode, code), "no", 0.0) if "grpc" in running.address else (http_status, "no", {})] * 4
            with pytest.raises(RequestError) as found: client.predict(ROWS)
            assert found.value.code == code and len(running.state["trouble"]) == 3
            running.state["trouble"].clear()


def test_all_tries_share_one_deadline(running):
    """A server that asks for a longer pause than there is time is not waited for; a hanging one neither."""
    with connect(running.address, model="m", timeout_seconds=0.6, retries=50) as client:
        client.metadata()
        running.state["trouble"] += [overload(running, 0.05)] * 100
        began = time.monotonic()
        with pytest.raises(RequestError, match="queue is full|no answer within"): client.predict(ROWS)
        assert time.monotonic() - began < 2.5
        running.state["trouble"][:] = [(grpc.StatusCode.INTERNAL, "late", 3.0) if "grpc" in running.address else "hang"]
        began = time.monotonic()
        with pytest.raises(RequestError, match="no answer within") as found: client.predict(ROWS)
        assert found.value.code == "DEADLINE_EXCEEDED" and time.monotonic() - began < 2.5


def test_a_broken_connection_is_tried_again_and_a_dripping_one_is_late():
    """A worker that died before it answered; a server that sends a byte now and then."""
    running = rest()
    try:
        with connect(running.address, model="m") as client:
            client.metadata()
            running.state["trouble"] += ["break", "cut"]
            assert client.predict(ROWS).tolist() == SCORES
            running.state["trouble"] += ["drip"]
            began = time.monotonic()
            with pytest.raises(RequestError, match="no answer within"): client.predict(ROWS, timeout_seconds=0.4)
            assert time.monotonic() - began < 1.5
            running.state["trouble"] += [(503, "loading", {"Retry_After": "100"})]
            with pytest.raises(RequestError, match="loading"): client.predict(ROWS, timeout_seconds=2)
            assert client.predict(ROWS).tolist() == SCORES
    finally: running.stop()


def test_a_client_may_be_there_before_its_server():
    """Nobody listens; then somebody does, at the same place."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with connect(f"http://127.0.0.1:{port}", model="m", timeout_seconds=10, retries=100) as client:
        assert not client.ready()
        with pytest.raises(RequestError, match="start one: mlnb serve"): client.predict(ROWS, timeout_seconds=0.1)
        made = []
        timer = threading.Timer(0.5, lambda: made.append(rest(port)))
        timer.start()
        try: assert client.ready(seconds=8) and client.predict(ROWS).tolist() == SCORES
        finally:
            timer.join()
            made[0].stop()


def test_threads_share_a_client(running):
    """Each gets its own answer; over HTTP the connections are kept."""
    with connect(running.address, model="m") as client:
        client.metadata()
        def work(k): return [client.predict({"age": [k], "visits": [i], "plan": [""]}).tolist() == [k + i] for i in range(25)]
        with futures.ThreadPoolExecutor(8) as pool: found = list(pool.map(work, range(8)))
        assert all(all(one) for one in found)
    if "http" in running.address: assert len({one[3] for one in running.state["seen"]}) <= 16


def test_a_new_signature_is_noticed(running, monkeypatch):
    """A version with another input type is put in between: the client reads the signature again and asks once more."""
    with connect(running.address, model="m") as client:
        client.predict(ROWS)
        (target,) = client._known
        old = client._known[target]["serving_default"]
        client._known[target] = {"serving_default": old._replace(inputs={name: slot for name, slot in old.inputs.items() if name != "plan"})}
        if "grpc" in running.address: running.state["trouble"] += [(grpc.StatusCode.INVALID_ARGUMENT, "input size does not match", 0.0)]
        assert client.predict(ROWS).tolist() == SCORES


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate of this machine, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    done = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2",
                           "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], capture_output=True)
    if done.returncode: pytest.skip("no openssl")
    return folder


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_an_encrypted_connection_is_checked(door, certificates):
    """Trusted when its signer is named, refused otherwise, with the cure for REST."""
    if door == "rest":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
        running = rest(context=context)
    else:
        pair = ((certificates / "key.pem").read_bytes(), (certificates / "cert.pem").read_bytes())
        running = over_grpc(grpc.ssl_server_credentials([pair]))
    try:
        with connect(running.address, model="m", tls=Tls(ca=str(certificates / "cert.pem"))) as client: assert client.predict(ROWS).tolist() == SCORES
        with connect(running.address, model="m", timeout_seconds=1, retries=0) as client:
            with pytest.raises(RequestError, match="trusted" if door == "rest" else "certificate|connect|SSL|handshake|no server"): client.predict(ROWS)
    finally: running.stop()


SIGNATURE = Signature({"f": Slot("DT_FLOAT", (-1,)), "i": Slot("DT_INT32", (-1, 1)), "s": Slot("DT_STRING", None), "b": Slot("DT_BOOL", (-1,))}, {}, "")


@pytest.mark.parametrize(("rows", "said"), [
    ([{"f": 1, "i": 1, "s": "", "b": True}, {"f": "1.5", "i": 1, "s": "", "b": True}], "row 1: column 'f' does not fit"),
    ({"f": [1, 2], "i": [1, 2.5], "s": ["", ""], "b": [True, False]}, "row 1: column 'i'"), ({"f": [1], "i": [None], "s": [""], "b": [True]}, "row 0: column 'i'"),
    ({"f": [1], "i": [2**40], "s": [""], "b": [True]}, "column 'i'"), ({"f": [1], "i": [1], "s": [""], "b": [1]}, "column 'b'"),
    ({"f": [True], "i": [1], "s": [""], "b": [True]}, "column 'f'"), ({"f": [1, 2], "i": [1], "s": [""], "b": [True]}, "differ in length"),
    ({"f": [[1, 2]], "i": [1], "s": [""], "b": [True]}, "does not fit"), ({"f": [1]}, "no b, i, s|no i, s, b|lack inputs"), ([1, 2], "no names"),
    ([{"f": 1, "i": 1, "s": "", "b": True}, {"f": 1}], "row 1: this row lacks"),
])
def test_rows_that_do_not_fit_are_named(rows, said):
    """The row and the column, before anything is sent."""
    with pytest.raises(ServingError, match=said): to_feeds(rows, SIGNATURE)


scalars = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=4) | st.binary(max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({name: scalars for name in SIGNATURE.inputs}), min_size=1, max_size=4))
def test_any_rows_are_cast_or_refused(rows):
    """Never cast to another value, never another error."""
    try: feeds, _ = to_feeds(rows, SIGNATURE)
    except ServingError: return
    for place, row in enumerate(rows):
        assert feeds["i"][place, 0] == row["i"] and bool(feeds["b"][place]) is row["b"]
        assert np.isnan(feeds["f"][place]) if row["f"] is None or row["f"] != row["f"] else feeds["f"][place] == np.float32(row["f"])
        assert feeds["s"][place] == (row["s"] if isinstance(row["s"], bytes) else b"" if row["s"] is None or row["s"] != row["s"] else str(row["s"]).encode())


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_the_client_loads_neither_tensorflow_nor_pandas(door):
    """In a fresh process, after a real prediction."""
    running = rest() if door == "rest" else over_grpc()
    code = """
import sys
from mlnb.serving.client import connect
with connect(sys.argv[1], model="m") as client:
    assert client.predict([{"age": 1.0, "visits": 2, "plan": "abc"}]).tolist() == [6.0]
    client.classify([{"age": 1.0}])
print([name for name in ("tensorflow", "keras", "pandas", "pyarrow", "asyncio") if name in sys.modules])
"""
    try: done = subprocess.run([sys.executable, "-c", code, running.address], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    finally: running.stop()
    assert done.returncode == 0, done.stderr
    assert not {"tensorflow", "keras", "pandas"} & set(json.loads(done.stdout.replace("'", '"')))


def test_an_address_that_is_none():
    """Said when connecting."""
    for address in ("127.0.0.1:8501", "ftp://x", "http://", ""):
        with pytest.raises(ServingError, match="no address"): connect(address)
    with pytest.raises(ServingError, match="out of range"): connect("http://x", timeout_seconds=0)
    with pytest.raises(MlnbError, match="no model is named"): connect("http://127.0.0.1:9").predict(ROWS)
    assert isinstance(connect("grpc://127.0.0.1"), Client)


# ---- the real server

MODEL = """
import sys, numpy as np, pandas as pd, keras
from pathlib import Path
from mlnb.data.schemas import describe_table
from mlnb.serving.export import export_model
from mlnb.serving.registry import register
root = Path(sys.argv[1])
frame = pd.DataFrame({"months": [1.0, 3, 12, 30], "plan": ["monthly", "monthly", "yearly", "yearly"]})
inputs = {"months": keras.Input((1,), name="months"), "plan": keras.Input((1,), dtype="string", name="plan")}
plan = keras.layers.StringLookup(vocabulary=["monthly", "yearly"], output_mode="one_hot")(inputs["plan"])
head = keras.layers.Dense(1, activation="sigmoid")
model = keras.Model(inputs, head(keras.layers.Concatenate()([inputs["months"], plan])))
head.set_weights([np.array([[-0.1], [0.0], [1.0], [-1.0]]), np.array([0.5])])
exported = export_model(model, describe_table(frame), root/"export", frame, classes=["stays", "leaves"])
for name in ("churn", "small"): register(root/"registry", name, exported.folder, {"evaluation": {"blessed": True}})
import tensorflow as tf
class Slow(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "rounds")])
    def __call__(self, rounds):
        some = tf.ones([700, 700]) / 700
        _, end = tf.while_loop(lambda i, _: i < rounds[0], lambda i, m: (i + 1, tf.matmul(m, some)), (0.0, some))
        return {"y": rounds + end[0, 0] * 0}
slow = Slow()
tf.saved_model.save(slow, str(root/"slow"), {"serving_default": slow.__call__.get_concrete_function()})
register(root/"registry", "slow", root/"slow", {"evaluation": {"blessed": True}})
"""
CUSTOMERS = [{"months": 1, "plan": "monthly"}, {"months": 12.0, "plan": "yearly"}, {"months": None, "plan": "yearly"}, {"months": 3, "plan": None}]


def expected(rows):
    """What the model says of rows."""
    plan = {"monthly": 1.0, "yearly": -1.0}
    return [1 / (1 + np.exp(0.1 * (np.nan if row["months"] is None else row["months"]) - plan.get(row["plan"], 0.0) - 0.5)) for row in rows]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A registry with two models, behind `mlnb serve` with a prediction log and a fallback."""
    from mlnb.serving.serve_options import ServerOptions
    from mlnb.serving.server import start_server

    root = tmp_path_factory.mktemp("served")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", MODEL, str(root)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fallbacks = {"churn": {"deadline_ms": 20_000, "to": [{"rule": {"scores": "0.25 + 0.5 * (months < 6)"}}]},
                 "slow": {"deadline_ms": 150, "breaker": None, "to": [{"rule": {"y": "0.0 - rounds"}}]}}
    (root / "fallbacks.json").write_text(json.dumps(fallbacks))
    options = ServerOptions(registry=str(root / "registry"), rest_port=0, grpc_port=0, prediction_log=str(root / "log"), mask=("plan",),
                            fallback_file=str(root / "fallbacks.json"))
    with start_server(options, process=True) as server:
        yield root, {"rest": server.url, "grpc": f"grpc://{server.target}"}


@pytest.mark.slow
@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_the_real_server_answers_the_client(served, door):
    """Predictions, classes, signatures, state, and refusals with the server's words."""
    _, addresses = served
    with connect(addresses[door], model="churn", timeout_seconds=20) as client:
        assert client.ready(seconds=20)
        np.testing.assert_allclose(client.predict(CUSTOMERS), expected(CUSTOMERS), atol=1e-5)
        np.testing.assert_allclose(client.predict(pd.DataFrame(CUSTOMERS), label="champion"), expected(CUSTOMERS), atol=1e-5)
        assert [name for name, _ in client.classify(CUSTOMERS[:2])[1]] == ["stays", "leaves"]
        answer = client.ask(CUSTOMERS[:1], version=1, request_id=f"mine-{door}")
        assert (answer.request_id, answer.version, answer.fallback) == (f"mine-{door}", 1, "")
        assert client.metadata()["serving_default"].inputs == {"months": Slot("DT_FLOAT", (-1,)), "plan": Slot("DT_STRING", (-1,))}
        with pytest.raises(RequestError, match="Servable not found"): client.predict(CUSTOMERS, "none")
        with pytest.raises(RequestError) as found: client.predict(CUSTOMERS, version=9)
        assert found.value.code == "NOT_FOUND"


@pytest.mark.slow
def test_what_the_real_server_answered_is_in_its_log(served):
    """By both doors, in both processes' words: rows, ids, version; the masked column is not there."""
    from mlnb.serving.prediction_log import join_labels, read_log

    root, addresses = served
    for door, address in addresses.items():
        with connect(address, model="small", timeout_seconds=20) as client: client.ask(CUSTOMERS[:2], request_id=f"logged-{door}")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        log = read_log(root / "log", "small")
        if len(log) == 4: break
        time.sleep(0.1)
    assert sorted(zip(log["request_id"], log["index"], strict=True)) == [("logged-grpc", 0), ("logged-grpc", 1), ("logged-rest", 0), ("logged-rest", 1)]
    assert "input.plan" not in log and set(log["version"]) == {1} and (log["latency_seconds"] > 0).all() and set(log["fallback"]) == {""}
    np.testing.assert_allclose(log.sort_values(["request_id", "index"])["output.scores"], expected(CUSTOMERS[:2]) * 2, atol=1e-5)
    labels = pd.DataFrame({"request_id": ["logged-rest"] * 2, "index": [0, 1], "left": [1, 0]})
    assert join_labels(log, labels).attrs["labels"]["matched"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_a_model_that_is_late_is_answered_for_by_a_rule(served, door):
    """Marked, and in time; when it has caught up it answers itself; the client's own mistake stays one."""
    _, addresses = served
    with connect(addresses[door], model="slow", timeout_seconds=30) as client:
        until = time.monotonic() + 20
        while client.ask({"rounds": [1]}).fallback and time.monotonic() < until: time.sleep(0.05)
        assert client.ask({"rounds": [2.0]}).outputs["y"].tolist() == [2] and client.ask({"rounds": [2.0]}).fallback == ""
        began = time.monotonic()
        late = client.ask({"rounds": [600.0, 5.0]})
        assert late.outputs["y"].tolist() == [-600, -5] and late.fallback == "rule;reason=deadline" and late.outputs["y"].dtype == np.float32
        assert time.monotonic() - began < 2
        while (caught := client.ask({"rounds": [3.0]})).fallback and time.monotonic() < began + 30: time.sleep(0.1)
        assert caught.outputs["y"].tolist() == [3] and caught.fallback == ""
        with pytest.raises(RequestError) as found: client.predict({"rounds": []})
        assert found.value.code in ("INVALID_ARGUMENT", "OUT_OF_RANGE")
