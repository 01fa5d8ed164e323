"""What a rollout learns from its log and labels, look by look: the same as from everything at once, at the price of what is new."""
import os
import random
import time

import numpy as np
import pandas as pd
import pytest

from mlnb.serving import evidence as evidence_module
from mlnb.serving import log_tail
from mlnb.serving.evidence import LoggedEvidence
from mlnb.serving.journal import adopt
from mlnb.serving.log_tail import LabelTail, LogTail
from mlnb.serving.prediction_log import PredictionLog, read_log
from mlnb.serving.shadow import ShadowPlan


def write(log, number, version, moment, value):
    log.write(f"r{number}", "m", version, "serving_default", {"x": np.array([1.0])}, {"scores": np.array([value], "float32")}, 0.001, moment)


def plainly(folder, labels, since):
    """The same from the whole log and the last label of each request."""
    log, found = read_log(folder, "m"), {}
    if log.empty: return {}
    log = log[(log["time"].astype("int64") / 1e6 >= since)].drop_duplicates(["request_id", "version"], keep="last")
    for version, part in log.groupby("version"):
        scores = [1 - (value - labels[name]) ** 2 for name, value in zip(part["request_id"], part["output.scores"], strict=True) if name in labels]
        if scores: found[int(version)] = (len(scores), pytest.approx(sum(scores), abs=1e-6), pytest.approx(sum(score * score for score in scores), abs=1e-6))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_looks_at_any_moment_say_what_everything_at_once_says(tmp_path, seed):
    """Writers come, rotate, die and are adopted; labels come early, late, twice, corrected, in halves of lines or as another file."""
    draw, known, number, clock = random.Random(seed), {}, 0, 1000.0
    logs, path = [PredictionLog(tmp_path / "log", rotate_rows=draw.choice((5, 40)), flush_seconds=0.01)], tmp_path / "labels.csv"
    evidence, since = LoggedEvidence(tmp_path / "log", "m", path), 0.0
    for _ in range(25):
        for _ in range(draw.randrange(12)):
            number, clock = number + 1, clock + 1
            for version in (6, 7): write(draw.choice(logs), number, version, clock, draw.random())
        if draw.random() < 0.3: logs.append(PredictionLog(tmp_path / "log", rotate_rows=draw.choice((3, 1000)), flush_seconds=0.01))
        if draw.random() < 0.2 and len(logs) > 1: logs.pop(0).close()
        if draw.random() < 0.1:   # asked again
            clock += 1
            for version in (6, 7): write(draw.choice(logs), max(1, number), version, clock, draw.random())
        named = {f"r{draw.randint(1, number + 5)}": draw.randrange(2) for _ in range(draw.randrange(8))}
        known |= named
        if draw.random() < 0.15 or not path.exists():
            pd.DataFrame({"request_id": list(known), "label": list(known.values())}).to_csv(tmp_path / "new.csv", index=False)
            os.replace(tmp_path / "new.csv", path)
        else:
            text = "".join(f"{name},{label}\n" for name, label in named.items())
            half = draw.randrange(len(text) + 1)
            with path.open("a") as file: file.write(text[:half])
            evidence.quality(since)
            with path.open("a") as file: file.write(text[half:])
        if draw.random() < 0.1: since = clock - draw.randrange(50)
        for log in logs: log.flush()
        assert evidence.quality(since) == plainly(tmp_path / "log", known, since)
    pairs, alone = evidence.pairs(6, 7, since)
    assert len(pairs) == len({name for name in read_log(tmp_path / "log", "m").query("time >= @pd.Timestamp(@since, unit='s', tz='UTC')")["request_id"]}) and alone == 0
    for log in logs: log.close()
    assert evidence.quality(since) == plainly(tmp_path / "log", known, since)


