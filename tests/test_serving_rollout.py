"""Rollouts through a live Envoy: shares, copies, swaps under load, planted bad versions, killed controllers. The servers only pretend."""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import live_envoy
import pytest
from live_envoy import FAST, RELEASE, ROOT, SHORT, STAND_IN, Load, begin, export, free_port, processes_of, registry_of

from mlnb.errors import ServingError, StoreError
from mlnb.serving.canary import CanaryPlan
from mlnb.serving.deploy import Asked, deploy, plan_for, stop_deployment
from mlnb.serving.envoy_admin import is_live
from mlnb.serving.history import read_history
from mlnb.serving.local import is_alive, living, read_deployment, retire_servers, start_local
from mlnb.serving.promotion import promote, rollback
from mlnb.serving.registry import read_aliases, register
from mlnb.serving.release import Release
from mlnb.serving.rollout import abort_rollout, advance_rollout, start_rollout, tick_rollout, watch_rollout
from mlnb.serving.rollout_state import Rollout, read_rollout, rollout_path, save_rollout
from mlnb.serving.rollout_words import rollout_text
from mlnb.serving.shadow import Answer, pair_answers

pytest.importorskip("envoy", reason="the extra 'deploy' is not installed, so there is no Envoy to ask")
place, quick = live_envoy.place, live_envoy.quick   # fixtures


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
    watch = f"from mlnb.serving import rollout; rollout._SETTLE = 0.15; rollout.watch_rollout({str(path)!r}, None, 0.02)"
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


def test_two_controllers_do_not_disturb_each_other(place, tmp_path):
    path, deployment = begin(place, SHORT, registry=registry_of(tmp_path))
    ended = []
    threads = [threading.Thread(target=lambda: ended.append(watch_rollout(path, None, 0.03))) for _ in range(3)]
    with Load(deployment.rest) as load:
        for thread in threads: thread.start()
        for thread in threads: thread.join(60)
    assert [one.state for one in ended] == ["finished"] * 3 and len(ended[0].history) == 2 and load.lost == []


# ---- what a rollout leaves in the registry


def test_a_withdrawn_version_loses_its_alias_and_the_registry_says_why(place, tmp_path, monkeypatch):
    registry = registry_of(tmp_path)
    path, deployment = begin(place, FAST, {"errors": 0.5}, monkeypatch, registry)
    with Load(deployment.rest): ended = watch_rollout(path, None, 0.05)
    assert ended.state == "withdrawn" and read_aliases(registry, "m") == {"champion": 1}
    last = read_history(registry / "m")[-1]
    assert (last["action"], last["alias"], last["version"]) == ("withdraw", "challenger", 2) and last["reason"] == f"canary: {ended.reason}"
    found = deploy(tmp_path, registry, "m", Asked(command=STAND_IN, release={"rest_port": 0, "grpc_port": 0}))
    assert found["new"] is None and found["withdrawn"]["number"] == 2 and "error rate" in found["withdrawn"]["reason"]
    assert read_rollout(path) == ended and list(read_deployment(place).servers) == [1]
    promote(registry, "m", 2, "challenger", reason="it was the network")
    monkeypatch.delenv("MLNB_STAND_IN")
    again = deploy(tmp_path, registry, "m", Asked(command=STAND_IN, release={"rest_port": 0, "grpc_port": 0}, watch=False))
    assert again["new"]["number"] == 2 and read_rollout(path).state == "running"
    monkeypatch.setattr("mlnb.serving.promotion.decide", lambda *words, **more: (_ for _ in ()).throw(StoreError("cannot write: the disk is full")))
    ended = abort_rollout(path, "full")
    assert ended.state == "withdrawn" and ended.reason == "full; the registry does not know it: cannot write: the disk is full"


@pytest.mark.parametrize("meanwhile", [3, 2])
def test_a_champion_that_a_person_made_meanwhile_stays(place, tmp_path, meanwhile):
    """Another version: the rollout ends without touching it. The new version itself: there is nothing left to do."""
    registry = registry_of(tmp_path)
    register(registry, "m", export(tmp_path / "exports" / "c", "c"), {"evaluation": {"metric": "auc", "value": 0.9, "blessed": True}})
    path, _ = begin(place, SHORT, registry=registry)
    promote(registry, "m", meanwhile, reason="by hand")
    for _ in range(2): ended = advance_rollout(path)
    assert (ended.state, read_aliases(registry, "m")["champion"]) == (("withdrawn", 3) if meanwhile == 3 else ("finished", 2))
    if meanwhile == 3: assert "meanwhile version 3 is champion" in ended.reason


# ---- what dies in the middle


