"""What counts as reached: every rule, and what the interpreter itself executes."""

import importlib
import inspect
import itertools
import json
import os
import sys
import textwrap
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlnb.pipeline import finder
from mlnb.pipeline.cache import Cache, stamp
from mlnb.pipeline.finder import Modules, open_modules
from mlnb.pipeline.reach import reach_texts, reached


class Tree:
    "A project of small modules."

    def __init__(self, root):
        self.root = root

    def write(self, files):
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return self

    def reach(self, *code):
        return reached(open_modules(self.root), [textwrap.dedent(c) for c in code])

    def keys(self, *code):
        return set(self.reach(*code).definitions)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def names(keys, module):
    return {k.partition(":")[2] for k in keys if k.startswith(module + ":")}


# --- functions named by a text ---


FEATURES = {"features.py": "import helpers\nprint('acts')\ndef night(x): return helpers.dark(x)\ndef day(x): return x\n",
            "helpers.py": "def dark(x): return 1\ndef light(x): return 2\n", "calls.py": "def ask(f): return f('features:night')\n"}


@pytest.mark.parametrize(
    "code", ["cut('features:night')", "slices = [{'function': 'features:night'}]", "import calls\ncalls.ask(print)", "f(given='features:night')"]
)
def test_a_text_that_names_a_function_of_the_project_counts_as_its_import(tree, code):
    keys = tree.write(FEATURES).keys(code)
    assert names(keys, "features") == {"(body)", "night"} and names(keys, "helpers") == {"dark"}


@pytest.mark.parametrize(
    "code",
    ["'features'", "'nobody:night'", "'http:x'", "'features:night and more'", "b'features:night'", "f'features:{n}'", "'12:30'", "'features:'"],
)
def test_texts_that_name_none_are_nothing(tree, code):
    assert tree.write(FEATURES).keys(code) == set()


def test_a_text_that_names_nothing_in_a_module_of_the_project_counts_it_whole(tree):
    """As an attribute that cannot be found does: something else may put it there."""
    reach = tree.write(FEATURES).reach("'features:dusk'")
    assert reach.undecided["features"] == "no dusk found in it"


# --- what an import executes ---


@pytest.mark.parametrize(
    "statement",
    [
        "print('hello')",
        "table['a'] = 1",
        "total = compute()",
        "for i in range(3): pass",
        "assert LIMIT",
        "x = yields = [f() for f in fs]",
        "del LIMIT",
        "if LIMIT: other = 1",
        "with open('x') as f: pass",
        "try: import json\nexcept ImportError: json = None",
        "LIMIT += 1",
        "x: make() = 1",
        "(y := 3)",
    ],
)
def test_statements_that_act_are_in_the_body(tree, statement):
    assert "m:(body)" in tree.write({"m.py": "LIMIT = 1\n" + statement}).keys("import m")


@pytest.mark.parametrize(
    "statement",
    [
        "LIMIT = 1",
        "a, b = 1, 2",
        "x: int = 3",
        "names = ['a', 'b']",
        "twice = lambda x: f(x)",
        "def f(x=1): return g(x)",
        "'''docs'''",
        "pass",
        "import json",
        "from math import floor",
        "class A:\n    x = 1\n    def f(self): return g()",
        "LIMIT = 3 * 4 + len_",
        "@staticmethod\ndef f(): pass",
        "async def f(): return await g()",
        "if __name__ == '__main__': main()",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING: import pandas",
    ],
)
def test_statements_that_wait_are_not(tree, statement):
    reach = tree.write({"m.py": statement}).reach("import m")
    assert not reach.definitions and not reach.packages


def test_what_the_body_uses_counts(tree):
    tree.write({"m.py": "def used(): return 1\ndef unused(): return 2\nX = used()\nY = 5\nprint(Y)"})
    assert names(tree.keys("import m"), "m") == {"(body)", "used", "Y"}


def test_parents_are_executed(tree):
    tree.write(
        {"a/__init__.py": "print(1)", "a/b/__init__.py": "print(2)", "a/b/c.py": "def f(): pass\ndef g(): pass"}
    )
    assert tree.keys("from a.b.c import f\nf()") == {"a:(body)", "a.b:(body)", "a.b.c:f", "(import order)"}


def test_imports_are_executed_even_when_their_names_are_not_used(tree):
    tree.write(
        {
            "m.py": "import other\nfrom third import f",
            "other.py": "print(1)",
            "third.py": "import numpy\ndef f(): pass",
        }
    )
    reach = tree.reach("import m")
    assert set(reach.definitions) == {"other:(body)"} and reach.packages == {"numpy"}


def test_order_of_acting_modules_counts(tree):
    tree.write({"a.py": "print(1)", "b.py": "print(2)", "m.py": "import a\nimport b"})
    before = tree.reach("import m")
    after = tree.write({"m.py": "import b\nimport a"}).reach("import m")
    assert before.definitions != after.definitions and set(before.definitions) == set(after.definitions)


