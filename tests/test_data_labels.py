"""The label language on arbitrary input: never a crash, never code, always three-valued logic."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.data.labels import columns_in, compute, label_table, make_label
from mlnb.errors import DataError

FRAME = pd.DataFrame({"a": [1.0, -2.0, None, 0.0], "b": [3, 1, 0, 2], "c d": ["x", "y", None, "x"],
                      "class": [True, False, None, True], "t": pd.to_datetime(["2024-01-01", None] * 2)})

numbers = st.deferred(lambda: st.sampled_from(["a", "b", "2", "0.5", "abs(a)", "-b"])
                      | st.tuples(numbers, st.sampled_from("+-*"), numbers).map("({0[0]} {0[1]} {0[2]})".format))
comparisons = (st.tuples(numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers).map(" ".join)
               | st.sampled_from(["`c d` == 'x'", "`c d` in ['x', 'z']", "`class`", "isnull(a)", "notnull(`c d`)"]))
conditions = st.recursive(comparisons, lambda inner: st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
    "({0[0]}) {0[1]} ({0[2]})".format) | inner.map("not ({})".format), max_leaves=6)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_label_or_a_data_error(text):
    try: assert len(compute(FRAME, text)) == len(FRAME)
    except DataError as error: assert str(error)


@given(st.text(alphabet="ab`'\"()[]{}<>=!&|~+-*/%.,:; 0123456789lambdforinot_", max_size=40))
@settings(max_examples=100, deadline=None)
def test_text_that_looks_like_python_is_a_label_or_a_data_error(text):
    try: compute(FRAME, text)
    except DataError as error: assert str(error)


def python_value(expression, row):
    "The same condition by Python itself on one row without missing values."
    names = {"a": row["a"], "b": row["b"], "backtick_c_d": row["c d"], "backtick_class": bool(row["class"]), "abs": abs,
             "isnull": lambda v: False, "notnull": lambda v: True}
    plain = expression.replace("`c d`", "backtick_c_d").replace("`class`", "backtick_class")
    return eval(plain, {"__builtins__": {}}, names)


@given(conditions)
@settings(max_examples=100, deadline=None)
def test_complete_rows_agree_with_python(expression):
    complete = FRAME.dropna()
    try: found = compute(complete, expression)
    except DataError as error:
        assert "uses no column" in str(error) or "same for every row" in str(error)
        return
    expected = [python_value(expression, row) for row in complete.to_dict("records")]
    assert found.tolist() == expected


@given(conditions)
@settings(max_examples=100, deadline=None)
def test_a_known_answer_holds_whatever_the_missing_value_is(expression):
    "Kleene's rule: what is computed beside a gap must be right for every value the gap could have."
    if "null" in expression: return
    frame = pd.DataFrame({"a": [None, 1.0], "b": [1.0, None], "c d": ["x", None], "class": [None, True]})
    frame["class"] = frame["class"].astype("boolean")
    try: found = compute(frame, expression)
    except DataError: return
    for a, b, text, flag in [(-1.0, 2.0, "y", False), (1.0, 0.5, "z", True), (2.0, 1.0, "x", True)]:
        filled = frame.fillna({"a": a, "b": b, "c d": text, "class": flag})
        known = found.notna()
        assert compute(filled, expression)[known].tolist() == found[known].tolist()


@pytest.mark.parametrize("name", ["a b", "class", "größe/m²", "`", 'a"b', "a'b", "True", "1", "a.b", "x and y", " "])
def test_any_column_name_is_a_label(name):
    frame = pd.DataFrame({name: [0, 1] * 40, "x": range(80)})
    assert columns_in(name, frame) == [name]
    quoted = "`" + name.replace("`", "``") + "` > 0"
    assert columns_in(quoted, frame) == [name]
    rows, facts = label_table(frame, quoted)
    assert facts["task"] == "binary" and rows[facts["name"]].tolist() == [0, 1] * 40


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=120))
@settings(max_examples=100, deadline=None)
def test_codes_and_classes_say_the_same_as_the_column(values):
    frame = pd.DataFrame({"y": pd.Series(values, dtype=object)})
    try: codes, facts = make_label(frame, "y")
    except DataError:
        assert len(set(values) - {None}) < 2
        return
    assert [None if pd.isna(code) else facts["classes"][code] for code in codes] == values
    assert facts["missing"] == values.count(None) and sum(facts["counts"]) == len(values) - values.count(None)


def test_the_label_column_replaces_its_source_and_nothing_else():
    frame = pd.DataFrame({"x": np.arange(60), "y": ["no", "yes"] * 30, "label": 1})
    rows, facts = label_table(frame, "y")
    assert list(rows.columns) == ["x", "y", "label"] and rows.y.tolist() == [0, 1] * 30 and facts["uses"] == ["y"]
    rows, facts = label_table(frame, "x > 10")
    assert facts["name"] == "label_" and rows.label.tolist() == [1] * 60
