"""Many runs at once, with real kernels: what they share, how they fail, what is left when they are stopped."""

import json
import signal
import subprocess
import sys
import time

import pytest
from projects import ProjectFolder, wait_for

# What the command does: words as JSON on the command line, the document on standard output.
DRIVER = """
import json, sys
from mlnb.pipeline.grid import grid_dry_report, grid_watcher, prepare_grid, run_grid
from mlnb.pipeline.run import Request
from mlnb.settings import find_project
asked = json.loads(sys.argv[1])
request = Request(**{k: tuple(v) if isinstance(v, list) else v for k, v in asked.get("request", {}).items()})
grid = prepare_grid(find_project(), request, asked.get("grid", []), asked.get("repeat", 1), asked.get("seed_of", []))
document = grid_dry_report(grid) if asked.get("dry") else run_grid(grid, request, grid_watcher(grid))
print(json.dumps(document))
"""
LOAD = ["parameters: n: int = 3", "from mlnb import glue\nimport time\nmark = time.time()", "glue('numbers', list(range(n)))"]
TRAIN = [
    "parameters: lr: float = 0.1\nseed: int = 0",
    "from mlnb import glue, ref",
    "glue('auc', sum(ref('load.numbers')) * lr + seed)",
]
TELL = ["from mlnb import glue, ref", "glue('text', f\"auc {ref('train.auc')}\")"]


