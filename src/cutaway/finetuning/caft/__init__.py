"""CAFT: fine-tune while the directions of a concept are taken out of the residual stream (2507.16795)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.finetuning.caft.directions import Concept, Selected, concept, random_concept
    from cutaway.finetuning.caft.method import (
        Comparison,
        Leak,
        Task,
        ablated,
        compare,
        component_concept,
        labelled_concept,
        latent_concept,
        tune,
    )

_PLACES = {
    "directions": ("Concept", "Selected", "concept", "random_concept"),
    "method": (
        *("Comparison", "Leak", "Task", "ablated", "compare"),
        *("component_concept", "labelled_concept", "latent_concept", "tune"),
    ),
}
"""Module to its public names, imported when first asked for: studies are listed without torch."""

__all__ = [
    "Comparison",
    "Concept",
    "Leak",
    "Selected",
    "Task",
    "ablated",
    "compare",
    "component_concept",
    "concept",
    "labelled_concept",
    "latent_concept",
    "random_concept",
    "tune",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _PLACES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
