"""Imports point downwards only: ground, then two towers side by side, then what joins them. Read from the notebooks."""
import ast

import house
import pytest

ENGINE, MODEL = ("pipeline", "tracking"), ("data", "training", "evaluation", "serving", "monitoring")
TOP = 80   # a notebook directly under nbs/ is ground below this number, and joins the towers from it on


def layer(lesson: house.Lesson) -> tuple[int, str, int]:
    """Height, tower and floor of a notebook."""
    if not lesson.folder: return (3, "top", 0) if lesson.number >= TOP else (0, "ground", 0)
    if lesson.folder == "lab": return (2, "lab", 0)
    for tower in (ENGINE, MODEL):
        if lesson.folder in tower: return (1, tower[0], tower.index(lesson.folder))
    raise AssertionError(f"{lesson.path}: the folder {lesson.folder} has no place in DESIGN.md's house")


def may_import(above: house.Lesson, below: house.Lesson) -> bool:
    """Is this import one that points down?"""
    (height, tower, floor), (other_height, other_tower, other_floor) = layer(above), layer(below)
    if height != other_height: return height > other_height
    return tower == other_tower and (floor, above.number) > (other_floor, below.number)


def imported(cell: house.Code, known: set[str]) -> set[str]:
    """Names of our modules that a cell imports, or names in a dictionary, as tables of lazy imports do."""
    names = set()
    for node in ast.walk(cell.tree()):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
            if node.module == "mlnb": names |= {f"mlnb.pipeline.{LAZY[a.name]}" for a in node.names if a.name in LAZY}
        if cell.exported and isinstance(node, ast.Dict):
            names |= {v.value for v in node.values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return names & known


LAZY = {"glue": "scraps", "ref": "scraps", "source": "scraps", "Secret": "parameters"}


def violations(lessons: list[house.Lesson]) -> list[str]:
    """Every import that points up or across, as a sentence."""
    by_module = {o.module: o for o in lessons}
    found = []
    for lesson in lessons:
        for name in sorted(set().union(*(imported(c, set(by_module)) for c in lesson.code())) - {lesson.module}):
            below = by_module[name]
            if not may_import(lesson, below): found.append(f"{lesson.path} imports {name} ({below.path})")
    return found


def test_imports_point_downwards():
    """In every notebook: exported code, functions' bodies and lessons."""
    assert len(house.lessons()) >= 4
    assert violations(house.lessons()) == []


def test_packages_import_nothing_eagerly():
    """A package's __init__ would otherwise join layers behind the notebooks' back."""
    for path in house.modules():
        if path.name != "__init__.py": continue
        eager = [n for n in ast.parse((house.ROOT/path).read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not eager, f"{path} imports at module level"


def test_numbers_order_a_folder():
    """Every library notebook has a number, and no two of a folder share one."""
    seen = {}
    for lesson in house.lessons():
        assert lesson.number >= 0, f"{lesson.path} has no number"
        first = seen.setdefault((lesson.folder, lesson.number), lesson.path)
        assert first == lesson.path, f"{lesson.path} has the number of {first}"


def planted(path: str, source: str) -> house.Lesson:
    """A notebook that exists only here."""
    path = house.Path(path)
    module = ".".join(["mlnb", *path.parts[:-1], path.stem.split("_", 1)[1]])
    return house.Lesson(path, int(path.name.split("_")[0]), module, [{"cell_type": "code", "source": source}])


@pytest.mark.parametrize(("path", "source", "wrong"), [
    ("pipeline/25_graph.ipynb", "from mlnb.pipeline.stage import read_stage", False),
    ("pipeline/15_early.ipynb", "from mlnb.pipeline.stage import read_stage", True),
    ("pipeline/15_early.ipynb", "from mlnb.pipeline import stage", True),
    ("pipeline/15_early.ipynb", "def f():\n    import mlnb.pipeline.stage", True),
    ("pipeline/15_early.ipynb", '#| export\nTABLE = {"x": "mlnb.pipeline.stage"}', True),
    ("pipeline/15_early.ipynb", "%load_ext x\n!ls\nfrom mlnb.errors import MlnbError", False),
    ("tracking/10_wandb.ipynb", "from mlnb.pipeline.stage import read_stage", False),
    ("data/10_tables.ipynb", "from mlnb.pipeline.stage import read_stage", True),
    ("pipeline/90_x.ipynb", "from mlnb.training.models import fit", True),
    ("serving/10_x.ipynb", "from mlnb.training.models import fit", False),
    ("30_ground.ipynb", "from mlnb.training.models import fit", True),
    ("lab/10_show.ipynb", "from mlnb.training.models import fit\nfrom mlnb.pipeline.stage import x", False),
    ("lab/10_show.ipynb", "from mlnb.cli import main", True),
    ("95_joined.ipynb", "from mlnb.cli import main\nfrom mlnb.training.models import fit", False),
    ("data/20_x.ipynb", "from mlnb import glue", True),
])
def test_the_check_sees_a_wrong_import(path, source, wrong):
    """The check itself, on planted imports."""
    others = [planted(p, "") for p in ("00_errors.ipynb", "pipeline/20_stage.ipynb", "training/10_models.ipynb",
                                       "pipeline/65_scraps.ipynb", "90_cli.ipynb")]
    assert bool(violations([*others, planted(path, source)])) is wrong


def test_an_unknown_folder_is_noticed():
    """A new folder needs a place in the house first."""
    with pytest.raises(AssertionError, match="no place"): layer(planted("cellar/10_x.ipynb", ""))
