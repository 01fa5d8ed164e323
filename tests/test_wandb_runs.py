"""W&B runs read back: what real W&B wrote offline, whole, killed, resumed, torn and damaged, against W&B's own reader."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import MlnbError
from mlnb.tracking import wandb_records, wandb_runs
from mlnb.tracking.wandb_fold import Fold, drop, fold_file, named_columns, put, series
from mlnb.tracking.wandb_records import BLOCK, START, KeyPaths, TrackingError, parse_record, plain_items, read_payloads
from mlnb.tracking.wandb_runs import (
    find_wandb_runs,
    merge_histories,
    merge_runs,
    read_history,
    read_wandb_run,
    run_parts,
)

ROOT = Path(__file__).parents[1]

WRITE = """
import sys, time, wandb
def start(**given):
    return wandb.init(project="demo", settings=wandb.Settings(x_disable_stats=True, console="off"), **given)

run = start(id="full", name="first", group="g", job_type="train", tags=["a", "b"], notes="as begun",
            config={"lr": 0.1, "net": {"layers": [64, 32], "act": "relu"}, "old": 1})
run.define_metric("acc", summary="max")
run.define_metric("loss", summary="min")
for step in range(30):
    run.log({"loss": 1 / (step + 1), "acc": [0.1, 0.9, 0.5][step % 3], "train/größe": step, "nested": {"a": {"b": step}}})
run.log({"loss": float("nan"), "flag": True, "text": "hi", "none": None, "list": [1, 2], "dot.ted": 1, "big": 2**60})
run.log({"loss": float("inf"), "flag": False}, step=100)
run.log({"loss": -float("inf"), "hist": wandb.Histogram([1, 2, 3]), "html": wandb.Html("<b>x</b>"),
         "table": wandb.Table(columns=["a"], data=[[1]]), "long text": "x" * 100_000}, step=101)
run.config.update({"net": {"act": "tanh"}, "later": {"deep": [1]}}, allow_val_change=True)
run.summary["best"] = {"at": {"step": 3}}
run.summary["best"]["at"]["loss"] = 0.25
run.summary["gone"] = 1
del run.summary["gone"]
artifact = wandb.Artifact("data", type="dataset")
open("rows.csv", "w").write("a,b")
artifact.add_file("rows.csv")
artifact.add_reference("https://example.invalid/x", checksum=False)
run.log_artifact(artifact, aliases=["v9"])
run.tags += ("late",); run.notes = "as ended"; run.name = "renamed"
print("a line of output")
run.finish()

run = start(id="bad")
run.log({"loss": 1})
run.finish(exit_code=3)

for part, again in enumerate([None, "allow", "must", None]):
    run = start(id="parts", resume=again, config={"part": part, f"only{part}": 1})
    for step in range(5): run.log({"loss": part + step / 10, f"m{part}": step})
    run.finish()
    time.sleep(1)  # folders are named by the second
"""

ENDLESS = """
import wandb
run = wandb.init(project="demo", id="killed", config={"lr": 0.5}, settings=wandb.Settings(x_disable_stats=True))
step = 0
while True:
    run.log({"loss": step / 8, "other": -step}); step += 1
"""


def environment(folder):
    """W&B offline, with everything below one folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    return {**kept, **places, "WANDB_DIR": str(folder), "WANDB_MODE": "offline", "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false", "HOME": str(folder), "PYTHONPATH": str(ROOT)}  # fmt: skip


