"""What a fingerprint holds, what changes it, and what may not."""

import json
import os
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import ROOT

from mlnb.errors import MissingExtraError, ProjectError
from mlnb.files import digest
from mlnb.pipeline import sources as sources_module
from mlnb.pipeline.cache import Cache, stamp
from mlnb.pipeline.fingerprint import fingerprint, open_measures, parts_of, texts_of
from mlnb.pipeline.packages import Packages, open_packages
from mlnb.pipeline.reach import reached
from mlnb.pipeline.sources import FileDigests, digest_source, open_digests, resolve_source
from mlnb.pipeline.stage import read_pipeline, read_stage
from mlnb.settings import find_project

PARAMETERS = "epochs: int = 5  # passes\nrate: float = 0.1\nwhen: str = '2026-01-01'\n"


def notebook(*cells):
    "A stage notebook; the first code cell holds the parameters."
    made = []
    for i, cell in enumerate(cells):
        kind, text = ("markdown", cell[4:]) if cell.startswith("md: ") else ("code", cell)
        extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
        tags = {"tags": ["parameters"]} if i == 0 else {}
        made.append({"cell_type": kind, "id": f"c{i}", "metadata": tags, "source": text, **extra})
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


class Place:
    "A project with one stage."

    def __init__(self, root):
        self.root = root
        self.write("settings.ini", "")
        self.write("features.py", "def scale(x):\n    return x * 2\n\ndef unused(): pass\n")
        self.write("data/x.csv", "a\n1\n")
        self.cells(PARAMETERS, "from features import scale\nfrom mlnb import source", "scale(source('data/x.csv'))")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cells(self, *cells):
        self.write("nbs/stages/demo/30_train.ipynb", notebook(*cells))

    def stage(self):
        return read_stage(self.root / "nbs/stages/demo/30_train.ipynb", "demo")

    def parts(self, values=None, upstream=None):
        project = find_project(self.root)
        return parts_of(self.stage(), values or {}, upstream or {}, project, open_measures(project))

    def print(self, **kwargs):
        return fingerprint(self.parts(**kwargs))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# --- what changes a fingerprint, and what does not ---


@pytest.mark.parametrize(
    "cells",
    [
        (
            PARAMETERS,
            "md: prose",
            "from features import scale\nfrom mlnb import source",
            "scale(source('data/x.csv'))",
        ),
        (PARAMETERS, "from features import scale\nfrom mlnb import source  # why", "scale( source( 'data/x.csv' ) )"),
        (
            PARAMETERS,
            "from features import scale\nfrom mlnb import source",
            "# only a comment",
            "scale(source('data/x.csv'))",
        ),
        (
            PARAMETERS + "\n# another comment",
            "from features import scale\nfrom mlnb import source",
            "scale(source('data/x.csv'))",
        ),
    ],
)
def test_prose_comments_and_layout_do_not_count(place, cells):
    before = place.print()
    place.cells(*cells)
    assert place.print() == before


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        (
            (PARAMETERS, "from features import scale\nfrom mlnb import source", "scale(source('data/x.csv') + 1)"),
            "code",
        ),
        ((PARAMETERS, "from mlnb import source\nfrom features import scale", "scale(source('data/x.csv'))"), "code"),
        (
            (
                PARAMETERS.replace("5", "6"),
                "from features import scale\nfrom mlnb import source",
                "scale(source('data/x.csv'))",
            ),
            "parameters",
        ),
        (
            (
                PARAMETERS,
                "%matplotlib inline\nfrom features import scale\nfrom mlnb import source",
                "scale(source('data/x.csv'))",
            ),
            "code",
        ),
    ],
)
def test_code_and_defaults_count(place, cells, part):
    before = place.parts()
    place.cells(*cells)
    after = place.parts()
    assert fingerprint(after) != fingerprint(before)
    assert [k for k in after if after[k] != before[k]] == [part]


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("features.py", "def scale(x):\n    return x * 3\n\ndef unused(): pass\n", ["modules"]),
        ("features.py", "def scale(x):\n    'Docs.'\n    return x * 2  # twice\n\ndef unused(): return 1\n", []),
        ("data/x.csv", "a\n2\n", ["sources"]),
        ("data/y.csv", "a\n2\n", []),
        ("settings.ini", "[pipeline]\nseed = 7\n", ["seed"]),
        ("settings.ini", "[pipeline]\njobs = 7\n", []),
        ("numpy.py", "X = 1", []),
        ("features.py", "import yaml\ndef scale(x):\n    return x * 2\n\ndef unused(): pass\n", ["packages"]),
    ],
)
def test_files_count_by_what_is_used(place, name, text, part):
    before = place.parts()
    place.write(name, text)
    after = place.parts()
    assert [k for k in after if after[k] != before[k]] == part
    assert (fingerprint(after) == fingerprint(before)) == (not part)


