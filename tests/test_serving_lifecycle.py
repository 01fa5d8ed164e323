"""Versions that come and go under requests: what a server may load, lend and close, and what it counts."""
import gc
import json
import shutil
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mlnb.errors import ServingError
from mlnb.serving.codes import Refusal
from mlnb.serving.config_watch import watch_config_file
from mlnb.serving.fleet import Version
from mlnb.serving.manager import Manager
from mlnb.serving.messages import ModelServerConfig
from mlnb.serving.policy import VersionState, next_action
from mlnb.serving.servable import load_servable
from mlnb.serving.server_files import (
    model_config,
    model_entry,
    read_batching,
    read_model_config,
    read_monitoring,
    read_ssl,
    to_text,
)
from mlnb.serving.server_metrics import (
    Metrics,
    label_text,
    merge_texts,
    metric_total,
    read_samples,
    upstream_name,
    write_family,
)
from mlnb.serving.storage import list_folders, read_policy, versions_in
from mlnb.training.quiet import import_quietly, quiet

CASES = Path(__file__).resolve().parents[2]/"shared/conformance/tfserving.json"
POLICY = type(model_entry("m", "/m").model_version_policy)


def cases(*starts: str) -> list:
    """Conformance cases by their ids; one that skips, saying why, where the file is not here."""
    if not CASES.is_file(): return [pytest.param(None, marks=pytest.mark.skip(reason="no ../shared/conformance/tfserving.json beside the checkout"))]
    every = json.loads(CASES.read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in every if case["id"].startswith(starts)]


class Servable:
    """Knows whether it is open, and that it was closed once."""

    def __init__(self, model: str, version: int): self.model, self.version, self.closed = model, version, 0
    def close(self) -> None: self.closed += 1


def put(base: Path, version: int | str, whole: bool = True) -> None:
    """A version's folder; half of one has no graph."""
    (base/str(version)).mkdir(parents=True, exist_ok=True)
    if whole: (base/str(version)/"saved_model.pb").write_text("graph")


def load(model: str, version: int, folder: Path) -> Servable:
    """The loader of these tests: what it needs is a graph."""
    if not (folder/"saved_model.pb").is_file(): raise Refusal("NOT_FOUND", f"no graph in {folder.name}")
    return Servable(model, version)


@pytest.fixture
def managed(tmp_path):
    """Make managers that look only when told to; whatever threads they leave fail the test."""
    made = []

    def make(loader=load, **options) -> Manager:
        made.append(Manager(loader, **{"poll_seconds": 0, "settle_seconds": 0, **options}))
        return made[-1]
    yield make
    for manager in made: assert manager.stop(5)
    assert [t.name for t in threading.enumerate() if t.name.startswith("mlnb")] == []


def look(manager: Manager) -> None:
    """One look at the folders, and all that follows from it."""
    manager.poll()
    assert manager.wait_until_idle(10)


def asked(manager: Manager, *which, **label) -> int:
    """Version that a request gets."""
    with manager.lease(*which, **label) as lease: return lease.version


def states(manager: Manager, model: str = "taxi") -> dict[int, str]:
    """Version -> state, of those that have not ended."""
    return {one.version: one.state for one in manager.statuses(model) if one.state != "END"}


# ---------------------------------------------------------------- conformance

@pytest.mark.parametrize("case", cases("l-latest", "l-all", "l-specific", "l-leading"))
def test_versions_are_those_that_upstream_aspires_to(case, tmp_path):
    """File-system policy cases."""
    for name in case["dirs"]: (tmp_path/name).mkdir()
    policy = POLICY()
    for kind, fields in case["policy"].items():
        getattr(policy, kind).SetInParent()
        for field, value in fields.items():
            if isinstance(value, list): getattr(getattr(policy, kind), field).extend(value)
            else: setattr(getattr(policy, kind), field, value)
    found = versions_in(tmp_path, read_policy(policy))
    assert list(found) == case["expect"]["aspired"]
    if "path" in case["expect"]: assert [folder.name for folder in found.values()] == [case["expect"]["path"]]


@pytest.mark.parametrize("case", cases("l-av-"))
def test_the_next_action_is_upstreams(case):
    """Cases of the availability preserving policy."""
    given = [VersionState(one["v"], one["state"].removeprefix("k").lower(), one["aspired"]) for one in case["states"]]
    wanted = case["expect"]
    assert next_action(given) == ((wanted["action"], wanted["v"]) if wanted["action"] else None)


