"""What differs between two fingerprints, for programs and for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlnb.files import digest
from mlnb.pipeline.fingerprint import CELL_BREAK, fingerprint
from mlnb.pipeline.why import why, why_text

BASE = {
    "code": digest("x = 1"),
    "parameters": {"epochs": 5},
    "upstream": {"prepare.train": "a" * 64},
    "sources": {"x.csv": "b" * 64},
    "modules": {"m:f": "c" * 64},
    "packages": {"pandas": "2.3.3"},
    "python": "3.11.7",
    "seed": 0,
    "kernel": "python3",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parameters": {"epochs": 6}}, ("parameter", "epochs", 5, 6)),
        ({"parameters": {"epochs": 5.0}}, ("parameter", "epochs", 5, 5.0)),
        ({"parameters": {}}, ("parameter", "epochs", 5, None)),
        ({"parameters": {"epochs": 5, "lr": None}}, ("parameter", "lr", None, None)),
        ({"upstream": {"prepare.train": "d" * 64}}, ("upstream", "prepare.train", "a" * 64, "d" * 64)),
        ({"sources": {"x.csv": "d" * 64}}, ("source", "x.csv", "b" * 64, "d" * 64)),
        ({"modules": {"m:f": "d" * 64}}, ("module", "m:f", "c" * 64, "d" * 64)),
        ({"packages": {"pandas": "2.3.4"}}, ("package", "pandas", "2.3.3", "2.3.4")),
        ({"packages": {"pandas": "2.3.3", "numpy": "2.0"}}, ("package", "numpy", None, "2.0")),
        ({"python": "3.12.1"}, ("python", "python", "3.11.7", "3.12.1")),
        ({"seed": 1}, ("parameter", "(seed)", 0, 1)),
        ({"kernel": "other"}, ("parameter", "(kernel)", "python3", "other")),
        ({"code": "d" * 64}, ("code", "code cells", BASE["code"], "d" * 64)),
    ],
)
def test_every_part_has_its_reason(change, reason):
    found = why(BASE, BASE | change, {})
    assert [tuple(r.values()) for r in found] == [reason] and list(found[0]) == ["part", "what", "old", "new"]
    assert fingerprint(BASE) != fingerprint(BASE | change)
    text = why_text("train", found)
    assert text.startswith("train:\n") and (reason[1] in text or reason[0] == "code")


def test_nothing_changed():
    assert why(BASE, dict(BASE), {}) == [] and why_text("train", []) == "train: nothing changed"


def test_no_earlier_result():
    assert why_text("train", why(None, BASE, {})) == "train:\n  no earlier result"


def cells(old, new):
    texts = {digest(CELL_BREAK.join(o)): CELL_BREAK.join(o) for o in (old, new)}
    a, b = (digest(CELL_BREAK.join(o)) for o in (old, new))
    return why(BASE | {"code": a}, BASE | {"code": b}, texts)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (["a", "b", "c"], ["a", "x", "c"], [("code cell 2", "b", "x")]),
        (["a", "b"], ["a", "b", "c"], [("code cell 3", None, "c")]),
        (["a", "b", "c"], ["a", "c"], [("code cell 2", "b", None)]),
        (["a", "b"], ["x", "a", "b"], [("code cell 1", None, "x")]),
        (
            ["a", "b"],
            ["x", "y", "z"],
            [("code cell 1", "a", "x"), ("code cell 2", "b", "y"), ("code cell 3", None, "z")],
        ),
        ([], ["a"], [("code cell 1", None, "a")]),
    ],
)
def test_cells_are_compared_one_by_one(old, new, expected):
    assert [(r["what"], r["old"], r["new"]) for r in cells(old, new)] == expected


def test_a_person_sees_the_lines():
    old, new = "def f(x):\n    y = 1\n    z = 2\n    return x", "def f(x):\n    y = 1\n    z = 3\n    return x"
    texts = {digest(old): old, digest(new): new}
    reasons = why(BASE | {"modules": {"m:f": digest(old)}}, BASE | {"modules": {"m:f": digest(new)}}, texts)
    assert why_text("train", reasons).splitlines() == [
        "train:",
        "  module m:f",
        "          y = 1",
        "    -     z = 2",
        "    +     z = 3",
        "          return x",
    ]


def test_upstream_names_the_stage():
    text = why_text("train", why(BASE, BASE | {"upstream": {"prepare.train": "d" * 64}}, {}))
    assert "aaaaaaaaaaaa -> dddddddddddd" in text and "stage prepare" in text


def test_long_texts_are_cut():
    old, new = "x = 1", "\n".join(f"x{i} = {i}" for i in range(500))
    text = why_text("train", cells([old], [new]))
    assert len(text.splitlines()) < 40 and "lines more" in text


@given(
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=200), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=200), st.none()), max_size=3),
)
def test_reasons_exist_exactly_when_fingerprints_differ(old, new):
    a, b = BASE | {"parameters": old}, BASE | {"parameters": new}
    reasons = why(a, b, {})
    assert bool(reasons) == (fingerprint(a) != fingerprint(b))
    assert all(len(line) <= 80 for line in why_text("train", reasons).splitlines())