def test_order_of_idle_modules_does_not_count(tree):
    tree.write({"a.py": "def f(): pass", "b.py": "def f(): pass", "m.py": "import a\nimport b"})
    before = tree.reach("import m\nm.a.f(m.b.f)")
    assert before == tree.write({"m.py": "import b\nimport a"}).reach("import m\nm.a.f(m.b.f)")


# --- by name ---

CHAIN = {
    "m.py": """
    import math
    import tools.text as t
    from tools import number as n
    from tools.more import third as renamed
    LIMIT = 10
    UNUSED = 11
    def f(): return g() + LIMIT
    def g(): return t.clean(1)
    def h(): return n.second()
    def k(): return renamed()
    def local():
        from tools.late import now
        return now()
    def unused(): return math.floor(2)
    class Model:
        def fit(self): return self.step()
        def step(self): return g()
    """,
    "tools/__init__.py": "",
    "tools/text.py": "def clean(x): return strip(x)\ndef strip(x): return x\ndef other(): pass",
    "tools/number.py": "def second(): pass\ndef other(): pass",
    "tools/more.py": "from .number import second as third\ndef other(): pass",
    "tools/late.py": "def now(): pass\ndef later(): pass",
}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import m\nm.f()", {"m:f", "m:g", "m:LIMIT", "tools.text:clean", "tools.text:strip"}),
        ("from m import h\nh()", {"m:h", "tools.number:second"}),
        ("from m import k as kk\nkk()", {"m:k", "tools.number:second"}),
        ("import m as mm\nmm.local()", {"m:local", "tools.late:now"}),
        ("from m import Model\nModel().fit()", {"m:Model", "m:g", "tools.text:clean", "tools.text:strip"}),
        ("import m\nm.unused()", {"m:unused", "m:math"}),
        ("import tools.text\ntools.text.other()", {"tools.text:other"}),
        ("import tools.text as tt\nprint(tt.other)", {"tools.text:other"}),
        ("from tools import text\ntext.other()", {"tools.text:other"}),
        ("import m\nm.n.other()", {"tools.number:other"}),
        ("import m\nm.t.strip(1)", {"tools.text:strip"}),
        ("def inner():\n    from m import h\n    return h()", {"m:h", "tools.number:second"}),
        ("import m\ngetattr(m, 'h')()", {"m:h", "tools.number:second"}),
        ("import m\ndef f(m): return m.g()", set()),
        ("import m\nm.LIMIT = 3", {"m:LIMIT"}),
        ("import m", set()),
        ("x = 1", set()),
    ],
)
def test_names_are_followed(tree, code, expected):
    assert tree.write(CHAIN).keys(code) == expected


def test_chains_of_reexports(tree):
    tree.write(
        {
            "p/__init__.py": "from .a import scale, clean",
            "p/a.py": "from .b import scale\nfrom q import clean",
            "p/b.py": "def scale(): pass\ndef other(): pass",
            "q/__init__.py": "from .r import *",
            "q/r.py": "def clean(): pass",
        }
    )
    assert tree.keys("from p import scale\nscale()") >= {"p.b:scale"}
    assert "p.b:other" not in tree.keys("from p import scale\nscale()")
    assert {"q:(whole)", "q.r:(whole)"} <= tree.keys("from p import clean\nclean()")


def test_a_function_named_like_its_module(tree):
    tree.write({"p/__init__.py": "from .scale import scale", "p/scale.py": "def scale(): pass\ndef other(): pass"})
    assert tree.keys("from p import scale\nscale()") == {"p.scale:scale"}
    assert tree.keys("import p\np.scale()") == {"p.scale:scale"}


def test_relative_imports(tree):
    tree.write(
        {
            "p/__init__.py": "",
            "p/q/__init__.py": "from .. import base",
            "p/base.py": "def f(): pass\ndef g(): pass",
            "p/q/m.py": "from ..base import f\nfrom . import base as b\ndef h(): return f()\ndef k(): return b.g()",
        }
    )
    assert tree.keys("from p.q.m import h\nh()") == {"p.q.m:h", "p.base:f"}
    assert tree.keys("from p.q.m import k\nk()") == {"p.q.m:k", "p.base:g"}


def test_try_import(tree):
    tree.write(
        {
            "m.py": "try: from fast import f\nexcept ImportError: from slow import f\ndef g(): return f()",
            "fast.py": "def f(): pass\ndef x(): pass",
            "slow.py": "def f(): pass\ndef x(): pass",
        }
    )
    assert tree.keys("import m\nm.g()") == {"m:(body)", "m:g", "fast:f", "slow:f"}


