"""Numbers over steps in whole runs: kept when a stage succeeds, fails or is killed, shown while it runs, free outside of runs."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import ROOT, ProjectFolder, kill_process, wait_for

from mlnb.metrics import curves, parse_metrics, read_metrics
from mlnb.pipeline.store import Store

LOG = (
    "from mlnb import glue\nfrom mlnb.metrics import log_metrics\n"
    "for step in (1, 2, 3): log_metrics({'loss': 1 / step, 'bad': float('nan')}, step)\nglue('n', 3)"
)


def kept(project, run, stage):
    """The lines that a stage's record points to."""
    record = json.loads((project.runs / run / "run.json").read_text())["stages"][stage]
    return record, parse_metrics(Store(project.runs / "store").path_of(record["metrics"]["digest"]).read_bytes())


@pytest.mark.parametrize("words", [(), ("--cold",)])
def test_what_a_stage_logs_is_in_its_record_and_in_that_of_a_run_that_skips_it(tmp_path, words):
    project = ProjectFolder(tmp_path, {"10_fit": [LOG], "20_after": ["from mlnb import ref\nref('fit.n')"]})
    first = project.run(*words)
    record, lines = kept(project, first["run"], "fit")
    assert record["metrics"] | {"digest": ""} == {"digest": "", "rows": 3, "names": ["loss", "bad"], "trials": 0}
    assert curves(lines)["loss"]["value"] == [1.0, 0.5, 1 / 3]
    assert json.loads((project.runs / first["run"] / "run.json").read_text())["stages"]["after"]["metrics"] is None
    second = project.run()
    assert kept(project, second["run"], "fit")[1] == lines
    project.mlnb("gc", "--keep", "1", code=0)
    assert kept(project, second["run"], "fit")[1] == lines


def test_the_curve_of_a_fit_that_broke_off_is_kept(tmp_path):
    project = ProjectFolder(tmp_path, {"10_fit": [LOG, "raise ValueError('no')"]})
    assert len(kept(project, project.run(code=1)["run"], "fit")[1]) == 3


def test_the_curve_of_a_stage_whose_process_is_killed_is_kept(tmp_path):
    project = ProjectFolder(tmp_path, {"10_fit": [LOG, "import time\nopen('here', 'w').close()\ntime.sleep(600)"]})
    running = project.start("run", "--json", "--cold")
    wait_for((project.path("10_fit").parent / "here").exists, what="the stage")
    log = next(project.runs.glob("2*/attempts/fit-1/events.jsonl")).read_text()
    kernel = next(event["pid"] for event in map(json.loads, log.splitlines()) if event["event"] == "kernel")
    driver = int(open(f"/proc/{kernel}/stat").read().rsplit(")", 1)[1].split()[1])  # noqa: SIM115
    kill_process(driver)
    out, _ = running.communicate(timeout=60)
    assert len(kept(project, json.loads(out)["run"], "fit")[1]) == 3


def test_status_shows_the_newest_step_of_a_running_stage(tmp_path):
    project = ProjectFolder(tmp_path, {"10_fit": [LOG, "import time\nopen('here', 'w').close()\ntime.sleep(600)"]})
    running = project.start("run")
    wait_for((project.path("10_fit").parent / "here").exists, what="the stage")
    assert "step 3  loss 0.3333" in project.mlnb("status", code=0).out
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)


def test_a_secret_in_a_trial_is_not_kept(tmp_path):
    cell = "from mlnb.metrics import log_trial\nlog_trial('t', {'key': str(key) and __import__('os').environ['KEY_X']}, 1.0)"
    project = ProjectFolder(tmp_path, {"10_fit": ["parameters: from mlnb import Secret\nkey: Secret = Secret('KEY_X')", cell]})
    run = project.run(KEY_X="s3cr3t-value-9")["run"]
    assert "s3cr3t" not in json.dumps(kept(project, run, "fit")[1])


def test_outside_of_a_run_nothing_is_written(tmp_path):
    code = "from mlnb.metrics import log_metrics, log_trial\nlog_metrics({'a': 1}, 1)\nlog_trial('t', {}, 1.0)"
    environment = {name: value for name, value in os.environ.items() if name != "MLNB_METRICS"} | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())


json_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.sampled_from(["time", "of", "step", "values", "trial", "x"]), inner) | st.lists(inner, max_size=2),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode() + b"\n"))
def test_no_file_is_too_damaged_to_read(data):
    for line in parse_metrics(data):
        curves([line])


@given(st.lists(st.text()), st.binary(max_size=20))
def test_a_torn_end_costs_the_torn_line_only(names, rest):
    whole = "".join(json.dumps({"time": 1, "of": "", "step": i, "values": {name: i}}) + "\n" for i, name in enumerate(names))
    found = parse_metrics(whole.encode() + rest.replace(b"\n", b""))
    assert [line["values"] for line in found] == [{name: i} for i, name in enumerate(names)]


def test_a_missing_file_is_an_empty_one(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
