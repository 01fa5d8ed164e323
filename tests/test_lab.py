"""A project in JupyterLab: its server is started by `mlnb lab` and spoken to as the browser speaks to it."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid

import pytest
from projects import ROOT, ProjectFolder, statuses, wait_for

pytest.importorskip("jupyterlab")
websocket = pytest.importorskip("websocket")

TOKEN = uuid.uuid4().hex
AUTHORIZED = {"Authorization": f"token {TOKEN}"}
STAGES = {
    "10_load": ["parameters:rows: int = 40", "import features\nimport pandas as pd\n\nfrom mlnb import glue",
                "glue('table', pd.DataFrame({'n': [features.double(i) for i in range(rows)]}))"],
    "20_total": ["parameters:from mlnb import Secret\nkey: Secret = Secret('LAB_KEY')",
                 "import matplotlib.pyplot as plt\n\nfrom mlnb import glue, ref\ntable = ref('load.table')",
                 "figure, axes = plt.subplots(figsize=(1, 1))\nglue('figure', figure)",
                 "glue('total', int(table.n.sum()))\nkey"],
    "30_break": ["from mlnb import glue, ref\ntotal = ref('total.total')\nprint(total)", "glue('ratio', total / 0)"],
}


class Lab:
    """The server, as a browser sees it."""

    def __init__(self, project: ProjectFolder, port: int):
        self.project, self.address = project, f"127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: dict | None = None):
        """A request of the REST interface."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://{self.address}/api/{path}", data, AUTHORIZED | {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def read(self, path: str) -> dict:
        """A notebook's model."""
        return self.ask("GET", f"contents/{path}?type=notebook")

    def save(self, path: str, content: dict) -> dict:
        """Save a notebook and give back what is in the file afterwards."""
        self.ask("PUT", f"contents/{path}", {"type": "notebook", "format": "json", "content": content})
        return json.loads((self.project.root / path).read_text())

    def run(self, path: str, *more: str) -> list[list[dict]]:
        """Open a notebook, run all its code cells and some more, and give back the outputs of each."""
        kernel = self.ask("POST", "sessions", {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}})["kernel"]
        cells = [c["source"] for c in self.read(path)["content"]["cells"] if c["cell_type"] == "code"]
        try: return self.execute(kernel["id"], *cells, *more)
        finally: self.ask("DELETE", f"kernels/{kernel['id']}")

    def execute(self, kernel: str, *cells: str) -> list[list[dict]]:
        """Execute cells over the kernel's websocket."""
        socket_ = websocket.create_connection(f"ws://{self.address}/api/kernels/{kernel}/channels", timeout=60, header=AUTHORIZED)
        try: return [self._execute(socket_, cell) for cell in cells]
        finally: socket_.close()

    def _execute(self, socket_, code: str) -> list[dict]:
        key, outputs = uuid.uuid4().hex, []
        header = {"msg_id": key, "msg_type": "execute_request", "username": "", "session": key, "date": "", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        socket_.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}))
        replied = False
        while True:
            message = json.loads(socket_.recv())
            if message.get("parent_header", {}).get("msg_id") != key: continue
            kind = message["msg_type"]
            if kind in ("stream", "display_data", "execute_result", "error"): outputs.append({"kind": kind, **message["content"]})
            replied = replied or kind == "execute_reply"
            if kind == "status" and message["content"]["execution_state"] == "idle": return outputs


def said(outputs: list[dict]) -> str:
    """All text of a cell's outputs."""
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain") or o.get("evalue", "") for o in outputs)


