"""The server under bad manners: malformed, slow and half-closed requests, limits, tokens, deadlines; the model is a stand-in."""
import asyncio
import base64
import gzip
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import grpc
import pytest
from fake_servable import SLOW, FakeServable, fake_loader, fake_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlnb.errors import ServingError
from mlnb.serving import messages
from mlnb.serving.codes import Refusal
from mlnb.serving.serve_options import ServerOptions, check_options
from mlnb.serving.server import start_server
from mlnb.serving.server_files import model_config, model_entry
from mlnb.serving.tensors import to_tensor
from mlnb.serving.twin import TwinOutputs
from mlnb.serving.workers import Supervisor

ROOT = Path(__file__).parents[1]
PREDICT = "/v1/models/m:predict"
ONE = b'{"instances": [2.0]}'


@contextmanager
def serving(folder, monkeypatch, **given):
    """A server of the stand-in, in a thread of this process."""
    monkeypatch.setattr("mlnb.serving.process.loader", fake_loader)
    if not folder.exists(): fake_model(folder, 2)
    options = {"rest_port": 0, "grpc_port": 0, "poll_seconds": 0.0, "drain_seconds": 5.0} | given
    with start_server(ServerOptions(model_name="m", model_base_path=str(folder), **options)) as running: yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for the tests that only ask; requests must arrive within half a second."""
    with pytest.MonkeyPatch.context() as patch, serving(tmp_path_factory.mktemp("s") / "m", patch, read_seconds=0.5, max_request_bytes=100_000) as running:
        yield running


def ask(server, path=PREDICT, body=ONE, method=None, **headers):
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    try:
        connection.request(method or ("POST" if body is not None else "GET"), path, body, {name.replace("_", "-"): value for name, value in headers.items()},
                           encode_chunked="transfer_encoding" in headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally: connection.close()


def raw(server, *parts, close=False, wait=0.0, seconds=10):
    """Send bytes as they are; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=seconds) as sock:
        for part in parts:
            try: sock.sendall(part)
            except (BrokenPipeError, ConnectionResetError): break
            time.sleep(wait)
        if close: sock.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while data := sock.recv(65536): found += data
        except ConnectionResetError: pass
        return found


