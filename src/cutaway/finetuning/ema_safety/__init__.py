"""Averaged weights: tune on harmless data and see what becomes of refusals (2508.12531)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

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

__getattr__ = on_demand(__name__)