def test_circular_imports(tree):
    tree.write(
        {
            "a.py": "import b\nfrom b import g\ndef f(): return b.g()\ndef x(): pass",
            "b.py": "import a\ndef g(): return a.f()\ndef x(): pass",
        }
    )
    assert tree.keys("import a\na.f()") == {"a:f", "b:g"}
    tree.write({"c.py": "from d import f", "d.py": "from c import f"})
    assert tree.keys("from c import f\nf()") == set()


def test_global_names_set_by_functions(tree):
    tree.write(
        {
            "m.py": "model = None\ndef load():\n    global model\n    model = make()\ndef make(): pass\n"
            "def other(): pass\n"
            "def lazy():\n    global late\n    import late\ndef use(): return late.f()",
            "late.py": "def f(): pass\ndef g(): pass",
        }
    )
    assert tree.keys("import m\nm.load()\nm.model") == {"m:load", "m:make", "m:model"}
    assert tree.keys("import m\nm.lazy()\nm.use()") == {"m:lazy", "m:use", "late:f"}


def test_increment_of_a_global_reads_it(tree):
    tree.write({"m.py": "count = 1\ndef more():\n    global count\n    count += 1"})
    assert "m:count" in tree.keys("import m\nm.more()")


def test_names_bound_twice_keep_their_history(tree):
    files = {"m.py": "X = 1\ndef f(): return X\nY = f()\nX = 2\ndef g(): return X"}
    before = tree.write(files).reach("import m\nm.g()").definitions
    after = (
        tree.write({"m.py": "X = 1\ndef f(): return X\nX = 2\nY = f()\ndef g(): return X"})
        .reach("import m\nm.g()")
        .definitions
    )
    assert before != after


def test_what_an_import_from_outside_means_counts(tree):
    before = tree.write({"m.py": "from math import floor as cut\ndef f(x): return cut(x)\ndef g(): pass"}).reach(
        "import m\nm.f(1)"
    )
    after = tree.write({"m.py": "from math import ceil as cut\ndef f(x): return cut(x)\ndef g(): pass"}).reach(
        "import m\nm.f(1)"
    )
    other = tree.write(
        {"m.py": "import os\nfrom math import ceil as cut\ndef f(x): return cut(x)\ndef g(): os"}
    ).reach("import m\nm.f(1)")
    assert before.definitions != after.definitions and after == other


# --- definitions that an import executes ---


@pytest.mark.parametrize(
    "text",
    [
        "@register\ndef f(): pass",
        "@register()\nclass A: pass",
        "@plugins.tool\ndef f(): pass",
        "def f(x=make()): pass",
        "def f(*, x=make()): pass",
        "def f(x: make()): pass",
        "def f() -> make(): pass",
        "class A:\n    x = make()",
        "class A:\n    print(1)",
        "class A(metaclass=M): pass",
        "class A(Base, flag=True): pass",
        "import numpy\nclass A(numpy.ndarray): pass",
        "class A(make()): pass",
        "class A:\n    @register\n    def f(self): pass",
        "class A:\n    def __init_subclass__(cls): pass",
        "class A(unknown.B): pass",
        "class A:\n    class B:\n        x = make()",
        "class A:\n    for i in range(3): pass",
        "import torch\nBase = torch.Module\nclass A(Base): pass",
    ],
)
def test_definitions_that_always_count(tree, text):
    tree.write({"m.py": text, "plugins.py": "def tool(f): return f"})
    assert names(tree.keys("import m"), "m") & {"f", "A"}


@pytest.mark.parametrize(
    "text",
    [
        "from functools import lru_cache\n@lru_cache(maxsize=None)\ndef f(): pass",
        "import functools\n@functools.cache\ndef f(): pass",
        "from contextlib import contextmanager\n@contextmanager\ndef f(): yield",
        "from typing import overload\n@overload\ndef f(x: int): ...\ndef f(x): pass",
        "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass A:\n    x: int = 1\n"
        "    y: list = field(default_factory=list)",
        "class A:\n    @property\n    def x(self): return 1\n    @x.setter\n    def x(self, v): pass\n"
        "    @classmethod\n    def f(cls): pass",
        "import abc\nclass A(abc.ABC):\n    @abc.abstractmethod\n    def f(self): pass",
        "class A(Exception): pass",
        "class B: pass\nclass A(B): pass",
        "from enum import Enum, auto\nclass A(Enum):\n    X = 1\n    Y = auto()",
        "from typing import NamedTuple\nclass A(NamedTuple):\n    x: int",
        "from __future__ import annotations\ndef f(x: make()): pass",
        "from base import B\nclass A(B): pass",
        "from typing import Generic, TypeVar\nclass A(Generic['T']): pass",
    ],
)
def test_definitions_that_wait(tree, text):
    tree.write({"m.py": text, "base.py": "class B: pass"})
    assert not names(tree.keys("import m"), "m") & {"f", "A", "B"}


