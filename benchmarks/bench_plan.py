"""Plan: what would run in a pipeline of 1,000 stages that is up to date, whole process."""
from collections.abc import Iterator
from pathlib import Path

from harness import PEERS, Comparison, command, compare, first, ours
from toys import QUIET, chain, dvc_folder, mlnb_project

STAGES = 1000


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
        records[name] = {"stage": name, "status": "ran", "fingerprint": decision.fingerprint, "parts": decision.parts, "scraps": {"v": scrap},
                         "notebook": stages[name].path.name, "run": "20260101-000000-0000", "attempts": 1, "seconds": 1.0, "error": None}
        planner.store.put_result(decision.fingerprint, records[name])


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """One comparison; DVC has executed its `echo` stages."""
    graph = chain(STAGES)
    mine, echo = mlnb_project(folder/"mlnb", graph), dvc_folder(folder/"dvc", graph)
    give_results(mine)
    dvc = PEERS["dvc"].program("dvc")
    yield compare(f"plan of {STAGES:,} stages", {
        "mlnb run --dry-run": command([ours("mlnb"), "run", "--dry-run"], mine, check=lambda out: out.count("would-skip") == STAGES),
        "dvc repro --dry": first(lambda: [command(words, echo, **QUIET)() for words in ([dvc, "init", "--no-scm", "-q"], [dvc, "repro", "-q"])],
                                 command([dvc, "repro", "--dry"], echo, **QUIET)),
    }, repeats)