@pytest.mark.parametrize("case", cases("l-label", "l-platform"))
def test_configurations_are_refused_as_upstream_does(case, tmp_path, managed):
    """Labels for versions that are not there, and a platform that changes."""
    put(tmp_path/"taxi", 123)
    manager = managed(labels_for_unavailable=case.get("flags", {}).get("allow_version_labels_for_unavailable_models", False))

    def configured(platform="tensorflow", **labels):
        entry = model_entry("taxi", tmp_path/"taxi", labels=labels)
        entry.model_platform = platform
        return model_config([entry])
    manager.apply(configured(**case.get("existing", {})))
    changed = configured(**case["label"]) if "label" in case else configured("other")
    if case["expect"]["code"] == "OK":
        manager.apply(changed)
        with pytest.raises(Refusal, match=r"Servable not found for request: Specific\(taxi, 999\)"): manager.lease("taxi", label="A")
        return
    with pytest.raises(Refusal) as refused: manager.apply(changed)
    assert refused.value.code == case["expect"]["code"]
    assert case["expect"].get("error_contains", "") in refused.value.message
    assert manager.labels("taxi") == case.get("existing", {})


@pytest.mark.parametrize("case", cases("p-"))
def test_metrics_are_written_as_upstream_does(case):
    """Names, labels and types of Prometheus' text."""
    metric = case["metric"]
    assert write_family(upstream_name(metric["name"]), metric["kind"], [(metric["labels"], metric["value"])]) == case["expect"]["lines"]


# ---------------------------------------------------------------- files

names = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12)
versions = st.one_of(st.integers(1, 9), st.just("all"), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
entries = st.builds(model_entry, names, names, versions, st.dictionaries(names, st.integers(0, 2**63 - 1), max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.lists(entries, max_size=4))
def test_what_we_write_upstreams_own_messages_read(made):
    """Our text and our bytes, read by the stubs of tensorflow-serving-api, and back."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2
    config = model_config(made)
    theirs = text_format.Parse(to_text(config), model_server_config_pb2.ModelServerConfig())
    assert ModelServerConfig.FromString(theirs.SerializeToString()) == config
    assert read_model_config(text_format.MessageToString(theirs)) == config


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(["model_config_list", "config", "{", "}", ":", '"', "name", "\\x", "1e9", "#", "<", ">", "[", "server_key"])).map(" ".join)))
def test_a_broken_file_is_one_clear_error(text):
    """No text makes anything but a message or a ServingError."""
    for read in (read_model_config, read_batching, read_monitoring, read_ssl):
        try: read(text)
        except ServingError as e: assert e.where == "text"


def test_a_key_never_gets_into_an_error():
    """Whatever is wrong with a TLS file, and wherever."""
    secret = "MIIEvQIBADANBgkqhkiG"
    for broken in (f'server_key: "{secret}', f"server_key: {secret}", f'server_key: "a" {secret}: 3', f'server_key: "{secret}" client_verify: {secret}'):
        with pytest.raises(ServingError) as failed: read_ssl(broken)
        chain, error = "", failed.value
        while error is not None: chain, error = chain + str(error), error.__cause__
        assert secret not in chain


# ---------------------------------------------------------------- swaps

@pytest.fixture
def restless():
    """Threads take turns after 50 microseconds, not after 5 milliseconds: more orders of events, and sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def test_a_swap_under_fire_loses_no_request(tmp_path, managed, restless):
    """Threads ask without pause while sixty versions come and go."""
    put(tmp_path/"taxi", 1)
    manager = managed()
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    over, wrong, answered = threading.Event(), [], Counter()

    def ask():
        while not over.is_set():
            try:
                with manager.lease("taxi") as lease:
                    before = lease.servable.closed
                    answered[lease.version] += 1
                    if before or lease.servable.closed: wrong.append(f"version {lease.version} was closed")
            except Refusal as e: wrong.append(str(e))
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads: thread.start()
    for version in range(2, 62):
        put(tmp_path/"taxi", version)
        look(manager)
    over.set()
    for thread in threads: thread.join()
    assert wrong == []
    assert len(answered) > 5
    look(manager)
    assert states(manager) == {61: "AVAILABLE"}


@pytest.mark.parametrize("moment", ["before the entry", "after the entry"])
def test_borrowing_while_a_version_is_shut(moment, tmp_path):
    """The two orders that matter, forced: who borrows gets nothing, or who unloads waits."""
    drained, unused = [], []
    version = Version("taxi", 1, tmp_path, lambda: drained.append(version.unused()))
    version.open = True

    class Entries(list):
        def append(self, entry):
            if moment == "after the entry": super().append(entry)
            version.shut()
            unused.append(version.unused())
            if moment == "before the entry": super().append(entry)
    version._lent = Entries()
    assert version.lend() is None
    assert unused == [moment == "before the entry"]
    assert drained == [True]


def test_a_version_is_out_of_reach_before_it_is_shut(tmp_path, managed, monkeypatch):
    """Otherwise who is turned away would look again and find the same door."""
    put(tmp_path/"taxi", 1)
    manager, reachable = managed(), []
    shut = Version.shut
    monkeypatch.setattr(Version, "shut", lambda one: (reachable.append(one in manager._fleet.routes.values()), shut(one)))
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    put(tmp_path/"taxi", 2)
    look(manager)
    assert reachable and not any(reachable)


def test_the_last_lease_wakes_the_manager(tmp_path):
    """Nobody looks and nobody waits, and the servable is closed all the same."""
    ended = threading.Event()
    put(tmp_path/"taxi", 1)
    with Manager(load, poll_seconds=0, on_event=lambda event: event.get("state") == "END" and ended.set()) as manager:
        manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
        lent = manager.lease("taxi")
        manager.apply(model_config([]))
        assert not ended.wait(0.05)
        lent.release()
        assert ended.wait(10)


def test_a_thousand_reloads_leave_nothing_behind(tmp_path, managed):
    """What was unloaded is gone: no servable, no thread, no route."""
    alive = weakref.WeakSet()

    def remembered(*what):
        one = load(*what)
        alive.add(one)
        return one
    put(tmp_path/"taxi", 0)
    manager = managed(remembered)
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    threads = threading.active_count()
    for version in range(1, 1001):
        (tmp_path/"taxi"/str(version - 1)).rename(tmp_path/"taxi"/str(version))
        look(manager)
    gc.collect()
    assert [one.version for one in alive] == [1000]
    assert threading.active_count() == threads
    assert list(manager._fleet.models["taxi"].versions) == [1000]
    assert len(manager._fleet.routes) == 2


def test_a_half_copied_version_takes_nothing_down(tmp_path, managed):
    """The old one answers until the new one is whole, and the minute's wait for a retry is not needed."""
    put(tmp_path/"taxi", 1)
    manager = managed(retry_seconds=1e6)
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    put(tmp_path/"taxi", 2, whole=False)
    for _ in range(3):
        look(manager)
        assert states(manager) == {1: "AVAILABLE", 2: "LOADING"}
        assert asked(manager, "taxi") == 1
    assert len([e for e in manager.events if e["event"] == "load_failed"]) == 1
    put(tmp_path/"taxi", 2)
    look(manager)
    assert asked(manager, "taxi") == 2


def test_retries_come_at_their_time_and_end(tmp_path, managed):
    """Five retries a minute apart, then END with the reason; by a clock of our own."""
    now, tries = [0.0], []

    def refuse(model, version, folder):
        tries.append(now[0])
        raise ValueError("bad weights")
    put(tmp_path/"taxi", 1)
    manager = managed(refuse, clock=lambda: now[0])
    with pytest.raises(Refusal, match=r"1 model\(s\) did not become available: \{\{\{name: taxi version: 1\}"):
        manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]), 0)
    for seconds in range(0, 400, 20):
        now[0] = float(seconds)
        look(manager)
    assert tries == [0, 60, 120, 180, 240, 300]
    assert manager.statuses("taxi")[0][1:] == ("END", "INTERNAL", "ValueError: bad weights")
    assert not manager.ready()


