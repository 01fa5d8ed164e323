"""TensorFlow Model Analysis three ways (row by row, over histograms, vectorised) against each other and scikit-learn."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mlnb.errors import EvaluationError
from mlnb.evaluation.rows import check_rows
from mlnb.evaluation.slicing import Group
from mlnb.evaluation.tfma_files import write_result
from mlnb.evaluation.tfma_histograms import run_histograms
from mlnb.evaluation.tfma_model import evaluate_saved_model
from mlnb.evaluation.tfma_plan import beam_flags, beam_plan
from mlnb.evaluation.tfma_run import mended, run_tfma, slice_members
from mlnb.evaluation.tfma_validation import validation
from mlnb.evaluation.vectorised import vectorised_figures
from mlnb.training.quiet import import_quietly, quiet

pytestmark = pytest.mark.tensorflow

# largest difference from scikit-learn or the exact value, by path; everything not named: 1e-9 of the value
TOLERANCE = {
    "tfma": {"auc": 2e-3, "auc_precision_recall": 2e-2, "sparse_categorical": 1e-5, "squared_pearson": 0.05},
    "tfma histograms": {
        "auc": 4e-3,
        "auc_precision_recall": 2e-2,
        "sparse_categorical": 1e-5,
        "squared_pearson": 0.05,
        "mean_absolute_error": 1e-7,
        "mean_squared_error": 1e-7,
        "root_mean": 1e-7,
    },
}


def close(computed, metric, found, exact):
    allowed = next((v for k, v in reversed(TOLERANCE.get(computed, {}).items()) if metric.startswith(k)), 1e-9)
    return found == pytest.approx(exact, rel=max(allowed, 1e-9), abs=max(allowed, 1e-9), nan_ok=True)


def values(table):
    return table.set_index(["key", "metric"]).value.to_dict()


def exact_figures(rows, cut, specs, thresholds=()):
    groups = [Group(" x ".join(c for c, _ in key), key, own) for key, own in slice_members(cut, specs).items()]
    return values(vectorised_figures(rows, groups, thresholds))


def make(task, n=120, seed=0):
    """Rows with everything that has gone wrong once: ties, 0 and 1, weight 0, odd names, a slice with one class."""
    rng = np.random.default_rng(seed)
    kind = np.select([np.arange(n) < 30, np.arange(n) < 45], ["one class", "no weight"], "rest")
    cut = pd.DataFrame({"label": rng.choice(["ä b", "a,b=c", ""], n), "Größe [cm], ca.": kind})
    weights = np.where(cut["Größe [cm], ca."] == "no weight", 0.0, rng.choice([0.0, 1.0, 2.5], n))
    weights[:30] = 1.0
    frame = cut.rename(columns=lambda c: f"{c}!")
    if task == "binary":
        y = rng.integers(0, 2, n)
        y[:30] = 1
        s = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1), 2)
        s[60:64] = [0.0, 1.0, 0.5, 0.25]
        return check_rows(frame.assign(y=y), "y", s, weights=weights), cut
    if task == "multiclass":
        y = rng.integers(0, 3, n)
        y[:30] = 1
        s = rng.dirichlet([1, 1, 1], n)
        s[np.arange(n), y] += 0.4
        s /= s.sum(1, keepdims=True)
        names = ["r", "g]@0.5", "b"]
        return check_rows(frame.assign(y=y), "y", s, task, classes=[0, 1, 2], weights=weights)._replace(
            classes=tuple(names)
        ), cut
    if task == "multilabel":
        y = rng.integers(0, 2, (n, 3))
        y[:30, 0] = 1
        s = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1), 3)
        return check_rows(
            frame.assign(wet=y[:, 0], hot=y[:, 1], odd=y[:, 2]), ["wet", "hot", "odd"], s, task, weights=weights
        ), cut
    y = rng.normal(1e7, 3, n)  # sums of squares have no digits left for the spread: only the correlation suffers
    return check_rows(frame.assign(y=y), "y", y + rng.normal(0.2, 1, n), task, weights=weights), cut


SPECS = [(), ("Größe [cm], ca.",), ("label", "Größe [cm], ca.")]


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_the_three_paths_agree_on_rows_that_have_gone_wrong_once(task):
    rows, cut = make(task)
    thresholds = [0.25] if task in ("binary", "multilabel") else []
    exact = exact_figures(rows, cut, SPECS, thresholds)
    for table in (
        run_tfma(rows, cut, SPECS, thresholds=thresholds),
        run_histograms(rows, cut, SPECS, thresholds=thresholds),
    ):
        found, (computed,) = values(table), table.computed.unique()
        assert set(found) == set(exact)
        wrong = {
            name: (value, exact[name]) for name, value in found.items() if not close(computed, name[1], value, exact[name])
        }
        assert not wrong, computed
        if task == "binary":
            check_against_scikit_learn(rows, cut, computed, found)


def check_against_scikit_learn(rows, cut, computed, found):
    for key, members in slice_members(cut, SPECS).items():
        y, s, w = rows.labels[members], rows.scores[members], rows.weights[members]
        text = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
        if not w.sum():
            assert all(np.isnan(v) for (k, m), v in found.items() if k == text and m != "example_count")
            continue
        if len(set(y[w > 0])) < 2:
            assert np.isnan(found[text, "auc"]) and np.isfinite(found[text, "recall"])
            continue
        given = {"sample_weight": w}
        exact = {
            "auc": sk.roc_auc_score(y, s, **given),
            "binary_accuracy": sk.accuracy_score(y, s > 0.5, **given),
            "precision@0.25": sk.precision_score(y, s > 0.25, **given),
            "recall": sk.recall_score(y, s > 0.5, **given),
            "f1_score": sk.f1_score(y, s > 0.5, **given),
            "specificity": sk.recall_score(1 - y, s <= 0.5, **given),
            "binary_crossentropy": sk.log_loss(y, np.clip(s, 1e-7, 1 - 1e-7), **given),
            "calibration": np.average(s, weights=w) / np.average(y, weights=w),
        }
        assert all(close(computed, metric, found[text, metric], value) for metric, value in exact.items())


def test_a_ranking_agrees_with_scikit_learn_and_the_vectorised_path():
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"q": np.repeat(np.arange(40), 6), "gain": rng.integers(0, 3, 240), "s": rng.random(240)})
    cut = pd.DataFrame({"land": np.where(frame.q % 3, "ä", "it")})
    rows = check_rows(frame, "gain", "s", "ranking", query="q", weights=1.0 + (frame.q.to_numpy() % 2))
    found, exact = values(run_tfma(rows, cut, [(), ("land",)], thresholds=[3])), exact_figures(rows, cut, [(), ("land",)], [3])
    assert found == pytest.approx(exact)
    part = frame[frame.q % 3 == 0].groupby("q").filter(lambda g: g.gain.max() > 0)
    each = [(1 + q % 2, sk.ndcg_score([g.gain], [g.s], k=3)) for q, g in part.groupby("q")]
    assert found['[["land","it"]]', "ndcg@3"] == pytest.approx(np.average([v for _, v in each], weights=[w for w, _ in each]))


def test_scores_that_histograms_could_get_wrong():
    rng = np.random.default_rng(5)
    n = 1000
    y, limit = rng.integers(0, 2, (4, n)), 1e-3 + 2e-8
    tiny = 1e-3 + 1e-9 * rng.integers(0, 50, n)
    s = [np.full(n, 0.5), np.where(y[1] == 1, 0.5, np.nextafter(0.5, 1)), tiny, rng.random(n) ** 20]
    rows = check_rows(pd.DataFrame({"y": y.ravel()}), "y", np.concatenate(s))
    cut = pd.DataFrame({"kind": np.repeat(["all alike", "beside the threshold", "close", "skewed"], n)})
    found = values(run_histograms(rows, cut, [(), ("kind",)], thresholds=[limit], bins=50))
    exact = exact_figures(rows, cut, [(), ("kind",)], [limit])
    assert set(found) == set(exact)
    for (key, metric), value in found.items():
        if not metric.startswith("auc"):
            assert value == pytest.approx(exact[key, metric], rel=1e-9, nan_ok=True), (key, metric)


@pytest.mark.parametrize("name", ["MeanAbsoluteError", "MeanSquaredError", "BinaryCrossEntropy"])
def test_parts_are_merged_once_where_tfma_counts_the_first_twice(name):
    import_quietly("tensorflow_model_analysis")
    from tensorflow_model_analysis.metrics import metric_types

    def merged(parts):
        (one,) = metric_types.registered_metrics()[name]().computations()
        combine, made = one.combiner, []
        for label, score in parts:
            given = metric_types.StandardMetricInputs(
                label=np.array([label]), prediction=np.array([score]), example_weight=np.array([1.0])
            )
            made.append(combine.add_input(combine.create_accumulator(), given))
        return next(iter(combine.extract_output(combine.merge_accumulators(made)).values()))

    parts = [(1.0, 0.9), (0.0, 0.8), (1.0, 0.4)]
    loss = {
        "MeanAbsoluteError": lambda y, s: abs(y - s),
        "MeanSquaredError": lambda y, s: (y - s) ** 2,
        "BinaryCrossEntropy": lambda y, s: -np.log(s if y else 1 - s),
    }[name]
    exact = np.mean([loss(*one) for one in parts])
    assert merged(parts) != pytest.approx(exact), "TFMA is mended: drop `mended`"
    with mended():
        assert merged(parts) == pytest.approx(exact)


def test_two_workers_give_the_figures_of_one_process():
    rows, cut = make("regression", 80)
    many = ["direct_running_mode=multi_processing", "direct_num_workers=2"]
    found = values(run_tfma(rows, cut, beam_runner="direct", beam_options=many))
    exact = exact_figures(rows, cut, [()])
    assert all(close("tfma", metric, value, exact[key, metric]) for (key, metric), value in found.items())


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_written_files_open_as_tfmas_own_do(task, tmp_path):
    rows, cut = make(task, 200)
    table = run_tfma(rows, cut, [(), ("label",)], folder=tmp_path / "own", intervals="none")
    write_result(table, rows, [(), ("label",)], tmp_path / "ours", members=slice_members(cut, [(), ("label",)]))
    tfma = import_quietly("tensorflow_model_analysis")
    with quiet():
        own, ours = (tfma.load_eval_result(str(tmp_path / name)) for name in ("own", "ours"))
    assert [list(one.feature_keys) for one in ours.config.slicing_specs] == [[], ["label"]]

    def flat(result):
        return {
            (key, part, name): float(value["doubleValue"])
            for key, found in result.slicing_metrics
            for part, figures in found[""].items()
            for name, value in figures.items()
            if "doubleValue" in value
        }

    theirs, written = flat(own), flat(ours)
    assert set(theirs) <= set(written)
    undefined = {name for name in theirs if np.isnan(written[name])}
    assert all("auc" in name[2] for name in undefined if not np.isnan(theirs[name]))
    kept = {name: value for name, value in theirs.items() if name not in undefined}
    assert {name: written[name] for name in kept} == pytest.approx(kept)
    if task == "binary":
        assert {key for key, _ in ours.plots} == {key for key, _ in own.plots}
        again = write_result(table[table.key == "[]"], rows, [()], tmp_path / "ours")
        with quiet():
            assert len(tfma.load_eval_result(str(again)).slicing_metrics) == 1


def test_validation_says_what_comparing_by_hand_says(tmp_path):
    rng = np.random.default_rng(2)
    keys = ["[]"] + [json.dumps([["plan", v]], ensure_ascii=False) for v in "äbcd"]
    table = pd.DataFrame([(k, k, m, rng.random(), False) for k in keys for m in ("auc", "recall")])
    table.columns = ["slice", "key", "metric", "value", "small"]
    champion = table.assign(value=rng.random(len(table)))
    now, then = values(table), values(champion)
    for _ in range(12):
        metric, operator = str(rng.choice(["auc", "recall"])), str(rng.choice([">=", ">", "<=", "<"]))
        scope, kind = str(rng.choice(["overall", "slices"])), str(rng.choice(["value", "change"]))
        number = float(rng.choice([now["[]", metric], rng.random() - 0.5 * (kind == "change")]))
        found = validation(table, [(metric, operator, number, scope, kind)], champion, tmp_path)
        broken = set()
        for key in keys[:1] if scope == "overall" else keys[1:]:
            figure = now[key, metric] - (then[key, metric] if kind == "change" else 0)
            holds = {">=": figure >= number, ">": figure > number, "<=": figure <= number, "<": figure < number}
            if not holds[operator]:
                broken.add(key)
        assert {one["key"] for one in found["failures"]} == broken and found["passed"] == (not broken)
        assert import_quietly("tensorflow_model_analysis").load_validation_result(str(tmp_path)).validation_ok == (
            not broken
        )


def test_a_saved_model_is_judged_with_weights_labels_and_zipped_files(tmp_path):
    tf = import_quietly("tensorflow")
    rng = np.random.default_rng(4)
    n = 200

    class Tags(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def answer(self, examples):
            x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
            return {"predictions": tf.sigmoid(x)}

    tags = Tags()
    with quiet():
        tf.saved_model.save(tags, str(tmp_path / "model"), signatures={"serving_tf_example": tags.answer})
    x = rng.normal(0, 1, (n, 2)).astype("float32")
    y = (x + rng.normal(0, 1, (n, 2)) > 0).astype(int)
    w, plan = rng.choice([0.0, 1.0, 2.0], n), rng.choice(["a", "ü=1"], n)

    def numbers(kind, value):
        return tf.train.Feature(**{f"{kind}_list": getattr(tf.train, f"{kind.title()}List")(value=value)})

    path = str(tmp_path / "part.tfrecord.gz")
    with tf.io.TFRecordWriter(path, "GZIP") as file:
        for i in range(n):
            feature = {
                "x": numbers("float", x[i]),
                "y": numbers("int64", y[i]),
                "w": numbers("float", [w[i]]),
                "plan": numbers("bytes", [plan[i].encode()]),
            }
            file.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    specs = [(), ("plan",)]
    found = evaluate_saved_model(
        tmp_path / "model", path, "y", "multilabel", specs, classes=["wet", "hot"], weights="w", thresholds=[0.3]
    )
    scores = 1 / (1 + np.exp(-x.astype(float)))
    rows = check_rows(pd.DataFrame({"wet": y[:, 0], "hot": y[:, 1]}), ["wet", "hot"], scores, "multilabel", weights=w)
    same = values(run_tfma(rows, pd.DataFrame({"plan": plan}), specs, thresholds=[0.3]))
    assert values(found) == pytest.approx(same, abs=1e-4)


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("flnk", (), "did you mean FlinkRunner?"),
        ("direct", ["direct_runing_mode=multi_processing"], "--direct_running_mode"),
        ("dataflow", ["project=p"], "google.auth|--region"),
        ("portable", (), "--job_endpoint"),
        ("prism", (), "--prism_location"),
        ("", ["what is this"], "no Beam option"),
        ("", ["@nothing.yaml"], "cannot be read"),
    ],
)
def test_a_plan_that_cannot_work_is_one_clear_line(runner, options, message):
    with pytest.raises(EvaluationError) as caught:
        beam_plan(runner, options)
    assert any(part in str(caught.value) for part in message.split("|"))


def test_options_come_from_files_and_secrets_are_not_shown(tmp_path):
    (tmp_path / "o.yml").write_text("job_endpoint: https://u:pw@h:1\nenvironment_type: LOOPBACK\napi_key: pw\nexperiments: [a, b]\n")
    plan = beam_plan("PortableRunner", f"@{tmp_path}/o.yml")
    assert plan.options[0].endswith("u:pw@h:1") and plan.remote and "pw" not in str(plan)
    assert beam_flags(f"@{tmp_path}/o.yml")[-2:] == ["--experiments=a", "--experiments=b"]
    for text in ("[1, 2]", "a: [", "'"):
        (tmp_path / "o.yml").write_text(text)
        with pytest.raises(EvaluationError):
            beam_flags(f"@{tmp_path}/o.yml")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"intervals": "t"}, "no intervals 't'"), ({"thresholds": [2.0]}, "no probability"), ({"beam_runner": "x"}, "no runner")],
)
def test_a_wrong_request_is_one_clear_line(change, message):
    rows, cut = make("binary")
    with pytest.raises(EvaluationError) as caught:
        run_tfma(rows, cut, [()], **change)
    assert message in str(caught.value)


def test_a_class_that_is_never_called_has_no_recall():
    """With `top_k` alone TFMA 0.52 says 1."""
    rng = np.random.default_rng(8)
    scores = rng.dirichlet([5, 5, 0.1], 60)
    scores[:, 2] = np.minimum(scores[:, 2], 0.01)
    rows = check_rows(pd.DataFrame({"y": rng.integers(0, 3, 60)}), "y", scores, "multiclass", classes=[0, 1, 2])
    found = values(run_tfma(rows, pd.DataFrame(index=range(60))))
    assert found["[]", "recall[2]"] == 0 and np.isnan(found["[]", "precision[2]"])
