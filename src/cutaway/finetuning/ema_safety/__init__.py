"""Averaged weights: tune on harmless data and see what becomes of refusals (2508.12531)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.finetuning.ema_safety.method import (
        Anchored,
        Grid,
        Material,
        Point,
        ProductAverage,
        Tradeoff,
        compare,
        written_refusals,
    )

__all__ = [
    "Anchored",
    "Grid",
    "Material",
    "Point",
    "ProductAverage",
    "Tradeoff",
    "compare",
    "written_refusals",
]


def __getattr__(name: str) -> Any:
    """Import the method when one of its names is first asked for: studies are listed without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.method"), name)