class GridFolder(ProjectFolder):
    """A project whose grids can be run."""

    def start_grid(self, **asked) -> subprocess.Popen:
        """Start a grid and do not wait."""
        words = [sys.executable, "-c", DRIVER, json.dumps(asked)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(words, cwd=self.root, env=self.environment(), **pipes)

    def grid(self, *axes: str, **asked) -> dict:
        """Run a grid: its document, with what was said in "said"."""
        out, err = (process := self.start_grid(grid=axes, **asked)).communicate(timeout=120)
        assert process.returncode == 0, err
        return json.loads(out) | {"said": err}

    def record(self, run: str) -> dict:
        """A run's record."""
        return json.loads((self.runs / run / "run.json").read_text())


def stages(document: dict) -> list[dict[str, str]]:
    """Stage -> status, for every point."""
    return [{n: s["status"] for n, s in p["stages"].items()} for p in document["points"]]


def attempts(project: ProjectFolder, stage: str) -> int:
    """How often a stage was executed."""
    return len(list(project.runs.glob(f"2*/attempts/{stage}-*")))


@pytest.fixture
def chain(tmp_path):
    settings = "[tracking]\nmode = off\n[pipeline]\njobs = 2\n"
    return GridFolder(tmp_path / "a project", {"10_load": LOAD, "20_train": TRAIN, "30_tell": TELL}, settings)


def test_points_share_what_they_can(chain):
    """Four runs, one load, and every run is a whole run."""
    first = chain.grid("train.lr=0.1,0.2", "train.seed=[0, 1]")
    assert first["status"] == "done" and [p["values"] for p in first["points"]] == [
        {"train.lr": lr, "train.seed": s} for lr in (0.1, 0.2) for s in (0, 1)
    ]
    assert attempts(chain, "load") == 1 and attempts(chain, "train") == attempts(chain, "tell") == 4
    assert sorted(s["load"] for s in stages(first)) == ["ran", "skipped", "skipped", "skipped"]
    for point in first["points"]:
        record = chain.record(point["run"])
        want = {"id": first["grid"], "point": point["values"], "index": point["index"], "of": 4, "repeat": 1, "repeats": 1}
        assert record["status"] == "done" and record["grid"] == want | {"seeds": {}}
        lr, seed = point["values"].values()
        assert record["stages"]["train"]["scraps"]["auc"]["data"] == 3 * lr + seed
        assert {p.name for p in (chain.runs / point["run"]).glob("*.ipynb")} == {"10_load.ipynb", "20_train.ipynb", "30_tell.ipynb"}
    again = chain.grid("train.lr=0.1,0.2", "train.seed=[0, 1]")
    assert {s for p in stages(again) for s in p.values()} == {"skipped"} and again["said"] == ""
    assert attempts(chain, "train") == 4
    larger = chain.grid("lr=0.1,0.3", "load.n=3,4")
    assert [s["train"] for s in stages(larger)] == ["skipped", "ran", "ran", "ran"]
    by_hand = chain.run("-p", "train.lr=0.3", "-p", "load.n=4")
    assert {s["status"] for s in by_hand["stages"].values()} == {"skipped"}


def test_stages_of_different_points_run_side_by_side(chain):
    """Two slots, and never more than two stages at once."""
    body = "import time\nfrom mlnb import glue\nbegan = time.time()\ntime.sleep(0.6)\nglue('span', [began, time.time()])"
    chain.stage("20_train", ["parameters: lr: float = 0.1", "from mlnb import ref\nref('load.numbers')", body])
    chain.path("30_tell").unlink()
    document = chain.grid("train.lr=1..4")
    spans = [chain.record(p["run"])["stages"]["train"]["scraps"]["span"]["data"] for p in document["points"]]
    overlaps = [sum(a[0] < b[1] and b[0] < a[1] for b in spans) for a in spans]
    assert max(overlaps) == 2
    moments = sorted(m for span in spans for m in span)
    assert max(sum(a <= m < b for a, b in spans) for m in moments) == 2


def test_one_failing_point_leaves_the_others_alone(chain):
    chain.edit("20_train", "glue('auc'", "assert lr < 0.2, 'too fast'\nglue('auc'")
    document = chain.grid("train.lr=0.1,0.3,0.15")
    assert document["status"] == "failed"
    assert [p["status"] for p in document["points"]] == ["done", "failed", "done"]
    assert stages(document)[1] == {"load": "skipped", "train": "failed", "tell": "blocked"}
    assert document["said"].count("too fast") >= 1 and "2/3 train.lr=0.3: failed" in document["said"]
    chain.edit("20_train", "lr < 0.2", "lr < 0.4")
    assert chain.grid("train.lr=0.1,0.3,0.15")["status"] == "done"


def test_a_shared_failure_happens_once(chain):
    chain.edit("10_load", "glue('numbers'", "raise ValueError('no data')\nglue('numbers'")
    document = chain.grid("train.lr=0.1,0.2,0.3")
    assert attempts(chain, "load") == 1 and [p["status"] for p in document["points"]] == ["failed"] * 3
    assert document["said"].count("ValueError: no data") == 1 and "earlier point" in document["said"]
    record = chain.record(document["points"][2]["run"])["stages"]["load"]
    assert record["run"] == document["points"][0]["run"] and record["error"]["message"] == "no data"


def test_repeats_change_seeds(chain):
    """The first repeat is the run there was; what has no seed is shared."""
    chain.run("-p", "seed=5")
    document = chain.grid(repeat=3, request={"given": ["train.seed=5"]})
    assert [p["seeds"] for p in document["points"]] == [{"train.seed": s} for s in (5, 6, 7)]
    assert [s["train"] for s in stages(document)] == ["skipped", "ran", "ran"] and attempts(chain, "load") == 1
    assert chain.record(document["points"][2]["run"])["grid"]["repeat"] == 3


def test_repeats_of_a_pipeline_without_seed_parameters(chain):
    """Then it is the seed of the project, in all stages or in those that were named; random numbers follow it."""
    noise = "import random\nfrom mlnb import glue, ref\nglue('auc', random.random() + 0 * sum(ref('load.numbers')))"
    chain.stage("20_train", [noise])
    document = chain.grid(repeat=2, seed_of=["train"])
    assert [p["seeds"] for p in document["points"]] == [{"train": 0}, {"train": 1}] and attempts(chain, "load") == 1
    records = [chain.record(p["run"])["stages"] for p in document["points"]]
    assert [r["train"]["parts"]["seed"] for r in records] == [0, 1] and {r["load"]["parts"]["seed"] for r in records} == {0}
    assert records[0]["train"]["scraps"]["auc"]["data"] != records[1]["train"]["scraps"]["auc"]["data"]
    whole = chain.grid(repeat=2)
    assert whole["points"][1]["seeds"] == {"load": 1, "train": 1, "tell": 1} and attempts(chain, "load") == 2
    assert stages(whole)[1] == {"load": "ran", "train": "skipped", "tell": "ran"}  # the same numbers, the same seed


def test_ctrl_c_and_the_same_command_again(chain):
    chain.edit("20_train", "glue('auc'", "import time\nif lr > 0.1: time.sleep(60)\nglue('auc'")
    process = chain.start_grid(grid=["train.lr=0.1,0.2,0.3,0.4,0.5,0.6"])
    wait_for(lambda: attempts(chain, "train") >= 3, what="the third training")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    document = json.loads(out)
    states = [p["status"] for p in document["points"]]
    assert document["status"] == "interrupted" and states[0] == "done" and "interrupted" in states and states[-1] == "not begun"
    assert document["points"][-1]["run"] is None and "stopping" in err
    chain.edit("20_train", "time.sleep(60)", "time.sleep(0)")
    assert chain.grid("train.lr=0.1,0.2,0.3,0.4,0.5,0.6")["status"] == "done"


def test_kill_and_the_same_command_again(chain):
    slow = "import os, time\nif lr > 0.1 and not os.path.exists('go'): time.sleep(60)\nglue('auc', lr)"
    chain.stage("20_train", [*TRAIN[:2], "ref('load.numbers')", slow])
    process = chain.start_grid(grid=["train.lr=0.1,0.2,0.3"])
    wait_for(lambda: attempts(chain, "train") == 3, what="the third training")
    process.kill()
    process.communicate(timeout=30)
    states = {r["run"]: r["status"] for r in chain.mlnb("runs", "--json", code=0).json}
    assert sorted(states.values())[-2:] == ["interrupted"] * 2
    (chain.path("20_train").parent / "go").touch()
    document = chain.grid("train.lr=0.1,0.2,0.3")
    assert document["status"] == "done" and [s["train"] for s in stages(document)] == ["skipped", "ran", "ran"]
    assert attempts(chain, "load") == 1


def test_dry_run_says_what_is_shared(chain):
    document = chain.grid("train.lr=0.1,0.2", dry=True)
    assert document["points"][1]["stages"]["load"] == {"status": "would-run", "shared_with": 1}
    assert document["points"][1]["stages"]["train"]["shared_with"] is None and not list(chain.runs.glob("2*"))


def test_mistakes_are_found_before_anything_runs(chain):
    process = chain.start_grid(grid=["train.lr=0.1,many", "load.m=1,2"])
    err = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "2 mistakes" in err and "one of: n" in err and not list(chain.runs.glob("2*"))
