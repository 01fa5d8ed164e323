"""Predictions a second from a served tabular model: mlnb serve against what people write instead, one row a request."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from harness import NotInstalled, progress  # noqa: E402 (this file is also called by itself)

CLIENTS = (1, 8, 32)
OURS = "mlnb serve, REST"
INSIDE = "no server, in its process"
FIGURES = ("rps", "p50_ms", "p99_ms")


class Load(NamedTuple):
    """What each candidate did under load; the first candidate is ours."""

    title: str
    found: dict[str, dict[str, list[dict]]]   # candidate -> load ("32 clients") -> one measurement a round
    missing: dict[str, str]                   # candidate -> why it was not measured

    def median(self, name: str, load: str, what: str) -> float:
        """Of the rounds."""
        return statistics.median(one[what] for one in self.found[name][load])

    def ratio(self, name: str, load: str) -> float:
        """How many times as many answers ours gives; without a server, which has no clients: ours with most of them."""
        against = load if load in self.found[OURS] else list(self.found[OURS])[-1]
        return self.median(OURS, against, "rps") / self.median(name, load, "rps")

    def to_json(self) -> dict:
        """Everything, for `latest.json`."""
        def facts(name: str, load: str) -> dict:
            return {what: self.median(name, load, what) for what in FIGURES} | {"ratio": self.ratio(name, load)}

        found = {name: {load: facts(name, load) for load in loads} for name, loads in self.found.items()}
        return {"title": self.title, "missing": self.missing, "candidates": found}

    def table(self) -> str:
        """As Markdown."""
        lines = [f"### {self.title}", "", "| | load | predictions/s | p50 ms | p99 ms | ours by it |",
                 "|---|---|---|---|---|---|"]
        for name, loads in self.found.items():
            for load in loads:
                rps, p50, p99 = (self.median(name, load, what) for what in FIGURES)
                ratio = self.ratio(name, load)
                lines.append(f"| {name} | {load} | {rps:,.0f} | {p50:.3g} | {p99:.3g} | {ratio:.3g} |")
        return "\n".join(lines + [f"| {name} | not measured | {why} | | | |" for name, why in self.missing.items()])


def environment() -> dict[str, str]:
    """Of every process: ours to import, and quiet."""
    return os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(HERE.parent)}


@contextmanager
def process(*words: object) -> Iterator[subprocess.Popen]:
    """A process that ends with the block."""
    one = subprocess.Popen([sys.executable, *map(str, words)], env=environment(), stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try: yield one
    finally:
        one.terminate()
        try: one.wait(10)
        except subprocess.TimeoutExpired: one.kill()


def output(*words: object) -> str:
    """Of a process that must succeed."""
    done = subprocess.run([sys.executable, *map(str, words)], env=environment(), capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def first_line(one: subprocess.Popen) -> str:
    """What a process says when it is there."""
    line = one.stdout.readline().strip()
    if not line: raise NotInstalled(f"it ended with {one.wait()}")
    return line


def asker(door: str, port: int, rows: Path) -> Callable[[str, float], dict]:
    """Measures one server with so many clients."""
    return lambda load, seconds: json.loads(output(HERE / "load.py", door, port, load.split()[0], seconds, rows))


def start(stack: ExitStack, folder: Path) -> tuple[dict[str, Callable], dict[str, str]]:
    """Every candidate, started; those that cannot be, with the reason."""
    from mlnb.serving.serve_options import ServerOptions
    from mlnb.serving.server import start_server

    rows, peers, missing = folder / "rows.json", HERE / "serving_peers.py", {}
    found: dict[str, Callable] = {}
    for name, place, log in ((OURS, "twin", ""), ("mlnb serve, REST, all of it logged", "twin", str(folder / "log")),
                             ("mlnb serve, REST, TensorFlow only", "plain", "")):
        options = ServerOptions(model_name="m", model_base_path=str(folder / place), rest_port=0, grpc_port=0,
                                prediction_log=log)
        server = stack.enter_context(start_server(options, process=True))
        found[name] = asker("rest", server.rest_port, rows)
        if name == OURS: found["mlnb serve, gRPC"] = asker("grpc", server.grpc_port, rows)
    for name, kind in (("ASGI, ConcreteFunction a request", "concrete"), ("FastAPI, model.predict", "fastapi")):
        try: found[name] = asker("rest", int(first_line(stack.enter_context(process(peers, kind, folder)))), rows)
        except NotInstalled as e: missing[name] = str(e)
    limit = stack.enter_context(process(peers, "limit", folder))
    first_line(limit)

    def inside(load: str, seconds: float) -> dict:
        print(load.split()[0], seconds, file=limit.stdin, flush=True)
        return json.loads(limit.stdout.readline())
    return {**found, INSIDE: inside}, missing


def measured(folder: Path, repeats: int, seconds: float, clients: tuple[int, ...] = CLIENTS) -> Load:
    """All candidates in turns; each round starts with another one, and the first does not count."""
    twin = output(HERE / "serving_peers.py", "export", folder).splitlines()[-1]
    loads = [f"{n} client{'s' * (n > 1)}" for n in clients]
    with ExitStack() as stack:
        asked, missing = start(stack, folder)
        each = {name: ["1 row", "64 rows"] if name == INSIDE else loads for name in asked}
        found: dict[str, dict[str, list[dict]]] = {name: {load: [] for load in each[name]} for name in asked}
        names = list(asked)
        for k in range(repeats + 1):
            for name in names[k % len(names):] + names[:k % len(names)]:
                for load in each[name]:
                    progress(f"{name}, {load}, {k} of {repeats}")
                    one = asked[name](load, seconds if k else min(seconds, 0.5))
                    if k: found[name][load].append(one)
                    time.sleep(0.05)
        progress("")
    how = "ONNX twin accepted" if twin == "twin" else f"no ONNX twin ({twin})"
    title = f"7 columns, 2 of them texts, one row a request, {how}; {seconds:g} s each, median of {repeats}"
    return Load(title, found, missing)


def measure(folder: Path, repeats: int) -> list[Load]:
    """For `make bench`."""
    return [measured(folder, repeats, 2.0)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, and no more")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as place:
        print(measured(Path(place), 1 if given.quick else given.repeats, 0.5 if given.quick else 2.0).table())
