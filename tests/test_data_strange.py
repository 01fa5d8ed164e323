"""Every strange table goes the whole way: file, schema, label, leaks, splits, baselines, model, one epoch, scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import strange_tables

from mlnb.data.labels import label_table
from mlnb.data.leaks import find_leaks, ignore_leaks
from mlnb.data.schemas import columns_of, describe_table
from mlnb.data.splits import check_splits, split_table
from mlnb.data.tables import read_table, tidy_table
from mlnb.data.validation import contract_text, infer_contract, read_contract, validate
from mlnb.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def prepared(frame, expression):
    rows, facts = label_table(frame, expression)
    schema = describe_table(rows, facts)
    leaks = find_leaks(rows, facts, schema)
    schema = describe_table(rows, facts, ignore=ignore_leaks(leaks, keep=tuple(facts["uses"])))
    return schema, split_table(rows, schema)


@pytest.fixture(params=strange_tables.STRANGE, ids=lambda maker: maker.__name__)
def strange(request):
    frame, expression = request.param()
    return tidy_table(frame), expression


def test_a_strange_table_is_described_labelled_and_split(strange):
    frame, expression = strange
    schema, splits = prepared(frame, expression)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert sum(map(len, splits.values())) == schema["rows"]
    assert not (check_splits(splits, schema).rule == "class missing").any()
    assert [c["name"] for c in schema["columns"]][: frame.shape[1]] == list(splits["test"].columns)[: frame.shape[1]]


def test_a_strange_table_keeps_its_own_contract(strange):
    frame, expression = strange
    rows, facts = label_table(frame, expression)
    schema = describe_table(rows, facts)
    contract = read_contract(contract_text(infer_contract(schema)))
    assert not len(validate(rows, contract, schema))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "tsv", "csv.gz"])
def test_a_strange_table_survives_a_file(strange, suffix, tmp_path):
    frame, expression = strange
    path = tmp_path / f"table.{suffix}"
    if suffix == "parquet": frame.to_parquet(path)
    else: frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    back = read_table(path)
    assert list(back.columns) == list(frame.columns) and len(back) == len(frame)
    before, after = (describe_table(f)["columns"] for f in (frame, back))
    differ = {a["name"]: (b["kind"], a["kind"]) for b, a in zip(before, after, strict=True) if b["kind"] != a["kind"]}
    assert not set(differ) - {"span", "ordered"}, differ
    label_table(back, expression)


@pytest.mark.tensorflow
def test_all_kinds_of_columns_train_and_score():
    frame, expression = strange_tables.everything()
    trains_and_scores(tidy_table(frame), expression)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_strange_table_trains_and_scores(strange):
    trains_and_scores(*strange)


def trains_and_scores(frame, expression):
    from mlnb.training.baselines import fit_baselines
    from mlnb.training.models import fit_model, predict
    schema, splits = prepared(frame, expression)
    baselines = fit_baselines(splits["train"], splits["valid"], schema)
    assert np.isfinite(baselines.metrics[baselines.metric]).all()
    model, history = fit_model(splits["train"], splits["valid"], schema, epochs=1, report=False)
    scores = predict(model, splits["test"], schema)
    assert len(scores) == len(splits["test"]) and np.isfinite(scores.to_numpy()).all() and history.best_epoch == 1


def test_ten_rows_are_refused_with_the_number_needed():
    with pytest.raises(DataError, match="50 rows or more"): label_table(*strange_tables.ten_rows())


def test_taxi_leaks_are_tips_and_payment_type():
    if not (SHARED / "chicago_taxi.csv").exists(): pytest.skip("no ../shared/data/chicago_taxi.csv beside the checkout")
    rows, facts = label_table(read_table(SHARED / "chicago_taxi.csv"), "tips > 0.2 * fare")
    assert sorted(find_leaks(rows, facts).column) == ["payment_type", "tips"]
    assert round(rows.label.mean(), 3) == 0.225
    slices, ignore = ["trip_start_hour", "payment_type"], ignore_leaks(find_leaks(rows, facts))
    schema = describe_table(rows, facts, slices, "trip_start_timestamp", ignore)
    assert "fare" in columns_of(schema, "feature") and columns_of(schema, "slices") == slices
    splits = split_table(rows, schema)
    assert splits["train"].trip_start_timestamp.max() < splits["test"].trip_start_timestamp.min()
    assert not len(check_splits(splits, schema))
