"""Steering: vectors, gradients and ablations applied to a model as edits, with controls of equal push."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.steering.ablations import ablation, random_ablations
    from cutaway.steering.effects import (
        Effect,
        answer_nll,
        draw_answers,
        effect,
        fluency,
        holm,
        rate,
        relative_change,
        repetition,
    )
    from cutaway.steering.vectors import Vectors, difference_of_means, load_vectors, states

__all__ = [
    "Effect",
    "Vectors",
    "ablation",
    "answer_nll",
    "difference_of_means",
    "draw_answers",
    "effect",
    "fluency",
    "holm",
    "load_vectors",
    "random_ablations",
    "rate",
    "relative_change",
    "repetition",
    "states",
]

__getattr__ = on_demand(__name__)
