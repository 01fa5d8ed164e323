"""The main job on real data: the reference pipeline of this repository, and a project made from any table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import strange_tables
from projects import ROOT, ProjectFolder, Said, kill_process, processes_with, statuses, wait_for

from mlnb.tracking.wandb_places import local_folder
from mlnb.tracking.wandb_runs import find_wandb_runs, read_history, read_wandb_run
from mlnb.tracking.wandb_write import COMPLETE

TAXI = ROOT.parent / "shared" / "data" / "chicago_taxi.csv"
SMALL = ["-p", "ingest.rows=4000", "-p", "train.epochs=2", "-p", "tune.epochs=1", "-p", "trials=1"]
STAGES = [
    "ingest", "validate", "prepare", "baseline", "tune", "train", "behaviour", "attack", "explain", "export", "evaluate", "card", "register",
    "deploy",
]
LENIENT = ["-p", 'gates=["auc > 0.4", "auc in every slice: high >= 0"]']


class Repository(ProjectFolder):
    """This repository as a project, with its runs elsewhere."""

    def __init__(self, runs: Path):
        self.root, self.pipeline, self._runs = ROOT, "tabular", runs

    def environment(self, **more):
        return super().environment(MLNB_RUNS=str(self._runs), TF_CPP_MIN_LOG_LEVEL="3", **more)

    @property
    def runs(self):
        return self._runs


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Repository, Said]:
    """The reference pipeline on part of its rows; killed with -9 in the middle of `train`, then run to the end."""
    project = Repository(tmp_path_factory.mktemp("reference") / "runs")
    words = ["run", "--json", *SMALL, *LENIENT]
    process = project.start(*words)
    wait_for(lambda: list(project.runs.glob("2*/attempts/train-1/events.jsonl")), 400, "the beginning of train")
    kill_process(process.pid)
    process.communicate()
    wait_for(lambda: not processes_with(str(project.runs)), 20, "the end of all processes")
    assert project.mlnb("show", "--json").json["status"] == "interrupted"
    return project, project.mlnb(*words, code=0)


def test_a_killed_run_goes_on_from_its_last_finished_stage(reference):
    _, said = reference
    done = statuses(said.json)
    assert list(done) == STAGES and said.json["status"] == "done"
    assert {n: s for n, s in done.items() if s == "skipped"}.keys() == {
        "ingest",
        "validate",
        "prepare",
        "baseline",
        "tune",
    }


def test_a_second_run_of_the_reference_pipeline_does_nothing(reference):
    project, _ = reference
    assert set(statuses(project.run(*SMALL, *LENIENT)).values()) == {"skipped"}


def test_the_verdict_rests_on_rows_that_nobody_learnt_from(reference):
    project, said = reference
    scraps = {n: s["scraps"] for n, s in project.mlnb("show", said.json["run"], "--json").json["stages"].items()}
    assert scraps["evaluate"]["blessed"]["data"] is True
    verdict = scraps["evaluate"]["verdict"]["data"]
    rows = {
        name: int(scraps["prepare"][name]["summary"].split(" rows")[0].replace(",", ""))
        for name in ("train", "valid", "test")
    }
    assert verdict["examples"] == rows["test"] and sum(rows.values()) == scraps["ingest"]["rows_read"]["data"]
    assert 0 < verdict["value"] < 1 and any("idp" in check["where"] for check in verdict["checks"])
    assert scraps["validate"]["leaks"]["summary"].startswith("1 rows")


def test_tfma_reads_its_result_and_tensorflow_the_model(reference):
    project, _ = reference
    code = (
        "import sys\nimport tensorflow as tf, tensorflow_model_analysis as tfma\n"
        "result = tfma.load_eval_result(sys.argv[1])\nassert len(result.slicing_metrics) > 5\n"
        "model = tf.saved_model.load(sys.argv[2])\n"
        "assert {'serving_default', 'serving_tf_example', 'classify'} <= set(model.signatures)\n"
        "print('ok')"
    )
    record = project.mlnb("show", "--json").json["stages"]
    digests = [record[stage]["scraps"][name]["digest"] for stage, name in (("evaluate", "tfma_result"), ("export", "saved_model"))]
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(project.runs / "store" / digest[:2] / digest) for digest in digests)],
        capture_output=True,
        text=True,
        env=project.environment(),
    )
    assert done.stdout.strip().endswith("ok"), done.stderr[-2000:]


def test_the_registry_is_one_that_tensorflow_serving_reads(reference):
    project, _ = reference
    assert (project.runs / "registry" / "high_use" / "1" / "saved_model.pb").is_file()
    aliases = json.loads((project.runs / "registry" / "high_use" / "aliases.json").read_text())
    assert "champion" in json.dumps(aliases)
    assert project.mlnb("gc", "--keep", "1", code=0) and (project.runs / "registry" / "high_use" / "1").is_dir()


def test_every_executed_stage_is_a_run_for_wandb(reference):
    project, said = reference
    folder = project.runs / said.json["run"]
    wait_for((local_folder(folder) / COMPLETE).exists, 120, "W&B's files")
    written = [read_wandb_run(place) for place in find_wandb_runs(folder / "wandb")]
    stages = {run.job_type: run for run in written if run.job_type in STAGES}
    assert stages.keys() == {name for name, status in statuses(said.json).items() if status == "ran"}
    assert {(run.group, run.state) for run in stages.values()} == {(said.json["run"], "finished")}
    curves = read_history(stages["train"].folder)
    assert curves["val_auc"]["step"].tolist() == [1, 2] and "loss" in curves
    assert any(artifact["type"] for artifact in stages["train"].artifacts), "the model is an artifact by reference"
    assert not [file for file in folder.rglob("wandb/**/*.keras") if file.is_file()], "no copy of it"


ANSWERS = """
import sys, numpy, pandas, tensorflow as tf
rows = pandas.read_parquet(sys.argv[3])
said = []
for path in sys.argv[1:3]:
    serve = tf.saved_model.load(path).signatures["serving_default"]
    wanted = serve.structured_input_signature[1]
    given = {n: tf.reshape(tf.cast(rows[n].astype(str) if s.dtype == tf.string else rows[n], s.dtype), [-1] + [1] * (len(s.shape) - 1))
             for n, s in wanted.items()}
    said.append({n: v.numpy() for n, v in serve(**given).items()})
