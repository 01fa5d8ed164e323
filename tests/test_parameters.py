"""Parameters hold for any value and any cell, not only for those of the lesson."""

import json
import keyword
import math
import os
import pickle
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notebooks import write_notebook

from mlnb.errors import ParameterError
from mlnb.pipeline.annotations import describe, find_range, fit, read_annotation, read_range
from mlnb.pipeline.assign import assign, mask, missing_secrets
from mlnb.pipeline.notebook import Cell
from mlnb.pipeline.parameters import Secret, coerce, from_json, read_parameters, to_json, to_python
from mlnb.pipeline.stage import read_stage

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.datetimes()
    | st.dates()
    | st.timedeltas()
    | st.datetimes(timezones=st.just(UTC))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def parameters_of(source):
    return read_parameters(Cell(0, "", "code", source, ("parameters",), []))


def same(a, b):
    return type(a) is type(b) and a == b


@given(values)
def test_a_value_survives_code_and_json(value):
    assert same(eval(to_python(value), {}), value)
    assert same(from_json(json.loads(json.dumps(to_json(value), allow_nan=False))), value)


@given(values, values)
def test_different_values_have_different_json(a, b):
    if json.dumps(to_json(a)) == json.dumps(to_json(b)):
        assert same(a, b)


finite = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(finite, st.lists, max_leaves=8))
def test_a_literal_default_is_read_as_python_reads_it(value):
    found, problems = parameters_of(f"x = {value!r}")
    assert problems == [] and repr(found[0].default) == repr(value)


@given(st.text())
def test_any_text_is_read_or_is_a_syntax_error(source):
    try:
        found, problems = parameters_of(source)
    except SyntaxError:
        return
    assert all(p.name.isidentifier() for p in found) and all(p.level in ("error", "warning") for p in problems)


@given(st.text(alphabet="=:#[](){}'\"\\,. \n1aintflosr_|", max_size=60))
def test_python_like_text_is_read_or_is_a_syntax_error(source):
    try:
        parameters_of(source)
    except SyntaxError:
        return


@given(
    st.text(
        alphabet=st.characters(
            exclude_characters="\n\r\x0c\x0b\x1c\x1d\x1e\x85\u2028\u2029\x00", exclude_categories=("Cs",)
        )
    )
)
def test_the_comment_is_what_stands_behind_the_hash(comment):
    found, _ = parameters_of(f"é: str = '# ü'  # {comment}")
    assert found[0].comment == comment.strip()


KINDS = {
    "int": st.integers(),
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "str": st.text(),
    "list[int]": st.lists(st.integers()),
    "datetime": st.datetimes(),
    "date": st.dates(),
    "dict[str, int]": st.dictionaries(st.text(), st.integers()),
    "int | None": st.none() | st.integers(),
    "tuple[int, str]": st.tuples(st.integers(), st.text()),
    "Literal[1, 'a', None, True]": st.sampled_from([1, "a", None, True]),
}


@given(st.sampled_from(sorted(KINDS)).flatmap(lambda k: st.tuples(st.just(k), KINDS[k])))
def test_a_value_of_the_kind_is_kept(pair):
    kind, value = pair
    assert same(fit(read_annotation(kind), value), value)


@given(st.sampled_from(sorted(KINDS)), values)
def test_fitting_twice_changes_nothing_more(kind, value):
    kind = read_annotation(kind)
    try:
        fitted = fit(kind, value)
    except ValueError:
        return
    assert same(fit(kind, fitted), fitted) and describe(kind)


@given(st.sampled_from(sorted(KINDS)), st.text())
def test_a_text_fits_or_is_a_value_error(kind, text):
    kind = read_annotation(kind)
    try:
        fit(kind, text)
    except ValueError:
        return


@given(st.integers(), st.integers(), st.integers())
def test_a_range_holds_what_it_says(low, high, value):
    kind = read_annotation(f"Annotated[int, 'in [{low}, {high})']")
    try:
        fit(kind, value)
        inside = True
    except ValueError:
        inside = False
    assert inside == (low <= value < high)


