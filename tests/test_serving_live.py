"""Versions that come and go, and workers that die, while clients ask: no request is lost and none is answered wrongly. Real models, real processes."""
import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from half_plus_two import build

from mlnb.serving import messages
from mlnb.serving.promotion import promote
from mlnb.serving.registry import register
from mlnb.serving.serve_options import ServerOptions
from mlnb.serving.server import start_server
from mlnb.serving.tensors import to_array, to_tensor

PREDICT = "/v1/models/m:predict"


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Three models that answer distinguishably: version n answers x / 2 + n."""
    folder = tmp_path_factory.mktemp("exports")
    build(*(f"{folder / str(number)}:0.5:{number}" for number in (1, 2, 3)))
    return folder


class Asker(threading.Thread):
    """Asks without pause on one connection, and keeps what came; `again` repeats a request whose connection broke."""

    def __init__(self, server, again=False):
        super().__init__(daemon=True)
        self.server, self.again, self.seen, self.wrong, self.lost, self.done = server, again, [], [], [], threading.Event()
        self.start()

    def run(self):
        number = 0
        while not self.done.is_set():
            number += 1
            try: self.check(number % 50, *self.ask(number % 50))
            except (OSError, http.client.HTTPException, grpc.RpcError) as e: self.lost.append(repr(e))
        self.end()

    def check(self, x, version, value):
        if value != x / 2 + version: self.wrong.append((x, version, value))
        self.seen.append(version)


class RestAsker(Asker):
    """Over HTTP, keeping its connection as long as the server does."""

    connection = None

    def ask(self, x):
        for last in (not self.again, True):
            try:
                if self.connection is None: self.connection = http.client.HTTPConnection("127.0.0.1", self.server.rest_port, timeout=20)
                self.connection.request("POST", PREDICT, json.dumps({"instances": [float(x)]}))
                response = self.connection.getresponse()
                body = response.read()
                break
            except (OSError, http.client.HTTPException):
                self.end()
                if last: raise
        if response.status != 200: raise http.client.HTTPException(f"{response.status} {body}")
        if response.headers.get("connection") == "close": self.end()
        return int(response.headers["x-mlnb-model-version"]), json.loads(body)["predictions"][0]

    def end(self):
        if self.connection is not None: self.connection.close()
        self.connection = None


class GrpcAsker(Asker):
    """Over gRPC; a channel that lost its server connects again by itself."""

    channel = None

    def ask(self, x):
        self.channel = self.channel or grpc.insecure_channel(self.server.target)
        request = messages.PredictRequest()
        request.model_spec.name = "m"
        request.inputs["x"].CopyFrom(to_tensor(np.array([x], np.float32)))
        call = self.channel.unary_unary("/tensorflow.serving.PredictionService/Predict", messages.PredictRequest.SerializeToString, messages.PredictResponse.FromString)
        for left in (3, 2, 1, 0) if self.again else (0,):   # a channel may try the dead connection more than once
            try: answer = call(request, timeout=20, wait_for_ready=True)
            except grpc.RpcError as e:
                if not left or e.code() != grpc.StatusCode.UNAVAILABLE: raise
                time.sleep(0.05)
            else: break
        return answer.model_spec.version.value, to_array(answer.outputs["y"]).tolist()[0]

    def end(self):
        if self.channel is not None: self.channel.close()


def finish(askers):
    """Stop them; what they saw together."""
    for one in askers: one.done.set()
    for one in askers: one.join(30)
    assert [one.wrong for one in askers] == [[]] * len(askers)
    assert [one.lost for one in askers] == [[]] * len(askers)
    assert all(len(one.seen) > 5 for one in askers), [len(one.seen) for one in askers]
    return [one.seen for one in askers]


def wait_for(what, seconds=60):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)


def state(server, version):
    """State of a version, over REST."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    connection.request("GET", "/v1/models/m")
    rows = json.loads(connection.getresponse().read()).get("model_version_status", [])
    connection.close()
    return next((row["state"] for row in rows if row["version"] == str(version)), "")


def reload(server, *configs):
    """HandleReloadConfigRequest."""
    message = messages.ReloadConfigRequest()
    message.config.model_config_list.config.extend(configs)
    with grpc.insecure_channel(server.target) as channel: channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")(message.SerializeToString(), timeout=60)


def specific(folder, *numbers):
    """A configuration of exactly these versions."""
    config = messages.ModelConfig(name="m", base_path=str(folder), model_platform="tensorflow")
    config.model_version_policy.specific.versions.extend(numbers)
    return config