def test_a_version_that_cannot_start_again_is_got_rid_of_all_the_same(place, tmp_path, monkeypatch):
    """Its server is killed and every new one fails: withdrawing must not need it."""
    path, deployment = begin(place, FAST, registry=registry_of(tmp_path))
    monkeypatch.setenv("MLNB_STAND_IN", '{"2": {"fails_to_start": 1}}')
    os.kill(deployment.servers[2].pid, signal.SIGKILL)
    with Load(deployment.rest) as load:
        ended = watch_rollout(path, None, 0.05, patience=5.0)
        time.sleep(0.3)   # for those that wait for another try
        after = len(load.unlucky)
        time.sleep(0.3)
        assert len(load.unlucky) == after
    assert ended.state == "withdrawn" and "error rate" in ended.reason and living(read_deployment(place)) == {"v1": True, "envoy": True}
    print(f"\nits server died and did not come back: {after} of {sum(load.met.values()):,} requests met that")


def test_a_rollout_that_cannot_be_carried_on_goes_back_to_the_champion(place, tmp_path, monkeypatch):
    """A step begins, and the new version does not start: after some patience it is withdrawn, with that reason."""
    path, deployment = begin(place, FAST, registry=registry_of(tmp_path))
    monkeypatch.setenv("MLNB_STAND_IN", '{"2": {"fails_to_start": 1}}')
    os.kill(deployment.servers[2].pid, signal.SIGKILL)
    save_rollout(path, read_rollout(path)._replace(applied=False, step=1))
    ended = watch_rollout(path, None, 0.05, patience=0.3)
    assert ended.state == "withdrawn" and "could not be carried on: the server of version 2 ended while it started" in ended.reason
    assert living(read_deployment(place)) == {"v1": True, "envoy": True}


def test_the_way_back_by_hand_needs_no_living_proxy(place, tmp_path):
    path, deployment = begin(place, registry=registry_of(tmp_path))
    os.kill(deployment.envoy.pid, signal.SIGKILL)
    while is_alive(deployment.envoy): time.sleep(0.01)
    ended = abort_rollout(path)
    assert ended.state == "withdrawn" and all(living(read_deployment(place)).values()) and read_deployment(place).release.new == 0


def test_files_for_a_proxy_elsewhere_are_right_although_it_is_away(place, tmp_path):
    deployment = start_local(place, "r", RELEASE._replace(share=0.3), STAND_IN, 30)
    path = tmp_path / "compose" / "rollout.json"
    save_rollout(path, Rollout(RELEASE, SHORT, "compose", str(tmp_path / "compose"), "", "127.0.0.1:1", began=time.time(), applied=True, promote=False))
    with pytest.raises(ServingError, match="Envoy does not answer"): abort_rollout(path)
    routes = (tmp_path / "compose" / "envoy" / "routes-rest.yaml").read_text()
    assert "weight: 10000" in routes and "m-v2" not in routes and read_rollout(path).state == "withdrawing"
    save_rollout(path, read_rollout(path)._replace(admin=deployment.admin))
    assert "cluster m" not in routes and (place / "envoy").is_dir()


@pytest.mark.parametrize("end", ["withdrawn", "finished"])
def test_a_controller_killed_just_before_the_end_leaves_no_server(place, tmp_path, monkeypatch, end):
    """After the split and the alias, before the servers: whoever comes next does what is left."""
    registry = registry_of(tmp_path)
    path, _ = begin(place, SHORT._replace(steps=(1.0,)), registry=registry)
    act = {"withdrawn": abort_rollout, "finished": advance_rollout}[end]

    def killed(folder): raise KeyboardInterrupt

    monkeypatch.setattr("mlnb.serving.rollout.retire_servers", killed)
    with pytest.raises(KeyboardInterrupt): act(path)
    monkeypatch.undo()
    assert not read_rollout(path).over and len(read_deployment(place).servers) == 2
    assert tick_rollout(path).state == end and len(read_deployment(place).servers) == 1
    assert read_aliases(registry, "m") == {"champion": 1 if end == "withdrawn" else 2}
    assert [event["action"] for event in read_history(registry / "m")].count("withdraw") == (end == "withdrawn")


# ---- counters


def asked(port, count):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(count):
        connection.request("POST", "/v1/models/m:predict", '{"instances": [[1]]}')
        assert connection.getresponse().read()
    connection.close()
    time.sleep(0.2)


def of_step(rollout):
    """(requests, latencies) of each version in this step."""
    return {version: (one.requests, sum(one.latency_counts)) for version, one in rollout.counts.items()}


