"""Complexity classes of questions: labels, exact probabilities, and questions drawn from a class exactly uniformly.

A class says how far the longest carry (or borrow) runs. Additions: S0 no carry; S1 carries that no column passes
on; S2, S3, S4, S5 a carry passed on by 1, 2, 3, 4 or more columns. Subtractions with answer >= 0: M0 no borrow,
M1 to M4 alike; negative ones N1 to N4 on the numbers as they stand (there is always a borrow), where leading
columns with two zeros are not counted.

One automaton walks over the columns from the units: its states know the sign so far, the run that is going on
and the longest one. It labels (walk), counts (sum over walks) and draws (walk with the counts as weights).
"""

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.questions import Questions
from cutaway.errors import UsageError, nearest

ADD_CLASSES = ("S0", "S1", "S2", "S3", "S4", "S5")
SUB_CLASSES = ("M0", "M1", "M2", "M3", "M4")
NEG_CLASSES = ("N1", "N2", "N3", "N4")
CLASSES = (*ADD_CLASSES, *SUB_CLASSES, *NEG_CLASSES)

_PAIRS = [(a, b) for a in range(10) for b in range(10)]
_ADD_TYPES = (
    [p for p in _PAIRS if sum(p) <= 8],
    [p for p in _PAIRS if sum(p) == 9],
    [p for p in _PAIRS if sum(p) >= 10],
)
_SUB_TYPES = (
    [p for p in _PAIRS if p[0] > p[1]],
    [p for p in _PAIRS if p[0] == p[1] > 0],
    [p for p in _PAIRS if p[0] < p[1]],
    [(0, 0)],
)
_NEITHER, _PASSES, _MAKES, _ZEROS = range(4)

State = tuple[int, int, int, int]
"""Sign of the numbers so far, columns the going run has passed (-1: none goes), the longest, the longest counted."""


@dataclass(frozen=True)
class _Automaton:
    states: tuple[State, ...]
    step: np.ndarray
    """Next state [state column_type]."""
    labels: np.ndarray
    """Place in `CLASSES` [state], were the question to end there."""
    weights: np.ndarray
    """Digit pairs of each column type."""


def _advance(state: State, kind: int, subtraction: bool, cap: int) -> State:
    sign, run, longest, counted = state
    if kind == _MAKES:
        run, sign = 0, -1
    elif kind == _NEITHER:
        run, sign = -1, 1
    elif run >= 0:
        run = min(run + 1, cap)
    longest = max(longest, run)
    # Two zeros count only once a later column shows that they were not leading ones.
    counted = counted if kind == _ZEROS else longest
    return (sign, run, longest, counted) if subtraction else (0, run, longest, longest)


def _label(state: State, subtraction: bool) -> int:
    sign, _, longest, counted = state
    if not subtraction:
        return CLASSES.index(f"S{longest + 1}")
    if sign < 0:
        return CLASSES.index(f"N{max(counted, 0) + 1}")
    return CLASSES.index(f"M{longest + 1}")


@lru_cache(maxsize=2)
def _automaton(subtraction: bool) -> _Automaton:
    types = _SUB_TYPES if subtraction else _ADD_TYPES
    cap = 3 if subtraction else 4
    start = (0, -1, -1, -1)
    states, table = [start], []
    for state in states:  # grows while it is walked over
        row = []
        for kind in range(len(types)):
            after = _advance(state, kind, subtraction, cap)
            if after not in states:
                states.append(after)
            row.append(states.index(after))
        table.append(row)
    labels = [_label(state, subtraction) for state in states]
    return _Automaton(tuple(states), np.array(table), np.array(labels), np.array([len(t) for t in types]))


def classify(questions: Questions) -> np.ndarray:
    """Class of each question, as its place in `CLASSES`."""
    out = np.zeros(len(questions), dtype=np.int64)
    for subtraction in (False, True):
        rows = np.flatnonzero(questions.minus == subtraction)
        machine = _automaton(subtraction)
        types = _types(questions.first[rows], questions.second[rows], subtraction)
        state = np.zeros(len(rows), dtype=np.int64)
        for i in range(questions.format.digits):
            state = machine.step[state, types[:, i]]
        out[rows] = machine.labels[state]
    return out


