"""The prediction log under real crashes, a disk that refuses and one that is slow, and several writers."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import ServingError
from mlnb.serving import journal as journals
from mlnb.serving.journal import Journal, Requests, adopt, folder_of, kind_of, request_block, weigh, whole_blocks
from mlnb.serving.messages import Example
from mlnb.serving.prediction_log import PredictionLog, is_sampled, iterate_log, join_labels, read_log

ROOT = Path(__file__).parents[1]
WRITER = """
import sys, time
import numpy as np
from mlnb.serving.prediction_log import PredictionLog
folder, name, count, rotate_rows, flush_seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
log = PredictionLog(folder, rotate_rows=rotate_rows, flush_seconds=flush_seconds)
i = 0
while i < count:
    x = {"x": np.array([i, i + 0.5]), "s": np.array([b"a", b"b"], object)}
    if log.write(f"{name}-{i}", "m", 1, "serving_default", x, {"y": np.array([[i], [-i]], "float32")}, 0.001):
        i += 1
        if i % 50 == 0:
            log.flush()
            print(i, flush=True)
    else: time.sleep(0.001)
    if i > 200: time.sleep(0.0005)
print(log.close(), log.counts(), flush=True)
"""


def writer(folder, name, count=10**9, rotate_rows=300, flush_seconds=0.05, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", WRITER, str(folder), name, str(count), str(rotate_rows), str(flush_seconds)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, **more)


def check_rows(table, name):
    """Rows of one writer: each once, in order, without a gap, and what was sent. Returns how many requests."""
    mine = table[table["request_id"].str.startswith(f"{name}-")]
    numbers = mine["request_id"].str.removeprefix(f"{name}-").astype(int)
    expected = pd.DataFrame({"number": numbers, "index": mine["index"]}).sort_values(["number", "index"])
    count = len(mine) // 2
    assert expected["number"].tolist() == [i for i in range(count) for _ in range(2)]
    assert expected["index"].tolist() == [0, 1] * count
    assert (mine["input.x"] == numbers + 0.5 * mine["index"]).all()
    assert (mine["output.y"] == numbers * (1 - 2 * mine["index"])).all()
    assert (mine["input.s"] == mine["index"].map({0: "a", 1: "b"})).all()
    return count


def test_a_killed_writer_loses_only_what_was_not_flushed(tmp_path):
    """kill -9 at some moment: what `flush` acknowledged is there, no row twice, none torn; the next log adopts the journal."""
    process = writer(tmp_path, "w")
    acknowledged = 0
    while acknowledged < 400: acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    kept = check_rows(read_log(tmp_path, "m"), "w")
    assert kept >= acknowledged
    assert list(tmp_path.glob("*/*.arrows")) and list(tmp_path.glob("*/*.parquet"))
    log = PredictionLog(tmp_path, flush_seconds=0.05)
    assert log.flush() and log.close()
    assert not list(tmp_path.glob("*/*.arrows"))
    assert check_rows(read_log(tmp_path, "m"), "w") == kept


def test_processes_share_a_folder(tmp_path):
    """Three writers, one of them killed, while a reader reads: every row of the others once, and a living journal is nobody's orphan."""
    processes = {name: writer(tmp_path, name, 400) for name in ("a", "b")}
    processes["k"] = writer(tmp_path, "k")
    assert int(processes["k"].stdout.readline()) == 50
    while any(processes[name].poll() is None for name in ("a", "b")):
        if processes["k"].poll() is None: processes["k"].kill()
        table = read_log(tmp_path)
        if len(table):
            for name in processes: check_rows(table, name)
            assert not table.duplicated(["request_id", "index"]).any()
    for process in processes.values(): process.communicate()
    table = read_log(tmp_path)
    assert check_rows(table, "a") == check_rows(table, "b") == 400
    assert check_rows(table, "k") >= 50


