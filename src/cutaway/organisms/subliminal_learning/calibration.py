"""The toy as a planted truth (same start) with its null (other start); the audit on planted language models."""

from collections.abc import Callable

from cutaway.organisms.subliminal_learning.toy import (
    ARMS,
    ToyConfig,
    accuracy,
    digits,
    distil,
    initial,
    run_toy,
    train_teachers,
)
from cutaway.study import Rate

LEARNT, CHANCE = 0.15, 0.2
"""Accuracy that tells a student that learnt something; accuracy that no student of another start should reach."""


def toy_rates(networks: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Students of the same and of another start at 600 steps, and a few of the same start at 3,000."""
    toy = run_toy(ToyConfig(models=max(2, networks)), ARMS[:2], lambda done, total: report(done, 2 * total))
    same, other = (toy.accuracies[arm] for arm in ARMS[:2])
    few = ToyConfig(models=max(2, networks // 4), steps=3000, seed=1)
    data, start = digits(few.seed), initial(few.models, few.width, few.seed)
    late = accuracy(distil(start, train_teachers(start, data, few), few), data)
    return (
        Rate("same start learns", sum(x > LEARNT for x in same), len(same), at_least=0.8,
             what="students with accuracy above 0.15 after 600 steps on noise"),
        Rate("same start at 3,000 steps", sum(x >= 0.8 for x in late), len(late), at_least=1.0,
             what="students with accuracy of 0.8 or more"),
        Rate("other start learns", sum(x > CHANCE for x in other), len(other), at_most=0.1,
             what="students of another network's start with accuracy above 0.2"),
    )  # fmt: skip
