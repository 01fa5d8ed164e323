"""Runs delivered to a small fake W&B server: whole, in order, once, whatever breaks on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from fake_wandb import KEY, server  # noqa: F401 `server` is a fixture
from projects import wait_for

from mlnb.errors import RunError
from mlnb.files import write_json
from mlnb.pipeline.encoders import encode
from mlnb.pipeline.store import Store
from mlnb.settings import find_project
from mlnb.tracking.follow import start_follower
from mlnb.tracking.gather import gather, gathered_curves
from mlnb.tracking.parcels import read_parcel
from mlnb.tracking.sync import sync
from mlnb.tracking.wandb_places import Target, local_folder, wandb_environment
from mlnb.tracking.wandb_runs import read_history, read_wandb_run
from mlnb.tracking.wandb_server import WandbServer
from mlnb.tracking.wandb_worker import SyncError
from mlnb.tracking.wandb_write import track_run

ROOT = Path(__file__).parents[1]
NAMES = ("20261120-100000-0001", "20261120-110000-0001")


def make_project(root, rows=5, runs=NAMES):
    """Runs of two stages: one gives a table, the other reads it, has a history and gives a model."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text("[tracking]\nproject = demo\n")
    store = Store(root / "runs/store")
    table = encode(pd.DataFrame({"x": [1, 2]}), "table", store)
    for number, name in enumerate(runs):
        model = encode(f"model {number}".encode(), "model", store)
        prepare = {"stage": "prepare", "status": "ran", "run": name, "attempts": 1, "scraps": {"table": table}}
        parts = {"parameters": {"lr": 0.1}, "upstream": {"prepare.table": table["digest"]}}
        auc = {"encoder": "json", "data": 0.7 + number, "digest": "d"}
        train = {"stage": "train", "status": "ran", "run": name, "attempts": 1, "scraps": {"model": model, "auc": auc}, "parts": parts}
        folder = root / "runs" / name
        lines = [{"time": 1e9 + s, "of": "", "step": s, "values": {"loss": 1 / (s + 1)}} for s in range(rows)]
        (folder / "attempts/train-1").mkdir(parents=True)
        (folder / "attempts/train-1/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        stages = {"prepare": prepare, "train": train}
        data = {"format": 1, "run": name, "pipeline": "p", "status": "done", "seconds": 1.0, "stages": stages, "git": None}
        write_json(folder / "run.json", data)
    return find_project(root)


@pytest.fixture
def client(server, monkeypatch, tmp_path):  # noqa: F811
    """This process as a client of the server, with an empty home."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in {**server.environment, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A project whose runs are written, to be copied: writing takes longer than sending."""
    project = make_project(tmp_path_factory.mktemp("written") / "demo")
    for name in NAMES:
        track_run(project.runs / name, Target("demo"))
    return project


@pytest.fixture
def project(written, tmp_path):
    """A project of its own for a test."""
    import shutil

    shutil.copytree(written.root, tmp_path / "demo", symlinks=True)
    return find_project(tmp_path / "demo")


def whole(server, run, rows=5):  # noqa: F811
    """Is everything of a run there, once, and linked?"""
    assert [row["_step"] for row in server.rows(f"{run}-train-1")] == list(range(rows))
    assert all(a["state"] == "COMMITTED" for a in server.logged(f"{run}-train-1"))
    assert {a["name"] for a in server.logged(f"{run}-train-1")} == {"p-train-model"}
    assert [server.artifacts[i]["name"] for i in server.by_name(f"{run}-train-1")["used"]] == ["p-prepare-table"]
    assert server.by_name(f"{run}-train-1")["exitcode"] == 0 and server.by_name(run)["jobType"] == "pipeline"
    assert not server.unknown, server.unknown
    return True


def statuses(deliveries):
    """What became of each, in order."""
    return [one.status for one in deliveries]


def test_all_runs_are_delivered_once_in_order_and_linked(project, client):
    events = []
    done = sync(project, tell=events.append)
    order = [f"{run}{stage}" for run in NAMES for stage in ("-prepare-1", "-train-1", "")]
    assert statuses(done) == ["delivered"] * 6 and [one.why for one in done] == [""] * 6
    assert client.order == order == [one.id for one in done]
    assert [(e["event"], e["id"]) for e in events] == [(what, name) for name in order for what in ("sending", "sent")]
    assert all(whole(client, run) for run in NAMES)
    run = client.by_name(f"{NAMES[1]}-train-1")
    assert run["summary"]["auc"] == 1.7 and run["group"] == NAMES[1] and run["config"]["lr"]["value"] == 0.1
    tables = [a for a in client.artifacts.values() if a["name"] == "p-prepare-table"]
    assert len(tables) == 1 and len(tables[0]["runs"]) == 2  # the same content twice is one version
    asked = len(client.asked)
    assert statuses(sync(project)) == ["already"] * 6
    assert set(client.asked[asked:]) <= {"Viewer", "GetDefaultEntity"}
    assert [p.name for p in (project.root.parent / "home").rglob("*")] == []


def test_a_plain_offline_folder_is_delivered_as_well(client, tmp_path):
    code = (
        "import wandb\n"
        "for i in range(2):\n"
        "    run = wandb.init(project='plain', mode='offline', id=f'mine-{i}', name='n', settings=wandb.Settings(console='off'))\n"
        "    for s in range(3): run.log({'loss': s})\n"
        "    open('x.txt', 'w').write(str(i))\n"
        "    a = wandb.Artifact('data', 'dataset'); a.add_file('x.txt'); run.log_artifact(a)\n"
        "    run.finish(exit_code=i)\n"
    )
    here = tmp_path / "script"
    here.mkdir()
    subprocess.run([sys.executable, "-c", code], check=True, env=wandb_environment(here), cwd=here, capture_output=True)
    done = sync(None, [here / "wandb"])
    assert statuses(done) == ["delivered", "delivered"] and [one.run for one in done] == ["", ""]
    assert [client.by_name(f"mine-{i}")["exitcode"] for i in (0, 1)] == [0, 1] and len(client.rows("mine-1")) == 3
    assert [a["state"] for a in client.artifacts.values() if a["name"] == "data"] == ["COMMITTED"] * 2
    assert statuses(sync(None, [Path(done[0].folder)])) == ["already"]


def test_artifacts_that_are_never_committed_are_a_failure(project, client, monkeypatch):
    monkeypatch.setattr("mlnb.tracking.sync._PATIENCE", (0.0, 0.1))
    client.commits = False
    done = sync(project, [NAMES[0]])
    assert statuses(done) == ["failed", "failed", "delivered"]  # the pipeline's own run has no artifacts
    assert "p-prepare-table is PENDING" in done[0].why and "worker.log" in done[0].why
    client.commits = True
    assert statuses(sync(project, [NAMES[0]])) == ["delivered", "delivered", "already"] and whole(client, NAMES[0])


def test_rows_that_a_server_lost_are_a_failure_and_sent_again_alone(project, client, monkeypatch):
    monkeypatch.setattr("mlnb.tracking.sync._PATIENCE", (0.0, 0.1))
    client.lose_rows = 2
    done = sync(project, [NAMES[0]])
    assert "3 of 5 rows arrived" in done[1].why
    client.lose_rows = 0
    assert statuses(sync(project, [NAMES[0]]))[1] == "delivered" and whole(client, NAMES[0])


def test_a_run_that_read_from_one_that_was_not_delivered_is_linked_later(project, client):
    data = json.loads((project.runs / NAMES[1] / "run.json").read_text())
    done = sync(project, [project.runs / NAMES[1] / "wandb" / next(iter(find(project, NAMES[1], "train-1"))).name])
    assert statuses(done) == ["delivered"] and "p-prepare-table" in done[0].why and data["run"] == NAMES[1]
    assert client.by_name(f"{NAMES[1]}-train-1")["used"] == []
    done = sync(project)
    assert {one.id: one.status for one in done}[f"{NAMES[1]}-train-1"] == "already" and whole(client, NAMES[1])


def find(project, run, name):
    """Folders of a W&B run."""
    return (project.runs / run / "wandb").glob(f"offline-run-*-{name}")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"refuse": 401}, "does not accept the API key"), ({"refuse": 403}, "forbids"), ({"refuse": 500}, "answers 500"),
        ({"slow": 3.0}, "does not answer within 0.5 s"), ({"drops": 10**9}, "cannot be reached"),
    ],
)  # fmt: skip
def test_a_server_that_does_not_let_us_in_is_told_at_once(project, client, fault, words):
    vars(client).update(fault)
    with pytest.raises(SyncError, match=words) as told:
        sync(project, patience=0.5)
    assert told.value.cure and not client.runs


