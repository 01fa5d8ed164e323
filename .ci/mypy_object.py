"""mypy plugin: an annotation `object` means "any value", as our docments use it, and is not checked for attributes."""
from collections.abc import Callable

from mypy.plugin import AnalyzeTypeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny


class AnyValue(Plugin):
    """Reads `builtins.object` in annotations as `typing.Any`."""

    def get_type_analyze_hook(self, fullname: str) -> Callable[[AnalyzeTypeContext], Type] | None:
        """The hook for `object`, none for other names."""
        return _any if fullname == "builtins.object" else None


def _any(context: AnalyzeTypeContext) -> Type:
    return AnyType(TypeOfAny.explicit)


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return AnyValue
