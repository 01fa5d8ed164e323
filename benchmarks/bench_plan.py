"""Plan: what would run in a pipeline of 1,000 stages that is up to date, whole process."""

from collections.abc import Iterator
from pathlib import Path

from harness import PEERS, Comparison, command, compare, first, ours
from toys import QUIET, chain, dvc_folder, mlnb_project


def give_results(root: Path) -> None:
    """Put a result for every stage into the store, as if all had run; executing them is not what is measured."""
    from mlnb.pipeline.assign import assign
    from mlnb.pipeline.graph import build_graph
    from mlnb.pipeline.plan import Planner
    from mlnb.pipeline.stage import read_pipeline
    from mlnb.settings import find_project

    where = find_project(root)
    stages = read_pipeline(where, "toy")
    planner = Planner(where, build_graph(stages), assign(stages, [], None))
    records: dict[str, dict] = {}
    for i, name in enumerate(planner.graph.order):
        decision = planner.decide(name, records)
        scrap = {"name": "v", "encoder": "json", "data": i + 1, "digest": f"{i:064x}"}
        records[name] = {
            "stage": name,
            "status": "ran",
            "fingerprint": decision.fingerprint,
            "parts": decision.parts,
            "scraps": {"v": scrap},
            "notebook": stages[name].path.name,
            "run": "20260101-000000-0000",
            "attempts": 1,
            "seconds": 1.0,
            "error": None,
        }
        planner.store.put_result(decision.fingerprint, records[name])


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """Two comparisons; DVC gets a hundred stages, because it takes half a second to execute each of its `echo`s."""
    dvc = PEERS["dvc"].program("dvc")
    for count in (100, 1000):
        mine = mlnb_project(folder / f"mlnb-{count}", chain(count))
        give_results(mine)
        jobs = {
            "mlnb run --dry-run": command(
                [ours("mlnb"), "run", "--dry-run"], mine, check=lambda out, n=count: out.count("would-skip") == n
            ),
            "python -c pass": command([ours("python"), "-c", "pass"], folder),
        }
        if count == 100:
            echo = dvc_folder(folder / "dvc", chain(count))
            steps = [
                command([dvc, *words], echo, **QUIET) for words in (["init", "--no-scm", "-q"], ["repro", "-q"])
            ]
            jobs["dvc repro --dry"] = first(
                lambda steps=steps: [step() for step in steps], command([dvc, "repro", "--dry"], echo, **QUIET)
            )
        yield compare(f"plan of {count:,} stages", jobs, repeats)
