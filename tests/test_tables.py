"""Tables come back from Parquet exactly, or are refused: nothing in between."""

import datetime
import zoneinfo

import numpy as np
import pandas as pd
import pytest
import pytz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.extra import pandas as hpd

from mlnb.errors import ScrapError
from mlnb.pipeline.tables import from_arrow, read_table, to_arrow, write_table

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
dtypes = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="=")
    | hnp.unsigned_integer_dtypes(endianness="=")
    | hnp.floating_dtypes(sizes=(16, 32, 64), endianness="=")
    | st.sampled_from([np.dtype(f"{kind}8[{unit}]") for kind in "mM" for unit in ("s", "ms", "us", "ns")])
)
missing = st.sampled_from([None, float("nan"), pd.NA, pd.NaT])
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
objects = st.one_of(
    *[
        st.lists(kind | missing, min_size=1, max_size=8)
        for kind in (
            words,
            st.binary(max_size=4),
            st.booleans(),
            st.integers(-(2**63), 2**63 - 1),
            st.dates(),
            st.timedeltas(*[datetime.timedelta(days=sign * 10**8) for sign in (-1, 1)]),
            st.floats(),
            st.lists(st.integers(0, 9), max_size=3),
            st.tuples(words, words),
            st.decimals(-9, 9, places=2),
            st.times().map(lambda t: t.replace(fold=0)),
        )
    ]
)


def strictly(back, value):
    """The very same: the pandas comparison, and the type and text of each object."""
    compare = pd.testing.assert_frame_equal if isinstance(value, pd.DataFrame) else pd.testing.assert_series_equal
    compare(back, value, check_freq=True, check_exact=True, check_names=True)
    for column in [value] if value.ndim == 1 else [value.iloc[:, i] for i in range(value.shape[1])]:
        if column.dtype != object:
            continue
        other = back if value.ndim == 1 else back.iloc[:, list(value.columns).index(column.name)]
        assert [(type(v), repr(v)) for v in other] == [(type(v), repr(v)) for v in column]


def trip(value, folder):
    write_table(value, folder / "t.parquet")
    return read_table(folder / "t.parquet")


@quick
@given(data=st.data(), rows=st.integers(0, 6))
def test_numpy_columns(data, rows, tmp_path_factory):
    frame = pd.DataFrame(index=range(rows))
    for name in data.draw(st.lists(words, max_size=4, unique=True)):
        frame[name] = data.draw(hnp.arrays(data.draw(dtypes), rows))
    try:
        back = trip(frame, tmp_path_factory.mktemp("t"))
    except ScrapError as e:
        assert "too far away" in str(e)
    else:
        strictly(back, frame)


@quick
@given(values=objects)
def test_object_columns(values, tmp_path_factory):
    series = pd.Series(np.fromiter(values, object, len(values)), name="x")
    strictly(trip(series, tmp_path_factory.mktemp("t")), series)


@quick
@given(
    values=st.lists(
        st.none()
        | words
        | st.integers()
        | st.floats()
        | st.booleans()
        | st.dates()
        | st.times()
        | st.tuples(st.integers() | words)
        | st.lists(st.integers() | st.floats())
        | st.dictionaries(words, st.integers() | words),
        max_size=6,
    )
)
def test_anything_is_exact_or_refused(values, tmp_path_factory):
    series = pd.Series(np.fromiter(values, object, len(values)))
    try:
        back = trip(series, tmp_path_factory.mktemp("t"))
    except ScrapError as e:
        assert "column None" in str(e) and e.cure
    else:
        strictly(back, series)


@quick
@given(
    categories=st.lists(words, min_size=1, unique=True)
    | st.lists(st.integers(-9, 9), min_size=1, unique=True)
    | st.lists(st.floats(allow_nan=False), min_size=1, unique=True),
    codes=st.lists(st.integers(-1, 0)),
    ordered=st.booleans(),
)
def test_categories(categories, codes, ordered, tmp_path_factory):
    series = pd.Series(pd.Categorical.from_codes(codes, pd.Index(categories), ordered=ordered))
    strictly(trip(series, tmp_path_factory.mktemp("t")), series)


