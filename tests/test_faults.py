"""What can go wrong while stages run: each ends in a clear message, a readable run, and a next run that is right."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from projects import ProjectFolder, kernels_with, kill_process, processes_with, statuses, wait_for

LOAD = ["from mlnb import glue\nglue('numbers', [1, 2, 3])"]
SLOW = [
    "from mlnb import glue, ref\nimport time\nnumbers = ref('load.numbers')",
    "open('started', 'w').close()\ntime.sleep(SLEEP)",
    "glue('total', sum(numbers))",
]


def slow(seconds):
    return [cell.replace("SLEEP", str(seconds)) for cell in SLOW]


@pytest.fixture
def project(tmp_path):
    return ProjectFolder(tmp_path / "project", {"10_load": LOAD, "20_slow": slow(600)})


def started(project):
    return (project.path("20_slow").parent / "started").exists()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def nothing_left(project):
    """No process of this project lives any more."""
    return wait_for(lambda: not processes_with(str(project.root)), 20, "the end of all processes")


def test_a_failure_says_where_why_and_what_next(tmp_path):
    project = ProjectFolder(
        tmp_path,
        {
            "10_load": LOAD,
            "20_break": [
                "from mlnb import glue, ref",
                "# %% [markdown]\n# prose",
                "numbers = ref('load.numbers')\nx = numbers[7]\nglue('x', x)",
            ],
            "30_after": ["from mlnb import ref\nref('break.x')"],
            "40_beside": ["from mlnb import ref, glue\nglue('n', len(ref('load.numbers')))"],
        },
    )
    said = project.mlnb("run", "--keep-going", code=1)
    for expected in ("20_break.ipynb", "cell 3, line 2", "x = numbers[7]", "IndexError", "mlnb debug break"):
        assert expected in said.err, expected
    assert "Traceback" not in said.err and all(len(line) <= 100 for line in said.err.splitlines())
    record = project.mlnb("show", "--json").json
    assert {n: r["status"] for n, r in record["stages"].items()} == {
        "load": "ran",
        "break": "failed",
        "after": "blocked",
        "beside": "ran",
    }
    executed = json.loads((project.runs / record["run"] / "20_break.ipynb").read_text())
    assert any(o["output_type"] == "error" for c in executed["cells"] if c["cell_type"] == "code" for o in c["outputs"])
    project.edit("20_break", "numbers[7]", "numbers[0]")
    assert statuses(project.run()) == {"load": "skipped", "break": "ran", "after": "ran", "beside": "skipped"}


def test_kill_9_of_mlnb_leaves_no_process_and_a_next_run_that_is_right(project):
    process = project.start("run")
    wait_for(lambda: started(project), what="the slow cell")
    kill_process(process.pid)
    process.wait()
    nothing_left(project)
    record = project.mlnb("show", "--json", code=0).json
    assert record["status"] == "interrupted" and record["stages"]["load"]["status"] == "ran"
    assert project.mlnb("runs", "--json").json[0]["status"] == "interrupted"
    project.stage("20_slow", slow(0))
    assert statuses(project.run()) == {"load": "skipped", "slow": "ran"}


@pytest.mark.parametrize("words", [(), ("--cold",)], ids=["warm", "cold"])
def test_kill_9_of_the_kernel_is_told(project, words):
    process = project.start("run", *words)
    wait_for(lambda: started(project), what="the slow cell")
    kill_process(kernels_with(str(project.root))[0])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "signal 9" in err and "20_slow.ipynb, cell 2" in err
    nothing_left(project)


def test_kill_9_of_the_stage_is_told(project):
    process = project.start("run", MLNB_LAUNCHER="command")
    wait_for(lambda: started(project), what="the slow cell")
    stage = [p for p in processes_with(str(project.root)) if parent_of(p) == process.pid]
    kill_process(stage[0])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "signal 9" in err
    nothing_left(project)


def test_ctrl_c_saves_the_notebook_and_exits_130(project):
    process = project.start("run", "--json")
    wait_for(lambda: started(project), what="the slow cell")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    document = json.loads(out)
    assert process.returncode == 130 and document["status"] == "interrupted" and "notebooks are being saved" in err
    executed = (project.runs / document["run"] / "20_slow.ipynb").read_text()
    assert "KeyboardInterrupt" in executed
    nothing_left(project)


def test_a_stage_that_hangs_is_stopped_at_its_limit(project):
    project.stage("20_slow", ["#| timeout: 3s\n" + slow(600)[0], *slow(600)[1:]])
    said = project.mlnb("run", code=1)
    assert "longer than its limit of 3 s" in said.err and "cell 2" in said.err and "time.sleep(600)" in said.err
    nothing_left(project)


def test_a_stage_that_ignores_the_interrupt_is_stopped_too(project):
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('started', 'w').close()\nend = time.time() + 600\nwhile time.time() < end: time.sleep(1)"
    project.stage("20_slow", ["#| timeout: 3s\n" + stubborn])
    assert "longer than its limit" in project.mlnb("run", code=1).err
    nothing_left(project)


def test_forgotten_processes_go_with_the_stage(project):
    project.stage(
        "20_slow",
        [
            "import subprocess\nsubprocess.Popen(['sleep', '601'], start_new_session=True)\nsubprocess.Popen(['sleep', '602'], env={})"
        ],
    )
    project.run()
    assert not [p for p in processes_with("sleep\x00601") + processes_with("sleep\x00602")]


def test_retries(tmp_path):
    flaky = "#| retries: 2\nfrom pathlib import Path\nfrom mlnb import glue\ntries = len(list(Path('.').glob('try*')))\nPath(f'try{tries}').touch()\nassert tries == 1, 'not yet'\nglue('tries', tries)"
    project = ProjectFolder(tmp_path, {"10_flaky": [flaky]})
    document = project.run()
    assert document["stages"]["flaky"] == document["stages"]["flaky"] | {"status": "ran", "attempts": 2}


def test_two_runs_at_once(project):
    project.stage("20_slow", slow(1))
    both = [project.start("run", "--json") for _ in range(2)]
    documents = [json.loads(p.communicate(timeout=120)[0]) for p in both]
    assert [p.returncode for p in both] == [0, 0] and documents[0]["run"] != documents[1]["run"]
    assert set(statuses(project.run()).values()) == {"skipped"}


def test_a_truncated_object_is_made_again(tmp_path):
    project = ProjectFolder(
        tmp_path,
        {
            "10_make": ["from mlnb import glue\nglue('big', 'x' * 200_000)"],
            "20_use": ["from mlnb import glue, ref\nglue('n', len(ref('make.big')))"],
        },
    )
    project.run()
    record = project.mlnb("show", "--json").json["stages"]["make"]["scraps"]["big"]
    stored = project.runs / "store" / record["digest"][:2] / record["digest"]
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:100])
    assert statuses(project.run()) == {"make": "ran", "use": "skipped"}
    stored.chmod(0o644)
    stored.write_bytes(b"y" * 200_000)
    said = project.mlnb("run", "--force", "use", code=1)
    assert record["digest"][:12] in said.err
    assert statuses(project.run()) == {"make": "ran", "use": "skipped"}


def test_a_place_that_cannot_be_written_is_told(project):
    blocker = project.root / "file"
    blocker.touch()
    said = project.mlnb("run", MLNB_RUNS=str(blocker / "runs"))
    assert said.code in (1, 2) and "cannot write" in said.err and "Traceback" not in said.err


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        project = ProjectFolder(
            tmp_path / "project",
            {
                "10_load": LOAD,
                "20_big": [
                    "from mlnb import glue, ref\nimport random\nglue('big', ''.join(map(chr, random.choices(range(40, 120), k=6_000_000))))"
                ],
            },
        )
        said = project.mlnb("run", code=1, MLNB_RUNS=str(disk / "runs"))
        assert "disk is full" in said.err and "Traceback" not in said.err
        assert (
            project.mlnb("show", "--json", code=0, MLNB_RUNS=str(disk / "runs")).json["stages"]["load"]["status"]
            == "ran"
        )
        project.edit("20_big", "6_000_000", "60_000")
        assert statuses(project.run(MLNB_RUNS=str(disk / "runs"))) == {"load": "skipped", "big": "ran"}
    finally:
        subprocess.run(["umount", disk], check=True)


def test_run_json_is_readable_at_every_moment(project):
    project.stage("20_slow", slow(2))
    process, seen = project.start("run"), 0
    while process.poll() is None:
        for path in project.runs.glob("2*/run.json"):
            json.loads(path.read_text())
            seen += 1
        time.sleep(0.01)
    assert process.returncode == 0 and seen > 10


def test_a_second_copy_of_a_stage_changes_nothing(project):
    project.stage("20_slow", slow(0))
    run = project.run()["run"]
    attempt = project.runs / run / "attempts" / "slow-1"
    committed = (project.runs / run / "stages" / "slow.json").read_bytes()
    again = subprocess.run(
        [sys.executable, "-m", "mlnb", "run-stage", str(attempt / "spec.json")],
        env=project.environment(),
        cwd=os.sep,
        timeout=120,
    )
    assert again.returncode == 4 and (project.runs / run / "stages" / "slow.json").read_bytes() == committed
