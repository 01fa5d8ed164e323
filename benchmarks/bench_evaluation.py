"""Figures of slices: mlnb's two fast ways against TFMA and scikit-learn, in a process that has everything imported."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from harness import Comparison, compare

SLICES = ["plan", "age", ["sex", "plan"]]


def people(count: int) -> pd.DataFrame:
    """Test rows with a label, a score and three columns to slice by."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "y": (rng.random(count) < 0.4).astype(int),
            "plan": rng.choice(list("abcde"), count),
            "age": rng.integers(18, 90, count),
            "sex": rng.choice(["f", "m"], count),
        }
    )
    return table.assign(score=np.clip(rng.normal(0.35 + 0.2 * table.y, 0.2), 0, 1))


def by_scikit_learn(table: pd.DataFrame) -> dict[str, float]:
    """The same metrics in the same slices, by a loop over groups; AUC by slice is returned."""
    from sklearn import metrics as sk

    cut = table.assign(age=pd.qcut(table.age, 4, labels=False))
    groups = [("Overall", table)]
    for names in (["plan"], ["age"], ["sex", "plan"]):
        groups += [(", ".join(f"{n}={v}" for n, v in zip(names, key, strict=True)), g) for key, g in cut.groupby(names)]
    found = {}
    for text, group in groups:
        y, s = group.y.to_numpy(), group.score.to_numpy()
        hard = s > 0.5
        found[text] = sk.roc_auc_score(y, s)
        tn, fp, fn, tp = sk.confusion_matrix(y, hard).ravel()
        _ = tp / (tp + fp), tp / (tp + fn), tn / (tn + fp), (tp + tn) / len(y)
        _ = fp / (fp + tn), fn / (fn + tp), hard.mean()
        sk.average_precision_score(y, s), sk.f1_score(y, hard), sk.log_loss(y, np.clip(s, 1e-7, 1 - 1e-7))
        _ = y.mean(), s.mean(), s.mean() / y.mean()
    return found


def mlnb(table: pd.DataFrame, folder: Path, method: str, intervals: str = "none") -> Callable[[], dict[str, float]]:
    """A job: from the table to figures, and TFMA's files where the folder is."""
    from mlnb.evaluation.slices import evaluate_slices

    def job() -> dict[str, float]:
        shutil.rmtree(folder, ignore_errors=True)
        found = evaluate_slices(
            table, "y", "score", slices=SLICES, method=method, intervals=intervals, folder=folder
        )
        return dict(found[found.metric == "auc"][["slice", "value"]].to_numpy())

    return job


def agreeing(jobs: dict[str, Callable[[], dict[str, float]]], most: float) -> dict[str, Callable[[], None]]:
    """The jobs, each of which has to find the AUC of all rows and of every plan that the first one found."""
    first = next(iter(jobs.values()))()
    wanted = {text: value for text, value in first.items() if text == "Overall" or text.startswith(("plan", "sex"))}

    def checked(job: Callable[[], dict[str, float]]) -> Callable[[], None]:
        def run() -> None:
            found = job()
            off = max(abs(found[text] - value) for text, value in wanted.items())
            if not off <= most:
                raise RuntimeError(f"the AUC of a slice is off by {off}")

        return run

    return {name: checked(job) for name, job in jobs.items()}


def measure(folder: Path, repeats: int) -> Iterator[Comparison]:
    """Fast ways at a million rows; TFMA row by row at 20,000, where it can be waited for; intervals at 200,000."""
    warnings.simplefilter("ignore")
    million, some, more = people(1_000_000), people(20_000), people(200_000)
    yield compare(
        "1,000,000 rows, overall and 3 slicings, 15 metrics, TFMA's files written",
        agreeing(
            {
                "mlnb vectorised": mlnb(million, folder / "a", "vectorised"),
                "mlnb histograms (TFMA's metric code)": mlnb(million, folder / "b", "histograms"),
                "scikit-learn, no files": lambda: by_scikit_learn(million),
            },
            1e-3,
        ),
        repeats,
    )
    yield compare(
        "20,000 rows, overall and 3 slicings, 15 metrics",
        agreeing(
            {
                "mlnb vectorised": mlnb(some, folder / "a", "vectorised"),
                "mlnb histograms (TFMA's metric code)": mlnb(some, folder / "b", "histograms"),
                "TFMA, row by row": mlnb(some, folder / "c", "tfma"),
                "scikit-learn, no files": lambda: by_scikit_learn(some),
            },
            5e-3,
        ),
        repeats,
    )
    jobs = {"bootstrap, 200 samples": "bootstrap", "jackknife, 20 groups": "jackknife", "no intervals": "none"}
    yield compare(
        "200,000 rows, overall and 3 slicings, 15 metrics, intervals of every figure",
        {name: mlnb(more, folder / "d", "vectorised", method) for name, method in jobs.items()},
        repeats,
    )
