"""Start-up: `import mlnb` against a Python that imports nothing, and against papermill, which a stage needs."""
from collections.abc import Iterator
from pathlib import Path

from harness import Comparison, command, compare, ours


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """One comparison of whole processes."""
    python = ours("python")
    yield compare("a process that imports it and ends", {
        "mlnb": command([python, "-c", "import mlnb"], folder),
        "nothing": command([python, "-c", "pass"], folder),
        "papermill": command([python, "-c", "import papermill"], folder),
    }, max(repeats, 5))