def test_time_stamps_never_decide(place):
    before = place.print()
    for path in place.root.rglob("*.*"):
        if path.is_file():
            os.utime(path, (1, 1))
    assert place.print() == before


def test_values_count_by_type(place):
    prints = {
        place.print(values={"epochs": v}) for v in (5, 5.0, True, 1, "5", None, [5], (5,), float("nan"), {"a": 5})
    }
    assert len(prints) == 10
    assert place.print(values={"epochs": 5}) == place.print()


def test_upstream_counts(place):
    assert (
        place.print(upstream={"a.b": "1"}) != place.print(upstream={"a.b": "2"}) != place.print(upstream={"a.c": "2"})
    )


def test_secrets_are_nowhere(place, monkeypatch):
    monkeypatch.setenv("API_KEY", "hunter2")
    place.cells("from mlnb import Secret\nkey: Secret = Secret('API_KEY')", "print(key)")
    parts = place.parts()
    assert parts["parameters"]["key"] == {"$secret": "API_KEY"}
    assert parts == place.parts(values={"key": "hunter3"}) and "hunter" not in json.dumps(parts)
    monkeypatch.setenv("API_KEY", "hunter4")
    assert parts == place.parts()


def test_texts_are_those_of_the_digests(place):
    project = find_project(place.root)
    parts, texts = place.parts(), texts_of(place.stage(), {}, open_measures(project))
    assert {parts["code"], *parts["modules"].values()} == set(texts)
    assert all(digest(text) == key for key, text in texts.items())


def test_texts_that_are_at_hand_are_not_made_again(place):
    """Of the second stage that reaches the same code nothing is read, and nothing is written."""
    measures, known = open_measures(find_project(place.root)), set()
    first = texts_of(place.stage(), {}, measures)
    measures.modules.read.clear()
    known |= set(first)
    assert texts_of(place.stage(), {}, measures, known.__contains__) == {} and measures.modules.read == {}
    lost = place.parts()["modules"]["features:scale"]
    assert texts_of(place.stage(), {}, measures, (known - {lost}).__contains__) == {lost: first[lost]}


NAMED = """
SLICES: list = []  # functions that cut the rows


def of_stage(text): return 1
def neighbour(text): return 2
"""


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ('slices: list = [{"function": "named_here:of_stage"}]', {}),
        ("slices: list = []", {"slices": [["age", {"function": "named_here:of_stage"}]]}),
        ("slices: dict = {}", {"slices": {"named_here:of_stage": 1}}),
        ('slices: str = ""', {"slices": "named_here:of_stage"}),
    ],
)
def test_a_function_named_by_a_parameter_counts_and_its_neighbour_does_not(place, parameter, values):
    place.write("named_here.py", NAMED)
    place.cells(parameter, "from mlnb.named_functions import named_function\nprint(slices)")
    before = place.parts(values=values)
    assert {key for key in before["modules"] if key.startswith("named_here:")} == {"named_here:of_stage"}
    place.write("named_here.py", NAMED.replace("return 2", "return 3"))
    assert place.parts(values=values) == before
    place.write("named_here.py", NAMED.replace("return 1", "return 3"))
    after = place.parts(values=values)
    assert [k for k in after if after[k] != before[k]] == ["modules"]


def test_a_secret_that_looks_like_a_function_is_in_no_cache(place, monkeypatch):
    monkeypatch.setenv("LOGIN", "features:hunter2")
    place.cells("from mlnb import Secret\nlogin: Secret = Secret('LOGIN')", "print(login)")
    project = find_project(place.root)
    measures = open_measures(project)
    for values in ({}, {"login": "features:hunter3"}):
        parts = parts_of(place.stage(), values, {}, project, measures)
        texts = texts_of(place.stage(), values, measures)
        assert "hunter" not in json.dumps([parts, texts])
    measures.save()
    assert not [f for f in project.runs.rglob("*.json") if "hunter" in f.read_text()]


def test_what_the_stages_of_this_repository_reach_is_known_to_the_definition():
    """Nothing of the library makes a stage depend on all there is; what `exec` runs counts whole, which is one module."""
    project = find_project(ROOT)
    modules = open_measures(project).modules
    for name, stage in read_pipeline(project, "tabular").items():
        undecided = reached(modules, stage.code).undecided
        assert undecided.items() <= {("mlnb.evaluation.tfma_config", "exec()")}, name


