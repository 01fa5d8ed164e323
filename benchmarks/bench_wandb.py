"""A W&B run of 50,000 steps and 4 metrics, by whole processes: W&B's command prints text, ours ends in arrays."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT, Comparison, command, compare, ours

STEPS = 50_000

WRITE = """
import random, sys, wandb
random.seed(0)
run = wandb.init(project="bench", mode="offline", config={"lr": 0.1}, settings=wandb.Settings(
    root_dir=".", console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True))
for step in range(int(sys.argv[1])):
    run.log({"loss": random.random(), "val_loss": random.random(), "train/acc": random.random(), "lr": 0.1 / (step+1)})
run.finish()
"""

READ = """
import sys
from mlnb.tracking.wandb_runs import read_history
found = read_history(*sys.argv[1:])
print(*(f"{name} {len(one['value'])} {one['value'].sum()!r}" for name, one in found.items()), sep=chr(10))
"""


def expected() -> str:
    """What our process prints: the same numbers, made again."""
    import numpy as np

    random.seed(0)
    logged = np.array([[*(random.random() for _ in range(3)), 0.1 / (step + 1)] for step in range(STEPS)])
    columns = dict(zip(("loss", "val_loss", "train/acc", "lr"), logged.T.copy(), strict=True))
    return "".join(f"{name} {STEPS} {columns[name].sum()!r}\n" for name in sorted(columns))


def rows(text: str) -> bool:
    """Is every row among what W&B's command printed?"""
    lines = text.splitlines()
    history = [line for line in lines if '"type":"history"' in line]
    return len(history) == STEPS and json.loads(history[-1])["history"]["item"]["_step"] == STEPS - 1


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """Two comparisons: nothing kept, and parsed before."""
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    variables = {**places, "WANDB_DIR": str(folder), "WANDB_ERROR_REPORTING": "false", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WRITE, str(STEPS)], cwd=folder, env=os.environ | variables, check=True)
    (run,) = folder.glob("wandb/offline-run-*")
    wanted = expected()
    peer = command([ours("wandb"), "leet", "inspect", "--json", run], folder, rows, **variables)

    def mine(*cache: Path):
        return command([ours("python"), "-c", READ, run, *cache], folder, lambda out: out == wanted, **variables)

    yield compare("read for the first time", {"mlnb": mine(), "wandb leet inspect --json": peer}, repeats)
    yield compare("read again", {"mlnb": mine(folder / "parsed"), "wandb leet inspect --json": peer}, repeats)
