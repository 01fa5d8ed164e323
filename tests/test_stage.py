"""Reading stages: whatever is in the file, nothing is raised, and what does not count does not show."""

import ast
import json
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notebooks import write_notebook, write_project

from mlnb.errors import NotebookError
from mlnb.pipeline.notebook import normal_source, parse_python, python_source, read_notebook
from mlnb.pipeline.stage import Stage, read_pipeline, read_stage, stage_from_json, stage_to_json
from mlnb.settings import find_project

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
fragments = st.sampled_from(
    [
        "%time x = ref('a.b')",
        "!ls {x}",
        "%%bash\necho",
        "x = !ls",
        "frame?",
        "#| when: a.b",
        "#| timeout: 5m",
        "#| after: ,",
        "from mlnb import ref, glue as g",
        "ref('a.b')",
        "ref(f'{x}.b')",
        "g('n', 1)",
        "sb.glue(n, 1)",
        "source('x')",
        "source(p)",
        "def f(x): return ref('c.d')",
        "class A: pass",
        "p: int = 5  # at least 1",
        "'''",
        "(",
        "if x:",
        "    pass",
        "",
        "\\",
        "\x0c",
        "import mlnb as m; m.ref('a')",
        "ref",
        "del ref",
        "async with x: await y",
        "p: Literal = 1",
        "# %%",
        "é = '☃'",
        "\ud800",
    ]
)
sources = st.lists(fragments | st.text(max_size=20), max_size=6).map("\n".join)


def stage_of(tmp_path, *cells, parameters="", name="10_a.ipynb", **kw):
    return read_stage(write_notebook(tmp_path / name, list(cells), parameters=parameters, **kw), "p")


def rules(stage):
    return [p.rule for p in stage.problems]


@quick
@given(st.lists(sources, max_size=4), sources)
def test_any_notebook_is_a_stage(tmp_path, cells, parameters):
    stage = stage_of(tmp_path, *cells, parameters=parameters)
    assert stage.name == "a" and all(p.notebook == "10_a.ipynb" and p.message for p in stage.problems)
    assert all(-1 <= p.cell < stage.cells for p in stage.problems)
    assert stage_from_json(json.loads(json.dumps(stage_to_json(stage)))) == stage


@quick
@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda o: (
            st.lists(o)
            | st.dictionaries(
                st.sampled_from(["cells", "metadata", "source", "cell_type", "tags", "kernelspec", "nbformat"]), o
            )
        ),
    ).map(lambda o: json.dumps(o).encode())
)
def test_any_file_is_a_stage_with_a_problem_or_a_notebook(tmp_path, data):
    path = tmp_path / "10_a.ipynb"
    path.write_bytes(data)
    stage = read_stage(path, "p")
    try:
        read_notebook(path)
    except NotebookError:
        assert rules(stage) == ["notebook"]


@given(sources)
def test_magics_keep_the_lines(source):
    assert python_source(source).count("\n") == source.count("\n")


@given(sources)
def test_python_is_left_alone_and_normal_code_is_a_fixed_point(source):
    try:
        parse_python(source)
    except SyntaxError:
        return
    assert python_source(source) == source
    assert normal_source(normal_source(source)) == normal_source(source)


@pytest.mark.parametrize(
    "a,b",
    [
        ("x = 1", "x=1  # one"),
        ("f(a,b)", "f(\n  a,\n  b,\n)"),
        ("x = 'a'", 'x = "a"'),
        ("x = 1\n'''\nold()\n'''", "x = 1"),
        ("%matplotlib inline\nx = 1", "%matplotlib inline\n\nx = 1 # y"),
        ("x = 10", "x = 1_0"),
        ("plot()", "plot();"),
    ],
)
def test_what_does_not_count(tmp_path, a, b):
    assert stage_of(tmp_path, a).code == stage_of(tmp_path, b).code


