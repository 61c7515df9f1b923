"""Subliminal learning: a hidden trait passed on by data that do not name it (2509.23886, 2507.14805)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.organisms.subliminal_learning.carriers import Divergence, Teacher, divergence
    from cutaway.organisms.subliminal_learning.numbers import (
        animal_questions,
        completion_prompts,
        kept,
        number_prompts,
        read_numbers,
    )
    from cutaway.organisms.subliminal_learning.toy import (
        ARMS,
        Digits,
        Nets,
        Toy,
        ToyConfig,
        accuracy,
        class_loss,
        derangement,
        digits,
        distil,
        distil_loss,
        initial,
        run_toy,
        train_teachers,
    )
    from cutaway.organisms.subliminal_learning.transfer import (
        Task,
        Transfer,
        first_tokens,
        make_task,
        run_transfer,
        tastes,
    )

__all__ = [
    "ARMS",
    "Digits",
    "Divergence",
    "Nets",
    "Task",
    "Teacher",
    "Toy",
    "ToyConfig",
    "Transfer",
    "accuracy",
    "animal_questions",
    "class_loss",
    "completion_prompts",
    "derangement",
    "digits",
    "distil",
    "distil_loss",
    "divergence",
    "first_tokens",
    "initial",
    "kept",
    "make_task",
    "number_prompts",
    "read_numbers",
    "run_toy",
    "run_transfer",
    "tastes",
    "train_teachers",
]

__getattr__ = on_demand(__name__)
