"""Rollouts through a live Envoy: shares, copies, swaps under load, planted bad versions, killed controllers. The servers only pretend."""
import collections
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mlnb.errors import ServingError
from mlnb.files import write_json
from mlnb.serving.canary import CanaryPlan
from mlnb.serving.deploy import plan_for
from mlnb.serving.envoy_admin import version_counts
from mlnb.serving.local import is_alive, living, read_deployment, retire_servers, start_local, stop_local
from mlnb.serving.registry import read_aliases, register
from mlnb.serving.rehearsal import rehearse
from mlnb.serving.release import Release
from mlnb.serving.rollout import abort_rollout, advance_rollout, start_rollout, tick_rollout, watch_rollout
from mlnb.serving.rollout_state import Rollout, read_rollout, rollout_path, save_rollout
from mlnb.serving.rollout_words import rollout_text
from mlnb.serving.shadow import Answer, pair_answers

pytest.importorskip("envoy", reason="the extra 'deploy' is not installed, so there is no Envoy to ask")
ROOT = Path(__file__).parents[1]
STAND_IN = (sys.executable, str(ROOT / "tests" / "stand_in.py"))
FAST = CanaryPlan(steps=(0.05, 0.25, 0.5, 1.0), min_requests=60, patience_seconds=20, latency_ratio=0)   # this machine stalls
SHORT = FAST._replace(steps=(0.3, 1.0))
RELEASE = Release("m", 1, 2, rest_port=0, grpc_port=0)


