"""A stage in a warm kernel, end to end, against papermill and cold kernels; memory; what the parent costs."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

from harness import Comparison, command, compare, ours
from toys import notebook, project

TRIVIAL = ["step: int = 1  # what is added", "x = step + 1", "print(x)"]
HEAVY = ["step: int = 1  # what is added", "import tensorflow as tf, keras", "print(int(tf.constant(step) + 1))"]
LASTING = [*HEAVY, "import time\nmodel = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])\ntime.sleep(4)"]


def own(folder: Path, cells: list[str], copies: int = 1) -> Path:
    """A project with stages of the same cells."""
    project(folder)
    for i in range(copies):
        notebook(folder / f"nbs/stages/toy/{10 * i + 10:05}_stage{i}.ipynb", cells)
    return folder


def papermill(folder: Path, cells: list[str]) -> Callable[[], str]:
    """papermill's Python function with its saves, in a process that has papermill imported before it is timed."""
    code = (
        "import sys, papermill\n"
        "for line in sys.stdin:\n"
        "    papermill.execute_notebook(sys.argv[1], sys.argv[1] + '.out', progress_bar=False)\n"
        "    print('done', flush=True)\n"
    )
    words = [str(ours("python")), "-c", code, str(notebook(folder / "in.ipynb", cells))]
    server = subprocess.Popen(words, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)

    def job() -> str:
        server.stdin.write("go\n")
        server.stdin.flush()
        if not (said := server.stdout.readline()):
            raise RuntimeError("papermill failed")
        return said

    return job


def stage_seconds(folder: Path) -> float:
    """From a stage's start to its committed result, as its record says; median of three runs."""
    words = [str(ours("mlnb")), "run", "--json", "--force", "*"]
    found = []
    for _ in range(3):
        said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
        found += [stage["seconds"] for stage in json.loads(said.stdout)["stages"].values()]
    return sorted(found)[1]


def kernels_memory(folder: Path) -> int:
    """Proportional memory of all kernels of a project and of what forks them, now, in bytes."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
            if b"ipykernel" not in line and b"warm_parent" not in line:
                continue
            if str(folder).encode() in line + (entry / "environ").read_bytes():
                rows = (entry / "smaps_rollup").read_text().splitlines()
                total += next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            continue
    return total


def most_memory(folder: Path, *words: str) -> int:
    """The most that four stages at once needed, in bytes."""
    command_line = [str(ours("mlnb")), "run", "-j", "4", "--force", "*", *words]
    run, most = subprocess.Popen(command_line, cwd=folder, stdout=DEVNULL, stderr=DEVNULL), 0
    while run.poll() is None:
        most = max(most, kernels_memory(folder))
        time.sleep(0.2)
    return most


def kernels(folder: Path, action: str) -> float:
    """`mlnb kernels start` or `stop`; gives its seconds."""
    began = time.perf_counter()
    subprocess.run([str(ours("mlnb")), "kernels", action], cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - began


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """Whole commands, then the figures that belong to no peer."""
    for title, cells in (("trivial", TRIVIAL), ("TensorFlow", HEAVY)):
        mine, plain = own(folder / title / "mlnb", cells), notebook(folder / title / "papermill" / "in.ipynb", cells)
        start = kernels(mine, "start")
        result = compare(
            f"one {title} stage",
            {
                "mlnb run": command([ours("mlnb"), "run", "--force", "*"], mine),
                "mlnb run --cold": command([ours("mlnb"), "run", "--cold", "--force", "*"], mine),
                "papermill, command": command([ours("papermill"), "in.ipynb", "out.ipynb"], plain.parent),
                "papermill, in process": papermill(folder / title / "inside", cells),
            },
            min(repeats, 3),
        )
        yield result
        saved = result.median("mlnb run --cold") - result.median("mlnb run")
        print(f"  the stage itself, start to committed result: {stage_seconds(mine):.2f} s")
        pays = f"pays from {start / saved:.1f} stages on" if saved > 0 else "does not pay"
        print(f"  the parent takes {start:.1f} s to start and saves {saved:.2f} s a stage: {pays}")
        kernels(mine, "stop")
    four = own(folder / "four", LASTING, copies=4)
    kernels(four, "start")
    warm, cold = most_memory(four), most_memory(four, "--cold")
    print(f"  4 TensorFlow stages at once: warm {warm / 1e6:.0f} MB with the parent, cold {cold / 1e6:.0f} MB")
    kernels(four, "stop")