def test_a_dead_server_and_a_missing_key_are_told_at_once(project, client, monkeypatch):
    client.close()
    with pytest.raises(SyncError, match="cannot be reached.*refused"):
        sync(project)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(SyncError, match="no API key") as told:
        sync(project)
    assert "wandb login" in told.value.cure


def test_connections_that_are_cut_are_survived(project, client):
    client.drop_once = {"file_stream", "CreateArtifact", "CommitArtifact", "UpsertBucket", "/upload/", "RunOutputArtifacts"}
    assert set(statuses(sync(project, [NAMES[0]]))) == {"delivered"} and whole(client, NAMES[0])
    assert not client.drop_once


def test_a_server_that_becomes_too_slow_fails_the_rest_without_waiting(project, client):
    sync(project, [NAMES[0]])

    def tell(event):
        client.slow = 1.5 if event["event"] == "sent" else client.slow

    done = sync(project, [NAMES[1]], tell=tell, seconds=0.6)
    client.slow = 0.0
    assert statuses(done) == ["delivered", "failed", "failed"] or statuses(done)[1:] == ["failed", "failed"]
    assert "did not finish within" in done[2].why or "W&B" in done[2].why
    assert statuses(sync(project, [NAMES[1]]))[1:] == ["delivered", "delivered"] and whole(client, NAMES[1])


