"""glue, ref and source where they are used: in executed notebooks, in JupyterLab's folders, beside scrapbook."""

import datetime
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from mlnb.errors import NotebookError, ProjectError, ScrapError, StoreError
from mlnb.files import write_json
from mlnb.pipeline import scraps
from mlnb.pipeline.context import add_project_path
from mlnb.pipeline.encoders import decode, encode
from mlnb.pipeline.payloads import read_scraps
from mlnb.pipeline.scraps import glue, ref, source
from mlnb.pipeline.store import Store

RUN = "20261120-101500-ab12"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the pipeline `tabular`; the process stands in the pipeline's folder."""
    stages = tmp_path / "nbs" / "stages" / "tabular"
    stages.mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("")
    (stages / "10_prepare.ipynb").write_text("{}")
    monkeypatch.chdir(stages)
    monkeypatch.delenv("MLNB_CONTEXT", raising=False)
    monkeypatch.delenv("MLNB_RUNS", raising=False)
    scraps._told.clear()
    return tmp_path


def context(project, refs=None, **changes):
    data = {
        "format": 1,
        "project": str(project),
        "runs": str(project / "runs"),
        "store": str(project / "runs" / "store"),
        "pipeline": "tabular",
        "stage": "train",
        "run": RUN,
        "attempt": 1,
        "refs": refs or {},
    }
    return write_json(project / "context.json", data | changes)


def finished_run(project, values, run=RUN, stage="prepare", finished=None, status="ran"):
    """A run in which one stage glued these values."""
    store = Store(project / "runs" / "store")
    record = {
        "stage": stage,
        "status": status,
        "run": run,
        "finished": finished,
        "scraps": {name: encode(value, name, store) for name, value in values.items()},
    }
    write_json(
        project / "runs" / run / "run.json",
        {
            "format": 1,
            "run": run,
            "pipeline": "tabular",
            "status": "done",
            "started": "2026-11-20T10:15:00Z",
            "seconds": 1.0,
            "stages": {stage: record},
        },
    )
    return record


def execute(folder, *cells):
    """Execute cells by papermill as a stage of a run; the notebook as it was saved."""
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(notebook, folder / "in.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLNB_CONTEXT", str(context(folder)))
        papermill.execute_notebook(
            folder / "in.ipynb", folder / "out.ipynb", progress_bar=False, engine_name="nbclient", cwd=str(folder)
        )
    return folder / "out.ipynb"


MAKE = """
    import datetime, pandas as pd, numpy as np
    from pathlib import Path
    Path("report.txt").write_text("hello")
    frame = pd.DataFrame({"plan": pd.Categorical(["free"], ["pay", "free"]), "n": pd.array([None], dtype="Int64")})
"""
VALUES = {
    "auc": "0.83",
    "n": "3",
    "none": "None",
    "nan": "float('nan')",
    "word": "'123'",
    "pair": "(1, None)",
    "tree": "{'b': [1, float('inf')], 'a': {}}",
    "numbered": "{1: 'one'}",
    "day": "datetime.date(2026, 11, 20)",
    "scalar": "np.float32(0.5)",
    "frame": "frame",
    "vector": "np.arange(3)",
    "long": "'x' * 70_000",
    "file": "Path('report.txt')",
}
WATCH = "from mlnb.pipeline.scraps import watch_scrapbook; watch_scrapbook()\nimport scrapbook as sb\nglue = sb.glue"
TRY = """
    def message(call, *words):
        try: call(*words)
        except Exception as e: return f"{type(e).__name__}: {e}"
    from mlnb import ref
    glue("unknown", message(glue, "thing", object()))
    glue("unnamed", message(glue, "a thing", 1))
    glue("unresolved", message(ref, "prepare.train"))
"""


@pytest.fixture(scope="module", params=["mlnb", "scrapbook"])
def executed(request, tmp_path_factory):
    """A notebook that glued VALUES, executed by papermill: with our glue, and with scrapbook's."""
    glued = [f"glue({name!r}, {text})" for name, text in VALUES.items()]
    folder = tmp_path_factory.mktemp("project")
    if request.param == "mlnb":
        more = ["glue('table', pd.DataFrame({'a': range(50), 'b': '<b>'}))", "glue('n', 4); glue('n', 3)", TRY]
        return execute(folder, "from mlnb import glue", MAKE, *glued, *more)
    more = ["glue('a', frame, encoder='pandas'); glue('b', frame, 'artifact')", "glue('c', '[1, 2]', 'json')"]
    return execute(folder, WATCH, MAKE, *glued, *more, "glue('d', 5, display=True)")


