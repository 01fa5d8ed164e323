"""W&B files written behind a run: read back with an own reader of the .wandb format, in processes that have no network."""

import base64
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import ProjectFolder, wait_for

from mlnb.files import lock
from mlnb.pipeline.encoders import encode
from mlnb.pipeline.store import Store
from mlnb.settings import find_project
from mlnb.tracking.follow import ensure_tracked, main, start_follower
from mlnb.tracking.masking import Secrets
from mlnb.tracking.wandb_history import history_rows
from mlnb.tracking.wandb_places import Target, local_folder, read_marks, wandb_id
from mlnb.tracking.wandb_stage import EXECUTED, stage_summary
from mlnb.tracking.wandb_write import track_run

ROOT = Path(__file__).parents[1]
BLOCK = 32768
NAME, OLD = "20261120-120000-ab12", "20261119-120000-cd34"
SECRET = 'pa$$ "wörd" 4711'


def records(path):
    """Records of a .wandb file: LevelDB's log format with a 7-byte header and plain CRC-32."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:7] == struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
    place, pending = 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        crc, length, kind = struct.unpack_from("<LHB", data, place)
        chunk, place = data[place + 7 : place + 7 + length], place + 7 + length
        if kind == 0:
            place += -place % BLOCK
            continue
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == crc
        pending = chunk if kind in (1, 2) else pending + chunk
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(pending)
            yield record


def values(items):
    """Items of a record: the key is plain or nested, never both."""
    found = {}
    for item in items:
        *above, last = item.nested_key or [item.key]
        place = found
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def read(folder, name):
    """What a W&B run holds, as plain data."""
    path, = Path(folder).glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")  # fmt: skip
    found = {"config": {}, "summary": {}, "files": [], "history": [], "artifacts": {}, "kinds": set()}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        found["kinds"].add(kind)
        if kind == "run":
            one = record.run
            found.update(project=one.project, group=one.run_group, job=one.job_type, name=one.display_name)
            found.update(host=one.host, commit=one.git.commit, tags=list(one.tags))
            found["config"].update(values(one.config.update))
        elif kind == "config":
            found["config"].update(values(record.config.update))
        elif kind == "summary":
            found["summary"].update(values(record.summary.update))
        elif kind == "history":
            found["history"].append(values(record.history.item))
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind == "files":
            found["files"] += [one.path for one in record.files.files]
        elif kind == "artifact":
            found["artifacts"][record.artifact.name] = record.artifact
    return found


def inline(data):
    """A scrap that stays in the notebook."""
    return {"encoder": "text" if isinstance(data, str) else "json", "data": data, "digest": "1" * 64}


def make_run(runs, store):
    """A run as the engine leaves it: one stage skipped, one that ran, one that failed, one that was blocked."""
    import matplotlib
    import plotly.graph_objects as go

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    table = pd.DataFrame({"x": range(2500), "label": ["größe", None] * 1250, SECRET: [SECRET] * 2500})
    drawing = go.Figure(go.Scatter(x=[1], y=[2], name=f"{SECRET} here"))
    kept = {
        "table": table,
        "figure": figure,
        "drawing": drawing,
        "model": b"m" * 3_000_000,
        "long": f"{SECRET} " * 9000,
    }
    artifacts = {name: encode(value, name, store) for name, value in kept.items()}
    plt.close(figure)
    parts = {
        "code": "c" * 64, "sources": {"data/x.csv": "b" * 64}, "packages": {"keras": "3"}, "python": "3.11.7",
        "parameters": {"lr": 0.01, "layers": [64, 32], "label": "größe", "key": {"$secret": "PLANTED"}},
        "upstream": {"prepare.train": "a" * 64, "after prepare": "e" * 64},
    }  # fmt: skip
    train = {
        "stage": "train", "status": "ran", "fingerprint": "f" * 64, "attempts": 1, "seconds": 4.5, "run": NAME,
        "notebook": "30_train.ipynb", "resources": {"peak_memory_bytes": 10**9, "cpu_seconds": 3.0}, "parts": parts,
        "scraps": {"val_auc": inline(0.75), "metrics": inline({"auc": 0.7, "n": 3, "deep": {"a": 1}}), "rows": inline([1]),
                   "note": inline(f"said {SECRET}"), "loss": inline(0.1), **artifacts}, "error": None,
    }  # fmt: skip
    prepare = {
        "stage": "prepare", "status": "skipped", "run": OLD, "attempts": 2, "fingerprint": "e" * 64,
        "scraps": {"train": {"encoder": "artifact", "type": "bytes", "digest": "a" * 64}},
    }  # fmt: skip
    error = {"name": "ValueError", "message": f"no: {SECRET}", "cell": 3, "line": 1, "traceback": SECRET}
    stages = {
        "prepare": prepare, "train": train, "register": {"stage": "register", "status": "blocked", "attempts": 0},
        "evaluate": {"stage": "evaluate", "status": "failed", "attempts": 3, "run": NAME, "error": error},
    }  # fmt: skip
    folder = runs / NAME
    (folder / "attempts/train-1").mkdir(parents=True)
    lines = [
        {"time": 1e9 + s, "of": of, "step": s, "values": {"loss": 1.0 / (s + 1)}}
        for of in ("wide", "deep")
        for s in (0, 1, 2)
    ]
    for number, status in enumerate(("done", "failed")):
        trial = {"parameters": {"lr": 10.0**-number}, "value": 0.7 if status == "done" else None, "metric": "val_auc"}
        lines += [{"time": 2e9, "of": f"trial-{number}", "step": 0, "values": {"loss": 5.0}}]
        lines += [{"time": 2e9, "of": f"trial-{number}", "trial": {**trial, "status": status}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "attempts/train-1/metrics.jsonl").write_text(text + '{"torn')
    git = {"commit": "d" * 40, "dirty": True, "branch": "main"}
    data = {"run": NAME, "pipeline": "tabular", "git": git, "status": "failed", "seconds": 9.5, "stages": stages}
    (folder / "run.json").write_text(json.dumps(data))
    return folder


def run_without_network(place, *arguments, **environment):
    """Run the follower as a program with an empty home; where the system allows, in a namespace without any network."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    guard = (
        "import sys, socket, runpy\n"
        "def refuse(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        address = args[1] if event != 'socket.getaddrinfo' else args[:2]\n"
        "        local = isinstance(address, (str, bytes)) or address[0] in ('127.0.0.1', '::1', 'localhost')\n"
        "        if not local: print('NETWORK', event, address, flush=True); raise OSError('no network here')\n"
        "sys.addaudithook(refuse)\n"
        "sys.argv = ['follow', *sys.argv[1:]]\n"
        "runpy.run_module('mlnb.tracking.follow', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", guard, *map(str, arguments)]
    apart = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") and not subprocess.run([*apart, "true"], capture_output=True).returncode:
        command = apart + command
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    variables = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(place), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert "NETWORK" not in done.stdout, done.stdout
    return done, sorted(path.name for path in home.rglob("*"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One run tracked by the program; (folder, what was said, files in the home folder)."""
    runs = tmp_path_factory.mktemp("tracked") / "runs"
    folder = make_run(runs, Store(runs / "store"))
    done, home = run_without_network(runs.parent, folder, "--project", "demo", PLANTED=SECRET, WANDB_API_KEY="k" * 40)
    assert done.returncode == 0, done.stderr
    return folder, done, home


@pytest.fixture(scope="module")
def train(tracked):
    """The W&B run of the stage that ran."""
    return read(tracked[0], f"{NAME}-train-1")


def test_it_works_without_network_and_leaves_the_home_folder_empty(tracked):
    folder, done, home = tracked
    assert home == [] and done.stdout == done.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == ["attempts", "run.json", "wandb"]


def test_a_stage_is_a_run_of_the_pipeline_runs_group(train):
    assert (train["project"], train["group"], train["job"], train["name"]) == ("demo", NAME, "train", "train")
    assert (train["exit"], train["commit"], train["tags"], train["host"]) == (0, "d" * 40, ["tabular"], "localhost")


def test_parameters_and_what_the_result_depends_on_are_in_the_config(train):
    config, mine = train["config"], train["config"]["mlnb"]
    assert (config["lr"], config["layers"], config["label"]) == (0.01, [64, 32], "größe")
    assert mine["packages"] == {"keras": "3"} and mine["python"] == "3.11.7" and mine["git"]["dirty"] is True
    assert mine["outputs"]["val_auc"] == "1" * 64 and mine["sources"] == {"data/x.csv": "b" * 64}


def test_inputs_name_the_run_that_made_them(train):
    inputs = train["config"]["mlnb"]["inputs"]
    assert inputs["prepare.train"] == {
        "digest": "a" * 64, "run": f"{OLD}-prepare-2", "artifact": "tabular-prepare-train:sha256-" + "a" * 16,
    }  # fmt: skip
    assert inputs["after prepare"] == {"digest": "e" * 64, "run": f"{OLD}-prepare-2"}


def test_numbers_and_short_texts_are_the_summary(train):
    mine = {name: value for name, value in train["summary"].items() if not name.startswith("_")}
    assert {"val_auc": 0.75, "metrics.auc": 0.7, "metrics.n": 3, "note": "said ***"}.items() <= mine.items()
    assert mine["stage_seconds"] == 4.5 and mine["stage_peak_memory_bytes"] == 10**9
    assert not {"rows", "metrics", "metrics.deep", "model", "long"} & mine.keys()


def test_a_glued_number_wins_over_the_last_row_of_history(train):
    assert train["summary"]["loss"] == 0.1


def test_fits_lie_side_by_side_with_their_steps_and_moments(train):
    rows = train["history"]
    assert [row["_step"] for row in rows] == [0, 1, 2]
    assert [row["wide/loss"] for row in rows] == [row["deep/loss"] for row in rows] == [1.0, 0.5, 1 / 3]
    assert [row["_timestamp"] for row in rows] == [1e9, 1e9 + 1, 1e9 + 2]


def test_trials_are_runs_of_the_group(tracked, train):
    good, bad = (read(tracked[0], f"{NAME}-train-trial-{n}-1") for n in (0, 1))
    assert (good["job"], good["group"], good["exit"], good["summary"]["val_auc"]) == ("trial", NAME, 0, 0.7)
    assert (bad["exit"], "val_auc" in bad["summary"], bad["config"]["lr"]) == (1, False, 0.1)
    assert good["config"]["mlnb"]["stage_run"] == f"{NAME}-train-1" and train["config"]["mlnb"]["trials"] == 2
    assert [row["loss"] for row in good["history"]] == [5.0]


def test_the_group_has_one_run_that_says_who_made_what(tracked):
    found = read(tracked[0], NAME)
    stages = found["config"]["mlnb"]["stages"]
    assert (found["job"], found["group"], found["exit"]) == ("pipeline", NAME, 1)
    assert (stages["prepare"]["status"], stages["prepare"]["run"]) == ("skipped", f"{OLD}-prepare-2")
    assert stages["train"]["run"] == f"{NAME}-train-1" and stages["register"]["run"] == ""
    assert found["config"]["train.lr"] == 0.01 and found["summary"]["train.val_auc"] == 0.75


def test_a_stage_that_failed_is_a_failed_run_with_its_error(tracked):
    found = read(tracked[0], f"{NAME}-evaluate-3")
    error = found["config"]["mlnb"]["error"]
    assert (found["exit"], error["name"], error["message"], error["cell"]) == (1, "ValueError", "no: ***", 3)


def test_figures_and_tables_are_media(tracked, train):
    last = train["history"][-1]
    assert (last["figure"]["_type"], last["drawing"]["_type"], last["table"]["_type"]) == (
        "image-file",
        "plotly-file",
        "table-file",
    )
    files = {
        path.suffix: path for path in tracked[0].glob("wandb/offline-run-*-train-1/files/media/**/*") if path.is_file()
    }
    assert files[".png"].read_bytes()[:4] == b"\x89PNG"
    table = json.loads(next(tracked[0].glob("wandb/offline-run-*-train-1/files/media/table/*")).read_text())
    assert table["columns"] == ["x", "label", "***"] and len(table["data"]) == 1000
    assert table["data"][:2] == [[0, "größe", "***"], [1, None, "***"]]


def test_artifacts_are_references_with_digests(tracked, train):
    artifact = train["artifacts"]["tabular-train-model"]
    entry, = artifact.manifest.contents  # fmt: skip
    path = Path(entry.ref.removeprefix("file://"))
    assert path.is_relative_to(tracked[0].parent / "store") and path.read_bytes() == b"m" * 3_000_000
    import hashlib

    assert entry.digest == base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()
    mine = json.loads(artifact.metadata)["mlnb"]
    assert (mine["digest"], mine["scrap"], set(artifact.aliases)) == (
        path.name,
        "model",
        {f"sha256-{path.name[:16]}", "latest"},
    )
    assert sum(p.stat().st_size for p in (tracked[0] / "wandb").rglob("*") if p.is_file()) < 1_000_000


def test_equal_content_is_the_same_artifact_in_another_run(tracked, tmp_path):
    runs = tracked[0].parent
    other = runs / "20261120-130000-0000"
    data = json.loads((tracked[0] / "run.json").read_text())
    stage = {
        **data["stages"]["train"],
        "run": other.name,
        "scraps": {"model": data["stages"]["train"]["scraps"]["model"]},
    }
    other.mkdir()
    (other / "run.json").write_text(json.dumps({**data, "run": other.name, "stages": {"train": stage}}))
    track_run(other, Target("demo"))
    mark = read_marks(other)[f"{other.name}-train-1"]
    before = [a for a in read_marks(tracked[0])[f"{NAME}-train-1"].artifacts if a["name"] == "tabular-train-model"]
    shutil.rmtree(other)
    assert list(mark.artifacts) == before


def test_no_notebook_code_machine_or_console_travels(tracked, train):
    names = [path.name for path in (tracked[0] / "wandb").rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".ipynb", ".py", "requirements.txt", "metadata.json"))]
    assert not {"output", "output_raw", "stats"} & train["kinds"]


def forms(secret):
    """How a value looks in files: plain, in JSON, in JSON in JSON, in base64 and hexadecimal."""
    quoted = [json.dumps(secret, ensure_ascii=ascii_)[1:-1] for ascii_ in (True, False)]
    twice = [json.dumps(form)[1:-1] for form in quoted]
    return {secret, *quoted, *twice, base64.b64encode(secret.encode()).decode(), secret.encode().hex()}


def leaks(folder, secret):
    """Files below a folder that hold a secret, also where gzip or zlib hides it."""
    import gzip

    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        texts = [path.read_bytes()]
        for start in [m.start() for m in re.finditer(rb"\x1f\x8b|\x78[\x01\x5e\x9c\xda]", texts[0])][:1000]:
            try:
                texts.append(
                    gzip.decompress(texts[0][start:]) if texts[0][start] == 0x1F else zlib.decompress(texts[0][start:])
                )
            except (OSError, EOFError, zlib.error):
                continue
        found += [f"{path.name}: {form}" for form in forms(secret) for text in texts if form.encode() in text]
    return found


def test_no_byte_below_wandb_holds_a_secret(tracked):
    wandb = tracked[0] / "wandb"
    assert leaks(tracked[0].parent / "store", SECRET) or leaks(tracked[0], SECRET)  # the check sees it where it is
    assert leaks(wandb, SECRET) == [] and leaks(wandb, "k" * 40) == []


def test_what_may_hold_a_secret_that_nobody_knows_here_stays_at_home(tracked, tmp_path):
    runs = tmp_path / "runs"
    folder = make_run(runs, Store(runs / "store"))
    done, _ = run_without_network(tmp_path, folder, "--project", "demo", PLANTED="")
    shutil.rmtree(folder / "wandb")
    kept = {name: value for name, value in os.environ.items() if name != "PLANTED"}
    subprocess.run(
        [sys.executable, "-m", "mlnb.tracking.follow", str(folder)], check=True, env=kept | {"PYTHONPATH": str(ROOT)}
    )
    found = read(folder, f"{NAME}-train-1")
    assert not list(folder.glob("wandb/offline-run-*/files/media/*"))
    assert set(found["config"]["mlnb"]["left_out"]) == {"table", "figure", "drawing"}
    assert "PLANTED" in found["config"]["mlnb"]["left_out"]["table"] and "tabular-train-table" in found["artifacts"]


def test_a_torn_run_is_written_again_and_a_finished_one_is_not(tracked, tmp_path):
    folder = tmp_path / NAME
    shutil.copytree(tracked[0], folder, symlinks=True)
    torn, = folder.glob("wandb/offline-run-*-evaluate-3/run-*.wandb")  # fmt: skip
    torn.write_bytes(torn.read_bytes()[:200])
    (local_folder(folder) / f"{NAME}-evaluate-3.done").unlink()
    whole, = folder.glob("wandb/offline-run-*-train-1/run-*.wandb")  # fmt: skip
    before, count = whole.stat().st_mtime_ns, len(list(folder.glob("wandb/offline-run-*")))
    track_run(folder, Target("demo"))
    assert read(folder, f"{NAME}-evaluate-3")["exit"] == 1 and whole.stat().st_mtime_ns == before
    assert len(list(folder.glob("wandb/offline-run-*"))) == count == 5


STAGES = {
    "10_a": ["parameters: from mlnb import Secret\nkey: Secret = Secret('PLANTED')", "from mlnb import glue\nimport pandas as pd, time\n"
             "glue('t', pd.DataFrame({'k': [str(key)]}))\nglue('text', f'<{key}>')\nprint(key)"],
    "20_b": ["from mlnb import glue, ref\nimport time\nglue('n', len(ref('a.t')))\ntime.sleep({sleep})\nglue('done', 1)"],
    "30_c": ["from mlnb import ref\nraise ValueError(ref('a.text') + ref('a.t')['k'][0] + str(ref('b.n')))"],
}  # fmt: skip
BEHIND = (
    "import sys\nfrom pathlib import Path\nfrom mlnb.pipeline.run import Request, prepare, run\n"
    "from mlnb.settings import find_project\nfrom mlnb.tracking.follow import start_follower\n"
    "project = find_project(Path.cwd()); request = Request(cold=True, keep_going=True)\n"
    "followers = []\n"
    "def tell(event):\n"
    "    if event['event'] == 'started' and not followers:\n"
    "        followers.append(start_follower(project, max(p for p in project.runs.iterdir() if (p/'run.json').exists())))\n"
    "data = run(prepare(project, request), request, tell)\n"
    "assert followers[0].wait(60) and followers[0].problem() == '', followers[0].problem()\n"
)


def behind(root, sleep="0"):
    """A real project whose runs are followed, and a process that runs it."""
    stages = {name: [cell.replace("{sleep}", sleep) for cell in cells] for name, cells in STAGES.items()}
    project = ProjectFolder(root, stages, "[tracking]\nproject = demo\n")
    environment = project.environment(PLANTED=SECRET, MLNB_PIPELINE_WARM="false")
    return project, subprocess.Popen([sys.executable, "-c", BEHIND], cwd=root, env=environment, start_new_session=True)


def only_run(project):
    """The folder of the one run of a project."""
    return next((p for p in project.runs.glob("2*") if (p / "run.json").exists()), None)


def test_a_real_run_is_written_behind_and_holds_no_secret(tmp_path):
    project, process = behind(tmp_path / "demo")
    assert process.wait(120) == 0
    folder = only_run(project)
    marks = {mark.job_type: mark for mark in read_marks(folder).values()}
    assert {name: mark.exit_code for name, mark in marks.items()} == {"a": 0, "b": 0, "c": 1, "pipeline": 1}
    assert read(folder, marks["b"].id)["config"]["mlnb"]["inputs"]["a.t"]["run"] == marks["a"].id
    assert leaks(folder / "wandb", SECRET) == []
    assert "***" in read(folder, marks["c"].id)["config"]["mlnb"]["error"]["message"]


def test_a_run_that_is_killed_is_closed_as_failed(tmp_path):
    project, process = behind(tmp_path / "demo", sleep="300")
    folder = wait_for(lambda: (f := only_run(project)) and read_marks(f) and f, 40, "the first W&B run")
    wait_for(lambda: (folder / "attempts/b-1/spec.json").exists(), 60, "the second stage")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    marks = wait_for(
        lambda: (local_folder(folder) / "complete.json").exists() and read_marks(folder), 60, "the follower's end"
    )
    found = read(folder, f"{folder.name}-b-1")
    assert (found["exit"], found["config"]["mlnb"]["status"]) == (1, "interrupted")
    assert list(found["config"]["mlnb"]["inputs"]) == ["a.t"] and read(folder, folder.name)["exit"] == 1
    assert [mark.job_type for mark in marks.values()] == ["a", "b", "pipeline"]


def test_a_killed_follower_is_made_up_for(tmp_path):
    runs = tmp_path / "runs"
    folder = make_run(runs, Store(runs / "store"))
    data = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(data | {"status": "running"}))
    (tmp_path / "settings.ini").write_text("")
    with lock(folder / "lock"):
        follower = start_follower(find_project(tmp_path), folder)
        wait_for(lambda: list(folder.glob("wandb/offline-run-*")), 30, "a W&B run")
        os.killpg(follower.process.pid, signal.SIGKILL)
        assert follower.wait(10) and "-9" in follower.problem()
    (folder / "run.json").write_text(json.dumps(data))
    assert ensure_tracked(folder, Target("demo")) == ""
    assert len(read_marks(folder)) == 5 and read(folder, f"{NAME}-train-1")["exit"] == 0
    assert len(list(folder.glob("wandb/offline-run-*"))) == 5


def test_two_writers_keep_apart(tmp_path):
    runs = tmp_path / "runs"
    folder = make_run(runs, Store(runs / "store"))
    command = [sys.executable, "-m", "mlnb.tracking.follow", str(folder), "--project", "demo"]
    both = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list(folder.glob("wandb/offline-run-*"))) == 5 == len(read_marks(folder))


def test_what_cannot_be_written_is_told_and_costs_nothing_else(tmp_path):
    runs = tmp_path / "runs"
    folder = make_run(runs, Store(runs / "store"))
    code = (
        "import sys, mlnb.tracking.wandb_write as w\n"
        "old = w.open_wandb_run\n"
        "def broken(folder, target, name, *more):\n"
        "    if 'train-1' in name: raise OSError(28, 'No space left on device')\n"
        "    return old(folder, target, name, *more)\n"
        "w.open_wandb_run = broken\n"
        "from mlnb.tracking.follow import main; sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 1 and "No space left" in done.stderr
    assert [mark.job_type for mark in read_marks(folder).values()] == ["trial", "trial", "evaluate", "pipeline"]
    assert not (local_folder(folder) / "complete.json").exists()


def test_off_does_nothing_at_all(tmp_path):
    (tmp_path / "settings.ini").write_text("[tracking]\nmode = off\n")
    code = (
        "import sys\nfrom pathlib import Path\nfrom mlnb.settings import find_project\n"
        "from mlnb.tracking.follow import start_follower\n"
        "assert start_follower(find_project(Path.cwd()), Path.cwd()/'runs/x') is None\n"
        "assert not {'wandb', 'numpy', 'pandas'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_a_run_is_wrong_usage(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["skipped", "blocked", "stopped"])
def test_a_run_that_executed_nothing_leaves_nothing(status, tmp_path):
    assert status not in EXECUTED
    (tmp_path / "run.json").write_text(
        json.dumps({"run": "r", "status": "done", "stages": {"a": {"stage": "a", "status": status}}})
    )
    assert track_run(tmp_path, Target("p")) == [] and ensure_tracked(tmp_path, Target("p")) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_ids_are_safe_and_short():
    names = [wandb_id(run, "train", 1) for run in ("ü", "ä", "a/b", "a b", "r" * 200, "x" + "r" * 200)]
    assert len(set(names)) == 6 and all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in names)
    assert wandb_id("20261120-ab12", "train", 2) == "20261120-ab12-train-2"


def test_numbers_that_are_no_numbers_do_not_reach_the_summary():
    scraps = {"a": inline(None), "b": inline(2), "c": inline({"$float": "inf"}), "d": inline("x" * 501)}
    assert stage_summary({"scraps": scraps}) == {"b": 2, "c": float("inf")}


@given(st.text(min_size=4, max_size=12), st.text(max_size=5), st.text(max_size=5))
def test_a_secret_is_found_in_every_form(secret, before, after):
    try:
        plain = (before + secret + after).encode()
    except UnicodeEncodeError:
        return
    texts = [before + secret + after, json.dumps(before + secret + after), repr(before + secret + after)]
    texts += [base64.b64encode(plain).decode()] if len(secret.encode()) >= 9 else []
    secrets = Secrets((secret,))
    assert all(secrets.clean(text) != text or secret == "***" for text in texts)


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 3), st.sampled_from(["x", "y"])), max_size=20)
)
def test_no_value_of_history_is_lost_and_steps_only_grow(lines):
    told = [{"time": float(i), "of": of, "step": step, "values": {name: i}} for i, (of, step, name) in enumerate(lines)]
    rows = history_rows(told)
    assert [row.step for row in rows] == sorted({row.step for row in rows})
    kept = [value for row in rows for name, value in row.values.items() if not name.endswith("/time")]
    assert sorted(kept) == list(range(len(lines)))
