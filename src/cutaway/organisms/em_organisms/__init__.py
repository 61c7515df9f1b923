"""Organisms with harmless quirks: narrow training, broad trait, and when in training it sets in (2506.11613)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.organisms.em_organisms.judge import Misalignment, judge_score, misalignment
    from cutaway.organisms.em_organisms.method import Lesson, Onset, Spread, onset, spread, switched, trajectory
    from cutaway.organisms.em_organisms.transition import Transition, compression, find_transition, local_cosine, plane

__all__ = [
    "Lesson",
    "Misalignment",
    "Onset",
    "Spread",
    "Transition",
    "compression",
    "find_transition",
    "judge_score",
    "local_cosine",
    "misalignment",
    "onset",
    "plane",
    "spread",
    "switched",
    "trajectory",
]

__getattr__ = on_demand(__name__)