def killed_run(folder):
    """A process that logs without end, killed with everything it started once some blocks are on the disk."""
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=folder, env=environment(folder),
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not any(path.stat().st_size > 3 * BLOCK for path in folder.glob("wandb/*-killed/*.wandb")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder with the runs of both scripts, written by real W&B."""
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, "-c", WRITE], cwd=folder, env=environment(folder), check=True, timeout=180)
    killed_run(folder)
    return folder


@pytest.fixture(scope="module")
def full(written):
    """The run with everything in it."""
    return run_parts(find_wandb_runs(written))["full"][0]


@pytest.fixture
def small(full, tmp_path):
    """A run of one block and a bit, that a test may change: (its folder, its file)."""
    folder = tmp_path / "run-20260101_000000-small"
    folder.mkdir()
    file = folder / "run-small.wandb"
    rows = [payload for payload, _ in payloads(next(full.glob("*.wandb")).read_bytes()) if len(payload) < 2000]
    file.write_bytes(container(rows * 3))
    return folder, file


def container(records):
    """The bytes of a file with these records."""
    log = bytearray(START)
    for payload in records:
        first = True
        while first or payload:
            room = BLOCK - len(log) % BLOCK
            if room < 7:
                log += bytes(room)
                continue
            part, payload = payload[: room - 7], payload[room - 7 :]
            kind = (1 if first else 4) if not payload else (2 if first else 3)
            first = False
            crc = wandb_records.zlib.crc32(part, wandb_records.zlib.crc32(bytes([kind])))
            log += wandb_records.CHUNK.pack(crc, len(part), kind) + part
    return bytes(log)


def payloads(data, start=len(START)):
    """Records and where they end."""
    import io

    return list(read_payloads(io.BytesIO(data), start))


def inspected(folder, *options):
    """What W&B's own reader says of a run: one object per line."""
    done = subprocess.run([sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)], check=True,
                          env=environment(folder.parents[1]), capture_output=True, text=True, timeout=120)  # fmt: skip
    return json.loads(done.stdout) if options else [json.loads(line) for line in done.stdout.splitlines()]