def class_names(questions: Questions) -> np.ndarray:
    """Class of each question by name."""
    return np.array(CLASSES)[classify(questions)]


def class_probabilities(form: Format, *, minus: bool = False) -> dict[str, Fraction]:
    """Exact probability of every class under uniform digits, by dynamic programming.

    >>> float(class_probabilities(Format(1))["S1"])
    0.45
    """
    machine = _automaton(minus)
    mass = {0: 1}
    for _ in range(form.digits):
        after: dict[int, int] = defaultdict(int)
        for state, count in mass.items():
            for kind, weight in enumerate(machine.weights):
                after[int(machine.step[state, kind])] += count * int(weight)
        mass = after
    out = {name: Fraction(0) for name in ((*SUB_CLASSES, *NEG_CLASSES) if minus else ADD_CLASSES)}
    for state, count in mass.items():
        out[CLASSES[machine.labels[state]]] += Fraction(count, 100**form.digits)
    return out


def of_class(form: Format, name: str, n: int, seed: int) -> Questions:
    """``n`` questions drawn uniformly among all questions of class ``name``; UsageError where there are none."""
    if name not in CLASSES:
        raise UsageError(f"class {name!r}{nearest(name, CLASSES)}")
    subtraction = name not in ADD_CLASSES
    if subtraction and not form.signed:
        raise UsageError(f"class {name!r} is of subtractions: use Format(signed=True)")
    machine, digits = _automaton(subtraction), form.digits
    ways = [np.where(machine.labels == CLASSES.index(name), 1.0, 0.0)]
    for _ in range(digits):
        ways.append((machine.weights * ways[-1][machine.step]).sum(axis=1) / 100)
    if ways[-1][0] == 0:
        raise UsageError(f"class {name!r} does not exist with {digits} digits: the run is longer than the number")
    rng = np.random.default_rng(seed)
    state = np.zeros(n, dtype=np.int64)
    types = np.zeros((n, digits), dtype=np.int64)
    for i in range(digits):
        odds = machine.weights * ways[digits - 1 - i][machine.step]
        shares = np.cumsum(odds, axis=1) / np.maximum(odds.sum(axis=1, keepdims=True), 1e-300)
        types[:, i] = (rng.random((n, 1)) > shares[state]).sum(axis=1)
        state = machine.step[state, types[:, i]]
    first, second = _pairs(types, subtraction, rng)
    return Questions(form, first, second, np.full(n, subtraction))


def per_class(form: Format, n: int, seed: int, *, operations: str = "add") -> dict[str, Questions]:
    """``n`` questions of every class that exists; ``operations`` is add, sub or mix."""
    names = {"add": ADD_CLASSES, "sub": (*SUB_CLASSES, *NEG_CLASSES), "mix": CLASSES}
    if operations not in names:
        raise UsageError(f"operations={operations!r}{nearest(operations, names)}")
    exists: dict[str, Fraction] = {}
    for minus in (False, True):
        if not minus or form.signed:
            exists |= class_probabilities(form, minus=minus)
    return {
        name: of_class(form, name, n, seed + i)
        for i, name in enumerate(names[operations])
        if exists.get(name, Fraction(0)) > 0
    }


def _types(first: np.ndarray, second: np.ndarray, subtraction: bool) -> np.ndarray:
    if not subtraction:
        total = first + second
        return np.where(total == 9, _PASSES, np.where(total > 9, _MAKES, _NEITHER))
    equal = np.where(first == 0, _ZEROS, _PASSES)
    return np.where(first == second, equal, np.where(first < second, _MAKES, _NEITHER))


def _pairs(types: np.ndarray, subtraction: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    choices = _SUB_TYPES if subtraction else _ADD_TYPES
    table = np.zeros((len(choices), max(map(len, choices)), 2), dtype=np.int64)
    for kind, pairs in enumerate(choices):
        table[kind, : len(pairs)] = pairs
    sizes = np.array([len(pairs) for pairs in choices])
    picks = (rng.random(types.shape) * sizes[types]).astype(np.int64)
    drawn = table[types, picks]
    return drawn[..., 0], drawn[..., 1]