def test_a_full_disk_costs_rows_and_nothing_else(tmp_path):
    """The system refuses writes beyond 20 kB a file, in the middle of a message: what is there stays readable, the rest is counted."""
    script = """
import json, sys, time, logging
import numpy as np
from mlnb.serving.prediction_log import PredictionLog, read_log
logging.basicConfig(level=logging.WARNING)
log = PredictionLog(sys.argv[1], flush_seconds=0.01, rotate_seconds=3600)
slowest = 0.0
for i in range(60):
    x = {"x": np.full(20, float(i))}
    assert log.write(f"r{i}", "m", 1, "s", x, x, 0.0)
    if i % 10 == 9: log.flush()
closed = log.close()
print(json.dumps([closed, log.counts(), len(read_log(sys.argv[1]))]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)))
    assert done.returncode == 0, done.stderr
    closed, counts, rows = json.loads(done.stdout)
    assert closed and counts["written"] + counts["not_written"] == 1200
    assert 0 < counts["not_written"] < 1200 and rows == counts["written"]
    assert "rows dropped" in done.stderr and "File too large" in done.stderr


def test_a_slow_disk_slows_no_request(tmp_path, monkeypatch, caplog):
    """The disk hangs: writes return at once, the queue fills to its bound and no further, and everything goes on when the disk does."""
    go, entered, real = threading.Event(), threading.Event(), journals._write_all

    def hang(descriptor, data):
        entered.set()
        assert go.wait(30)
        real(descriptor, data)

    monkeypatch.setattr(journals, "_write_all", hang)
    log = PredictionLog(tmp_path, flush_seconds=0.01, queue_rows=100)
    row = {"x": np.zeros(1)}
    log.write("first", "m", 1, "s", row, row, 0.0)
    assert entered.wait(10)
    taken = [log.write(f"r{i}", "m", 1, "s", row, row, 0.0) for i in range(500)]
    assert sum(taken) == 99 and taken == [True] * 99 + [False] * 401
    assert not log.flush(0.05), "says that it is not on the disk"
    go.set()
    with caplog.at_level(logging.WARNING): assert log.close()
    assert log.counts() == {"written": 100, "queue_full": 401, "not_written": 0}
    assert "401 rows dropped" in caplog.text
    (path,) = tmp_path.glob("*/*.parquet")
    assert pq.read_schema(path).metadata[b"dropped"] == b"401"


def test_memory_that_waits_is_bounded(tmp_path, monkeypatch):
    """By bytes as well as by rows."""
    go = threading.Event()
    monkeypatch.setattr(journals, "_write_all", lambda descriptor, data: go.wait(30) and None)
    log = PredictionLog(tmp_path, flush_seconds=60, queue_bytes=1000)
    row = {"x": np.zeros((1, 60))}
    assert [log.write("r", "m", 1, "s", row, row, 0.0) for _ in range(2)] == [True, False]
    go.set()
    log.close()


def test_what_cannot_be_a_row_is_counted(tmp_path):
    """Values that fit no column cost their own requests only."""
    log = PredictionLog(tmp_path, flush_seconds=60)
    good, odd = {"x": np.zeros(1)}, {"x": np.array([{"a"}], object)}
    for i in range(3): log.write(f"r{i}", "m", 1, "s", good if i != 1 else odd, good, 0.0)
    log.close()
    assert log.counts() == {"written": 2, "queue_full": 0, "not_written": 1}
    assert read_log(tmp_path)["request_id"].tolist() == ["r0", "r2"]


def block(numbers):
    requests = Requests("m", 1, "s", ["x"], ["y"])
    for n in numbers: requests.add(f"r{n}", {"x": np.array([n])}, {"y": np.array([n])}, 1, 1e9 + n, 0.0)
    return request_block(requests)


def test_a_torn_journal_gives_its_whole_blocks(tmp_path):
    """Cut at every byte."""
    journal = Journal(tmp_path / "j.arrows", block([1]).schema)
    ends = {}
    for numbers in ([1], [2, 3], [4]):
        journal.append(block(numbers))
        ends[journal.size] = journal.rows
    journal.close()
    data = journal.path.read_bytes()
    for cut in range(len(data) + 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        rows = sum(one.num_rows for one in whole_blocks(tmp_path / "cut")[1])
        assert rows == max([kept for end, kept in ends.items() if end <= cut], default=0), cut


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_a_journal_of_rubbish_is_no_error(data):
    """Whatever a power cut left in it."""
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"rubbish-{os.getpid()}.arrows"
    try:
        path.write_bytes(data)
        assert sum(one.num_rows for one in whole_blocks(path)[1]) == 0
    finally: path.unlink()


def test_a_crash_between_parquet_and_removal_doubles_nothing(tmp_path):
    """Both files are there: the journal is left out, and adopting it again makes the same file."""
    folder = folder_of(tmp_path, "m")
    journal = Journal(folder / "w-0.arrows", block([1]).schema)
    journal.append(block([1, 2]))
    journal.close()
    copy = journal.path.read_bytes()
    first = adopt(journal.path)
    journal.path.write_bytes(copy)
    assert len(read_log(tmp_path)) == 2
    assert adopt(journal.path) == first and not journal.path.exists()
    assert len(read_log(tmp_path)) == 2


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path):
    """When the log is made."""
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="cannot write"): PredictionLog(tmp_path / "file" / "log")


def test_the_salt_is_nowhere_on_the_disk(tmp_path, monkeypatch):
    """From the environment; hashed values are the same in every process that has it, and others without it."""
    monkeypatch.setenv("MLNB_LOG_SALT", "correct horse battery")
    for name in ("a", "b"):
        log = PredictionLog(tmp_path / name, hashed=["customer", "scores"], mask=["name"])
        log.write("r", "m", 1, "s", {"customer": np.array([b"Ada"], object), "name": np.array([b"Lovelace"], object)},
                  {"scores": np.array([[0.25, 0.75]])}, 0.0)
        log.close()
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 and not any(word in data for data in files for word in (b"correct", b"Ada", b"Lovelace"))
    one, other = (read_log(tmp_path / name) for name in ("a", "b"))
    assert one["input.customer"].tolist() == other["input.customer"].tolist()
    assert len(one["output.scores"][0]) == 2 and len(set(one["output.scores"][0])) == 2
    monkeypatch.delenv("MLNB_LOG_SALT")
    with pytest.raises(ServingError, match="need a salt"): PredictionLog(tmp_path, hashed=["customer"])


def test_a_mask_holds_inside_serialized_examples(tmp_path):
    """A feature cannot travel past it in a tf.Example."""
    features = {"name": {"bytes_list": {"value": [b"Lovelace"]}}, "age": {"int64_list": {"value": [36]}}, "w": {"float_list": {"value": [1.5, 2]}}}
    inputs = {"inputs": np.array([Example(features={"feature": features}).SerializeToString(), Example().SerializeToString()], object)}
    short = {"inputs": inputs["inputs"][:1]}
    log = PredictionLog(tmp_path, mask=["name"], hashed=["age"], salt="s")
    log.write("r", "m", 1, "classify", short, {"scores": np.zeros((1, 2))}, 0.0)
    log.close()
    table = read_log(tmp_path)
    assert table["input.w"][0].tolist() == [1.5, 2] and len(table["input.age"][0]) == 32
    log = PredictionLog(tmp_path, mask=["name"], hashed=["age"], salt="s")
    tricky = [*inputs["inputs"], b"", b"\x1a\x01x" + inputs["inputs"][0], b"Lovelace\n"]   # empty, an unknown field first, no Example
    log.write("t", "m", 1, "classify", {"inputs": np.array(tricky, object)}, {"scores": np.zeros((5, 2))}, 0.0)
    log.close()
    assert len(read_log(tmp_path)) == 6 and not any(b"Lovelace" in path.read_bytes() for path in tmp_path.rglob("*.parquet"))


arrays = st.sampled_from([np.array([1, 2], "int64"), np.array([[1.5], [2.5]], "float32"), np.zeros((2, 3)), np.array([b"a", b"\xff"], object),
                          np.array([True, False]), np.array(3.0), np.zeros((2, 2, 2), "int8"), np.zeros((0,)), np.array([np.nan, np.inf], "float16")])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), arrays, max_size=3), st.dictionaries(st.text(max_size=5), arrays, max_size=3))
def test_any_arrays_become_rows(inputs, outputs):
    """Every shape and type that a signature can have; values survive."""
    rows = weigh(inputs, outputs)[0]
    requests = Requests("m", 1, "s", inputs, outputs)
    for i in range(2): requests.add(f"r{i}", inputs, outputs, rows, 1e9, 0.0)
    assert kind_of(inputs, outputs, rows) == kind_of(dict(inputs), dict(outputs), rows)
    found = request_block(requests)
    assert found.num_rows == 2 * rows
    for prefix, part in (("input", inputs), ("output", outputs)):
        for name, array in part.items():
            flat = [value for one in found[f"{prefix}.{name}"].to_pylist() for value in (one if isinstance(one, list) else [one])]
            sent = [one.encode() if isinstance(one, str) else one for one in [*array.reshape(-1).tolist()] * 2]
            assert repr([one.encode() if isinstance(one, str) else one for one in flat]) == repr(sent)


def test_one_log_holds_models_that_differ(tmp_path):
    """Versions with other columns and types in one table, by time; parts and columns can be asked for."""
    log = PredictionLog(tmp_path, rotate_rows=2)
    for i, (model, version, value) in enumerate([("a", 1, np.array([1])), ("../b", 1, np.array([b"x"], object)), ("a", 2, np.array([[1.5, 2.5]]))] * 2):
        log.write(f"r{i}", model, version, "s", {"v": value}, {}, 0.0, time=1.7e9 - i)
        log.flush()
    log.close()
    table = read_log(tmp_path)
    assert table["request_id"].tolist() == [f"r{i}" for i in reversed(range(6))]
    assert set(table["model"]) == {"a", "../b"} and all(path.is_relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert sum(len(part) for part in iterate_log(tmp_path, "a", rows=1)) == 4
    assert read_log(tmp_path, signature="t").empty and len(read_log(tmp_path, signature="s", columns=["version"])) == 6
    late = read_log(tmp_path, "a", start=pd.Timestamp(1.7e9 - 2, unit="s"), end=pd.Timestamp(1.7e9, unit="s", tz="UTC"), columns=["version"])
    assert late.columns.tolist() == ["time", "version"] and late["version"].tolist() == [2]
    with pytest.raises(ServingError, match="no time"): read_log(tmp_path, start="yesterday-ish")


def test_a_sample_is_of_requests(tmp_path):
    """The same ids in every model's log."""
    log = PredictionLog(tmp_path, sample=0.3)
    row = {"x": np.zeros(3)}
    for i in range(200):
        for model in ("champion", "shadow"): assert log.write(f"id{i}", model, 1, "s", row, row, 0.0) == is_sampled(f"id{i}", 0.3)
    log.close()
    table = read_log(tmp_path)
    kept = {model: set(part["request_id"]) for model, part in table.groupby("model")}
    assert kept["champion"] == kept["shadow"] and 30 < len(kept["shadow"]) < 90
    assert (table.groupby(["model", "request_id"]).size() == 3).all()


