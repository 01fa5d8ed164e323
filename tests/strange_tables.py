"""Tables nobody has tidied, and the label that goes with each: what `mlnb new` must survive."""

import numpy as np
import pandas as pd


def _draw(seed=0):
    return np.random.default_rng(seed)


def odd_names():
    "Blanks, unicode, quotes, slashes, Python keywords, names that TensorFlow or Keras use, duplicates."
    draw = _draw()
    names = ["größe/m²", "class", "a b", "a/b", 'say "hi"', "価格", "it's", "training", "mask", "None", " lead", "1st",
             "", "x`y", "a b"]
    frame = pd.DataFrame(draw.normal(size=(200, len(names))), columns=names)
    frame["Ja?"] = draw.choice(["ja", "nein"], 200)
    return frame, "`größe/m²` + `1st` > 0"


def gaps():
    "Thirty per cent missing everywhere, the label included."
    draw = _draw()
    frame = pd.DataFrame({"n": draw.normal(size=400), "c": draw.choice(list("abc"), 400),
                          "b": draw.choice([True, False], 400).astype(object)})
    frame["y"] = np.where(frame.n > 0, "yes", "no")
    for name in frame: frame.loc[draw.random(400) < 0.3, name] = None
    return frame, "y"


def dates():
    "Dates as text in one form, as timestamps with a zone, as date objects; a time span."
    draw, start = _draw(), pd.Timestamp("2023-01-01", tz="Europe/Berlin")
    zoned = start + pd.to_timedelta(draw.integers(0, 700 * 24, 300), unit="h")
    frame = pd.DataFrame({"zoned": zoned, "text": zoned.strftime("%d.%m.%Y %H:%M"),
                          "plain": pd.Series(zoned.date, dtype=object),
                          "span": pd.to_timedelta(draw.integers(1, 99, 300), unit="min")})
    frame["night"] = (zoned.hour < 6).astype(int)
    return frame, "night"


def constants():
    "Constant and empty columns beside one that counts."
    draw = _draw()
    frame = pd.DataFrame({"one": 1, "text": "same", "nothing": None, "nan": np.nan, "yes": True,
                          "x": draw.normal(size=150)})
    return frame.assign(y=draw.choice([0, 1], 150)), "y"


def wide():
    "Two hundred columns, some of them text."
    draw = _draw()
    columns = {f"n {i}": draw.normal(size=300) for i in range(170)} | {f"c {i}": draw.choice(list("abcdef"), 300)
                                                                       for i in range(30)}
    return pd.DataFrame(columns).assign(y=lambda f: (f["n 0"] + f["n 1"] > 0).astype(int)), "y"


def many_levels():
    "Strings with hundreds of values, keys, sentences and e-mail addresses."
    draw = _draw()
    frame = pd.DataFrame({"street": draw.choice([f"Straße {i}" for i in range(300)], 600),
                          "key": [f"k{i:06}" for i in range(600)],
                          "note": [f"called {i} times and left" for i in range(600)], "row id": np.arange(600),
                          "x": draw.normal(size=600)})
    return frame.assign(y=lambda f: f.x * 3 + draw.normal(size=600)), "y"


def mixed():
    "Object columns that hold numbers beside text, lists, bytes, decimals; numbers with infinities and huge values."
    from decimal import Decimal
    draw = _draw()
    frame = pd.DataFrame({"mostly": [("?" if i % 50 == 0 else i % 13) for i in range(300)],
                          "both": [1 if i % 2 else "one" for i in range(300)],
                          "lists": [[i % 3] for i in range(300)],
                          "bytes": [b"a" if i % 2 else b"\xff" for i in range(300)],
                          "decimal": [Decimal(i) / 7 for i in range(300)],
                          "inf": np.where(draw.random(300) < 0.1, np.inf, draw.normal(size=300)),
                          "huge": draw.normal(size=300) * 1e300, "complex": draw.normal(size=300) + 1j})
    return frame.assign(kind=draw.choice(["a", "b", "c"], 300)), "kind"


def types():
    "pandas' own types: nullable, categorical, text, period, interval, unsigned, float16, sparse; a repeating index."
    draw = _draw()
    n = 240
    frame = pd.DataFrame({"Int": pd.array(draw.integers(0, 9, n), dtype="Int64"),
                          "flag": pd.array(draw.choice([True, False], n), dtype="boolean"),
                          "cat": pd.Categorical(draw.choice(["x", "y"], n)),
                          "ordered": pd.Categorical(draw.integers(1, 5, n), ordered=True),
                          "str": pd.array(draw.choice(["p", "q"], n), dtype="string"),
                          "month": pd.period_range("2001-01", periods=n, freq="M"),
                          "cut": pd.cut(draw.normal(size=n), 4), "u": draw.integers(0, 200, n).astype("uint8"),
                          "half": draw.normal(size=n).astype("float16"),
                          "sparse": pd.arrays.SparseArray(draw.integers(0, 2, n))})
    frame.loc[::7, ["Int", "flag", "str"]] = pd.NA
    frame.index = [1] * n
    return frame.assign(y=draw.normal(size=n)), "y"


def few_kinds():
    "Only eight different rows: content alone cannot split them."
    draw = _draw()
    return pd.DataFrame(draw.integers(0, 2, (400, 3)), columns=list("abc")).assign(y=draw.choice(["n", "y"], 400)), "y"


def rare_classes():
    "Many classes, some of them rare."
    draw = _draw()
    kinds = np.r_[draw.choice([f"class {i}" for i in range(6)], 400), ["rare"] * 3, ["rarer"] * 2]
    return pd.DataFrame({"x": draw.normal(size=405), "kind": kinds}), "kind"


def everything():
    "Columns of all kinds at once, two hundred rows: the one that trains when time is short."
    makers = (odd_names, gaps, dates, constants, many_levels, mixed, types)
    parts = [maker()[0].head(150).reset_index(drop=True).add_prefix(f"{maker.__name__}: ") for maker in makers]
    return pd.concat(parts, axis=1).assign(y=lambda f: f["constants: x"] > 0), "y"


STRANGE = (odd_names, gaps, dates, constants, wide, many_levels, mixed, types, few_kinds, rare_classes)


def ten_rows():
    return pd.DataFrame({"x": range(10), "y": [0, 1] * 5}), "y"
