"""Tracking: whole runs of toy chains with W&B's files written beside them, and without."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Comparison, command, compare, first, ours
from toys import chain, mlnb_project

STAGES = (1, 5, 10)


def executed(root: Path, mode: str, stages: int) -> Callable[[], str]:
    """A run in which every stage is executed, as a person waits for it."""
    return command([ours("mlnb"), "run", "--force", "*", "--json"], root, MLNB_TRACKING_MODE=mode,
                   check=lambda out: len(json.loads(out)["stages"]) == stages)  # fmt: skip


def check(root: Path, stages: int) -> None:
    """Once, and not timed: is everything written that `tracked` claims?"""
    run = json.loads(executed(root, "offline", stages)())["run"]
    local, end = root / "runs" / run / "wandb" / ".local", time.monotonic() + 30
    while len(list(local.glob("*.done"))) < stages + 1 or not (local / "complete.json").exists():
        if time.monotonic() > end:
            raise RuntimeError(f"{run} was not tracked: {(local / 'follow.log').read_text()[-500:]}")
        time.sleep(0.05)


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """One comparison for each length of chain; how the difference grows with the stages is the cost of tracking one."""
    for stages in STAGES:
        root = mlnb_project(folder / str(stages), chain(stages))
        tracked = first(lambda root=root, stages=stages: check(root, stages), executed(root, "offline", stages))
        candidates = {"tracked offline": tracked, "not tracked": executed(root, "off", stages)}
        yield compare(f"{stages} stage{'s' * (stages != 1)}, all executed", candidates, repeats)
