"""Start-up time is a feature: what runs no stage loads neither TensorFlow nor pandas, nor what costs as much."""
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

HEAVY = ("tensorflow", "keras", "pandas", "wandb", "sklearn", "matplotlib")
SLOW = ("numpy", "nbformat", "jsonschema", "papermill", "scrapbook", "asyncio", "dataclasses", "inspect",
        "jupyter_client")
# Each command in a project that was never run, so that nothing is executed; `lab` and `new` are not for looking.
LOOKING = ["--help", "check", "params", "ls", "graph", "why", "runs", "show", "status", "lineage a.x", "gc --dry-run",
           "debug a", "settings", "run --dry-run", "check --json", "runs --json", "why --json", "run --dry-run --json"]
COMMAND = "from mlnb.cli import main; sys.exit(main(sys.argv[1:]))"



def loaded(program: str, cwd: Path, *arguments: str) -> tuple[list[str], subprocess.CompletedProcess]:
    """The heavy packages that a fresh Python has loaded after this program, and how it ended."""
    report = f"print('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])"
    code = f"import sys\ntry:\n    {program}\nfinally:\n    {report}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(house.ROOT)}, stdin=subprocess.DEVNULL)
    return re.findall(r"^loaded:(.*)$", done.stdout, flags=re.MULTILINE)[-1].split(), done


def test_the_check_sees_a_heavy_import(tmp_path):
    """The check itself."""
    assert loaded("import pandas", tmp_path)[0] == ["pandas"]


def test_importing_the_package_is_free(tmp_path):
    """Not even the modules of the package are loaded, and none of what they need."""
    assert loaded("import mlnb", tmp_path)[0] == []
    code = "import sys; before = set(sys.modules); import mlnb; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=house.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["mlnb"], done.stderr


@pytest.mark.parametrize("module", [o.module for o in house.lessons() if o.folder in ("", "pipeline", "tracking")])
def test_a_module_of_the_engine_is_light(module, tmp_path):
    """The engine tower and the ground import what is heavy where they need it."""
    found, done = loaded(f"import {module}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert found == []


def heavy_at_module_level(module: str) -> list[str]:
    """What a module of the pipeline imports before it is needed: a run that has nothing to do aims at 0.15 s in all."""
    code = f"import sys, {module}; print(*[m for m in {SLOW!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=house.ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", [o.module for o in house.lessons() if o.folder in ("", "pipeline")
                                    and not re.search(r"kernel|engine|launch|attempt|provisioner|readme", o.module)])
def test_planning_needs_no_notebook_library(module):
    """Reading, checking and planning work on plain JSON."""
    assert heavy_at_module_level(module) == []


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with one stage."""
    root = tmp_path_factory.mktemp("project")
    (root/"settings.ini").touch()
    cell = {"cell_type": "code", "execution_count": None, "outputs": []}
    cells = [cell | {"id": "a1", "metadata": {"tags": ["parameters"]}, "source": "n: int = 1  # a number"},
             cell | {"id": "a2", "metadata": {}, "source": "from mlnb import glue\nglue('x', n)"}]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    path = root/"nbs/stages/demo/10_a.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return root


needs_commands = pytest.mark.skipif(importlib.util.find_spec("mlnb.cli") is None,
                                    reason="the commands are not merged yet")


@needs_commands
@pytest.mark.parametrize("command", LOOKING)
def test_a_command_that_runs_no_stage_is_light(command, project):
    """It may say that there is no run yet, but it must know the command."""
    found, done = loaded(COMMAND, project, *command.split())
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr, done.stderr
    assert not re.search(r"invalid choice|unrecognized|unknown command", done.stderr), done.stderr
    assert found == []


@needs_commands
def test_help_names_every_command(project):
    """What the README promises is there to be called."""
    done = loaded(COMMAND, project, "--help")[1]
    assert done.returncode == 0
    assert {name for name in house.COMMANDS if not re.search(rf"\b{name}\b", done.stdout)} == set()
