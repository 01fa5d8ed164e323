"""The store under pressure: many writers, kill -9, a full disk, damage."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest

from mlnb.errors import StoreError
from mlnb.files import digest
from mlnb.pipeline.store import Store, digest_folder


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / "store")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    (place / "variables").mkdir(parents=True)
    (place / "assets").mkdir()
    (place / "saved_model.pb").write_bytes(b"graph")
    (place / "variables" / "data").write_bytes(b"w" * 1000)
    return place


def leftovers(store):
    return [p for p in store.root.glob("tmp/*")]


def test_folder_digest_sees_names_content_and_executable_bit(folder):
    seen = {digest_folder(folder)}
    os.chmod(folder / "saved_model.pb", 0o755)
    seen.add(digest_folder(folder))
    (folder / "variables" / "data").rename(folder / "variables" / "index")
    seen.add(digest_folder(folder))
    (folder / "assets").rmdir()
    seen.add(digest_folder(folder))
    assert len(seen) == 4


def test_folder_digest_does_not_see_times_and_other_bits(folder):
    before = digest_folder(folder)
    os.chmod(folder / "saved_model.pb", 0o600)
    os.utime(folder / "saved_model.pb", (1, 1))
    assert digest_folder(folder) == before


def test_a_file_is_not_its_folders_manifest(folder, store):
    made = store.put_folder(folder)
    assert store.put_bytes(b"[]") != store.put_folder(folder / "assets") and store.verify(made)


@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "link to folder"])
def test_odd_things_in_a_folder_are_refused(kind, folder, store):
    odd = folder / "variables" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"link": folder / "saved_model.pb", "dangling link": "/no/where"}.get(kind, folder / "assets"))
    with pytest.raises(StoreError, match="odd.* cannot be stored") as e:
        store.put_folder(folder)
    assert e.value.cure and not leftovers(store) and not list(store.objects())


def test_a_pipe_or_nothing_as_file(tmp_path, store):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe"):
        store.put_file(tmp_path / "pipe")
    with pytest.raises(StoreError, match="No such file"):
        store.put_file(tmp_path / "missing")
    with pytest.raises(StoreError, match="folder"):
        store.put_file(tmp_path)


def test_a_name_that_is_not_unicode(folder, store):
    (folder / os.fsdecode(b"caf\xe9")).write_text("x")
    with pytest.raises(StoreError, match="not Unicode"):
        store.put_folder(folder)


def test_stored_files_are_read_only_and_keep_being_executable(folder, store):
    os.chmod(folder / "saved_model.pb", 0o755)
    path = store.path_of(store.put_folder(folder))
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.rglob("*") if p.is_file()}
    assert modes == {"saved_model.pb": 0o555, "data": 0o444} and store.verify(path.name)


def test_sources_are_left_alone(folder, store):
    before = digest_folder(folder), stat.S_IMODE((folder / "saved_model.pb").stat().st_mode)
    store.put_folder(folder)
    assert (digest_folder(folder), stat.S_IMODE((folder / "saved_model.pb").stat().st_mode)) == before


def test_put_again_is_one_object_that_looks_new(store):
    made = store.put_bytes(b"x")
    os.utime(store.path_of(made), (1, 1))
    assert store.put_bytes(b"x") == made and [o.digest for o in store.objects()] == [made]
    assert time.time() - store.path_of(made).stat().st_mtime < 60 and store.remove(made, older_than_s=60) == 0


def _put(root, n):
    store = Store(root)
    for i in range(20):
        store.put_bytes(str(i).encode() * 10_000)
    return os.getpid(), n


def test_processes_put_the_same(store):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(_put, [(store.root, n) for n in range(6)])
    found = list(store.objects())
    assert len(found) == 20 and all(store.verify(o.digest) and store.has(o.digest, o.bytes) for o in found)
    assert not leftovers(store)


def test_kill_in_the_middle_leaves_temporary_files_only(store, tmp_path):
    code = f"""
        import time
        from pathlib import Path
        from mlnb.pipeline.store import Store
        def half(path):
            path.write_bytes(b"half"); print("now", flush=True); time.sleep(60)
        Store(Path({str(store.root)!r})).put_made(half)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(leftovers(store)) == 1 and list(store.objects()) == []
    assert store.clean_temporary(older_than_s=3600) == 0 and store.clean_temporary(older_than_s=0) == 1
    assert not leftovers(store)


