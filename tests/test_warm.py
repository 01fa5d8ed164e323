"""Warm kernels: what one does no other can see, what works in them, and how they end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from jupyter_client import KernelManager
from projects import ROOT, ProjectFolder, wait_for

from mlnb.pipeline.warm_client import Connection, ask_kernel, begin_imports, parents, stop_parents
from mlnb.pipeline.warm_place import WarmUnavailable, address_of, warm_folder
from mlnb.settings import find_project

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")

INHERITED = {k: v for k, v in os.environ.items() if not k.startswith(("MLNB_", "PYTEST_"))}
CLEAN = INHERITED | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
HEAVY = "numpy, pandas, sklearn.ensemble, matplotlib.pyplot, tensorflow, keras, tensorflow_model_analysis, flagged"


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Has a process ended, or does it within the time?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


class Kernel:
    """A kernel through jupyter_client's own interface."""

    def __init__(self, folder: Path, **environment: str):
        self.manager = KernelManager(kernel_name="mlnb-warm", transport="ipc")
        self.manager.connection_file = str(folder / f"k{time.monotonic_ns()}.json")
        env = CLEAN | environment
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=90)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=not self.manager.is_alive())

    @property
    def why_cold(self) -> str:
        """Why it is not a warm one; empty when it is."""
        return self.manager.provisioner.why_cold

    @property
    def pid(self) -> int:
        """Process number."""
        return self.manager.provisioner.process.pid

    def run(self, code: str, timeout: float = 120, allow_stdin: bool = False) -> str:
        """Execute code and give what it printed, its result and its error, as one text."""
        said = []

        def hook(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                said.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                said.append(" ".join(content["data"]) + " " + content["data"].get("text/plain", ""))
            elif message["msg_type"] == "error":
                said.append(f"{content['ename']}: {content['evalue']}")

        self.client.execute_interactive(code, timeout=timeout, allow_stdin=allow_stdin, output_hook=hook)
        return "".join(said).strip()


def project_at(root: Path, preload: str, **files: str):
    """A project that names what its kernels have imported."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text(f"[pipeline]\npreload = {preload}\nwarm_idle = 60s\n")
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    return find_project(root)


def loaded(project) -> dict:
    """Ask for a kernel that needs everything, and give the parent's facts afterwards."""
    needs = [f"import {name}" for name in project.get("pipeline", "preload")]
    environment = CLEAN
    kernel = ask_kernel(project, ["-f", str(project.root / "first.json")], environment, str(project.root), needs)
    kernel.kill()
    kernel.wait(10)
    return parents(project)[0]


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """One parent that has imported what stages of a real pipeline import."""
    project = project_at(
        tmp_path_factory.mktemp("heavy"), HEAVY, flagged="import os\nvalue = os.environ.get('FLAG', 'none')\n",
        helper="def double(x):\n    return 2 * x\n",
    )  # fmt: skip
    facts = loaded(project)
    assert facts["excluded"] == {}
    yield project
    stop_parents(project)
    assert gone(facts["pid"])


DISTURB = """
import os, sys, signal, random, logging, warnings, tempfile, threading
import numpy, matplotlib, matplotlib.pyplot as plt, tensorflow as tf, keras, json
os.environ["PLANTED"] = "1"; os.chdir("/"); os.umask(0o077); sys.path.insert(0, "/planted"); sys.planted = 1
sys.modules["planted"] = sys; json.dumps = None; random.seed(1); numpy.random.seed(1); tf.random.set_seed(1)
plt.rcParams["lines.linewidth"] = 99; plt.figure(); keras.config.set_floatx("float64")
keras.mixed_precision.set_global_policy("mixed_bfloat16"); tf.config.run_functions_eagerly(True)
signal.signal(signal.SIGUSR1, lambda *_: None); logging.getLogger().addHandler(logging.NullHandler())
warnings.simplefilter("error"); tempfile.tempdir = "/planted"; planted = open("/dev/zero")
print("disturbed")
"""

LOOK = """
import os, sys, signal, random, logging, warnings, tempfile, json, gc
import numpy, matplotlib.pyplot as plt, keras, tensorflow as tf
mask = os.umask(0); os.umask(mask)
print(json.dumps({
    "environment": os.environ.get("PLANTED"), "cwd": os.getcwd(), "umask": mask, "path": "/planted" in sys.path,
    "attribute": hasattr(sys, "planted"), "module": "planted" in sys.modules, "width": plt.rcParams["lines.linewidth"] == 99,
    "figures": len(plt.get_fignums()), "backend": plt.get_backend(), "floatx": keras.config.floatx(),
    "policy": keras.mixed_precision.global_policy().name, "eager": tf.config.functions_run_eagerly(),
    "usr1": signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "chld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "handlers": len(logging.getLogger().handlers), "filters": ("error", None, Warning, None, 0) in warnings.filters,
    "temporary": tempfile.gettempdir() == "/planted", "gc": gc.isenabled(), "name": __name__, "argv": sys.argv[0].rsplit("/")[-1],
    "zero": any(os.path.exists(p) and os.readlink(p) == "/dev/zero" for p in (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))),
    "leader": os.getpid() == os.getsid(0) == os.getpgid(0), "user": "planted" in globals()}))
"""


def test_nothing_one_kernel_does_is_seen_by_another(heavy):
    """Two kernels at once and one after: environment, modules, seeds, files, folder, signals, libraries' state."""
    with Kernel(heavy.root) as first, Kernel(heavy.root) as beside:
        assert first.run(DISTURB).startswith("disturbed")
        seen = [json.loads(beside.run(LOOK))]
    with Kernel(heavy.root) as after:
        seen.append(json.loads(after.run(LOOK)))
        seen[1]["umask"] = seen[0]["umask"] if seen[1]["umask"] == seen[0]["umask"] else "differs"
    assert seen[0] == seen[1]
    umask = os.umask(0)
    os.umask(umask)
    expected = {
        "environment": None, "cwd": str(heavy.root), "umask": umask, "path": False, "attribute": False, "module": False,
        "width": False, "figures": 0, "floatx": "float32", "policy": "float32", "eager": False, "usr1": True, "term": True,
        "chld": True, "blocked": 0, "filters": False, "temporary": False, "gc": True, "name": "__main__",
        "argv": "ipykernel_launcher", "zero": False, "leader": True, "user": False,
    }  # fmt: skip
    assert {k: seen[0][k] for k in expected} == expected
    assert "inline" in seen[0]["backend"].lower() or seen[0]["backend"] == os.environ.get("MPLBACKEND")


def test_files_of_the_parent_and_of_siblings_are_closed(heavy):
    """A kernel holds no socket of its parent."""
    look = "import os\nprint(sorted(os.path.realpath(f'/proc/{os.getppid()}/fd/{n}') for n in os.listdir(f'/proc/{os.getppid()}/fd') if 'socket' in os.readlink(f'/proc/{os.getppid()}/fd/{n}')))"
    own = "import os\nprint(sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}') or 1 and os.path.lexists(f'/proc/self/fd/{n}')))"
    with Kernel(heavy.root) as one, Kernel(heavy.root) as two:
        parents_sockets = {s for s in one.run(look).split("'") if "socket:" in s}
        mine = {s for s in two.run(own).split("'") if s.startswith("socket:")}
    assert parents_sockets
    assert not {s.rsplit("/", 1)[-1] for s in parents_sockets} & mine


def test_random_numbers_differ_between_kernels(heavy):
    """Without a seed, no generator continues where the parent stood."""
    draw = "import random, numpy, tensorflow as tf\nprint(random.random(), numpy.random.rand(), float(tf.random.uniform(())))"
    drawn = []
    for _ in range(2):
        with Kernel(heavy.root) as kernel:
            drawn.append(kernel.run(draw).splitlines()[-1].split())
    assert all(a != b for a, b in zip(*drawn, strict=True)), drawn


WORK = {
    "operation": ("import tensorflow as tf\nprint(int(tf.reduce_sum(tf.range(5))))", "10"),
    "fit": (
        "import keras, numpy as np\nm = keras.Sequential([keras.layers.Dense(1)]); m.compile('sgd', 'mse')\n"
        "h = m.fit(np.ones((64, 2)), np.ones(64), epochs=2, verbose=0)\nprint(h.history['loss'][1] < h.history['loss'][0])", "True"),
    "data with py_function": (
        "import tensorflow as tf\nd = tf.data.Dataset.range(4).map(lambda x: tf.py_function(lambda v: v * 2, [x], tf.int64), num_parallel_calls=2)\n"
        "print(sorted(int(x) for x in d.prefetch(2)))", "[0, 2, 4, 6]"),
    "saved model": (
        "import tensorflow as tf, keras, numpy as np, tempfile, os\nf = tempfile.mkdtemp()\n"
        "m = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\nm.save(f + '/m.keras'); m.export(f + '/s', verbose=False)\n"
        "x = np.ones((3, 2), 'float32'); a = m.predict(x, verbose=0)\n"
        "b = keras.models.load_model(f + '/m.keras').predict(x, verbose=0); k = tf.saved_model.load(f + '/s'); c = k.serve(x).numpy()\n"
        "print(np.allclose(a, b) and np.allclose(a, c))", "True"),
    "scikit-learn with processes": (
        "from sklearn.ensemble import RandomForestClassifier\nfrom sklearn.model_selection import cross_val_score\nimport numpy as np\n"
        "x = np.random.rand(80, 3); y = x[:, 0] > .5\nprint(len(cross_val_score(RandomForestClassifier(5), x, y, cv=4, n_jobs=2)))", "4"),
    "multiprocessing fork": ("import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))", "[1, 2]"),
    "multiprocessing spawn": (
        "import multiprocessing as m, helper\nwith m.get_context('spawn').Pool(1) as p: print(p.map(helper.double, [1, 2]))", "[2, 4]"),
    "subprocess": ("import subprocess\nprint(subprocess.run(['echo', 'hello'], capture_output=True, text=True).stdout)", "hello"),
    "matplotlib": ("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()", "image/png"),
    "plotly": ("import plotly.graph_objects as go\nfrom IPython.display import display\ndisplay(go.Figure())", "application/vnd.plotly"),
    "wandb offline": (
        "import wandb, tempfile, glob\nf = tempfile.mkdtemp()\nr = wandb.init(mode='offline', dir=f, project='p', settings=wandb.Settings(silent=True))\n"
        "r.log({'a': 1}); r.finish()\nprint(len(glob.glob(f + '/wandb/offline-run-*/*.wandb')))", "1"),
    "await": ("import asyncio\nawait asyncio.sleep(0.01)\nprint('awaited')", "awaited"),
    "input is refused": ("input('name?')", "StdinNotImplementedError"),
    "evaluation": (
        "import pandas as pd, tensorflow_model_analysis as tfma\nfrom google.protobuf import text_format\n"
        "from tensorflow_model_analysis.proto import config_pb2\n"
        "c = text_format.Parse('model_specs { label_key: \"y\" prediction_key: \"p\" } slicing_specs {} "
        "metrics_specs { metrics { class_name: \"AUC\" } }', config_pb2.EvalConfig())\n"
        "r = tfma.analyze_raw_data(pd.DataFrame({'y': [0, 1, 0, 1], 'p': [.1, .9, .2, .8]}), c)\n"
        "print(round(r.slicing_metrics[0][1]['']['']['auc']['doubleValue'], 3))", "1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_work_of_stages(heavy, name):
    """What stages do works in a forked kernel."""
    code, expected = WORK[name]
    with Kernel(heavy.root) as kernel:
        assert kernel.why_cold == ""
        assert expected in kernel.run(code)


def test_interrupt(heavy):
    """A cell that runs is interrupted, and the kernel goes on."""
    with Kernel(heavy.root) as kernel:
        threading.Timer(1.0, kernel.manager.interrupt_kernel).start()
        assert "KeyboardInterrupt" in kernel.run("import time\ntime.sleep(60)", timeout=30)
        assert kernel.run("6 * 7").endswith("42")


def test_fifty_kernels_leave_the_parent_as_it_was(heavy):
    """No open file, thread or process is left of kernels that have ended."""

    def state():
        """What must not grow."""
        pid = parents(heavy)[0]["pid"]
        return pid, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    def rested():
        """The state once a next child waits."""
        end = time.monotonic() + 10
        while not parents(heavy)[0]["spare"] and time.monotonic() < end:
            time.sleep(0.1)
        return state()

    with Kernel(heavy.root):
        pass
    before = rested()
    for number in range(50):
        kernel = ask_kernel(
            heavy,
            ["-f", str(heavy.root / f"many{number}.json")],
            CLEAN,
            str(heavy.root),
        )
        kernel.kill()
        assert kernel.wait(10) == -signal.SIGKILL
    end = time.monotonic() + 10
    while (after := rested()) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert after == before
    assert parents(heavy)[0]["kernels"] == []


def test_eight_at_once(heavy):
    """Eight kernels at the same time are eight processes, each with its own answer."""
    kernels = []
    starts = [threading.Thread(target=lambda: kernels.append(Kernel(heavy.root))) for _ in range(8)]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    try:
        answers = {
            int(k.run("import os, tensorflow as tf\nprint(os.getpid() + 0 * int(tf.constant(1)))").splitlines()[-1])
            for k in kernels
        }
        assert answers == {k.pid for k in kernels} and len(answers) == 8
        assert all(k.why_cold == "" for k in kernels)
    finally:
        for kernel in kernels:
            kernel.__exit__()


@pytest.mark.parametrize(
    "code", ["import os; os.abort()", "import ctypes; ctypes.string_at(0)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
             "import ctypes; ctypes.PyDLL(None).sleep(600)"],
    ids=["aborts", "crashes", "is killed", "hangs"],
)  # fmt: skip
def test_a_kernel_that_ends_badly_harms_nobody(heavy, code):
    """It is gone, its parent serves on."""
    kernel = Kernel(heavy.root)
    pid = kernel.pid
    kernel.client.execute(code)
    if "sleep" in code:
        time.sleep(0.5)
        kernel.manager.shutdown_kernel(now=True)
    assert gone(pid)
    kernel.client.stop_channels()
    with Kernel(heavy.root) as other:
        assert other.why_cold == "" and other.run("6 * 7").endswith("42")


def test_memory_that_runs_out_is_the_kernels_own(heavy):
    """A limit on memory gives MemoryError in this kernel only."""
    with Kernel(heavy.root) as kernel:
        code = "import resource, numpy\nresource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\nx = numpy.ones(8 << 30)"
        assert "MemoryError" in kernel.run(code)
        assert kernel.run("6 * 7").endswith("42")


def test_a_client_that_is_killed_takes_its_kernel_with_it(heavy):
    """kill -9 of the client: the kernel and what it started are gone, also what had left its session."""
    code = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, 'tests'); from test_warm import Kernel\n"
        f"k = Kernel(Path({str(heavy.root)!r}))\n"
        'print(k.pid, k.run(\'import subprocess; print(subprocess.Popen(["sleep", "600"]).pid, subprocess.Popen(["sleep", "600"], start_new_session=True).pid)\'), flush=True)\n'
        "time.sleep(600)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=CLEAN | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
    )
    pids = [int(p) for p in client.stdout.readline().split()]
    assert len(pids) == 3
    client.kill()
    client.wait()
    assert all(gone(pid) for pid in pids), pids
    client.stdout.close()


def test_environment_read_at_import_makes_another_parent(heavy):
    """A preloaded module read FLAG: another value gets another import; a variable nobody read does not."""
    before = parents(heavy)[0]["pid"]
    with Kernel(heavy.root, UNREAD="1") as kernel:
        assert kernel.run("import flagged; print(flagged.value)") == "none"
    after = parents(heavy)[0]
    assert after["pid"] == before, f"another one, because {after['instead']}"


def test_parent_follows_the_environment_and_the_files(tmp_path):
    """Another variable, an edited module, a killed parent: the next kernel is right, and from a new parent."""
    project = project_at(tmp_path / "p", "flagged", flagged="import os\nvalue = os.environ.get('FLAG', 'none')\n")
    try:
        seen = [loaded(project)["pid"]]
        with Kernel(project.root, FLAG="on") as kernel:
            assert kernel.run("import flagged; print(flagged.value)") == "on"
        wait_for(lambda: "import flagged" in parents(project)[0]["loaded"], 20, "the import in the new parent")
        seen.append(parents(project)[0]["pid"])
        (project.root / "flagged.py").write_text("value = 'edited'\n")
        with Kernel(project.root, FLAG="on") as kernel:
            assert kernel.run("import flagged; print(flagged.value)") == "edited"
            seen.append(parents(project)[0]["pid"])
            child = kernel.pid
            os.kill(seen[-1], signal.SIGKILL)
            assert gone(child)
        with Kernel(project.root) as kernel:
            assert kernel.why_cold == "" and kernel.run("6 * 7").endswith("42")
            seen.append(parents(project)[0]["pid"])
        assert len(set(seen)) == 4
    finally:
        stop_parents(project)


def test_an_installed_package_makes_another_parent(tmp_path):
    """Something was installed since the imports: the next kernel is from a new parent, and sees it."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "tool.py").write_text("version = 1\n")
    project = project_at(tmp_path / "p", "tool")
    environment = CLEAN | {"PYTHONPATH": f"{ROOT}:{site}"}

    def ask() -> tuple[int, str]:
        """The parent's number and the version that a kernel has."""
        with Kernel(project.root, PYTHONPATH=environment["PYTHONPATH"]) as kernel:
            wait_for(lambda: "import tool" in parents(project)[0]["loaded"], 20, "the import")
            assert kernel.why_cold == ""
            return parents(project)[0]["pid"], kernel.run("import tool; print(tool.version)")

    try:
        first = ask()
        assert ask() == first
        (site / "tool-2.dist-info").mkdir()
        (site / "tool.py").write_text("version = 2\n")
        second = ask()
        assert (first[1], second[1]) == ("1", "2") and first[0] != second[0]
    finally:
        stop_parents(project)


def test_who_turns_to_a_cold_kernel_gets_no_warm_one_later(tmp_path):
    """A parent busy with an import that is not needed: the client gives up, and its order is never carried out."""
    project = project_at(tmp_path / "p", "none", slow="import time\ntime.sleep(3)\n")
    try:
        pid = loaded(project)["pid"]
        begin_imports(project, ["import slow"])
        time.sleep(0.3)
        with pytest.raises(WarmUnavailable, match="busy with `import slow`"):
            ask_kernel(project, ["-f", str(tmp_path / "late.json")], CLEAN, str(project.root))
        facts = parents(project)[0]
        assert facts["pid"] == pid and "import slow" in facts["loaded"] and facts["kernels"] == []
        silent = Connection(address_of(project))
        order = {"argv": ["-f", str(tmp_path / "late.json")], "env": CLEAN, "cwd": str(tmp_path), "umask": 0o022}
        silent.say({"ask": "kernel", "order": order}, (1, 2))
        assert silent.hear(10) == {"ready": True}
        silent.close()
        time.sleep(1.0)
        assert parents(project)[0]["kernels"] == [] and not (tmp_path / "late.json").exists()
    finally:
        stop_parents(project)


NONSENSE = [b"\n", b"{\n", b"[]\n", b"5\n", b'{"ask": 1}\n', b'{"ask": "kernel"}\n', b'{"ask": "kernel", "order": {}}\n', b"\xff\xfe\n",
            b'{"ask": "preload", "statements": 7}\n', b'{"ask": "take"}\n', b'{"ask": "status", "more": 1}\n', b'{"ask": "rel']  # fmt: skip


def test_nonsense_ends_a_connection_and_nothing_else(tmp_path):
    """What cannot be understood is answered or dropped; the parent serves on."""
    project = project_at(tmp_path / "p", "none")
    try:
        pid = loaded(project)["pid"]
        for text in NONSENSE:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(address_of(project)))
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                assert connection.makefile().read() == "" or text not in (b'{"ask": "take"}\n', b'{"ask": "rel')
        assert parents(project)[0]["pid"] == pid
        with Kernel(project.root) as kernel:
            assert kernel.why_cold == "" and kernel.run("6 * 7").endswith("42")
    finally:
        stop_parents(project)


