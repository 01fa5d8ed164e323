"""Selection against an oracle that knows nothing but reachability matrices."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlnb.errors import GraphError, SelectionError
from mlnb.pipeline.calls import Ref
from mlnb.pipeline.graph import ancestors, build_graph, descendants, find_cycles
from mlnb.pipeline.select import select
from mlnb.pipeline.stage import Stage

NAMES = ["ingest", "train", "train_big", "eval", "evaluate", "x"]


def stages_of(edges, names=NAMES):
    return {
        n: Stage(n, Path(f"{n}.ipynb"), "p", refs=tuple(Ref(u, "s", 0, 1) for u, d in edges if d == n)) for n in names
    }


any_edges = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=12)
dag_edges = st.tuples(any_edges, st.permutations(NAMES)).map(
    lambda t: [(a, b) for a, b in t[0] if t[1].index(a) < t[1].index(b)]
)


def distance(edges, start, end):
    "Shortest number of steps by relaxation, or None."
    far = {n: 0 if n == start else None for n in NAMES}
    for _ in NAMES:
        for a, b in edges:
            if far[a] is not None and (far[b] is None or far[b] > far[a] + 1):
                far[b] = far[a] + 1
    return far[end]


def reaches(edges, start, end, most):
    d = distance(edges, start, end)
    return d is not None and (most is None or d <= most)


atoms = st.sampled_from([*NAMES, "*", "tr*", "ev?l", "[te]*", "state:modified", "result:failed", "result:ran"])
depths = st.none() | st.just("") | st.integers(0, 3).map(str)
terms = st.tuples(st.booleans(), depths, atoms, depths)
expressions = st.lists(st.lists(terms, min_size=1, max_size=3), min_size=1, max_size=3)
all_states = st.dictionaries(
    st.sampled_from(NAMES),
    st.fixed_dictionaries({"modified": st.booleans(), "result": st.sampled_from(["ran", "failed", "skipped", ""])}),
)


def written(term):
    at, up, what, down = term
    if at:
        return f"@{what}"
    return ("" if up is None else f"{up}+") + what + ("" if down is None else f"+{down}")


def meant(term, edges, states):
    at, up, what, down = term
    if what == "state:modified":
        base = {n for n in NAMES if n not in states or states[n]["modified"]}
    elif what.startswith("result:"):
        base = {n for n in NAMES if states.get(n, {}).get("result") == what[7:]}
    elif what in NAMES:
        base = {what}
    else:
        base = {n for n in NAMES if re.fullmatch(what.replace("*", ".*").replace("?", "."), n)}
    steps = lambda d: None if d == "" else int(d)
    if at:
        below = {n for n in NAMES for b in base if reaches(edges, b, n, None)}
        return below | {n for n in NAMES for b in below if reaches(edges, n, b, None)}
    found = set(base)
    if up is not None:
        found |= {n for n in NAMES for b in base if reaches(edges, n, b, steps(up))}
    if down is not None:
        found |= {n for n in NAMES for b in base if reaches(edges, b, n, steps(down))}
    return found


@given(dag_edges, expressions, all_states)
def test_an_expression_means_what_reachability_says(edges, expression, states):
    graph = build_graph(stages_of(edges))
    text = " ".join(",".join(map(written, union)) for union in expression)
    expected = set().union(*(set.intersection(*(meant(t, edges, states) for t in union)) for union in expression))
    assert select(graph, text, states) == [n for n in graph.order if n in expected]


@given(dag_edges, st.text(alphabet="+,@:* 0123trainx", max_size=12) | st.text(max_size=8))
def test_any_text_selects_stages_or_is_a_selection_error(edges, text):
    graph = build_graph(stages_of(edges))
    try:
        found = select(graph, text, {})
    except SelectionError:
        return
    assert set(found) <= set(NAMES) and found == [n for n in graph.order if n in found]


@given(any_edges)
def test_a_graph_has_an_order_or_a_cycle(edges):
    stages = stages_of(edges)
    cycles = find_cycles(stages)
    if any(distance(edges, b, a) is not None for a, b in edges):
        assert cycles
        for path in cycles:
            assert path[0] == path[-1] and all(pair in edges for pair in zip(path, path[1:], strict=False))
        with pytest.raises(GraphError, match=re.escape(" -> ".join(cycles[0]))):
            build_graph(stages)
        return
    assert not cycles
    order = build_graph(stages).order
    assert sorted(order) == sorted(NAMES) and all(order.index(a) < order.index(b) for a, b in edges)


@given(dag_edges)
def test_the_order_is_the_notebooks_own_where_it_may_be(edges):
    graph = build_graph(stages_of(edges))
    done = []
    for name in graph.order:
        free = [n for n in NAMES if n not in done and set(graph.upstream[n]) <= set(done)]
        assert name == free[0]
        done.append(name)


@given(dag_edges, st.sampled_from(NAMES), st.none() | st.integers(0, 4))
def test_ancestors_and_descendants_mirror_each_other(edges, name, depth):
    graph = build_graph(stages_of(edges))
    up = {n for n in NAMES if n != name and reaches(edges, n, name, depth)}
    assert set(ancestors(graph, name, depth)) == up
    assert {n for n in NAMES if name in descendants(graph, n, depth)} == up


@pytest.mark.parametrize(
    "expression,why",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("trian", "did you mean 'train'"),
        ("nothing*", "no stage matches"),
        ("state:modified", "earlier run"),
        ("status:ran", "unknown method"),
        ("result:good", "one of: result:ran"),
        ("++train", "does not parse"),
        ("train,,x", "does not parse"),
        ("@+train", "does not parse"),
        ("@train+2", "without +"),
        ("30_train.ipynb", "did you mean 'train'"),
    ],
)
def test_a_wrong_expression_is_explained(expression, why):
    with pytest.raises(SelectionError, match=re.escape(why)):
        select(build_graph(stages_of([])), expression)