def test_a_writer_that_fails_leaves_nothing(store):
    def broken(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put_made(broken)
    assert not leftovers(store) and list(store.objects()) == []


FULL = """
    import resource, sys
    from pathlib import Path
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    from mlnb.errors import StoreError
    from mlnb.pipeline.encoders import encode
    from mlnb.pipeline.store import Store
    store, kind = Store(Path(sys.argv[1])), sys.argv[2]
    if kind == "bytes": value = b"x" * 1_000_000
    if kind == "file": value = Path(sys.argv[3])
    if kind == "array": import numpy; value = numpy.random.default_rng(0).random(100_000)
    if kind == "table":
        import numpy, pandas; value = pandas.DataFrame({"x": numpy.random.default_rng(0).random(100_000)})
    if kind == "sklearn":
        import numpy; from sklearn.neighbors import KNeighborsClassifier
        value = KNeighborsClassifier().fit(numpy.random.default_rng(0).random((50_000, 2)), [0, 1] * 25_000)
    try: encode(value, "x", store)
    except StoreError as e: print("full" if "disk is full" in str(e) and "free some space" in str(e) else e)
"""


@pytest.mark.parametrize("kind", ["bytes", "file", "array", "table", "sklearn"])
def test_a_file_that_may_not_grow(kind, store, tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 1_000_000)
    words = [sys.executable, "-c", textwrap.dedent(FULL), str(store.root), kind, str(tmp_path / "large")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "full\n", done.stdout + done.stderr
    assert not leftovers(store) and list(store.objects()) == []


@pytest.fixture
def tiny(tmp_path):
    place = tmp_path / "tiny"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield Store(place)
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(tiny, folder):
    kept = tiny.put_bytes(b"y" * 500_000)
    with pytest.raises(StoreError, match="disk is full"):
        tiny.put_bytes(b"x" * 2_000_000)
    (folder / "large").write_bytes(b"x" * 2_000_000)
    with pytest.raises(StoreError, match="disk is full"):
        tiny.put_folder(folder)
    assert [o.digest for o in tiny.objects()] == [kept] and tiny.verify(kept) and not leftovers(tiny)


@pytest.mark.parametrize("harm", ["cut", "change", "add", "lose", "link"])
def test_damage_is_found_set_aside_and_mended(harm, folder, store):
    made = store.put_folder(folder)
    path = store.path_of(made)
    weights = path / "variables" / "data"
    os.chmod(weights, 0o644)
    if harm == "cut":
        weights.write_bytes(b"w" * 5)
    if harm == "change":
        weights.write_bytes(b"w" * 999 + b"x")
    if harm == "add":
        (path / "more").write_bytes(b"")
    if harm == "lose":
        weights.unlink()
    if harm == "link":
        weights.unlink()
        weights.symlink_to("/etc/hostname")
    if harm in ("cut", "lose"):
        assert not store.has(made, 1005)
    with pytest.raises(StoreError, match="damaged") as e:
        store.get(made)
    assert made in e.value.where and "mlnb run" in e.value.cure and not path.exists()
    assert len(list((store.root / "damaged").iterdir())) == 1
    assert store.put_folder(folder) == made and store.get(made) == path


def test_a_file_where_the_folder_should_be(folder, store):
    made = digest_folder(folder)
    path = store.path_of(made)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1005)
    assert store.put_folder(folder) == made and store.verify(made)


@pytest.mark.parametrize("text", ["", "ab", "../../../etc/passwd", "G" * 64, "A" * 64, None, "0" * 63 + "/", "0" * 65])
def test_what_is_no_digest(text, store):
    with pytest.raises(StoreError, match="no digest"):
        store.path_of(text)
    with pytest.raises(StoreError, match="no digest"):
        store.put_result(text, {})


def test_results_survive_damage(store):
    key = digest("parts")
    for text in ("", "{", "[1]", "\x00"):
        store.put_result(key, {"a": 1}).write_text(text)
        assert store.get_result(key) is None
    store.put_result(key, {"a": 1})
    assert store.get_result(key) == {"a": 1} and list(store.results()) == [key]
    assert store.get_result(digest("others")) is None


def test_removing_takes_the_views_along(store):
    made = store.put_bytes(b"x")
    link = store.view(made, "x.csv")
    assert link.read_bytes() == b"x" and store.remove(made) == 1
    assert not link.is_symlink() and list(store.objects()) == []


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "file" / "store").put_bytes(b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_is_read(store):
    made = store.put_bytes(b"x")
    os.chmod(store.root, 0o555)
    try:
        assert store.get(made).read_bytes() == b"x" and store.view(made, "x.csv") == store.path_of(made)
        with pytest.raises(StoreError, match="read-only"):
            store.put_bytes(b"y")
    finally:
        os.chmod(store.root, 0o755)


def test_moving_the_runs_folder_keeps_it_whole(store, folder, tmp_path):
    made, file = store.put_folder(folder), store.put_bytes(b"x")
    store.view(file, "x.csv")
    os.rename(tmp_path / "runs", tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere" / "store")
    assert moved.verify(made) and moved.view(file, "x.csv").read_bytes() == b"x"