def test_counters_go_on_when_the_proxy_is_killed_or_reset_in_the_middle_of_a_step(place, tmp_path):
    """After a kill the new life soon counts more than the old one did; a reset by hand takes the counters and leaves the latencies."""
    from urllib.request import Request, urlopen
    path, deployment = begin(place, FAST._replace(steps=(1.0,), min_requests=10**6), release=RELEASE._replace(rest_port=free_port(), grpc_port=free_port()))
    for count in (30, 20):
        asked(deployment.rest, count)
        found = tick_rollout(path)
    assert of_step(found) == {1: (0, 0), 2: (50, 50)}
    os.kill(deployment.envoy.pid, signal.SIGKILL)
    while is_alive(deployment.envoy): time.sleep(0.01)
    start_local(place, "r", read_deployment(place).release, STAND_IN, 30)
    asked(deployment.rest, 80)
    assert of_step(tick_rollout(path)) == {1: (0, 0), 2: (130, 130)}
    urlopen(Request(f"http://{read_deployment(place).admin}/reset_counters", b"", method="POST"), timeout=5).read()
    asked(deployment.rest, 25)
    found = tick_rollout(path)
    assert of_step(found) == {1: (0, 0), 2: (155, 155)} and found.met[2] == 155


# ---- deploying


def test_two_who_deploy_at_once_and_one_who_is_interrupted(place, tmp_path, monkeypatch):
    registry, ports = registry_of(tmp_path), {"rest_port": 0, "grpc_port": 0}
    how = Asked(command=STAND_IN, release=ports, watch=False)
    said = []

    def one():
        try: said.append(deploy(tmp_path, registry, "m", how)["new"]["number"])
        except ServingError as e: said.append(e.problem)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert 2 in said and ("being deployed by another process" in str(said) or "under way" in str(said)), said
    path = rollout_path(tmp_path, "m")
    assert read_rollout(path).applied and read_deployment(place).release.share == 0.05
    abort_rollout(path)
    before = read_deployment(place)

    def interrupted(*words): raise KeyboardInterrupt

    monkeypatch.setattr("mlnb.serving.rollout._enter", interrupted)
    with Load(before.rest) as load:
        with pytest.raises(KeyboardInterrupt): deploy(tmp_path, registry, "m", how._replace(version="2"))
    assert read_deployment(place).release == before.release and living(read_deployment(place)) == {"v1": True, "envoy": True}
    assert read_rollout(path).over and load.lost == [] and {status for status, _ in load.met} == {200}
    stop_deployment(tmp_path, "m")
    with pytest.raises(KeyboardInterrupt): deploy(tmp_path, registry, "m", how._replace(version="2"))
    assert read_deployment(place) is None and processes_of(tmp_path) == []


def test_blue_green_is_gone_back_from_at_once_and_nothing_is_left_running(place, tmp_path):
    """`mlnb rollback`, `mlnb deploy`: the old server is still there, so the way back is one change of the routes."""
    registry, ports = registry_of(tmp_path), {"rest_port": 0, "grpc_port": 0}
    plan = CanaryPlan(steps=(1.0,), min_requests=50, latency_ratio=0)
    deploy(tmp_path, registry, "m", Asked(strategy="blue-green", plan=plan, command=STAND_IN, release=ports, watch=False))
    first = read_deployment(place)
    with Load(first.rest) as load:
        assert watch_rollout(rollout_path(tmp_path, "m"), None, 0.05).state == "finished" and len(read_deployment(place).servers) == 2
        rollback(registry, "m", reason="somebody complained")
        found = deploy(tmp_path, registry, "m", Asked(command=STAND_IN, release=ports))
        met = load.of(2)
        time.sleep(0.2)
        assert load.of(2) == met
    back = read_deployment(place)
    assert found["champion"]["number"] == 1 and back.servers == {1: first.servers[1]} and back.envoy == first.envoy
    assert load.lost == [] and {status for status, _ in load.met} == {200}


def test_what_a_pod_does_before_it_ends_closes_connections_and_loses_nothing(place):
    """preStop of the generated manifest, run by a shell against a live Envoy; and a client of the last century."""
    import socket

    from mlnb.serving.kubernetes import kubernetes_documents
    deployment = start_local(place, "r", RELEASE._replace(new=0), STAND_IN, 30)
    pods = {one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0] for one in kubernetes_documents(Release("m", 1)) if one["kind"] == "Deployment"}
    command = pods["m"]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["/bin/bash", "-c"] and re.search(r"; sleep 40$", command[2])
    connection = http.client.HTTPConnection("127.0.0.1", deployment.rest)

    def ask():
        connection.request("POST", "/v1/models/m:predict", '{"instances": [[1]]}')
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
        return answer.headers["connection"]

    assert ask() is None
    done = subprocess.run([*command[:2], command[2].replace("9901", deployment.admin.split(":")[1]).replace("sleep 40", "sleep 0")], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "200 OK" in done.stdout and not is_live(deployment.admin)
    assert ask() == "close"
    with socket.create_connection(("127.0.0.1", deployment.rest)) as old:
        old.sendall(b"GET /v1/models/m HTTP/1.0\r\n\r\n")
        assert old.recv(100).split()[1] == b"200"