def number(value):
    """A value of W&B's reader as ours; None when it is no number."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value)
    return None if value is None or isinstance(value, list) else float(value)


def inspected_history(folder):
    """By name: rows of (step, value, time) for everything that is a number."""
    found = {}
    for record in inspected(folder):
        row = record.get("history", {}).get("item", {})
        for name, value in row.items():
            if number(value) is not None:
                found.setdefault(name, []).append((row["_step"], number(value), row["_timestamp"]))
    return found


def rows(one):
    """A series of ours as such rows."""
    return list(zip(one["step"].tolist(), one["value"].tolist(), one["time"].tolist(), strict=True))


def same(one, other):
    """Are two histories equal, NaN included?"""
    return one.keys() == other.keys() and all(
        np.array_equal(one[name][key], other[name][key], equal_nan=True) for name in one for key in ("step", "value", "time")
    )


def test_every_run_is_found_newest_first(written):
    found = find_wandb_runs(written)
    assert sorted(run_parts(found)) == ["bad", "full", "killed", "parts"] and len(found) == 7
    stamps = [folder.name.removeprefix("offline-run-")[:15] for folder in found]
    assert stamps == sorted(stamps, reverse=True)
    assert (written / "wandb/latest-run").is_symlink() and not any(folder.is_symlink() for folder in found)


def test_a_run_is_what_was_written(full):
    run = read_wandb_run(full)
    assert (run.run_id, run.project, run.group, run.job_type, run.name) == ("full", "demo", "g", "train", "renamed")
    assert (run.tags, run.notes, run.state, run.exit_code) == (("a", "b", "late"), "as ended", "finished", 0)
    assert run.config == {"lr": 0.1, "net": {"act": "tanh"}, "old": 1, "later": {"deep": [1]}}
    assert run.summary["best"] == {"at": {"step": 3, "loss": 0.25}} and "gone" not in run.summary
    assert run.summary["acc"] == {"max": 0.9} and run.summary["nested"] == {"a": {"b": 29}}
    assert run.best == {"acc": "max", "loss": "min"} and not run.torn and not run.resume
    assert run.others == ("hist", "html", "list", "long text", "table", "text")
    assert abs(run.started - full.stat().st_mtime) < 600 and 0 < run.seconds < 600


def test_artifacts_come_with_their_files(full):
    run = read_wandb_run(full)
    data, = (one for one in run.artifacts if one["name"] == "data")  # fmt: skip
    assert (data["type"], data["aliases"], len(data["digest"])) == ("dataset", ["latest", "v9"], 32)
    file, link = sorted(data["files"], key=lambda one: one["path"])
    assert (file["path"], file["bytes"], file["ref"]) == ("rows.csv", 3, "") and file["digest"]
    assert link["ref"] == "https://example.invalid/x" and run.used == ()


def test_a_failed_run_is_failed(written):
    run = read_wandb_run(run_parts(find_wandb_runs(written))["bad"][0])
    assert (run.state, run.exit_code, run.name) == ("failed", 3, "")


@pytest.mark.parametrize("name", ["full", "killed"])
def test_history_is_what_wandb_reads(written, name):
    folder = run_parts(find_wandb_runs(written))[name][0]
    expected, found = inspected_history(folder), read_history(folder)
    media = tuple(f"{one}." for one in read_wandb_run(folder).others)
    wanted = {one for one in expected if one not in ("_step", "_timestamp", "_runtime") and not one.startswith(media)}
    assert set(found) == wanted and len(wanted) >= 2 and list(found) == sorted(found)
    for one in wanted:
        assert repr(rows(found[one])) == repr(expected[one]), one


def test_summary_and_config_are_what_wandb_reads(full):
    said, run = inspected(full, "--summary"), read_wandb_run(full)
    mine = json.loads(json.dumps(run.summary).replace("NaN", '"NaN"').replace("Infinity", '"Infinity"'))
    said["summary"]["best"] = mine["best"]  # W&B's reader forgets the part of a whole value that a nested key does not name
    said["config"]["net"] = run.config["net"]  # and it joins a setting's new whole value to the old one
    assert said["summary"] == mine and said["config"] == run.config
    assert (said["state"], said["exit_code"], tuple(said["tags"]), said["notes"]) == (
        run.state, run.exit_code, run.tags, run.notes)  # fmt: skip


def test_a_killed_run_is_open_with_every_row_that_reached_the_disk(written):
    folder, = run_parts(find_wandb_runs(written))["killed"]  # fmt: skip
    run, history = read_wandb_run(folder), read_history(folder)
    assert (run.state, run.exit_code, run.config) == ("open", None, {"lr": 0.5}) and run.seconds > 0
    steps = history["loss"]["step"]
    assert len(steps) > 100 and np.array_equal(steps, np.arange(len(steps)))
    assert np.array_equal(history["loss"]["value"], steps / 8) and np.array_equal(history["other"]["value"], -steps)
    assert run.summary["loss"] == pytest.approx(steps[-1] / 8, abs=0.25)


def test_the_short_way_finds_what_wandbs_parser_finds(full, monkeypatch):
    """Once with, once without the walk over the bytes."""
    with open(next(full.glob("*.wandb")), "rb") as file:
        short = fold_file(Fold(), file)
        assert sum(plain_items(payload, KeyPaths()) is not None for payload, _ in payloads(Path(file.name).read_bytes())) > 90
        monkeypatch.setattr(wandb_records, "_layout", lambda: None)
        long = fold_file(Fold(), file)
    assert json.dumps(short.settled(), sort_keys=True) == json.dumps(long.settled(), sort_keys=True)
    assert same(series(named_columns(short), short.state), series(named_columns(long), long.state))


KEYS = st.lists(st.text(max_size=5) | st.sampled_from(["_step", "a", "b", "a.b", "\x82\x01", "_type"]), min_size=1, max_size=3)
VALUES = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=150) | st.lists(st.integers(), max_size=3)


def _key(item):
    return tuple(item.nested_key) or (item.key,)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_walk_and_parser_agree_on_any_record(data):
    """Records of W&B's own making with any keys and values, in either form of key."""
    record = wandb_records._messages().Record(num=data.draw(st.integers(1, 2**40)))
    kind = data.draw(st.sampled_from(["history", "summary"]))
    items = record.history.item if kind == "history" else record.summary.update
    for keys, value, nested in data.draw(st.lists(st.tuples(KEYS, VALUES, st.booleans()), max_size=4)):
        item = items.add(value_json=json.dumps(value, ensure_ascii=False))
        if nested: item.nested_key.extend(keys)
        else: item.key = keys[0]
    getattr(record, kind).SetInParent()
    if kind == "history": record.history.step.num = data.draw(st.integers(0, 300))
    found = plain_items(record.SerializeToString(), KeyPaths())
    wanted = [(_key(item), item.value_json.encode()) for item in items]
    assert found in (None, (kind, wanted))
    value = wandb_records._layout().value  # whose bytes, inside a key, make the walk give up
    fits = all(len(item.SerializeToString()) < 128 and value not in "".join(_key(item)).encode() for item in items)
    assert found is not None or not fits


