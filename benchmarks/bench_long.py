"""Long notebooks: many short cells, the executed copy always safe on the disk (papermill rewrites it twice a cell)."""

from collections.abc import Iterator
from pathlib import Path

from harness import Comparison, command, compare, ours
from toys import notebook, project

WITHOUT_SAVES = """
import nbformat
from papermill import execute_notebook
nbformat.write(execute_notebook({!r}, None, progress_bar=False), {!r})
"""


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """300 cells against papermill as it comes; 2,000 against papermill without saves: with them it takes too long."""
    for count in (300, 2000):
        cells = ["k = 1", *(f"print({i})" for i in range(count))]
        mine = project(folder / f"mlnb-{count}")
        notebook(mine / "nbs/stages/toy/10_long.ipynb", cells)
        source, target = notebook(folder / f"{count}.ipynb", cells), folder / f"{count}.out.ipynb"
        blind = command([ours("python"), "-c", WITHOUT_SAVES.format(str(source), str(target))], folder)
        saving = {"papermill": command([ours("papermill"), source, target], folder)} if count == 300 else {}
        yield compare(
            f"{count:,} cells",
            {
                "mlnb": command([ours("mlnb"), "run", "--force", "*"], mine, check=lambda out: "1 ran" in out),
                **saving,
                "papermill, no saves": blind,
            },
            min(repeats, 3),
        )
