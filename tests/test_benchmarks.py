"""The harness of the benchmarks: turns, medians and ratios; no test here asserts a time."""
import importlib
import sys
from pathlib import Path

import house
import pytest

sys.path.insert(0, str(house.ROOT/"benchmarks"))
harness = importlib.import_module("harness")
run = importlib.import_module("run")


def test_candidates_take_turns():
    """Each round starts with another one, and the first round does not count."""
    calls = []
    result = harness.compare("t", {n: lambda n=n: calls.append(n) for n in "abc"}, repeats=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert [len(t) for t in result.seconds.values()] == [3, 3, 3]


def test_ratios_are_of_medians():
    """One slow round changes nothing."""
    result = harness.Comparison("t", {"mlnb": [1.0, 1.0, 50.0], "peer": [3.0, 3.0, 2.0]}, {"gone": "no registry"})
    assert result.ratio("peer") == 3.0 and result.ratio("mlnb") == 1.0
    assert result.to_json()["candidates"]["mlnb"]["largest"] == 50.0
    assert "| gone | not installed | no registry | |" in result.table()


def test_a_missing_peer_does_not_stop_the_others(tmp_path):
    """It is named in the table."""
    def absent():
        raise harness.NotInstalled("no registry")
    result = harness.compare("t", {"mlnb": lambda: None, "peer": absent}, repeats=1)
    assert result.missing == {"peer": "no registry"} and list(result.seconds) == ["mlnb"]


def test_a_job_that_fails_is_not_timed(tmp_path):
    """Neither one that ends with an error, nor one whose result is wrong."""
    python = Path(sys.executable)
    with pytest.raises(RuntimeError, match="ended with 3"): harness.command([python, "-c", "exit(3)"], tmp_path)()
    with pytest.raises(RuntimeError, match="ended with 0"):
        harness.command([python, "-c", "print(1)"], tmp_path, check=lambda out: out == "2\n")()
    assert harness.command([python, "-c", "print(2)"], tmp_path, check=lambda out: out == "2\n")() == "2\n"


def test_peers_are_pinned():
    """A ratio means the same tomorrow."""
    assert all("==" in r for peer in harness.PEERS.values() for r in peer.requirements)


def test_every_benchmark_can_be_asked_for(capsys):
    """Each has a title and a `measure`; a name that is none is an error that lists those that are."""
    found = sorted((house.ROOT/"benchmarks").glob("bench_*.py"))
    assert found
    for path in found:
        module = importlib.import_module(path.stem)
        assert module.__doc__ and callable(module.measure), path.name
    assert run.main(["--only", "nonsense"]) == 2
    assert found[0].stem.removeprefix("bench_") in capsys.readouterr().err
