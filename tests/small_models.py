"""Small tables and models for the tests of behaviour, rules, attacks and cards."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from statsmodels.datasets import randhie

from mlnb.data.labels import label_table
from mlnb.data.schemas import describe_table, measure
from mlnb.data.splits import split_table


class Fitted(NamedTuple):
    """A model with its rows."""

    model: object
    schema: dict
    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame


@cache
def reference() -> Fitted:
    """The model of the reference pipeline on the RAND table, a little shorter."""
    from mlnb.training.models import fit_model

    table, facts = label_table(randhie.load_pandas().data, "mdvis > 4", name="high_use")
    schema = describe_table(table, facts, slices=["hlthp", "idp"], ignore={"mdvis": "the label is made of it"})
    parts = split_table(table, schema)
    schema = measure(parts["train"], schema)
    model, _ = fit_model(parts["train"], parts["valid"], schema, epochs=4, batch_size=512, learning_rate=3e-3, report=False)
    return Fitted(model, schema, parts["train"], parts["valid"], parts["test"])


def odd_shop(rows: int = 300, seed: int = 0) -> tuple[pd.DataFrame, dict]:
    """Unicode names, gaps, dates as text, categories, truth values; a binary label."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "größe/m²": np.where(draw.random(rows) < 0.2, np.nan, draw.normal(50, 20, rows)),
            "価格": draw.integers(0, 40, rows),
            "class": draw.choice(["a", "b", "it's", None], rows),
            "bezahlt am": pd.date_range("2024-01-01", periods=rows, freq="7h").strftime("%d.%m.%Y %H:%M"),
            "neu": draw.choice([True, False, None], rows),
        }
    )
    frame["y"] = ((frame["größe/m²"].fillna(60) > 50) ^ (frame["class"] == "a")).astype(int)
    table, facts = label_table(frame, "y")
    return table, measure(table, describe_table(table, facts, slices=["class"]))


def figures(schema: dict, table: pd.DataFrame, scores: np.ndarray, by: list[str]) -> pd.DataFrame:
    """A tidy table of figures as the verdict has it, computed plainly."""
    import json

    from sklearn.metrics import roc_auc_score

    label = schema["label"]["name"]
    groups = [("Overall", "Overall", [], np.ones(len(table), bool))]
    for column in by:
        groups += [(f"{column}={v}", column, [[column, str(v)]], (table[column] == v).to_numpy()) for v in sorted(table[column].unique())[:4]]
    for a in sorted(table[by[0]].unique())[:2]:
        for b in sorted(table[by[-1]].unique())[:2]:
            mask = ((table[by[0]] == a) & (table[by[-1]] == b)).to_numpy()
            groups.append((f"{by[0]}={a}, {by[-1]}={b}", f"{by[0]} x {by[-1]}", [[by[0], str(a)], [by[-1], str(b)]], mask))
    rows = []
    for name, kind, key, mask in groups:
        both = mask.sum() > 0 and table[label][mask].nunique() == 2
        value = roc_auc_score(table[label][mask], scores[mask]) if both else float("nan")
        rows.append({"slice": name, "by": kind, "key": json.dumps(key), "metric": "auc", "value": value, "low": value - 0.05,
                     "high": value + 0.05, "examples": int(mask.sum()), "small": bool(mask.sum() < 50)})
    return pd.DataFrame(rows)
