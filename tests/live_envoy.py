"""A live Envoy with servers that only pretend: users who ask all the time, and what they met."""
import collections
import http.client
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from mlnb.files import write_json
from mlnb.serving.canary import CanaryPlan
from mlnb.serving.local import start_local, stop_local
from mlnb.serving.registry import register
from mlnb.serving.release import Release
from mlnb.serving.rollout import start_rollout
from mlnb.serving.rollout_state import Rollout, rollout_path

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


def free_port():
    import socket
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(place):
    """Servers and proxies that were started with files of the folder."""
    return [line for line in processes_of(place) if f"{place}/servers/" in line or f"{place}/envoy/" in line]
