"""Rules give the same answer in a table, in the model, in the saved model and behind every door of the export, bit for bit."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import odd_shop, reference

from mlnb.data.labels import label_table
from mlnb.data.schemas import describe_table, measure
from mlnb.errors import EvaluationError
from mlnb.evaluation.assertions import apply_rules, firing_model, guard_model, read_rules
from mlnb.serving.export import export_model
from mlnb.testing import run_stage
from mlnb.training.models import build_model, predict, to_inputs

pytestmark = pytest.mark.tensorflow
TABLE, SCHEMA = odd_shop(400)
RULES = [
    {"name": "gross", "when": "\"größe/m²\" >= 60.1 and not class = 'a'", "score": 0.1},
    {"name": "billig", "when": "`価格` * 2 - 1 < 7 or class = 'it''s'", "at_least": 0.6},
    {"name": "frueh", "when": "\"bezahlt am\" < '2024-02-01' and neu", "at_most": 0.3},
    {"name": "leer", "when": "class is null and \"größe/m²\" is not null", "score": 1.0},
    {"name": "keiner", "when": "class in ('z', 'y') and `価格` between 3 and 4", "score": 0.0},
]


@pytest.fixture(scope="module")
def models():
    model = build_model(SCHEMA, (8,), 0.0)
    return model, guard_model(model, read_rules(RULES, SCHEMA), SCHEMA)


def test_the_table_and_the_model_say_the_same_and_what_a_person_expects(models):
    model, guarded = models
    plain = predict(model, TABLE, SCHEMA)
    ruled = apply_rules(plain, TABLE, read_rules(RULES, SCHEMA), SCHEMA)
    pd.testing.assert_frame_equal(ruled.scores, predict(guarded, TABLE, SCHEMA), check_exact=True)
    expected = plain.score.copy()
    expected[(TABLE["größe/m²"] >= 60.1) & (TABLE["class"] != "a") & TABLE["class"].notna()] = np.float32(0.1)
    cheap = (TABLE["価格"] * 2 - 1 < 7) | (TABLE["class"] == "it's")
    expected[cheap] = expected[cheap].clip(lower=np.float32(0.6))
    early = (pd.to_datetime(TABLE["bezahlt am"], format="%d.%m.%Y %H:%M") < "2024-02-01") & (TABLE["neu"] == True)  # noqa: E712
    expected[early] = expected[early].clip(upper=np.float32(0.3))
    expected[TABLE["class"].isna() & TABLE["größe/m²"].notna()] = 1.0
    np.testing.assert_array_equal(ruled.scores.score, expected)
    assert ruled.counts.fired.tolist()[:4] == ruled.fired.sum().tolist()[:4] and ruled.counts.fired.iloc[4] == 0
    assert (ruled.counts.changed <= ruled.counts.fired).all() and ruled.counts.fired.iloc[:4].gt(0).all()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([None, 60.1, 60.099998, -0.0, 1e30, float("inf"), -5.5]), st.sampled_from([None, "a", "", "z", "it's", "ü"]),
                          st.sampled_from([None, 3, 3.5, 4]), st.sampled_from([None, True, False]),
                          st.sampled_from([None, "31.01.2024 23:58", "01.02.2024 00:00", "no date"])), min_size=1, max_size=8))
def test_strange_rows_get_the_same_from_both(models, rows):
    model, guarded = models
    table = pd.DataFrame(rows, columns=["größe/m²", "class", "価格", "neu", "bezahlt am"]).astype(object)
    ruled = apply_rules(predict(model, table, SCHEMA), table, read_rules(RULES, SCHEMA), SCHEMA)
    pd.testing.assert_frame_equal(ruled.scores, predict(guarded, table, SCHEMA), check_exact=True)


CLIENT = """
import sys, numpy as np, tensorflow as tf
doors = tf.saved_model.load(sys.argv[1]).signatures
rows = np.load(sys.argv[2])
examples, given = [], {}
for name in rows.files:
    given[name] = tf.constant(rows[name].astype(object) if rows[name].dtype.kind == "U" else rows[name])
for i in range(len(rows[rows.files[0]])):
    features = {}
    for name in rows.files:
        value = rows[name][i]
        if rows[name].dtype.kind == "U": features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(value).encode()]))
        elif not np.isnan(value): features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
answers = [doors["serving_default"](**given)["scores"].numpy()[:, 0], doors["serving_tf_example"](examples=tf.constant(examples))["scores"].numpy()[:, 0],
           doors["classify"](inputs=tf.constant(examples))["scores"].numpy()[:, 1]]
