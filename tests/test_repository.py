"""What must hold for the whole repository: generated equals source, one fact in one place, nothing of a machine."""
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import house
import pytest

from mlnb.clean import clean_bytes, is_stage

ROOT = house.ROOT
PYPROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text())
TOP = {"nbs", "mlnb", "labextension", "settings.ini", "pyproject.toml", "pre-commit-config.yaml", "constraints.txt",
       "tests", "benchmarks", "runs", "Makefile", "README.md", "CHANGELOG.md", "LICENSE", ".ci", ".gitignore",
       ".gitattributes"}
BY_HAND = {"mlnb/__init__.py", "mlnb/__main__.py"}
sys.path.insert(0, str(ROOT/".ci"))
import tidy  # noqa: E402 (a script of the commit hook, in no package)


def environment(**more: str) -> dict[str, str]:
    """What a child process sees: this Python's programs first, and not that a notebook test is going on."""
    kept = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | more


def call(*command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    channels = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment(**more), **channels)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's files in a new folder whose name has a space."""
    for path in house.tracked():
        (tmp_path/"a copy"/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/path, tmp_path/"a copy"/path)
    return tmp_path/"a copy"


# ---- generated from notebooks

def test_export_leaves_no_difference(copy):
    """mlnb/ is what the notebooks say, and holds no module whose notebook is gone."""
    before = {p: (ROOT/p).read_text() for p in house.tracked() if p.parts[0] == "mlnb" and p.suffix == ".py"}
    done = call("nbdev-export", cwd=copy)
    assert done.returncode == 0, done.stderr
    after = {p.relative_to(copy): p.read_text() for p in (copy/"mlnb").rglob("*.py")}
    assert sorted(after) == sorted(before)
    assert [str(p) for p in before if before[p] != after[p]] == []
    sources = re.compile(r"File to edit: \.\./(?:\.\./)?(nbs/\S+\.ipynb)\.")
    for path, text in before.items():
        if path.name in ("__init__.py", "_modidx.py") or str(path) in BY_HAND: continue
        source = sources.search(text)
        assert source and (ROOT/source[1]).exists(), f"{path} comes from no notebook"


def by_nbdev(notebook: dict) -> str:
    """A notebook as nbdev-clean writes it with the settings of pyproject.toml."""
    from fastcore.nbio import nb2str
    from nbdev.clean import clean_nb
    config = PYPROJECT["tool"]["nbdev"]
    clean_nb(notebook, allowed_metadata_keys=config["allowed_metadata_keys"],
             allowed_cell_metadata_keys=config["allowed_cell_metadata_keys"])
    return nb2str(notebook)


def test_notebooks_are_clean():
    """As nbdev-clean leaves them, and a stage without outputs."""
    assert len(house.notebooks()) >= 5
    for path in house.notebooks():
        text = (ROOT/path).read_text()
        assert text == by_nbdev(json.loads(text)), f"{path}: run nbdev-clean"
        assert text == clean_bytes(text.encode(), not is_stage(ROOT/path)).decode(), f"{path}: traces of a session"


def as_jupyterlab_saves(notebook: dict) -> dict:
    """A notebook after a session in JupyterLab: executed, with view settings, times and addresses."""
    for i, cell in enumerate(notebook["cells"]):
        cell["metadata"] |= {"editable": True, "slideshow": {"slide_type": ""}, "execution": {"reply": "2026"}}
        if cell["cell_type"] != "code": continue
        cell["execution_count"] = i
        cell["outputs"] = [
            {"output_type": "execute_result", "execution_count": i, "metadata": {"isolated": True},
             "data": {"text/plain": ["<A at 0x7f00ab>"], "text/html": ["<A at 0x1f>"], "image/png": "iVBORw0\n"}},
            {"output_type": "stream", "name": "stdout", "text": ["é <Thing at 0x7fab>\n", "plain\n"]}]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook["metadata"] |= {"language_info": {"name": "python", "version": "3.11.7"}, "kernelspec": kernel}
    return notebook


