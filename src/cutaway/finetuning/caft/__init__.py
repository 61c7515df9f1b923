"""CAFT: fine-tune while the directions of a concept are taken out of the residual stream (2507.16795)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

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

__getattr__ = on_demand(__name__)