PATHS = st.sampled_from([("a",), ("a", "b"), ("a", "b", "c"), ("d",)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PATHS, st.sampled_from(["1", "2", '{"b": 3}', '{"b": {"c": 4}, "e": 5}']), st.booleans()), max_size=8))
def test_the_latest_value_wins_whether_whole_or_part(changes):
    """The short way keeps the latest text of each path; the other one changes the tree each time."""
    fold, tree = Fold(), {}
    for path, text, removed in changes:
        record = wandb_records._messages().Record(num=1)
        record.summary.update.add(nested_key=path, value_json=text)
        if removed: record.summary.remove.add(nested_key=path[:-1] or ("d",))
        assert fold.add(record.SerializeToString())
        put(tree, path, json.loads(text))
        if removed: drop(tree, path[:-1] or ("d",))
    assert fold.settled()["summary"] == tree


def test_typed_values_and_missing_steps_are_read():
    """Forms that the format provides for; W&B writes others today."""
    messages, fold = wandb_records._messages(), Fold()
    record = messages.Record()
    record.history.step.num = 7
    for given_ in ({"integer": 3}, {"number": 0.5}, {"boolean": True}, {"text": "hi"}, {"json": "[1]"}, {"none": 0}):
        record.history.item.add(key=f"of {next(iter(given_))}", **given_)
    assert fold.add(record.SerializeToString())
    found = series(named_columns(fold), fold.settled())
    assert {name: rows(one)[0][:2] for name, one in found.items()} == {
        "of boolean": (7, 1.0), "of integer": (7, 3.0), "of number": (7, 0.5)}  # fmt: skip
    assert fold.state["texts"] == ["of text", "of json"]


def test_a_manifest_too_large_for_its_record_is_read_from_its_file(tmp_path):
    import gzip

    record, path = wandb_records._messages().Record(), tmp_path / "m.jl.gz"
    record.artifact.name = "images"
    record.artifact.manifest.manifest_file_path = str(path)
    folds = [Fold(), Fold()]
    folds[0].add(record.SerializeToString())
    path.write_bytes(gzip.compress(b'{"path": "a", "digest": "x", "size": 3}\n{"path": "b", "digest": "y", "ref": "s3://b"}\n'))
    folds[1].add(record.SerializeToString())
    assert [len(fold.state["artifacts"][0]["files"]) for fold in folds] == [0, 2]
    assert folds[1].state["artifacts"][0]["files"][1] == {"path": "b", "digest": "y", "bytes": 0, "ref": "s3://b"}


def test_every_cut_is_readable(small):
    """All rows that end before the cut, and nothing else."""
    folder, file = small
    data = file.read_bytes()
    ends = [end for _, end in payloads(data)]
    assert len(data) > BLOCK
    last = 0
    for cut in [*range(700), *range(700, BLOCK - 60, 97), *range(BLOCK - 60, BLOCK + 60), *range(BLOCK + 60, len(data), 97)]:
        file.write_bytes(data[:cut])
        run, history = read_wandb_run(folder), read_history(folder)
        count = len(history["loss"]["step"]) if history else 0
        assert count >= last and run.run_id in ("small", "full") and run.torn == (cut not in (0, *range(8), *ends))
        last = count
    assert last > 60


def test_a_flipped_byte_loses_at_most_its_block(tmp_path):
    one = wandb_records._messages().Record()
    records = []
    for step in range(4000):
        one.history.Clear()
        one.history.item.add(nested_key=["_step"], value_json=str(step))
        one.history.item.add(nested_key=["loss"], value_json=str(step / 7))
        records.append(one.SerializeToString())
    data = container(records)
    lost_in_a_block = BLOCK // len(records[0]) + 2
    folder = tmp_path / "run-20260101_000000-x"
    folder.mkdir()
    for place in range(7, len(data), 6007):
        (folder / "run-x.wandb").write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        loss = read_history(folder)["loss"]
        assert len(records) - lost_in_a_block <= len(loss["step"]) < len(records), place
        assert np.array_equal(loss["value"], loss["step"] / 7) and np.all(np.diff(loss["step"]) > 0)
        assert read_wandb_run(folder).torn


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2 * BLOCK))
def test_rubbish_is_no_record_and_no_error(rubbish, place):
    """Anything may stand in a file; what comes out has been put in."""
    records = [b"%05d" % number * 20 for number in range(600)]
    data = bytearray(container(records))
    data[place + 7 : place + 7 + len(rubbish)] = rubbish
    assert set(records) | {None} >= {payload for payload, _ in payloads(bytes(data))}


