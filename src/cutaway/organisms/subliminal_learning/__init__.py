"""Subliminal learning: a hidden trait passed on by data that do not name it (2509.23886, 2507.14805)."""

from cutaway.organisms.subliminal_learning.numbers import animal_questions, kept, number_prompts, read_numbers
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

__all__ = [
    "ARMS",
    "Digits",
    "Nets",
    "Toy",
    "ToyConfig",
    "accuracy",
    "animal_questions",
    "class_loss",
    "derangement",
    "digits",
    "distil",
    "distil_loss",
    "initial",
    "kept",
    "number_prompts",
    "read_numbers",
    "run_toy",
    "train_teachers",
]
