"""Batch prediction: read as training read, every row once whatever happens, in little memory."""

import csv
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import odd_shop

from mlnb.data.labels import label_table
from mlnb.data.schemas import describe_table
from mlnb.data.tables import read_table
from mlnb.errors import MlnbError, ServingError
from mlnb.serving import batch_predict
from mlnb.serving.asker import Asker
from mlnb.serving.batch_predict import find_model, predict_rows
from mlnb.serving.codes import Refusal
from mlnb.serving.feeds import Signature, Slot
from mlnb.serving.row_source import RowSource
from mlnb.training.models import to_inputs

ROOT = Path(__file__).parents[1]
SIGNATURE = Signature({"x": Slot("DT_FLOAT", (-1,)), "s": Slot("DT_STRING", (-1, 1))}, {"scores": Slot("DT_FLOAT", (-1, 1))}, "")


def toy(feeds):
    """x plus the length of s; refuses 13."""
    if (feeds["x"] == 13).any(): raise Refusal("INVALID_ARGUMENT", "thirteen")
    return {"scores": (feeds["x"] + [len(one) for one in feeds["s"][:, 0]]).astype("float32").reshape(-1, 1)}


def asker(run=toy): return Asker(run, SIGNATURE)


def rows_file(folder, kind, count, wide=0):
    """A file of `count` rows; every 97th has no x, texts hold what CSV must quote."""
    frame = pd.DataFrame({"key": [f"k,{i}" for i in range(count)], "x": [None if i % 97 == 5 else 20.0 + i for i in range(count)],
                          "s": ['quoted "text"\nof two lines' * (i % 3) for i in range(count)], "big": [2**60 + i for i in range(count)]})
    if wide: frame["pad"] = "p" * wide
    path = folder / f"rows.{kind}"
    if kind == "csv": frame.to_csv(path, index=False)
    elif kind == "parquet": frame.to_parquet(path, row_group_size=1000)
    else: frame.to_json(path, orient="records", lines=True)
    return path


PREDICT = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[4])
from test_serving_predict import asker, toy
from mlnb.serving import batch_predict
from mlnb.serving.row_source import RowSource
batch_predict.PART_ROWS = 500
def slow(feeds):
    time.sleep(float(sys.argv[3]))
    return toy(feeds)
def progress(rows, share): print(rows, flush=True)
report = batch_predict.predict_rows(RowSource(sys.argv[1]), asker(slow), sys.argv[2], batch_size=100, resume=True, progress=progress)
print("resumed", report.resumed, report.rows)
"""


def start(source, target, pause=0.0, **more):
    words = [sys.executable, "-c", PREDICT, str(source), str(target), str(pause), str(ROOT / "tests")]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize(("kind", "suffix"), [("csv", ".parquet"), ("parquet", ".csv"), ("jsonl", ".parquet")])
def test_killed_again_and_again_the_output_is_the_same(tmp_path, kind, suffix, monkeypatch):
    """kill -9 at random moments until it is through: the same bytes as undisturbed, no row twice, none lost."""
    source = rows_file(tmp_path, kind, 4000)
    monkeypatch.setattr(batch_predict, "PART_ROWS", 500)
    predict_rows(RowSource(source), asker(), tmp_path / f"once{suffix}", batch_size=100)
    draw, target, killed = random.Random(7), tmp_path / f"twice{suffix}", 0
    while killed < 2:
        process = start(source, target, 0.01)
        for _ in range(draw.randrange(7, 18)): process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        assert not target.exists()
    process = start(source, target)
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0, wrong
    assert int(said.split("resumed")[1].split()[0]) >= 500 * killed
    assert target.read_bytes() == (tmp_path / f"once{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "twice" in path.name) == [target.name]
    found = pd.read_parquet(target) if suffix == ".parquet" else pd.read_csv(target)
    assert found["key"].tolist() == [f"k,{i}" for i in range(4000)]
    assert (found["big"].astype("int64") == 2**60 + np.arange(4000)).all() and found["error"].isna().all()
    x = pd.Series(20.0 + np.arange(4000)).mask(np.arange(4000) % 97 == 5)
    lengths = np.array([26 * (i % 3) for i in range(4000)])
    np.testing.assert_allclose(found["scores"], (x + lengths).astype("float32"))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Nine times the rows, the same peak: 6 MB and 55 MB of text, to Parquet and as CSV."""
    if not Path("/proc/self/status").exists(): pytest.skip("the peak of a process is read from /proc")
    def peak(count, kind, suffix):
        source = rows_file(tmp_path, kind, count, wide=1500)
        code = ("import re, sys\nsys.path.insert(0, sys.argv[3])\nfrom test_serving_predict import asker\nfrom mlnb.serving import batch_predict as b\n"
                "from mlnb.serving.row_source import RowSource\nb.PART_BYTES = 4 << 20\n"
                "b.predict_rows(RowSource(sys.argv[1]), asker(), sys.argv[2], batch_size=1000)\n"
                "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])")
        done = subprocess.run([sys.executable, "-c", code, source, tmp_path / f"out{suffix}", ROOT / "tests"], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "ARROW_DEFAULT_MEMORY_POOL": "system"})
        assert done.returncode == 0, done.stderr
        size = source.stat().st_size
        source.unlink()
        return int(done.stdout) / 1024, size / 2**20
    for kind, suffix in (("csv", ".parquet"), ("parquet", ".csv")):
        small, _ = peak(4_000, kind, suffix)
        large, megabytes = peak(36_000, kind, suffix)
        assert large - small < 45, f"{kind}: {small:.0f} MB became {large:.0f} MB for a file of {megabytes:.0f} MB"