def test_a_growing_file_is_read_on_from_where_it_was(full, tmp_path, monkeypatch):
    """Each record once, however the file was cut when it was looked at, and the same in the end."""
    folder = tmp_path / full.name
    folder.mkdir()
    source, = full.glob("*.wandb")  # fmt: skip
    data, file, seen = source.read_bytes(), folder / source.name, []
    add = Fold.add
    monkeypatch.setattr(Fold, "add", lambda self, payload: seen.append(payload) or add(self, payload))
    for cut in [3, 7, 500, 501, 4000, 9999, 9999, 50_000, len(data) - 30, len(data)]:
        file.write_bytes(data[:cut])
        os.utime(file, ns=(cut, cut))
        run = read_wandb_run(folder, tmp_path / "cache")
        assert run.state == ("finished" if cut == len(data) else "open")
    assert seen == [payload for payload, _ in payloads(data)]
    read = read_history(folder, tmp_path / "cache")
    assert len(seen) == len(payloads(data)) and same(read, read_history(folder)) and len(read) > 5
    assert run == read_wandb_run(folder, tmp_path / "cache") and repr(run) == repr(read_wandb_run(folder))


def test_a_run_that_is_being_written_is_read_while_it_grows(tmp_path):
    """A living W&B, looked at through the cache until it has logged on, then killed."""
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=tmp_path, env=environment(tmp_path),
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    lengths, until = [], time.monotonic() + 60
    try:
        while len(lengths) < 3:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
            for folder in find_wandb_runs(tmp_path):
                steps = read_history(folder, tmp_path / "cache").get("loss", {"step": ()})["step"]
                assert np.array_equal(steps, np.arange(len(steps)))
                if len(steps) > (lengths or [0])[-1]: lengths.append(len(steps))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    folder, = find_wandb_runs(tmp_path)  # fmt: skip
    cached = read_history(folder, tmp_path / "cache")
    assert same(cached, read_history(folder)) and len(cached["loss"]["step"]) >= lengths[-1]


def test_the_cache_says_what_the_file_says(written, tmp_path, monkeypatch):
    folders = find_wandb_runs(written)
    parsed = [(read_wandb_run(folder), read_history(folder)) for folder in folders]
    for folder in folders: read_wandb_run(folder, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(folders)
    monkeypatch.setattr(wandb_runs, "fold_file", lambda *_: pytest.fail("parsed again"))
    for folder, (run, history) in zip(folders, parsed, strict=True):
        assert repr(read_wandb_run(folder, tmp_path)) == repr(run) and same(read_history(folder, tmp_path), history)


def test_the_cache_needs_no_wandb_and_no_pandas(full, tmp_path):
    read_wandb_run(full, tmp_path)
    code = ("import sys; from mlnb.tracking.wandb_runs import read_history, read_wandb_run\n"
            "run = read_wandb_run(sys.argv[1], sys.argv[2]); print(run.run_id, len(read_history(*sys.argv[1:])))\n"
            "print(*{'wandb', 'pandas', 'pyarrow', 'google.protobuf', 'pickle'} & set(sys.modules) - {'pickle'})")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, full, tmp_path], check=True, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.split() == ["full", str(len(read_history(full)))]