def test_project_bases_with_a_hook(tree):
    tree.write(
        {
            "base.py": "class Root:\n    def __init_subclass__(cls): cls.all.append(cls)\n"
            "class Middle(Root): pass\nAlias = Middle",
            "m.py": "import base\nclass Leaf(base.Alias): pass\nclass Plain: pass",
        }
    )
    assert tree.keys("import m") >= {"m:Leaf", "base:Root", "base:Middle"} and "m:Plain" not in tree.keys("import m")


def test_a_project_module_named_like_the_library_is_not_the_library(tree):
    tree.write(
        {
            "enum.py": "class Enum:\n    def __init_subclass__(cls): print(cls)",
            "m.py": "from enum import Enum\nclass A(Enum): pass",
        }
    )
    assert "m:A" in tree.keys("import m")


def test_order_of_registrations_counts(tree):
    one, two = "@register\ndef a(): pass\n", "@register\ndef b(): pass\n"
    head = "table = []\ndef register(f): table.append(f)\n"
    before = tree.write({"m.py": head + one + two}).reach("import m")
    assert before.definitions != tree.write({"m.py": head + two + one}).reach("import m").definitions


# --- what cannot be decided ---


@pytest.mark.parametrize(
    ("module", "code", "whole"),
    [
        ("from other import *\ndef f(): pass", "import m\nm.f()", {"m", "other"}),
        ("def f(): return globals()['g']", "import m\nm.f()", {"m"}),
        ("def f(): return eval('g()')", "import m\nm.f()", {"m"}),
        ("def f(): exec('g()')", "import m\nm.f()", {"m"}),
        ("names = vars()\ndef f(): pass", "import m", {"m"}),
        ("def __getattr__(name): return 1\ndef f(): pass", "import m", {"m"}),
        ("import sys\ndef f(n): return getattr(sys.modules[__name__], n)", "import m\nm.f('g')", {"m"}),
        ("import sys\ndef f(n): return sys.modules['other']", "import m\nm.f('g')", {"other"}),
        ("import sys, other\ndef f(n): return sys.modules[n]", "import m\nm.f(x)", {"m", "other"}),
        ("import importlib\ndef f(n): return importlib.import_module('other')", "import m\nm.f('g')", {"other"}),
        (
            "from importlib import import_module as im\ndef f(n): return im(f'plugins.{n}')",
            "import m\nm.f('g')",
            {"plugins", "plugins.a"},
        ),
        (
            "import importlib\ndef f(n): return importlib.import_module('plugins.' + n)",
            "import m\nm.f('g')",
            {"plugins", "plugins.a"},
        ),
        (
            "import importlib\ndef f(n): return importlib.import_module(n)",
            "import m\nm.f(x)",
            {"m", "other", "plugins", "plugins.a"},
        ),
        ("def f(n): return __import__(n)", "import m\nm.f(x)", {"m", "other", "plugins", "plugins.a"}),
        ("import other\ndef f(): return call(other)", "import m\nm.f()", {"other"}),
        ("import other\nTOOLS = [other]\ndef f(): return TOOLS[0].g()", "import m\nm.f()", {"other"}),
        ("def f(): return (lambda g: g.__globals__)(f)", "import m\nm.f()", {"m"}),
        ("def f(", "import m", {"m"}),
        ("def f(): pass", "import m\nprint(m.__dict__)", {"m"}),
        ("def f(): pass", "import m\nm.g()", {"m"}),
        ("def f(): pass", "import m\nx = m", {"m"}),
        ("def f(): pass", "from m import *", {"m"}),
        ("def f(): pass", "import m\nglobals()['m'].f()", {"m"}),
        ("def f(): pass", "import m\neval('m.f()')", {"m"}),
        ("def f(): pass", "import m, sys\nsys.modules['m'].f()", {"m"}),
        ("def f(): pass", "import importlib\nimportlib.import_module('m')", {"m"}),
        ("def f(): pass", "import importlib\nimportlib.reload(m)\nimport m", {"m"}),
        ("def f(): pass", "get_ipython().run_line_magic('run', 'm.py')", {"m", "other", "plugins", "plugins.a"}),
        ("def f(): pass", "x = = 1", {"m", "other", "plugins", "plugins.a"}),
    ],
)
def test_undecidable(tree, module, code, whole):
    tree.write(
        {
            "m.py": module,
            "other.py": "def g(): pass\ndef h(): pass",
            "plugins/__init__.py": "",
            "plugins/a.py": "def p(): pass",
        }
    )
    assert set(tree.reach(code).undecided) == whole


OPTIONAL = """
import importlib
def optional(name): return importlib.import_module(name)
def other(name): return optional(name)
"""