def test_a_base_path_that_vanishes_is_no_reason_to_unload(tmp_path, managed):
    """A network disk that is away for a while; the other model goes on moving."""
    for model in ("taxi", "tips"): put(tmp_path/model, 1)
    manager = managed()
    manager.apply(model_config([model_entry(model, tmp_path/model) for model in ("taxi", "tips")]))
    (tmp_path/"taxi").rename(tmp_path/"away")
    put(tmp_path/"tips", 2)
    look(manager), look(manager)
    assert (states(manager), states(manager, "tips")) == ({1: "AVAILABLE"}, {2: "AVAILABLE"})
    assert [e["event"] for e in manager.events].count("folder_unreadable") == 1
    (tmp_path/"away").rename(tmp_path/"taxi")
    put(tmp_path/"taxi", 2)
    look(manager)
    assert states(manager) == {2: "AVAILABLE"}


def test_a_refused_configuration_changes_nothing(tmp_path, managed):
    """Each rule, with a second model that would have been taken away."""
    for model in ("taxi", "tips"): put(tmp_path/model, 1)
    taxi, tips = (model_entry(model, tmp_path/model) for model in ("taxi", "tips"))
    manager = managed()
    manager.apply(model_config([taxi, tips]))
    before = manager.events
    for wrong, code in (([taxi, taxi], "INVALID_ARGUMENT"), ([model_entry("taxi", "models/taxi")], "INVALID_ARGUMENT"),
                        ([model_entry("taxi", tmp_path/"none")], "INVALID_ARGUMENT"), ([model_entry("taxi", tmp_path/"taxi", labels={"a": 2})], "FAILED_PRECONDITION")):
        with pytest.raises(Refusal) as refused: manager.apply(model_config(wrong))
        assert refused.value.code == code
    assert manager.events == before
    assert manager.models() == ["taxi", "tips"]
    assert manager.ready()


def test_a_removed_model_ends_with_its_last_request_and_may_come_back(tmp_path, managed):
    """Its requests under way finish, its versions stay listed as ended, and it may come back at once."""
    put(tmp_path/"taxi", 1)
    manager = managed()
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi", labels={})]))
    lent = manager.lease("taxi")
    manager.apply(model_config([]))
    with pytest.raises(Refusal, match=r"NOT_FOUND: Servable not found for request: Latest\(taxi\)"): manager.lease("taxi")
    assert (states(manager), lent.servable.closed) == ({1: "UNLOADING"}, 0)
    with pytest.raises(Refusal, match="did not become available"): manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]), 0)
    first = lent.servable
    lent.release()
    assert manager.wait_until_idle()
    assert (first.closed, states(manager), manager.ready()) == (1, {1: "AVAILABLE"}, True)
    with manager.lease("taxi") as again: assert again.servable is not first


def test_a_stop_waits_for_leases_and_closes_what_comes_late(tmp_path):
    """A lease that outlives the stop keeps its servable, which is closed when it comes back; then the threads end."""
    put(tmp_path/"taxi", 1)
    manager = Manager(load, poll_seconds=0)
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    late = manager.lease("taxi")
    servable = late.servable
    assert not manager.stop(0.05)
    assert servable.closed == 0
    late.release()
    assert manager.stop(5)
    assert servable.closed == 1


def test_a_load_that_hangs_holds_up_neither_stop_nor_others(tmp_path):
    """The other model loads, the stop says that it could not wait, and the late servable is closed."""
    for model in ("taxi", "tips"): put(tmp_path/model, 1)
    gate, made = threading.Event(), []

    def hang(model, version, folder):
        if model == "taxi": gate.wait(20)
        made.append(Servable(model, version))
        return made[-1]
    manager = Manager(hang, poll_seconds=0)
    with pytest.raises(Refusal, match="name: taxi version: 1"):
        manager.apply(model_config([model_entry(model, tmp_path/model) for model in ("taxi", "tips")]), 0.2)
    assert asked(manager, "tips") == 1
    assert not manager.stop(0.05)
    gate.set()
    assert manager.stop(5)
    assert [(one.model, one.closed) for one in made] == [("tips", 1), ("taxi", 1)]