def request(body=ONE, path=PREDICT, method="POST", **headers):
    """The bytes of one request."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def still_there(server): assert ask(server)[2].split() == b'{ "predictions": [3.0 ] }'.split()


def call(server, method="Predict", message=None, metadata=None, timeout=10, service="tensorflow.serving.PredictionService", body=None, channel=None):
    """One gRPC call; its code and message, or the bytes of the answer."""
    with grpc.insecure_channel(server.target) if channel is None else channel as open_channel:
        ask = open_channel.unary_unary(f"/{service}/{method}")
        try: return "OK", ask(message.SerializeToString() if body is None else body, timeout=timeout, metadata=metadata)
        except grpc.RpcError as e: return e.code().name, e.details()


def predict_request(*values, name="m"):
    """A Predict request for the stand-in."""
    import numpy as np
    message = messages.PredictRequest()
    message.model_spec.name = name
    message.inputs["x"].CopyFrom(to_tensor(np.array(values, np.float32)))
    return message


# ---- what is asked wrongly ------------------------------------------------------------------------------------------


def test_an_answer_names_its_request_and_its_version(shared):
    status, headers, _ = ask(shared, x_request_id="order-17")
    assert (status, headers["x-request-id"], headers["x-mlnb-model-version"]) == (200, "order-17", "2")
    ids = {ask(shared, x_request_id="two words")[1]["x-request-id"] for _ in range(3)}
    assert len(ids) == 3 and "two words" not in ids


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["instances", "inputs", "x", "b64", "signature_name", ""]), inner, max_size=3),
                           max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), json_values.map(lambda value: json.dumps(value).encode()),
                 st.text(alphabet='{}[]":,0123456789eE+-.nul\\u ', max_size=60).map(str.encode),
                 json_values.map(lambda value: json.dumps({"instances": value}).encode())),
       st.sampled_from([PREDICT, "/v1/models/m:classify", "/v1/models/m:regress", "/v1/models/m/versions/2:predict", "/v1/models/none:predict"]))
def test_no_body_is_the_servers_fault(shared, body, path):
    status, headers, found = ask(shared, path, body)
    assert status in (200, 400, 404), found
    assert headers["content-type"] == "application/json" and found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.tuples(st.sampled_from([b"GET", b"POST", b"PUT", b"TRACE", b"CONNECT", b"PRI", b"get", b""]), st.binary(max_size=40),
       st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""]), st.binary(max_size=60)).map(lambda parts: b" ".join(parts[:3]) + b"\r\n" + parts[3] + b"\r\n\r\n"))
def test_no_bytes_make_it_hang_or_fail(shared, data):
    found = raw(shared, data, close=True, seconds=5)
    assert not found.startswith(b"HTTP/1.1 5") or found.startswith(b"HTTP/1.1 501"), found


@pytest.mark.parametrize("path", ["/%00", "/v1/models/%2e%2e%2f:predict", "/v1/models/" + "a" * 5000 + ":predict", "/v1/models/m%0d%0a:predict", "//v1/models/m:predict",
                                  "/v1/models/m/versions/99999999999999999999:predict", "/v1/models/%ff%fe:predict", "*", "/v1/models/m:predict?x=1"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PATCH", "OPTIONS", "DELETE"])
def test_strange_paths_get_an_answer(shared, method, path):
    status = int(raw(shared, request(b"{}", path, method, connection="close")).split()[1])
    assert status in (200, 400, 404)


def test_deep_nesting_is_refused_and_harmless(shared):
    for depth in (1_000, 40_000): assert ask(shared, body=b'{"instances": ' + b"[" * depth + b"]" * depth + b"}")[0] in (200, 400)
    still_there(shared)


def test_an_error_of_ours_tells_nothing(shared):
    status, headers, body = ask(shared, body=b'{"instances": [-1000]}')
    assert status == 500 and b"secret" not in body and headers["x-request-id"].encode() in body
    assert call(shared, message=predict_request(-1000.0))[0] == "INTERNAL"
    assert "secret" not in call(shared, message=predict_request(-1000.0))[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"]), st.binary(max_size=120))
def test_malformed_messages_get_a_status(shared, method, body):
    code, _ = call(shared, method, body=body)
    assert code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED")


def test_refusals_name_what_they_are_about(shared):
    """As upstream says them: the input of a tensor that is none, the empty name of a later task, INVALID_ARGUMENT for a signature without examples."""
    wrong = predict_request(1.0)
    wrong.inputs["x"].tensor_content = b"123"
    assert call(shared, message=wrong) == ("INVALID_ARGUMENT", "tensor parsing error: x")
    several = messages.MultiInferenceRequest()
    for name in ("m", ""): several.tasks.add(method_name="tensorflow/serving/classify").model_spec.CopyFrom(messages.ModelSpec(name=name, signature_name="classify"))
    several.input.example_list.examples.add()
    assert call(shared, "MultiInference", several) == ("INVALID_ARGUMENT", "Found ModelSpec with an empty model name.")
    regress = messages.RegressionRequest(model_spec=messages.ModelSpec(name="m"))
    regress.input.example_list.examples.add()
    code, text = call(shared, "Regress", regress)
    assert code == "INVALID_ARGUMENT" and text.startswith("No regression inputs found in SignatureDef")


def test_unknown_calls_are_unimplemented(shared):
    assert call(shared, "SessionRun", body=b"", service="tensorflow.serving.SessionService")[0] == "UNIMPLEMENTED"
    assert call(shared, "Predicted", body=b"")[0] == "UNIMPLEMENTED"


# ---- slow and half-closed -------------------------------------------------------------------------------------------


def test_slow_requests_are_ended_and_others_go_on(shared):
    whole = request(ONE)
    for sent in (b"POST", whole[:30], whole[:-3]):
        started = time.monotonic()
        found = raw(shared, sent)
        assert found.startswith(b"HTTP/1.1 408") and time.monotonic() - started < 5
    dripped = raw(shared, *(bytes([byte]) for byte in whole), wait=0.02)
    assert dripped.startswith(b"HTTP/1.1 408"), "every byte gave it more time"
    assert raw(shared, b"") == b"", "a silent connection is closed"
    still_there(shared)


def test_a_client_that_sends_no_more_gets_its_answer(shared):
    assert b"3.0" in raw(shared, request(), close=True)
    slow = json.dumps({"instances": [SLOW + 0.3]}).encode()
    assert b"502.1" in raw(shared, request(slow), close=True)
    assert raw(shared, request()[:-5], close=True) == b"", "half a request, and the end"


def test_pipelined_requests_are_answered_in_order(shared):
    bodies = [json.dumps({"instances": [value]}).encode() for value in (SLOW + 0.2, 4.0, 6.0)]
    found = raw(shared, b"".join(map(request, bodies)), close=True)
    assert [found.find(text) for text in (b"502.1", b"4.0", b"5.0")] == sorted(found.find(text) for text in (b"502.1", b"4.0", b"5.0")) and b"5.0" in found
    assert found.count(b"HTTP/1.1 200") == 3
    after = raw(shared, request(bodies[0]) + b"\x00\x00garbage\r\n\r\n")
    assert after.count(b"HTTP/1.1") == 1 and b"502.1" in after, "garbage must not take the place of an answer"


def test_an_upgrade_nobody_makes_is_ignored(shared):
    found = raw(shared, request(connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AAMAAABkAAQCAAAAAAIAAAAA"), close=True)
    assert b"HTTP/1.1 200" in found and b"3.0" in found


@pytest.mark.parametrize(("first", "rest"), [(60, [b""]), (75, [ONE[:7]]), (0, [b"x" * 5000 + b"\r\nx: "])], ids=["in two pieces", "in three pieces", "behind much else"])
def test_an_upgrade_that_comes_late_costs_no_body(shared, first, rest):
    """The parser stops at an upgrade; the body behind it was lost, and a good request was refused as empty."""
    whole = request(connection="Upgrade", x=rest[0].decode() if not first else "1", upgrade="h2c")
    cuts = [0, first, len(whole) - len(ONE) + len(rest[0]), len(whole)] if first else [0, len(whole)]
    found = raw(shared, *(whole[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)), wait=0.05)
    assert b"HTTP/1.1 200" in found and b"3.0" in found, found


@pytest.mark.parametrize("line", [b"x" * 4096, b"h: v\r\n" * 600], ids=["one header", "many headers"])
def test_headers_without_end_are_cut_short(shared, line):
    """All headers are kept until the last one has come: half a minute of them would be a lot of memory."""
    found = raw(shared, b"GET /v1/models/m HTTP/1.1\r\nhost: x\r\nx: ", *[line] * 40, wait=0.001)
    assert found.startswith(b"HTTP/1.1 431") or not found   # what is thrown away unread may take the answer with it
    still_there(shared)
    assert ask(shared, x_long="a" * 30_000)[0] == 200


def test_a_body_that_waits_for_leave_gets_it(shared):
    whole = request(expect="100-continue")
    head, body = whole[:-len(ONE)], whole[-len(ONE):]
    found = raw(shared, head, body, wait=0.1, close=True)
    assert found.startswith(b"HTTP/1.1 100") and b"3.0" in found


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_too_large_is_413_announced_chunked_packed_or_over_grpc(shared):
    large = b'{"instances": [' + b"1.0, " * 40_000 + b"1.0]}"
    status, _, body = ask(shared, body=large)
    assert status == 413 and b"--max-request-bytes" in body
    assert ask(shared, body=iter([large[:70_000], large[70_000:]]), transfer_encoding="chunked")[0] == 413
    assert ask(shared, body=gzip.compress(large), content_encoding="gzip")[0] == 413
    code, text = call(shared, message=predict_request(*[1.0] * 40_000))
    assert code == "RESOURCE_EXHAUSTED" and "larger than max" in text
    still_there(shared)


def test_packed_bodies_are_read(shared):
    assert b"3.0" in ask(shared, body=gzip.compress(ONE), content_encoding="gzip")[2]
    assert ask(shared, body=ONE, content_encoding="gzip")[0] == 400


def test_too_many_at_once_are_refused_in_words(tmp_path, monkeypatch):
    slow = json.dumps({"instances": [SLOW + 1.5]}).encode()
    with serving(tmp_path / "m", monkeypatch, max_concurrent=2) as server:
        threads = [threading.Thread(target=ask, args=(server, PREDICT, slow)) for _ in range(2)]
        for thread in threads: thread.start()
        time.sleep(0.4)
        status, headers, body = ask(server)
        code, text = call(server, message=predict_request(1.0))
        assert (status, headers["retry-after"], code) == (429, "1", "RESOURCE_EXHAUSTED")
        assert b"--max-concurrent-requests" in body and "--max-concurrent-requests" in text
        assert [ask(server, path, None)[0] for path in ("/healthz", "/readyz", "/openapi.json")] == [200, 200, 429]
        for thread in threads: thread.join()
        still_there(server)


def test_deadlines_hold_on_both_doors(tmp_path, monkeypatch):
    slow = json.dumps({"instances": [SLOW + 5]}).encode()
    with serving(tmp_path / "m", monkeypatch, timeout_seconds=0.6) as server:
        for headers, least, most in (({}, 0.6, 3), ({"x_request_timeout_ms": "200"}, 0.2, 0.6), ({"x_envoy_expected_rq_timeout_ms": "200"}, 0.2, 0.6)):
            started = time.monotonic()
            assert ask(server, body=slow, **headers)[0] == 504
            assert least <= time.monotonic() - started < most + 1
        assert call(server, message=predict_request(SLOW + 5), timeout=0.3)[0] == "DEADLINE_EXCEEDED"
        still_there(server)


# ---- who may ask ----------------------------------------------------------------------------------------------------


def test_a_token_opens_both_doors(tmp_path, monkeypatch):
    token, place = "0123456789abcdef", tmp_path / "tokens"
    place.write_text(token)
    place.chmod(0o600)
    with serving(tmp_path / "m", monkeypatch, token_file=str(place)) as server:
        status, headers, body = ask(server)
        assert status == 401 and headers["www-authenticate"].startswith("Bearer") and b"predictions" not in body
        assert ask(server, authorization="Bearer wrong-wrong-wrong")[0] == 401
        assert ask(server, authorization=f"Bearer {token}")[0] == 200
        assert [ask(server, path, None)[0] for path in ("/healthz", "/readyz", "/monitoring/prometheus/metrics", "/openapi.json")] == [200, 200, 401, 401]
        assert call(server, message=predict_request(2.0))[0] == "UNAUTHENTICATED"
        assert call(server, message=predict_request(2.0), metadata=[("authorization", f"Bearer {token}")])[0] == "OK"
        assert call(server, "Check", body=b"", service="grpc.health.v1.Health")[0] == "OK"


def certificate(folder):
    """A key and a certificate for 127.0.0.1, made by openssl."""
    done = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2",
                           "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"], capture_output=True)
    if done.returncode: pytest.skip("openssl is not here")
    return folder / "key.pem", folder / "cert.pem"


@pytest.mark.parametrize("as_file", [True, False], ids=["SSLConfig", "PEM"])
def test_tls_on_both_doors(tmp_path, monkeypatch, as_file):
    key, cert = certificate(tmp_path)
    given = {"tls_key": str(key), "tls_cert": str(cert)}
    if as_file:
        (tmp_path / "ssl.txt").write_text(f"server_key: {json.dumps(key.read_text())} server_cert: {json.dumps(cert.read_text())}")
        given = {"ssl_config_file": str(tmp_path / "ssl.txt")}
    with serving(tmp_path / "m", monkeypatch, **given) as server:
        assert server.url.startswith("https://")
        connection = http.client.HTTPSConnection("127.0.0.1", server.rest_port, context=ssl.create_default_context(cafile=cert), timeout=10)
        connection.request("POST", PREDICT, ONE)
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises((ConnectionError, http.client.HTTPException)): ask(server)
        channel = grpc.secure_channel(server.target, grpc.ssl_channel_credentials(cert.read_bytes()))
        assert call(server, message=predict_request(2.0), channel=channel)[0] == "OK"


def test_other_origins_only_where_allowed(tmp_path, monkeypatch, shared):
    assert ask(shared, method="OPTIONS", body=None, origin="https://page")[0] == 200
    status, _, body = ask(shared, method="OPTIONS", body=None)
    assert status == 400 and b"Origin header is missing" in body
    assert "access-control-allow-origin" not in ask(shared, origin="https://page")[1]
    with serving(tmp_path / "m", monkeypatch, cors=True) as server:
        assert ask(server, origin="https://page")[1]["access-control-allow-origin"] == "*"


# ---- what it tells --------------------------------------------------------------------------------------------------


def test_the_access_log_has_every_request_and_no_content(tmp_path, monkeypatch):
    place = tmp_path / "access.jsonl"
    with serving(tmp_path / "m", monkeypatch, access_log=str(place)) as server:
        ask(server, PREDICT + "?name=Ann", b'{"instances": [711.25]}', x_request_id="a")
        ask(server, "/v1/models/none:predict", x_request_id="b")
        call(server, message=predict_request(711.25), metadata=[("x-request-id", "c")])
        call(server, body=b"\xff\xff")
    text = place.read_text()
    lines = {one["id"]: one for one in map(json.loads, text.splitlines())}
    assert len(lines) == 4 and "711" not in text and "Ann" not in text
    assert [lines[name]["code"] for name in "abc"] == ["OK", "NOT_FOUND", "OK"]
    assert (lines["a"]["status"], lines["a"]["version"], lines["a"]["model"], lines["c"]["path"]) == (200, 2, "m", "/tensorflow.serving.PredictionService/Predict")


def test_metrics_are_where_the_file_says(tmp_path, monkeypatch, shared):
    text = ask(shared, "/monitoring/prometheus/metrics", None)[2].decode()
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"}' in text and 'mlnb_loaded_versions{model="m",version="2"} 1' in text
    for config, path, status in (('enable: true path: "/here"', "/here", 200), ("enable: false", "/monitoring/prometheus/metrics", 404)):
        (tmp_path / "monitoring.txt").write_text(f"prometheus_config {{ {config} }}")
        with serving(tmp_path / "m", monkeypatch, monitoring_file=str(tmp_path / "monitoring.txt")) as server: assert ask(server, path, None)[0] == status


def test_health_follows_the_server(shared):
    def state(service): return messages.HealthCheckResponse.FromString(call(shared, "Check", messages.HealthCheckRequest(service=service), service="grpc.health.v1.Health")[1]).status
    assert [state(name) for name in ("", "PredictionService", "ModelService")] == [1, 1, 1]
    assert call(shared, "Check", messages.HealthCheckRequest(service="x"), service="grpc.health.v1.Health")[0] == "NOT_FOUND"
    assert json.loads(ask(shared, "/readyz", None)[2])["models"] == {"m": ["2 AVAILABLE"]}


def test_reload_changes_the_models_and_tells_metrics(tmp_path, monkeypatch):
    fake_model(tmp_path / "other", 7)
    with serving(tmp_path / "m", monkeypatch) as server:
        ask(server)
        message = messages.ReloadConfigRequest(metric_names=["/tensorflow/serving/request_count"])
        message.config.model_config_list.config.add(name="other", base_path=str(tmp_path / "other"), model_platform="tensorflow")
        code, body = call(server, "HandleReloadConfigRequest", message, service="tensorflow.serving.ModelService")
        assert code == "OK" and messages.ReloadConfigResponse.FromString(body).metric[0].int64_value_increase == 0
        assert [ask(server, path)[0] for path in ("/v1/models/other:predict", PREDICT)] == [200, 404]
        message.config.model_config_list.config.add(name="x", base_path="relative", model_platform="tensorflow")
        code, text = call(server, "HandleReloadConfigRequest", message, service="tensorflow.serving.ModelService")
        assert code == "INVALID_ARGUMENT" and "absolute path" in text
        assert ask(server, "/v1/models/other:predict")[0] == 200


# ---- leaving --------------------------------------------------------------------------------------------------------


class Line:
    """A worker as its supervisor sees it."""

    def __init__(self, *refusals): self.refusals, self.told = list(refusals), []

    async def ask(self, question, config=""):
        self.told.append(messages.ModelServerConfig.FromString(base64.b64decode(config)).model_config_list.config[0].name)
        if (refusal := self.refusals.pop(0) if self.refusals else "") == "": return {}
        raise Refusal(refusal, "no")


@pytest.mark.parametrize(("refusals", "told", "kept"), [
    (("", ""), [["new"], ["new"]], "new"), (("FAILED_PRECONDITION", ""), [["new", "m"], ["new", "m"]], None), (("FAILED_PRECONDITION",) * 2, [["new"], ["new"]], None),
    (("UNKNOWN", "UNKNOWN"), [["new"], ["new"]], "new"), (("UNKNOWN", ""), [["new", "m"], ["new", "m"]], None)])
def test_after_a_reload_all_workers_have_the_same(tmp_path, refusals, told, kept):
    """The first reload had no configuration to go back to; one whose model did not come was taken over, and forgotten with the next worker."""
    fake_model(tmp_path / "m", 1)
    supervisor = Supervisor(check_options(ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=None, grpc_port=0, workers=2)))
    for slot, refusal in zip(supervisor.slots, refusals, strict=True): slot.ready, slot.peer = True, Line(refusal)
    async def reload():
        with pytest.raises(Refusal) if any(refusals) else nullcontext(): await supervisor.reload(model_config([model_entry("new", "/new")]))
    asyncio.run(reload())
    supervisor._grpc.close()
    assert [slot.peer.told for slot in supervisor.slots] == told and (supervisor.config and supervisor.config.model_config_list.config[0].name) == kept


def test_requests_under_way_finish_and_readiness_goes_first(tmp_path, monkeypatch):
    slow, found = json.dumps({"instances": [SLOW + 1.0]}).encode(), []
    with serving(tmp_path / "m", monkeypatch) as server:
        threads = [threading.Thread(target=lambda: found.append(ask(server, body=slow)[0])) for _ in range(4)]
        threads += [threading.Thread(target=lambda: found.append(call(server, message=predict_request(SLOW + 1.0))[0])) for _ in range(2)]
        for thread in threads: thread.start()
        time.sleep(0.4)
        server.stop()
        for thread in threads: thread.join()
    assert sorted(map(str, found)) == ["200"] * 4 + ["OK"] * 2
    with pytest.raises(ConnectionError): ask(server)


STAND_IN = """
import sys, json
sys.path.insert(0, {tests!r})
import mlnb.serving.process as process
from fake_servable import fake_loader
process.loader = fake_loader
import mlnb.serving.loaded as loaded
loaded.freeze_imports = lambda: None
from mlnb.serving.server import serve_process
sys.exit(serve_process({options!r}))
"""


def start_alone(options):
    """A server of the stand-in in a process of its own; the process and its ports."""
    from mlnb.serving.serve_options import options_to_text
    code = STAND_IN.format(tests=str(ROOT / "tests"), options=options_to_text(options))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return process, json.loads(process.stdout.readline())


def test_sigterm_says_not_ready_first_and_keeps_answering(tmp_path):
    fake_model(tmp_path / "m", 2)
    process, ports = start_alone(ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=0, grpc_port=0, notice_seconds=1.5))
    try:
        connection = http.client.HTTPConnection("127.0.0.1", ports["rest"], timeout=10)
        def get(path, body=None):
            connection.request("POST" if body else "GET", path, body)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers.get("connection")
        assert get("/readyz") == (200, None) and get(PREDICT, ONE) == (200, None)
        process.terminate()
        time.sleep(0.3)
        assert get("/readyz") == (503, "close")
        assert get(PREDICT, ONE) == (200, "close"), "new connections are still taken"
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_taken_port_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    with serving(tmp_path / "m", monkeypatch) as server:
        for port in ({"rest_port": server.rest_port}, {"grpc_port": server.grpc_port}):
            with pytest.raises(ServingError, match="cannot be listened on"), serving(tmp_path / "m", monkeypatch, **port): pass


def test_a_model_that_does_not_load_is_told(tmp_path, monkeypatch):
    def broken(options, metrics):
        def load(*given): raise ValueError("no graph")
        return load
    fake_model(tmp_path / "m", 2)
    monkeypatch.setattr("mlnb.serving.process.loader", broken)
    with pytest.raises(ServingError, match="cannot be loaded"):
        start_server(ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=0, grpc_port=None, load_retries=0))


def test_a_start_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    """Threads, models and the prediction log of a server that could not start stayed in the process of the notebook."""
    for name in "mn": fake_model(tmp_path / name, 2)
    made = []
    def loader(options, metrics):
        def load(model, version, folder):
            if model == "n": raise ValueError("no graph")
            made.append(FakeServable(version))
            return made[-1]
        return load
    monkeypatch.setattr("mlnb.serving.process.loader", loader)
    config = "".join(f'config {{ name: "{name}" base_path: "{tmp_path / name}" model_platform: "tensorflow" }} ' for name in "mn")
    before = set(threading.enumerate())
    with pytest.raises(ServingError, match="cannot be loaded"):
        start_server(ServerOptions(model_config=f"model_config_list {{ {config} }}", rest_port=0, grpc_port=None, load_retries=0, prediction_log=str(tmp_path / "log"),
                                   access_log=str(tmp_path / "access")))
    until = time.monotonic() + 5
    while (left := [one.name for one in threading.enumerate() if one not in before]) and time.monotonic() < until: time.sleep(0.02)
    assert not left and [one.closed for one in made] == [True]


def test_command_lines_of_upstream_are_understood(tmp_path):
    """Flags of tensorflow_model_server, as people have them in their manifests."""
    from argparse import ArgumentParser

    from mlnb.serving.serve_command import options_of
    from mlnb.serving_words import SERVE

    parser = ArgumentParser(allow_abbrev=False)
    for names, row in SERVE["serve"][2]: parser.add_argument(*names, **row)
    line = ["--model_base_path=/m", "--saved_model_tags=serve,gpu", "--num_request_iterations_for_warmup=3", "--tensorflow_intra_op_parallelism=2", "--flush_filesystem_caches=true",
            "--per_process_gpu_memory_fraction=0.5", "--enable_profiler", "--tensorflow_inter_op_parallelism=4", "--rest_api_num_threads=8"]
    options = options_of(parser.parse_args(line))
    assert (options.tags, options.warm_up_rounds, options.threads) == (("serve", "gpu"), 3, 2)
    assert options_of(parser.parse_args([*line, "--tensorflow_session_parallelism=5"])).threads == 5 and options_of(parser.parse_args(line[:1])).tags == ("serve",)


# ---- a model that is wanted and not there ---------------------------------------------------------------------------


def tell_signature(folder):
    """Let a version's folder say what the stand-in would be asked; it has no graph."""
    saved = messages.SavedModel()
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    for side, name in (("inputs", "x"), ("outputs", "y")):
        one = getattr(graph.signature_def["serving_default"], side)[name]
        one.name, one.dtype = f"{name}:0", 1
        one.tensor_shape.dim.add(size=-1)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())


