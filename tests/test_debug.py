"""Into a failed stage and on from there."""

import json

import pytest
from projects import ProjectFolder, processes_with, statuses, wait_for

CELLS = [
    "from mlnb import glue, ref\nimport random\ndraw = random.SystemRandom().random()\nglue('draw', draw)",
    "state = {'n': 41}",
    "1 / 0",
    "glue('answer', state['n'] + 1)",
]


@pytest.fixture
def project(tmp_path):
    project = ProjectFolder(
        tmp_path / "project", {"10_load": ["from mlnb import glue\nglue('x', 1)"], "20_break": CELLS}
    )
    yield project
    project.mlnb("debug", "break", "--stop")
    assert wait_for(lambda: not processes_with(str(project.root)), 20, "the end of all processes")


def ask(connection_file: str, code: str) -> str:
    """Execute code in a kernel as any Jupyter client does, and give back what it printed."""
    from jupyter_client import BlockingKernelClient

    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        said = []
        client.execute_interactive(code, timeout=30, output_hook=lambda m: said.append(m["content"].get("text", "")))
        return "".join(said)
    finally:
        client.stop_channels()


def test_debug_rebuilds_the_state_before_the_failing_cell(project):
    assert "mlnb debug break" in project.mlnb("run", code=1).err
    said = project.mlnb("debug", code=0)
    assert "jupyter console --existing" in said.out and "20_break.ipynb, cell 3" in said.out
    kept = project.mlnb("debug", "break", "--json", code=0).json
    assert ask(kept["connection_file"], "print(state['n'])").strip() == "41"
    assert "has ended" in project.mlnb("debug", "break", "--stop", code=0).out
    assert "no kernel was kept" in project.mlnb("debug", "break", "--stop", code=0).out


def test_resume_goes_on_in_the_kept_kernel(project):
    project.mlnb("run", "--keep-kernel", code=1)
    kept = project.mlnb("debug", "--json", code=0).json
    draw = float(ask(kept["connection_file"], "print(draw)"))
    project.edit("20_break", "1 / 0", "1 / 1")
    document = project.run("--resume-kernel")
    assert statuses(document) == {"load": "skipped", "break": "ran"}
    record = project.mlnb("show", "--json").json["stages"]["break"]
    assert record["scraps"]["draw"]["data"] == draw and record["scraps"]["answer"]["data"] == 42 and record["resumed"]
    assert statuses(project.run()) == {"load": "skipped", "break": "ran"}, "a resumed result is never reused silently"
    assert not project.mlnb("show", "--json").json["stages"]["break"]["resumed"]


def test_a_change_before_the_failing_cell_is_executed_again(project):
    project.mlnb("run", "--keep-kernel", code=1)
    project.edit("20_break", "'n': 41", "'n': 99")
    project.edit("20_break", "1 / 0", "1 / 1")
    project.run("--resume-kernel")
    assert project.mlnb("show", "--json").json["stages"]["break"]["scraps"]["answer"]["data"] == 100


def test_without_a_kept_kernel_the_way_is_told(project):
    assert "mlnb debug" in project.mlnb("run", "--resume-kernel", code=2).err
    project.stage("20_break", ["1"])
    project.run()
    assert "no stage failed" in project.mlnb("debug", code=2).err


def test_a_kept_kernel_survives_the_run_and_only_its_own_stage_uses_it(project):
    project.mlnb("run", "--keep-kernel", code=1)
    kept = json.loads((project.runs / "debug" / "p.break.json").read_text())
    assert ask(kept["connection_file"], "print(state)").strip() == "{'n': 41}"
    project.stage("20_break", ["from mlnb import glue\nglue('fresh', 'state' in globals())"])
    project.run()
    assert project.mlnb("show", "--json").json["stages"]["break"]["scraps"]["fresh"]["data"] is False
