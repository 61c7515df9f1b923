"""Understanding addition in transformers: the one-layer account as a claim that is accepted or rejected."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.addition_transformers.method import (
        RIVALS,
        Agreement,
        BaseHead,
        Judged,
        base_head,
        chain_accuracy,
        early_pattern,
        judge,
        predict,
        question_suite,
        roles_by_shift,
        staircase,
    )

__all__ = [
    "RIVALS",
    "Agreement",
    "BaseHead",
    "Judged",
    "base_head",
    "chain_accuracy",
    "early_pattern",
    "judge",
    "predict",
    "question_suite",
    "roles_by_shift",
    "staircase",
]

__getattr__ = on_demand(__name__)
