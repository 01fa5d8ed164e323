"""The commands as people type them, with real models, real servers and a real Envoy."""
import collections
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from projects import ProjectFolder

from mlnb.serving.local import stop_local
from mlnb.serving.rehearsal import Users, request_bodies

pytest.importorskip("envoy", reason="the extra 'deploy' is not installed, so there is no Envoy to ask")
LOG, REST = "predictions", [""]   # one folder for all, so that servers of one test serve the next; where they answer
ROWS = {"age": np.linspace(18, 90, 60, dtype="float32"), "plan": np.array(["a", "b", ""] * 20, object)}
MODELS = """
import sys
from pathlib import Path
import numpy as np
from mlnb.training.quiet import import_quietly
tf, keras = import_quietly("tensorflow"), import_quietly("keras")
from mlnb.serving.export import export_model
from mlnb.serving.registry import register
here = Path(sys.argv[1])
rows = {"age": np.linspace(18, 90, 60, dtype="float32"), "plan": np.array(["a", "b", ""] * 20, object)}
for number, sign in enumerate((1.0, 1.0001, -1.0)):   # the second says the same, the third the opposite
    age, plan = keras.Input((1,), name="age"), keras.Input((1,), name="plan", dtype="string")
    words = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(plan)
    out = keras.layers.Dense(1, "sigmoid", kernel_initializer=keras.initializers.Constant(sign * 4), bias_initializer=keras.initializers.Constant(-4 * sign))
    model = keras.Model({"age": age, "plan": plan}, out(keras.layers.Concatenate()([age / 60, words * 0.1])))
    export = export_model(model, {}, here/"exports"/str(number), rows, classes=["no", "yes"])
    register(here/"runs"/"registry", "risk", export.folder, {**export.as_dict(), "evaluation": {"metric": "auc", "value": 0.7 + number / 10, "blessed": True}})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three registered versions; the first is champion."""
    project = ProjectFolder(tmp_path_factory.mktemp("deploy") / "p", {})
    done = subprocess.run([sys.executable, "-c", MODELS, str(project.root)], env=project.environment(TF_CPP_MIN_LOG_LEVEL="3"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    yield project
    stop_local(project.root / "runs" / "deployments" / "risk")
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(project.root).encode() in read(path)]


def read(path):
    try: return path.read_bytes()
    except OSError: return b""


def wait(project, seconds=90):
    """The rollout when it is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rollout = project.mlnb("rollout", "status", "risk", "--json").json["rollout"]
        if rollout["state"] in ("finished", "withdrawn"): return rollout
        time.sleep(0.3)
    raise AssertionError(f"not over after {seconds} s: {rollout['decision']}")


@pytest.mark.slow
def test_a_canary_from_the_first_command_to_the_alias(project):
    said = project.mlnb("deploy", "risk", "--port", "0", "--version", "2", "--steps", "20,50,100", "--min-requests", "80", "--latency-ratio", "0", "--log", LOG, "--json", code=0)
    assert "ready after" in said.err and (said.json["champion"]["number"], said.json["new"]["number"]) == (1, 2)
    REST[0] = said.json["rest"]
    port = int(said.json["rest"].rpartition(":")[2])
    assert "under way" in project.mlnb("deploy", "risk", "--version", "3", code=1).err
    assert project.mlnb("rollout", "status", code=0).out.startswith("risk: canary of version 2 beside version 1")
    assert [one["model"] for one in project.mlnb("rollout", "status", "--json", code=0).json["rollouts"]] == ["risk"]
    shown = project.mlnb("rollout", "status", "risk", code=0).out
    assert "canary of version 2 beside version 1" in shown and "carried on by process" in shown and all(len(line) <= 80 for line in shown.splitlines())
    grpc = said.json["grpc"]
    with Users(port, "risk", request_bodies(ROWS), 3) as users:
        while len(users.heard) < 300: time.sleep(0.05)
        watched = project.mlnb("rollout", "watch", "risk", code=0)
        time.sleep(0.5)
    met = collections.Counter((one.status, one.version) for one in users.heard)
    assert set(met) == {(200, 1), (200, 2)}, met
    assert "finished" in watched.out and watched.err.splitlines()[-1].startswith(" 100 % ██████████")
    assert project.mlnb("models", "risk", "--json", code=0).json
    rollout = project.mlnb("rollout", "status", "risk", "--json").json
    assert rollout["rollout"]["state"] == "finished" and rollout["deployment"]["alive"] == {"v2": True, "envoy": True}
    answers_over_grpc(grpc)
    path = "/v1/models/risk/labels/champion:predict"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, request_bodies(ROWS)[0])
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["x-mlnb-model-version"] == "2" and answer.read()
    print(f"\n{sum(met.values()):,} requests from the first command to the alias: none lost")


def answers_over_grpc(address):
    """TensorFlow Serving's own stubs, through Envoy."""
    stubs = pytest.importorskip("tensorflow_serving.apis.get_model_status_pb2", reason="TensorFlow Serving's stubs are not installed")
    import grpc
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus", stubs.GetModelStatusRequest.SerializeToString, stubs.GetModelStatusResponse.FromString)
        request = stubs.GetModelStatusRequest()
        request.model_spec.name = "risk"
        versions = ask(request, timeout=10).model_version_status
    assert [(one.version, one.state) for one in versions] == [(2, 30)]


@pytest.mark.slow
def test_labels_that_arrive_withdraw_a_version_that_is_wrong(project):
    """The third version says the opposite. Nothing but the truth, joined by the request's number, can tell."""
    labels = project.root / "labels.csv"
    labels.write_text("request_id,label\n")
    said = project.mlnb("deploy", "risk", "--port", "0", "--version", "3", "--steps", "30,100", "--labels", str(labels), "--min-requests", "100", "--latency-ratio", "0", "--log", LOG, "--json", code=0)
    assert said.json["rest"] == REST[0], "the servers and the proxy of the test before go on"
    connection = http.client.HTTPConnection("127.0.0.1", int(said.json["rest"].rpartition(":")[2]))
    bodies, i, until, state = request_bodies(ROWS), 0, time.monotonic() + 60, "running"
    while state == "running" and time.monotonic() < until:
        with labels.open("a") as file:
            for _ in range(40):
                i += 1
                connection.request("POST", "/v1/models/risk:predict", bodies[i % 60], {"x-request-id": f"asked-{i}"})
                answer = connection.getresponse()
                assert answer.status == 200 and answer.read() and answer.headers["x-request-id"] == f"asked-{i}"
                file.write(f"asked-{i},{int(ROWS['age'][i % 60] > 60)}\n")
        state = project.mlnb("rollout", "status", "risk", "--json").json["rollout"]["state"]
    rollout = wait(project)
    assert rollout["state"] == "withdrawn" and "quality" in rollout["reason"], rollout
    assert project.mlnb("rollout", "watch", "risk").code == 1
    assert project.mlnb("models", "risk", "--json").json["models"][0]["aliases"] == {"champion": 2}
    shown = project.mlnb("models", "risk", code=0).out
    assert re.search(r"\n3 +1\.2\.0 +withdrawn", shown) and "withdrew 3" in shown and max(map(len, shown.splitlines())) <= 80
    again = project.mlnb("deploy", "risk", "--port", "0", "--log", LOG, code=0).out
    assert "1.1.0 (champion), alone" in again and "(3) was withdrawn on" in again and "--version 3 tries it again" in again
    assert max(map(len, again.splitlines())) <= 80
    print(f"\na model that says the opposite met {rollout['met']['3']} of {sum(rollout['met'].values())} requests: {rollout['reason']}")


@pytest.mark.slow
def test_a_shadow_is_compared_by_what_both_servers_wrote_down(project):
    for version, state, words in (("3", "withdrawn", "it decides differently"),):
        said = project.mlnb("deploy", "risk", "--port", "0", "--strategy", "shadow", "--version", version, "--min-requests", "100", "--latency-ratio", "0", "--log", LOG, "--json", code=0)
        with Users(int(said.json["rest"].rpartition(":")[2]), "risk", request_bodies(ROWS), 2) as users: rollout = wait(project)
        assert said.json["rest"] == REST[0]
        assert rollout["state"] == state and words in rollout["reason"], rollout
        assert {(one.status, one.version) for one in users.heard} == {(200, said.json["champion"]["number"])}
    assert "stopped: envoy, v2" in project.mlnb("deploy", "risk", "--stop", code=0).out


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1.5])
def test_a_deployment_that_is_interrupted_leaves_nothing(project, seconds):
    """Ctrl-C while the servers start, early and late."""
    process = project.start("deploy", "risk", "--port", "0", "--version", "3", "--log", LOG)
    mark, until = f"--model_config_file={project.root}".encode(), time.monotonic() + 30
    while not any(mark in read(path) for path in Path("/proc").glob("[0-9]*/cmdline")) and time.monotonic() < until: time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and out == "", (process.returncode, out, err)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(project.root).encode() in read(path)]
    assert "nothing of risk was running" in project.mlnb("deploy", "risk", "--stop", code=0).out


