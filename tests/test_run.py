"""Whole runs through the command line: what runs, what is skipped, what is said."""

import json
import time

import pytest
from projects import ProjectFolder, statuses

LOAD = ["parameters: n: int = 3  # at least 1", "from mlnb import glue, ref", "glue('numbers', list(range(n)))"]
TOTAL = ["from mlnb import glue, ref", "total = sum(ref('load.numbers'))\nglue('total', total)"]
REPORT = ["from mlnb import glue, ref", "glue('text', f\"the total is {ref('total.total')}\")"]


@pytest.fixture
def chain(tmp_path):
    return ProjectFolder(tmp_path / "a project", {"10_load": LOAD, "20_total": TOTAL, "30_report": REPORT})


def test_a_second_run_does_nothing(chain):
    first = chain.run()
    assert statuses(first) == {"load": "ran", "total": "ran", "report": "ran"} and first["status"] == "done"
    second = chain.run()
    assert set(statuses(second).values()) == {"skipped"} and second["run"] != first["run"]
    assert "nothing to do" in chain.mlnb("run", code=0).out
    assert [s["fingerprint"] for s in first["stages"].values()] == [s["fingerprint"] for s in second["stages"].values()]


def test_json_has_the_documented_form(chain):
    document = chain.run()
    assert set(document) == {"format", "run", "pipeline", "status", "stages", "seconds"}
    for stage in document["stages"].values():
        assert (
            set(stage) == {"status", "seconds", "fingerprint", "attempts"}
            and stage["attempts"] == 1
            and stage["seconds"] > 0
        )
    record = chain.mlnb("show", document["run"], "--json", code=0).json
    assert record["stages"]["total"]["scraps"]["total"]["data"] == 3
    assert [r["run"] for r in chain.mlnb("runs", "--json", code=0).json] == [document["run"]]


def test_dry_run_starts_nothing(chain):
    document = chain.run("--dry-run")
    assert set(statuses(document).values()) == {"would-run"} and not list(chain.runs.glob("2*"))
    chain.run()
    assert set(statuses(chain.run("--dry-run")).values()) == {"would-skip"}
    assert statuses(chain.run("--dry-run", "--force", "total")) == {
        "load": "would-skip",
        "total": "would-run",
        "report": "would-run",
    }


def test_the_source_is_never_written(chain):
    before = {n: chain.path(n).read_bytes() for n in ("10_load", "20_total", "30_report")}
    chain.run("-p", "n=5")
    assert before == {n: chain.path(n).read_bytes() for n in before}
    assert {p.name for p in chain.root.rglob("*") if p.is_file() and "runs" not in p.parts} == {
        "settings.ini",
        *(f"{n}.ipynb" for n in before),
    }


def test_prose_comments_and_formatting_run_nothing(chain):
    chain.run()
    chain.stage(
        "20_total",
        [
            "# %% [markdown]\n# new prose",
            "from mlnb import glue, ref  # a comment",
            "total = sum(\n    ref('load.numbers')\n)\nglue('total', total)",
        ],
    )
    assert set(statuses(chain.run()).values()) == {"skipped"}


def test_work_stops_where_the_difference_stops(chain):
    chain.run()
    chain.edit("20_total", "sum(ref('load.numbers'))", "0 + sum(ref('load.numbers'))")
    assert statuses(chain.run()) == {"load": "skipped", "total": "ran", "report": "skipped"}
    chain.edit("20_total", "0 + sum", "1 + sum")
    assert statuses(chain.run()) == {"load": "skipped", "total": "ran", "report": "ran"}


def test_parameters_change_results_and_come_back(chain):
    chain.run()
    assert set(statuses(chain.run("-p", "load.n=4")).values()) == {"ran"}
    assert chain.mlnb("show", "--json").json["stages"]["total"]["scraps"]["total"]["data"] == 6
    assert set(statuses(chain.run("-p", "n=3")).values()) == {"skipped"}
    file = chain.root / "values.yaml"
    file.write_text("load:\n  n: 4\n")
    assert set(statuses(chain.run("-P", str(file))).values()) == {"skipped"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("m=4", "one of: n"), ("load.n=many", "whole number"), ("load.n=0", "at least 1"), ("lod.n=1", "load")],
)
def test_wrong_parameters_are_found_before_anything_runs(chain, word, expected):
    said = chain.mlnb("run", "-p", word, code=2)
    assert expected in said.err and not said.out and "Traceback" not in said.err
    assert not list(chain.runs.glob("2*"))