def test_a_file_is_read_as_the_training_table_was(tmp_path):
    """Every format, in blocks of any size: the arrays that the model was trained on, odd names, dates, gaps and truth values included."""
    table, schema = odd_shop()
    table = table.drop(columns="y")
    table["code"] = np.where(np.arange(len(table)) % 3, "1", "7")
    table["code"] = table["code"].astype("int64")
    table["preis"] = np.arange(len(table)) / 4
    _, schema = label_table(odd_shop()[0], "y"), describe_table(table, kinds={"code": "category"})
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_csv(tmp_path / "semicolon.csv", index=False, sep=";", decimal=",", encoding="utf-8-sig")
    table.to_csv(tmp_path / "t.csv.gz", index=False)
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True, force_ascii=False)
    expected = to_inputs(read_table(tmp_path / "t.csv"), schema)
    slots = {name: Slot("DT_STRING" if array.dtype == object else "DT_FLOAT", (-1, 1)) for name, array in expected.items()}
    signature = Signature(slots, {"scores": Slot("DT_FLOAT", (-1, 1))}, "")
    for name in ("t.parquet", "t.csv", "semicolon.csv", "t.csv.gz", "t.jsonl"):
        for size in (7, 1000):
            seen = []
            def keep(feeds, seen=seen):
                seen.append(feeds)
                return {"scores": np.zeros((len(feeds["preis"]), 1), "float32")}
            source, one = RowSource(tmp_path / name), Asker(keep, signature, schema)
            assert one.features
            for block in source.blocks(size):
                _, bad = one.answer(block, source)
                assert not bad, (name, bad)
            for alias, array in expected.items():
                found = np.concatenate([feeds[alias] for feeds in seen])
                texts = [value.decode() for value in found[:, 0]] if found.dtype == object else found
                if found.dtype == object: assert texts == array[:, 0].tolist(), (name, size, alias)
                else: np.testing.assert_array_equal(found, array, err_msg=f"{name} {size} {alias}")


def write(path, text):
    path.write_text(text)
    return RowSource(path)


def test_a_bad_row_stops_or_is_marked(tmp_path):
    """With its number; its neighbours are answered as without it; keys stay."""
    source = write(tmp_path / "rows.csv", "key,x,s\na,1,\nb,two,\nc,13,\nd,4,xy,z\ne,,q\nf,6,xyz\n" + "".join(f"n{i},{i + 20},\n" for i in range(20)))
    with pytest.raises(ServingError, match="row 2 cannot be predicted: column 'x'") as found: predict_rows(source, asker(), tmp_path / "o.csv")
    assert "--on-error mark" in str(found.value) and not (tmp_path / "o.csv").exists()
    report = predict_rows(source, asker(), tmp_path / "o.parquet", on_error="mark")
    table = pd.read_parquet(report.target)
    assert table["key"].tolist()[:6] == list("abcdef") and report.rows == 26 and report.bad == 3
    assert table["error"].notna().tolist()[:6] == [False, True, True, True, False, False]
    assert "thirteen" in table["error"][2] and "4 fields" in table["error"][3]
    assert table["scores"].tolist()[0] == 1 and table["scores"].tolist()[5] == 9 and table["scores"].tolist()[6:] == [i + 20 for i in range(20)]
    assert [row for row, _ in report.examples] == [2, 3, 4]
    assert pq.read_table(report.target)["scores"].null_count == 3, "no answer is null, a NaN of the model is NaN"