fired = doors["rules"](**given)
np.savez(sys.argv[3], *answers, **{name: where.numpy() for name, where in fired.items()})
assert "mlnb" not in sys.modules
"""


def test_every_door_of_the_export_obeys_in_a_process_without_mlnb(models, tmp_path):
    model, guarded = models
    arrays = to_inputs(TABLE, SCHEMA)
    plain = export_model(model, SCHEMA, tmp_path / "plain", arrays, classes=["0", "1"])
    export = export_model(guarded, SCHEMA, tmp_path / "ruled", arrays, classes=["0", "1"])
    assert {name: one for name, one in export.signatures.items() if name != "rules"} == plain.signatures
    assert set(export.signatures["rules"]["outputs"]) == {rule["name"] for rule in RULES}
    np.savez(tmp_path / "rows.npz", **{name: array[:, 0].astype(str) if array.dtype == object else array[:, 0] for name, array in arrays.items()})
    words = [sys.executable, "-c", CLIENT, str(tmp_path / "ruled"), str(tmp_path / "rows.npz"), str(tmp_path / "answers.npz")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = np.load(tmp_path / "answers.npz")
    ruled = apply_rules(predict(model, TABLE, SCHEMA), TABLE, read_rules(RULES, SCHEMA), SCHEMA)
    for door in ("arr_0", "arr_1", "arr_2"):
        np.testing.assert_allclose(answers[door], ruled.scores.score, atol=1e-6)
        forced = ruled.fired["leer"].to_numpy()
        np.testing.assert_array_equal(answers[door][forced], 1.0)
    for name, where in ruled.fired.items():
        np.testing.assert_array_equal(answers[name], where)


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_rules_of_other_tasks(task, tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=200), "y": draw.normal(5, 2, 200) if task == "regression" else draw.choice(["rot", "grün", "blau"], 200)})
    table, facts = label_table(frame, "y")
    schema = measure(table, describe_table(table, facts))
    rules = read_rules([{"name": "r", "when": "a > 0"} | ({"at_most": -3} if task == "regression" else {"class": "grün"})], schema)
    model = build_model(schema, (4,), 0.0)
    guarded = guard_model(model, rules, schema)
    found = predict(guarded, table, schema)
    pd.testing.assert_frame_equal(found, apply_rules(predict(model, table, schema), table, rules, schema).scores, check_exact=True)
    if task == "regression":
        assert (found.score[table.a > 0] <= -3).all()
        with pytest.raises(EvaluationError, match="cannot set 'class'"):
            read_rules([{"name": "r", "when": "a > 0", "class": "x"}], schema)
    else:
        assert (found[table.a > 0] == [name == "grün" for name in found.columns]).all(axis=None)
        with pytest.raises(EvaluationError, match="did you mean 'grün'"):
            read_rules([{"name": "r", "when": "a > 0", "class": "gruen"}], schema)
    export = export_model(guarded, schema, tmp_path / "m", to_inputs(table, schema), task=task, classes=facts["classes"])
    assert "rules" in export.signatures and export.difference < 1e-5


def test_a_saved_guarded_model_needs_no_mlnb_to_be_read(models, tmp_path):
    models[1].save(tmp_path / "m.keras")
    np.savez(tmp_path / "rows.npz", **{n: a.astype(str) if a.dtype == object else a for n, a in to_inputs(TABLE, SCHEMA).items()})
    code = (
        "import sys, numpy as np, keras, tensorflow as tf\nmodel = keras.saving.load_model(sys.argv[1])\nrows = np.load(sys.argv[2])\n"
        "given = {n: tf.constant(rows[n].astype(object) if rows[n].dtype.kind == 'U' else rows[n]) for n in rows.files}\n"
        "np.save(sys.argv[3], model(given).numpy()); assert 'mlnb' not in sys.modules"
    )
    words = [str(tmp_path / name) for name in ("m.keras", "rows.npz", "scores.npy")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(np.load(words[2])[:, 0], predict(models[1], TABLE, SCHEMA).score)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_are_no_trouble(models, rows):
    model, _ = models
    ruled = apply_rules(predict(model, TABLE.head(rows), SCHEMA), TABLE.head(rows), read_rules(RULES, SCHEMA), SCHEMA)
    assert len(ruled.scores) == rows and len(ruled.counts) == len(RULES)
    assert apply_rules(np.full(1, 0.5), TABLE.head(1), [], SCHEMA).counts.empty
    with pytest.raises(EvaluationError, match="differ in number"):
        apply_rules(np.zeros(3), TABLE, read_rules(RULES, SCHEMA), SCHEMA)


def test_the_training_stage_puts_rules_into_the_model_and_counts_them():
    fitted = reference()
    refs = {"prepare.train": fitted.train.head(2000), "prepare.valid": fitted.valid.head(500), "prepare.schema": fitted.schema,
            "tune.best": {"learning_rate": 0.003, "units": [8], "dropout": 0.1}}
    rule = {"name": "very_ill", "when": "disea > 30", "score": 0.9, "why": "called in any case"}
    scraps = run_stage("nbs/stages/tabular/60_train.ipynb", {"epochs": 1, "rules": [rule]}, refs)
    ill = fitted.valid.head(500).disea > 30
    assert scraps["rules"].fired.tolist() == [int(ill.sum())] and ill.sum() > 0
    scores = predict(scraps["model"], fitted.valid.head(500), fitted.schema).score
    np.testing.assert_array_equal(scores[ill], np.float32(0.9))
    assert list(firing_model(scraps["model"]).output) == ["very_ill"]