@pytest.mark.parametrize(
    ("code", "whole", "packages"),
    [
        ("from m import optional\noptional('torch')", set(), {"torch"}),
        ("import m\nm.optional('plugins.a')", {"plugins.a"}, set()),
        ("from p import optional as o\no('plugins.a')\no('torch')", {"plugins.a"}, {"torch"}),
        ("import m\nm.optional(name)", {"m", "p", "plugins", "plugins.a"}, set()),
        ("import m\nm.optional(name='plugins.a')", {"m", "p", "plugins", "plugins.a"}, set()),
        ("import m\nmap(m.optional, names)", {"m", "p", "plugins", "plugins.a"}, set()),
        ("import m\nm.other('plugins.a')", {"m", "p", "plugins", "plugins.a"}, set()),
        ("import m\nuse(m)", {"m", "p", "plugins", "plugins.a"}, set()),
        ("import m\n{m.optional: 1}[m.optional]('torch')", {"m", "p", "plugins", "plugins.a"}, set()),
        ("def optional(name): return __import__(name)\noptional('torch')", {"m", "p", "plugins", "plugins.a"}, set()),
    ],
)
def test_functions_that_import_what_they_are_given(tree, code, whole, packages):
    tree.write(
        {
            "m.py": OPTIONAL,
            "p.py": "from m import optional",
            "plugins/__init__.py": "",
            "plugins/a.py": "def p(): pass",
        }
    )
    reach = tree.reach(code)
    assert set(reach.undecided) == whole and reach.packages == packages


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "def f(eval): return eval(1)",
        "frame.eval('a')",
        "vars(x)",
        "getattr(x, n)",
        "import json\nprint(json)",
        "import sys\n'torch' in sys.modules",
        "import importlib\nimportlib.import_module('json')",
        "def f(): return locals()",
    ],
)
def test_decidable(tree, code):
    tree.write({"m.py": "def f(): pass\n" + code})
    assert not tree.reach("import m\nm.f(1)\n" + code).undecided


def test_an_undecidable_function_that_is_not_reached_does_not_matter(tree):
    tree.write({"m.py": "def f(): pass\ndef debug(): print(globals())"})
    assert tree.keys("import m\nm.f()") == {"m:f"}


def test_a_whole_module_counts_with_all_it_can_hand_on(tree):
    tree.write(
        {
            "m.py": "import other\nfrom third import f\n",
            "other.py": "def g(): pass",
            "third.py": "def f(): pass\ndef h(): pass",
        }
    )
    assert tree.keys("import m\nuse(m)") == {"m:(whole)", "other:(whole)", "third:f", "(import order)"}


def test_a_package_used_as_a_value_hands_on_its_modules(tree):
    tree.write({"p/__init__.py": "X = 1", "p/a.py": "def f(): pass", "p/b.py": "def f(): pass"})
    assert set(tree.reach("import p.a\nuse(p)").undecided) == {"p", "p.a"}


def test_star_import_follows_all(tree):
    tree.write({"p/__init__.py": "__all__ = ['a']", "p/a.py": "def f(): pass", "p/b.py": ""})
    assert set(tree.reach("from p import *\na.f()").undecided) == {"p", "p.a"}


# --- text that does not count ---


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return x", "return (x)   # the same", True),
        ("'Docs.'", "'Other docs.'", True),
        ("'Module.'", "'Other module.'", True),
        ("def unused(): pass", "def unused(): return 1", True),
        ("def unused(): pass", "", True),
        ("return x", "return x + 1", False),
        ("def f(x)", "def f(x=2)", False),
        ("def f(x)", "@property\ndef f(x)", False),
        ("'Docs.'", "'Docs.'\n    y = 1", False),
    ],
)
def test_what_counts_in_a_text(tree, old, new, same):
    text = "'Module.'\ndef f(x):\n    'Docs.'\n    return x\ndef unused(): pass\n"
    before = tree.write({"m.py": text}).reach("import m\nm.f(1)")
    after = tree.write({"m.py": text.replace(old, new)}).reach("import m\nm.f(1)")
    assert (before == after) == same


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("def g(): return f.__doc__", "m.g()"),
        ("import inspect", ""),
        ("", "print(m.f.__doc__)"),
        ("", "import inspect\ninspect.getdoc(m.f)"),
    ],
)
def test_docstrings_count_where_they_are_read(tree, module, code):
    def reach(docs):
        return tree.write({"m.py": f"def f():\n    '{docs}'\n{module}\n"}).reach(f"import m\nm.f()\n{code}")

    assert reach("one") != reach("two")


# --- whose module ---


