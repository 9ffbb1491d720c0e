"""Verb `evaluate`: predictions against ground truth under named protocols."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Load the verb on demand: its settings are read without torch."""
    if name in ("evaluate", "view_roles"):
        from fourdiffusion.evaluate import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