def killed_sync(project, ready):
    """`mlnb.tracking.sync` as a program, killed as soon as `ready()`; gives what is left of its processes."""
    words = [sys.executable, "-m", "mlnb.tracking.sync", *[str(project.runs / name) for name in NAMES]]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=project.root)
    wait_for(ready, 60, "a part of the upload")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_sync_that_is_killed_between_runs_delivers_each_once(project, client):
    killed_sync(project, lambda: len(client.order) >= 3)
    time.sleep(0.5)
    before = len(client.order)
    time.sleep(0.5)
    assert len(client.order) == before  # nothing goes on behind the killed one's back
    done = sync(project)
    assert set(statuses(done)) <= {"delivered", "already"} and "already" in statuses(done)
    assert all(whole(client, run) for run in NAMES)


def test_a_sync_that_is_killed_within_a_run_sends_no_row_twice(client, tmp_path):
    project = make_project(tmp_path / "long", rows=4_000, runs=NAMES[:1])
    track_run(project.runs / NAMES[0], Target("demo"))
    stream = client.stream_limit = 200  # lines of a request that are kept before the connection breaks
    name = f"{NAMES[0]}-train-1"
    words = [sys.executable, "-m", "mlnb.tracking.sync", str(project.runs / NAMES[0])]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=project.root)
    wait_for(lambda: any(run["name"] == name and run["history"] for run in client.runs.values()), 60, "the first rows")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    client.stream_limit = 0
    assert 0 < len(client.rows(name)) < 4_000 and stream
    assert set(statuses(sync(project))) <= {"delivered", "already"}
    assert whole(client, NAMES[0], rows=4_000)


