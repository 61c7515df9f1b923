"""Directions that organisms share: found in one, taken out of others, read adapter by adapter (2506.11618)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.organisms.em_convergent.contrast import (
        AnswerMean,
        ablations,
        answer_mean,
        ceiling,
        cosines,
        directions,
        model_directions,
        without_direction,
    )
    from cutaway.organisms.em_convergent.method import Convergence, Member, converge
    from cutaway.organisms.em_convergent.roles import Roles, Scalars, find_roles, read_scalars, silenced, split_answers

__all__ = [
    "AnswerMean",
    "Convergence",
    "Member",
    "Roles",
    "Scalars",
    "ablations",
    "answer_mean",
    "ceiling",
    "converge",
    "cosines",
    "directions",
    "find_roles",
    "model_directions",
    "read_scalars",
    "silenced",
    "split_answers",
    "without_direction",
]

__getattr__ = on_demand(__name__)
