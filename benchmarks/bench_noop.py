"""No-op: a 10-stage pipeline that is up to date is asked to run again (DVC's stages are `echo`, not notebooks)."""

from collections.abc import Iterator
from pathlib import Path

from harness import PEERS, Comparison, command, compare, first, ours
from toys import QUIET, chain, dvc_folder, mlnb_project, ploomber_folder


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """One comparison of whole processes; the round that does not count executes the stages."""
    graph = chain(10)
    mine, theirs, echo = (
        make(folder / name, graph)
        for name, make in (("mlnb", mlnb_project), ("ploomber", ploomber_folder), ("dvc", dvc_folder))
    )
    dvc = PEERS["dvc"].program("dvc")
    yield compare(
        "10 stages, nothing changed",
        {
            "mlnb": first(
                command([ours("mlnb"), "run"], mine),
                command([ours("mlnb"), "run"], mine, check=lambda out: "nothing to do" in out),
            ),
            "python -c pass": command([ours("python"), "-c", "pass"], folder),
            "ploomber build": command([PEERS["ploomber"].program("ploomber"), "build"], theirs, **QUIET),
            "dvc repro": first(
                command([dvc, "init", "--no-scm", "-q"], echo, **QUIET), command([dvc, "repro"], echo, **QUIET)
            ),
        },
        repeats,
    )
