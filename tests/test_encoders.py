"""Every type that can be glued comes back; everything else is refused with the cure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlnb.errors import ScrapError, StoreError
from mlnb.pipeline import encoders
from mlnb.pipeline.encoders import Codec, decode, encode, goes_to_store, register
from mlnb.pipeline.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def trip(value, store):
    record = json.loads(json.dumps(encode(value, "x", store), allow_nan=False))
    assert (record["encoder"] == "artifact") == goes_to_store(value)
    if record["encoder"] == "artifact":
        assert (
            set(record) == {"name", "encoder", "type", "digest", "bytes", "folder", "meta", "summary"}
            and record["summary"]
        )
        assert (
            store.has(record["digest"], record["bytes"])
            and store.path_of(record["digest"]).is_dir() == record["folder"]
        )
    else:
        assert set(record) == {"name", "encoder", "data", "digest"}
    return record, decode(record, store)


fields = hnp.array_dtypes(
    hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.unicode_string_dtypes(max_len=4), max_size=3
)
dtypes = (hnp.scalar_dtypes() | fields).filter(lambda d: d.itemsize and not d.hasobject)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_side=4)))
def test_arrays(tmp_path_factory, value):
    try:
        record, back = trip(value, Store(tmp_path_factory.mktemp("store")))
    except ScrapError as e:
        assert "cannot be kept exactly in .npy" in str(e) and value.dtype.names
    else:
        assert (back.dtype, back.shape, back.tobytes()) == (value.dtype, value.shape, value.tobytes())


@pytest.mark.parametrize(
    "value", [np.asfortranarray(np.eye(3)), np.arange(3, dtype=">i4"), np.zeros((0, 3)), np.array("a")]
)
def test_array_layouts(value, store):
    back = trip(value, store)[1]
    assert (
        back.dtype == value.dtype
        and back.flags.f_contiguous == value.flags.f_contiguous
        and np.array_equal(back, value)
    )


def test_arrays_that_would_lose_something(store, tmp_path):
    import ml_dtypes

    record = np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    for value in (record, np.ma.array([1], mask=[1]), np.array([None]), np.ones(2, ml_dtypes.bfloat16)):
        with pytest.raises(ScrapError, match="npy") as e:
            encode(value, "x", store)
        assert e.value.cure
    held = np.memmap(tmp_path / "held", dtype="f4", shape=(2, 2), mode="w+")
    held[:] = 3
    assert trip(held, store)[1].tolist() == [[3, 3], [3, 3]]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.text(st.characters(exclude_categories=["Cs"])) | st.binary() | st.none() | st.floats() | st.integers())
def test_plain_values(value, tmp_path_factory):
    back = trip(value, Store(tmp_path_factory.mktemp("store")))[1]
    assert type(back) is type(value) and repr(back) == repr(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a" * 64_000, None),
        ("a" * 64_001, "text"),
        ("\u20ac" * 30_000, "text"),
        ("a\r\nb" * 20_000, "text"),
        ("", None),
        (list(range(10)), None),
        (list(range(100_000)), "json"),
        ({"a": [float("nan")] * 100_000}, "json"),
        ((1.5,) * 100_000, "json"),
    ],
    ids=lambda v: f"{type(v).__name__} of {len(v)}" if v else "inline",
)
def test_large_values_go_to_the_store(value, kind, store):
    record, back = trip(value, store)
    assert record.get("type") == kind and type(back) is type(value) and repr(back) == repr(value)


def test_strings_that_look_like_json_stay_strings(store):
    for value in ("123", "null", "true", '"a"', '{"a": 1}', "[1]", "NaN"):
        record, back = trip(value, store)
        assert record["encoder"] == "text" and back == value


def test_digest_of_plain_values(store):
    digests = [encode(v, "x", store)["digest"] for v in (1, 1.0, True, "1", None, [1], (1,), {"a": 1}, float("nan"))]
    assert len(set(digests)) == len(digests)
    assert encode({"b": 1, "a": 2}, "x", store)["digest"] == encode({"a": 2, "b": 1}, "y", store)["digest"]


def test_files_and_folders(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d/e").mkdir(parents=True)
    Path("d/e/f.txt").write_text("x")
    Path("a b.csv.gz").write_bytes(b"zip")
    record, back = trip(Path("a b.csv.gz"), store)
    assert (record["type"], record["summary"]) == ("file", "a b.csv.gz, 3 bytes") and back.name == "a b.csv.gz"
    assert back.read_bytes() == b"zip" and back.is_relative_to(store.root)
    record, back = trip(Path("d"), store)
    assert (record["type"], record["summary"]) == ("folder", "d/, 1 file, 1 bytes") and (
        back / "e" / "f.txt"
    ).read_text() == "x"
    again, _ = trip(back, store)  # a ref that is glued again is the same object
    assert again["digest"] == record["digest"]
    assert trip("a b.csv.gz", store)[1] == "a b.csv.gz"
    with pytest.raises(ScrapError, match="a b.csv.gz") as e:
        encode(Path("a b.csv"), "x", store)
    assert e.value.got == "a b.csv"
    Path("d/link").symlink_to("e")
    with pytest.raises(StoreError, match="symbolic link"):
        encode(Path("d"), "x", store)


def test_the_same_file_under_two_names(store, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.csv").write_text("x")
    (first, a), (second, b) = trip(tmp_path / "a.txt", store), trip(tmp_path / "b.csv", store)
    assert (
        first["digest"] == second["digest"]
        and (a.name, b.name) == ("a.txt", "b.csv")
        and len(list(store.objects())) == 1
    )


def test_figures(store):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    def draw(n):
        figure, axes = pyplot.subplots(figsize=(3, 2))
        axes.scatter(range(n), range(n), label="x")
        axes.legend()
        pyplot.close(figure)
        return figure

    record, picture = trip(draw(5), store)
    assert record["digest"] == encode(draw(5), "again", store)["digest"] != encode(draw(6), "x", store)["digest"]
    assert (
        record["summary"] == "figure, 3.0 x 2.0 inches"
        and picture._repr_png_().startswith(b"\x89PNG")
        and "<svg" in picture.svg
    )
    assert trip(draw(60_000), store)[1].svg == ""
    with pytest.raises(ScrapError, match=r"value.figure"):
        encode(draw(2).axes[0], "x", store)


def test_plotly(store):
    import plotly.graph_objects as go

    record, back = trip(
        go.Figure([go.Scatter(x=[1, 2], y=np.array([3.0, 4.0]), name="é"), go.Heatmap(z=np.eye(2))]), store
    )
    assert record["summary"] == "plotly figure, 2 traces" and isinstance(back, go.Figure)
    assert list(back.data[0].y) == [3.0, 4.0] and back.data[0].name == "é" and back.data[1].z[0].tolist() == [1, 0]
    assert encode(back, "x", store)["digest"] == record["digest"]


def test_tables_and_estimators(store):
    from sklearn.dummy import DummyClassifier

    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="k"))
    record, back = trip(frame, store)
    assert (
        record["summary"] == "2 rows x 1 columns" and back.equals(frame) and record["meta"] == {"rows": 2, "columns": 1}
    )
    assert trip(frame["a"], store)[0]["summary"] == "2 values, int64"
    record, model = trip(DummyClassifier().fit([[0], [1]], [1, 1]), store)
    assert record["summary"] == "scikit-learn DummyClassifier" and model.predict([[5]]).tolist() == [1]


@pytest.mark.tensorflow
def test_keras_and_saved_models(store, tmp_path):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    record, back = trip(model, store)
    assert record["summary"] == "Keras model, 8 parameters" and record["type"] == "keras"
    assert np.allclose(back.predict(np.ones((1, 3)), verbose=0), model.predict(np.ones((1, 3)), verbose=0))
    model.export(tmp_path / "saved", verbose=False)
    record, path = trip(tmp_path / "saved", store)
    import tensorflow as tf

    assert record["type"] == "savedmodel" and path == store.path_of(record["digest"])
    assert np.allclose(tf.saved_model.load(str(path)).serve(np.ones((1, 3), "f4")), model(np.ones((1, 3))))
    assert store.verify(record["digest"])  # loading changed nothing
    with pytest.raises(ScrapError, match=r"value.numpy\(\)"):
        encode(tf.constant([1, 2]), "x", store)


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ({1, 2}, ""),
        (object(), "Path"),
        (pd.Index([1]), "to_frame"),
        (print, ""),
        (range(3), ""),
        (type, ""),
        (iter([]), ""),
    ],
    ids=lambda v: type(v).__name__,
)
def test_unknown_types_are_told_what_is_known(value, cure, store):
    with pytest.raises(ScrapError, match=r"glue\('thing', ...\) does not know this type") as e:
        encode(value, "thing", store)
    assert cure in e.value.cure and all(
        word in e.value.expected for word in ("DataFrame", "Keras", "SavedModel", "plotly", "str")
    )
    assert not goes_to_store(value)


def test_records_that_nothing_reads(store):
    for record in ({}, {"encoder": "gob"}, {"encoder": "artifact"}, {"encoder": "artifact", "type": 3, "digest": "x"}):
        with pytest.raises(ScrapError, match="not known here"):
            decode(record, store)
    record = encode(b"x", "x", store)
    with pytest.raises(ScrapError, match="no codec"):
        decode(record | {"type": "alien"}, store)
    with pytest.raises(StoreError, match="no digest"):
        decode(record | {"digest": "../../x"}, store)
    with pytest.raises(StoreError, match="not in the store"):
        decode(record | {"digest": "0" * 64}, store)
    foreign = store.put_made(lambda path: pd.DataFrame({"a": [1]}).to_parquet(path))
    with pytest.raises(ScrapError, match="not glued"):
        decode(record | {"type": "dataframe", "digest": foreign}, store)


def test_own_types(store, monkeypatch):
    monkeypatch.setattr(encoders, "_CODECS", dict(encoders._CODECS))
    register(
        Codec(
            "range",
            "range",
            lambda v: type(v) is range,
            lambda v, path: path.write_text(f"{v.stop}") and {},
            lambda path, meta: range(int(path.read_text())),
            lambda v, meta: f"{len(v)} numbers",
        )
    )
    assert trip(range(5), store)[1] == range(5)
    with pytest.raises(ScrapError):
        register(Codec("file", "", None, None, None, None))


def test_gluing_plain_values_imports_nothing():
    code = """
import sys, tempfile, pathlib
from mlnb.pipeline.encoders import encode, decode
from mlnb.pipeline.store import Store
store = Store(pathlib.Path(tempfile.mkdtemp()))
for value in (1, "a", None, [1.5], {"a": (1, 2)}, "x" * 100_000, b"x", pathlib.Path("test_encoders.py")):
    decode(encode(value, "x", store), store)
heavy = {"pandas", "numpy", "tensorflow", "keras", "sklearn", "matplotlib", "pyarrow", "scrapbook", "IPython"}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.stdout == "\n", done.stdout + done.stderr
