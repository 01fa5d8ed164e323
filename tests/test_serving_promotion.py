"""Aliases under real processes: decisions at once, decisions killed in the middle, and the commands over them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlnb.errors import MlnbError, ServingError
from mlnb.files import write_json
from mlnb.serving.history import ALIASES, current_aliases, decide, holders, read_history
from mlnb.serving.promotion import promote, retire, rollback, withdraw
from mlnb.serving.registry import list_models, list_versions, read_aliases, register, verify_version

ROOT = Path(__file__).parents[1]
WORK = """
import sys, time, random
from mlnb.errors import ServingError
from mlnb.serving.promotion import promote, retire, rollback, withdraw
registry, start, seed, rounds = sys.argv[1:]
draw = random.Random(int(seed))
while time.time() < float(start): pass
for _ in range(int(rounds)):
    try:
        what = draw.random()
        if what < 0.6: promote(registry, "m", draw.randint(1, 6), draw.choice(("champion", "challenger", "shadow")), reason=seed, by=seed)
        elif what < 0.7: withdraw(registry, "m", draw.randint(1, 6), reason=seed, by=seed)
        elif what < 0.9: rollback(registry, "m", reason=seed, by=seed)
        else: retire(registry, "m", draw.randint(1, 6), reason=seed, by=seed)
    except ServingError: pass