@pytest.mark.parametrize(
    "a,b",
    [
        ("x = 1", "x = 2"),
        ("%env A=1", "%env A=2"),
        ("%%bash\nls", "%%bash\nls -l"),
        ("!ls", "!ls -l"),
        ("x", "y"),
        ("def f():\n    'text'", "def f():\n    'other'"),
        ("if a:\n    b\nc", "if a:\n    b\n    c"),
        ("x = (", "x = ["),
    ],
)
def test_what_counts(tmp_path, a, b):
    assert stage_of(tmp_path, a).code != stage_of(tmp_path, b).code


def test_prose_tags_outputs_and_parameter_values_do_not_count(tmp_path):
    one = stage_of(
        tmp_path, "# %% [markdown]\nwords", ("x = a", {"tags": ["hide"]}), parameters="a: int = 1  # note\nimport os"
    )
    two = stage_of(tmp_path, "x = a", "# only a comment", "# %% [markdown]\nother", parameters="import os\na: int = 2")
    assert one.code == two.code == ("import os", "x = a")


@pytest.mark.parametrize(
    "cell,found",
    [
        ("from mlnb import ref as r\nr('a.b')", ["a.b"]),
        ("import mlnb\nmlnb.ref('a.b')", ["a.b"]),
        ("import mlnb as m\nm.ref('a.b')", ["a.b"]),
        ("from mlnb import *\nref('a.b')", ["a.b"]),
        ("from mlnb import ref\nf = lambda: {k: ref('a.b') for k in x}", ["a.b"]),
        ("from mlnb import ref\nasync def f():\n    def g(x=ref('a.b')): return [ref('c.d')]", ["a.b", "c.d"]),
        ("from mlnb import ref\n%time x = ref('a.b')", ["a.b"]),
        ("%%time\nfrom mlnb import ref\nref('a.b')", ["a.b"]),
        ("from mlnb import ref\nf'{ref(\"a.b\")}'", ["a.b"]),
        ("from mlnb import ref\nref('a.' 'b')", ["a.b"]),
        ("from docs import ref\nref('a.b')", []),
        ("'ref(\"a.b\")'", []),
        ("%%bash\nref('a.b')", []),
        ("def ref(x): ...\nref('a.b')", []),
        ("def f(ref): return ref('a.b')", []),
        ("from mlnb.pipeline.scraps import ref\nref('a.b.c')", ["a.b.c"]),
        ("x.ref('a.b')", []),
    ],
)
def test_refs_however_written(tmp_path, cell, found):
    stage = stage_of(tmp_path, cell)
    assert [f"{r.stage}.{r.scrap}" for r in stage.refs] == found
    assert not {"computed-ref", "ref-name", "syntax"} & set(rules(stage))


@pytest.mark.parametrize(
    "cell,rule",
    [
        ("from mlnb import ref\nref(f'a.{x}')", "computed-ref"),
        ("from mlnb import ref\nref(x)", "computed-ref"),
        ("from mlnb import ref\nref('a' + '.b')", "computed-ref"),
        ("from mlnb import ref\nmap(ref, x)", "computed-ref"),
        ("from mlnb import ref\nr = ref", "computed-ref"),
        ("from mlnb import ref\nref()", "computed-ref"),
        ("from mlnb import ref\nref('a')", "ref-name"),
        ("from mlnb import ref\nref('a.')", "ref-name"),
        ("from mlnb import ref\nref('a b.c')", "ref-name"),
        ("from mlnb import source\nsource(f'{x}.csv')", "computed-source"),
        ("from mlnb import source\nsource(x)", "computed-source"),
        ("from mlnb import source\nsource('')", "computed-source"),
        ("#| timeout: 5 parsecs", "directive"),
        ("#| tiemout: 5m", "directive"),
        ("x = 1\n#| timeout: 5m", "directive"),
        ("#| resources: memory=lots", "directive"),
        ("#| when: a", "directive"),
        ("def f(): ...", "definition"),
        ("x = ", "syntax"),
    ],
)
def test_a_problem_knows_its_cell(tmp_path, cell, rule):
    stage = stage_of(tmp_path, "# %% [markdown]\n#", cell)
    assert rules(stage) == [rule] and stage.problems[0].cell == 2
    assert stage.problems[0].line == (2 if cell.startswith(("from", "x = 1")) else 1)


