"""Run the benchmarks of this folder and print their tables: `make bench ARGS="--only NAME --repeats 9"`."""
import argparse
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def machine() -> str:
    """What the numbers were taken on, in words that name no host."""
    cpus = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", cpus.read_text() if cpus.exists() else "", flags=re.MULTILINE)
    return f"{os.cpu_count()} cores, {named[1] if named else platform.machine()}, Python {platform.python_version()}"


def main(arguments: list[str]) -> int:
    """Measure what was asked for; 2 when there is no such benchmark."""
    known = {p.stem.removeprefix("bench_"): p for p in sorted(HERE.glob("bench_*.py"))}
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of: {', '.join(known) or 'none yet'}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.only or []) - set(known))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known) or 'none yet'}", file=sys.stderr)
        return 2
    results = []
    print(f"{machine()}\n")
    for name in given.only or known:
        module, folder = importlib.import_module(f"bench_{name}"), Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
        print(f"## {(module.__doc__ or name).strip()}\n", flush=True)
        try:
            for comparison in module.measure(folder, given.repeats):
                print(comparison.table() + "\n", flush=True)
                results.append({"benchmark": name, **comparison.to_json()})
        finally: shutil.rmtree(folder, ignore_errors=True)
    latest = Path(os.environ.get("MLNB_RUNS", HERE.parent/"runs"))/"bench"/"latest.json"
    latest.parent.mkdir(parents=True, exist_ok=True)
    latest.write_text(json.dumps({"format": 1, "machine": machine(), "results": results}, indent=1) + "\n")
    print(f"also in {os.path.relpath(latest)}", file=sys.stderr)
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