assert len(rows) > 100 and said[0].keys() == said[1].keys()
for name, value in said[0].items():
    if value.dtype.kind == "f": numpy.testing.assert_allclose(value, said[1][name], atol=1e-6)
    else: assert (value == said[1][name]).all(), name
print("the same answers")
"""


def test_cold_kernels_give_the_same_scraps(reference):
    """Every scrap has the same bytes; a SavedModel, whose files are never twice the same, gives the same answers."""
    project, said = reference
    again = project.run("--cold", "--force", "*", *SMALL, *LENIENT)
    runs = [json.loads((project.runs / name / "run.json").read_text())["stages"] for name in (said.json["run"], again["run"])]
    assert {s["kernel"] for s in runs[1].values()} == {"cold"} and "warm" in {s["kernel"] for s in runs[0].values()}
    warm, cold = ({(n, k): v["digest"] for n, s in run.items() for k, v in s["scraps"].items()} for run in runs)
    assert warm.keys() == cold.keys() and len(warm) > 30
    differ = {key for key in warm if warm[key] != cold[key]}
    bytes_differ = {("export", "saved_model"), ("export", "export"), ("evaluate", "cost")}
    second = {("evaluate", "held_against"), ("register", "version"), ("deploy", "rollout"), ("deploy", "manifests"), ("deploy", "checks")}
    assert differ <= bytes_differ | second, "the second run registers version 2, and deploys it beside a champion"
    place = lambda digest: str(project.runs / "store" / digest[:2] / digest)  # noqa: E731
    words = [place(d["export", "saved_model"]) for d in (warm, cold)] + [place(warm["prepare", "test"])]
    done = subprocess.run([sys.executable, "-c", ANSWERS, *words], capture_output=True, text=True, env=project.environment())
    assert done.stdout.strip().endswith("the same answers"), done.stderr[-2000:]


def test_lineage_leads_from_the_model_to_the_data(reference):
    project, _ = reference
    node = project.mlnb("lineage", "train.model", "--json", code=0).json
    seen = set()
    while node["upstream"]:
        seen.add(node["scrap"])
        node = node["upstream"][0]
    assert list(node["sources"]) == ["package://statsmodels/datasets/randhie/randhie.csv"]


def test_a_taxi_project_ends_with_a_verdict(tmp_path):
    if not TAXI.exists():
        pytest.skip(f"the taxi table is not at {TAXI}")
    place = ProjectFolder(tmp_path, {})
    said = place.mlnb(
        "new",
        "taxi",
        "--data",
        str(TAXI),
        "--label",
        "tips > 0.2 * fare",
        "--slices",
        "trip_start_hour,payment_type",
        "--time",
        "trip_start_timestamp",
        code=0,
    )
    warnings = [line for line in said.out.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2 and "'tips'" in warnings[0] and "'payment_type'" in warnings[1]
    place.root = tmp_path / "taxi"
    document = place.mlnb("run", "--json", *SMALL, MLNB_TRACKING_MODE="off").json
    assert statuses(document)["evaluate"] == "ran" and document["status"] in ("done", "stopped")
    scraps = place.mlnb("show", "--json").json["stages"]["evaluate"]["scraps"]
    assert scraps["verdict"]["data"]["checks"] and scraps["blessed"]["data"] in (True, False)


def test_a_project_from_a_strange_table_ends_with_a_verdict(tmp_path):
    frame, label = strange_tables.everything()[:2]
    frame.to_csv(tmp_path / "strange table.csv", index=False)
    place = ProjectFolder(tmp_path / "here", {})
    place.mlnb("new", "strange", "--data", str(tmp_path / "strange table.csv"), "--label", label, code=0)
    place.root = tmp_path / "here" / "strange"
    assert place.mlnb("check", code=0)
    document = place.mlnb("run", "--json", *SMALL, MLNB_TRACKING_MODE="off").json
    assert statuses(document)["evaluate"] == "ran", place.mlnb("show").out


def test_ten_rows_are_refused_in_words(tmp_path):
    (tmp_path / "ten.csv").write_text("a,b\n" + "\n".join(f"{i},{i % 2}" for i in range(10)))
    said = ProjectFolder(tmp_path / "x", {}).mlnb(
        "new", "ten", "--data", str(tmp_path / "ten.csv"), "--label", "b", code=1
    )
    assert "50" in said.err and "Traceback" not in said.err and not (tmp_path / "x" / "ten").exists()