@quick
@given(
    index=hpd.indexes(dtype=int, max_size=5)
    | hpd.indexes(dtype="datetime64[ns]", max_size=5)
    | hpd.indexes(elements=words, max_size=5)
    | hpd.indexes(dtype=float, max_size=5)
    | hpd.indexes(dtype=bool, max_size=5),
    name=st.none() | words | st.integers() | st.tuples(words),
)
def test_indexes(index, name, tmp_path_factory):
    frame = pd.DataFrame({"x": range(len(index))}, index=index.rename(name))
    strictly(trip(frame, tmp_path_factory.mktemp("t")), frame)


@quick
@given(
    labels=st.lists(words | st.integers() | st.none() | st.tuples(words, st.integers()) | st.dates(), max_size=5),
    name=st.none() | words,
)
def test_labels(labels, name, tmp_path_factory):
    frame = pd.DataFrame(np.zeros((2, len(labels))))
    frame.columns = pd.Index(np.fromiter(labels, object, len(labels)), dtype=object, name=name, tupleize_cols=False)
    back = trip(frame, tmp_path_factory.mktemp("t"))
    assert [(type(v), v) for v in back.columns] == [(type(v), v) for v in labels] and back.columns.names == [name]
    assert np.array_equal(back.to_numpy(), frame.to_numpy()) and back.index.equals(frame.index)


moments = pd.date_range("2026-03-28 22:00", periods=4, freq="h", tz="UTC")
CASES = {
    "zoneinfo": pd.Series(moments.tz_convert(zoneinfo.ZoneInfo("Europe/Berlin"))),
    "pytz": pd.Series(moments.tz_convert(pytz.timezone("America/New_York"))),
    "fixed": pd.Series(moments.tz_convert(datetime.timezone(datetime.timedelta(hours=5, minutes=30)))),
    "zone in seconds": pd.Series(moments.tz_convert("Asia/Tokyo").as_unit("s")),
    "missing moments": pd.Series([moments[0], pd.NaT]),
    "string python": pd.Series(["a", None], dtype="string[python]"),
    "string pyarrow": pd.Series(["a", None], dtype="string[pyarrow]"),
    "string numpy": pd.Series(["a", None], dtype=pd.StringDtype("pyarrow", na_value=np.nan)),
    "UInt8": pd.Series([255, None], dtype="UInt8"),
    "Float32": pd.Series([0.1, None], dtype="Float32"),
    "arrow": pd.Series([1, None], dtype="int32[pyarrow]"),
    "arrow date": pd.Series([datetime.date(2026, 1, 1), None], dtype="date32[day][pyarrow]"),
    "cut": pd.Series(pd.cut([1, 5, np.nan], [0, 4, 8, 12])),
    "qcut": pd.Series(pd.qcut([1.0, 2, 3, 4], 2)),
    "categories of moments": pd.Series(pd.Categorical(moments.tz_localize(None))),
    "categories of zoned moments": pd.Series(pd.Categorical(moments)),
    "categories of periods": pd.Series(pd.Categorical(pd.period_range("2026", periods=2, freq="M"))),
    "categories of flags": pd.Series(pd.Categorical([True, None, False])),
    "no categories": pd.Series(pd.Categorical([None, None])),
    "interval of moments": pd.Series(pd.arrays.IntervalArray.from_breaks(moments)),
    "interval, missing": pd.Series(pd.arrays.IntervalArray.from_tuples([(0.0, 1.0), np.nan], closed="both")),
    "period": pd.Series(pd.PeriodIndex(["2026-01", None], freq="M")),
    "list of None": pd.Series([[None, 1], []]),
    "nested": pd.Series([[[1], [2, 3]], []]),
    "dicts": pd.Series([{"a": 1}, {"a": 2}]),
    "vectors": pd.Series([np.arange(3), np.arange(0)]),
    "vectors of float": pd.Series([np.array([np.nan, 1], "f4")]),
    "empty": pd.Series([], dtype=object),
    "empty float": pd.Series([], dtype=float),
    "negative zero": pd.Series([-0.0, 0.0], dtype=object),
    "frequency": pd.Series(1, index=pd.date_range("2026", periods=3, freq="MS")),
    "business": pd.Series(1, index=pd.bdate_range("2026", periods=3)),
    "deltas": pd.Series(1, index=pd.timedelta_range("1s", periods=3, freq="s")),
    "interval index": pd.Series(1, index=pd.interval_range(0, 3)),
    "category index": pd.Series(1, index=pd.CategoricalIndex(["a", "b"])),
    "two levels": pd.Series(1, index=pd.MultiIndex.from_product([["a", "b"], [1.5, np.nan]], names=["a", "a"])),
    "no rows": pd.DataFrame({"a": [], "b": pd.Categorical([])}),
    "no columns": pd.DataFrame(index=["x", "y"]),
    "nothing": pd.DataFrame(),
    "same name": pd.DataFrame([[1, 2, "x"]], columns=["a", "a", "a.1"]),
    "label like index": pd.DataFrame({"index": [1]}, index=["r"]),
    "moment labels": pd.DataFrame(np.zeros((1, 4)), columns=moments),
    "category labels": pd.DataFrame([[1]], columns=pd.CategoricalIndex(["a"])),
    "range labels": pd.DataFrame(np.zeros((2, 3)), columns=pd.RangeIndex(0, 6, 2, name="n")),
    "stepped rows": pd.DataFrame({"a": range(3)}, index=pd.RangeIndex(9, 0, -3)),
}