def test_labels_late_twice_and_wrong():
    """The newest word counts; what is missing stays missing; what is unclear is refused."""
    log = pd.DataFrame({"request_id": ["a", "b", "c"], "index": 0, "score": [0.1, 0.2, 0.3]})
    labels = pd.DataFrame({"request_id": ["b", "a", "b", "zz"], "y": [0, 1, 1, 1]})
    joined = join_labels(log, labels)
    assert joined["request_id"].tolist() == ["a", "b", "c"] and joined["y"].tolist()[:2] == [1, 1] and joined["y"].isna().tolist() == [False, False, True]
    assert joined.attrs["labels"] == {"matched": 2, "waiting": 1, "unknown": 1, "repeated": 1, "corrected": 1}
    timed = labels.assign(label_time=["2026-03-03", "2026-01-01", "2026-02-02", "2026-01-01"])
    assert join_labels(log, timed)["y"].tolist()[1] == 0
    assert join_labels(log, timed, known_at="2026-02-03")["y"].tolist()[1] == 1
    assert join_labels(log, timed, known_at="2025-01-01")["y"].isna().all()
    with pytest.raises(ServingError, match="without times"): join_labels(log, labels, known_at="2026-01-01")
    with pytest.raises(ServingError, match="called like"): join_labels(log, labels.rename(columns={"y": "score"}))
    with pytest.raises(ServingError, match="no column"): join_labels(log, labels.drop(columns="request_id"))
    many = pd.concat([log, log.assign(index=1)])
    with pytest.raises(ServingError, match="which row"): join_labels(many, labels)
    assert len(join_labels(many, labels.assign(index=[0, 0, 1, 0]))) == 6


