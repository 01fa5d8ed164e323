"""README.md is what nbs/index.ipynb says, and what it says is there."""
import importlib.util
import os
import re
import subprocess
import sys

import house
import pytest

from mlnb.readme import make_readme

README = (house.ROOT/"README.md").read_text()
PICTURE = house.ROOT/"nbs/images/pipeline.svg"


def test_readme_is_what_the_notebook_says():
    """`make readme` writes it."""
    assert make_readme(house.ROOT) == README


def test_the_two_commands_come_first():
    """The first block of code is what a newcomer types."""
    first = re.search(r"```\w*\n(.*?)```", README, flags=re.DOTALL)
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make run", "make test"]
    assert len(README[:first.start()].splitlines()) <= 8


@pytest.mark.parametrize("name", house.COMMANDS)
def test_every_command_is_mentioned(name):
    """In words that can be typed."""
    assert re.search(rf"mlnb {name}\b", README), f"`mlnb {name}`"


def test_every_stage_is_mentioned_and_drawn():
    """Of the reference pipeline, in the text and in the picture."""
    names = [p.stem.split("_", 1)[1] for p in house.stages() if p.parts[2] == "tabular"]
    if not names: pytest.skip("the reference pipeline is not merged yet")
    picture = PICTURE.read_text()
    assert [n for n in names if not re.search(rf"\b{n}\b", README)] == []
    assert [n for n in names if f">{n}<" not in picture] == []


def test_links_lead_somewhere():
    """Relative links of the README, from where it lies."""
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"[a-z]+:", t)]
    assert len(targets) >= 4 and "nbs/images/pipeline.svg" in targets
    later = {"nbs/stages/tabular"} if not house.stages() else set()
    assert [t for t in targets if not (house.ROOT/t).exists() and t not in later] == []


@pytest.mark.skipif(importlib.util.find_spec("mlnb.cli") is None, reason="the commands are not merged yet")
def test_the_picture_is_what_the_graph_command_draws():
    """`mlnb graph tabular --svg` wrote it, and nothing has changed since."""
    if not house.stages(): pytest.skip("the reference pipeline is not merged yet")
    command = [sys.executable, "-m", "mlnb", "graph", "tabular", "--svg"]
    runs = {"MLNB_RUNS": str(house.ROOT / "runs" / "none")}   # no run, so no colours
    done = subprocess.run(command, cwd=house.ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PICTURE.read_text()
