"""Small values come back from strict JSON, and from a notebook file, as exactly what they were."""

import collections
import datetime
import enum
import json
import zoneinfo

import nbformat
import numpy as np
import pandas as pd
import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.errors import ScrapError
from mlnb.pipeline.parameters import Secret
from mlnb.pipeline.values import from_plain, to_plain, zone_name, zone_of

text = st.text(st.characters(exclude_categories=["Cs"]))
zones = (
    st.none()
    | st.just(datetime.UTC)
    | st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Tokyo"]).map(zoneinfo.ZoneInfo)
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.dates()
    | st.timedeltas()
    | st.times().map(lambda t: t.replace(fold=0))
    | st.datetimes().map(lambda t: t.replace(fold=0))
    | st.sampled_from(["123", "null", "true", '{"a": 1}', "[]", "$float", "NaN"])
)
keys = (
    text
    | st.integers()
    | st.booleans()
    | st.none()
    | st.tuples(text, st.integers())
    | st.sampled_from(["$float", "$dict", "$none"])
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(text, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal, of the same types throughout; dictionaries in any order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(any(same(k, other) and same(v, b[other]) for other in b) for k, v in a.items())
    if isinstance(a, float):
        return repr(a) == repr(b)
    return a == b


def through_notebook(data):
    """As nbformat writes and reads it: keys sorted, text split into lines."""
    cell = nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("display_data", {"application/x+json": {"data": data}})]
    )
    written = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
    return json.loads(written, parse_constant=pytest.fail)["cells"][0]["outputs"][0]["data"]["application/x+json"][
        "data"
    ]


@settings(max_examples=300, deadline=None)
@given(values)
def test_round_trip(value):
    assert same(from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False))), value)


@settings(max_examples=40, deadline=None)
@given(values)
def test_round_trip_through_a_notebook(value):
    assert same(from_plain(through_notebook(to_plain(value))), value)


@given(st.datetimes(min_value=datetime.datetime(1900, 1, 1), max_value=datetime.datetime(2100, 1, 1)), zones)
def test_moments_with_zones(moment, zone):
    moment = moment.replace(tzinfo=zone, fold=0)
    try:
        back = from_plain(to_plain(moment))
    except ScrapError:
        assert zone and moment.astimezone(datetime.UTC).astimezone(zone).replace(fold=0) != moment
    else:
        assert back == moment and back.tzinfo == zone and back.replace(tzinfo=None) == moment.replace(tzinfo=None)


@pytest.mark.parametrize(
    "moment",
    [
        pd.Timestamp("2026-11-20"),
        pd.Timestamp(1, unit="ns"),
        pd.Timestamp("2026-11-20", tz="Europe/Berlin"),
        pd.Timestamp("2026-11-20", tz="UTC").as_unit("s"),
        pd.Timestamp("2026-11-20", tz=pytz.timezone("Asia/Tokyo")),
        pd.Timedelta("1 day 3 ns"),
        pd.Timedelta("-1s").as_unit("ms"),
        pytz.timezone("Europe/Berlin").localize(datetime.datetime(2026, 7, 1)),
    ],
    ids=str,
)
def test_pandas_and_pytz_moments(moment):
    back = from_plain(json.loads(json.dumps(to_plain(moment))))
    assert back == moment and type(back) is type(moment) and getattr(back, "unit", 0) == getattr(moment, "unit", 0)
    assert str(getattr(back, "tzinfo", None)) == str(getattr(moment, "tzinfo", None))


@pytest.mark.parametrize(
    ("number", "plain"),
    [
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.float16(2), 2.0),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
    ],
    ids=repr,
)
def test_numpy_scalars_become_python_ones(number, plain):
    assert to_plain([number]) == [plain] and type(to_plain(number)) is type(plain)


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ({1, 2}, "sorted"),
        (np.ones(2), "tolist"),
        (np.array(1), "tolist"),
        (pd.NaT, ""),
        (pd.NA, ""),
        (Colour.RED, ".value"),
        (Point(1, 2), "_asdict"),
        (1j, "real"),
        (Secret("HOME"), "never written"),
        (np.datetime64("2026-01-01"), "Timestamp"),
        (object(), ""),
        (b"x", "by themselves"),
        (datetime.datetime(2026, 1, 1, tzinfo=pytz.FixedOffset(90)), "UTC"),
        (
            datetime.datetime(2026, 3, 29, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
            "UTC",
        ),  # an hour that the clock skips
        (datetime.time(1, tzinfo=datetime.UTC), ""),
        (np.longdouble(1), ""),
    ],
    ids=lambda v: type(v).__name__,
)
def test_refused_with_the_place(value, cure):
    with pytest.raises(ScrapError, match=r"thing\['a'\]\[0\]") as e:
        to_plain({"a": [value]}, "thing")
    assert cure in str(e.value)


def test_a_refused_secret_is_not_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "hunter2")
    with pytest.raises(ScrapError) as e:
        to_plain({"key": Secret("MY_KEY")})
    assert "hunter2" not in str(e.value)


def test_subclasses_of_containers_become_plain():
    assert to_plain(collections.Counter("aab")) == {"a": 2, "b": 1} and to_plain(collections.OrderedDict(b=1)) == {
        "b": 1
    }


@pytest.mark.parametrize(
    "zone",
    [
        None,
        datetime.UTC,
        datetime.timezone(datetime.timedelta(seconds=-5)),
        zoneinfo.ZoneInfo("UTC"),
        pytz.UTC,
        pytz.timezone("Europe/Berlin"),
    ],
    ids=repr,
)
def test_zones(zone):
    assert zone_of(zone_name(zone)) == zone


def test_json_from_elsewhere_is_left_alone():
    for data in ({"$unknown": 1}, {"$float": "nan", "b": 1}, [], {"a": [1, None]}):
        assert from_plain(data) == data
