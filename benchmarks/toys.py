"""Toy pipelines of the same work for each candidate: a stage reads a small value of each one above, and leaves one."""

import json
from pathlib import Path

QUIET = {"PLOOMBER_STATS_ENABLED": "false", "DVC_NO_ANALYTICS": "1", "DVC_TEST": "1"}  # peers must not report home
DIAMOND = {"s0": [], **{f"s{i}": ["s0"] for i in range(1, 9)}, "s9": [f"s{i}" for i in range(1, 9)]}


def chain(stages: int) -> dict[str, list[str]]:
    """Names with what each needs: every stage the one before it."""
    return {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(stages)}


def notebook(path: Path, cells: list[str]) -> Path:
    """Write a notebook of code cells; the first one is tagged `parameters`."""
    made = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {} if i else {"tags": ["parameters"]},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for i, source in enumerate(cells)
    ]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def project(folder: Path) -> Path:
    """An empty mlnb project that tracks nothing."""
    folder.mkdir(parents=True)
    (folder / "settings.ini").write_text("[tracking]\nmode = off\n")
    return folder


def mlnb_project(folder: Path, graph: dict[str, list[str]]) -> Path:
    """Values travel by `glue` and `ref`."""
    project(folder)
    for i, (name, above) in enumerate(graph.items()):
        refs = ", ".join(f'ref("{up}.v")' for up in above)
        notebook(
            folder / f"nbs/stages/toy/{10 * i + 10:05}_{name}.ipynb",
            [
                "step: int = 1  # what is added",
                "from mlnb import glue, ref",
                f"x = sum([{refs}])",
                'glue("v", x + step)',
            ],
        )
    return folder


def papermill_folder(folder: Path, graph: dict[str, list[str]]) -> Path:
    """Values travel by JSON files."""
    for name, above in graph.items():
        files = [f"{up}.json" for up in above]
        notebook(
            folder / f"{name}.ipynb",
            [
                "step = 1",
                "import json",
                f"x = sum(json.load(open(f)) for f in {files})",
                f'with open("{name}.json", "w") as f: json.dump(x + step, f)',
            ],
        )
    return folder


def ploomber_folder(folder: Path, graph: dict[str, list[str]], parallel: bool = False) -> Path:
    """Values travel by JSON files that are products."""
    folder.mkdir(parents=True)
    tasks = [
        {"source": f"{name}.py", "product": {"nb": f"out/{name}.ipynb", "data": f"out/{name}.json"}}
        for name in graph
    ]
    plan = {"meta": {"extract_upstream": True, "extract_product": False}, "tasks": tasks}
    if parallel:
        plan["executor"] = "parallel"
    (folder / "pipeline.yaml").write_text(json.dumps(plan))  # JSON is YAML
    for name, above in graph.items():
        (folder / f"{name}.py").write_text(
            f'# %% tags=["parameters"]\nupstream = {above or None}\nproduct = None\nstep = 1\n\n'
            "# %%\nimport json\n\n# %%\n"
            "x = sum(json.load(open(upstream[up]['data'])) for up in upstream or [])\n\n# %%\n"
            "with open(product['data'], 'w') as f: json.dump(x + step, f)\n"
        )
    return folder


def dvc_folder(folder: Path, graph: dict[str, list[str]]) -> Path:
    """Stages are `echo`: DVC runs commands, not notebooks."""
    folder.mkdir(parents=True)
    stages = {
        name: {"cmd": f"echo {name} > {name}.txt", "deps": [f"{up}.txt" for up in above], "outs": [f"{name}.txt"]}
        for name, above in graph.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    return folder