def test_writers_of_many_threads_lose_nothing(tmp_path):
    """gRPC handlers and the event loop write at once."""
    log = PredictionLog(tmp_path, flush_seconds=0.01)
    row = {"x": np.zeros(1)}

    def work(name):
        for i in range(300): log.write(f"{name}-{i}", "m", 1, "s", row, row, 0.0)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for one in threads: one.start()
    for one in threads: one.join()
    assert log.close() and log.counts()["written"] == 1200
    assert read_log(tmp_path)["request_id"].nunique() == 1200


def test_the_journals_of_one_process_are_bounded(tmp_path, monkeypatch):
    """Open files do not grow with what clients send."""
    monkeypatch.setattr("mlnb.serving.prediction_log._JOURNALS", 3)
    log = PredictionLog(tmp_path, flush_seconds=60)
    for i in range(8): log.write(f"r{i}", "m", i, "s", {"x": np.zeros(1)}, {}, 0.0)
    log.flush()
    assert len(list(tmp_path.glob("*/*.arrows"))) == 3
    log.close()
    assert sorted(read_log(tmp_path)["version"]) == list(range(8))


# ---- a log that would grow without end -------------------------------------------------------------------------------


def log_day(folder, day, model="m", **more):
    """One Parquet file with the rows of a day."""
    log = PredictionLog(folder, **more)
    for i in range(200): log.write(f"{day}-{i}", model, 1, "s", {"x": np.array([i * 1.0])}, {"y": np.array([i * 2.0])}, 0.0, 1.7e9 + day * 86400 + i)
    assert log.close()


