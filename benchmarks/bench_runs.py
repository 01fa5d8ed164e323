"""History: a list of the newest of 10,000 runs, whole process."""

import json
from collections.abc import Iterator
from pathlib import Path

from harness import Comparison, command, compare, ours
from toys import project

RUNS = 10_000
OPEN_ALL = """
import json, os
names = sorted(os.listdir('runs'), reverse=True)
for name in names:
    if os.path.exists(f'runs/{name}/run.json'): json.load(open(f'runs/{name}/run.json'))
"""


def make_runs(root: Path) -> None:
    """Folders of finished runs of ten stages."""
    stages = {
        f"s{i}": {"stage": f"s{i}", "status": "ran", "fingerprint": f"{i:064x}", "scraps": {}, "seconds": 1.0}
        for i in range(10)
    }
    for number in range(RUNS):
        seconds = f"{number // 3600:02}{number // 60 % 60:02}{number % 60:02}"
        run = root / "runs" / f"20260101-{seconds}-{number % 65536:04x}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(
            json.dumps(
                {
                    "format": 1,
                    "run": run.name,
                    "pipeline": "toy",
                    "status": "done",
                    "started": "2026-01-01T00:00:00Z",
                    "finished": "2026-01-01T00:00:10Z",
                    "seconds": 10.0,
                    "git": None,
                    "stages": stages,
                }
            )
        )


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """One comparison; the first listing, which does not count, reads them all."""
    root = project(folder / "mlnb")
    make_runs(root)
    yield compare(
        f"list of {RUNS:,} runs",
        {
            "mlnb runs": command([ours("mlnb"), "runs"], root, check=lambda out: f"{RUNS - 20} older" in out),
            "opening each run.json": command([ours("python"), "-c", OPEN_ALL], root),
        },
        repeats,
    )
