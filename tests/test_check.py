"""All problems at once, each with a place and a cure."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notebooks import write_notebook, write_project

from mlnb.errors import NotebookError
from mlnb.pipeline.check import PROJECT_RULES, RULES, check, check_stages, problems_text, refuse
from mlnb.pipeline.draw import LOOKS, graph_svg, graph_text
from mlnb.pipeline.graph import build_graph
from mlnb.pipeline.notebook import Problem
from mlnb.pipeline.stage import read_pipeline
from mlnb.settings import find_project

GLUE = "from mlnb import glue\nglue('out', 1)"


def found(root):
    return [(p.notebook, p.cell, p.line, p.rule, p.level) for p in check(find_project(root), "main")]


def uses(*names, glue=True):
    return [
        "from mlnb import ref, glue\n" + "\n".join(f"ref('{n}')" for n in names) + ("\nglue('out', 1)" if glue else "")
    ]


def test_a_sound_pipeline_has_no_problems(tmp_path):
    root = write_project(tmp_path, a=[GLUE], b=uses("a.out"), c=["#| when: b.out\n#| after: a"])
    assert found(root) == [] and problems_text([]) == "no problems"


def test_every_mistake_is_reported_at_once(tmp_path):
    root = write_project(
        tmp_path,
        a=[GLUE, "def f(): ..."],
        b=uses("a.uot", "aa.out"),
        c=["#| when: z.ok\n#| after: y", "x = ("],
        d=uses("e.out"),
        e=uses("d.out"),
        f=["from mlnb import ref\nref(x)", "#| timeout: never"],
    )
    write_notebook(
        root / "nbs/stages/main/90_a.ipynb", [("q: int = 'x'", {"tags": ["parameters"]})], parameters="p: int = 0.5"
    )
    assert found(root) == [
        ("10_a.ipynb", 2, 1, "definition", "warning"),
        ("20_b.ipynb", 1, 2, "missing-scrap", "error"),
        ("20_b.ipynb", 1, 3, "missing-stage", "error"),
        ("30_c.ipynb", 1, 1, "missing-stage", "error"),
        ("30_c.ipynb", 1, 2, "missing-stage", "error"),
        ("30_c.ipynb", 2, 1, "syntax", "error"),
        ("50_e.ipynb", 1, 2, "cycle", "error"),
        ("60_f.ipynb", 1, 2, "computed-ref", "error"),
        ("60_f.ipynb", 2, 1, "directive", "error"),
        ("90_a.ipynb", -1, 0, "duplicate-name", "error"),
        ("90_a.ipynb", 0, 1, "default", "error"),
        ("90_a.ipynb", 1, 1, "parameters-cell", "error"),
    ]
    assert all(p.cure or p.rule == "syntax" for p in check(find_project(root), "main"))


@pytest.mark.parametrize(
    "upstream", [["from mlnb import glue\nglue(name, 1)"], ["x = ("], ["import scrapbook as sb\nsb.glue('any', 1)"]]
)
def test_no_scrap_is_missed_where_it_may_exist(tmp_path, upstream):
    assert "missing-scrap" not in [
        f[3] for f in found(write_project(tmp_path, a=upstream, b=uses("a.any", glue=False)))
    ]


def test_a_long_cycle_is_shown_as_its_path(tmp_path):
    root = write_project(tmp_path, a=uses("c.out"), b=uses("a.out"), c=uses("b.out"), d=uses("d.out"))
    told = [p.message for p in check(find_project(root), "main")]
    assert told == ["these stages wait for each other: a -> b -> c -> a", "it waits for itself: d -> d"]


def test_kernels_resources_and_sources_are_looked_up(tmp_path):
    root = write_project(
        tmp_path,
        a=["#| kernel: nowhere\n#| resources: gpu=2 memory=4GB", "from mlnb import source\nsource('data/*.csv')"],
    )
    (root / "settings.ini").write_text("[pipeline]\ngpus = 1\nmemory = 2GB\n")
    assert found(root) == [
        ("10_a.ipynb", 1, 1, "kernel", "error"),
        ("10_a.ipynb", 1, 2, "resources", "error"),
        ("10_a.ipynb", 1, 2, "resources", "error"),
        ("10_a.ipynb", 2, 2, "source", "warning"),
    ]
    (root / "data").mkdir()
    (root / "data/x.csv").touch()
    assert "source" not in [f[3] for f in found(root)]


def test_a_pipeline_of_drafts_has_no_stage(tmp_path):
    root = write_project(tmp_path)
    write_notebook(root / "nbs/stages/main/_draft.ipynb", [])
    assert [f[3] for f in found(root)] == ["no-stage"]


def test_refuse_raises_for_errors_only():
    warning = Problem("a.ipynb", 0, 1, "definition", "m", "warning")
    refuse([warning])
    refuse([])
    with pytest.raises(NotebookError) as e:
        refuse([warning, Problem("b.ipynb", 1, 2, "x", "this is wrong", "error", "mend it")])
    assert "b.ipynb" in str(e.value) and "cell 2, line 2" in str(e.value) and "a.ipynb" not in str(e.value)


def test_every_rule_says_what_it_is_about():
    assert all(rule.__doc__ for rule in {**RULES, **PROJECT_RULES}.values())


@given(
    st.lists(
        st.builds(
            Problem,
            st.sampled_from(["10_a.ipynb", "20_b.ipynb"]),
            st.integers(-1, 40),
            st.integers(0, 99),
            st.just("rule"),
            st.text(alphabet="ab ", min_size=1),
            st.sampled_from(["error", "warning"]),
            st.text(alphabet="xy "),
        )
    )
)
def test_problems_fit_eighty_columns_where_words_do(problems):
    lines = problems_text(problems).split("\n")
    assert all(len(line) <= 80 for line in lines)
    if problems:
        assert lines[-1].split()[0] == str(sum(p.level == "error" for p in problems))


refs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde"), st.sampled_from(["out", "uot"])), max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(refs)
def test_a_pipeline_without_errors_builds_a_graph_and_one_with_errors_does_not_pass(tmp_path, wanted):
    cells = {n: uses(*[f"{u}.{s}" for d, u, s in wanted if d == n]) for n in "abcd"}
    stages = read_pipeline(find_project(write_project(tmp_path, **cells)), "main")
    rules = {p.rule for p in check_stages(stages)}
    assert ("missing-stage" in rules) == any(u == "e" for _, u, _ in wanted)
    assert ("missing-scrap" in rules) == any(s == "uot" and u != "e" for _, u, s in wanted)
    if rules & {"missing-stage", "cycle"}:
        return
    graph = build_graph(stages)
    assert set(graph_text(graph, {}).replace("unknown", "").split()) >= set("abcd")
    assert graph_svg(graph, dict.fromkeys("abcd", "ran")).count("<title>") == 4 + 1


@pytest.mark.parametrize("state", LOOKS)
def test_each_state_can_be_drawn(tmp_path, state):
    graph = build_graph(read_pipeline(find_project(write_project(tmp_path, a=[GLUE], b=uses("a.out"))), "main"))
    assert LOOKS[state].mark in graph_text(graph, {"a": state}) and LOOKS[state].fill in graph_svg(graph, {"a": state})


def test_problems_are_json(tmp_path):
    root = write_project(tmp_path, a=["x = ("])
    record = json.loads(json.dumps([p._asdict() for p in check(find_project(root), "main")]))
    assert (
        set(record[0]) == {"notebook", "cell", "line", "rule", "message", "level", "cure"}
        and str(os.sep) not in record[0]["notebook"]
    )