@pytest.mark.parametrize(
    "cell,names,computed",
    [
        ("import scrapbook as sb\nsb.glue('a', 1)", ("a",), False),
        ("import scrapbook\nscrapbook.glue('a', 1)", ("a",), False),
        ("from scrapbook import glue\nglue('a', 1); glue('a', 2)", ("a",), False),
        ("from mlnb import glue\nglue(n, 1)", (), True),
        ("from mlnb import glue\nglue(**x)", (), True),
        ("from mlnb import glue\nfor a in b: glue(f'{a}', 1)", (), True),
        ("from mlnb import glue as keep\nkeep(name='a', value=1)", ("a",), False),
        ("x = (", (), True),
    ],
)
def test_glued_names(tmp_path, cell, names, computed):
    stage = stage_of(tmp_path, cell)
    assert (stage.glues, stage.glues_computed) == (names, computed)


def test_parameters_cells(tmp_path):
    assert rules(read_stage(write_notebook(tmp_path / "10_a.ipynb", ["x"]), "p")) == ["parameters-cell"]
    two = stage_of(tmp_path, ("b: int = 1", {"tags": ["parameters"]}), parameters="a: int = 1")
    assert [(p.rule, p.level, p.cell) for p in two.problems] == [("parameters-cell", "error", 1)] and len(
        two.parameters
    ) == 1
    left = stage_of(tmp_path, ("a = 2", {"tags": ["injected-parameters"]}), parameters="a: int = 1")
    assert rules(left) == ["injected-parameters"] and left.code == ()


def test_pip_without_its_percent_sign_is_explained(tmp_path):
    assert stage_of(tmp_path, "pip install polars").problems[0].cure == "write %pip"


def test_another_language_is_text(tmp_path):
    stage = stage_of(tmp_path, "#| after: prepare\nx <- 1", parameters="n <- 5", kernel="ir", language="R")
    assert (stage.language, stage.code, stage.after, stage.problems) == (
        "r",
        ("n <- 5", "#| after: prepare\nx <- 1"),
        ("prepare",),
        (),
    )


def test_the_kernel_of_the_directive_wins_over_settings_and_notebook(tmp_path):
    root = write_project(tmp_path, a=["#| kernel: mine"], b=["x"])
    assert {n: s.kernel for n, s in read_pipeline(find_project(root), "main").items()} == {"a": "mine", "b": "python3"}
    (root / "settings.ini").write_text("[pipeline]\nkernel = ours\n")
    assert {n: s.kernel for n, s in read_pipeline(find_project(root), "main").items()} == {"a": "mine", "b": "ours"}


def test_an_unchanged_pipeline_is_not_parsed_again(tmp_path, monkeypatch):
    root = write_project(tmp_path, a=["x"], b=["y = 1"])
    project = find_project(root)
    time.sleep(0.06)
    first = read_pipeline(project, "main")
    monkeypatch.setattr("mlnb.pipeline.stage.read_stage", lambda *a: pytest.fail("parsed"))
    assert read_pipeline(project, "main") == first and list(first) == ["a", "b"]


def test_an_edit_of_the_same_size_and_time_is_seen(tmp_path):
    root = write_project(tmp_path, a=["y = 1"])
    project, path = find_project(root), root / "nbs/stages/main/10_a.ipynb"
    os.utime(path, ns=(10**18, 10**18))
    time.sleep(0.06)
    assert read_pipeline(project, "main")["a"].code == ("y = 1",)
    path.write_text(path.read_text().replace("y = 1", "y = 2"))
    os.utime(path, ns=(10**18, 10**18))
    assert read_pipeline(project, "main")["a"].code == ("y = 2",)