def outputs(path, name):
    """The outputs of the first cell that glued this name."""
    cells = json.loads(path.read_text())["cells"]
    return next(c["outputs"] for c in cells if "".join(c["source"]).startswith(f"glue({name!r}"))


def check(found):
    """The values of VALUES, however they were read."""
    assert (found["auc"], found["n"], found["word"], found["pair"]) == (0.83, 3, "123", (1, None))
    assert found["none"] is None and math.isnan(found["nan"]) and found["scalar"] == 0.5
    assert found["tree"] == {"a": {}, "b": [1, math.inf]} and found["numbered"] == {1: "one"}
    assert found["day"] == datetime.date(2026, 11, 20) and found["vector"].tolist() == [0, 1, 2]
    assert found["frame"]["plan"].cat.categories.tolist() == ["pay", "free"] and found["frame"]["n"].dtype == "Int64"
    assert found["long"] == "x" * 70_000 and found["file"].name == "report.txt" and found["file"].read_text() == "hello"


def test_executed_notebook_is_read_back(executed):
    json.loads(executed.read_text(), parse_constant=pytest.fail)  # strict JSON
    store = Store(executed.parent / "runs" / "store")
    found = read_scraps(executed)
    assert set(VALUES) <= set(found)
    check({name: decode(record, store) for name, record in found.items()})


def test_executed_notebook_is_read_back_by_scrapbook(executed, monkeypatch):
    import scrapbook as sb

    scraps.register_encoders()
    (executed.parent / "settings.ini").write_text("")
    monkeypatch.chdir(executed.parent)
    check({name: scrap.data for name, scrap in sb.read_notebook(str(executed)).scraps.items()})


def test_glue_sends_what_scrapbook_sends(executed, monkeypatch):
    """The two notebooks against the same expectation: the records that `encode` makes of the values."""
    monkeypatch.chdir(executed.parent)
    names = {}
    exec(textwrap.dedent(MAKE), names)
    for name, text in VALUES.items():
        record = encode(eval(text, names), name, Store(executed.parent / "runs" / "store"))
        data, metadata = scraps.output_of(record)
        assert outputs(executed, name)[0] == {"output_type": "display_data", "data": data, "metadata": metadata}


