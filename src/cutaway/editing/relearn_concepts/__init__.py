"""Prune the neurons of a concept, retrain, and see where it comes back."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.editing.relearn_concepts.method import (
        Checkpoint,
        Primed,
        Relearnt,
        Tagger,
        concept_neurons,
        make_tagger,
        measure,
        primed,
        random_neurons,
        relearn,
    )
    from cutaway.editing.relearn_concepts.salience import Tally, tally

__all__ = [
    "Checkpoint",
    "Primed",
    "Relearnt",
    "Tagger",
    "Tally",
    "concept_neurons",
    "make_tagger",
    "measure",
    "primed",
    "random_neurons",
    "relearn",
    "tally",
]

__getattr__ = on_demand(__name__)
