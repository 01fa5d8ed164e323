"""What is on the disk while a notebook runs: whole, up to date within a second, whatever happened to which cell."""
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.exceptions import PapermillExecutionError

from mlnb.pipeline import engine, provisioner

CELLS = (
    "from IPython.display import display, clear_output, HTML, Javascript\nh = display(HTML('<b>\\n1'), display_id='a')",
    "import sys, time\nfor i in range(4): print(i); sys.stdout.flush(); time.sleep(0.05)",
    "h.update(HTML('<b>\\n2'))\nprint('é\\u2028', file=sys.stderr)\n{'a': 1}",
    "print('gone')\nclear_output(wait=True)\nprint('there')",
    "display(1, display_id='b'); h.update(HTML('3')); clear_output(); display(Javascript('x\\ny'))",
    "", "1/0", "print('never')",
)


def execute(folder, cells, **options):
    """Execute cells in a kernel of their own."""
    nbformat.write(new_notebook(cells=cells), folder/"in.ipynb")
    sockets = provisioner.socket_folder()
    try: engine.execute(folder/"in.ipynb", folder/"out.ipynb", {}, "python3", km=provisioner.kernel_manager("python3", sockets), **options)
    finally: sockets.rmdir()


def test_every_save_is_the_whole_notebook(tmp_path, monkeypatch):
    saves = []

    def compare(manager):
        expected = engine.mask(nbformat.v4.writes_json(manager.nb) + "\n", manager.secrets)
        assert manager._encoded().decode() == expected
        saves.append(expected)

    monkeypatch.setattr(engine.StageManager, "_write_quickly", compare)
    monkeypatch.setattr(engine.StageManager, "until_save", lambda manager: 0.0 if manager._changed else float("inf"))
    cells = [new_markdown_cell("# é\n"), *map(new_code_cell, CELLS)]
    with pytest.raises(PapermillExecutionError):
        execute(tmp_path, cells, secrets=["there"])
    assert len(saves) > 20
    done = nbformat.read(tmp_path/"out.ipynb", 4)
    cells = [c for c in done.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    assert cells[1].outputs[0].data["text/html"] == "3"
    assert [o.text for o in cells[4].outputs] == ["***\n"]
    assert "".join(o.text for o in cells[2].outputs) == "0\n1\n2\n3\n"
    assert cells[2].metadata.execution.keys() == {"iopub.status.busy", "iopub.execute_input", "shell.execute_reply", "iopub.status.idle"}
    assert [c.metadata.papermill.status for c in cells[-2:]] == ["failed", "pending"]
    nbformat.validate(done)


DRIVER = """
import sys
from pathlib import Path
from mlnb.pipeline import engine, provisioner
folder = Path(sys.argv[1])
engine.execute(folder/"in.ipynb", folder/"out.ipynb", {}, "python3", km=provisioner.kernel_manager("python3", folder))
"""


def test_killed_driver_leaves_what_was_printed_before_silence(tmp_path):
    silent = f"import os, time\nprint(*range(10)); open({str(tmp_path/'said')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    nbformat.write(new_notebook(cells=[new_code_cell("print('first')"), new_code_cell(silent)]), tmp_path/"in.ipynb")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)])
    try:
        end = time.monotonic() + 120
        while not (tmp_path/"said").exists() or not (tmp_path/"said").read_text(): assert time.monotonic() < end; time.sleep(0.02)
        time.sleep(2.5)   # the saves' second, and what a busy machine takes
    finally: driver.kill(); driver.wait()
    os.kill(int((tmp_path/"said").read_text()), signal.SIGKILL)
    found = json.loads((tmp_path/"out.ipynb").read_text())
    assert ["".join(o["text"]) for c in found["cells"] for o in c["outputs"]] == ["first\n", "0 1 2 3 4 5 6 7 8 9\n"]