def test_events_come_in_order_and_a_broken_listener_hurts_nobody(tmp_path, managed, caplog):
    """Every change of state, from one thread, also where the listener raises."""
    heard = []

    def listen(event):
        heard.append((threading.current_thread().name, event["event"], event.get("version"), event.get("state")))
        if event.get("state") == "START": raise ValueError("a broken log")
    put(tmp_path/"taxi", 1)
    manager = managed(on_event=listen)
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    put(tmp_path/"taxi", 2)
    look(manager)
    assert {thread for thread, *_ in heard} == {"mlnb-manager"}
    assert [one[2:] for one in heard if one[1] == "version"] == [(1, "START"), (1, "LOADING"), (1, "AVAILABLE"), (2, "START"), (2, "LOADING"),
                                                                 (2, "AVAILABLE"), (1, "UNLOADING"), (1, "END")]
    assert json.loads(json.dumps(manager.events))[0]["event"] == "config"
    assert "a broken log" in caplog.text


def test_closing_may_fail(tmp_path, managed):
    """A servable that cannot be closed has ended all the same, and is told."""
    class Stuck(Servable):
        def close(self): raise OSError("busy")
    put(tmp_path/"taxi", 1)
    manager = managed(lambda model, version, folder: Stuck(model, version))
    manager.apply(model_config([model_entry("taxi", tmp_path/"taxi")]))
    manager.apply(model_config([]))
    assert manager.wait_until_idle()
    assert manager.statuses("taxi")[0].state == "END"
    assert [e["message"] for e in manager.events if e["event"] == "close_failed"] == ["OSError: busy"]


def test_polling_by_itself(tmp_path):
    """The real clock: versions and configurations are found without being told to look."""
    told = threading.Condition()
    seen = []

    def listen(event):
        with told:
            seen.append(event)
            told.notify_all()

    def wait_for(**wanted):
        with told: assert told.wait_for(lambda: any(wanted.items() <= event.items() for event in seen), 20), (wanted, seen)
    put(tmp_path/"taxi", 1), put(tmp_path/"tips", 1)
    file = tmp_path/"models.config"
    file.write_text(to_text(model_config([model_entry("taxi", tmp_path/"taxi")])))
    with Manager(load, poll_seconds=0.02, settle_seconds=0.02, retry_seconds=0.05, on_event=listen) as manager:
        with watch_config_file(file, manager, 0.02, listen):
            put(tmp_path/"taxi", 2)
            wait_for(event="version", version=1, state="END")
            put(tmp_path/"taxi", 3, whole=False)
            wait_for(event="load_failed", version=3, attempt=2)
            file.write_text("broken")
            wait_for(event="config_unreadable")
            file.write_text(to_text(model_config([model_entry("tips", tmp_path/"tips")])))
            wait_for(event="version", model="tips", state="AVAILABLE")
            wait_for(event="version", version=2, state="END")
    assert [t.name for t in threading.enumerate() if t.name.startswith("mlnb")] == []


# ---------------------------------------------------------------- real models

def vocabulary_model(folder: Path) -> Path:
    """A SavedModel whose answer is the place of a word in a vocabulary file, times a weight."""
    tf = import_quietly("tensorflow")
    words = folder.parent/"words.txt"
    words.write_text("".join(f"word{number}\n" for number in range(2000)))

    class Places(tf.Module):
        def __init__(self):
            self.weight = tf.Variable(1.0)
            self.table = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(
                str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER), -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "word")])
        def place(self, word): return {"place": self.weight * tf.cast(self.table.lookup(word), tf.float32)}
    module = Places()
    with quiet(): tf.saved_model.save(module, str(folder), signatures={"serving_default": module.place})
    return folder


def place_of(servable, word: bytes) -> float:
    """What the model answers."""
    return float(servable.run("serving_default", {"word": np.array([word], object)})["place"][0])


@pytest.mark.tensorflow
def test_a_real_model_that_is_being_copied(tmp_path, managed):
    """Without its graph, without its weights, with half a vocabulary: none of it is ever asked."""
    whole = vocabulary_model(tmp_path/"export")
    shutil.copytree(whole, tmp_path/"places"/"1")
    now = [0.0]
    manager = managed(lambda model, version, folder: load_servable(folder), settle_seconds=2, clock=lambda: now[0])
    manager.apply(model_config([model_entry("places", tmp_path/"places")]))

    def later(seconds):
        now[0] += seconds
        look(manager)
        with manager.lease("places") as lease:
            assert place_of(lease.servable, b"word1999") == 1999
            return lease.version
    new = tmp_path/"places"/"2"
    new.mkdir()
    answers = [later(0)]
    for part in ("variables", "assets", "saved_model.pb", "fingerprint.pb"):
        if (whole/part).is_dir(): shutil.copytree(whole/part, new/part)
        else: shutil.copy(whole/part, new/part)
        if part == "assets": (new/"assets"/"words.txt").write_text("word0\nword1\n")
        answers.append(later(1.5))
    assert place_of(load_servable(new), b"word1999") == -1   # the danger is real: it loads, and is wrong
    shutil.copy(whole/"assets"/"words.txt", new/"assets"/"words.txt")
    answers += [later(1.5), later(1.5)]
    assert {*answers} == {1}
    assert later(1) == 2
    assert [event for event in manager.events if event["event"] == "load_failed"] == []


