"""Small projects for tests: a folder, a settings.ini, some stages; and the command as people type it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from notebooks import write_notebook

ROOT = Path(__file__).resolve().parents[1]


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """Standard output as the one JSON document it has to be."""
        return json.loads(self.out)


class ProjectFolder:
    """A project in a temporary folder."""

    def __init__(
        self, root: Path, stages: dict[str, list], settings: str = "[tracking]\nmode = off\n", pipeline: str = "p"
    ):
        self.root, self.pipeline = root, pipeline
        root.mkdir(parents=True, exist_ok=True)
        (root / "settings.ini").write_text(settings)
        for name, cells in stages.items():
            self.stage(name, cells)

    def path(self, name: str) -> Path:
        """Where a stage's notebook is."""
        return self.root / "nbs" / "stages" / self.pipeline / f"{name}.ipynb"

    def stage(self, name: str, cells: list, parameters: str | None = None) -> None:
        """Write a stage; a first cell that begins with `parameters:` becomes the parameters cell."""
        if cells and isinstance(cells[0], str) and cells[0].startswith("parameters:"):
            parameters, cells = cells[0].removeprefix("parameters:").strip(), cells[1:]
        write_notebook(self.path(name), cells, parameters=parameters)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text in a stage's notebook."""
        text = self.path(name).read_text()
        assert json.dumps(old)[1:-1] in text, f"{old!r} is not in {name}"
        self.path(name).write_text(text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a command: this checkout, nothing of the caller's mlnb settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLNB_") and k != "MPLBACKEND"}
        return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "MLNB_PIPELINE_WARM_IDLE": "20s"} | more

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """Start a command and do not wait."""
        return subprocess.Popen(
            [sys.executable, "-m", "mlnb", *words],
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def mlnb(self, *words: str, code: int | None = None, **environment: str) -> Said:
        """Run a command; `code` is the exit code it must have."""
        process = self.start(*words, **environment)
        try:
            out, err = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        said = Said(process.returncode, out, err)
        assert code is None or said.code == code, f"exit {said.code}\n{out}\n{err}"
        return said

    def run(self, *words: str, code: int = 0, **environment: str) -> dict:
        """`mlnb run --json`: the document it prints."""
        return self.mlnb("run", "--json", *words, code=code, **environment).json

    @property
    def runs(self) -> Path:
        """Where this project's runs are."""
        return self.root / "runs"


def statuses(document: dict) -> dict[str, str]:
    """Stage -> status, from `mlnb run --json`."""
    return {name: stage["status"] for name, stage in document["stages"].items()}


def wait_for(condition, seconds: float = 60.0, what: str = "it"):
    """Wait until something is true and give back what it was."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def processes_with(text: str) -> list[int]:
    """Processes that have a text in their environment or command line, without this one and those that wait to fork kernels."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            seen = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in seen and b"MLNB_ATTEMPT=-----" not in seen:
            found.append(int(entry.name))
    return found


def kernels_with(text: str) -> list[int]:
    """Those of them that are kernels, forked or not."""
    named = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_with(text)}
    return [pid for pid, line in named.items() if b"ipykernel" in line or b"warm_parent" in line]


def kill_process(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)
