"""K-Steering: one classifier's gradient towards wanted styles and away from others (Oozeer et al. 2025, 2505.24535)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.steering.k_steering.classifier import (
        Classifier,
        Recipe,
        StyleVectors,
        fit_classifier,
        fit_vectors,
        load_classifier,
    )
    from cutaway.steering.k_steering.method import (
        Arm,
        Comparison,
        Interference,
        Outcome,
        Pair,
        Strength,
        find_strength,
        interference,
        measure_arms,
        random_pushes,
        steered_states,
        success,
    )

__all__ = [
    "Arm",
    "Classifier",
    "Comparison",
    "Interference",
    "Outcome",
    "Pair",
    "Recipe",
    "Strength",
    "StyleVectors",
    "find_strength",
    "fit_classifier",
    "fit_vectors",
    "interference",
    "load_classifier",
    "measure_arms",
    "random_pushes",
    "steered_states",
    "success",
]

__getattr__ = on_demand(__name__)
