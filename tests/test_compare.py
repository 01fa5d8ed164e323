"""Comparing whole runs: what differs and where they parted, with runs of W&B beside them, in the terminal, as JSON and as one HTML file."""

import json
import os
import re
import subprocess
import sys

import pytest
from projects import ProjectFolder

PREPARE = ["parameters: rows: int = 50  # at least 1", "from mlnb import glue\nimport pandas as pd\nglue('table', pd.DataFrame({'x': range(rows)}))"]
TRAIN = [
    "parameters: lr: float = 0.1  # above 0\nseed: int = 0  # at least 0",
    "import random\nfrom mlnb import glue, ref\nfrom mlnb.metrics import log_metrics\nfrom features import scale",
    "noise = random.Random(seed).gauss(0, 0.01)\n"
    "for step in range(1, 6): log_metrics({'loss': 1 / step / lr, 'val_loss': 1.1 / step / lr}, step)\n"
    "glue('val_auc', scale(0.7 + lr / 2 + noise))\nglue('n', len(ref('prepare.table')))",
]
SCRIPT = """
import wandb
for lr in (0.1, 0.2):
    run = wandb.init(project="plain", name=f"plain {lr}", config={"lr": lr, "model": {"units": 64}}, reinit="finish_previous")
    for step in range(20): run.log({"val_loss": 1 / (step + 1) / lr})
    run.summary["val_auc"] = 0.7 + lr
    run.finish()
"""