def processes_of(folder):
    """Command lines of living processes that mention the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try: words = path.read_bytes().decode(errors="replace")
        except OSError: continue
        if str(folder) in words and path.parent.name != str(os.getpid()): lines.append(words.replace("\0", " "))
    return lines


class Load:
    """Users who ask all the time, and what they met."""

    def __init__(self, port, threads=4, users=0):
        self.port, self.users, self.stop = port, users, threading.Event()
        self.met, self.lost, self.unlucky = collections.Counter(), [], set()
        self.threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(threads)]

    def _ask(self, number):
        connection, i = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20), number
        while not self.stop.is_set():
            i += len(self.threads)
            headers = {"x-user-id": f"user {i % self.users}"} if self.users else {}
            try:
                connection.request("POST", "/v1/models/m:predict", json.dumps({"instances": [[i, 1]]}), headers)
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as e:
                self.lost.append(repr(e))
                connection.close()
                continue
            version = answer.headers["x-mlnb-model-version"]
            self.met[answer.status, version] += 1
            if answer.status == 200 and body["predictions"] != [i + 1] or answer.status != 200: self.unlucky.add((i % self.users) if self.users else i)
            if answer.status == 200: assert str(body["version"]) == version

    def __enter__(self):
        for thread in self.threads: thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        for thread in self.threads: thread.join(30)

    def of(self, version):
        return sum(count for (_, who), count in self.met.items() if who == str(version))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Envoy renews its latencies often, so that steps need not last seconds; processes that tests start keep the real pace."""
    monkeypatch.setattr("mlnb.serving.envoy.STATS_SECONDS", 0.05)
    monkeypatch.setattr("mlnb.serving.rollout._SETTLE", 0.15)
    monkeypatch.setattr("mlnb.serving.rollout._STALL", 1.0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A runs folder whose deployments are stopped whatever happens; nothing of it may be left."""
    monkeypatch.delenv("MLNB_STAND_IN", raising=False)
    yield tmp_path / "deployments" / "m"
    stop_local(tmp_path / "deployments" / "m")
    assert processes_of(tmp_path) == []


def export(folder, text):
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text("graph " + text)
    write_json(folder / "assets.extra" / "mlnb_export.json", {"signatures": {}, "classes": []})
    return folder


def registry_of(folder, blessed=True):
    """Two versions; the first is champion."""
    register(folder / "registry", "m", export(folder / "exports" / "a", "a"), {"evaluation": {"metric": "auc", "value": 0.7, "blessed": True}})
    register(folder / "registry", "m", export(folder / "exports" / "b", "b"), {"evaluation": {"metric": "auc", "value": 0.8, "blessed": blessed}})
    return folder / "registry"


def begin(place, plan=FAST, faults=None, monkeypatch=None, registry="", release=RELEASE):
    """Champion and new version behind Envoy, and a rollout in its first step."""
    if faults: monkeypatch.setenv("MLNB_STAND_IN", json.dumps({"2": faults}))
    deployment = start_local(place, registry or place.parent / "registry", release, STAND_IN, 30)
    path = rollout_path(place.parents[1], "m")
    start_rollout(path, Rollout(release, plan, "local", str(place), str(registry)))
    return path, deployment


def shares(counts):
    total = sum(counts.values())
    return {version: count / total for version, count in counts.items()}


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


def test_a_good_version_gets_everything_and_the_alias_and_no_request_is_lost(place, tmp_path):
    registry = registry_of(tmp_path)
    path, deployment = begin(place, registry=registry)
    said = []
    with Load(deployment.rest, users=500) as load:
        time.sleep(0.3)
        ended = watch_rollout(path, said.append, 0.1)
        time.sleep(0.3)
    assert ended.state == "finished" and [one["action"] for one in ended.history] == ["advance"] * 3 + ["finish"], ended.reason
    assert read_aliases(registry, "m")["champion"] == 2
    assert load.lost == [] and set(load.met) == {(200, "1"), (200, "2")} and not load.unlucky
    assert sum(ended.met.values()) <= sum(load.met.values()) and ended.met[2] >= 4 * FAST.min_requests
    now = read_deployment(place)
    assert (now.release.champion, now.release.new, list(now.servers)) == (2, 0, [2]) and all(living(now).values())
    assert now.envoy == deployment.envoy and now.rest == deployment.rest, "the proxy was not started again"
    assert tick_rollout(path) == ended
    print(f"\n{sum(load.met.values()):,} requests over four splits and one stop: none lost, none wrong")


@pytest.mark.parametrize(("name", "faults", "word"), [
    ("fails", {"errors": 0.2}, "error rate"), ("refuses every request", {"refuses": 1.0}, "error rate"), ("is slow", {"slow": 0.05}, "latency"),
    ("dies", {"dies_after": 40}, "error rate")])
def test_a_planted_bad_version_is_withdrawn(place, tmp_path, monkeypatch, name, faults, word):
    registry = registry_of(tmp_path)
    path, deployment = begin(place, CanaryPlan(min_requests=300, patience_seconds=20), faults, monkeypatch, registry)
    with Load(deployment.rest, users=2000) as load:
        ended = watch_rollout(path, None, 0.1)
        met, everybody = load.of(2), sum(load.met.values())
        time.sleep(0.2)
        after = load.of(2)
        time.sleep(0.5)
        assert load.of(2) == after, "somebody met it after it was withdrawn"
    assert ended.state == "withdrawn" and word in ended.reason and ended.step == 0, ended
    assert read_aliases(registry, "m")["champion"] == 1
    assert set(load.met) - {(200, "1"), (200, "2")} <= {(500, "2"), (400, "2"), (503, "2")}, load.met
    assert load.lost == [] and living(read_deployment(place)) == {"v1": True, "envoy": True}
    assert met < 0.25 * everybody
    users = len(load.unlucky) if "slow" not in faults else met
    print(f"\na version that {name}: withdrawn after {met} of {everybody:,} requests met it ({users} spoiled): {ended.reason}")


def test_a_version_that_answers_wrongly_is_withdrawn_when_labels_arrive(place, tmp_path, monkeypatch):
    plan = CanaryPlan(min_requests=300, quality_margin=0.05, quality_range=(0, 1), patience_seconds=20, latency_ratio=0)
    path, deployment = begin(place, plan, {"wrong": 0.4}, monkeypatch, registry_of(tmp_path))
    labels = {"1": [], "2": []}

    def asking(load):
        connection = http.client.HTTPConnection("127.0.0.1", deployment.rest)
        while not load.is_set():
            connection.request("POST", "/v1/models/m:predict", '{"instances": [[3, 4]]}')
            answer = connection.getresponse()
            right = json.loads(answer.read())["predictions"] == [7]
            labels[answer.headers["x-mlnb-model-version"]].append((time.time(), right))

    def quality(since):
        known = {int(version): [right for moment, right in list(seen) if moment >= since] for version, seen in labels.items()}
        return {version: (len(seen), float(sum(seen)), float(sum(seen))) for version, seen in known.items()}

    stop = threading.Event()
    threads = [threading.Thread(target=asking, args=(stop,)) for _ in range(4)]
    for thread in threads: thread.start()
    try: ended = watch_rollout(path, None, 0.1, quality)
    finally:
        stop.set()
        for thread in threads: thread.join()
    assert ended.state == "withdrawn" and "quality" in ended.reason
    print(f"\na version that is wrong: withdrawn after {ended.met[2]} of {sum(ended.met.values()):,} requests met it: {ended.reason}")


def test_a_controller_that_is_killed_is_followed_by_another(place, tmp_path):
    registry = registry_of(tmp_path)
    path, deployment = begin(place, registry=registry)
    watch = f"from mlnb.serving.rollout import watch_rollout; watch_rollout({str(path)!r}, None, 0.02)"
    killed = 0
    with Load(deployment.rest) as load:
        for delay in (0.0, 0.15, 0.3, 0.45, 0.6, 0.2):
            process = subprocess.Popen([sys.executable, "-c", watch], env={**os.environ, "PYTHONPATH": str(ROOT)})
            step = read_rollout(path).step
            until = time.monotonic() + 20
            while process.poll() is None and read_rollout(path).step == step and time.monotonic() < until: time.sleep(0.005)
            time.sleep(delay / 10)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            assert read_rollout(path).state in ("running", "promoting", "finished")
        ended = watch_rollout(path, None, 0.05)
    assert killed >= 3 and ended.state == "finished" and len(ended.history) == 4
    assert read_aliases(registry, "m")["champion"] == 2 and load.lost == [] and {status for status, _ in load.met} == {200}


@pytest.mark.parametrize(("state", "end", "champion"), [("withdrawing", "withdrawn", 1), ("promoting", "finished", 2)])
def test_what_was_begun_before_the_end_is_ended(place, tmp_path, state, end, champion):
    registry = registry_of(tmp_path)
    path, _ = begin(place, registry=registry)
    save_rollout(path, read_rollout(path)._replace(state=state, reason="planted"))
    assert tick_rollout(path).state == end
    assert read_aliases(registry, "m")["champion"] == champion and read_deployment(place).release.champion == champion


def test_by_hand(place, tmp_path):
    path, _ = begin(place, registry=registry_of(tmp_path))
    assert advance_rollout(path).step == 1
    with pytest.raises(ServingError, match="under way"): start_rollout(path, read_rollout(path))
    ended = abort_rollout(path, "somebody complained")
    assert ended.state == "withdrawn" and [one["action"] for one in ended.history] == ["advance", "abort"]
    assert read_deployment(place).release.new == 0
    with pytest.raises(ServingError, match="is over"): abort_rollout(path)


def test_a_version_that_is_not_blessed_does_not_become_champion(place, tmp_path):
    registry = registry_of(tmp_path, blessed=False)
    path, _ = begin(place, registry=registry)
    for _ in range(4): ended = advance_rollout(path)
    assert ended.state == "withdrawn" and "not blessed" in ended.reason
    assert read_aliases(registry, "m")["champion"] == 1 and read_deployment(place).release.champion == 1


def test_a_killed_proxy_is_started_again_and_the_rollout_goes_on(place, tmp_path):
    path, deployment = begin(place, SHORT, registry=registry_of(tmp_path), release=RELEASE._replace(rest_port=free_port(), grpc_port=free_port()))
    os.kill(deployment.envoy.pid, signal.SIGKILL)
    with Load(deployment.rest) as load: ended = watch_rollout(path, None, 0.1)
    assert ended.state == "finished" and read_deployment(place).envoy != deployment.envoy and read_deployment(place).rest == deployment.rest
    assert {status for status, _ in load.met} == {200}


def free_port():
    import socket
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_blue_green_keeps_the_old_one_for_the_way_back(place, tmp_path):
    release = RELEASE._replace(strategy="blue-green")
    registry = registry_of(tmp_path)
    deployment = start_local(place, registry, release, STAND_IN, 30)
    with Load(deployment.rest) as load:
        while sum(load.met.values()) < 300: time.sleep(0.02)
        path = rollout_path(tmp_path, "m")
        start_rollout(path, Rollout(release, CanaryPlan(steps=(1.0,), min_requests=100, latency_ratio=0), "local", str(place), str(registry)))
        ended = watch_rollout(path, None, 0.1)
        now = read_deployment(place)
        assert ended.state == "finished" and now.release.champion == 2 and is_alive(now.servers[1])
        back = start_local(place, registry, RELEASE._replace(new=0), STAND_IN, 30)
        assert back.servers[1] == deployment.servers[1] and retire_servers(place) == [2]
        time.sleep(0.2)
    assert load.lost == [] and {status for status, _ in load.met} == {200} and load.of(2)


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


def started(place):
    """Servers and proxies that were started with files of the folder."""
    return [line for line in processes_of(place) if f"{place}/servers/" in line or f"{place}/envoy/" in line]


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


def test_a_bandit_moves_the_traffic_to_the_better_one(place, tmp_path, monkeypatch):
    release = RELEASE._replace(strategy="bandit")
    monkeypatch.setenv("MLNB_STAND_IN", '{"1": {"errors": 0.3}}')
    deployment = start_local(place, "r", release, STAND_IN, 30)
    path = rollout_path(tmp_path, "m")
    start_rollout(path, Rollout(release, plan_for("bandit", min_requests=4000), "local", str(place), "", promote=False))
    weights = []
    with Load(deployment.rest) as load: ended = watch_rollout(path, lambda one: weights.append(one.weight), 0.1)
    assert ended.state == "finished" and max(weights) > 0.6 and "the better one" in ended.reason
    assert ended.met[2] > 0.4 * sum(ended.met.values()) and load.lost == []


def test_a_shadow_that_decides_otherwise_is_withdrawn_pair_by_pair(place, tmp_path, monkeypatch):
    """Nobody met it: its answers went nowhere."""
    release = RELEASE._replace(strategy="shadow")
    monkeypatch.setenv("MLNB_STAND_IN", '{"2": {"wrong": 0.5}}')
    deployment = start_local(place, "r", release, STAND_IN, 30)
    by_version = {one.version: one for one in deployment.endpoints}

    def ask(port, x):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/models/m:predict", json.dumps({"instances": [{"x": x}]}))
        return json.loads(connection.getresponse().read())["predictions"][0]

    def pairs(since):
        rows = [(i, i % 10 / 10) for i in range(200)]
        return pair_answers(*([Answer(str(i), ask(by_version[version].rest, x)) for i, x in rows] for version in (1, 2)))

    path = rollout_path(tmp_path, "m")
    start_rollout(path, Rollout(release, plan_for("shadow", min_requests=100, latency_ratio=0), "local", str(place), "", promote=False))
    with Load(deployment.rest) as load:
        ended = None
        while ended is None or not ended.over: ended = tick_rollout(path, pairs=pairs)
    assert ended.state == "withdrawn" and "it decides differently" in ended.reason
    assert {version for _, version in load.met} == {"1"} and not load.unlucky and not load.lost


def test_a_rollout_with_compose_waits_for_its_proxy_and_then_turns_its_files(place, tmp_path, monkeypatch):
    """Compose looks after the containers; here two stand-ins and an Envoy that read the same folder play them."""
    deployment = start_local(place, "r", RELEASE, STAND_IN, 30)
    monkeypatch.setattr("mlnb.serving.rollout.endpoints_of", lambda release: tuple(one for one in deployment.endpoints))
    path = tmp_path / "compose" / "rollout.json"
    waiting = start_rollout(path, Rollout(RELEASE, SHORT, "compose", str(place), "", "127.0.0.1:1", promote=False))
    assert not waiting.began and "waiting for its proxy" in rollout_text(waiting)
    with pytest.raises(ServingError, match="Envoy does not answer"): tick_rollout(path)
    save_rollout(path, waiting._replace(admin=deployment.admin))
    with Load(deployment.rest) as load:
        ended = watch_rollout(path, None, 0.1)
        time.sleep(0.3)
        before = load.of(2)
        time.sleep(0.3)
    assert ended.state == "finished" and len(ended.history) == 2 and load.lost == [] and {status for status, _ in load.met} == {200}
    assert load.of(2) == before, "without a promotion the champion has it all again"


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


def test_two_controllers_do_not_disturb_each_other(place, tmp_path):
    path, deployment = begin(place, SHORT, registry=registry_of(tmp_path))
    ended = []
    threads = [threading.Thread(target=lambda: ended.append(watch_rollout(path, None, 0.03))) for _ in range(3)]
    with Load(deployment.rest) as load:
        for thread in threads: thread.start()
        for thread in threads: thread.join(60)
    assert [one.state for one in ended] == ["finished"] * 3 and len(ended[0].history) == 2 and load.lost == []


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