def small_notebook() -> dict:
    """Three cells, one of them the parameters."""
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {"cells": [{"cell_type": "markdown", "id": "a1", "metadata": {}, "source": ["# A\n", "text"]},
                      cell | {"id": "a2", "metadata": {"tags": ["parameters"]}, "source": ["n: int = 1  # a number"]},
                      cell | {"id": "a3", "source": [""]}],
            "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
            "nbformat": 4, "nbformat_minor": 5}


def test_the_filter_does_what_nbdev_clean_does():
    """Two programs clean notebooks, one fast for git and one for people; they must not disagree."""
    dirty = json.dumps(as_jupyterlab_saves(small_notebook())).encode()
    cleaned = clean_bytes(dirty).decode()
    assert cleaned == by_nbdev(json.loads(dirty))
    assert "0x" not in cleaned and '"execution_count": 1' not in cleaned
    assert "parameters" in cleaned and '"a2"' in cleaned
    stage = json.loads(clean_bytes(dirty, outputs=False))
    assert [c.get("outputs") for c in stage["cells"]] == [None, [], []]


def test_the_parameters_tag_survives_nbdev_clean(copy):
    """Without it papermill injects at the top, and the defaults below win."""
    path = copy/"nbs/stages/demo/10_a.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(as_jupyterlab_saves(small_notebook())))
    done = call("nbdev-clean", cwd=copy)
    assert done.returncode == 0, done.stderr
    cells = json.loads(path.read_text())["cells"]
    assert cells[1]["metadata"] == {"tags": ["parameters"]} and cells[0]["metadata"] == {}


@pytest.fixture
def clone(copy: Path) -> Path:
    """A git repository of the copy and one stage, with the filter that `make` installs."""
    stage = copy/"nbs/stages/demo/10_a.ipynb"
    stage.parent.mkdir(parents=True)
    stage.write_text(by_nbdev(small_notebook()))
    setting = re.search(r"git config filter\.mlnb\.clean '(.*)'", (ROOT/".ci/install").read_text())[1]
    for command in (["init", "-q"], ["config", "filter.mlnb.clean", setting], ["config", "user.name", "t"],
                    ["config", "user.email", "t@example.org"], ["add", "-A"], ["commit", "-qm", "all"]):
        done = call("git", *command, cwd=copy)
        assert done.returncode == 0, done.stderr
    return copy


def test_git_stays_clean_after_jupyterlab(clone):
    """Opened, executed and saved through Jupyter's own contents manager, with the hook that `make` configures."""
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from traitlets.config import Config
    setting = json.loads(re.search(r"echo '(\{\"ContentsManager.*\})'", (ROOT/".ci/install").read_text())[1])
    manager = LargeFileManager(root_dir=str(clone), config=Config(setting))
    for path in ("nbs/stages/demo/10_a.ipynb", "nbs/00_errors.ipynb"):
        model = manager.get(path)
        if "stages" in path: as_jupyterlab_saves(model["content"])
        else: model["content"]["metadata"]["language_info"] = {"name": "python"}
        manager.save(model, path)
    assert call("git", "status", "--porcelain", cwd=clone).stdout == ""


def test_git_sees_only_what_was_changed(clone):
    """Whatever program saved the notebook; and where no Python runs git still works."""
    stage = clone/"nbs/stages/demo/10_a.ipynb"
    notebook = as_jupyterlab_saves(json.loads(stage.read_text()))
    stage.write_text(json.dumps(notebook))
    assert call("git", "diff", cwd=clone).stdout == ""
    notebook["cells"][1]["source"] = ["n: int = 2  # a number"]
    stage.write_text(json.dumps(notebook))
    changed = [line for line in call("git", "diff", "-U0", cwd=clone).stdout.splitlines() if re.match(r"[-+] ", line)]
    assert [line.strip(" -+\"") for line in changed] == ["n: int = 1  # a number", "n: int = 2  # a number"]
    programs = clone.parent/"few programs"
    programs.mkdir()
    for name in ("git", "sh", "cat"): (programs/name).symlink_to(shutil.which(name))
    assert call("git", "add", "-A", cwd=clone, PATH=str(programs)).returncode == 0
    assert "0x7fab" in call("git", "show", ":nbs/stages/demo/10_a.ipynb", cwd=clone).stdout


