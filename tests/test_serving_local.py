"""Deployments on this machine, through a live Envoy: shares, copies, starts that fail or are killed, rehearsals. The servers only pretend."""
import collections
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time

import live_envoy
import numpy as np
import pytest
from live_envoy import (
    RELEASE,
    ROOT,
    STAND_IN,
    Load,
    processes_of,
    shares,
    started,
)

from mlnb.errors import ServingError
from mlnb.serving.deploy import plan_for
from mlnb.serving.envoy_admin import version_counts
from mlnb.serving.local import is_alive, living, read_deployment, start_local, stop_local
from mlnb.serving.rehearsal import rehearse

pytest.importorskip("envoy", reason="the extra 'deploy' is not installed, so there is no Envoy to ask")
place, quick = live_envoy.place, live_envoy.quick   # fixtures


def test_the_split_is_the_one_that_was_asked_for_and_stays_with_the_user(place):
    deployment = start_local(place, "r", RELEASE._replace(share=0.25), STAND_IN, 30)
    with Load(deployment.rest, 2) as load:
        while sum(load.met.values()) < 1500: time.sleep(0.02)
    found = shares({version: load.of(version) for version in (1, 2)})
    assert abs(found[2] - 0.25) < 0.06 and not load.lost and not load.unlucky
    connection = http.client.HTTPConnection("127.0.0.1", deployment.rest)

    def who(**headers):
        connection.request("POST", "/v1/models/m:predict", '{"instances": [[1]]}', {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.read()
        return answer.headers["x-mlnb-model-version"]

    users = [f"u{i}" for i in range(300)]
    first = {user: who(x_user_id=user) for user in users}
    assert first == {user: who(x_user_id=user) for user in users} and abs(shares(collections.Counter(first.values()))["2"] - 0.25) < 0.12
    start_local(place, "r", RELEASE._replace(share=0.5), STAND_IN, 30)
    second = {user: who(x_user_id=user) for user in users}
    assert all(second[user] == "2" for user in users if first[user] == "2"), "a growing share takes nobody back"
    assert len([user for user in users if second[user] == "2"]) > len([user for user in users if first[user] == "2"])
    start_local(place, "r", RELEASE._replace(share=0.5, strategy="ab"), STAND_IN, 30)
    assert [{who(x_mlnb_version=version, x_user_id=user) for user in users[:40]} for version in "12"] == [{"1"}, {"2"}]
    for path, version in (("versions/1", "1"), ("versions/02", "2"), ("labels/champion", "1"), ("labels/challenger", "2")):
        seen = set()
        for _ in range(12):
            connection.request("POST", f"/v1/models/m/{path}:predict", '{"instances": [[1]]}')
            answer = connection.getresponse()
            seen.add((answer.status, json.loads(answer.read())["version"], answer.headers["x-mlnb-model-version"]))
        assert seen == {(200, int(version), version)}


def test_grpc_is_split_and_its_failures_are_counted(place, monkeypatch):
    import grpc
    monkeypatch.setenv("MLNB_STAND_IN", '{"2": {"errors": 0.5}, "grpc": true}')
    deployment = start_local(place, "r", RELEASE._replace(share=0.5), STAND_IN, 30)
    met = collections.Counter()
    with grpc.insecure_channel(f"127.0.0.1:{deployment.grpc}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for _ in range(400):
            try: met[call(b"x", timeout=10).decode()] += 1
            except grpc.RpcError as e: met[e.code().name] += 1
        sticky = [call.with_call(b"x", timeout=10, metadata=[("x-user-id", "somebody who gets 1 ...")]) for _ in range(3)] if met["1"] else []
    assert len({one[0] for one in sticky}) <= 1
    counts = version_counts(deployment.admin, deployment.release)
    assert counts[2].errors == met["UNAVAILABLE"] > 50 and counts[2].requests == met["UNAVAILABLE"] + met["2"] and counts[1].errors == 0
    assert abs(counts[2].requests / 400 - 0.5) < 0.12


def test_a_shadow_gets_a_copy_of_everything_and_answers_nobody(place):
    deployment = start_local(place, "r", RELEASE._replace(strategy="shadow", share=1.0), STAND_IN, 30)
    connection = http.client.HTTPConnection("127.0.0.1", deployment.rest)
    for size in (1, 1000, 400_000):
        for _ in range(20):
            connection.request("POST", "/v1/models/m:predict", json.dumps({"instances": [[1.0] * size]}))
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["predictions"], answer.headers["x-mlnb-model-version"]) == (200, [size], "1")
    until = time.monotonic() + 10
    while (counts := version_counts(deployment.admin, deployment.release))[2].requests < 60 and time.monotonic() < until: time.sleep(0.05)
    assert (counts[1].requests, counts[2].requests, counts[2].errors) == (60, 60, 0)


def test_a_version_that_does_not_start_takes_nobody_with_it(place, monkeypatch):
    deployment = start_local(place, "r", RELEASE._replace(new=0), STAND_IN, 30)
    with Load(deployment.rest) as load:
        for faults, words in (({"fails_to_start": 1}, "does not load"), ({"never_ready": 1}, "LOADING")):
            monkeypatch.setenv("MLNB_STAND_IN", json.dumps({"2": faults}))
            with pytest.raises(ServingError, match=words): start_local(place, "r", RELEASE, STAND_IN, 2)
            assert read_deployment(place) == deployment and all(living(deployment).values())
            assert not [line for line in processes_of(place) if "servers/v2/" in line]
    assert load.lost == [] and set(load.met) == {(200, "1")}


def test_a_port_that_is_taken_is_said_and_nothing_is_left(place, tmp_path):
    import socket
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ServingError, match="Envoy does not start") as error:
            start_local(place, "r", RELEASE._replace(rest_port=other.getsockname()[1]), STAND_IN, 30)
    assert re.search("(?i)address already in use", str(error.value)) and processes_of(tmp_path) == [] and read_deployment(place) is None


def test_what_a_killed_start_leaves_is_found_and_ended(place, tmp_path):
    start = f"""
import sys
from mlnb.serving.local import start_local
from mlnb.serving.rehearsal import rehearse
from mlnb.serving.release import Release
start_local({str(place)!r}, "r", Release("m", 1, 2, rest_port=0, grpc_port=0), ({STAND_IN[0]!r}, {STAND_IN[1]!r}), 30)
"""
    for delay in (0.0, 0.05, 0.3):
        process = subprocess.Popen([sys.executable, "-c", start], env={**os.environ, "PYTHONPATH": str(ROOT)})
        until = time.monotonic() + 20
        while not started(place) and time.monotonic() < until: time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert started(place)
        if delay: (place / "deployment.json").unlink(missing_ok=True)   # as if it had been killed before it could write
        stop_local(place)
        assert processes_of(place) == []


def test_a_deployment_outlives_the_terminal_that_started_it(place):
    start = f"""
import signal, time
from mlnb.serving.local import start_local
from mlnb.serving.rehearsal import rehearse
from mlnb.serving.release import Release
start_local({str(place)!r}, "r", Release("m", 1, 2, rest_port=0, grpc_port=0), ({STAND_IN[0]!r}, {STAND_IN[1]!r}), 30)
print("up", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", start], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline().strip() == "up"
    os.killpg(process.pid, signal.SIGHUP)
    process.wait()
    time.sleep(0.2)
    deployment = read_deployment(place)
    assert living(deployment) == {"v1": True, "v2": True, "envoy": True}
    with Load(deployment.rest) as load: time.sleep(0.3)
    assert load.of(1) and not load.lost
    assert set(stop_local(place)) == {"envoy", "v1", "v2"} and stop_local(place) == []


def test_servers_that_are_to_be_started_otherwise_are_replaced_and_no_request_is_lost(place):
    first = start_local(place, "r", RELEASE._replace(share=0.3), STAND_IN, 30)
    with Load(first.rest) as load:
        time.sleep(0.2)
        second = start_local(place, "r", RELEASE._replace(share=0.3), (*STAND_IN, "--prediction-log=somewhere"), 30)
        time.sleep(0.3)
        with pytest.raises(ServingError, match="ended while it started"): start_local(place, "r", RELEASE._replace(share=0.3), (sys.executable, "-c", "raise SystemExit(1)"), 30)
        time.sleep(0.2)
    assert set(first.servers.values()) & set(second.servers.values()) == set() and first.envoy == second.envoy
    assert read_deployment(place) == second and all(living(second).values())
    assert load.lost == [] and set(load.met) == {(200, "1"), (200, "2")} and not any(is_alive(one) for one in first.servers.values())


@pytest.mark.parametrize(("strategy", "faults", "verdict"), [("canary", {}, "held"), ("canary", {"errors": 0.3}, "withdrawn"), ("canary", {"wrong": 1.0}, "withdrawn"),
                                                             ("shadow", {}, "held"), ("shadow", {"wrong": 1.0}, "withdrawn")])
def test_a_rehearsal_tells_a_good_version_from_a_bad_one_and_leaves_nothing(tmp_path, monkeypatch, faults, verdict, strategy):
    monkeypatch.setenv("MLNB_STAND_IN", json.dumps({"2": faults}))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = {"x": np.tile([0.05, 0.95], 120)}
    plan = plan_for(strategy, (0.2, 1.0), min_requests=60, quality_margin=0.05, latency_ratio=0)
    found = rehearse(tmp_path / "registry", RELEASE._replace(strategy=strategy), plan, rows, np.tile([0, 1], 120), seconds=30, command=STAND_IN)
    assert found.verdict == verdict, found
    assert found.requests["lost"] == 0 and found.requests["champion"] and json.dumps(found.as_dict()) and processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    if strategy == "shadow": assert found.requests["new"] == 0