def test_a_stage_of_another_language_counts_as_text(place):
    stage = place.stage()._replace(language="R", code=("x <- 1",))
    project = find_project(place.root)
    parts = parts_of(stage, {}, {}, project, open_measures(project))
    assert parts["modules"] == {} and parts["packages"] == {}


def test_parts_are_json_and_stable(place):
    assert json.loads(json.dumps(place.parts())) == place.parts()


def test_a_second_command_gives_the_same_and_reads_nothing(place, monkeypatch):
    wait = [place.root / "features.py", place.root / "data/x.csv"]
    while any(time.time_ns() - max(stamp(p)[1], stamp(p)[3]) < 2_050_000_000 for p in wait):
        time.sleep(0.05)
    project = find_project(place.root)
    first = open_measures(project)
    parts = parts_of(place.stage(), {}, {}, project, first)
    first.save()
    monkeypatch.setattr(sources_module, "digest_file", lambda path: pytest.fail(f"{path} was read again"))
    again = open_measures(project)
    assert parts_of(place.stage(), {}, {}, project, again) == parts
    caches = (again.modules.cache, again.modules.results, again.packages.cache, again.files.cache)
    assert not any(c.changed for c in caches)


@pytest.mark.parametrize("name", ["modules.json", "files.json", "packages.json"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"format": 1, "maker": "x"}'])
def test_damaged_caches_are_made_again(place, name, damage):
    parts = place.parts()
    place.write(f"runs/cache/{name}", "")
    (place.root / "runs/cache" / name).write_bytes(damage)
    assert place.parts() == parts


# --- sources ---


@pytest.mark.parametrize(
    "text", ["lost.csv", "lost/*.csv", "package://no_such_package/x", "package://statsmodels/lost.csv", "/lost/x.csv"]
)
def test_missing_sources_name_notebook_and_cell(place, text):
    place.cells(PARAMETERS, "from mlnb import source", f"source('{text}')")
    with pytest.raises(ProjectError) as error:
        place.parts()
    assert str(error.value).startswith("30_train.ipynb, cell 3: ") and text in str(error.value)


def test_a_source_may_be_a_parameter(place):
    place.write("data/y.csv", "a\n2\n")
    place.cells("table: str = 'data/x.csv'", "from mlnb import source\nsource(table)")
    assert place.parts()["sources"] == {"data/x.csv": digest("a\n1\n")}
    assert place.parts(values={"table": "data/y.csv"})["sources"] == {"data/y.csv": digest("a\n2\n")}


def test_a_file_in_an_installed_package(tmp_path):
    before = "statsmodels" in sys.modules   # another test of this process may have needed it
    found = resolve_source("package://statsmodels/datasets/randhie/randhie.csv", tmp_path)
    assert found.kind == "file" and digest_source(found) == digest(found.path.read_bytes())
    assert ("statsmodels" in sys.modules) == before


def test_folders_count_names_and_content(tmp_path):
    def content():
        return digest_source(resolve_source("d", tmp_path))

    (tmp_path / "d/e").mkdir(parents=True)
    empty = content()
    (tmp_path / "d/a").write_text("1")
    one = content()
    (tmp_path / "d/a").rename(tmp_path / "d/b")
    renamed = content()
    (tmp_path / "d/b").rename(tmp_path / "d/e/b")
    moved = content()
    (tmp_path / "d/e/b").write_text("2")
    assert len({empty, one, renamed, moved, content()}) == 5


def test_a_link_to_itself_ends(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("1")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    assert [name for name, _ in resolve_source("d", tmp_path).files] == ["a"]


def test_what_cannot_be_read_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProjectError, match="cell 3"):
        digest_source(resolve_source("pipe", tmp_path), where="cell 3")


@pytest.mark.parametrize(
    ("text", "package"), [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("https://h/x", "aiohttp")]
)
def test_a_missing_protocol_names_its_extra(tmp_path, monkeypatch, text, package):
    for name in [m for m in sys.modules if m.startswith("fsspec.implementations.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=package):
        digest_source(resolve_source(text, tmp_path))


class Remote:
    "A store that tells checksums and counts what is read."

    def __init__(self, info):
        self.data, self.told, self.read = b"one", info, 0

    def info(self, name):
        return {"name": name, "size": 3, **self.told}

    def invalidate_cache(self):
        pass

    def isdir(self, path):
        return False

    def open(self, name, mode):
        import io

        self.read += 1
        return io.BytesIO(self.data)


@pytest.mark.parametrize(
    ("info", "reads"),
    [({"ETag": '"a"'}, 0), ({"ETag": 'W/"a"'}, 1), ({}, 1), ({"md5Hash": "x"}, 0), ({"mtime": 3}, 1)],
)
def test_checksums_of_stores_are_used_when_they_say_enough(tmp_path, monkeypatch, info, reads):
    store = Remote(info)
    monkeypatch.setattr(sources_module, "_remote", lambda text, where: (store, "b/x"))
    digest_source(resolve_source("s3://b/x", tmp_path))
    assert store.read == reads


# --- digests of files ---


def test_a_young_file_is_not_remembered(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    digests = FileDigests(Cache(tmp_path / "c.json", "x"))
    first, state = digests.of(path), stamp(path)
    assert first == digest("one") and not digests.cache.entries
    path.write_text("two")
    os.utime(path, ns=(state[1], state[1]))  # same size, same mtime, same inode
    assert digests.of(path) == digest("two")


def test_an_edit_that_restores_the_time_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("one")
    monkeypatch.setattr(sources_module, "is_settled", lambda state: True)
    digests = FileDigests(Cache(tmp_path / "c.json", "x"))
    digests.of(path)
    state = stamp(path)
    assert digests.cache.entries
    time.sleep(0.02)
    path.write_text("two")
    os.utime(path, ns=(state[1], state[1]))
    assert digests.of(path) == digest("two")


def test_a_file_that_keeps_changing_has_no_digest(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("one")

    def reading(name):
        path.write_text(path.read_text() + "more")
        return "digest"

    monkeypatch.setattr(sources_module, "digest_file", reading)
    with pytest.raises(ProjectError, match="changes while it is read"):
        open_digests().of(path)


@given(st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), st.binary(max_size=4), max_size=4), st.data())
def test_folders_are_equal_exactly_when_names_and_contents_are(tmp_path_factory, files, data):
    def content(tree):
        root = tmp_path_factory.mktemp("f")
        for name, body in tree.items():
            (root / name).write_bytes(body)
        return digest_source(resolve_source(str(root), root))

    other = data.draw(
        st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), st.binary(max_size=4), max_size=4)
    )
    assert (content(files) == content(other)) == (files == other)
    assert content(files) == content(dict(reversed(files.items())))


# --- packages ---


def test_versions_are_those_of_the_metadata():
    from importlib.metadata import version

    found = open_packages().versions(["sklearn", "pandas", "yaml", "nobody_has_this"])
    assert found == {
        "scikit-learn": version("scikit-learn"),
        "pandas": version("pandas"),
        "PyYAML": version("PyYAML"),
        "nobody_has_this": "missing",
    }


def test_what_is_missing_is_not_remembered(tmp_path, monkeypatch):
    def ask():
        packages = Packages(Cache(tmp_path / "p.json", "x"))
        found = packages.versions(["late_module"])
        packages.cache.save()
        return found["late_module"]

    monkeypatch.syspath_prepend(str(tmp_path))
    assert ask() == "missing"
    (tmp_path / "late_module.py").write_text("X = 1")
    assert ask().startswith("sha256")


def test_an_editable_install_counts_by_its_version(tmp_path, monkeypatch):
    site, source = tmp_path / "site", tmp_path / "elsewhere"
    info = site / "thing-3.1.dist-info"
    info.mkdir(parents=True)
    (source / "thing_module").mkdir(parents=True)
    (source / "thing_module/__init__.py").write_text("")
    (info / "METADATA").write_text("Name: thing\nVersion: 3.1\n")
    (info / "RECORD").write_text("_thing.pth,,\n")
    (info / "direct_url.json").write_text(json.dumps({"url": f"file://{source}", "dir_info": {"editable": True}}))
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.syspath_prepend(str(site))
    assert open_packages().versions(["thing_module"]) == {"thing": "3.1"}


def test_the_warm_path_does_not_ask_the_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr("mlnb.pipeline.packages._state", lambda folders: (["same"], True))
    first = Packages(Cache(tmp_path / "p.json", "x"))
    found = first.versions(["pandas"])
    first.cache.save()
    monkeypatch.setattr("mlnb.pipeline.packages._installed", lambda folders: pytest.fail("asked again"))
    assert Packages(Cache(tmp_path / "p.json", "x")).versions(["pandas"]) == found
