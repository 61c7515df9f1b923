"""Interchange: put a node's output on one question into the run of another, and ask for the exact predicted answer.

Arithmetic is a causal model with two variables a column: its base and its three-way case (makes, passes on,
neither). A sub-task says that a node carries one of them. The test draws pairs of questions that differ there,
computes by arithmetic what the clean question's answer becomes when the variable is overwritten with the store
question's, patches the node, and counts exact matches of the whole answer. Pairs whose answer would not change
are never drawn, so doing nothing scores 0.

Two backgrounds: *other*, where all other columns differ too (the node must carry nothing else that matters), and
*same*, where the two questions differ in that column alone (the node may carry more). Both are free of carries
except where the sub-task needs one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.nodes import Group, Node, Record, answers_with, record
from cutaway.circuits.arithmetic.questions import KINDS, Kind, Questions, answer_digits, answer_tokens
from cutaway.errors import UsageError, nearest
from cutaway.model import Model

Background = Literal["other", "same"]
NAMES: dict[Kind, tuple[str, str, str]] = {
    "ADD": ("SA", "SC", "ST"),
    "SUB": ("MD", "MB", "MT"),
    "NEG": ("ND", "NB", "NT"),
}
"""Names of base, two-way and three-way case for each kind of question."""
WHOLE = {"ADD": "A+", "SUB": "A-", "NEG": "A-neg"}
"""The answer digit itself, which the last MLPs write."""


@dataclass(frozen=True)
class Task:
    """A sub-task: the variable, the column it is about, the answer digit it is computed for (None: all of them)."""

    name: str
    column: int
    digit: int | None

    def __post_init__(self) -> None:
        known = [*(name for names in NAMES.values() for name in names), *WHOLE.values()]
        if self.name not in known:
            raise UsageError(f"sub-task {self.name!r}{nearest(self.name, known)}")
        if self.digit is not None and self.digit < self.column:
            raise UsageError(f"{self}: column {self.column} has no say in the lower digit {self.digit}")

    def __str__(self) -> str:
        return f"{self.name}{self.column}" + ("" if self.digit in (None, self.column) else f" for A{self.digit}")

    @property
    def kind(self) -> Kind:
        """ADD, SUB or NEG."""
        return next(kind for kind in KINDS if self.name in (*NAMES[kind], WHOLE[kind]))

    @property
    def variable(self) -> Literal["base", "two", "three", "answer"]:
        """What is overwritten."""
        if self.name == WHOLE[self.kind]:
            return "answer"
        return ("base", "two", "three")[NAMES[self.kind].index(self.name)]


@dataclass(frozen=True)
class Pairs:
    """Store and clean questions, and the answer tokens that the patched run must give."""

    task: Task
    store: Questions
    clean: Questions
    expected: Int[np.ndarray, "pair token"]
    shuffled: Int[np.ndarray, "pair token"]
    """The control: what would be expected from another pair's store question."""


def draw_pairs(form: Format, task: Task, n: int, seed: int, background: Background = "other") -> Pairs:
    """``n`` pairs for a sub-task; UsageError for one that this format cannot have."""
    digits = form.digits
    if not 0 <= task.column < digits or (task.digit is not None and task.digit > digits):
        raise UsageError(f"{task}: a format of {digits} digits has columns 0 to {digits - 1}")
    if task.kind != "ADD" and not form.signed:
        raise UsageError(f"{task}: subtraction needs Format(signed=True)")
    rng = np.random.default_rng(seed)
    top = digits - 1
    if task.kind != "ADD" and task.column == top and task.variable in ("two", "three"):
        raise UsageError(f"{task}: the top column of a subtraction decides its sign; it makes no borrow")
    found: list[tuple[Questions, Questions, np.ndarray, np.ndarray]] = []
    kept = 0
    for _ in range(100):
        clean_case, store_case = _cases(form, task, 2 * n, rng)
        clean = _questions(form, task.kind, clean_case, rng)
        store = _questions(form, task.kind, store_case, rng)
        if background == "same":
            store = _graft(clean, store, task.column)
        expected = overwritten(task, clean, store)
        shuffled = overwritten(task, clean, store[np.roll(np.arange(len(store)), 1)])
        use = (expected != clean.answer_tokens).any(axis=1)
        found.append((store[use], clean[use], expected[use], shuffled[use]))
        kept += int(use.sum())
        if kept >= n:
            break
    if kept < n:
        raise UsageError(f"{task}: no pair of questions of {digits} digits differs there")
    parts = [np.concatenate([getattr(q, key) for _, q, _, _ in found])[:n] for key in ("first", "second", "minus")]
    stores = [np.concatenate([getattr(q, key) for q, _, _, _ in found])[:n] for key in ("first", "second", "minus")]
    wanted, other = (np.concatenate([each[at] for each in found])[:n] for at in (2, 3))
    return Pairs(task, Questions(form, *stores), Questions(form, *parts), wanted, other)


