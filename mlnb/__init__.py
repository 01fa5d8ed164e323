"""Notebooks as production machine-learning pipelines."""

__version__ = "0.1.0"

_LAZY = {"glue": "mlnb.pipeline.scraps", "ref": "mlnb.pipeline.scraps", "source": "mlnb.pipeline.scraps",
         "Secret": "mlnb.pipeline.parameters"}
__all__ = ["Secret", "glue", "ref", "source"]


def __getattr__(name: str):
    """Load the four names that stages use only when one of them is asked for: `import mlnb` itself stays free."""
    if name not in _LAZY: raise AttributeError(f"module 'mlnb' has no attribute {name!r}")
    if name == "Secret": from mlnb.pipeline import parameters as home
    else: from mlnb.pipeline import scraps as home
    return getattr(home, name)
