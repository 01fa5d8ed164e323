"""Take out of a notebook what a session leaves behind: counts, times, addresses, view settings, and a stage's outputs.

Reads the notebook on standard input and writes it to standard output; the argument is its path in the repository. The
result is what nbdev-clean writes (a test compares them), with the standard library alone and without its start-up time,
because git calls this for every notebook it looks at. What is no notebook passes through untouched.
"""
import json
import re
import sys

CELL_KEYS = {"hide_input", "nbdev", "tags"}   # `tags` carries papermill's `parameters`
NOTEBOOK_KEYS = {"kernelspec", "jekyll", "jupytext", "doc", "widgets", "nbdev"}
ADDRESS = re.compile("(<.*?)( at 0x[0-9a-fA-F]+)(>)")


def without_addresses(text):
    """Text or lines of it, with `<object at 0x7f...>` made the same in every session."""
    if isinstance(text, str): return ADDRESS.sub(r"\1\3", text)
    return [ADDRESS.sub(r"\1\3", line) for line in text]


def clean_output(output):
    """One output of a cell, in place."""
    if "execution_count" in output: output["execution_count"] = None
    if "metadata" in output: output["metadata"] = {}
    if "text" in output: output["text"] = without_addresses(output["text"])
    data = output.get("data", {})
    data.pop("application/vnd.google.colaboratory.intrinsic+json", None)
    for kind, value in data.items():
        if kind.startswith("text"): data[kind] = without_addresses(value)
        if kind.startswith("image") and "svg" not in kind: data[kind] = value.rstrip()


def clean(notebook, path):
    """A parsed notebook, in place; a stage, which `path` tells, keeps no outputs."""
    for cell in notebook["cells"]:
        if "execution_count" in cell: cell["execution_count"] = None
        if "outputs" in cell and path.startswith("nbs/stages/"): cell["outputs"] = []
        for output in cell.get("outputs", []): clean_output(output)
        if cell["source"] == [""]: cell["source"] = []
        cell["metadata"] = {key: value for key, value in cell.get("metadata", {}).items() if key in CELL_KEYS}
    metadata = notebook.get("metadata", {})
    kernel = metadata.get("kernelspec", {})
    if kernel.get("name"): kernel["display_name"] = kernel["name"]
    notebook["metadata"] = {key: value for key, value in metadata.items() if key in NOTEBOOK_KEYS}


def cleaned(raw, path):
    """Bytes of a notebook, cleaned; other bytes as they are."""
    try:
        notebook = json.loads(raw)
        if notebook["nbformat"] != 4 or any("id" not in cell for cell in notebook["cells"]): return raw
        clean(notebook, path)
    except (ValueError, KeyError, TypeError, AttributeError):
        return raw
    return (json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    sys.stdout.buffer.write(cleaned(sys.stdin.buffer.read(), sys.argv[1].replace("\\", "/")))
