"""What the tests of the repository share: its files, its notebooks, and where each notebook stands."""
import ast
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("run", "check", "params", "ls", "graph", "why", "runs", "compare", "report", "note", "sync", "show", "status", "lineage", "get", "gc", "debug", "kernels",
            "lab", "new", "settings", "models", "promote", "rollback", "retire", "serve", "predict", "deploy", "rollout")   # what the README promises
MADE = {".venv", ".git", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".mypy_cache", ".ruff_cache",
        ".hypothesis", "node_modules", "dist", "build", "wandb"}


@cache
def tracked() -> list[Path]:
    """Files of the repository, relative to its root: what git knows or would add, or without git what nobody made."""
    ask = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    git = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0 and git.stdout: names = [Path(o) for o in git.stdout.split("\0") if o]
    else: names = [p.relative_to(ROOT) for p in ROOT.rglob("*") if not MADE & set(p.relative_to(ROOT).parts)]
    return sorted(p for p in names if (ROOT/p).is_file() and (p.parts[0] != "runs" or p.name == "README.md"))


class Code(NamedTuple):
    """One code cell of a notebook."""

    source: str
    directives: dict[str, str]

    @property
    def exported(self) -> bool:
        """Does it become part of a module?"""
        return bool({"export", "exporti", "exports", "exportd"} & set(self.directives))

    def tree(self) -> ast.Module:
        """Its Python, magics and shell lines left out; empty for a cell in another language."""
        if self.source.lstrip().startswith("%%"): return ast.Module([], [])
        return ast.parse(re.sub(r"^(\s*)[%!?].*$", r"\1pass", self.source, flags=re.MULTILINE))


class Lesson(NamedTuple):
    """A library notebook: one that becomes a module."""

    path: Path     # relative to nbs/
    number: int
    module: str    # "mlnb.pipeline.graph"
    cells: list[dict]

    @property
    def folder(self) -> str:
        """ "" for a notebook directly under nbs/."""
        return "" if len(self.path.parts) == 1 else self.path.parts[0]

    def code(self) -> list[Code]:
        """Its code cells."""
        return [code(c) for c in self.cells if c["cell_type"] == "code"]


def code(cell: dict) -> Code:
    """A code cell with its directives."""
    source = "".join(cell["source"])
    return Code(source, dict(re.findall(r"^#\|\s*([\w-]+)\s*:?[ \t]*(.*)$", source, flags=re.MULTILINE)))


def notebooks() -> list[Path]:
    """Every notebook of the repository, relative to its root."""
    return [p for p in tracked() if p.suffix == ".ipynb"]


@cache
def lessons() -> list[Lesson]:
    """The library notebooks, in reading order."""
    found = []
    for path in notebooks():
        if path.parts[:2] == ("nbs", "stages"): continue
        cells = json.loads((ROOT/path).read_text())["cells"]
        names = [code(c).directives.get("default_exp") for c in cells if c["cell_type"] == "code"]
        if any(names): found.append(Lesson(path.relative_to("nbs"), int(re.match(r"\d*", path.name)[0] or -1),
                                           f"mlnb.{next(filter(None, names))}", cells))
    return found


def stages() -> list[Path]:
    """The stage notebooks, relative to the root."""
    return [p for p in notebooks() if p.parts[:2] == ("nbs", "stages")]


def modules() -> list[Path]:
    """The Python files of the package, relative to the root; nbdev's index left out."""
    return [p for p in tracked() if p.parts[0] == "mlnb" and p.suffix == ".py" and p.name != "_modidx.py"]
