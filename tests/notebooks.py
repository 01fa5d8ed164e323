"""Notebooks for tests, written as plain JSON."""
import json
from pathlib import Path


def write_notebook(path: Path, cells: list, parameters: str | None = None, kernel: str = "python3", language: str = "python") -> Path:
    """Write a notebook: `# %% [markdown]` begins a markdown cell, a pair is a source with its tags."""
    made = []
    if parameters is not None: cells = [(parameters, ["parameters"]), *cells]
    for number, cell in enumerate(cells):
        source, tags = (cell, []) if isinstance(cell, str) else cell
        common = {"id": f"c{number}", "metadata": {"tags": tags} if tags else {}}
        if source.startswith("# %% [markdown]"):
            prose = "\n".join(line.removeprefix("# ") for line in source.splitlines()[1:])
            made.append({"cell_type": "markdown", **common, "source": prose})
        else: made.append({"cell_type": "code", **common, "source": source, "outputs": [], "execution_count": None})
    kernelspec = {"name": kernel, "display_name": kernel, "language": language}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}, indent=1))
    return path