def files(project: ProjectFolder) -> dict[str, int]:
    """Every file of the project with its time; without caches, and what JupyterLab and Python put there."""
    skipped = (".ipynb_checkpoints", "__pycache__", "cache")
    return {str(p): p.stat().st_mtime_ns for p in project.root.rglob("*") if p.is_file() and not set(skipped) & set(p.parts)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A project with one run that failed in its last stage, open in JupyterLab."""
    project = ProjectFolder(tmp_path_factory.mktemp("lab") / "project", STAGES)
    (project.root / "features.py").write_text("def double(x): return 2 * x\n")
    os.environ["LAB_KEY"] = "hunter22"
    project.run(code=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(project.root.parent / kind) for kind in ("CONFIG", "RUNTIME", "DATA")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlnb", "lab", "--no-browser", "--allow-root", "--ip", "127.0.0.1", "--port", str(port),
         "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"], cwd=project.path("10_load").parent,
        env=project.environment(IPYTHONDIR=str(project.root.parent / "ipython"), **places), stdout=subprocess.DEVNULL,
        stderr=(project.root.parent / "lab.log").open("w"), start_new_session=True)
    lab = Lab(project, port)

    def answers():
        assert process.poll() is None, (project.root.parent / "lab.log").read_text()
        try: return lab.ask("GET", "status")
        except OSError: return None

    try:
        wait_for(answers, 60, "JupyterLab's answer")
        yield lab
    finally:
        project.mlnb("debug", "break", "--stop")
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        del os.environ["LAB_KEY"]


def first_run(lab: Lab) -> str:
    """The id of the run that the fixture made."""
    return lab.project.mlnb("runs", "--json").json[-1]["run"]


def test_a_warm_kernel_has_its_imports_behind_it(lab):
    """What the stages import is loaded before the first cell of a notebook that is opened."""
    lab.project.mlnb("kernels", "start", code=0, IPYTHONDIR=str(lab.project.root.parent / "ipython"))
    path = "nbs/stages/p/10_load.ipynb"
    kernel = lab.ask("POST", "sessions", {"path": path, "name": path, "type": "notebook", "kernel": {"name": "mlnb-warm"}})["kernel"]
    look = "import os, sys\nprint(os.getppid(), 'pandas' in sys.modules, 'matplotlib.pyplot' in sys.modules, 'features' in sys.modules)"
    try: seen, shown = lab.execute(kernel["id"], look, "import features\nfeatures.double(4)")
    finally: lab.ask("DELETE", f"kernels/{kernel['id']}")
    parent = lab.project.mlnb("kernels", "--json", code=0).json["parents"][0]
    assert said(seen).split() == [str(parent["pid"]), "True", "True", "False"] and said(shown) == "8"
    assert wait_for(lambda: not lab.project.mlnb("kernels", "--json", code=0).json["parents"][0]["kernels"], 20, "its end")


def test_a_stage_runs_as_it_is_and_leaves_nothing_behind(lab):
    before, run = files(lab.project), first_run(lab)
    _, _, glued = lab.run("nbs/stages/p/10_load.ipynb")
    assert "glue: 'table' = 40 rows x 1 columns (shown only: not in a run)" in said(glued)
    assert sum("text/html" in o.get("data", {}) for o in glued) == 1
    _, read, figure, last = lab.run("nbs/stages/p/20_total.ipynb")
    assert re.fullmatch(rf"load\.table from run {run} \(.*\)\n", said(read))
    assert sum("image/png" in o.get("data", {}) for o in figure) == 1, "a figure is shown once"
    assert "glue: 'total' = 1560 (shown only" in said(last) and "hunter22" not in said(last)
    assert files(lab.project) == before


def test_a_notebook_reopened_from_a_run_reads_what_that_run_read(lab):
    run = first_run(lab)
    lab.project.run("-p", "rows=3", "--select", "load")
    newest = lab.project.mlnb("runs", "--json").json[0]["run"]
    assert newest != run
    assert newest in said(lab.run("nbs/stages/p/20_total.ipynb", "print(len(table))")[1])
    outputs = lab.run(f"runs/{run}/20_total.ipynb", "print(len(table))")
    assert f"load.table from run {run} (the run of this notebook)" in said(outputs[1]) and said(outputs[-1]) == "40\n"


def test_a_record_stays_as_it_is(lab):
    path = f"runs/{first_run(lab)}/20_total.ipynb"
    bytes_, content = (lab.project.root / path).read_bytes(), lab.read(path)["content"]
    assert not (lab.project.root / path).stat().st_mode & 0o222
    for cell in content["cells"]: cell["outputs"] = []
    if os.access(lab.project.root / path, os.W_OK): lab.save(path, content)   # root may write what is read-only
    assert (lab.project.root / path).read_bytes() == bytes_
    content["cells"][0]["source"] += "\nx = 1"
    with pytest.raises(urllib.error.HTTPError): lab.save(path, content)
    assert (lab.project.root / path).read_bytes() == bytes_


def test_saving_leaves_no_trace_of_the_session(lab):
    path = "nbs/stages/p/20_total.ipynb"
    content = lab.read(path)["content"]
    once = lab.save(path, content)
    content["metadata"] |= {"language_info": {"name": "python", "version": "3"}}
    content["cells"][1] |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": "hunter22"}]}
    assert lab.save(path, content) == once
    told = lab.save("notes.ipynb", content)
    assert told["cells"][1]["outputs"][0]["text"] == ["***"], "a secret does not reach the disk in other notebooks either"


def test_the_kernel_of_a_failed_stage_can_be_entered(lab):
    lab.project.run("--select", "break", code=1)
    assert "Change Kernel > p.break" in lab.project.mlnb("debug", "break", code=0).out
    found = [k for k in lab.ask("GET", "kernels") if k["name"] == "p.break"]
    assert len(found) == 1
    path, model = "nbs/stages/p/30_break.ipynb", {"kernel": {"id": found[0]["id"]}, "type": "notebook"}
    lab.ask("POST", "sessions", model | {"path": path, "name": path})
    assert said(lab.execute(found[0]["id"], "print(total + 1)")[0]) == "1561\n"
    content = lab.read(path)["content"]
    content["metadata"]["kernelspec"] = {"name": "p.break", "display_name": "p.break"}
    assert lab.save(path, content)["metadata"]["kernelspec"]["name"] == "python3"
    assert "has ended" in lab.project.mlnb("debug", "break", "--stop", code=0).out
    assert not [k for k in lab.ask("GET", "kernels") if k["name"] == "p.break"]


def test_debug_does_not_enter_the_kernel_of_an_older_failure(tmp_path):
    project = ProjectFolder(tmp_path / "project", {"10_break": ["x = 1", "1 / 0"]})
    project.run("--keep-kernel", code=1)
    old = project.mlnb("debug", "--json", code=0).json
    project.edit("10_break", "x = 1", "x = 2")
    assert statuses(project.run(code=1)) == {"break": "failed"}
    try:
        new = project.mlnb("debug", "--json", code=0).json
        assert (old["run"], old["pid"]) != (new["run"], new["pid"])
        connection = (project.runs / "debug" / "kernels" / f"kernel-{new['pid']}@p.break.json")
        assert connection.stat().st_mode & 0o077 == 0 and len(list(connection.parent.iterdir())) == 1
        wait_for(lambda: not os.path.exists(f"/proc/{old['pid']}"), 10, "the end of the older kernel")
    finally: project.mlnb("debug", "--stop", "break")


def test_every_kernel_finds_the_modules_of_its_project(tmp_path):
    """Also when JupyterLab was not started by `mlnb lab`: with the configuration that .ci/install writes."""
    line = next(line for line in (ROOT / ".ci" / "install").read_text().splitlines() if "ipython_config.json" in line)
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_config.json").write_text(re.search(r"'(\{.*\})'", line)[1])
    project = ProjectFolder(tmp_path / "project", {"10_load": ["import features"]})
    (project.root / "features.py").write_text("place = 'the project'\n")
    done = subprocess.run([sys.executable, "-m", "IPython", "-c", "import features; print(features.place)"], capture_output=True, text=True,
                          cwd=project.path("10_load").parent, env=project.environment(IPYTHONDIR=str(tmp_path / "ipython")), timeout=60)
    assert done.stdout.strip() == "the project", done.stderr


def test_the_words_of_jupyterlab_are_passed_on(lab):
    log = (lab.project.root.parent / "lab.log").read_text()
    assert f"http://{lab.address}/lab" in log