@pytest.mark.slow
def test_swaps_and_reloads_under_load(versions, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(versions / "1", folder / "1")
    options = ServerOptions(model_name="m", model_base_path=str(folder), rest_port=0, grpc_port=0, poll_seconds=0.1, notice_seconds=0.5)
    with start_server(options, process=True) as server:
        askers = [RestAsker(server), RestAsker(server), GrpcAsker(server)]
        for number in (2, 3):
            shutil.copytree(versions / str(number), tmp_path / "incoming")
            os.rename(tmp_path / "incoming", folder / str(number))
            wait_for(lambda number=number: state(server, number) == "AVAILABLE" and state(server, number - 1) == "END")
        for numbers in ((1, 3), (1, 2), (2,)): reload(server, specific(folder, *numbers))
        wait_for(lambda: state(server, 2) == "AVAILABLE" and state(server, 3) == "END")
        askers += [RestAsker(server)]
        time.sleep(0.5)
        seen = finish(askers)
        for one in seen[:3]: assert one[0] == 1 and {1, 2, 3} <= set(one) and one[-1] == 2
        assert set(seen[3]) == {2}


@pytest.mark.slow
def test_the_end_of_a_server_loses_nothing_of_who_listens_to_it(versions, tmp_path):
    shutil.copytree(versions / "1", tmp_path / "m" / "1")
    server = start_server(ServerOptions(model_name="m", model_base_path=str(tmp_path / "m"), rest_port=0, grpc_port=0, notice_seconds=0.7), process=True)
    askers = [RestAsker(server) for _ in range(3)]
    time.sleep(0.5)
    os.kill(server.pid, signal.SIGTERM)
    time.sleep(0.5)
    finish(askers)   # they stop asking while the server still says that it will go
    server.stop()


@pytest.mark.slow
def test_a_killed_worker_costs_no_request_that_is_asked_again(versions, tmp_path):
    for number in (1, 2): shutil.copytree(versions / str(number), tmp_path / "m" / str(number))
    config = f'model_config_list {{ config {{ name: "m" base_path: "{tmp_path / "m"}" model_platform: "tensorflow" model_version_policy {{ specific {{ versions: 1 }} }} }} }}'
    options = ServerOptions(model_config=config, rest_port=0, grpc_port=0, workers=2, notice_seconds=0.3)
    with start_server(options, process=True) as server:
        def workers(): return sorted(map(int, subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True).stdout.split()))
        def page():
            connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
            connection.request("GET", "/monitoring/prometheus/metrics")
            return connection.getresponse().read().decode()
        askers = [RestAsker(server, again=True) for _ in range(4)] + [GrpcAsker(server, again=True)]
        reload(server, specific(tmp_path / "m", 2))
        wait_for(lambda: all(one.seen and one.seen[-1] == 2 for one in askers))
        before = workers()
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: "mlnb_worker_restarts_total{} 1" in page())
        wait_for(lambda: "mlnb_workers{} 2" in page())
        assert len(workers()) == 2 and workers() != before
        asked = [RestAsker(server) for _ in range(8)]   # fresh connections reach the new worker as well
        time.sleep(1.0)
        seen = finish(askers + asked)
        for one in seen[:5]: assert one == sorted(one) and one[-1] == 2, "a worker went back to a version of before"
        for one in seen[5:]: assert set(one) == {2}
        counted = [int(line.rsplit(" ", 1)[1]) for line in page().splitlines() if line.startswith(':tensorflow:serving:request_count{model_name="m",status="OK"}')]
        assert counted[0] >= sum(map(len, seen)) - 2000, "what the dead worker counted was kept"


@pytest.mark.slow
def test_a_promotion_reaches_a_server_and_the_champion_is_meant(versions, tmp_path):
    registry = tmp_path / "registry"
    for number in (1, 2, 3): register(registry, "m", versions / str(number), {"evaluation": {"blessed": number == 1}})
    (tmp_path / "fallback.json").write_text(json.dumps({"m": {"deadline_ms": 20_000, "to": [{"value": {"y": -1.0}}]}}))
    options = ServerOptions(registry=str(registry), rest_port=0, grpc_port=0, poll_seconds=0.1, notice_seconds=0.0, prediction_log=str(tmp_path / "log"),
                            fallback_file=str(tmp_path / "fallback.json"))
    with start_server(options, process=True) as server:
        askers = [RestAsker(server), GrpcAsker(server)]
        for number, alias in ((3, "challenger"), (2, "champion")): promote(registry, "m", number, alias, force=True)
        wait_for(lambda: askers[0].seen and askers[0].seen[-1] == 2 and state(server, 3) == "AVAILABLE" and state(server, 1) == "END")
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        connection.request("POST", "/v1/models/m/labels/challenger:predict", '{"instances": [2.0]}', {"x-request-id": "one"})
        assert json.loads(connection.getresponse().read())["predictions"] == [4.0]
        connection.close()
        seen = finish(askers)
        assert all(set(one) == {1, 2} for one in seen), "the challenger answers only who asks for it"
    from mlnb.serving.prediction_log import read_log
    rows = read_log(tmp_path / "log")
    assert len(rows) == sum(map(len, seen)) + 1
    assert set(rows.loc[rows["request_id"] == "one", "version"]) == {3}


def test_mlnb_serve_says_where_everything_is_with_a_line_that_works(versions, tmp_path):
    shutil.copytree(versions / "1", tmp_path / "m" / "1")
    command = ["python", "-m", "mlnb", "serve", "--model_name", "m", "--model_base_path", str(tmp_path / "m"), "--rest_api_port", "0", "--port", "0", "--announce"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    try:
        ports = json.loads(process.stdout.readline())
        assert ports["pid"] == process.pid and ports["rest"] and ports["grpc"]
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line.rstrip())
            if line.startswith("Ctrl-C"): break
        text = next(line for line in lines if line.startswith("curl "))
        assert f"http://127.0.0.1:{ports['rest']}/v1/models/m:predict" in text
        assert all(len(line) <= 80 for line in lines if not line.startswith("curl "))
        if shutil.which("curl"):
            assert json.loads(subprocess.run(["bash", "-c", text], capture_output=True, text=True).stdout) == {"predictions": [1.5]}
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.communicate()