def failing_until(mended):
    """A loader that fails until somebody mends it."""
    def loader(options, metrics):
        def load(model, version, folder):
            if not mended.is_set(): raise ValueError("no graph")
            return FakeServable(version)
        return load
    return loader


def fallbacks(folder, **models):
    """A file of fallbacks."""
    (folder / "fallbacks.json").write_text(json.dumps({name: {"deadline_ms": 500, "to": steps} for name, steps in models.items()}))
    return str(folder / "fallbacks.json")


def test_a_fallback_answers_for_a_model_that_does_not_load(tmp_path, monkeypatch):
    """The server starts, says who answers and why, refuses what the model would refuse, and is not ready; the model takes over when it comes."""
    fake_model(tmp_path / "m", 2)
    tell_signature(tmp_path / "m/2")
    mended = threading.Event()
    monkeypatch.setattr("mlnb.serving.process.loader", failing_until(mended))
    options = ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=0, grpc_port=0, poll_seconds=0.1, drain_seconds=2.0,
                            fallback_file=fallbacks(tmp_path, m=[{"value": {"y": -1.0}}]), prediction_log=str(tmp_path / "log"))
    with start_server(options) as server:
        status, headers, body = ask(server, body=b'{"instances": [1.0, 5.0]}', x_request_id="one")
        assert (status, json.loads(body)["predictions"], headers["x-mlnb-fallback"]) == (200, [-1.0, -1.0], "value;reason=absent")
        assert "x-mlnb-model-version" not in headers
        assert ask(server, "/v1/models/m/versions/2:predict")[0] == 200
        code, answer = call(server, message=predict_request(1.0))
        assert code == "OK" and list(messages.PredictResponse.FromString(answer).outputs["y"].float_val) == [-1.0]
        for path, body in ((PREDICT, b'{"instances": ["a"]}'), (PREDICT, b'{"instances": [{"z": 1.0}]}'), (PREDICT, b'{"signature_name": "s", "instances": [1.0]}'),
                           ("/v1/models/m/labels/canary:predict", ONE)): assert ask(server, path, body)[0] == 400, (path, body)
        wrong = predict_request(1.0)
        wrong.inputs["x"].dtype = 3
        assert call(server, message=wrong)[0] == "INVALID_ARGUMENT"
        for path in ("/v1/models/n:predict", "/v1/models/m/versions/7:predict"): assert ask(server, path)[0] == 404, path
        assert call(server, message=predict_request(1.0, name="n"))[0] == "NOT_FOUND"
        assert ask(server, "/v1/models/m/metadata", None)[0] == 404 and ask(server, "/readyz", None)[0] == 503
        assert b'mlnb_fallback_answers_total{model="m",who="value",reason="absent"} 3' in ask(server, "/monitoring/prometheus/metrics", None)[2]
        mended.set()
        (tmp_path / "m/2/graph").write_text("here")
        until = time.monotonic() + 20
        while ask(server, "/readyz", None)[0] == 503 and time.monotonic() < until: time.sleep(0.05)
        status, headers, body = ask(server)
        assert (json.loads(body)["predictions"], headers["x-mlnb-model-version"]) == ([3.0], "2") and "x-mlnb-fallback" not in headers
    from mlnb.serving.prediction_log import read_log
    first = read_log(tmp_path / "log").iloc[0]
    assert (first["request_id"], first["version"], first["fallback"]) == ("one", 0, "value;reason=absent")