def test_mistakes_are_one_line_that_names_what_there_is(project):
    for words, expected in ((("deploy", "risc"), "models here: risk"), (("deploy", "risk", "--version", "9"), "one of: 1 (1.0.0"), (("rollout", "status", "none"), "mlnb deploy none"), (("rollout", "advance"), "no rollout is under way"),
                            (("deploy", "risk", "--steps", "50,5", "--version", "2"), "growing percents"), (("deploy", "risk", "--to", "kserve", "--strategy", "shadow", "--version", "3"), "--to kubernetes")):
        said = project.mlnb(*words)
        assert said.code in (1, 2) and expected in said.err and "Traceback" not in said.err and said.out == "", (words, said)


def test_files_for_elsewhere_are_written_and_said(project):
    for to in ("compose", "kubernetes", "kserve"):
        said = project.mlnb("deploy", "risk", "--to", to, "--version", "3", code=0)
        assert "README.md says what to type" in said.out and all(len(line) <= 80 for line in said.out.splitlines() if "pip install" not in line and "not here" not in line), said.out
        assert os.listdir(project.root / "runs" / "deployments" / "risk" / to)
    assert json.loads(project.mlnb("rollout", "status", "risk", "--to", "compose", "--json", code=0).out)["rollout"]["target"] == "compose"