def test_selection(chain):
    assert "load" in chain.mlnb("run", "--select", "total", code=2).err
    assert statuses(chain.run("--select", "+total")) == {"load": "ran", "total": "ran"}
    assert statuses(chain.run("--select", "report")) == {"report": "ran"}
    assert statuses(chain.run("--force", "total", "--exclude", "report")) == {"load": "skipped", "total": "ran"}
    assert "did you mean" in chain.mlnb("run", "--select", "totl", code=2).err
    chain.edit("20_total", "sum(", "2 * sum(")
    assert chain.mlnb("ls", "--select", "state:modified+", "--json", code=0).json == ["total", "report"]


def test_a_gate_stops_what_stands_behind_it(tmp_path):
    project = ProjectFolder(
        tmp_path,
        {
            "10_judge": ["parameters: good: bool = False", "from mlnb import glue", "glue('blessed', good)"],
            "20_ship": ["#| when: judge.blessed\nfrom mlnb import glue\nglue('shipped', True)"],
            "30_tell": ["from mlnb import glue, ref\nglue('x', ref('ship.shipped'))"],
            "40_other": ["from mlnb import glue\nglue('y', 1)"],
        },
    )
    document = project.run(code=3)
    assert document["status"] == "stopped"
    assert statuses(document) == {"judge": "ran", "ship": "stopped", "tell": "stopped", "other": "ran"}
    assert "judge.blessed is False" in project.mlnb("run", code=3).out
    assert statuses(project.run("-p", "good=true")) == {
        "judge": "ran",
        "ship": "ran",
        "tell": "ran",
        "other": "skipped",
    }


def test_plain_papermill_notebooks_are_stages(tmp_path):
    project = ProjectFolder(
        tmp_path,
        {
            "10_plain": [
                "parameters: lr = 0.5",
                "import scrapbook as sb",
                "sb.glue('rate', lr)\nsb.glue('word', 'hello')\nsb.glue('all', {'a': [1, 2]})",
            ],
            "20_reads": [
                "from mlnb import glue, ref\nglue('got', [ref('plain.rate'), ref('plain.word'), ref('plain.all')])"
            ],
        },
    )
    project.run("-p", "plain.lr=0.25")
    assert project.mlnb("show", "--json").json["stages"]["reads"]["scraps"]["got"]["data"] == [
        0.25,
        "hello",
        {"a": [1, 2]},
    ]


def test_modules_of_the_project_count_by_definition(tmp_path):
    project = ProjectFolder(
        tmp_path, {"10_use": ["from mlnb import glue\nfrom features import used\nglue('x', used(2))"]}
    )
    module = project.root / "features.py"
    module.write_text(
        "def used(x):\n    return helper(x)\n\ndef helper(x):\n    return x + 1\n\ndef unrelated():\n    return 0\n"
    )
    assert statuses(project.run()) == {"use": "ran"}
    module.write_text(
        module.read_text().replace("return 0", "return 99").replace("return x + 1", "return x + 1  # the same")
    )
    assert statuses(project.run()) == {"use": "skipped"}
    module.write_text(module.read_text().replace("return x + 1", "return x + 2"))
    why = project.mlnb("why", "--json", code=0).json["stages"]["use"]
    assert why["stale"] and [r["part"] for r in why["reasons"]] == ["module"] and "helper" in why["reasons"][0]["what"]
    assert statuses(project.run()) == {"use": "ran"}


def test_source_files_count_by_content(tmp_path):
    project = ProjectFolder(
        tmp_path, {"10_read": ["from mlnb import glue, source\nglue('text', source('data/x.txt').read_text())"]}
    )
    assert "data/x.txt" in project.mlnb("run", code=2).err + project.mlnb("run").out
    (project.root / "data").mkdir()
    file = project.root / "data" / "x.txt"
    file.write_text("one")
    project.run()
    time.sleep(0.01)
    file.write_text("one")
    assert statuses(project.run()) == {"read": "skipped"}
    file.write_text("two")
    why = project.mlnb("why", "read", "--json").json["stages"]["read"]["reasons"]
    assert [r["part"] for r in why] == ["source"]
    assert statuses(project.run()) == {"read": "ran"}


def test_independent_stages_run_at_once(tmp_path):
    meet = "from pathlib import Path\nimport time\nPath('{mine}').touch()\nend = time.time() + 60\nwhile not Path('{other}').exists() and time.time() < end: time.sleep(0.05)\nassert Path('{other}').exists()"
    project = ProjectFolder(
        tmp_path,
        {"10_a": [meet.format(mine="a.flag", other="b.flag")], "20_b": [meet.format(mine="b.flag", other="a.flag")]},
    )
    assert statuses(project.run("-j", "2")) == {"a": "ran", "b": "ran"}


