"""When is a head active? A rule of one or two words, found on some prompts and scored on others.

It stands in for an explanation written by a judge: it can be wrong, and it is scored like one, by balanced accuracy
on prompts of other documents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from cutaway.errors import UsageError

_PAIRS = 12
"""Single words that pairs are made of."""
_GAIN = 0.05
"""Balanced accuracy that a second word must add on the prompts that it is chosen on."""


@dataclass(frozen=True)
class Decision:
    """Active where the prompt holds ``tokens``: all of them, any of them, or the first without the second."""

    tokens: tuple[int, ...]
    how: "How"
    fitted: float
    """Balanced accuracy on the prompts it was chosen on."""

    def __call__(self, prompt: Sequence[int]) -> bool:
        has = [np.bool_(token in prompt) for token in self.tokens]
        return bool(_HOW[self.how](has[0], has[-1]))


How = Literal["contains", "lacks", "both", "either", "first only"]
_HOW: dict[How, Callable[[Any, Any], Any]] = {
    "contains": lambda a, b: a,
    "lacks": lambda a, b: ~a,
    "both": lambda a, b: a & b,
    "either": lambda a, b: a | b,
    "first only": lambda a, b: a & ~b,
}


_SINGLE: tuple[How, ...] = ("contains", "lacks")


def decide(prompts: Sequence[Sequence[int]], active: Sequence[bool]) -> Decision:
    """Find the rule of largest balanced accuracy, one word before two, presence before absence, the
    commoner word before the rarer.

    UsageError where all prompts are of one class: there is nothing to tell apart.
    """
    labels = np.asarray(active, dtype=bool)
    if len(prompts) != len(labels) or labels.all() or not labels.any():
        raise UsageError(f"{int(labels.sum())} of {len(prompts)} prompts are active; both kinds are needed")
    sets = [set(prompt) for prompt in prompts]
    counts: dict[int, int] = {}
    for tokens in sets:
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    order = sorted((t for t, n in counts.items() if n < len(sets)), key=lambda t: (-counts[t], t))
    has = {token: np.array([token in tokens for tokens in sets]) for token in order}
    singles = [(_balanced(_HOW[how](has[t], has[t]), labels), t, how) for how in _SINGLE for t in order]
    if not singles:
        return Decision((next(iter(counts)),), "contains", 0.5)
    best = max(singles, key=lambda each: each[0])
    found = Decision((best[1],), best[2], best[0])
    top = [t for _, t, _ in sorted(singles, key=lambda each: -each[0])]
    for a, b in combinations(dict.fromkeys(top[: 2 * _PAIRS]), 2):
        for how, x, y in _pairs(a, b):
            value = _balanced(_HOW[how](has[x], has[y]), labels)
            if value > max(best[0] + _GAIN, found.fitted):
                found = Decision((x, y), how, value)
    return found


def balanced_accuracy(decision: Decision, prompts: Sequence[Sequence[int]], active: Sequence[bool]) -> float:
    """Return (TPR + TNR) / 2; nan where the prompts are all of one class."""
    labels = np.asarray(active, dtype=bool)
    if len(labels) == 0 or labels.all() or not labels.any():
        return math.nan
    return _balanced(np.array([decision(prompt) for prompt in prompts]), labels)


def _pairs(a: int, b: int) -> list[tuple[How, int, int]]:
    return [("both", a, b), ("either", a, b), ("first only", a, b), ("first only", b, a)]


def _balanced(guess: np.ndarray, labels: np.ndarray) -> float:
    return float((guess[labels].mean() + (~guess[~labels]).mean()) / 2)
