"""What a stage costs: 10 stages of four short cells, all executed, in a chain and as a diamond (1, then 8, then 1)."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import PEERS, Comparison, command, compare, ours
from toys import DIAMOND, QUIET, chain, mlnb_project, papermill_folder, ploomber_folder


def papermill(folder: Path, graph: dict[str, list[str]]) -> Callable[[], None]:
    """One papermill command a stage; those with the same needs go together, as many at once as there are cores."""
    levels: dict[tuple[str, ...], list[str]] = {}
    for name, above in graph.items():
        levels.setdefault(tuple(above), []).append(name)

    def job() -> None:
        for names in levels.values():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                commands = [command([ours("papermill"), f"{n}.ipynb", f"{n}.out.ipynb"], folder) for n in names]
                list(pool.map(lambda run: run(), commands))

    return job


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """Two comparisons of whole runs."""
    for title, graph in (("chain", chain(10)), ("diamond", DIAMOND)):
        mine = mlnb_project(folder / title / "mlnb", graph)
        theirs = ploomber_folder(folder / title / "ploomber", graph, parallel=title == "diamond")
        yield compare(
            f"10 trivial stages, {title}",
            {
                "mlnb": command([ours("mlnb"), "run", "--force", "*"], mine, check=lambda out: "10 ran" in out),
                "papermill, one command a stage": papermill(
                    papermill_folder(folder / title / "papermill", graph), graph
                ),
                "ploomber build --force": command(
                    [PEERS["ploomber"].program("ploomber"), "build", "--force"], theirs, **QUIET
                ),
            },
            min(repeats, 3),
        )