def overwritten(task: Task, clean: Questions, store: Questions) -> Int[np.ndarray, "pair token"]:
    """Answer tokens of ``clean`` when the task's variable is overwritten with that of ``store``."""
    base, case = clean.columns.base.copy(), clean.columns.case.copy()
    if task.variable == "answer":
        digits = clean.answer.copy()
        digits[:, task.column] = store.answer[:, task.column]
        return answer_tokens(clean.format, digits, clean.negative)
    if task.variable == "base":
        base[:, task.column] = store.columns.base[:, task.column]
    else:
        case[:, task.column] = store.columns.case[:, task.column]
    changed = answer_digits(base, case, clean.minus)
    if task.digit is not None:
        digits = clean.answer.copy()
        digits[:, task.digit] = changed[:, task.digit]
        changed = digits
    return answer_tokens(clean.format, changed, clean.negative)


def _cases(form: Format, task: Task, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Three-way case of every column of the clean and of the store questions."""
    clean, store = (np.full((n, form.digits), -1) for _ in range(2))
    j = task.column
    if task.variable in ("base", "answer"):
        top = task.kind != "ADD" and j == form.digits - 1
        for case in (clean, store):
            case[:, j] = -1 if top else rng.integers(-1, 2, n)
        return clean, store
    choices = np.array([-1, 1]) if task.variable == "two" else np.array([-1, 0, 1])
    clean[:, j], store[:, j] = rng.choice(choices, n), rng.choice(choices, n)
    if task.variable == "three":
        # A column that passes on must be told from both others, with and without a carry from below.
        whether = (clean[:, j] == 0) | (store[:, j] == 0)
        store[:, j] = np.where(whether, store[:, j], 0)
        if j > 0:
            clean[:, j - 1] = rng.choice([-1, 1], n)
            store[:, j - 1] = rng.choice([-1, 1], n)
    if task.digit is not None:
        clean[:, j + 1 : task.digit] = 0
        store[:, j + 1 : task.digit] = 0
    return clean, store


def _questions(form: Format, kind: Kind, case: np.ndarray, rng: np.random.Generator) -> Questions:
    """Questions with these cases, digits uniform given them."""
    a, b = rng.integers(0, 10, (2, *case.shape))
    low, high = np.minimum(a, b), np.maximum(a, b)
    # A column that neither makes nor passes on: first digit above the second, as if it were a subtraction.
    apart = np.where(low == high, (high + 1) % 10, high)
    low, high = np.minimum(low, apart), np.maximum(low, apart)
    first = np.where(case == -1, high, np.where(case == 0, a, low))
    second = np.where(case == -1, low, np.where(case == 0, a, high))
    if kind == "ADD":
        second = 9 - second  # D > D' becomes D + (9 - D') > 9
        first, second = 9 - first, 9 - second
    elif kind == "NEG":
        first, second = second, first
    return Questions(form, first, second, np.full(len(case), kind != "ADD"))


def _graft(clean: Questions, store: Questions, column: int) -> Questions:
    """The clean questions with one column taken from the store."""
    first, second = clean.first.copy(), clean.second.copy()
    first[:, column], second[:, column] = store.first[:, column], store.second[:, column]
    return Questions(clean.format, first, second, clean.minus)


@dataclass(frozen=True)
class Patched:
    """What came out of patching each group with each pair's store value."""

    matches: Bool[np.ndarray, "group pair"]
    """The whole answer is exactly as predicted."""
    shuffled: Bool[np.ndarray, "group pair"]
    """It is as another pair's store would predict."""
    touched: Bool[np.ndarray, "group pair"]
    """The right answer tokens changed, whatever their values."""


def patch(model: Model, pairs: Pairs, groups: Sequence[Group]) -> Patched:
    """Patch every group on every pair at once."""
    form = pairs.clean.format
    clean, store = record(model, pairs.clean), record(model, pairs.store)
    before = clean_answers(model, form, clean)
    after = answers_with(model, form, clean, groups, store.value).predicted
    should = pairs.expected != pairs.clean.answer_tokens
    return Patched(
        (after == pairs.expected).all(axis=2),
        (after == pairs.shuffled).all(axis=2),
        ((after != before) == should).all(axis=2),
    )


def clean_answers(model: Model, form: Format, clean: Record) -> Int[np.ndarray, "question token"]:
    """What the unpatched model answers."""
    return answers_with(model, form, clean, [(Node(0, model.n_layers - 1),)], clean.value).predicted[0]