def test_two_at_once_take_turns(project, client):
    words = [sys.executable, "-m", "mlnb.tracking.sync", *[str(project.runs / name) for name in NAMES]]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=project.root) for _ in range(2)]
    said = sorted(json.loads(line)["status"] for process in both for line in process.communicate(timeout=120)[0].splitlines())
    assert said == ["already"] * 6 + ["delivered"] * 6 and all(whole(client, run) for run in NAMES)


def test_a_run_sent_twice_by_another_program_is_told(project, client):
    place = next(find(project, NAMES[0], "train-1"))
    for _ in range(2):
        words = [sys.executable, "-m", "wandb", "sync", "--include-synced", str(place)]
        subprocess.run(words, check=True, env=wandb_environment(project.root) | {"HOME": str(project.root)}, capture_output=True)
    done = {one.id: one for one in sync(project, [NAMES[0]])}[f"{NAMES[0]}-train-1"]
    assert done.status == "delivered" and "10 rows and 5 were written" in done.why
    assert read_parcel(place).rows == 5


def online(project, folder):
    """A run that is followed in the mode `online`, and how long the follower needed to have it on the disk."""
    started = time.monotonic()
    follower = start_follower(project, folder, "online")
    spent = time.monotonic() - started
    assert follower.wait(60) and follower.problem() == ""
    return follower, spent


def test_online_sends_behind_the_run(client, tmp_path):
    project = make_project(tmp_path / "demo", runs=NAMES[:1])
    follower, spent = online(project, project.runs / NAMES[0])
    assert spent < 1 and follower.process.wait(60) == 0
    assert whole(client, NAMES[0]) and statuses(sync(project)) == ["already"] * 3


@pytest.mark.parametrize("fault", [{"refuse": 403}, {"slow": 30.0}, {}])
def test_online_costs_nothing_when_the_server_is_dead_slow_or_forbidding(client, tmp_path, fault):
    project = make_project(tmp_path / "demo", runs=NAMES[:1])
    vars(client).update(fault)
    if not fault:
        client.close()
    follower, spent = online(project, project.runs / NAMES[0])
    assert spent < 1 and (local_folder(project.runs / NAMES[0]) / "complete.json").exists()
    os.killpg(follower.process.pid, signal.SIGKILL)
    follower.process.wait()


def test_runs_of_the_server_are_compared_with_those_here(project, client):
    sync(project, ["last"])
    found = gather(project, ["last", "wandb:me/demo"])
    assert {row.source for row in found.rows} == {"mlnb", "server"}
    there = next(row for row in found.rows if row.source == "server" and row.values.get("(job type)") == "train")
    assert (there.values["auc"], there.values["lr"]) == (1.7, 0.1)
    assert list(gathered_curves(found)["loss"][there.id]["step"]) == [0, 1, 2, 3, 4]


def test_runs_are_read_back_as_they_were(project, client):
    done = sync(project, ["last"])
    held = [path for path in project.runs.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert {one.run for one in done} == {NAMES[1]} and held == []  # the key is in no file
    with WandbServer(project.runs / "cache/wandb") as wandb:
        runs = wandb.runs("demo", {"group": NAMES[1]})
        assert [run.run_id for run in runs] == [one.id for one in reversed(done)] and wandb.runs("demo", limit=1) == runs[:1]
        train = next(run for run in runs if run.job_type == "train")
        local = read_wandb_run(next(find(project, NAMES[1], "train-1")))
        same = ("project", "group", "name", "state", "exit_code", "tags")
        assert [getattr(train, name) for name in same] == [getattr(local, name) for name in same]
        assert train.config["lr"] == 0.1 and train.config["mlnb"]["inputs"] == local.config["mlnb"]["inputs"]
        assert train.summary["auc"] == local.summary["auc"] == 1.7 and train.folder == Path("me/demo") / train.run_id
        there, here = wandb.history(train), read_history(local.folder)
        assert {key: list(values) for key, values in there["loss"].items()} == {key: list(values) for key, values in here["loss"].items()}
        with pytest.raises(SyncError, match="W&B"):
            wandb.runs("nobody/nothing")
    with pytest.raises(RunError, match="no run"):
        sync(project, ["nonsense"])