def test_a_file_that_was_replaced_is_read_anew(small, tmp_path):
    """Longer, but not the same run: the cache must not be continued."""
    folder, file = small
    cache = tmp_path / "cache"
    before = len(read_history(folder, cache)["loss"]["step"])
    rows_ = [payload for payload, _ in payloads(file.read_bytes())]
    file.write_bytes(container(rows_[:1] + rows_[2:] + rows_))
    again = read_history(folder, cache)
    assert same(again, read_history(folder)) and len(again["loss"]["step"]) == 2 * before
    file.write_bytes(file.read_bytes()[:BLOCK // 2])
    assert same(read_history(folder, cache), read_history(folder))


def test_a_damaged_cache_is_made_again(small, tmp_path):
    """Cut anywhere or with any byte flipped: never an error, never a wrong value."""
    folder, file = small
    cache = tmp_path / "cache"
    file.write_bytes(file.read_bytes()[:6000])
    run, history = read_wandb_run(folder, cache), read_history(folder)
    kept, = cache.iterdir()  # fmt: skip
    good = kept.read_bytes()
    step = max(1, len(good) // 400)
    damaged = [good[:cut] for cut in range(0, len(good), step * 7)]
    damaged += [good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :] for i in range(0, len(good), step)]
    for data in damaged:
        kept.write_bytes(data)
        assert repr(read_wandb_run(folder, cache)) == repr(run)
        kept.write_bytes(data)
        assert same(read_history(folder, cache), history)


def test_an_unusable_cache_folder_changes_nothing(full, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert repr(read_wandb_run(full, tmp_path / "file")) == repr(read_wandb_run(full))


def test_two_processes_fill_one_cache_at_once(full, tmp_path):
    code = ("import sys; from pathlib import Path; from mlnb.tracking.wandb_runs import read_history\n"
            "for _ in range(20):\n"
            "    for path in Path(sys.argv[2]).glob('*.npz'): path.unlink(missing_ok=True)\n"
            "    print(len(read_history(Path(sys.argv[1]), Path(sys.argv[2]))['loss']['step']))\n")  # fmt: skip
    processes = [subprocess.Popen([sys.executable, "-c", code, full, tmp_path], stdout=subprocess.PIPE, text=True,
                                  env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(2)]  # fmt: skip
    said = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert said == {"33\n" * 20} and [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_resumed_parts_become_one_run(written):
    folders = run_parts(find_wandb_runs(written))["parts"]
    runs, histories = [read_wandb_run(one) for one in folders], [read_history(one) for one in folders]
    assert [run.resume for run in runs] == [False, True, True, False]
    run = merge_runs(runs[:3])
    assert run.config == {"part": 2, "only0": 1, "only1": 1, "only2": 1} and run.summary["m0"] == 4
    assert (run.started, run.folder, run.state) == (runs[0].started, folders[2], "finished")
    history = merge_histories(runs[:3], histories[:3])
    assert history["loss"]["step"].tolist() == list(range(15))
    assert history["loss"]["value"].tolist() == [part + step / 10 for part in range(3) for step in range(5)]
    assert history["m2"]["step"].tolist() == [10, 11, 12, 13, 14]
    repeated = merge_histories(runs[2:], histories[2:])
    assert repeated["loss"]["step"].tolist() == [0, 1, 2, 3, 4] * 2
    assert same(merge_histories(runs[:1], histories[:1]), histories[0]) and merge_runs(runs[:1]) == runs[0]


def test_what_is_no_run_is_said(full, tmp_path):
    folder = tmp_path / full.name
    shutil.copytree(full, folder)
    file, = folder.glob("*.wandb")  # fmt: skip
    for change, words in ((b":W&B\xe1\xbe\x01", "newer format"), (b"PK\3\4\0\0\0", "not a W&B run file")):
        file.write_bytes(change + file.read_bytes()[7:])
        with pytest.raises(TrackingError, match=words) as error: read_wandb_run(folder, tmp_path / "cache")
        assert file.name in str(error.value) and isinstance(error.value, MlnbError)
    file.unlink()
    with pytest.raises(TrackingError, match="not a W&B run folder"): read_wandb_run(folder)
    with pytest.raises(TrackingError, match="no such folder"): find_wandb_runs(folder / "x")


def test_a_protobuf_that_wandb_cannot_serve_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb.proto", None)
    monkeypatch.setitem(sys.modules, "wandb.proto.wandb_internal_pb2", None)
    wandb_records._messages.cache_clear()
    with pytest.raises(TrackingError, match="record format"): parse_record(b"")
    monkeypatch.undo()
    assert parse_record(b"") is not None