@pytest.mark.tensorflow
def test_a_real_model_whose_parts_are_missing_fails_and_recovers(tmp_path, managed):
    """What TensorFlow says becomes the status; the parts arrive, and it answers."""
    whole = vocabulary_model(tmp_path/"export")
    manager = managed(lambda model, version, folder: load_servable(folder), load_retries=0)
    (tmp_path/"places"/"1").mkdir(parents=True)
    with pytest.raises(Refusal, match="did not become available.*name: places version: 1.*NOT_FOUND"):
        manager.apply(model_config([model_entry("places", tmp_path/"places")]))
    for part, state in (("saved_model.pb", "END"), ("assets", "END"), ("variables", "AVAILABLE")):
        if (whole/part).is_dir(): shutil.copytree(whole/part, tmp_path/"places"/"1"/part)
        else: shutil.copy(whole/part, tmp_path/"places"/"1"/part)
        look(manager)
        assert manager.statuses("places")[0].state == state, manager.statuses("places")
    with manager.lease("places") as lease: assert place_of(lease.servable, b"word7") == 7


# ---------------------------------------------------------------- everything at once

MODELS = ("taxi", "tips")


class Lifecycle(RuleBasedStateMachine):
    """Folders, configurations, failures and requests in any order, with a thread that asks all the time."""

    root: Path

    @initialize()
    def start(self):
        self.now, self.made, self.held, self.wrong = 0.0, [], [], []
        self.folders = {model: {} for model in MODELS}       # version -> is it whole?
        self.policies: dict[str, object] = {}
        self.may_vanish = set(MODELS)                         # models that nobody need answer for
        self.been: set[str] = set()
        self.over, self.lock = threading.Event(), threading.Lock()
        Lifecycle.count = getattr(Lifecycle, "count", 0) + 1
        self.place = self.root/str(Lifecycle.count)
        for model in MODELS: (self.place/model).mkdir(parents=True)
        self.manager = Manager(self.load, poll_seconds=0, settle_seconds=0, load_retries=1, labels_wait=True, clock=lambda: self.now)
        self.asker = threading.Thread(target=self.ask)
        self.asker.start()

    def load(self, model, version, folder):
        one = load(model, version, folder)
        self.made.append(one)
        return one

    def ask(self):
        """Always somebody: a model that answered must go on doing so, unless nothing of it is wanted."""
        while not self.over.is_set():
            for model in MODELS:
                with self.lock:
                    try:
                        with self.manager.lease(model) as lease:
                            self.been.add(model)
                            if lease.servable.closed: self.wrong.append(f"{model} {lease.version} was lent closed")
                    except Refusal as e:
                        if model in self.been and model not in self.may_vanish: self.wrong.append(str(e))
                        self.been.discard(model)
            self.over.wait(0.0002)

    def wanted(self, model):
        """What upstream's rules make of the folder, worked out once more."""
        policy, there = self.policies.get(model), sorted(self.folders[model])
        if policy is None: return []
        if policy == "all": return there
        if isinstance(policy, int): return there[-policy:]
        return [version for version in policy if version in there]

    def expect(self):
        """Before a look: who may vanish now?"""
        with self.lock:
            for model in MODELS:
                if self.wanted(model): continue
                self.may_vanish.add(model)

    @rule(model=st.sampled_from(MODELS), version=st.integers(1, 5), whole=st.booleans())
    def copy(self, model, version, whole):
        put(self.place/model, version, whole)
        self.folders[model][version] = whole or self.folders[model].get(version, False)

    @rule(model=st.sampled_from(MODELS), version=st.integers(1, 5))
    def remove(self, model, version):
        folder = self.place/model/str(version)
        if not folder.is_dir(): return
        for file in folder.iterdir(): file.unlink()
        folder.rmdir()
        del self.folders[model][version]
        self.poll()

    @rule(policies=st.dictionaries(st.sampled_from(MODELS), st.one_of(st.just("all"), st.integers(1, 3), st.lists(st.integers(1, 5), min_size=1, max_size=3))),
          label=st.integers(1, 5))
    def configure(self, policies, label):
        self.policies, self.label = policies, label
        self.expect()
        config = model_config([model_entry(model, self.place/model, policy, {"champion": label}) for model, policy in policies.items()])
        try: self.manager.apply(config, 0)
        except Refusal as e: assert e.code == "UNKNOWN", e

    @rule()
    def poll(self):
        self.expect()
        self.manager.poll()

    @rule(seconds=st.integers(1, 70))
    def wait(self, seconds):
        self.now += seconds
        self.poll()

    @rule(model=st.sampled_from(MODELS), version=st.one_of(st.none(), st.integers(1, 5)), label=st.booleans())
    def borrow(self, model, version, label):
        try: self.held.append(self.manager.lease(model, None if label else version, "champion" if label else None))
        except Refusal as e: assert e.code in ("NOT_FOUND", "INVALID_ARGUMENT")

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 99))
    def give_back(self, index): self.held.pop(index % len(self.held)).release()

    @rule()
    def come_to_rest(self):
        """With nothing lent out, what is available is what is wanted and whole, and never nothing where something was."""
        for lease in self.held: lease.release()
        self.held.clear()
        self.expect()
        for _ in range(3): look(self.manager)
        for model in MODELS:
            wanted, whole = self.wanted(model), self.folders[model]
            ready = {number for (name, number, label) in self.manager._fleet.routes if name == model and number is not None}
            kept = set(self.manager.labels(model).values()) if model in self.policies else set()
            if model in self.policies and self.label in ready: assert kept == {self.label}
            assert {version for version in wanted if whole[version]} <= ready, (wanted, whole, ready)
            if ready & set(wanted) or not wanted: assert ready <= set(wanted) | kept, (wanted, ready, kept)
            assert len(ready - set(wanted) - kept) <= 1
            with self.lock:
                if ready: self.may_vanish.discard(model)

    @invariant()
    def nothing_lent_is_closed(self):
        if not hasattr(self, "made"): return
        assert self.wrong == []
        assert [lease.version for lease in self.held if lease.servable.closed] == []
        assert [one for one in self.made if one.closed > 1] == []

    def teardown(self):
        if not hasattr(self, "made"): return
        self.over.set()
        self.asker.join()
        for lease in self.held: lease.release()
        assert self.manager.stop(10)
        assert self.wrong == []
        assert {one.closed for one in self.made} <= {1}