def test_an_import_that_starts_a_thread_is_left_out(tmp_path):
    """The parent that did it serves no more, and the next one does not do it again."""
    project = project_at(
        tmp_path / "p",
        "threaded",
        threaded="import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    )
    try:
        facts = loaded(project)
        assert facts["state"] == "ready" and "1 more thread" in facts["excluded"]["import threaded"]
        with Kernel(project.root) as kernel:
            assert kernel.why_cold == "" and kernel.run("import threaded; 6 * 7").endswith("42")
    finally:
        stop_parents(project)


def test_idle_and_homeless_parents_leave(tmp_path):
    """Without work for the time that is set, and when the project's folder is gone."""
    project = project_at(tmp_path / "p", "none")
    pid = loaded(project)["pid"]
    shutil.rmtree(project.root)
    assert gone(pid)
    project = project_at(tmp_path / "q", "none")
    (project.root / "settings.ini").write_text("[pipeline]\npreload = none\nwarm_idle = 1s\n")
    assert gone(loaded(find_project(project.root))["pid"])


def test_four_who_ask_at_once_get_one_parent(tmp_path):
    """The lock decides."""
    project, kernels = project_at(tmp_path / "p", "none"), []
    environment = CLEAN

    def ask(number):
        """One of them."""
        kernels.append(
            ask_kernel(project, ["-f", str(project.root / f"{number}.json")], environment, str(project.root))
        )

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(parents(project)) == 1 and len(parents(project)[0]["kernels"]) == 4
    finally:
        stop_parents(project)
    assert all(gone(k.pid) for k in kernels)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(tmp_path, monkeypatch):
    """Even with the folder opened, the parent answers nobody else."""
    place = tempfile.mkdtemp(dir="/tmp")
    os.chmod(place, 0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", place)
    project = project_at(tmp_path / "p", "none")
    loaded(project)
    address = address_of(project)
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]) if sys.argv[2] == 'early' else None\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(400).decode())\n"
        "except OSError as e: print(type(e).__name__)"
    )
    try:
        assert warm_folder().stat().st_mode & 0o777 == 0o700
        said = subprocess.run([sys.executable, "-c", code, str(address), "late"], capture_output=True, text=True)
        assert said.stdout.strip() == "PermissionError", said
        (Path(place) / f"mlnb-{os.getuid()}").chmod(0o711)
        address.chmod(0o666)
        said = subprocess.run([sys.executable, "-c", code, str(address), "late"], capture_output=True, text=True)
        assert "another user" in said.stdout and "kernels" not in said.stdout
    finally:
        (Path(place) / f"mlnb-{os.getuid()}").chmod(0o700)
        stop_parents(project)
        shutil.rmtree(place)