def test_a_model_whose_signature_nobody_knows_is_not_stood_in_for(tmp_path, monkeypatch):
    fake_model(tmp_path / "m", 2)
    monkeypatch.setattr("mlnb.serving.process.loader", failing_until(threading.Event()))
    options = ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=0, grpc_port=None, load_retries=0, fallback_file=fallbacks(tmp_path, m=[{"value": 1.0}]))
    with pytest.raises(ServingError, match="cannot be loaded"): start_server(options)


def test_the_signature_of_who_answers_serves_where_the_own_is_lost(tmp_path, monkeypatch):
    """Another model is loaded and stands in; versions that are taken away leave the signature they had."""
    for name in "mn": fake_model(tmp_path / name, 2)
    monkeypatch.setattr("mlnb.serving.process.loader", fake_loader)
    config = "".join(f'config {{ name: "{name}" base_path: "{tmp_path / name}" model_platform: "tensorflow" }} ' for name in "mn")
    options = ServerOptions(model_config=f"model_config_list {{ {config} }}", rest_port=0, grpc_port=None, poll_seconds=0.1, drain_seconds=2.0,
                            fallback_file=fallbacks(tmp_path, m=[{"model": "n"}]))
    with start_server(options) as server:
        assert "x-mlnb-fallback" not in ask(server)[1]
        (tmp_path / "m/2").rename(tmp_path / "m/gone")
        until = time.monotonic() + 20
        while "x-mlnb-fallback" not in (found := ask(server))[1] and time.monotonic() < until:
            assert found[0] == 200, found
        assert (found[0], found[1]["x-mlnb-fallback"], json.loads(found[2])["predictions"]) == (200, "model:n;reason=absent", [3.0])


