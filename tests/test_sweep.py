"""Sweeps with real kernels: what is tried, what is kept, and that nothing is tried twice."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import ProjectFolder, wait_for

from mlnb.errors import MlnbError, ParameterError
from mlnb.pipeline.grid import GridWatch
from mlnb.pipeline.progress import Lines
from mlnb.tracking.space import DISTRIBUTIONS, draw, read_spec, read_sweep

DRIVER = """
import json, sys
from pathlib import Path
from mlnb.pipeline.grid import GridWatch
from mlnb.pipeline.progress import watcher
from mlnb.pipeline.run import Request
from mlnb.settings import find_project
from mlnb.tracking.space import read_sweep
from mlnb.tracking.sweep import Search, run_sweep
asked = json.loads(sys.argv[1])
if "blind" in asked:   # as a busy machine may be: nobody looks while a quick trial runs
    from mlnb.pipeline.schedule import Scheduler
    look = Scheduler.watch
    def seldom(self):
        if all(one["decision"].parts["parameters"].get("lr", 0) < asked["blind"] for one in self.running.values()): look(self)
    Scheduler.watch = seldom
search = Search(find_project(), Request(), read_sweep(Path("sweep.yaml")), asked.get("most", 0), asked.get("again", False))
print(json.dumps(run_sweep(search, GridWatch(watcher()))))
"""
LOAD = ["parameters: rows: int = 3", "from mlnb import glue\nglue('rows', rows)"]
TRAIN = [
    "parameters: lr: float = 0.1\nlayers: list[int] = [8]",
    "from mlnb import glue, ref\nimport os, time",
    "assert lr != 0.4, 'diverged'",
    "if lr > 0.3 and not os.path.exists('go'): time.sleep(60)",
    "glue('val_auc', 1 - (lr - 0.3) ** 2 + 0 * ref('load.rows'))",
]
GRID = "method: grid\nmetric: {name: val_auc, goal: maximize}\nparameters:\n  train.lr: {values: [0.1, 0.3, 0.4, 0.5]}\n"


class SweepFolder(ProjectFolder):
    """A project with a sweep.yaml."""

    def start_sweep(self, text: str, **asked) -> subprocess.Popen:
        """Start a sweep and do not wait."""
        (self.root / "sweep.yaml").write_text(text)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(asked)], cwd=self.root, env=self.environment(), **pipes)

    def sweep(self, text: str, **asked) -> dict:
        """Run a sweep: its document, with what was said in "said"."""
        out, err = (process := self.start_sweep(text, **asked)).communicate(timeout=120)
        assert process.returncode == 0, err
        return json.loads(out) | {"said": err}

    def attempts(self, stage: str) -> int:
        """How often a stage was executed."""
        return len(list(self.runs.glob(f"2*/attempts/{stage}-*")))

    def go(self) -> None:
        """Let no stage sleep any more."""
        (self.path("20_train").parent / "go").touch()


@pytest.fixture
def folder(tmp_path):
    setting = "[tracking]\nmode = off\n[pipeline]\njobs = 2\n"
    return SweepFolder(tmp_path / "p", {"10_load": LOAD, "20_train": TRAIN}, setting)


def test_a_killed_sweep_goes_on(folder):
    """Trials that ended are not run again, also the failed one; the one that was cut off is; `load` ran once."""
    process = folder.start_sweep(GRID)
    journal = folder.runs / "sweeps" / "sweep" / "trials.jsonl"
    wait_for(lambda: journal.exists() and journal.read_text().count('"status": "failed"') == 1 and folder.attempts("train") == 4)
    process.kill()
    process.communicate(timeout=30)
    folder.go()
    document = folder.sweep(GRID)
    assert [t["status"] for t in document["trials"]] == ["done", "done", "failed", "done"]
    assert document["best"]["parameters"] == {"train.lr": 0.3} and document["best"]["value"] == 1.0
    assert document["best"]["command"] == "mlnb run -p train.lr=0.3"
    assert folder.attempts("load") == 1 and folder.attempts("train") == 5
    assert "diverged" in document["trials"][2]["why"] and "4 trials of p, 3 of them known" in document["said"]
    record = json.loads((folder.runs / document["trials"][3]["run"] / "run.json").read_text())
    assert record["sweep"] == {"name": "sweep", "trial": 4, "point": {"train.lr": 0.5}} and record["given"] == ["train.lr=0.5"]
    folder.edit("20_train", "lr != 0.4", "lr != 0.9")
    again = folder.sweep(GRID, again=True)
    assert [t["status"] for t in again["trials"]] == ["done"] * 4 and folder.attempts("train") == 6


def test_ctrl_c(folder):
    """The trial that was running is not in the journal as ended."""
    process = folder.start_sweep(GRID.replace("0.4, ", ""))
    journal = folder.runs / "sweeps" / "sweep" / "trials.jsonl"
    wait_for(lambda: folder.attempts("train") == 3 and journal.read_text().count('"done"') == 2, what="the third trial")
    process.send_signal(signal.SIGINT)
    document = json.loads(process.communicate(timeout=30)[0])
    assert document["status"] == "interrupted" and len(document["trials"]) == 2
    folder.go()
    assert [t["status"] for t in folder.sweep(GRID.replace("0.4, ", ""))["trials"]] == ["done"] * 3


def test_chance_and_learning(folder):
    """Lists as values, whole numbers, the cap, the target; a larger cap keeps what there is."""
    folder.go()
    space = "parameters:\n  lr: {min: 0.0, max: 0.35}\n  train.layers: {values: [[8], [8, 4]]}\n  rows: {min: 3, max: 5}\n"
    text = f"method: bayes\nname: b\nmetric: {{name: train.val_auc, goal: maximize}}\n{space}run_cap: 4\nprogram: train.py\n"
    first = folder.sweep(text)
    assert [t["status"] for t in first["trials"]] == ["done"] * 4 and "`program` is left out" in first["said"]
    assert {type(t["parameters"]["rows"]) for t in first["trials"]} == {int}
    assert {str(t["parameters"]["train.layers"]) for t in first["trials"]} <= {"[8]", "[8, 4]"}
    second = folder.sweep(text.replace("run_cap: 4", "run_cap: 5"))
    assert second["trials"][:4] == first["trials"] and len(second["trials"]) == 5
    target = folder.sweep(text.replace("name: b", "name: c").replace("goal: maximize", "goal: maximize, target: 0.1"), most=3)
    assert len(target["trials"]) <= 2


@pytest.mark.parametrize("asked", [{}, {"blind": 0.2}])
def test_a_hopeless_trial_is_ended(folder, asked):
    """By what it logs while it runs; it counts with the best it had. Trials that nobody saw running are a measure too."""
    body = "import time\nfrom mlnb import glue\nfrom mlnb.metrics import log_metrics\nfor step in range(1, 40):\n"
    body += "    log_metrics({'val_auc': lr * step, 'loss': 1.0}, step)\n    time.sleep(0.05 if step < 4 else 0.5 * (lr < 0.2))\nglue('val_auc', lr * 39)"
    folder.stage("20_train", ["parameters: lr: float = 0.1", "from mlnb import ref\nref('load.rows')", body])
    text = "method: grid\nmetric: {name: val_auc, goal: maximize}\nparameters: {train.lr: {values: [0.9, 0.8, 0.1]}}\n"
    document = folder.sweep(text + "early_terminate: {type: hyperband, min_iter: 4, eta: 2}\n", **asked)
    trials = document["trials"]
    assert [t["status"] for t in trials] == ["done", "pruned", "pruned"] or [t["status"] for t in trials] == ["done", "done", "pruned"]
    assert 0.4 <= trials[2]["value"] < 3.9 and document["status"] == "done" and document["best"]["trial"] == 1
    record = json.loads((folder.runs / trials[2]["run"] / "run.json").read_text())
    assert record["status"] == "interrupted" and record["sweep"]["pruned"] == 4
    assert folder.sweep(text + "early_terminate: {type: hyperband, min_iter: 4, eta: 2}\n")["trials"] == trials


def test_one_sweep_is_run_by_one_process(folder):
    process = folder.start_sweep(GRID)
    wait_for(lambda: folder.attempts("train") >= 3, what="the third trial")
    other = folder.start_sweep(GRID)
    assert "is going on" in other.communicate(timeout=30)[1] and other.returncode != 0
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


# ------------------------------------------------------------------------------------------------ the file

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from([*DISTRIBUTIONS, "1e-3", "x", ""])
KEYS = st.sampled_from(["value", "values", "min", "max", "q", "mu", "sigma", "distribution", "probabilities", "parameters", "minn"])


@settings(max_examples=400, deadline=None)
@given(told=st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3), max_size=5) | SCALARS)
def test_a_parameter_is_read_or_refused(told):
    """And what is read can be drawn from, within its range."""
    import random

    try:
        spec = read_spec("x", told, "f")
    except MlnbError as e:
        assert "f, x" in str(e)
        return
    value = draw(spec, random.Random(0))
    if spec.kind == "range":
        assert spec.low <= value <= spec.high
    if spec.kind == "choice":
        assert any(value is v for v in spec.values)


@settings(max_examples=200, deadline=None)
@given(text=st.text("abcmethodgrid:{}[]-#'\" \n0123,|&*!?\t", max_size=80))
def test_any_text_is_read_or_refused(text, tmp_path_factory):
    path: Path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError):
        read_sweep(path)


def test_what_is_said_of_a_trial(capsys):
    """A trial that was ended early is no failure."""
    watch = GridWatch(Lines())
    data = {"status": "pruned", "seconds": 1.0, "run": "r"}
    watch({"event": "point", "point": 3, "point_of": 9, "label": "lr=1", "run": "r", "data": data})
    assert capsys.readouterr().err == "■ 3/9 lr=1: pruned in 1.0 s, run r\n"
