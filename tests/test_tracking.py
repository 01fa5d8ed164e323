"""W&B files written offline, read back with an own reader of the .wandb format, in a process that has no network."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mlnb.tracking.wandb_offline import EXECUTED, main, stage_summary, track_run, wandb_id

ROOT = Path(__file__).parents[1]
BLOCK = 32768

STAGES = {
    "ingest": {"stage": "ingest", "status": "skipped", "scraps": {"rows": {"encoder": "json", "data": 5}}},
    "train": {
        "stage": "train", "status": "ran", "fingerprint": "f" * 64, "attempts": 1, "seconds": 4.5,
        "notebook": "30_train.ipynb", "run": "r1", "resources": {"peak_memory_bytes": 10**9, "cpu_seconds": 3.0},
        "parts": {"code": "c" * 64, "parameters": {"lr": 0.01, "layers": [64, 32], "label": "größe"},
                  "upstream": {"prepare.train": "a" * 64},
                  "sources": {"data/x.csv": "b" * 64}, "packages": {"keras": "3"}},
        "scraps": {"val_auc": {"name": "val_auc", "encoder": "json", "data": 0.75, "digest": "1" * 64},
                   "table": {"encoder": "json", "data": {"a": [1]}, "digest": "2" * 64},
                   "model": {"encoder": "artifact", "type": "keras", "digest": "3" * 64, "bytes": 9}},
        "error": None,
    },
    "evaluate": {"stage": "evaluate", "status": "failed", "attempts": 3, "error": {"message": "ValueError: no"}},
    "register": {"stage": "register", "status": "blocked"},
}  # fmt: skip
GIT = {"commit": "d" * 40, "dirty": True}
RUN = {"run": "20261120-120000-ab12", "pipeline": "tabular", "git": GIT, "stages": STAGES}


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
    return {item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in items}


def read(folder, name):
    """What a W&B run holds, as plain data."""
    path, = Path(folder).glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")  # fmt: skip
    found = {"config": {}, "summary": {}, "files": []}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            one = record.run
            found.update(project=one.project, group=one.run_group, job=one.job_type, name=one.display_name)
            found["config"].update(values(one.config.update))
        elif kind == "config":
            found["config"].update(values(record.config.update))
        elif kind == "summary":
            found["summary"].update(values(record.summary.update))
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind == "files":
            found["files"] += [one.path for one in record.files.files]
        elif kind in ("artifact", "output", "output_raw"):
            found[kind] = True
    return found


def run_without_network(tmp_path, *arguments):
    """Run the module as a program with an empty home; where the system allows, in a namespace without any network."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    guard = (
        "import sys, socket, runpy\n"
        "def refuse(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        address = args[1] if event != 'socket.getaddrinfo' else args[:2]\n"
        "        local = isinstance(address, (str, bytes)) or address[0] in ('127.0.0.1', '::1', 'localhost')\n"
        "        if not local: print('NETWORK', event, address, flush=True); raise OSError('no network here')\n"
        "sys.addaudithook(refuse)\n"
        "sys.argv = ['wandb_offline', *sys.argv[1:]]\n"
        "runpy.run_module('mlnb.tracking.wandb_offline', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", guard, *map(str, arguments)]
    apart = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") and not subprocess.run([*apart, "true"], capture_output=True).returncode:
        command = apart + command
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "NETWORK" not in done.stdout, done.stdout
    return done, sorted(path.name for path in home.rglob("*"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One run tracked by the program; (folder, what was said, files in the home folder)."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "run.json").write_text(json.dumps(RUN))
    done, home = run_without_network(folder.parent, folder, "--project", "demo", "--mode", "offline")
    assert done.returncode == 0, done.stderr
    return folder, done, home


def test_it_works_without_network_and_leaves_the_home_folder_empty(tracked):
    folder, done, home = tracked
    assert home == [] and done.stdout == "" and "2 stages" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "wandb"]


def test_a_stage_is_a_run_of_the_pipeline_runs_group(tracked):
    found = read(tracked[0], "20261120-120000-ab12-train-1")
    assert (found["project"], found["group"], found["job"], found["name"]) == ("demo", RUN["run"], "train", "train")
    assert found["exit"] == 0


def test_parameters_and_upstream_digests_are_in_the_config(tracked):
    config = read(tracked[0], "20261120-120000-ab12-train-1")["config"]
    assert (config["lr"], config["layers"], config["label"]) == (0.01, [64, 32], "größe")
    assert config["mlnb"]["inputs"] == {"prepare.train": "a" * 64}
    assert config["mlnb"]["outputs"]["model"] == "3" * 64
    assert config["mlnb"]["git"]["commit"] == "d" * 40


def test_glued_numbers_are_the_summary_and_nothing_else_is(tracked):
    summary = read(tracked[0], "20261120-120000-ab12-train-1")["summary"]
    mine = {name: value for name, value in summary.items() if not name.startswith("_")}
    assert mine == {"val_auc": 0.75, "stage_seconds": 4.5, "stage_peak_memory_bytes": 10**9}


def test_a_stage_that_failed_is_a_failed_run(tracked):
    assert read(tracked[0], "20261120-120000-ab12-evaluate-3")["exit"] == 1


def test_only_executed_stages_are_written_and_no_notebook_travels(tracked):
    runs = [path.name.split("-", 4)[-1] for path in tracked[0].glob("wandb/offline-run-*")]
    assert len(runs) == 2
    names = [path.name for path in tracked[0].rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".ipynb", ".py"))]
    found = read(tracked[0], "20261120-120000-ab12-train-1")
    assert "artifact" not in found and "output" not in found and "output_raw" not in found


def test_a_killed_attempt_is_written_again_and_a_finished_one_is_not(tracked, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tracked[0], folder, symlinks=True)
    torn, = folder.glob("wandb/offline-run-*-evaluate-3/run-*.wandb")  # fmt: skip
    torn.write_bytes(torn.read_bytes()[:200])
    (folder / "wandb/.local/20261120-120000-ab12-evaluate-3.done").unlink()
    whole, = folder.glob("wandb/offline-run-*-train-1/run-*.wandb")  # fmt: skip
    before = whole.stat().st_mtime_ns
    done, _ = run_without_network(tmp_path, folder, "--project", "demo")
    assert done.returncode == 0, done.stderr
    assert read(folder, "20261120-120000-ab12-evaluate-3")["exit"] == 1 and whole.stat().st_mtime_ns == before
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


def test_off_does_nothing_at_all(tmp_path):
    code = (
        "import sys, mlnb.tracking.wandb_offline as m\n"
        f"assert m.track_run({RUN!r}, {str(tmp_path / 'x')!r}, 'p', mode='off') == []\n"
        "assert not {'wandb', 'numpy', 'pandas'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_run_is_wrong_usage(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["skipped", "blocked"])
def test_stages_that_did_not_execute_are_left_out(status, tmp_path):
    assert status not in EXECUTED
    assert track_run({"run": "r", "stages": {"a": {"stage": "a", "status": status}}}, tmp_path / "x", "p") == []


def test_ids_are_safe_and_short():
    names = [wandb_id(run, "train", 1) for run in ("ü", "ä", "a/b", "a b", "r" * 200, "x" + "r" * 200)]
    assert len(set(names)) == 6 and all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in names)
    assert wandb_id("20261120-ab12", "train", 2) == "20261120-ab12-train-2"


def test_numbers_that_are_no_numbers_do_not_reach_the_summary():
    scraps = {name: {"encoder": "json", "data": data} for name, data in (("a", "0.5"), ("b", None), ("c", 2))}
    assert stage_summary({"scraps": scraps}) == {"c": 2}