def test_packages_and_library(tree):
    tree.write(
        {
            "m.py": "import os, json\nimport numpy.linalg as la\nfrom sklearn.base import clone\ndef f():\n"
            "    import torch\ndef g():\n    import pandas"
        }
    )
    assert tree.reach("import m\nm.f()\nimport matplotlib.pyplot as plt").packages == {
        "numpy",
        "sklearn",
        "torch",
        "matplotlib",
    }


def test_source_layout_and_namespace_packages(tree):
    tree.write({"src/lib/__init__.py": "def f(): pass", "space/deep/m.py": "def f(): pass\ndef g(): pass"})
    assert tree.keys("import lib\nlib.f()") == {"lib:f"}
    assert tree.keys("from space.deep import m\nm.f()") == {"space.deep.m:f"}
    assert tree.keys("import space.deep.m\nspace.deep.m.f()") == {"space.deep.m:f"}


def test_a_folder_named_like_an_installed_package_is_not_it(tree):
    (tree.root / "hypothesis").mkdir()
    assert tree.reach("import hypothesis").packages == {"hypothesis"}


def test_a_module_named_like_the_library_counts(tree):
    tree.write({"random.py": "def choice(): pass\ndef other(): pass"})
    assert tree.keys("import random\nrandom.choice()") == {"random:choice"}