@pytest.mark.parametrize(
    "text,bounds",
    [
        ("at least 1", ((">=", 1),)),
        ("at most 1e3", (("<=", 1000.0),)),
        ("above 0 and below 1", ((">", 0), ("<", 1))),
        ("in (0, 1]", ((">", 0), ("<=", 1))),
        ("between -1 and 1", ((">=", -1), ("<=", 1))),
        ("0 or more", ((">=", 0),)),
        ("> 0", ((">", 0),)),
        ("in [0, inf)", ((">=", 0), ("<", math.inf))),
    ],
)
def test_words_of_a_range_mean_the_same_in_annotation_and_comment(text, bounds):
    assert read_range(text) == bounds and find_range(f"a number, {text}") == bounds


@pytest.mark.parametrize(
    "comment",
    [
        "2 or 3 of them",
        "run for 10 epochs",
        "see section (1, 2)",
        "above all, be careful",
        "more than 10 is slow",
        "at least one",
        "",
    ],
)
def test_prose_is_no_range(comment):
    assert find_range(comment) == ()


@pytest.mark.parametrize(
    "annotation,good,bad",
    [
        ("int", ["5", 5, " 7 "], ["2.5", 2.5, True, "x", None, "", [1]]),
        ("float", ["1e-3", 1, "5", 0.5], ["x", True, None]),
        ("bool", ["true", "YES", "1", "off", False, 1], ["2", "maybe", None, 2]),
        ("str", ["", "x"], [1, True, None]),
        ("list[float]", ["1,2.5", "[1, 2]", [1], ""], ["a", "{}", 3, {"a": 1}]),
        ("dict", ['{"a": 1}', {"a": 1}, "{'a': 1}"], ["[1]", "a=1", 1]),
        ("int | None", ["null", "None", None, "3"], ["", "x"]),
        ("Literal['adam', 'sgd']", ["adam"], ["Adam", "", None]),
        ("datetime", ["2024-01-31", "2024-01-31T12:00:00+01:00", date(2024, 1, 1)], ["31.1.2024", 5]),
        ("timedelta", ["30m", 90, timedelta(1)], ["soon", True, None]),
        ("Optional[Annotated[int, Ge(1)]]", ["1", None], ["0"]),
    ],
)
def test_what_an_annotation_accepts(annotation, good, bad):
    parameter = parameters_of(f"x: {annotation}")[0][0]
    for value in good:
        coerce(parameter, value, "n.ipynb")
    for value in bad:
        with pytest.raises(ParameterError) as e:
            coerce(parameter, value, "n.ipynb")
        assert "n.ipynb" in str(e.value) and "'x'" in str(e.value) and describe(parameter.kind) in str(e.value)


def test_numpy_scalars_are_numbers():
    import numpy as np

    assert same(fit(read_annotation("int"), np.int64(3)), 3) and same(
        fit(read_annotation("float"), np.float32(0.5)), 0.5
    )
    with pytest.raises(ValueError):
        fit(read_annotation("int"), np.array([1]))


def test_the_lesson_of_papermill_is_a_parameter_table(tmp_path):
    stage = read_stage(
        write_notebook(
            tmp_path / "10_a.ipynb", ["x"], parameters="alpha = 0.1\nratio = 2  # type: float of it\nn = None"
        ),
        "p",
    )
    assert [(p.name, p.annotation, p.default, p.comment) for p in stage.parameters] == [
        ("alpha", "", 0.1, ""),
        ("ratio", "float", 2.0, "of it"),
        ("n", "", None, ""),
    ]
    assert stage.problems == () and assign({"a": stage}, ["n=[1, 2]", "alpha=3"])["a"] == {
        "alpha": 3.0,
        "ratio": 2.0,
        "n": [1, 2],
    }


names = st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(lambda n: not keyword.iskeyword(n))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.dictionaries(names, st.dictionaries(names, st.integers(0, 9), max_size=4), min_size=1, max_size=4), st.data())
def test_assign_gives_each_parameter_its_closest_value(tmp_path, table, data):
    stages = {
        name: read_stage(
            write_notebook(
                tmp_path / f"{name}.ipynb", [], parameters="\n".join(f"{p}: int = {d}" for p, d in own.items())
            ),
            "p",
        )
        for name, own in table.items()
    }
    every = [(s, p) for s in table for p in table[s]]
    if not every:
        return
    given_rows = data.draw(st.lists(st.tuples(st.sampled_from(every), st.booleans(), st.integers(10, 99)), max_size=6))
    expected = {s: dict(own) for s, own in table.items()}
    for one_stage in (False, True):
        for (s, p), particular, value in given_rows:
            if particular != one_stage:
                continue
            for target in [s] if particular else [t for t in table if p in table[t]]:
                expected[target][p] = value
    texts = [f"{s}.{p}={v}" if particular else f"{p}={v}" for (s, p), particular, v in given_rows]
    assert assign(stages, texts) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5), st.text(max_size=60))
