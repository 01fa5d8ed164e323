"""Timing candidates against each other: alternating, medians, ratios. How and why is in README.md."""
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class NotInstalled(Exception):
    """A peer that cannot be had here; its column says so and the others are measured."""


class Comparison(NamedTuple):
    """Times of one job, by candidate; the first candidate is ours."""

    title: str
    seconds: dict[str, list[float]]   # every counted time, in the order measured
    missing: dict[str, str]           # candidate -> why it was not measured

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """How many times as long as ours this candidate took."""
        return self.median(name) / self.median(next(iter(self.seconds)))

    def to_json(self) -> dict:
        """Everything, for `latest.json`."""
        return {"title": self.title, "missing": self.missing, "candidates": {
            name: {"median": self.median(name), "smallest": min(times), "largest": max(times), "rounds": len(times),
                   "ratio": self.ratio(name)} for name, times in self.seconds.items()}}

    def table(self) -> str:
        """As Markdown."""
        rows = [f"| {name} | {self.median(name):.3f} s | {min(t):.3f} to {max(t):.3f} | {self.ratio(name):.2f} |"
                for name, t in self.seconds.items()]
        rows += [f"| {name} | not installed | {why} | |" for name, why in self.missing.items()]
        return "\n".join([f"### {self.title}", "", f"| | median of {self.rounds} | smallest to largest | by ours |",
                          "|---|---|---|---|", *rows])

    @property
    def rounds(self) -> int:
        """Rounds that count."""
        return len(next(iter(self.seconds.values())))


def compare(title: str, candidates: dict[str, Callable[[], object]], repeats: int = 5) -> Comparison:
    """Time every candidate `repeats` times, in turns, after one round that does not count."""
    missing = {}
    for name, job in candidates.items():
        progress(f"{title}: {name}, once")
        try: job()
        except NotInstalled as e: missing[name] = str(e)
    names = [name for name in candidates if name not in missing]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(repeats):
        for name in names[k % len(names):] + names[:k % len(names)]:
            progress(f"{title}: {name}, {k + 1} of {repeats}")
            started = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - started)
    progress("")
    return Comparison(title, seconds, missing)


def progress(text: str) -> None:
    """One line on a terminal that is written over and over; nothing elsewhere."""
    if sys.stderr.isatty(): print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def first(once: Callable[[], object], job: Callable[[], object]) -> Callable[[], object]:
    """A job with something to be done before it is done for the first time, and so is never timed."""
    pending = [once]

    def both() -> object:
        if pending: pending.pop()()
        return job()
    return both


def command(words: list, folder: Path, check: Callable[[str], bool] | None = None,
            **variables: str) -> Callable[[], str]:
    """A job: a whole process that must end with 0, and whose output must satisfy `check`."""
    def job() -> str:
        program = words[0]() if callable(words[0]) else words[0]
        done = subprocess.run([str(program), *map(str, words[1:])], cwd=folder, env=os.environ | variables,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode or (check and not check(done.stdout)):
            raise RuntimeError(f"{' '.join(map(str, words[1:]))} in {folder.name} ended with {done.returncode}:\n"
                               f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout
    return job


def ours(program: str) -> Path:
    """A program of our own .venv."""
    return Path(sys.executable).parent/program


class Peer(NamedTuple):
    """Another tool, in a virtual environment of its own."""

    name: str
    requirements: tuple[str, ...]   # pinned, so that a ratio means the same tomorrow

    def program(self, name: str) -> Callable[[], Path]:
        """For `command`: the path of one of its programs, installed when it is first asked for."""
        return lambda: self.folder()/"bin"/name

    def folder(self) -> Path:
        """Its environment, made when missing; raises `NotInstalled`."""
        runs = Path(os.environ.get("MLNB_RUNS", ROOT/"runs"))
        place = runs/"bench"/"peers"/"-".join(r.replace("==", "-") for r in self.requirements)
        if (place/"ready").exists(): return place
        print(f"installing {', '.join(self.requirements)}", file=sys.stderr)
        install = ([str(ours("uv")), "pip", "install", "-q", "--python", str(place/"bin/python")] if ours("uv").exists()
                   else [str(place/"bin/python"), "-m", "pip", "install", "-q"])
        for words in ([sys.executable, "-m", "venv", "--clear", str(place)], [*install, *self.requirements]):
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode: raise NotInstalled((done.stderr.strip() or "it failed").splitlines()[-1][:120])
        subprocess.run([str(place/"bin/python"), "-m", "compileall", "-q", str(place/"lib")], capture_output=True)
        (place/"ready").touch()
        return place


PEERS = {p.name: p for p in (
    Peer("ploomber", ("ploomber==0.23.3", "setuptools==80.9.0")),
    Peer("dvc", ("dvc==3.67.1",)),
)}