def make_project(root):
    project = ProjectFolder(root, {"10_prepare": PREPARE, "20_train": TRAIN})
    (root / "features.py").write_text("def scale(x):\n    return min(x, 1.0)\n")
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Runs: the defaults, another rate, more rows, an edited library function, and a failure."""
    project = make_project(tmp_path_factory.mktemp("compare") / "project")
    project.ids = [
        project.run(*words)["run"] for words in ((), ("-p", "train.lr=0.2"), ("-p", "prepare.rows=60", "-p", "train.lr=0.2"))
    ]
    (project.root / "features.py").write_text("def scale(x):\n    return min(x, 0.9)\n")
    project.ids.append(project.run("-p", "train.lr=0.2")["run"])
    project.edit("20_train", "glue('n',", "1 / 0\nglue('n',")
    project.ids.append(project.run("-p", "train.lr=0.2", code=1)["run"])
    return project


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """W&B runs of a script that knows nothing of mlnb."""
    folder = tmp_path_factory.mktemp("plain")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DATA_DIR": str(folder / "data")}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, env=os.environ | quiet | {"HOME": str(folder)}, check=True)
    return folder / "wandb"


def values(document, name):
    return [row["values"].get(name) for row in document["rows"]]


def test_only_what_differs_is_shown(project):
    document = project.mlnb("compare", "--json", *project.ids[:2], code=0).json
    names = [f["name"] for f in document["fields"] if f["kind"] not in ("timing", "resource")]
    assert names == ["train.lr", "train.val_auc"]
    assert values(document, "train.lr") == [0.1, 0.2]
    everything = project.mlnb("compare", "--json", "--everything", *project.ids[:2], code=0).json
    assert {"prepare.rows", "pandas", "prepare.table", "(python)"} <= {f["name"] for f in everything["fields"]}


@pytest.mark.parametrize(
    ("pair", "apart", "follows"), [((0, 1), "train", None), ((1, 2), "prepare", "train"), ((1, 3), "train", None)]
)
def test_where_two_runs_parted(project, pair, apart, follows):
    document = project.mlnb("compare", "--json", *(project.ids[i] for i in pair), code=0).json
    states = {stage["stage"]: stage["state"] for stage in document["stages"]}
    assert next(name for name, state in states.items() if state == "differs") == apart
    assert follows is None or states[follows] == "follows"


def test_an_edited_library_function_is_shown_as_a_diff(project):
    said = project.mlnb("compare", project.ids[1], project.ids[3], code=0).out
    assert "they part at train" in said
    assert re.search(r"- +return min\(x, 1.0\)\n +\+ +return min\(x, 0.9\)", said), said
    assert all(len(line) <= 80 for line in said.splitlines()), said


def test_a_table_that_grew_is_told(project):
    said = project.mlnb("compare", project.ids[1], project.ids[2], code=0).out
    assert "50 -> 60 rows" in said


def test_a_failed_run_can_be_compared(project):
    document = project.mlnb("compare", "--json", "--everything", project.ids[3], project.ids[4], code=0).json
    assert [row["status"] for row in document["rows"]] == ["done", "failed"]
    assert [value is None for value in values(document, "train.n")] == [False, True]


def test_a_stage_a_pattern_and_a_question_choose(project):
    names = {f["name"] for f in project.mlnb("compare", "--json", "--everything", "prepare", code=0).json["fields"]}
    assert "prepare.rows" in names and "train.lr" not in names
    assert len(project.mlnb("compare", "--json", "2*", code=0).json["rows"]) == 5
    document = project.mlnb("compare", "--json", "--where", "params.train.lr == 0.2 and status == 'done'", code=0).json
    assert {row["id"] for row in document["rows"]} == set(project.ids[1:4])


def test_a_word_that_is_nothing_is_an_error_with_a_near_one(project):
    said = project.mlnb("compare", "trian", code=2)
    assert "did you mean train" in said.err and "Traceback" not in said.err


def test_runs_of_a_plain_script_beside_ours(project, plain):
    document = project.mlnb("compare", "--json", "--everything", project.ids[0], str(plain), code=0).json
    assert [row["source"] for row in document["rows"]] == ["mlnb", "wandb", "wandb"]
    assert sorted(v for v in values(document, "lr") if v) == [0.1, 0.2]
    assert [f["best"] for f in document["fields"] if f["name"] in ("val_auc", "train.val_auc")] == ["max", "max"]


def test_w_and_b_runs_need_no_project(plain):
    code = f"from mlnb.cli import main; import sys; sys.exit(main(['compare', {str(plain)!r}]))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLNB")} | {"COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], cwd=plain.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"lr +0\.[12] +0\.[12]", done.stdout), done.stdout


def test_the_page_asks_nobody_for_anything(project, plain, tmp_path):
    page = tmp_path / "page.html"
    project.mlnb("compare", *project.ids, str(plain), "--html", str(page), "--baseline", project.ids[1], code=0)
    html = page.read_text()
    assert "train.val_loss" in html and "min(x, 0.9)" in html
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", outside)
    assert str(project.root) not in outside, "a path of this machine"


def test_repeats_tell_the_noise_and_a_grid_ends_in_a_page(tmp_path):
    project = make_project(tmp_path / "project")
    document = project.run("--grid", "train.lr=0.1,0.1001", "--repeat", "4", "--seed-of", "train")
    assert [point["status"] for point in document["points"]] == ["done"] * 8
    assert (project.root / document["page"]).stat().st_size > 100_000
    compared = project.mlnb("compare", "--json", document["grid"], code=0).json
    assert len(compared["rows"]) == 8 and 0.005 < compared["noise"]["train.val_auc"] < 0.1
    assert compared["best"]["train.val_auc"]["within_noise"] is True
    again = project.run("--grid", "train.lr=0.1,0.1001", "--repeat", "4", "--seed-of", "train")
    assert {s["status"] for point in again["points"] for s in point["stages"].values()} == {"skipped"}


def test_what_was_said_about_a_run_is_found_and_kept(tmp_path):
    project = make_project(tmp_path / "project")
    first = project.run("-p", "train.lr=0.3")["run"]
    assert project.mlnb("note", first, "-m", "the good one", "--tag", "paper", "--star", "--json", code=0).json["star"] is True
    for i in range(3):
        project.run("-p", f"train.lr=0.{i + 4}")
    project.mlnb("gc", "--keep", "1", code=0)
    assert [row["run"] for row in project.mlnb("runs", "--where", "'paper' in tags", "--json", code=0).json] == [first]
    assert json.loads((project.runs / first / "run.json").read_text())["run"] == first
    assert len(project.mlnb("compare", "--json", "tag:paper", "last", code=0).json["rows"]) == 2


def test_compare_shows_itself_in_a_notebook(project):
    code = (
        "from mlnb import compare\nshown = compare('last', 'last~1')\n"
        "print(len(shown._repr_html_()) < 1_000_000 and '<iframe' in shown._repr_html_(), repr(shown).splitlines()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env=project.environment(), capture_output=True, text=True
    )
    assert done.stdout.startswith("True"), done.stderr
