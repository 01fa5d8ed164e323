"""The registry under real processes and real crashes; models are stand-ins, only what the registry reads is real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlnb.errors import MlnbError, ServingError
from mlnb.files import write_json
from mlnb.serving.registry import digest_folder, find_version, list_versions, read_aliases, register

ROOT = Path(__file__).parents[1]
REGISTER = """
import sys, time
from pathlib import Path
from mlnb.serving.registry import register
registry, start, *exports = sys.argv[1:]
while time.time() < float(start): pass
for export in exports: print(register(registry, "m", export, {"evaluation": {"blessed": True}})["number"])
"""


def make_export(folder, text, size=1):
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text("graph")
    (folder / "variables" / "data").write_text(text * size)
    write_json(folder / "assets.extra" / "mlnb_export.json", {"signatures": {}, "classes": []})
    return folder


def start(registry, *exports, delay=0.8):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REGISTER, str(registry), str(time.time() + delay), *map(str, exports)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_register_at_once_get_a_number_each(tmp_path):
    exports = [[make_export(tmp_path / f"e{i}{j}", f"{i} {j}") for j in range(4)] for i in range(4)]
    processes = [start(tmp_path / "registry", *group) for group in exports]
    numbers = [int(line) for process in processes for line in process.communicate(timeout=60)[0].split()]
    assert sorted(numbers) == list(range(1, 17))
    versions = list_versions(tmp_path / "registry", "m")
    assert [one["version"] for one in versions] == ["1.0.0"] + [f"1.0.{n}" for n in range(1, 16)]
    assert {one["digest"] for one in versions} == {digest_folder(one) for group in exports for one in group}
    for one in versions:
        assert digest_folder(Path(one["folder"])) == one["digest"]
    assert read_aliases(tmp_path / "registry", "m") == {"champion": 1, "challenger": 16}


def test_processes_that_register_the_same_export_share_one_version(tmp_path):
    export = make_export(tmp_path / "e", "same")
    processes = [start(tmp_path / "registry", export) for _ in range(4)]
    assert {process.communicate(timeout=60)[0].strip() for process in processes} == {"1"}
    assert len(list_versions(tmp_path / "registry", "m")) == 1


def test_a_killed_registration_leaves_no_version_that_is_not_whole(tmp_path):
    export = make_export(tmp_path / "e", "x" * 1000, 20_000)
    folder, torn = tmp_path / "registry" / "m", 0
    for delay in (0, 0.02, 0.04, 0.08):
        process = start(tmp_path / "registry", export, delay=0)
        while not list(folder.glob(".incoming*")) and process.poll() is None: time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        torn += any(folder.glob(".incoming*"))
        for one in list_versions(tmp_path / "registry", "m"):
            assert digest_folder(Path(one["folder"])) == one["digest"]
    assert torn, "no kill came in the middle of a copy"
    version = register(tmp_path / "registry", "m", export)
    left = [path.name for path in (tmp_path / "registry" / "m").iterdir() if path.name.startswith(".incoming")]
    assert not left and digest_folder(Path(version["folder"])) == version["digest"]


def test_what_tensorflow_serving_sees_is_the_export_and_nothing_else(tmp_path):
    export = make_export(tmp_path / "e", "x")
    version = register(tmp_path / "registry", "m", export)
    files = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (export, Path(version["folder"]))]
    assert files[0] == files[1]
    whole = [path.name for path in (tmp_path / "registry" / "m").iterdir() if path.name.isdigit()]
    assert whole == ["1"]


def test_a_removed_version_does_not_give_its_number_again(tmp_path):
    for i in range(2):
        register(tmp_path / "registry", "m", make_export(tmp_path / f"e{i}", str(i)))
    shutil.rmtree(tmp_path / "registry" / "m" / "2")
    assert register(tmp_path / "registry", "m", make_export(tmp_path / "e3", "3"))["number"] == 3
    assert [one["number"] for one in list_versions(tmp_path / "registry", "m")] == [1, 3]


def test_lineage_and_every_other_field_is_kept(tmp_path):
    record = {"lineage": {"run": "r", "data": ["d" * 64]}, "card": "text", "number": 99, "digest": "forged"}
    register(tmp_path / "registry", "m", make_export(tmp_path / "e", "x"), record)
    found = json.loads((tmp_path / "registry" / "m" / "records" / "1.json").read_text())
    assert (found["lineage"], found["card"]) == (record["lineage"], "text")
    assert found["number"] == 1 and found["digest"] == digest_folder(tmp_path / "e")


def test_a_record_tells_size_digests_and_twins(tmp_path):
    export = make_export(tmp_path / "e", "x")
    twin = {"format": 1, "accepted": False, "reason": "no such operation", "inputs": {"age": "age"}}
    write_json(export / "assets.extra" / "onnx" / "twin.json", twin)
    version = register(tmp_path / "registry", "m", export, {"cost": {"latency_ms": 0.4}, "tracking": {"wandb_artifact": "a:sha256-1"}})
    assert version["size_bytes"] == sum(path.stat().st_size for path in export.rglob("*") if path.is_file())
    assert set(version["files"]) == {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()}
    assert (version["twins"]["onnx"]["reason"], version["twins"]["onnx"]["accepted"]) == ("no such operation", False)
    assert (version["cost"], version["tracking"]) == ({"latency_ms": 0.4}, {"wandb_artifact": "a:sha256-1"})


def fares(folder, unit=1.0, words=("a", "b"), missing=0.1, label="tip", rows=2000):
    """An export whose schema has one number and one word."""
    make_export(folder, f"{unit} {words} {missing} {label} {rows}")
    number = {"input": "fare", "role": "feature", "kind": "numeric", "missing": missing, "min": 0.0, "max": 90 * unit, "mean": 12 * unit, "std": 9 * unit}
    levels = [[word, rows // len(words)] for word in words]
    word = {"input": "plan", "role": "feature", "kind": "category", "missing": 0.0, "levels": levels, "distinct": len(words)}
    write_json(folder / "assets.extra" / "input_schema.json", {"rows": rows, "columns": [number, word], "label": {"name": label}})
    return folder


@pytest.mark.parametrize(("change", "version", "told"), [
    ({"rows": 1999}, "1.0.1", ""),
    ({"unit": 1.2}, "1.0.1", ""),
    ({"words": ("a", "b", "c")}, "1.0.1", ""),
    ({"missing": 0.3}, "1.0.1", ""),
    ({"unit": 0.15}, "2.0.0", "fare saw 0 to 90, now 0 to 13.5"),
    ({"unit": 1000.0}, "2.0.0", "another unit?"),
    ({"words": ("a",)}, "2.0.0", "plan does not know 'b' any more"),
    ({"missing": 0.0}, "2.0.0", "fare may not be missing any more"),
    ({"label": "fare"}, "2.0.0", "the label was tip, is fare"),
], ids=str)
def test_what_a_request_means_is_part_of_the_version(tmp_path, change, version, told):
    register(tmp_path / "registry", "m", fares(tmp_path / "one"))
    added = register(tmp_path / "registry", "m", fares(tmp_path / "two", **change))
    assert added["version"] == version and told in "\n".join(added["breaking_changes"])


def signed(folder, inputs, outputs=("scores",), classes=("no", "yes")):
    """An export of these tensors; a tensor is a name, or name:dtype:shape."""
    make_export(folder, f"{inputs} {outputs} {classes}")

    def tensors(names):
        parts = [(*one.split(":"), "float32", "?")[:3] if ":" in one else (one, "float32", "?") for one in names]
        return {name: {"dtype": dtype, "shape": [None if size == "?" else int(size) for size in shape.split(",")]} for name, dtype, shape in parts}

    signature = {"inputs": tensors(inputs), "outputs": tensors(outputs)}
    write_json(folder / "assets.extra" / "mlnb_export.json", {"signatures": {"serving_default": signature}, "classes": list(classes)})
    return folder


@pytest.mark.parametrize(("inputs", "outputs", "classes", "version", "told"), [
    (("fare", "age"), ("scores",), ("no", "yes"), "1.0.1", ""),                                 # the same in another order
    (("age_years", "fare"), ("scores",), ("no", "yes"), "2.0.0", "input age is gone"),          # renamed
    (("age:float64:?", "fare"), ("scores",), ("no", "yes"), "2.0.0", "age was float32[?], is float64[?]"),   # wider: gRPC clients send the old type
    (("age:float32:?,1", "fare"), ("scores",), ("no", "yes"), "2.0.0", "is float32[?, 1]"),
    (("age", "fare", "plan"), ("scores",), ("no", "yes"), "2.0.0", "input plan is new"),        # optional for training, required for serving
    (("age",), ("scores",), ("no", "yes"), "2.0.0", "input fare is gone"),
    (("age", "fare"), ("scores",), ("yes", "no"), "2.0.0", "labels were no, yes, are yes, no"),  # reordered: scores mean another class
    (("age", "fare"), ("scores",), ("no", "yes", "maybe"), "2.0.0", "are no, yes, maybe"),
    (("age", "fare"), ("classes", "scores"), ("no", "yes"), "2.0.0", "over REST a prediction is an object"),
    (("age", "fare"), ("scores:float32:?,3",), ("no", "yes"), "2.0.0", "output scores was"),
], ids=str)
def test_tricky_signatures_are_named_for_what_they_do_to_clients(tmp_path, inputs, outputs, classes, version, told):
    register(tmp_path / "registry", "m", signed(tmp_path / "one", ("age", "fare")))
    added = register(tmp_path / "registry", "m", signed(tmp_path / "two", inputs, outputs, classes))
    assert added["version"] == version and told in "\n".join(added["breaking_changes"]), added["breaking_changes"]


def test_a_version_is_named_after_the_retired_ones_too(tmp_path):
    from mlnb.serving.promotion import retire

    register(tmp_path / "registry", "m", fares(tmp_path / "one"))
    register(tmp_path / "registry", "m", fares(tmp_path / "two", unit=0.05))
    retire(tmp_path / "registry", "m", 2)
    assert register(tmp_path / "registry", "m", fares(tmp_path / "three", unit=0.055))["version"] == "2.0.1"
    assert register(tmp_path / "registry", "m", fares(tmp_path / "four", rows=2001))["version"] == "3.0.0"


def test_a_registry_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "registry").write_text("a file")
    with pytest.raises(MlnbError, match="cannot write"):
        register(tmp_path / "registry", "m", make_export(tmp_path / "e", "x"))


def test_an_empty_registry_has_no_versions(tmp_path):
    assert list_versions(tmp_path, "m") == []
    with pytest.raises(ServingError, match="no version 'champion' of 'm'"):
        find_version(tmp_path, "m")