def test_assign_takes_any_text_or_raises_a_parameter_error(tmp_path, given_texts, file):
    stage = read_stage(write_notebook(tmp_path / "10_a.ipynb", [], parameters="n: int = 1\ns: str = ''"), "p")
    (tmp_path / "p.yaml").write_text(file, encoding="utf-8", errors="replace")
    try:
        assign({"a": stage}, given_texts, tmp_path / "p.yaml")
    except ParameterError:
        return


@pytest.mark.parametrize(
    "texts,file,expected",
    [
        (["a.n=8", "n=7"], "", 8),
        (["n=7", "a.n=8"], "", 8),
        (["n=7", "n=6"], "", 6),
        (["n=7"], "n: 1\na: {n: 2}", 7),
        ([], "a: {n: 2}\nn: 1", 2),
        ([], "a.n: 3\nn: 1", 3),
        ([], "", 0),
    ],
)
def test_the_closer_word_wins(tmp_path, texts, file, expected):
    stage = read_stage(write_notebook(tmp_path / "10_a.ipynb", [], parameters="n: int = 0"), "p")
    (tmp_path / "p.yaml").write_text(file)
    assert assign({"a": stage}, texts, tmp_path / "p.yaml") == {"a": {"n": expected}}


def test_all_mistakes_come_in_one_message(tmp_path):
    stage = read_stage(
        write_notebook(tmp_path / "10_a.ipynb", [], parameters="epochs: int = 1  # at least 1\nlabel: str"), "p"
    )
    with pytest.raises(ParameterError) as e:
        assign({"a": stage}, ["epoch=2", "a.epochs=0", "b.x=1"])
    text = str(e.value)
    for part in ("4 mistakes", "did you mean 'epochs'", ">= 1", "no stage 'b'", "-p a.label=...", "10_a.ipynb"):
        assert part in text


def test_a_secret_never_shows(tmp_path):
    stage = read_stage(
        write_notebook(tmp_path / "10_a.ipynb", [], parameters='key: Secret = Secret("MLNB_TEST_KEY")'), "p"
    )
    assert assign({"a": stage}) == {"a": {}}
    with pytest.raises(ParameterError) as e:
        assign({"a": stage}, ["key=hunter2"])
    assert "hunter2" not in str(e.value) and "MLNB_TEST_KEY" in str(e.value)
    assert missing_secrets({"a": stage}, {})[0].cure == "export MLNB_TEST_KEY=..."
    assert mask(json.dumps({"x": "say hunter2!"}), ["hunter2"]) == json.dumps({"x": "say ***!"})
    os.environ["MLNB_TEST_KEY"] = "hunter2"
    try:
        assert (
            b"hunter2" not in pickle.dumps(Secret("MLNB_TEST_KEY"))
            and eval(to_python(Secret("MLNB_TEST_KEY"))) == "hunter2"
        )
    finally:
        del os.environ["MLNB_TEST_KEY"]


def test_the_front_of_the_engine_imports_nothing_heavy():
    heavy = (
        "tensorflow",
        "pandas",
        "numpy",
        "papermill",
        "scrapbook",
        "nbformat",
        "jsonschema",
        "IPython",
        "yaml",
        "inspect",
        "dataclasses",
        "asyncio",
        "subprocess",
        "difflib",
        "importlib.metadata",
        "textwrap",
    )
    code = (
        "import sys; import mlnb.pipeline.check, mlnb.pipeline.select, mlnb.pipeline.assign, mlnb.pipeline.draw; "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert found.stdout.strip() == "[]"


def test_a_datetime_default_is_read_in_all_spellings():
    source = (
        "from datetime import datetime\nimport datetime as dt\na = datetime(2024, 1, 2)\nb = dt.datetime(2024, 1, 2)\n"
        "c = datetime.fromisoformat('2024-01-02')\nd = dt.date(2024, 1, 2)\ne = dt.timedelta(hours=1)"
    )
    found, problems = parameters_of(source)
    assert not problems and [p.default for p in found] == [datetime(2024, 1, 2)] * 3 + [
        date(2024, 1, 2),
        timedelta(hours=1),
    ]
