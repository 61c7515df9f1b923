"""Prune the neurons of a concept, retrain, and see where it comes back."""

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