def test_what_the_file_lacks_is_said_before_anything_is_computed(tmp_path):
    """All missing columns with near names, the wrong type, no rows, no such key, an answer's name taken."""
    def never(feeds): raise AssertionError("computed")
    with pytest.raises(ServingError, match="no x, s") as found: predict_rows(write(tmp_path / "a.csv", "X,other\n1,2\n"), asker(never), tmp_path / "o.csv")
    assert "'x' may be 'X'" in str(found.value)
    with pytest.raises(ServingError, match="most rows"): predict_rows(write(tmp_path / "b.csv", "x,s\nlow,a\nhigh,b\n"), asker(never), tmp_path / "o.csv")
    with pytest.raises(ServingError, match="no rows"): predict_rows(write(tmp_path / "c.csv", "x,s\n"), asker(never), tmp_path / "o.csv")
    good = write(tmp_path / "d.csv", "x,s,scores\n1,a,9\n")
    with pytest.raises(ServingError, match="called like an answer"): predict_rows(good, asker(), tmp_path / "o.csv")
    with pytest.raises(ServingError, match="no such column"): predict_rows(good, asker(), tmp_path / "o.csv", ["nokey"])
    with pytest.raises(ServingError, match="no name for the answers"): predict_rows(good, asker(), tmp_path / "o.txt")
    report = predict_rows(good, asker(), tmp_path / "o.csv", ["s", "x"])
    assert report.target.read_text().splitlines() == ['"s","x","scores","error"', '"a","1",2,']


def test_keys_are_copied_not_interpreted(tmp_path):
    """NA is Namibia, 007 is no 7, and a large number beside a missing one stays itself."""
    source = write(tmp_path / "a.csv", "country,agent,x,s\nNA,007,1,a\n,1e5,2,b\n")
    table = pd.read_parquet(predict_rows(source, asker(), tmp_path / "o.parquet").target)
    assert table["country"].tolist() == ["NA", ""] and table["agent"].tolist() == ["007", "1e5"]
    big = pa.table({"id": pa.array([2**62 + 1, None, 3]), "at": pa.array([0, 1, None], pa.timestamp("us", "UTC")), "x": [1.0, 2.0, 3.0], "s": ["", None, ""]})
    pq.write_table(big, tmp_path / "b.parquet")
    found = pq.read_table(predict_rows(RowSource(tmp_path / "b.parquet"), asker(), tmp_path / "o.parquet").target)
    assert found["id"].to_pylist() == [2**62 + 1, None, 3] and found["at"].type == big["at"].type
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"id": i if i < 1500 else "x", "x": 1, "s": ""}) + "\n" for i in range(1502)))
    with pytest.raises(ServingError, match="row 1501 .*column 'id'"): predict_rows(RowSource(tmp_path / "c.jsonl"), asker(), tmp_path / "o.csv")


def test_two_at_once_and_another_file_do_not_mix(tmp_path):
    """One output has one writer; parts of another input, model or setting are not gone on with."""
    source = rows_file(tmp_path, "csv", 3000)
    process = start(source, tmp_path / "o.csv", 0.05)
    for _ in range(12): process.stdout.readline()
    with pytest.raises(MlnbError, match="another process"): predict_rows(RowSource(source), asker(), tmp_path / "o.csv", batch_size=100, resume=True)
    process.kill()
    process.communicate()
    with pytest.raises(ServingError, match="--resume goes on"): predict_rows(RowSource(source), asker(), tmp_path / "o.csv", batch_size=100)
    with pytest.raises(ServingError, match="another batch_size"): predict_rows(RowSource(source), asker(), tmp_path / "o.csv", batch_size=50, resume=True)
    with pytest.raises(ServingError, match="another model"):
        predict_rows(RowSource(source), asker(), tmp_path / "o.csv", batch_size=100, resume=True, job={"model": "b"})
    os.utime(source)
    with pytest.raises(ServingError, match="another source"): predict_rows(RowSource(source), asker(), tmp_path / "o.csv", batch_size=100, resume=True)


