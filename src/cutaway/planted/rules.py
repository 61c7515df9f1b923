"""Features whose rule is known: token patterns for graphs of neurons, and a neuron that one head switches on.

`rule` gives a feature as a plain function of token ids, with the exact set of trie paths that describe it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from cutaway.errors import UsageError, nearest

RuleName = Literal["anywhere", "within", "unless", "class", "noisy", "random", "silent"]
Path = tuple[str | None, ...]
"""Backwards from the token that fires; None stands for any token."""

_FILLER = (
    *("sun", "moon", "star", "tree", "leaf", "root", "bird", "fish", "stone"),
    *("river", "cloud", "rain", "wind", "snow", "fire", "sand", "hill", "lake"),
)
_NAMED = ("one", "two", "three", "four", "five", "six", "dollar", "euro", "pound")
WORDS = (*_FILLER, "apple", "bread", "crate", *_NAMED)
"""The vocabulary: token ``i`` is a blank and ``WORDS[i]``."""
REACH = 5
"""How many tokens back "within" and "unless" look."""
_A, _B, _C = (WORDS.index(word) for word in ("apple", "bread", "crate"))
_NUMBERS = tuple(range(WORDS.index("one"), WORDS.index("six") + 1))
_CURRENCIES = tuple(range(WORDS.index("dollar"), WORDS.index("pound") + 1))


@dataclass(frozen=True)
class RuleTruth:
    """What a graph of the rule should hold."""

    paths: frozenset[Path]
    """Paths that fire, backwards; empty where nothing systematic fires."""
    exceptions: frozenset[Path] = frozenset()
    """Paths that silence one of those."""


@dataclass(frozen=True)
class Rule:
    """A planted feature over token ids and text to find it in."""

    name: str
    fn: Callable[[Sequence[int]], list[float]]
    truth: RuleTruth

    def spell(self, token: int) -> str:
        """Return the text of a token."""
        return f" {WORDS[token]}"

    def texts(self, n: int, length: int = 40, seed: int = 0) -> list[list[int]]:
        """Return ``n`` rows of random words; each planted word is about three times as frequent as another."""
        rng = np.random.default_rng(seed)
        weights = np.ones(len(WORDS))
        weights[[_A, _B, _C]] = 3.0
        drawn = rng.choice(len(WORDS), size=(n, length), p=weights / weights.sum())
        return [list(map(int, row)) for row in drawn]


def rule(name: RuleName | str, seed: int = 0) -> Rule:
    """Return a planted feature.

    anywhere: fires on "bread". within: on "bread" with "apple" among the five tokens before it.
    unless: the same, but not with "crate" between the two. class: on a number right after a currency.
    noisy: "within" with noise on every value, sd 0.1. random: a coin for every prefix of a text, one in fifty fires,
    whatever the words. silent: never above zero.
    """
    makers: dict[str, Callable[[], Rule]] = {
        "anywhere": lambda: Rule(name, _each(lambda ids, i: ids[i] == _B), RuleTruth(frozenset({("bread",)}))),
        "within": lambda: Rule(name, _each(_within), RuleTruth(_gaps())),
        "unless": lambda: Rule(name, _each(_unless), RuleTruth(_gaps(), _exceptions())),
        "class": lambda: Rule(name, _each(_class), RuleTruth(_pairs())),
        "noisy": lambda: Rule(name, _noisy(seed), RuleTruth(_gaps())),
        "random": lambda: Rule(name, _random(seed), RuleTruth(frozenset())),
        "silent": lambda: Rule(name, lambda ids: [-1.0] * len(ids), RuleTruth(frozenset())),
    }
    if name not in makers:
        raise UsageError(f"rule={name!r}{nearest(name, get_args(RuleName))}")
    return makers[name]()


def _each(fires: Callable[[Sequence[int], int], bool]) -> Callable[[Sequence[int]], list[float]]:
    return lambda ids: [float(fires(ids, i)) for i in range(len(ids))]


def _within(ids: Sequence[int], i: int) -> bool:
    return ids[i] == _B and _A in ids[max(0, i - REACH) : i]


def _unless(ids: Sequence[int], i: int) -> bool:
    """Say whether the nearest of "apple" and "crate" before "bread" is an "apple", within reach."""
    near = [token for token in reversed(ids[max(0, i - REACH) : i]) if token in (_A, _C)]
    return ids[i] == _B and bool(near) and near[0] == _A


def _class(ids: Sequence[int], i: int) -> bool:
    return ids[i] in _NUMBERS and i > 0 and ids[i - 1] in _CURRENCIES


def _coin(seed: int, ids: Sequence[int]) -> float:
    """Return a number in [0, 1) that a prefix determines and nothing in it predicts."""
    digest = hashlib.blake2b(bytes(ids), digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64


def _noisy(seed: int) -> Callable[[Sequence[int]], list[float]]:
    def value(ids: Sequence[int], i: int) -> float:
        uniform = sum(_coin(seed + k, ids[: i + 1]) for k in range(12)) - 6.0  # near a standard normal
        return float(_within(ids, i)) + 0.1 * uniform

    return lambda ids: [value(ids, i) for i in range(len(ids))]


def _random(seed: int) -> Callable[[Sequence[int]], list[float]]:
    return lambda ids: [float(_coin(seed, ids[: i + 1]) < 0.02) for i in range(len(ids))]


def _gaps() -> frozenset[Path]:
    return frozenset(("bread", *[None] * gap, "apple") for gap in range(REACH))


def _exceptions() -> frozenset[Path]:
    return frozenset(
        ("bread", *[None] * before, "crate", *[None] * (gap - before - 1), "apple")
        for gap in range(REACH)
        for before in range(gap)
    )


def _pairs() -> frozenset[Path]:
    return frozenset((WORDS[number], WORDS[currency]) for number, currency in product(_NUMBERS, _CURRENCIES))
