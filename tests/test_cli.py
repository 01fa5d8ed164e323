"""The command line: help, JSON, exit codes, completion, and what it imports."""

import json
import subprocess
import sys

import pytest
from projects import ProjectFolder

from mlnb.cli import COMMANDS, parser

STAGES = {
    "10_load": [
        "parameters: n: int = 3  # how many; at least 1",
        "from mlnb import glue\nglue('numbers', list(range(n)))",
    ],
    "20_total": ["from mlnb import glue, ref\nglue('total', {'sum': sum(ref('load.numbers'))})"],
    "30_page": [
        "import tempfile\nfrom pathlib import Path\nfrom mlnb import glue, ref\nref('total.total')\n"
        "page = Path(tempfile.mkdtemp()) / 'page.html'\npage.write_text('<p>é</p>')\nglue('page', page)"
    ],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = ProjectFolder(tmp_path_factory.mktemp("cli") / "project", STAGES)
    project.run()
    return project


READING = [
    ["check"],
    ["params"],
    ["ls"],
    ["graph"],
    ["why"],
    ["runs"],
    ["show"],
    ["status"],
    ["lineage", "total.total"],
    ["get", "total.total"],
    ["settings"],
    ["gc", "--dry-run"],
    ["run", "--dry-run"],
]


@pytest.mark.parametrize("words", READING, ids=lambda w: w[0])
def test_json_is_one_document_and_text_fits_80_columns(project, words):
    said = project.mlnb(*words, "--json", code=0)
    json.loads(said.out)
    text = project.mlnb(*words, code=0).out
    assert text.strip() and max(map(len, text.splitlines())) <= 100
    assert words[0] == "get" or not text.lstrip().startswith("{")


@pytest.mark.parametrize("words", READING, ids=lambda w: w[0])
def test_commands_that_run_nothing_stay_light(project, words):
    code = (
        "import sys\nfrom mlnb.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = [m for m in ('tensorflow', 'pandas', 'numpy', 'papermill', 'nbformat', 'jsonschema') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)\nsys.exit(code or bool(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_run_with_nothing_to_do_stays_light(project):
    code = (
        "import sys\nfrom mlnb.cli import main\ncode = main(['run'])\n"
        "heavy = [m for m in ('tensorflow', 'pandas', 'numpy', 'papermill', 'nbformat', 'jsonschema', 'rich') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)\nsys.exit(code or bool(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env=project.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_command_has_help(project):
    listed = project.mlnb("--help", code=0).out
    for name, (_, text, _) in COMMANDS.items():
        assert (name in listed) == (name != "run-stage") or name == "run", name
        assert text[0].upper() + text[1:] in " ".join(project.mlnb(name, "--help", code=0).out.split())


@pytest.mark.parametrize("words", [["nonsense"], ["run", "--nonsense"], ["show", "--js"], []])
def test_wrong_usage_exits_2(project, words):
    said = project.mlnb(*words, code=2)
    assert "usage" in said.err and not said.out


@pytest.mark.parametrize(
    "words",
    [
        ["show", "20200101"],
        ["why", "totl"],
        ["params", "nothing"],
        ["lineage", "total"],
        ["run", "nowhere"],
        ["ls", "--select", "("],
    ],
)
def test_mistakes_exit_2_with_a_cure_and_no_traceback(project, words):
    said = project.mlnb(*words, code=1 if words[0] == "lineage" else 2)
    assert said.err.startswith("mlnb: ") and "Traceback" not in said.err and not said.out


def test_words_complete(project):
    def complete(line):
        done = subprocess.run(
            [sys.executable, "-m", "mlnb"],
            cwd=project.root,
            capture_output=True,
            text=True,
            env=project.environment(
                _ARGCOMPLETE="1",
                COMP_LINE=line,
                COMP_POINT=str(len(line)),
                _ARGCOMPLETE_STDOUT_FILENAME=str(project.root / "out"),
                _ARGCOMPLETE_IFS="\n",
            ),
        )
        return (project.root / "out").read_text().split() if (project.root / "out").exists() else done.stdout.split()

    assert {"run", "runs"} <= set(complete("mlnb ru"))
    assert complete("mlnb why to") == ["total"]
    assert "complete" in project.mlnb("completion", "bash", code=0).out


def test_the_parser_knows_every_command():
    for name in COMMANDS:
        assert name in parser(name)._subparsers._group_actions[0].choices


def test_graph_writes_a_picture(project):
    project.mlnb("graph", "--svg", "x.svg", code=0)
    assert (project.root / "x.svg").read_text().lstrip().startswith("<svg")


def test_lineage_leads_back(project):
    node = project.mlnb("lineage", "total.total", "--json", code=0).json
    assert node["upstream"][0]["scrap"] == "load.numbers" and node["upstream"][0]["parameters"] == {"n": 3}


def test_get_writes_what_people_open(project):
    assert json.loads(project.mlnb("get", "total.total", code=0).out) == {"sum": 3}
    assert project.mlnb("get", "page.page", code=0).out.strip() == "page.page -> page.html"
    assert (project.root / "page.html").read_text() == "<p>é</p>"
    said = project.mlnb("get", "page.page", "-o", "deep/er/x.html", "--json", code=0).json
    assert said["file"] == "deep/er/x.html" and (project.root / "deep/er/x.html").is_file()
    wrong = project.mlnb("get", "total.totl", code=1).err
    assert "total.total" in wrong and "Traceback" not in wrong


def test_gc_keeps_what_kept_runs_need(project):
    for n in ("4", "5"):
        project.run("-p", f"n={n}")
    assert "removed" in project.mlnb("gc", "--keep", "1", code=0).out
    assert len(project.mlnb("runs", "--json").json) == 1
    assert {s["status"] for s in project.run("-p", "n=5")["stages"].values()} == {"skipped"}
    assert {s["status"] for s in project.run("-p", "n=4")["stages"].values()} == {"ran"}
