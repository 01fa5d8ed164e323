"""Splits on arbitrary tables: nothing lost, nothing on two sides, nothing moved by order or by new rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnb.data.schemas import describe_table
from mlnb.data.splits import SPLITS, check_splits, row_hashes, split_table
from mlnb.errors import DataError

cells = st.one_of(st.none(), st.integers(-3, 3), st.floats(allow_nan=True), st.text(max_size=3), st.booleans())


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=30), st.randoms())
@settings(max_examples=30, deadline=None)
def test_hashes_follow_content_only(rows, shuffler):
    frame = pd.DataFrame(rows, columns=["a", "b"], dtype=object)
    hashes = row_hashes(frame)
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    assert row_hashes(frame.iloc[order]).tolist() == hashes[order].tolist()
    assert row_hashes(frame[["b", "a"]]).tolist() == hashes.tolist()
    assert row_hashes(frame.iloc[:1])[0] == hashes[0]


@given(st.integers(60, 300), st.integers(1, 400), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_every_row_is_in_one_split_and_equal_rows_stay_together(rows, kinds, seed):
    draw = np.random.default_rng(rows)
    frame = pd.DataFrame({"x": draw.integers(0, kinds, rows), "row": range(rows)})
    schema = describe_table(frame)
    try: splits = split_table(frame, schema, by=["x"], seed=seed, repeated="together")
    except DataError as error:
        assert "no row in" in str(error) and kinds < 100
        return
    assert sorted(pd.concat(splits.values()).row) == list(range(rows))
    assert not len(check_splits(splits, schema, by=["x"]))


def test_a_type_that_changes_with_one_row_moves_nobody():
    frame = pd.DataFrame({"n": range(500), "word": [f"w{i % 70}" for i in range(500)]})
    grown = pd.concat([frame, pd.DataFrame({"n": [None, "?"], "word": [None, "w"]})])
    sides = {name: set(part.n) for name, part in split_table(frame, describe_table(frame), by=["n", "word"]).items()}
    after = split_table(grown, describe_table(frame), by=["n", "word"])
    for name in SPLITS: assert sides[name] <= set(after[name].n)


def test_fractions_are_kept_within_chance():
    frame = pd.DataFrame({"x": np.arange(20_000) * 0.5})
    splits = split_table(frame, describe_table(frame), fractions=(0.5, 0.3, 0.2))
    shares = {name: len(part) / 20_000 for name, part in splits.items()}
    assert shares == pytest.approx({"train": 0.5, "valid": 0.3, "test": 0.2}, abs=0.02)


def test_a_group_column_keeps_groups_whole():
    frame = pd.DataFrame({"person": np.repeat(range(300), 5), "x": np.random.default_rng(0).normal(size=1500)})
    splits = split_table(frame, describe_table(frame), by=["person"])
    people = [set(part.person) for part in splits.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 300


@given(st.lists(st.integers(0, 30), min_size=60, max_size=200))
@settings(max_examples=30, deadline=None)
def test_by_time_older_rows_train(times):
    frame = pd.DataFrame({"t": times, "row": range(len(times))})
    try: splits = split_table(frame, describe_table(frame, time="t"))
    except DataError as error:
        assert any(text in str(error) for text in ("cannot order", "no row in", "holds no times"))
        return
    assert splits["train"].t.max() < splits["valid"].t.min() and splits["valid"].t.max() < splits["test"].t.min()
    assert sum(map(len, splits.values())) == len(times)