def size_of(folder): return sum(path.stat().st_size for path in Path(folder).glob("*/*.*"))


def test_a_log_stays_as_small_as_it_was_told(tmp_path, caplog):
    """The oldest rows go first, of whatever model; what is left is whole and can be read."""
    log_day(tmp_path, 0, "old")
    most = 3 * size_of(tmp_path) + 100
    for day in range(1, 9): log_day(tmp_path, day, most_bytes=most)
    assert size_of(tmp_path) <= most
    table = read_log(tmp_path)
    assert sorted(table["request_id"].str.split("-").str[0].astype(int).unique()) == [6, 7, 8] and len(table) == 600
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "rows of 2023 have their labels"


def test_young_rows_are_not_deleted_in_silence(tmp_path, caplog):
    today = (time.time() - 1.7e9) / 86400 - 1
    for day in (today, today + 0.1): log_day(tmp_path, day)
    log_day(tmp_path, today + 0.2, most_bytes=10)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 2 and "oldest files were deleted (2, 0.0 MB)" in said[0] and "(1, 0.0 MB)" in said[1] and read_log(tmp_path).empty


def test_files_go_by_age_when_somebody_wants_it(tmp_path):
    today = (time.time() - 1.7e9) / 86400
    for day in (0, today - 40, today - 3): log_day(tmp_path, day, most_bytes=0)
    log_day(tmp_path, today - 1, most_bytes=0, most_days=30)
    assert len(read_log(tmp_path)) == 400


def test_what_is_being_written_is_never_deleted(tmp_path):
    """Journals count and stay, living and orphaned; files that are none of ours are left alone."""
    log = PredictionLog(tmp_path, most_bytes=1, rotate_rows=10**9)
    log.write("r", "m", 1, "s", {"x": np.zeros(1)}, {}, 0.0)
    assert log.flush()
    (journal,) = tmp_path.glob("m/*.arrows")
    (tmp_path / "m/notes.parquet").write_bytes(b"not a log")
    assert journals.clear_log(tmp_path, 1, 1e-9, 4e9).files == 0 and journal.exists() and len(read_log(tmp_path)) == 1
    log.close()
    assert not list(tmp_path.glob("m/*.arrows")) and (tmp_path / "m/notes.parquet").exists()


def test_a_reader_passes_over_what_is_deleted_under_its_hands(tmp_path):
    for day in range(3): log_day(tmp_path, day)
    parts = iterate_log(tmp_path)
    assert len(next(parts)) == 200
    journals.clear_log(tmp_path, 1)
    assert sum(map(len, parts)) == 0


def test_processes_that_clear_one_folder_take_turns(tmp_path):
    """Eight at once delete no more than one would."""
    for day in range(10): log_day(tmp_path, day)
    most, found = size_of(tmp_path) // 2, []
    threads = [threading.Thread(target=lambda: found.append(journals.clear_log(tmp_path, most))) for _ in range(8)]
    for one in threads: one.start()
    for one in threads: one.join()
    assert sum(one.files for one in found) == 5 and len(read_log(tmp_path)) == 1000


def test_the_usual_limit_is_ten_gibibytes_or_a_tenth_of_the_disk(tmp_path, monkeypatch):
    from mlnb.serving.process import open_prediction_log
    from mlnb.serving.serve_command import options_of

    asked = {"model_base_path": "/m", "prediction_log": str(tmp_path)}
    cases = ((1 << 50, {}, (10 << 30, 0.0)), (50 << 30, {}, (5 << 30, 0.0)), (1, {"prediction_log_bytes": 0, "prediction_log_days": 2.0}, (0, 172800.0)))
    for total, chosen, most in cases:
        monkeypatch.setattr("mlnb.serving.prediction_log.shutil.disk_usage", lambda folder, total=total: SimpleNamespace(total=total))
        log = open_prediction_log(options_of(Namespace(**asked, **chosen)))
        assert log._keeper.most == most
        log.close()
    with pytest.raises(ServingError, match="smaller than nothing"): options_of(Namespace(**asked, prediction_log_bytes=-1))
