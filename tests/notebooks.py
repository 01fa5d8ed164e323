"""Small notebooks, written as text, for tests."""

import json
from pathlib import Path

MARKDOWN = "# %% [markdown]"


def write_notebook(
    path: Path, cells: list, parameters: str | None = None, kernel: str = "python3", language: str = "python"
) -> Path:
    """Write a notebook and return its path.

    A cell is its source, or (source, metadata) such as ("x = 1", {"tags": ["hide"]}); one that starts with
    "# %% [markdown]" is a markdown cell. `parameters`, when given, becomes a first cell tagged `parameters`.
    """
    rows = [] if parameters is None else [(parameters, {"tags": ["parameters"]})]
    rows += [(c, {}) if isinstance(c, str) else c for c in cells]
    made = []
    for i, (source, metadata) in enumerate(rows):
        if source.startswith(MARKDOWN):
            made.append(
                {
                    "cell_type": "markdown",
                    "id": f"c{i}",
                    "metadata": metadata,
                    "source": source[len(MARKDOWN) :].lstrip("\n"),
                }
            )
        else:
            made.append(
                {
                    "cell_type": "code",
                    "id": f"c{i}",
                    "metadata": metadata,
                    "source": source,
                    "execution_count": None,
                    "outputs": [],
                }
            )
    notebook = {
        "cells": made,
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": language}},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
    return path


def write_project(root: Path, **stages: list) -> Path:
    """Make a project with one pipeline, `main`, of stages numbered in the order given; returns its folder."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").touch()
    for i, (name, cells) in enumerate(stages.items(), 1):
        write_notebook(root / "nbs/stages/main" / f"{i}0_{name}.ipynb", cells, parameters="")
    return root