@pytest.mark.parametrize(("steps", "said"), [([{"value": {"z": 1.0}}], "nothing is said of the output y"), ([{"model": "nobody"}, {"rule": "0.1 * age"}], "has no input age")])
def test_a_fallback_that_can_never_answer_is_no_start(tmp_path, monkeypatch, steps, said):
    with pytest.raises(ServingError, match="nobody can ever answer") as caught, serving(tmp_path / "m", monkeypatch, fallback_file=fallbacks(tmp_path, m=steps)): pass
    assert said in str(caught.value)


def test_a_step_that_does_not_fit_is_said_once_and_served_around(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "m"
    fake_model(folder, 2)
    file = fallbacks(tmp_path, m=[{"rule": "0.1 * age"}, {"value": 1.0}], other=[{"value": 1.0}])
    with serving(folder, monkeypatch, fallback_file=file, poll_seconds=0.1) as server:
        said = [record.message for record in caplog.records if "fallback_unfit" in record.message]
        assert len(said) == 2 and "model=m" in said[0] and "has no input age" in said[0] and "model=other" in said[1] and "not served here" in said[1]
        (folder / "3").mkdir()
        until = time.monotonic() + 20
        while ask(server)[1].get("x-mlnb-model-version") != "3" and time.monotonic() < until: time.sleep(0.02)
        still = json.loads(ask(server, body=b'{"instances": [2.0]}')[2])["predictions"]
    assert still == [4.0] and len([record for record in caplog.records if "fallback_unfit" in record.message]) == 2


def test_the_metrics_name_who_computed(tmp_path, monkeypatch):
    """An answer of the ONNX twin was counted as TensorFlow's."""
    class Twinned(FakeServable):
        async def answer(self, signature, feeds, outputs=None, deadline=None):
            found = await super().answer(signature, feeds, outputs, deadline)
            return TwinOutputs(found) if feeds["x"].size else found
    def loader(options, metrics): return lambda model, version, folder: Twinned(version)
    fake_model(tmp_path / "m", 2)
    monkeypatch.setattr("mlnb.serving.process.loader", loader)
    with start_server(ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=0, grpc_port=0, drain_seconds=2.0)) as server:
        for _ in range(2): assert ask(server)[0] == 200
        assert call(server, message=predict_request(1.0))[0] == "OK" and ask(server, body=b'{"inputs": []}')[0] == 200
        page = ask(server, "/monitoring/prometheus/metrics", None)[2].decode()
    counts = {line.split("runtime=")[1].split('"')[1]: int(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(":tensorflow:serving:runtime_latency_count{")}
    assert counts == {"ONNX": 3, "TF1": 1}


# ---- the OpenAPI description ----------------------------------------------------------------------------------------

def test_what_openapi_says_is_so(shared):
    """Whatever fits the description, and whatever does not, gets an answer that is described, and never a 5xx."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )
    seen = set()

    def check(case):
        response = case.call(base_url=shared.url, timeout=10)
        seen.add((case.path, response.status_code))
        case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance])

    for operation in schemathesis.openapi.from_url(f"{shared.url}/openapi.json").get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and operation.ok().method != "post": continue
            strategy = operation.ok().as_strategy(generation_mode=mode)
            settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))(given(strategy)(check))()
    assert {status for path, status in seen if path == PREDICT} >= {200, 400}, "the description fits requests that work, and ones that do not"
    assert len({path for path, _ in seen}) >= 8