def test_a_folder_that_others_can_enter_is_refused(monkeypatch):
    """Somebody may have made it before us."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        (Path(place) / f"mlnb-{os.getuid()}").mkdir()
        (Path(place) / f"mlnb-{os.getuid()}").chmod(0o777)
        with pytest.raises(WarmUnavailable, match="not private"):
            warm_folder()


def test_runs_say_which_kernels_they_used(tmp_path):
    """Warm by default, cold when asked, the same scraps either way; another kernel name says why under -v."""
    cells = [
        "from mlnb import glue",
        "import random, numpy\nglue('drawn', [random.random(), float(numpy.random.rand()), hash('a')])",
    ]
    project = ProjectFolder(tmp_path / "p", {"10_draw": cells})
    scraps, kinds = [], []
    for words in ((), ("--cold",)):
        data = project.mlnb("run", "--json", "--force", "draw", *words, code=0).json
        record = json.loads((project.root / "runs" / data["run"] / "run.json").read_text())["stages"]["draw"]
        scraps.append(record["scraps"]["drawn"]["data"])
        kinds.append(record["kernel"])
        assert record["resources"]["peak_memory_bytes"] > 10_000_000
    assert kinds == ["warm", "cold"] and scraps[0] == scraps[1]
    other = tmp_path / "jupyter" / "kernels" / "other"
    other.mkdir(parents=True)
    wrapper = tmp_path / "python-elsewhere"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    (other / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [str(wrapper), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "Other",
                "language": "python",
            }
        )
    )
    said = project.mlnb(
        "run", "-v", "--force", "draw", code=0, JUPYTER_PATH=str(tmp_path / "jupyter"), MLNB_PIPELINE_KERNEL="other"
    )
    assert "a cold kernel, because kernel 'Other' does not run in this Python" in said.err
    assert project.mlnb("kernels", "stop", code=0).out.strip() == "stopped: 1"
    assert project.mlnb("kernels", "--json", code=0).json == {"format": 1, "parents": []}