def test_declared_memory_keeps_stages_apart(tmp_path):
    alone = "#| resources: memory=3GB\nfrom pathlib import Path\nimport time\nPath('busy').mkdir()\ntime.sleep(0.5)\nPath('busy').rmdir()"
    project = ProjectFolder(
        tmp_path, {"10_a": [alone], "20_b": [alone + "\n1"]}, "[pipeline]\nmemory = 5GB\n[tracking]\nmode = off\n"
    )
    assert statuses(project.run("-j", "2")) == {"a": "ran", "b": "ran"}
    assert "declares memory=3GB" in project.mlnb("run", "--force", "a", MLNB_PIPELINE_MEMORY="1GB", code=2).err


def test_secrets_reach_the_stage_and_no_file(tmp_path):
    secret = 's3cr3t-Va"lue\\é'
    project = ProjectFolder(
        tmp_path,
        {
            "10_call": [
                "parameters: from mlnb import Secret\nkey: Secret = Secret('API_KEY')",
                "from mlnb import glue",
                "print('the key is', str(key))\nimport os\nos.system('echo $API_KEY')\nglue('length', len(str(key)))",
                "glue('said', f'key={key!s}')",
                "raise ValueError(str(key))",
            ]
        },
    )
    said = project.mlnb("run", code=1, API_KEY=secret)
    stored = b"".join(p.read_bytes() for p in project.runs.rglob("*") if p.is_file())
    for form in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        assert form.encode() not in stored + said.out.encode() + said.err.encode()
    assert b"the key is ***" in stored
    assert "API_KEY" in project.mlnb("run", code=2).err
    assert "environment" in project.mlnb("run", "-p", "key=x", code=2, API_KEY=secret).err


def test_runs_can_be_moved(chain, tmp_path):
    chain.run(MLNB_RUNS=str(tmp_path / "elsewhere"))
    assert not chain.runs.exists() and len(list((tmp_path / "elsewhere").glob("2*"))) == 1


def test_outside_a_project_the_way_in_is_told(tmp_path):
    project = ProjectFolder(tmp_path / "x", {})
    (project.root / "settings.ini").unlink()
    assert "mlnb new" in project.mlnb("run", code=2).err


def test_dates_and_lists_arrive_as_such(tmp_path):
    project = ProjectFolder(
        tmp_path,
        {
            "10_x": [
                "parameters: from datetime import date\nday: date = date(2026, 1, 31)\nnames: list[str] = ['a']\nrate: float | None = None",
                "import datetime\nfrom mlnb import glue\nassert isinstance(day, datetime.date)\nglue('got', [(day + datetime.timedelta(days=1)).isoformat(), names, rate])",
            ]
        },
    )
    project.run("-p", "day=2026-02-28", "-p", "names=x,y", "-p", "rate=0.5")
    assert project.mlnb("show", "--json").json["stages"]["x"]["scraps"]["got"]["data"] == [
        "2026-03-01",
        ["x", "y"],
        0.5,
    ]


def test_gpu_slots_are_shared_out(tmp_path):
    see = "#| resources: gpu=1\nimport os, time\nfrom pathlib import Path\nfrom mlnb import glue\nPath('gpu').mkdir()\ntime.sleep(0.3)\nPath('gpu').rmdir()\nglue('sees', os.environ['CUDA_VISIBLE_DEVICES'])"
    project = ProjectFolder(
        tmp_path,
        {
            "10_a": [see],
            "20_b": [see + "\n1"],
            "30_c": [see.splitlines()[1] + "\nfrom mlnb import glue\nglue('sees', os.environ['CUDA_VISIBLE_DEVICES'])"],
        },
    )
    assert "gpu=1, there is 0" in project.mlnb("run", code=2).err
    project.run("-j", "2", MLNB_PIPELINE_GPUS="1")
    stages = project.mlnb("show", "--json").json["stages"]
    assert {n: s["scraps"]["sees"]["data"] for n, s in stages.items()} == {"a": "0", "b": "0", "c": ""}


def test_why_against_an_older_run(chain):
    first = chain.run()["run"]
    chain.run("-p", "load.n=4")
    reasons = chain.mlnb("why", "load", "--against", first, "-p", "load.n=5", "--json", code=0).json["stages"]["load"][
        "reasons"
    ]
    assert reasons == [{"part": "parameter", "what": "n", "old": 3, "new": 5}]
    assert "n: 3 -> 5" in chain.mlnb("why", "load", "--against", first, "-p", "load.n=5").out
    chain.edit("20_total", "sum(", "3 * sum(")
    text = chain.mlnb("why", "total").out
    assert "-" in text and "+" in text and "3 * sum" in text