# ---- one fact in one place

def test_settings_are_known_and_not_in_pyproject_too():
    """settings.ini holds how mlnb behaves, pyproject.toml the packaging; no key is in both."""
    from mlnb.settings import SETTINGS, read_settings
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT/"settings.ini")
    keys = {key for section in parser.sections() for key in parser[section]}
    assert keys and keys <= {s.key for s in SETTINGS}
    assert len(read_settings(ROOT/"settings.ini", {})) == len(SETTINGS)
    assert keys & (set(PYPROJECT["project"]) | set(PYPROJECT["tool"]["nbdev"])) == set()


def test_licence_changelog_and_version():
    """The terms, the history, and a version that stands in one place."""
    from mlnb import __version__
    assert "Apache License" in (ROOT/"LICENSE").read_text()[:200] and PYPROJECT["project"]["license"] == "Apache-2.0"
    headings = re.findall(r"^## (.*)$", (ROOT/"CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(__version__)
    assert "version" in PYPROJECT["project"]["dynamic"] and "version" not in PYPROJECT["project"]


def test_top_level_is_the_designed_one():
    """A new entry at the top is a decision, and this list is where it is taken."""
    assert {p.parts[0] for p in house.tracked()} - TOP == set()
    assert {"nbs", "mlnb", "settings.ini", "tests", "runs", "pre-commit-config.yaml", "README.md"} <= {
        p.parts[0] for p in house.tracked()}


# ---- constraints

def pins() -> dict[str, str]:
    """constraints.txt as normal name -> version."""
    lines = [line for line in (ROOT/"constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return dict(re.fullmatch(r"([a-z0-9-]+)==([\w.+!-]+)", line).groups() for line in lines)


def normal(name: str) -> str:
    """A distribution's name as constraints.txt writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_are_sorted_names_and_versions():
    """Nothing else is in the file: no addresses, no paths, no options."""
    first, *lines = (ROOT/"constraints.txt").read_text().splitlines()
    assert first.startswith("# ") and lines == [f"{n}=={v}" for n, v in sorted(pins().items())]


def test_constraints_pin_what_is_asked_for():
    """Every requirement of every extra and of the build, within its bounds."""
    from packaging.requirements import Requirement
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *PYPROJECT["build-system"]["requires"], "uv>=0.9"]   # uv: .ci/install
    asked += sum(project["optional-dependencies"].values(), [])
    for requirement in map(Requirement, asked):
        if requirement.name == project["name"]: continue
        pinned = pins().get(normal(requirement.name), "")
        assert pinned and requirement.specifier.contains(pinned), f"{requirement} against {pinned or 'no pin'}"
        assert re.search(r">=|==", str(requirement.specifier)), f"{requirement} has no lower bound"


def test_what_is_installed_is_what_is_pinned():
    """Down from what pyproject.toml asks for, to the last dependency of a dependency."""
    from packaging.requirements import Requirement
    project, seen = PYPROJECT["project"], {}
    extras = project["optional-dependencies"]
    todo = [(Requirement(r), "") for r in [*project["dependencies"], *extras["dev"], *extras["lab"]]]
    while todo:
        requirement, extra = todo.pop()
        name = normal(requirement.name)
        if name == project["name"]: continue
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}): continue
        for wanted in requirement.extras | {""}:
            if (name, wanted) in seen: continue
            seen[name, wanted] = metadata.version(name)
            todo += [(Requirement(r), wanted) for r in metadata.requires(name) or []]
    assert len(seen) > 250
    assert {n: v for (n, _), v in seen.items() if pins().get(n) != v} == {}


# ---- nothing of a machine, nothing secret, nothing large

FORBIDDEN = {
    "a path of a machine": r"(?<![A-Za-z0-9_.])/(?:wor[k]|roo[t]|far[m]|hom[e]|User[s]|tm[p])/[A-Za-z0-9_]",
    "the address of a registry":
        r"index-ur[l] *[=:] *\S|registr[y] *= *\"http|\"resolve[d]\": *\"http|pypi\.or[g]/simple",
    "a secret": r"AKIA[0-9A-Z]{16}|-----BEGI[N] [A-Z ]*PRIVATE|gh[pousr]_[A-Za-z0-9]{36}|xox[bp]-\d|"
                r"(?i:api_?key|token|password|secret)\w*[\"']? *[=:] *[\"'][A-Za-z0-9+/_-]{24,}[\"']",
}


def test_nothing_of_a_machine_is_committed():
    """Paths, registries and secrets, in sources and in notebooks' outputs."""
    found = []
    for path in house.tracked():
        data = (ROOT/path).read_bytes()
        if b"\0" in data: continue
        for what, pattern in FORBIDDEN.items():
            found += [f"{path}: {what}: {m[0]}" for m in re.finditer(pattern, data.decode())]
    assert found == []


@pytest.mark.parametrize("text", [
    "see /wor" "k/main", '"/hom' 'e/ann/x"', "index-ur" "l = https://x", "api_key = '" + "a1" * 16 + "'"])
def test_the_check_sees_a_leak(text):
    """The patterns themselves."""
    assert any(re.search(pattern, text) for pattern in FORBIDDEN.values())


def test_files_are_tidy_and_small(capsys):
    """One newline at the end, nothing over 400 kB; as the commit hook has it."""
    data = (".svg", ".csv", ".png", ".parquet")
    paths = [ROOT/p for p in house.tracked() if p.suffix not in data and p.parts[0] != "mlnb"]
    for path in paths:
        data = path.read_bytes()
        assert not data or data == data.rstrip(b"\n") + b"\n", f"{path} does not end with one newline"
    assert tidy.main(["--size", *map(str, paths)]) == 0, capsys.readouterr().out


# ---- what people type

def test_make_names_its_targets():
    """`make` alone lists what can be made, and every target listed is one."""
    listed = call("make", cwd=ROOT).stdout
    named = re.findall(r"^  make (\w+) +\S", listed, flags=re.MULTILINE)
    assert set(named) >= {"run", "test", "lab", "docs", "bench", "readme", "clean", "help"}
    for name in named: assert call("make", "-n", name, cwd=ROOT).returncode == 0, name


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_an_unfit_python_is_one_line(copy, python):
    """It says what to install, before anything is made."""
    done = call("make", "run", f"PYTHON={python}", cwd=copy)
    assert done.returncode != 0 and not (copy/".venv").exists()
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1
    assert "needs Python 3.11 or 3.12" in done.stderr and "apt install" in done.stderr


def test_half_a_virtual_environment_is_not_installed_into(copy):
    """Without pyvenv.cfg .venv/bin/python is the machine's own Python, and must be left alone."""
    (copy/".venv/bin").mkdir(parents=True)
    (copy/".venv/bin/python").symlink_to(os.path.realpath(sys.executable))
    done = call("make", "install", "PYTHON=false", cwd=copy)
    assert done.returncode != 0 and "needs Python 3.11 or 3.12" in done.stderr
    assert "installing" not in done.stderr


def test_hooks_call_what_is_installed():
    """Each hook of pre-commit-config.yaml runs a program that constraints.txt brings."""
    import yaml
    config = yaml.safe_load((ROOT/"pre-commit-config.yaml").read_text())
    hooks = [h for r in config["repos"] for h in r["hooks"]]
    assert {r["repo"] for r in config["repos"]} == {"local"} and {h["language"] for h in hooks} == {"system"}
    for hook in hooks:
        program, *words = hook["entry"].split()
        assert (Path(sys.executable).parent/Path(program).name).exists(), hook["id"]
        assert all((ROOT/w).exists() for w in words if w.endswith(".py")), hook["id"]


def test_stages_are_no_lessons():
    """nbdev-test leaves a folder alone that holds .notest; stages are executed by `mlnb run`."""
    for folder in {p.parent for p in house.stages()}: assert (ROOT/folder/".notest").exists(), f"{folder} lacks .notest"
    for path in house.stages():
        cells = json.loads((ROOT/path).read_text())["cells"]
        assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) <= 1, path
        assert not any(c.get("outputs") for c in cells), path