def test_a_journal_whose_writer_died_is_read_on_after_it_was_adopted(tmp_path):
    """Half of it was read as a journal, the rest is read from the Parquet file that somebody makes of it."""
    log = PredictionLog(tmp_path / "log", flush_seconds=0.01)
    tail = LogTail(tmp_path / "log", "m")
    for number in range(3): write(log, number, 6, 1000.0 + number, 0.5)
    log.flush()
    assert sum(map(len, tail.new())) == 3
    journal = next((tmp_path / "log" / "m").glob("*.arrows"))
    half = journal.read_bytes()
    for number in range(3, 5): write(log, number, 6, 1000.0 + number, 0.5)
    log.flush()
    whole = journal.read_bytes()
    journal.write_bytes(whole[:len(half) + 40])   # killed in the middle of a block
    assert tail.new() == []
    other = tmp_path / "log" / "m" / "dead-0.arrows"
    other.write_bytes(whole)
    assert sum(map(len, tail.new())) == 5
    assert adopt(other).suffix == ".parquet" and tail.new() == []
    journal.write_bytes(whole)
    assert [block.column("request_id").to_pylist() for block in tail.new()] == [["r3", "r4"]]
    log.close()


def test_a_look_costs_what_is_new(tmp_path, monkeypatch):
    """Rows that are read, labels that are parsed and comparisons that are made, with twenty thousand answers behind it."""
    log, path = PredictionLog(tmp_path / "log", rotate_rows=3000), tmp_path / "labels.csv"
    for number in range(10_000):
        for version in (6, 7): write(log, number, version, 1000.0 + number, 0.5)
    path.write_text("request_id,label\n" + "".join(f"r{number},1\n" for number in range(9000)))
    log.flush(60)
    evidence, cost = LoggedEvidence(tmp_path / "log", "m", path), {"rows": 0, "labels": 0, "compared": 0}

    def counted(name, function, size):
        def counting(*given, **more):
            found = function(*given, **more)
            found = list(found) if name != "compared" else found
            cost[name] += size(found)
            return found
        return counting

    monkeypatch.setattr(evidence_module, "_rows", counted("rows", evidence_module._rows, len))
    monkeypatch.setattr(log_tail, "read_labels", counted("labels", log_tail.read_labels, len))
    monkeypatch.setattr(evidence_module, "compare_pairs", counted("compared", evidence_module.compare_pairs, lambda report: report.total.pairs))
    plan = ShadowPlan(min_pairs=10**6)
    evidence.quality(0.0), evidence.judged(plan, 6, 7)
    assert cost == {"rows": 20_000, "labels": 9000, "compared": 10_000}
    for number in range(10_000, 10_010):
        for version in (6, 7): write(log, number, version, 1000.0 + number, 0.5)
        with path.open("a") as file: file.write(f"r{number},0\n")
        log.flush()
        evidence.quality(0.0), evidence.judged(plan, 6, 7)
    assert cost == {"rows": 20_020, "labels": 9010, "compared": 10_000} and evidence.quality(0.0)[6].size == 9010
    opened = []
    real = log_tail._more
    monkeypatch.setattr(log_tail, "_more", lambda path, mark: opened.append(mark.size) or real(path, mark))
    evidence.quality(0.0)
    assert len(opened) <= 4, "journals that became Parquet are not opened again"
    log.close()


def test_a_file_that_is_no_table_is_said_and_mended_later(tmp_path):
    """The rollout goes on without labels, and takes them when they can be read."""
    log, path = PredictionLog(tmp_path / "log"), tmp_path / "labels.parquet"
    write(log, 1, 6, time.time(), 0.5)
    log.close()
    evidence = LoggedEvidence(tmp_path / "log", "m", path)
    seen = []
    for text in (b"", b"PAR1 no", None):
        if text is None: pd.DataFrame({"request_id": ["r1"], "label": [1]}).to_parquet(path)
        elif text: path.write_bytes(text)
        seen.append((evidence.quality(0.0).get(6, (0,))[0], evidence.trouble.split(" (")[0]))
    assert seen == [(0, "there are no labels yet"), (0, "the labels cannot be read"), (1, "")]
    assert LabelTail(path).new()[0] is True


def test_a_file_that_goes_while_it_is_read_is_no_trouble(tmp_path, monkeypatch):
    """The server keeps its log within bounds meanwhile."""
    for moment in (1000.0, 2000.0):
        log = PredictionLog(tmp_path / "log", flush_seconds=0.01)
        write(log, 1, 6, moment, 0.5)
        log.close()
    tail, names = LogTail(tmp_path / "log", "m"), os.listdir

    def listed(folder):
        found = sorted(names(folder))
        os.unlink(os.path.join(folder, found[0]))
        return found

    monkeypatch.setattr(log_tail.os, "listdir", listed)
    assert sum(map(len, tail.new())) == 1