def test_payload_is_scrapbooks_own():
    """Against scrapbook as it comes, in a process that never heard of our encoders."""
    values = [0.83, 3, True, "text", "123", [1, 2.5, None], {"a": {"b": []}}]
    code = f"""
import json, warnings; warnings.simplefilter("ignore")
import scrapbook.api as api
def sent(value):
    encoder = api.encoder_registry.determine_encoder_name(value)
    scrap = api.encoder_registry.encode(api.Scrap("x", value, encoder))
    return api._prepare_ipy_data_format("x", api.scrap_to_payload(scrap), encoder)
print(json.dumps([sent(value) for value in {values!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [list(scraps.output_of(encode(value, "x", None))) for value in values]


def test_what_people_see_in_the_executed_notebook(executed):
    if "table" not in read_scraps(executed):
        return  # scrapbook shows nothing of its own
    assert len(outputs(executed, "auc")) == 2
    assert outputs(executed, "auc")[1]["data"] == {"text/plain": ["glue: 'auc' = 0.83"]}
    line, table = outputs(executed, "table")[1:3]
    assert "50 rows x 2 columns" in "".join(line["data"]["text/plain"]) and list(line["data"]) == ["text/plain"]
    shown = {mime: "".join(text) for mime, text in table["data"].items()}
    assert shown["text/plain"] and len(shown["text/html"]) < 1500
    assert "<b>" not in shown["text/html"]


def test_errors_in_a_run_name_the_stage(executed):
    found = {name: record.get("data") for name, record in read_scraps(executed).items()}
    if "unknown" in found:
        assert "does not know this type" in found["unknown"] and "a name that ref" in found["unnamed"]
        assert "stage train: ref('prepare.train') was not resolved for this run" in found["unresolved"]


def test_encoders_of_scrapbook_by_name(executed):
    found, store = read_scraps(executed), Store(executed.parent / "runs" / "store")
    if "d" in found:
        assert [found[name]["encoder"] for name in "abcd"] == ["pandas", "artifact", "json", "json"]
        assert decode(found["a"], store).astype(str).equals(decode(found["b"], store).astype(str))
        assert decode(found["c"], store) == [1, 2] and decode(found["d"], store) == 5


def test_the_last_glue_counts():
    sent = [scraps.output_of(encode(value, name, None))[0] for name, value in [("a", 1), ("b", 2), ("a", 3)]]
    found = read_scraps({"cells": [{"outputs": [{"data": data}]} for data in sent]})
    assert {name: record["data"] for name, record in found.items()} == {"b": 2, "a": 3}


def test_ref_in_a_run_reads_what_the_run_resolved(project, monkeypatch):
    store = Store(project / "runs" / "store")
    frame = pd.DataFrame({"a": [1, 2]})
    finished_run(project, {"train": pd.DataFrame({"a": [9]})}, run="20261121-000000-0000")  # newer, and not meant
    record = encode(frame, "train", store)
    monkeypatch.setenv(
        "MLNB_CONTEXT", str(context(project, {"prepare.train": record, "prepare.n": encode(7, "n", store)}))
    )
    assert ref("prepare.train").equals(frame) and ref("prepare.n") == 7
    with pytest.raises(ScrapError, match="stage train") as e:
        ref("prepare.other")
    assert "prepare.n, prepare.train" in e.value.expected and "literal" in e.value.cure
    os.chmod(store.path_of(record["digest"]), 0o644)
    store.path_of(record["digest"]).write_bytes(b"?")
    with pytest.raises(StoreError, match="damaged"):
        ref("prepare.train")


@pytest.mark.parametrize("name", ["train", "a.b.c", "", ".a", "a.", "a b.c", None, 3, "a.b "])
def test_what_is_no_reference(name, project):
    with pytest.raises(ScrapError, match="no reference"):
        ref(name)


def test_glue_in_a_process_without_a_notebook(project, monkeypatch):
    monkeypatch.setenv("MLNB_CONTEXT", str(context(project)))
    with pytest.raises(ScrapError, match="would be lost"):
        glue("a", 1)


def test_glue_outside_of_a_run_shows_and_stores_nothing(project, capsys):
    assert glue("auc", 0.83) is None and glue("frame", pd.DataFrame({"a": [1]})) is None
    out = capsys.readouterr().out
    assert (
        "glue: 'auc' = 0.83 (shown only: not in a run)" in out
        and "glue: 'frame' = 1 rows x 1 columns (shown only: not in a run)" in out
    )
    assert not (project / "runs").exists()


def test_ref_in_jupyterlab_says_which_run_once(project, capsys):
    moment = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5, seconds=5)).isoformat()
    finished_run(project, {"train": "old"}, run="20261119-000000-0000")
    finished_run(project, {"train": "new", "n": 1}, finished=moment)
    assert ref("prepare.train") == "new" and ref("prepare.n") == 1 and ref("prepare.train") == "new"
    assert capsys.readouterr().out == f"prepare.train from run {RUN} (5 min ago)\n"


def test_ref_in_jupyterlab_finds_the_pipeline_by_folder(project, monkeypatch):
    other = project / "nbs" / "stages" / "images"
    other.mkdir()
    (other / "10_prepare.ipynb").write_text("{}")
    finished_run(project, {"train": 1})
    assert ref("prepare.train") == 1
    monkeypatch.chdir(other)
    with pytest.raises(ScrapError, match="pipeline images") as e:
        ref("prepare.train")
    assert e.value.cure == "mlnb run images --select prepare"


def test_ref_without_a_result(project):
    with pytest.raises(ScrapError, match="no run has a result of stage 'prepare'") as e:
        ref("prepare.train")
    assert e.value.cure == "mlnb run --select prepare"
    finished_run(project, {"train": 1, "test": 2})
    with pytest.raises(ScrapError, match="no scrap 'prepare.valid'") as e:
        ref("prepare.valid")
    assert e.value.expected == "one of: prepare.test, prepare.train"


@pytest.mark.parametrize("moved", [False, True])
def test_ref_in_a_runs_folder_stays_with_that_run(moved, project, monkeypatch, tmp_path_factory, capsys):
    finished_run(project, {"train": pd.Series([1])}, run="20261119-000000-0000")
    finished_run(project, {"train": pd.Series([2])})
    runs = project / "runs"
    if moved:
        runs = (project / "runs").rename(tmp_path_factory.mktemp("disk") / "runs")  # as with MLNB_RUNS
    monkeypatch.chdir(runs / "20261119-000000-0000")
    assert ref("prepare.train").tolist() == [1]
    assert capsys.readouterr().out == "prepare.train from run 20261119-000000-0000 (the run of this notebook)\n"
    with pytest.raises(ScrapError, match="run 20261119-000000-0000 has no scrap 'train.model'"):
        ref("train.model")


def test_a_context_that_is_none(project, monkeypatch):
    for text in ("", "{}", "[]", '{"format": 2}'):
        (project / "context.json").write_text(text)
        monkeypatch.setenv("MLNB_CONTEXT", str(project / "context.json"))
        with pytest.raises(ScrapError, match="MLNB_CONTEXT"):
            ref("a.b")
    monkeypatch.setenv("MLNB_CONTEXT", str(project / "gone.json"))
    with pytest.raises(ScrapError, match="MLNB_CONTEXT"):
        glue("a", 1)


def test_a_kept_kernel_sees_a_new_context(project, monkeypatch):
    monkeypatch.setenv("MLNB_CONTEXT", str(context(project, {"a.b": encode(1, "b", None)})))
    assert ref("a.b") == 1
    os.utime(context(project, {"a.b": encode(2, "b", None)}), ns=(1, 1))
    assert ref("a.b") == 2


def test_modules_of_the_project_are_found(project, monkeypatch):
    (project / "src").mkdir()
    (project / "own_in_src.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert add_project_path() == [str(project), str(project / "src")] and sys.path[:2] == [
        str(project),
        str(project / "src"),
    ]
    assert add_project_path() == []
    monkeypatch.chdir("/")
    assert add_project_path() == []


def test_source_is_found_from_the_root_in_all_places(project, monkeypatch):
    (project / "data").mkdir()
    for name in "ba":
        (project / "data" / f"{name}.csv").write_text(name)
    finished_run(project, {})
    here = project / "data"
    for place in (None, project / "runs" / RUN, "context"):
        if place == "context":
            monkeypatch.setenv("MLNB_CONTEXT", str(context(project)))
            monkeypatch.chdir("/")
        elif place:
            monkeypatch.chdir(place)
        assert source("data/a.csv") == here / "a.csv" and source("data") == here
        assert source("data/*.csv") == [here / "a.csv", here / "b.csv"]
        assert source("s3://bucket/x.csv") == "s3://bucket/x.csv"
        assert source("package://mlnb/pipeline/scraps.py") == Path(scraps.__file__)
        with pytest.raises(ProjectError, match="c.csv"):
            source("data/c.csv")


def test_read_scraps_of_odd_notebooks(tmp_path):
    assert read_scraps({}) == read_scraps({"cells": [{"cell_type": "markdown", "source": ""}]}) == {}
    odd = [
        None,
        3,
        {"name": 3, "data": 1},
        {"name": "x"},
        {"name": "x", "encoder": "artifact", "data": 1},
        {"name": "x", "encoder": "artifact", "data": {"type": "file"}},
    ]
    outputs = [{"data": {"application/scrapbook.scrap.json+json": payload}} for payload in odd] + [
        {"output_type": "stream"},
        {"data": None},
    ]
    assert read_scraps({"cells": [{"outputs": outputs}, {"outputs": None}]}) == {}
    (tmp_path / "a.ipynb").write_text("application/scrapbook.scrap. {")
    with pytest.raises(NotebookError, match="not a notebook"):
        read_scraps(tmp_path / "a.ipynb")


def test_importing_costs_nothing():
    code = """
import sys
import mlnb.pipeline.scraps
heavy = {"pandas", "numpy", "tensorflow", "scrapbook", "papermill", "IPython", "nbformat", "jsonschema", "asyncio",
         "inspect", "subprocess", "dataclasses", "importlib.metadata"}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.stdout == "\n", done.stdout + done.stderr
