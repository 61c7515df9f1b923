"""Steering a model that knows it is tested to act as if deployed (Hua et al. 2025, 2510.20487)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.steering.eval_awareness.hints import Hints, count_hints
    from cutaway.steering.eval_awareness.method import (
        Condition,
        Measured,
        Recovery,
        choose_scale,
        compare,
        contrast_vectors,
        measure_rates,
    )
    from cutaway.steering.eval_awareness.organism import Round, expert_iteration, packed

__all__ = [
    "Condition",
    "Hints",
    "Measured",
    "Recovery",
    "Round",
    "choose_scale",
    "compare",
    "contrast_vectors",
    "count_hints",
    "expert_iteration",
    "measure_rates",
    "packed",
]

__getattr__ = on_demand(__name__)