def test_any_order_of_events_keeps_the_promises(tmp_path, restless):
    """Never nobody, never closed while lent, closed exactly once."""
    Lifecycle.root = tmp_path
    run_state_machine_as_test(Lifecycle, settings=settings(max_examples=60, stateful_step_count=40, deadline=None,
                                                           suppress_health_check=list(HealthCheck)))


# ---------------------------------------------------------------- metrics

awkward = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), awkward, max_size=4), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_is_read_back(labels, value):
    """By our reader and by Prometheus' own."""
    parser = pytest.importorskip("prometheus_client.parser")
    text = "\n".join([*write_family("some_metric", "gauge", [(labels, value)]), ""])
    if len(text.splitlines()) == 2:   # what splits a line in Unicode's eyes, our reader must not split either
        assert [(one.labels, one.value) for one in read_samples(text)] == [(labels, value)]
    [family] = parser.text_string_to_metric_families(text)
    assert [(one.labels, one.value) for one in family.samples] == [(labels, value)]


def test_prometheus_reads_the_page():
    """Upstream's names and ours, with their types, and every histogram grows."""
    parser = pytest.importorskip("prometheus_client.parser")
    metrics = Metrics()
    for door, api in (("rest", "predict"), ("grpc", "predict"), ("grpc", "classify"), ("rest", "status"), ("grpc", "metadata"), ("grpc", "multi_inference")):
        for code in ("OK", "NOT_FOUND"): metrics.observe("taxi", 2, "serving_default", api, door, code, 0.003, 0.001, examples=3 * (api in ("classify", "multi_inference")))
    metrics.observe_warm_up("/models/taxi/2", "OK", 0.25, 10)
    families = {one.name: one for one in parser.text_string_to_metric_families(metrics.text().decode())}
    kinds = {name: one.type for name, one in families.items()}
    assert {name: kinds[name] for name in (":tensorflow:serving:request_count", ":tensorflow:serving:request_latency", "mlnb_requests", "mlnb_in_flight")} == {
        ":tensorflow:serving:request_count": "counter", ":tensorflow:serving:request_latency": "histogram", "mlnb_requests": "counter", "mlnb_in_flight": "gauge"}
    counted = {tuple(one.labels.values()): one.value for one in families[":tensorflow:serving:request_latency"].samples if one.name.endswith("_count")}
    assert counted == {("taxi", "predict", "REST"): 1, ("taxi", "Predict", "GRPC"): 1, ("taxi", "Classify", "GRPC"): 1, ("taxi", "", "REST"): 1}
    assert metric_total(metrics.text(), "/tensorflow/serving/request_count") == 8   # neither metadata over gRPC nor multi-inference
    assert metric_total(metrics.text(), "/tensorflow/serving/model_warmup_records_read") == 10
    assert metric_total(metrics.text(), "/tensorflow/serving/request_example_count_total") == 12
    assert metric_total(metrics.text(), "mlnb_requests_total") == 12
    for family in families.values():
        if family.type != "histogram": continue
        buckets = [one.value for one in family.samples if one.name.endswith("_bucket")]
        assert len(buckets) % (34 if "latency" in family.name else 16 if "example" in family.name else 17) == 0
    help_missing = [name for name, one in families.items() if not name.startswith(":") and not one.documentation]
    assert help_missing == []


