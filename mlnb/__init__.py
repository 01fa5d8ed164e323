"""Notebooks as production machine-learning pipelines."""

__version__ = "0.1.0"

__all__ = ["Secret", "compare", "glue", "ref", "scratch", "source"]


def __getattr__(name: str):
    """Load the names that stages use only when one of them is asked for: `import mlnb` itself stays free."""
    if name not in __all__: raise AttributeError(f"module 'mlnb' has no attribute {name!r}")
    if name == "Secret": from mlnb.pipeline import parameters as home
    elif name == "scratch": from mlnb.pipeline import scratch as home
    elif name == "compare": from mlnb.tracking import compare_page as home
    else: from mlnb.pipeline import scraps as home
    return getattr(home, name)
