"""Notes, tags and stars: nothing said is lost, whoever says it and whatever is tidied up."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import ProjectFolder

from mlnb.errors import MlnbError, RunError
from mlnb.files import write_json
from mlnb.pipeline.gc import collect
from mlnb.pipeline.runs import run_names
from mlnb.settings import find_project
from mlnb.tracking.notes import Note, read_notes, set_note

RUNS = [f"2026112{i}-101500-aaaa" for i in range(5)]
TAGGER = """
import sys
from mlnb.settings import find_project
from mlnb.tracking.notes import set_note
for i in range(25): set_note(find_project(), "last", add=[f"{sys.argv[1]}-{i}"], star=i % 2 == 0)
"""


@pytest.fixture
def folder(tmp_path):
    """A project with five runs of one pipeline."""
    made = ProjectFolder(tmp_path / "p", {"10_a": ["1"]})
    for run in RUNS:
        record = {"format": 1, "run": run, "pipeline": "p", "status": "done", "started": None, "seconds": 1, "stages": {}}
        write_json(made.runs / run / "run.json", record)
    return made


def test_processes_that_write_at_once_lose_nothing(folder):
    """Four processes, a hundred tags."""
    processes = [
        subprocess.Popen([sys.executable, "-c", TAGGER, name], cwd=folder.root, env=folder.environment()) for name in "abcd"
    ]
    assert [p.wait(60) for p in processes] == [0] * 4
    assert len(read_notes(find_project(folder.root))[RUNS[-1]].tags) == 100


@pytest.mark.parametrize("said", [{"star": True}, {"add": ["final"]}, {"note": "for the paper"}])
def test_what_is_spoken_of_is_not_removed(folder, said):
    """By the command; and when it is unsaid, the run may go."""
    project = find_project(folder.root)
    set_note(project, RUNS[0], **said)
    assert folder.mlnb("gc", "--keep", "1", "--json", code=0).json["runs"] == sorted(RUNS[1:4], reverse=True)
    assert run_names(project) == [RUNS[4], RUNS[0]] and read_notes(project)[RUNS[0]].run == RUNS[0]
    set_note(project, RUNS[0], note="", remove=said.get("add", ()), star=False)
    assert collect(project, keep=1).runs == [RUNS[0]] and not read_notes(project)


def test_what_is_not_given_stays(folder):
    project = find_project(folder.root)
    set_note(project, "last", note=" two\nlines ", add=["b", " a  b ", "b"], star=True)
    set_note(project, "last", add=["c"], remove=["b"])
    assert read_notes(project) == {RUNS[-1]: Note(RUNS[-1], ("a b", "c"), "two\nlines", True)}
    stored = json.loads((folder.runs / "notes" / f"{RUNS[-1]}.json").read_text())
    assert stored == {"format": 1, "run": RUNS[-1], "tags": ["a b", "c"], "note": "two\nlines", "star": True}
    with pytest.raises(RunError, match="no tag 'x'"):
        set_note(project, "last", note="not written", remove=["x"])
    assert read_notes(project)[RUNS[-1]].note == "two\nlines"


@given(tags=st.lists(st.text(max_size=70), max_size=3), note=st.text(max_size=50), star=st.booleans())
def test_any_text_comes_back_or_is_refused(tmp_path_factory, tags, note, star):
    """What is accepted is read back as it is."""
    root = tmp_path_factory.mktemp("notes")
    (root / "settings.ini").touch()
    (root / "runs" / RUNS[0]).mkdir(parents=True)
    project = find_project(root)
    try:
        said = set_note(project, RUNS[0], note, add=tags, star=star)
    except MlnbError:
        assert not (root / "runs" / "notes").exists()
        return
    assert said.empty == (RUNS[0] not in read_notes(project)) and read_notes(project).get(RUNS[0], Note(RUNS[0])) == said