def test_counts_of_many_threads_are_not_lost():
    """Four threads, one page."""
    metrics = Metrics()

    def work(version):
        for _ in range(3000): metrics.observe("taxi", version % 2, "s", "predict", "rest", "OK", 0.001, 0.0005)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert metric_total(metrics.text(), "mlnb_requests_total") == 12_000
    assert metric_total(metrics.text(), ":tensorflow:serving:runtime_latency_count") == 12_000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(MODELS), st.integers(1, 2), st.sampled_from(["OK", "INTERNAL"]), st.floats(0, 20)), max_size=8), min_size=1, max_size=4))
def test_pages_of_workers_add_up_to_the_page_of_one(workers):
    """Merging is the same as counting in one place; whatever the order of the pages."""
    def page(*requests):
        metrics = Metrics()
        for model, version, code, seconds in sorted(requests): metrics.observe(model, version, "s", "predict", "grpc", code, seconds)
        return metrics.text()

    def figures(text): return {(one.name, *sorted(one.labels.items())): one.value for one in read_samples(text) if not one.name.startswith("process")}
    together = figures(page(*(request for worker in workers for request in worker)))
    pages = [page(*worker) for worker in workers]
    for order in (pages, pages[::-1]):
        merged = figures(merge_texts(order))
        assert merged.keys() == together.keys()
        for key, value in together.items(): assert merged[key] == pytest.approx(value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.from_regex(r"[0-9]{1,22}", fullmatch=True), st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20)), max_size=8))
def test_any_names_may_lie_in_a_models_folder(tmp_path_factory, children):
    """Only whole numbers of 64 bits are versions, and the last name in order wins."""
    base = tmp_path_factory.mktemp("base")
    for name in children:
        if name not in (".", "..") and len(name.encode()) < 200: (base/name).mkdir(exist_ok=True)
    found = list_folders(base)
    assert list(found) == sorted(found)
    for number, folder in found.items():
        same = [p.name for p in base.iterdir() if p.name.isascii() and p.name.isdigit() and int(p.name) == number]
        assert folder.name == max(same)
        assert number < 2**63


def test_a_label_cannot_break_its_line():
    """Newlines and quotes from outside stay inside their quotes."""
    assert label_text({"model": 'a"} 5\nb{x="'}) == r'model="a\"} 5\nb{x=\""'