def test_a_full_disk_is_an_error_that_can_be_resumed(tmp_path):
    """Parts that were written stay."""
    source = rows_file(tmp_path, "csv", 3000)
    predict_rows(RowSource(source), asker(), tmp_path / "once.csv", batch_size=100)
    limit = (tmp_path / "once.csv").stat().st_size // 2
    process = start(source, tmp_path / "o.csv", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, wrong = process.communicate(timeout=60)
    assert process.returncode == 1 and "disk is full" in wrong and not (tmp_path / "o.csv").exists()
    process = start(source, tmp_path / "o.csv")
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0, wrong
    assert "resumed 3000" in said and len(pd.read_csv(tmp_path / "o.csv")) == 3000


fields = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(fields, fields, fields), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([",", ";", "\t"]))
def test_any_csv_is_read_as_python_reads_it_from_every_mark(rows, size, separator):
    """Quotes, separators and line breaks in fields; going on from any mark gives the rest."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("alpha", "beta", "gamma"), ("a", "b", "c"), *rows])
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"any-{os.getpid()}.csv"
    path.write_bytes(text.getvalue().encode())
    try:
        source = RowSource(path)
        if source._by.separator != separator: return
        blocks = list(source.blocks(size))
        found = [row for block in blocks for row in block.frame.to_numpy().tolist()]
        assert found == [["a", "b", "c"], *map(list, rows)] and all(not block.bad for block in blocks)
        for i, block in enumerate(blocks[:-1]):
            rest = [row for after in source.blocks(size, block.mark) for row in after.frame.to_numpy().tolist()]
            assert rest == [row for after in blocks[i + 1:] for row in after.frame.to_numpy().tolist()]
            assert next(source.blocks(size, block.mark)).start == blocks[i + 1].start
    finally: path.unlink()


def test_files_that_are_none(tmp_path):
    """Each with one line."""
    (tmp_path / "open.csv").write_text('a,b\n"never closed,1\n' + "x" * (17 << 20))
    with pytest.raises(ServingError, match="never closed"): list(RowSource(tmp_path / "open.csv").blocks())
    (tmp_path / "utf16.csv").write_text("a,b\n1,2\n", encoding="utf-16")
    with pytest.raises(ServingError, match="iconv"): RowSource(tmp_path / "utf16.csv")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(ServingError, match="damaged"): RowSource(tmp_path / "torn.parquet")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ServingError, match="empty"): RowSource(tmp_path / "empty.csv")
    with pytest.raises(ServingError, match="folder"): RowSource(tmp_path)


def test_a_model_is_found_by_name_version_alias_or_folder(tmp_path):
    """An unknown one names what there is."""
    with pytest.raises(ServingError, match="that was registered"): find_model("churn", tmp_path)
    with pytest.raises(ServingError, match="no model"): find_model("../x", tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a registered export of a small real model, and rows for it."""
    code = """
import sys, numpy as np, pandas as pd, keras
from pathlib import Path
from mlnb.data.labels import label_table
from mlnb.data.schemas import describe_table, measure
from mlnb.serving.export import export_model
from mlnb.serving.registry import register
from mlnb.training.models import build_model, to_inputs
root = Path(sys.argv[1])
draw = np.random.default_rng(0)
frame = pd.DataFrame({"Alter": draw.integers(18, 80, 400), "plan": draw.choice(["a", "b", None], 400), "ja": draw.integers(0, 2, 400)})
table, facts = label_table(frame, "ja")
schema = measure(table, describe_table(table, facts))
keras.utils.set_random_seed(0)
model = build_model(schema)
exported = export_model(model, schema, root/"export", to_inputs(table.head(50), schema), classes=["0", "1"])
register(root/"runs"/"registry", "churn", exported.folder, {"evaluation": {"blessed": True}})
frame.drop(columns="ja").assign(id=range(400)).to_csv(root/"rows.csv", index=False)
from mlnb.serving.served import served_scores
rows = pd.read_csv(root/"rows.csv")
np.save(root/"expected.npy", served_scores(root/"export", {"alter": rows["Alter"].to_numpy(), "plan": rows["plan"].fillna("").to_numpy(object)}))
"""
    root = tmp_path_factory.mktemp("project")
    (root / "settings.ini").touch()
    done = subprocess.run([sys.executable, "-c", code, str(root)], env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


def predict_command(project, *words):
    return subprocess.run([sys.executable, "-m", "mlnb", "predict", *words], cwd=project, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"})


@pytest.mark.tensorflow
def test_the_command_answers_as_the_served_model_does(project):
    """From the registry's champion; the same scores as asking the export directly, and JSON for programs."""
    done = predict_command(project, "rows.csv", "--model", "churn", "--output", "out.parquet", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["without_answer"], facts["model"]) == (400, 0, "churn 1.0.0")
    found, expected = pd.read_parquet(project / "out.parquet"), np.load(project / "expected.npy")
    assert list(found) == ["id", "scores", "error"] and found["id"].astype(int).tolist() == list(range(400))
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)


def test_the_command_says_what_is_wrong_in_one_line(project):
    """An unknown model names what there is; a file that lacks columns names them; nothing else is printed."""
    for words, said in ((["rows.csv", "-m", "chrun", "-o", "o.csv"], "one of: churn"), (["rows.csv", "-m", "churn:9", "-o", "o.csv"], "1 (1.0.0, champion)"),
                        (["none.csv", "-m", "churn", "-o", "o.csv"], "no such file")):
        done = predict_command(project, *words)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr and not done.stdout