def test_compiled_modules_count_as_bytes(tree):
    (tree.root / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF one")
    before = tree.reach("import fast\nfast.f()")
    (tree.root / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF two")
    assert (
        set(before.definitions) == {"fast:(whole)"}
        and before.definitions != tree.reach("import fast\nfast.f()").definitions
    )


def test_the_harness_does_not_count_in_its_own_repository(tree):
    tree.write(
        {
            "mlnb/__init__.py": "def __getattr__(name): from mlnb.pipeline import scraps",
            "mlnb/errors.py": "print(1)",
            "mlnb/pipeline/__init__.py": "",
            "mlnb/pipeline/scraps.py": "import papermill\ndef glue(): pass",
            "mlnb/data/__init__.py": "",
            "mlnb/data/splits.py": "from mlnb.errors import X\nimport numpy\ndef split(): pass\ndef other(): pass",
        }
    )
    reach = tree.reach(
        "import mlnb\nfrom mlnb import glue, ref\nfrom mlnb.data.splits import split\nglue(split())\n"
        "mlnb.data.splits.split()\nx = mlnb"
    )
    assert set(reach.definitions) == {"mlnb.data.splits:split"} and reach.packages == {"numpy"}


def test_mlnb_is_a_distribution_elsewhere(tree):
    assert tree.reach("from mlnb import glue").packages == {"mlnb"}


# --- the cache ---


def age(path):
    "Make a file old enough to be cached: wait out the clock of its last change."
    while time.time_ns() - max(stamp(path)[1], stamp(path)[3]) < 2_050_000_000:
        time.sleep(0.05)


def test_cached_records_give_the_same_reach_and_follow_edits(tree, monkeypatch):
    tree.write(CHAIN)
    for path in tree.root.rglob("*.py"):
        age(path)
    code = ["import m\nm.f()"]
    first = open_modules(tree.root, tree.root / "runs")
    before = reached(first, code)
    first.save()
    again = open_modules(tree.root, tree.root / "runs")
    monkeypatch.setattr(Modules, "_analyse", lambda self, name: pytest.fail(f"{name} was read again"))
    assert reached(again, code) == before
    monkeypatch.undo()
    tree.write({"tools/text.py": "def clean(x): return strip(x)\ndef strip(x): return -x\ndef other(): pass"})
    changed = reached(open_modules(tree.root, tree.root / "runs"), code)
    assert {k for k in before.definitions if before.definitions[k] != changed.definitions[k]} == {"tools.text:strip"}


EDITS = [
    ("m.py", "from tools import load\ndef f(): return load('a') + 1\n"),
    ("m.py", "import importlib\ndef f(): return importlib.import_module(f'plugins.{x}')\n"),
    ("tools.py", "def load(x): return x\n"),
    ("tools.py", "def load(x): return other(x)\ndef other(x): return x\n"),
    ("plugins/__init__.py", ""),
    ("plugins/a.py", "def p(): return 1\n"),
    ("plugins/b.py", "def p(): return 22\n"),
    ("yaml.py", "print(333)\n"),
    ("yaml/__init__.py", "print(4444)\n"),
    ("tools.py", None),
    ("plugins/a.py", None),
    ("yaml.py", None),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(EDITS), min_size=1, max_size=8))
def test_a_kept_reach_is_the_one_that_would_be_worked_out(tmp_path_factory, edits):
    tree = Tree(tmp_path_factory.mktemp("k"))
    code = ["import m, yaml", "m.f()"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finder, "is_settled", lambda state: True)
        for name, text in edits:
            if text is None:
                (tree.root / name).unlink(missing_ok=True)
            else:
                tree.write({name: text})
            for _ in range(2):
                modules = open_modules(tree.root, tree.root / "runs" / "cache")
                assert reached(modules, code) == tree.reach(*code)
                modules.save()


def test_a_kept_reach_reads_no_module_records(tree, monkeypatch):
    monkeypatch.setattr(finder, "is_settled", lambda state: True)
    first = open_modules(tree.write(CHAIN).root, tree.root / "runs")
    before = reached(first, ["import m\nm.f()"])
    first.save()
    again = open_modules(tree.root, tree.root / "runs")
    assert reached(again, ["import m\nm.f()"]) == before
    assert again.cache.loaded is None and not again.records


def test_only_reached_modules_are_read(tree, monkeypatch):
    tree.write({"a.py": "def f(): pass", "b.py": "def f(): pass"})
    read, analyse = [], Modules._analyse
    monkeypatch.setattr(Modules, "_analyse", lambda self, name: read.append(name) or analyse(self, name))
    tree.keys("import a\na.f()")
    assert read == ["a"]


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[1]", b'{"format": 1}', b"\xff\xfe"])
def test_damaged_cache_is_made_again(tree, damage):
    tree.write(CHAIN)
    (tree.root / "runs").mkdir()
    (tree.root / "runs" / "modules.json").write_bytes(damage)
    modules = open_modules(tree.root, tree.root / "runs")
    assert reached(modules, ["import m\nm.f()"]) == tree.reach("import m\nm.f()")
    modules.save()
    assert json.loads((tree.root / "runs" / "modules.json").read_text())["format"] == 1


def test_a_new_file_that_shadows_a_package_is_seen(tree):
    assert tree.reach("import yaml").packages == {"yaml"}
    tree.write({"yaml.py": "print(1)"})
    reach = tree.reach("import yaml")
    assert not reach.packages and set(reach.definitions) == {"yaml:(body)"}


def test_texts_belong_to_their_digests(tree):
    modules = open_modules(tree.write(CHAIN).root)
    reach = reached(modules, ["import m\nm.f()\nuse(m.t)"])
    assert set(reach_texts(modules, reach)) == set(reach.definitions.values())


def test_cache_holds_no_more_than_its_limit(tmp_path):
    cache = Cache(tmp_path / "c.json", "x", limit=3)
    for i in range(10):
        cache.put(str(i), 0, i)
    cache.used = {"9"}
    cache.save()
    assert sorted(Cache(tmp_path / "c.json", "x").entries) == ["7", "8", "9"]


# --- random projects: what runs is reached, and nothing that is not named ---


@st.composite
def projects(draw):
    "Module texts, stage code, and for each function the functions it names."
    count = draw(st.integers(2, 5))
    packages = draw(st.booleans())
    module_names = [f"pk.m{i}" if packages and i % 2 else f"m{i}" for i in range(count)]
    functions = [(m, f"f{j}") for m in module_names for j in range(draw(st.integers(1, 4)))]
    edges, lines = {}, {m: [] for m in module_names}
    imports, numbers = {m: [] for m in module_names}, itertools.count()

    def reference(home, target, inside):
        "Text that calls `target` from `home`, and the import it needs at the top of the module."
        module, name = target
        if module == home:
            return "", f"{name}(n)"
        style = draw(st.integers(0, 5))
        alias = f"x{next(numbers)}"
        call, top = {
            0: (f"{alias}.{name}(n)", f"import {module} as {alias}"),
            1: (f"{alias}(n)", f"from {module} import {name} as {alias}"),
            2: (f"{module}.{name}(n)", f"import {module}"),
            3: (f"getattr({alias}, '{name}')(n)", f"import {module} as {alias}"),
            4: (f"[{alias}.{name}][0](n)", f"import {module} as {alias}"),
            5: (
                f"Holder{alias}().run(n)",
                f"class Holder{alias}:\n    def run(self, n):\n        import {module} as late\n"
                f"        return late.{name}(n)",
            ),
        }[style]
        return top, call

    for index, (module, name) in enumerate(functions):
        later = functions[index + 1 :]
        targets = draw(st.lists(st.sampled_from(later), max_size=3, unique=True)) if later else []
        edges[module, name] = targets
        parts = []
        for target in targets:
            top, call = reference(module, target, True)
            if top.startswith("from"):
                parts.append(f"    {top}")  # late, so that circles of modules are no trouble
            elif top:
                imports[module].append(top)
            parts.append(f"    n += {call}")
        lines[module].append(f"def {name}(n):\n" + "\n".join([*parts, f"    return n + {index}"]))
    used = draw(st.lists(st.sampled_from(functions), min_size=1, max_size=3, unique=True))
    code = []
    for target in used:
        top, call = reference("", target, False)
        code += [top, f"n = 0\nn += {call}"]
    files = {m.replace(".", "/") + ".py": "\n".join([*imports[m], "", *lines[m]]) + "\n" for m in module_names}
    if packages:
        files["pk/__init__.py"] = ""
    return files, "\n".join(c for c in code if c), edges, used, functions


def closure(edges, used):
    seen, stack = set(), list(used)
    while stack:
        if (f := stack.pop()) not in seen:
            seen.add(f)
            stack += edges[f]
    return seen


def executed(root, code):
    "(module, top-level name) of all project functions that running the code enters."
    found, before = set(), set(sys.modules)

    def note(frame, event, _):
        is_function = frame.f_code.co_flags & inspect.CO_NEWLOCALS  # making a class is a call to the interpreter, too
        if event == "call" and is_function and frame.f_code.co_filename.startswith(str(root)):
            found.add((frame.f_globals["__name__"], frame.f_code.co_qualname.split(".")[0]))

    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        program = compile(code, "stage", "exec")
        sys.setprofile(note)
        try:
            exec(program, {"__name__": "__main__"})  # what the interpreter does is the oracle
        finally:
            sys.setprofile(None)
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            del sys.modules[name]
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(projects(), st.data())
def test_random_projects(tmp_path_factory, project, data):
    files, code, edges, used, functions = project
    tree = Tree(tmp_path_factory.mktemp("p")).write(files)
    before = tree.reach(code)
    for module, name in executed(tree.root, code):
        if name != "<module>":
            assert f"{module}:{name}" in before.definitions or f"{module}:(whole)" in before.definitions
    assert not before.undecided
    module, name = data.draw(st.sampled_from(functions))
    path = tree.root / (module.replace(".", "/") + ".py")
    text = path.read_text()
    path.write_text(text.replace(f"def {name}(n):\n", f"def {name}(n):\n    n = n * 2\n", 1))
    assert (tree.reach(code) != before) == ((module, name) in closure(edges, used))
    path.write_text(text.replace(f"def {name}(n):\n", f"def {name}(n):\n    # a comment\n\n    'and docs'\n", 1))
    assert tree.reach(code) == before


BODIES = [
    "print(1)",
    "X = {f}(1)",
    "@{f}\ndef extra(n): return n",
    "class K:\n    v = {f}(1)",
    "for i in range(2): {f}(i)",
    "def late(n={f}(1)): return n",
    "class Base:\n    def __init_subclass__(cls): {f}(1)\nclass Sub(Base): pass",
    "try: Y = {f}(1)\nexcept ValueError: Y = 0",
    "if {f}(1): Z = 1",
    "T = [{f}(i) for i in range(2)]",
    "from functools import partial\nP = partial({f}, 1)\nP()",
    "class C:\n    def __class_getitem__(cls, k): return {f}(1)\nD = C[int]",
    "def outer():\n    return {f}(1)\nouter()",
    "class E:\n    def __add__(self, o): return {f}(1)\nF = E() + 1",
    "table = {{'f': {f}}}\ntable['f'](1)",
    "class G:\n    def __set_name__(self, o, n): {f}(1)\nclass H:\n    g = G()",
    "v: {f}(1) = 2",
    "L = (lambda: {f}(1))()",
    "import sys\nsys.modules[__name__].f0(1)",
    "globals()['f0'](1)",
    "def w(f): return {f}\n@w\nclass Q: pass\nQ(1)",
]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(BODIES), min_size=1, max_size=4, unique=True), st.integers(0, 3), st.booleans())
def test_what_an_import_executes_is_reached(tmp_path_factory, bodies, target, split):
    helpers = "\n".join(f"def f{i}(n=0):\n    return n" for i in range(4)) + "\n"
    acting = "\n".join(b.format(f=f"f{target}") for b in bodies)
    files = (
        {"helpers.py": helpers, "m.py": "from helpers import f0, f1, f2, f3\n" + acting}
        if split
        else {"m.py": helpers + acting}
    )
    tree = Tree(tmp_path_factory.mktemp("b")).write(files)
    found = tree.reach("import m").definitions
    for module, name in executed(tree.root, "import m"):
        if name.startswith("<"):
            continue
        ok = {f"{module}:{name}", f"{module}:(whole)"} & set(found)
        bound_in_body = f"{module}:(body)" in found and name not in open_modules(tree.root).record(module)["units"]
        assert ok or bound_in_body, (name, sorted(found))


def test_deep_call_chains_need_no_recursion(tree):
    tree.write({"m.py": "\n".join(f"def f{i}(): return f{i + 1}()" for i in range(3000)) + "\ndef f3000(): pass"})
    assert len(tree.keys("import m\nm.f0()")) == 3001


def test_nothing_is_written_beside_the_project(tree):
    tree.write(CHAIN).keys("import m\nm.f()")
    assert "runs" not in os.listdir(tree.root)