print("done")
"""


def add(registry, name, blessed=True, model="m", **more):
    folder = registry.parent / "exports" / name
    (folder / "variables").mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_text("graph")
    (folder / "variables" / "data").write_text(name)
    write_json(folder / "assets.extra" / "mlnb_export.json", {"signatures": {}, "classes": []})
    return register(registry, model, folder, {"evaluation": {"blessed": blessed, "metric": "auc", "value": 0.7}, **more})


@pytest.fixture
def registry(tmp_path):
    for i in range(6): add(tmp_path / "registry", f"e{i}")
    return tmp_path / "registry"


def start(registry, seed, rounds=40, delay=0.6):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORK, str(registry), str(time.time() + delay), str(seed), str(rounds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_consistent(registry):
    """What must hold of a registry at any time, and after any crash once the next decision was made."""
    events = read_history(registry / "m")
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    aliases = read_aliases(registry, "m")
    assert aliases == events[-1]["aliases"] and set(aliases) <= set(ALIASES)
    alive = {one["number"]: one for one in list_versions(registry, "m")}
    gone = {event["version"] for event in events if event["action"] == "retire"}
    assert set(alive) == set(range(1, 7)) - gone and set(aliases.values()) <= set(alive)
    assert aliases.get("champion") not in [held for name, held in aliases.items() if name != "champion"]
    holder: dict = {}
    for event in events:
        assert event["before"] == holder.get(event["alias"])
        holder = event["aliases"]
    for one in list_versions(registry, "m", retired=True): assert verify_version(one) == []


def test_processes_that_decide_at_once_leave_one_history(registry):
    processes = [start(registry, seed) for seed in range(4)]
    said = [process.communicate(timeout=90) for process in processes]
    assert [out.strip() for out, _ in said] == ["done"] * 4, said
    events = read_history(registry / "m")
    assert len({event["by"] for event in events[6:]}) == 4 and len(events) > 40
    check_consistent(registry)
    assert json.loads((registry / "m" / "aliases.json").read_text())["aliases"] == read_aliases(registry, "m")


@pytest.mark.parametrize("left", [None, "{", '{"format": 1, "aliases": {"champion": 1}}'])
def test_a_copy_of_the_aliases_that_a_crash_left_behind_is_mended(registry, left):
    """Also by a decision that changes nothing: who reads the file alone is told what holds."""
    promote(registry, "m", 4)
    copy = registry / "m" / "aliases.json"
    copy.unlink()
    if left is not None: copy.write_text(left)
    promote(registry, "m", 4)
    assert json.loads(copy.read_text())["aliases"] == read_aliases(registry, "m")


def test_a_killed_decision_is_made_or_not_made(registry):
    draw, killed, lengths = random.Random(1), 0, []
    for seed in range(8):
        process = start(registry, seed, rounds=100_000, delay=0)
        before = len(read_history(registry / "m"))
        while len(read_history(registry / "m")) < before + 5 and process.poll() is None: time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        lengths.append(len(read_history(registry / "m")))
        check_consistent(registry)
        if len(list_versions(registry, "m")) < 4: break
    assert killed and lengths == sorted(lengths)
    alive = [one["number"] for one in list_versions(registry, "m")]
    promote(registry, "m", alive[-1])
    check_consistent(registry)
    assert json.loads((registry / "m" / "aliases.json").read_text())["aliases"]["champion"] == alive[-1]
    assert sorted(int(path.name) for path in (registry / "m").iterdir() if path.name.isdigit()) == alive


def test_a_retirement_killed_before_the_move_is_finished_by_the_next_decision(registry):
    decide(registry / "m", "retire", 3, current_aliases(registry / "m"), reason="half way")
    assert (registry / "m" / "3").is_dir() and 3 not in [one["number"] for one in list_versions(registry, "m")]
    with pytest.raises(ServingError, match="half way"): promote(registry, "m", 3)
    promote(registry, "m", 2)
    assert not (registry / "m" / "3").exists() and (registry / "m" / "retired" / "3").is_dir()
    again = add(registry, "e2")
    assert (again["number"], again["new"], again["retired"]["reason"]) == (3, False, "half way")


def test_a_registration_killed_before_its_decision_is_finished_when_repeated(registry):
    lines = (registry / "m" / "history.jsonl").read_bytes().splitlines(keepends=True)
    (registry / "m" / "history.jsonl").write_bytes(b"".join(lines[:-1]))
    assert read_aliases(registry, "m") == {"champion": 1, "challenger": 5}
    assert add(registry, "e5")["aliases"] == ["challenger"] and add(registry, "e5")["new"] is False
    assert len(read_history(registry / "m")) == 6


def test_history_only_grows(registry):
    path = registry / "m" / "history.jsonl"
    seen = path.read_bytes()
    for step in (lambda: promote(registry, "m", 3), lambda: promote(registry, "m", 2, "shadow"), lambda: rollback(registry, "m"), lambda: retire(registry, "m", 4)):
        step()
        assert path.read_bytes().startswith(seen) and len(path.read_bytes()) > len(seen)
        seen = path.read_bytes()
    for step in (lambda: promote(registry, "m", 4), lambda: retire(registry, "m", 1), lambda: promote(registry, "m", 99)):
        with pytest.raises(ServingError): step()
        assert path.read_bytes() == seen


def test_a_full_disk_decides_nothing(registry, monkeypatch):
    import mlnb.serving.history as history

    def full(file, data): return real(file, data[:20])

    real = os.write
    monkeypatch.setattr(history.os, "write", full)
    with pytest.raises(MlnbError, match="disk is full"): promote(registry, "m", 3)
    monkeypatch.undo()
    assert read_aliases(registry, "m") == {"champion": 1, "challenger": 6}
    promote(registry, "m", 4)
    check_consistent(registry)
    assert holders(registry / "m", "champion") == [1, 4]


def test_a_decision_holds_although_its_copy_cannot_be_written(registry, monkeypatch):
    """The line in the history is the decision; `aliases.json` is a copy, and the disk became full in between."""
    import mlnb.serving.history as history
    from mlnb.errors import StoreError

    def full(*words): raise StoreError("cannot write: the disk is full")

    monkeypatch.setattr(history, "write_json", full)
    assert promote(registry, "m", 3)["aliases"] == ["champion"]
    monkeypatch.undo()
    assert read_aliases(registry, "m")["champion"] == 3 and json.loads((registry / "m" / "aliases.json").read_text())["aliases"]["champion"] == 1
    promote(registry, "m", 4)
    assert json.loads((registry / "m" / "aliases.json").read_text())["aliases"] == read_aliases(registry, "m")
    check_consistent(registry)


def test_a_withdrawn_version_is_nobodys_candidate_until_somebody_says_so(registry):
    assert read_aliases(registry, "m") == {"champion": 1, "challenger": 6}
    promote(registry, "m", 6, "shadow")
    for _ in range(2): gone = withdraw(registry, "m", 6, "canary: error rate 20.0% against 0%")
    assert gone["aliases"] == [] and gone["withdrawn"]["reason"].startswith("canary") and read_aliases(registry, "m") == {"champion": 1}
    assert [event["action"] for event in read_history(registry / "m")][-2:] == ["promote", "withdraw"], "the same twice is one decision"
    assert add(registry, "e5")["aliases"] == [], "registering the same export again does not bring it back"
    assert add(registry, "e7")["aliases"] == ["challenger"], "another version may challenge"
    again = promote(registry, "m", 6, "challenger")
    assert again["aliases"] == ["challenger"] and "withdrawn" not in again
    withdraw(registry, "m", 1, "found by a person")
    assert read_aliases(registry, "m") == {"champion": 1, "challenger": 6}
    assert (rollback(registry, "m", "challenger")["number"], promote(registry, "m", 2)["number"], rollback(registry, "m")["number"]) == (7, 2, 1)


def test_force_is_recorded_only_where_it_was_needed(registry):
    worse = add(registry, "worse", blessed=False)
    assert worse["aliases"] == []
    with pytest.raises(ServingError) as refused: promote(registry, "m", worse["number"])
    assert "is not blessed" in str(refused.value) and "--force" in refused.value.cure
    promote(registry, "m", 3, force=True, reason="no need")
    assert read_history(registry / "m")[-1]["forced"] is False
    promote(registry, "m", worse["version"], force=True, reason="the only one that runs", by="ada")
    last = read_history(registry / "m")[-1]
    assert (last["forced"], last["reason"], last["by"], last["before"]) == (True, "the only one that runs", "ada", 3)
    assert rollback(registry, "m")["number"] == 3


def test_a_rollback_passes_over_the_retired_and_stops_at_the_damaged(registry):
    for number in (2, 3, 4, 5): promote(registry, "m", number)
    retire(registry, "m", 4, "leak")
    (registry / "m" / "3" / "variables" / "data").write_text("e_")
    with pytest.raises(ServingError, match="version 3 of 'm' is damaged"): rollback(registry, "m")
    assert read_aliases(registry, "m")["champion"] == 5
    retire(registry, "m", 3, "damaged")
    assert rollback(registry, "m")["number"] == 2


def test_an_unknown_model_is_not_made_by_asking(registry):
    for step in (lambda: promote(registry, "x", 1), lambda: rollback(registry, "x"), lambda: retire(registry, "x", 1)):
        with pytest.raises(ServingError, match="models here: m"): step()
    assert sorted(path.name for path in registry.iterdir()) == ["m"] == list_models(registry)


# the commands, as typed


@pytest.fixture
def project(tmp_path):
    """A folder with settings.ini, whose registry has four versions of two models."""
    (tmp_path / "settings.ini").write_text("")
    runs = tmp_path / "runs" / "registry"
    for i, blessed in enumerate((True, True, False)): add(runs, f"e{i}", blessed, "a_model_with_a_rather_long_name")
    add(runs, "other", model="taxi", cost={"latency_ms": 0.2})
    return tmp_path


def mlnb(project, *words, code=0):
    environment = {name: value for name, value in os.environ.items() if name != "MLNB_RUNS"} | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-m", "mlnb", *words], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def test_the_commands_from_promotion_to_retirement(project):
    name = "a_model_with_a_rather_long_name"
    table = mlnb(project, "models").stdout
    assert max(map(len, table.splitlines())) <= 80 and table.count("champion") == 2
    refused = mlnb(project, "promote", name, "3", code=1)
    assert "is not blessed" in refused.stderr and "Traceback" not in refused.stderr and not refused.stdout
    mlnb(project, "promote", name, "3", "--as", "shadow")
    mlnb(project, "promote", name, "1.0.1", "--reason", "better")
    forced = json.loads(mlnb(project, "promote", name, "3", "--force", "--reason", "must", "--json").stdout)
    assert forced["aliases"] == {"champion": 3} and forced["version"]["number"] == 3
    assert "again, instead of 3" in mlnb(project, "rollback", name).stdout
    assert "so it stays" in mlnb(project, "retire", name, "2", code=1).stderr
    mlnb(project, "retire", name, "3")
    told = " ".join(mlnb(project, "models", name).stdout.split())
    assert "FORCED against its evaluation: must" in told and "retired" in told and "What broke: nothing" in told
    facts = json.loads(mlnb(project, "models", name, "--json").stdout)["models"][0]
    assert [event["action"] for event in facts["history"]] == ["register"] * 3 + ["promote"] * 3 + ["rollback", "retire"]
    assert "one of: a_model_with_a_rather_long_name, taxi" in mlnb(project, "models", "nobody", code=1).stderr
    assert "invalid choice" in mlnb(project, "promote", "taxi", "1", "--as", "king", code=2).stderr


def test_the_commands_after_a_withdrawal_and_beside_a_deployment(project):
    """The table says who was withdrawn; a person who moves the champion hears what answers meanwhile; who answers is not retired."""
    name, runs = "a_model_with_a_rather_long_name", project / "runs"
    withdraw(runs / "registry", name, 2, "canary: error rate 14.3% against 0% (allowed: 0.50% more): proven, after 49 requests to the canary")
    table = mlnb(project, "models", name).stdout
    assert re.search(r"\n2 +1\.0\.1 +withdrawn", table) and "withdrew 2 as challenger: canary: error rate" in table
    assert max(map(len, table.splitlines())) <= 80
    write_json(runs / "deployments" / name / "deployment.json", {"registry": str(runs / "registry"), "release": {"champion": 1, "new": 0}, "servers": {"1": {}, "3": {}}})
    assert f"version 1 answers here as before; to switch: mlnb deploy {name}" in mlnb(project, "promote", name, "2").stdout
    for number in ("1", "3"): assert "has a server on this machine" in mlnb(project, "retire", name, number, code=1).stderr
    assert "answers here" not in mlnb(project, "rollback", name).stdout
    mlnb(project, "retire", name, "2")


def test_verify_finds_one_flipped_byte(project):
    assert "4 versions are what was registered" in mlnb(project, "models", "--verify").stdout
    path = project / "runs" / "registry" / "taxi" / "1" / "variables" / "data"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))
    assert "DAMAGED: taxi 1 (1.0.0): variables/data is damaged" in mlnb(project, "models", "--verify", code=1).stdout
    facts = json.loads(mlnb(project, "models", "taxi", "--verify", "--json", code=1).stdout)
    assert facts["models"][0]["versions"][0]["damage"] == ["variables/data is damaged"]
    shutil.rmtree(project / "runs")
    assert "no models yet" in mlnb(project, "models").stdout


def test_the_commands_load_nothing_heavy(project):
    code = ("import sys\nfrom mlnb.cli import main\nmain(['models', '--verify'])\nmain(['promote', 'taxi', '1'])\n"
            "heavy = {'numpy', 'pandas', 'tensorflow', 'keras', 'asyncio', 'grpc', 'uvicorn', 'subprocess'} & set(sys.modules)\nprint('heavy', heavy)")
    environment = {name: value for name, value in os.environ.items() if name != "MLNB_RUNS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("heavy set()"), done.stdout + done.stderr
