"""Scraps of 100 executed notebooks read back, in a process that has everything imported."""

import json
from collections.abc import Iterator
from pathlib import Path

from harness import Comparison, compare
from toys import notebook


def executed(folder: Path, number: int) -> Path:
    """A notebook with five scraps and fifty cells with a line of output."""
    path = notebook(folder / f"{number:03}.ipynb", ["k = 1", *(f"print({i})" for i in range(55))])
    record = json.loads(path.read_text())
    for i, cell in enumerate(record["cells"][1:]):
        cell["execution_count"] = i + 1
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [f"{i} of notebook {number}\n"]}]
    for i, cell in enumerate(record["cells"][-5:]):
        payload = {"name": f"v{i}", "data": number + i / 10, "encoder": "json", "version": 1}
        cell["outputs"] = [
            {
                "output_type": "display_data",
                "data": {"application/scrapbook.scrap.json+json": payload},
                "metadata": {"scrapbook": {"name": f"v{i}", "data": True, "display": False}},
            }
        ]
    path.write_text(json.dumps(record))
    return path


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """One comparison; both must find the same values."""
    import scrapbook

    from mlnb.pipeline.payloads import read_scraps

    paths = [executed(folder, number) for number in range(100)]
    wanted = {p.stem: {f"v{i}": n + i / 10 for i in range(5)} for n, p in enumerate(paths)}

    def checked(found: dict) -> None:
        if found != wanted:
            raise RuntimeError("these are not the scraps that were written")

    yield compare(
        "scraps of 100 notebooks",
        {
            "mlnb": lambda: checked({p.stem: {n: s["data"] for n, s in read_scraps(p).items()} for p in paths}),
            "scrapbook": lambda: checked(
                {n: b.scraps.data_dict for n, b in scrapbook.read_notebooks(str(folder)).items()}
            ),
        },
        repeats,
    )
