"""The house rules for code and notebooks that a linter does not know."""
import ast
import io
import re
import tokenize

import house
import pytest

UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}
LONGEST, WIDEST, CELLS, EXPORTED, BYTES = 40, 160, 60, 320, 400_000


def imported_from_others(tree: ast.Module) -> set[str]:
    """Names that a module has from outside of mlnb, except those that make plain values."""
    names = set()
    for node in ast.walk(tree):
        ours = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "mlnb")
        if isinstance(node, ast.Import | ast.ImportFrom) and not ours:
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
    return names - {"NamedTuple", "Protocol", "TypedDict", "Generic", "Enum", "ABC"}


def functions(tree: ast.Module, public: bool) -> list[tuple[str, ast.FunctionDef]]:
    """Functions and methods with their names; only the public ones, or all, nested ones too.

    Methods of a class that extends somebody else's have the signatures that are prescribed there, and are left out.
    """
    if not public: return [(n.name, n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    found, foreign = [], imported_from_others(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and foreign & {ast.unparse(b).split(".")[0] for b in node.bases}: continue
        inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found += [(owner + n.name, n) for n in inside if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
                  and not n.name.startswith("_")]
    return found


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    """All parameters, without self and cls."""
    a = function.args
    given = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [p for p in given if p and p.arg not in ("self", "cls")]


def commented_lines(source: str) -> set[int]:
    """Numbers of the lines that end in a comment."""
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}


def unfit_functions(source: str) -> list[str]:
    """What is wrong with the functions of a module, as sentences."""
    tree, comments, found = ast.parse(source), commented_lines(source), []
    for name, function in functions(tree, public=True):
        for p in parameters(function):
            if p.annotation is None: found.append(f"{name}: parameter {p.arg} has no annotation")
            elif "." not in name and p.end_lineno not in comments: found.append(f"{name}: {p.arg} has no docment")
        if function.returns is None: found.append(f"{name}: no return annotation")
        if not ast.get_docstring(function): found.append(f"{name}: no docstring")
    for name, function in functions(tree, public=False):
        lines = function.end_lineno - function.lineno + 1
        if lines > LONGEST: found.append(f"{name}: {lines} lines, {LONGEST} is the end of one idea")
    return found


def unfit_errors(source: str) -> list[str]:
    """Swallowed errors, errors nobody can catch by name, asserts and formats that execute code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            silent = all(isinstance(n, ast.Pass | ast.Continue) for n in node.body)
            if not caught: found.append(f"{where}: bare except")
            elif silent and caught in ("Exception", "BaseException"): found.append(f"{where}: error swallowed")
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call | ast.Name):
            kind = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc).split(".")[-1]
            if kind in ("Exception", "BaseException", "RuntimeError", "AssertionError", "NotImplementedError"):
                found.append(f"{where}: raise {kind}, which says nothing; use or add a subclass of MlnbError")
        if isinstance(node, ast.Assert): found.append(f"{where}: assert in exported code")
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*": found.append(f"{where}: star import")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"{where}: allow_pickle")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name.split(".")[0] for a in node.names} | {getattr(node, "module", "") or ""}
            if names & UNSAFE: found.append(f"{where}: a format that executes code")
    return found


def unfit_notebook(lesson: house.Lesson, size: int) -> list[str]:
    """What keeps a library notebook from being a lesson, as sentences."""
    name, cells, found = lesson.path.stem.split("_", 1)[1], lesson.cells, []
    text = ["".join(c["source"]) for c in cells]
    exported = [c for c in lesson.code() if c.exported]
    lines = sum(len(c.source.splitlines()) for c in exported)
    words = sum(len(t.split()) for c, t in zip(cells, text, strict=True) if c["cell_type"] == "markdown")
    parts = [*lesson.path.parts[:-1], name]
    if not re.match(rf"# {name}\n> \S.*\S$", text[0]): found.append(f"the first cell is not '# {name}' and '> a line'")
    if lesson.module != ".".join(["mlnb", *parts]): found.append(f"exports to {lesson.module}, not where it stands")
    if not re.match(r"#\| hide\n(.*\n)*.*nbdev_export\(\)$", text[-1]): found.append("the last cell does not export")
    if len(cells) > CELLS: found.append(f"{len(cells)} cells, at most {CELLS}")
    if lines > EXPORTED: found.append(f"{lines} exported lines, at most {EXPORTED}")
    if lines > 40 and words < lines: found.append(f"{words} words of prose for {lines} exported lines")
    if size > BYTES: found.append(f"{size // 1000} kB, at most {BYTES // 1000}")
    for cell in lesson.code():
        plain = [n for n in cell.tree().body if not ast.unparse(n).startswith("if TYPE_CHECKING:")]
        kinds = {isinstance(n, ast.Import | ast.ImportFrom) for n in plain}
        if cell.exported and kinds == {True, False}: found.append(f"imports mixed with code: {cell.source[:60]!r}")
        found += [f"{len(line)} characters: {line[:60]!r}" for line in cell.source.splitlines() if len(line) > WIDEST]
    if re.search(r"\b(TO[D]O|FIX[M]E|XX[X])\b", "\n".join(text)): found.append("unfinished work is marked in it")
    return found


def test_functions():
    """Annotated, explained, short."""
    problems = {str(p): unfit_functions((house.ROOT/p).read_text()) for p in house.modules()}
    assert len(problems) >= 6
    assert {p: found for p, found in problems.items() if found} == {}


def test_errors():
    """Raised by name, caught by name."""
    problems = {str(p): unfit_errors((house.ROOT/p).read_text()) for p in house.modules()}
    assert {p: found for p, found in problems.items() if found} == {}


def test_error_classes_are_one_tree():
    """Every exception class of ours is an MlnbError with a sentence: one `except` and one exit code serve all."""
    from mlnb.errors import MlnbError
    known = {MlnbError.__name__} | {c.__name__ for c in _below(MlnbError)}
    for path in house.modules():
        for node in ast.walk(ast.parse((house.ROOT/path).read_text())):
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Error")): continue
            bases = {ast.unparse(b).split(".")[-1] for b in node.bases}
            assert node.name == "MlnbError" or bases & known, f"{path}: {node.name} is no MlnbError"
            assert ast.get_docstring(node), f"{path}: {node.name} says nothing"


def _below(kind: type) -> list[type]:
    return [c for sub in kind.__subclasses__() for c in (sub, *_below(sub))]


def test_notebooks_are_lessons():
    """Title, size, prose and form of every library notebook."""
    problems = {str(o.path): unfit_notebook(o, (house.ROOT/"nbs"/o.path).stat().st_size) for o in house.lessons()}
    assert {p: found for p, found in problems.items() if found} == {}


@pytest.mark.parametrize(("source", "expected"), [
    ("def f(\n    x:int,  # metres\n) -> int:\n    'Doc.'\n", None),
    ("def f(\n    x:int,\n) -> int:\n    'Doc.'\n", "no docment"),
    ("def f(\n    x,  # metres\n) -> int:\n    'Doc.'\n", "no annotation"),
    ("def f():\n    'Doc.'\n", "no return"),
    ("def f() -> None: pass\n", "no docstring"),
    ("def _f(x): pass\n", None),
    ("class A:\n    def g(self, x): 'Doc.'\n", "parameter x"),
    ("from b import B\nclass A(B):\n    def g(self, x): 'Doc.'\n", None),
    ("from typing import NamedTuple\nclass A(NamedTuple):\n    def g(self, x): 'Doc.'\n", "parameter x"),
    ("def _f():\n" + "    x = 1\n" * 40, "41 lines"),
])
def test_the_check_sees_an_unfit_function(source, expected):
    """The check itself, on planted code."""
    found = unfit_functions(source)
    assert found == [] if expected is None else expected in " ".join(found)


@pytest.mark.parametrize(("source", "expected"), [
    ("try: f()\nexcept: pass", "bare"), ("try: f()\nexcept Exception: pass", "swallowed"),
    ("raise RuntimeError('x')", "says nothing"), ("assert x", "assert"), ("from a import *", "star"),
    ("import pickle", "executes"), ("from pickle import loads", "executes"),
    ("load(f, allow_pickle=True)", "allow_pickle"),
    ("try: f()\nexcept OSError: pass", None), ("raise StageError('x')", None),
])
def test_the_check_sees_an_unfit_error(source, expected):
    """The check itself, on planted code."""
    found = unfit_errors(source)
    assert found == [] if expected is None else expected in " ".join(found)