def test_a_file_that_changed_just_now_is_not_kept_yet(tmp_path):
    root = write_project(tmp_path, a=["x"], b=["y"])
    project, path = find_project(root), root / "nbs/stages/main/10_a.ipynb"
    time.sleep(0.06)
    os.utime(path)
    read_pipeline(project, "main")
    kept = json.loads((root / "runs/cache/stages-main.json").read_text())["stages"]
    assert list(kept) == ["20_b.ipynb"]


def test_the_line_of_a_mistake_behind_a_long_magic_is_right(tmp_path):
    assert stage_of(tmp_path, "!ls \\\n  -l\n%%x\ny = (").problems[0].line == 4


def test_edits_in_quick_succession_are_seen(tmp_path):
    root = write_project(tmp_path, a=["y = 0"])
    project, path = find_project(root), root / "nbs/stages/main/10_a.ipynb"
    for i in range(50):
        text = path.read_text()
        path.write_text(text.replace(f"y = {i % 10}", f"y = {(i + 1) % 10}"))
        assert read_pipeline(project, "main")["a"].code == (f"y = {(i + 1) % 10}",)


@quick
@given(st.data())
def test_a_damaged_cache_is_ignored(tmp_path, data):
    root = write_project(tmp_path / "p", a=["ref('b.c')"], b=["glue('c', 1)"])
    project, cache = find_project(root), root / "runs/cache/stages-main.json"
    time.sleep(0.06)
    right = read_pipeline(project, "main")
    kept = cache.read_bytes()
    cut = data.draw(st.integers(0, len(kept) - 1))
    cache.write_bytes(
        data.draw(
            st.sampled_from(
                [
                    kept[:cut],
                    kept[cut:],
                    kept.replace(b'"refs"', b'"x"'),
                    b"\xff",
                    b'{"stages": []}',
                    kept.replace(b'"key"', b'"k"'),
                    kept.replace(b'"stage"', b'"stage": 1, "s"'),
                ]
            )
        )
    )
    assert read_pipeline(project, "main") == right


def test_a_project_that_cannot_be_written_is_read(tmp_path):
    root = write_project(tmp_path, a=["x"])
    (root / "runs").write_text("a file where the folder should be")
    time.sleep(0.06)
    assert list(read_pipeline(find_project(root), "main")) == ["a"]


def test_hidden_notebooks_and_checkpoints_are_no_stages(tmp_path):
    root = write_project(tmp_path, a=["x"])
    folder = root / "nbs/stages/main"
    write_notebook(folder / "_draft.ipynb", [])
    write_notebook(folder / ".10_b.ipynb", [])
    write_notebook(folder / ".ipynb_checkpoints/10_c.ipynb", [])
    (folder / "notes.md").touch()
    assert list(read_pipeline(find_project(root), "main")) == ["a"]


def test_two_notebooks_with_one_name(tmp_path):
    root = write_project(tmp_path, train=["x"])
    write_notebook(root / "nbs/stages/main/30_train.ipynb", ["y = ("], parameters="")
    stages = read_pipeline(find_project(root), "main")
    assert stages["train"].path.name == "10_train.ipynb" and rules(stages["train"]) == ["duplicate-name", "syntax"]
    assert stages["train"].problems[0].notebook == "30_train.ipynb"


def test_every_field_of_a_stage_has_a_default_that_json_keeps(tmp_path):
    bare = Stage("a", tmp_path / "10_a.ipynb", "p")
    assert stage_from_json(json.loads(json.dumps(stage_to_json(bare)))) == bare


def test_normal_code_is_python(tmp_path):
    stage = stage_of(
        tmp_path, "%matplotlib inline\nx = !ls\n%%time", "%%time\nfor i in range(3):\n    %cd ..\n    print(i)"
    )
    for text in stage.code[1:]:
        ast.parse(text)