@pytest.mark.parametrize("value", CASES.values(), ids=CASES.keys())
def test_case(value, tmp_path):
    back = trip(value, tmp_path)
    compare = pd.testing.assert_frame_equal if value.ndim == 2 else pd.testing.assert_series_equal
    compare(back, value, check_freq=True, check_exact=True)
    if value.ndim == 1:
        assert back.dtype == value.dtype and back.name == value.name
    assert type(back.index) is type(value.index) and back.index.names == value.index.names
    if isinstance(value.dtype if value.ndim == 1 else None, pd.StringDtype):
        assert (back.dtype.storage, repr(back.dtype.na_value)) == (value.dtype.storage, repr(value.dtype.na_value))


def test_result_is_writable(tmp_path):
    frame = trip(pd.DataFrame({"n": [1, 2], "w": ["a", "b"], "t": moments[:2]}), tmp_path)
    frame.loc[0, "n"], frame.loc[0, "w"] = 7, "z"
    assert frame["n"].tolist() == [7, 2] and frame["w"].tolist() == ["z", "b"]
    frame["n"].to_numpy()


def test_same_table_same_bytes(tmp_path):
    frame = pd.DataFrame({"a": [1.5, None], "b": pd.Categorical(["x", "y"])})
    write_table(frame, tmp_path / "a")
    write_table(frame.copy(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_attrs_are_kept():
    frame = pd.DataFrame({"a": [1]})
    frame.attrs = {"unit": "km", "range": (0, 1)}
    assert from_arrow(to_arrow(frame)).attrs == frame.attrs


def test_other_programs_read_it(tmp_path):
    frame = pd.DataFrame({"plan": pd.Categorical(["free"]), "band": pd.cut([1], [0, 2])}, index=[5]).rename_axis("id")
    write_table(frame, tmp_path / "t")
    assert pd.read_parquet(tmp_path / "t").to_dict("records") == [{"plan": "free", "band": "0: (0, 2]", "id": 5}]


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        ([1, "a"], "astype(str)"),
        ([True, 1], "astype(str)"),
        ([1, 1.5], "astype(str)"),
        ([pd.Timestamp(0), "x"], "astype(str)"),
        ([object()], "astype(str)"),
        ([datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)], "to_datetime"),
        ([np.array([1, "a"], dtype=object)], ""),
        (["a\ud800"], ""),
        ([np.ma.masked], ""),
    ],
)
def test_refused_with_the_column_and_the_cure(values, cure, tmp_path):
    frame = pd.DataFrame({"odd": pd.Series(np.fromiter(values, object, len(values)), dtype=object)})
    with pytest.raises(ScrapError, match="column 'odd'") as e:
        trip(frame, tmp_path)
    assert cure in e.value.cure and e.value.cure


def test_subclass_is_refused(tmp_path):
    class Frame(pd.DataFrame):
        pass

    with pytest.raises(ScrapError, match="plain DataFrame"):
        trip(Frame({"a": [1]}), tmp_path)
