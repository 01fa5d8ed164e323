"""Execute every library notebook, each in a process of its own, two at a time; print those that took longest.

nbdev-test runs many notebooks one after the other in the same processes, so that one sees what another left behind:
the environment, modules that were patched, the service that wandb keeps for a process. Which ones meet differs.
"""
import multiprocessing
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb


def tested(path: Path) -> tuple[Path, bool, float]:
    """Execute one notebook as nbdev-test does."""
    passed, seconds = test_nb(path, basepath=get_config().config_path)
    return path, passed, seconds


def main(jobs: int = 2) -> int:
    """How many notebooks failed; each has said why on standard error."""
    paths = sorted(Path(path).absolute() for path in nbglob() if not Path(path).with_name(".notest").exists())
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        found = list(pool.imap_unordered(tested, paths, chunksize=1))
    failed = sorted(path.name for path, passed, _ in found if not passed)
    slow = sorted(((seconds, path.name) for path, _, seconds in found), reverse=True)[:5]
    print(f"   {len(found) - len(failed)} notebooks passed, the slowest: "
          + ", ".join(f"{name} {seconds:.0f} s" for seconds, name in slow))
    if failed: print("   failed: " + ", ".join(failed))
    return len(failed)


if __name__ == "__main__": sys.exit(bool(main()))
