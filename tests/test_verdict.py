"""The verdict on whole runs: a model that is broken for one slice only is stopped, and the run says where and by how much."""

import json

import numpy as np
import pandas as pd
import pytest
from projects import ROOT, ProjectFolder, statuses
from test_reference import SMALL, TAXI, Repository

QUICK = ["-p", "train.epochs=4", "-p", "tune.epochs=1", "-p", "trials=1"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """This repository with one run of part of its rows, whose model became champion."""
    project = Repository(tmp_path_factory.mktemp("small") / "runs")
    first = project.run(*SMALL, "-p", 'gates=["auc > 0.4"]', MLNB_TRACKING_MODE="off")
    assert statuses(first)["register"] == "ran" and not verdict_of(project)["beats_champion"]
    return project


def shuffled(table, mask, column, seed=0):
    """The table with one column shuffled among some rows: nothing there can be predicted, and no mean changes."""
    table = table.copy()
    table.loc[mask, column] = np.random.default_rng(seed).permutation(table.loc[mask, column].to_numpy())
    return table


def verdict_of(place):
    return place.mlnb("show", "--json", code=0).json["stages"]["evaluate"]["scraps"]["verdict"]["data"]


def test_labels_shuffled_in_one_slice_are_stopped_by_the_gate(tmp_path):
    """Overall it looks as always; the group is named, with figure and limit, and nothing is registered."""
    from statsmodels.datasets import randhie

    data = randhie.load_pandas().data
    shuffled(data, data.hlthf == 1, "mdvis").to_csv(tmp_path / "broken.csv", index=False)
    project = Repository(tmp_path / "runs")
    gates = 'gates=["auc > 0.6", "auc by hlthf: >= overall - 0.05"]'
    said = project.mlnb("run", "-p", "trials=1", "-p", f"ingest.data={tmp_path / 'broken.csv'}", "-p", gates, MLNB_TRACKING_MODE="off", code=3)
    text = said.out + said.err
    assert "evaluate.blessed is False" in text and "auc in hlthf=1 is" in text and "hlthf=0" not in text
    verdict = verdict_of(project)
    (failure,) = verdict["failures"]
    assert failure["where"] == "hlthf=1" and failure["by"] < 0 and failure["condition"] == "auc by hlthf: >= overall - 0.05"
    assert next(c for c in verdict["checks"] if c["what"] == "auc")["passed"], "the overall figure does not show it"
    assert not (project.runs / "registry").exists()
    done = project.mlnb("show", "--json").json["stages"]
    assert done["card"]["status"] == "ran" and done["register"]["status"] in ("blocked", "stopped")


def test_a_challenger_is_held_against_the_champion(small):
    """The first model becomes champion; a worse one is judged on the same rows and is refused, the champion stays."""
    lazy = [*SMALL, "-p", "train.batch_size=4000", "-p", "train.epochs=1", "-p", 'gates=["auc against champion: low >= 0.001"]']
    small.mlnb("run", *lazy, MLNB_TRACKING_MODE="off", code=3)
    verdict = verdict_of(small)
    (failure,) = verdict["failures"]
    assert failure["what"] == "auc against champion" and [o["name"] for o in verdict["others"]][-1] == "champion"
    aliases = json.loads((small.runs / "registry" / "high_use" / "aliases.json").read_text())["aliases"]
    assert aliases == {"champion": 1} and (small.runs / "registry" / "high_use" / "records" / "1" / "card.md").is_file()


def test_a_gate_that_speaks_of_nothing_is_an_error_with_the_cure(small):
    words = ["-p", 'gates=["auk > 0.5"]', "--select", "+evaluate"]
    said = small.mlnb("run", *SMALL, *words, MLNB_TRACKING_MODE="off", code=1)
    text = said.out + said.err
    assert "'auk', which was not measured" in text and "one of: example_count, auc" in text.replace("\n", " ")


@pytest.mark.slow
def test_taxi_broken_on_one_day_is_stopped_and_the_day_is_named(tmp_path):
    if not TAXI.exists():
        pytest.skip(f"the taxi table is not at {TAXI}")
    data = pd.read_csv(TAXI)
    broken = shuffled(data, data.trip_start_day == 5, "tips")
    broken.to_csv(tmp_path / "taxi.csv", index=False)
    place = ProjectFolder(tmp_path, {})
    label = ["--label", "tips > 0.2 * fare", "--slices", "trip_start_day,trip_start_hour"]
    place.mlnb("new", "taxi", "--data", str(tmp_path / "taxi.csv"), *label, code=0)
    place.root = tmp_path / "taxi"
    gates = 'gates=["auc > 0.8", "auc by trip_start_day: >= overall - 0.2"]'
    said = place.mlnb("run", *QUICK, "-p", gates, "-p", 'keep=["payment_type"]', MLNB_TRACKING_MODE="off", code=3)
    assert "trip_start_day=5" in said.out + said.err
    assert "trip_start_day=5" in {failure["where"] for failure in verdict_of(place)["failures"]}
    page = place.mlnb("get", "evaluate.page", code=0) and (place.root / "evaluation.html").read_text()
    assert "trip_start_day=5" in page and 'src="http' not in page and 'href="http' not in page
    place.mlnb("get", "evaluate.tfma_result", "-o", "tfma", code=0)
    from mlnb.training.quiet import import_quietly

    result = import_quietly("tensorflow_model_analysis").load_eval_result(str(place.root / "tfma"))
    assert len(result.slicing_metrics) > 10


def test_the_stage_is_written_for_any_table():
    """No name of the reference data stands in the stage that judges."""
    cells = json.loads((ROOT / "nbs/stages/tabular/80_evaluate.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])]
    assert not any(name in text for text in code for name in ("idp", "mdvis", "hlthg", "high_use"))
