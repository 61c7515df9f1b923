"""Questions as arrays of digits, their answers column by column, and how batches of them are drawn.

Everything works on digits, never on Python integers, so 20-digit numbers are exact. A column is a digit place,
counted from the units. For an addition a column's base is (D + D') mod 10, it *makes* a carry when D + D' >= 10
and *passes* one on when D + D' = 9. For a subtraction with answer >= 0 the base is (D - D') mod 10, a borrow is
made when D < D' and passed on when D = D'; for a negative answer the numbers change places first.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from cutaway.circuits.arithmetic.format import Format
from cutaway.errors import UsageError

Kind = Literal["ADD", "SUB", "NEG"]
KINDS: tuple[Kind, ...] = ("ADD", "SUB", "NEG")
SETS = ("plain", "carried", "cascaded")
"""The disjoint sets of cells whose loss is followed: nothing arrives; it arrives; it arrives and is passed on."""


@dataclass(frozen=True)
class Columns:
    """What happens in each column; all [question digit], units first."""

    base: Int[np.ndarray, "question digit"]
    """The column's own result without what arrives (SA, MD, ND)."""
    makes: Bool[np.ndarray, "question digit"]
    """A carry or borrow is made here (SC, MB, NB)."""
    passes: Bool[np.ndarray, "question digit"]
    """What arrives is passed on (SS, MZ, NZ)."""
    arrives: Bool[np.ndarray, "question digit"]
    """A carry or borrow arrives from below, cascades included (SV of the column below)."""
    down: Bool[np.ndarray, " question"]
    """True where what arrives is taken off (subtraction)."""

    @property
    def case(self) -> Int[np.ndarray, "question digit"]:
        """The three-way value (ST, MT, NT): 1 makes, 0 passes on, -1 neither."""
        return self.makes.astype(np.int64) - (~self.makes & ~self.passes)

    @property
    def sets(self) -> Int[np.ndarray, "question digit"]:
        """Place in `SETS` of every cell."""
        return self.arrives.astype(np.int64) + (self.arrives & self.passes)


def answer_digits(
    base: Int[np.ndarray, "question digit"],
    case: Int[np.ndarray, "question digit"],
    down: Bool[np.ndarray, " question"],
) -> Int[np.ndarray, "question answer"]:
    """Answer digits, units first, that follow from each column's base and three-way value.

    This is arithmetic written as a causal model: overwrite one entry and the answer says what should change.
    """
    n, digits = base.shape
    arrives = np.zeros(n, dtype=np.int64)
    out = np.zeros((n, digits + 1), dtype=np.int64)
    for i in range(digits):
        out[:, i] = (base[:, i] + np.where(down, -arrives, arrives)) % 10
        arrives = np.where(case[:, i] == 0, arrives, (case[:, i] == 1).astype(np.int64))
    out[:, digits] = np.where(down, 0, arrives)
    return out


@dataclass(frozen=True)
class Questions:
    """A set of questions in one format."""

    format: Format
    first: Int[np.ndarray, "question digit"]
    """Digits of the first number, units first."""
    second: Int[np.ndarray, "question digit"]
    minus: Bool[np.ndarray, " question"]
    """True where the operator is a minus."""

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            values = getattr(self, name)
            if values.shape[1] != self.format.digits:
                raise UsageError(f"{name} has {values.shape[1]} digits: the format has {self.format.digits}")
            if values.size and (values.min() < 0 or values.max() > 9):
                raise UsageError(f"{name} holds {values.min()}..{values.max()}: digits are 0 to 9")
        if not len(self.first) == len(self.second) == len(self.minus):
            raise UsageError(f"{len(self.first)} first and {len(self.second)} second numbers: give pairs")
        if self.minus.any() and not self.format.signed:
            raise UsageError("operator '-' needs Format(signed=True): the answer can be negative")

    def __len__(self) -> int:
        return len(self.minus)

    def __getitem__(self, rows: slice | np.ndarray) -> "Questions":
        return Questions(self.format, self.first[rows], self.second[rows], self.minus[rows])

    @cached_property
    def negative(self) -> Bool[np.ndarray, " question"]:
        """Subtractions whose answer is below zero; an answer of zero is not."""
        gap = np.sign(self.first - self.second)
        order = np.zeros(len(self), dtype=np.int64)
        for i in range(self.format.digits):
            order = np.where(gap[:, i] == 0, order, gap[:, i])
        return self.minus & (order < 0)

    @cached_property
    def columns(self) -> Columns:
        """What happens in each column."""
        down = self.minus
        larger = np.where(self.negative[:, None], self.second, self.first)
        smaller = np.where(self.negative[:, None], self.first, self.second)
        total = np.where(down[:, None], larger - smaller, larger + smaller)
        makes = np.where(down[:, None], total < 0, total >= 10)
        passes = np.where(down[:, None], total == 0, total == 9)
        arrives = np.zeros(total.shape, dtype=bool)
        for i in range(1, total.shape[1]):
            arrives[:, i] = makes[:, i - 1] | (passes[:, i - 1] & arrives[:, i - 1])
        return Columns(total % 10, makes, passes, arrives, down)

    @cached_property
    def answer(self) -> Int[np.ndarray, "question answer"]:
        """Digits of the answer without its sign, units first."""
        return answer_digits(self.columns.base, self.columns.case, self.minus)

    @cached_property
    def answer_tokens(self) -> Int[np.ndarray, "question token"]:
        """The answer as tokens: sign where there is one, then digits, most significant first."""
        return answer_tokens(self.format, self.answer, self.negative)

    @cached_property
    def tokens(self) -> Int[np.ndarray, "question pos"]:
        """Whole rows, the answer included."""
        form, n = self.format, len(self)
        operator = np.full((n, 1), form.token("+"))
        if form.signed:
            operator[self.minus] = form.token("-")
        equals = np.full((n, 1), form.token("="))
        asked = (self.first[:, ::-1], operator, self.second[:, ::-1], equals)
        return np.concatenate((*asked, self.answer_tokens), axis=1)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens, dtype="<i8").tobytes()).hexdigest()

    def texts(self) -> list[str]:
        """Rows as text, such as ``12345+54321=066666``."""
        symbols = np.array(list(self.format.symbols))
        return ["".join(row) for row in symbols[self.tokens]]


def answer_tokens(
    form: Format, digits: Int[np.ndarray, "question answer"], negative: Bool[np.ndarray, " question"]
) -> Int[np.ndarray, "question token"]:
    """Answer digits (units first) as the format writes them."""
    written = digits[:, ::-1]
    if not form.signed:
        return written
    sign = np.where(negative, form.token("-"), form.token("+"))[:, None]
    return np.concatenate((sign, written), axis=1)


def join(parts: Sequence[Questions]) -> Questions:
    """Several sets of one format as one."""
    if not parts or len({part.format for part in parts}) > 1:
        raise UsageError("join takes at least one set of questions, all of one format")
    first, second, minus = (np.concatenate([getattr(p, key) for p in parts]) for key in ("first", "second", "minus"))
    return Questions(parts[0].format, first, second, minus)


def from_text(form: Format, texts: Sequence[str]) -> Questions:
    """Read questions such as ``"12345+54321"``; both numbers must have the format's number of digits."""
    first, second, minus = [], [], []
    for text in texts:
        place = max(text.find("+", 1), text.find("-", 1))
        if place < 0:
            raise UsageError(f"question {text!r}: write two numbers with + or - between them")
        numbers = text[:place], text[place + 1 :].split("=")[0]
        for number in numbers:
            if not (number.isascii() and number.isdigit()):
                raise UsageError(f"question {text!r}: {number!r} is not a number of plain digits 0-9")
            if len(number) != form.digits:
                raise UsageError(f"question {text!r}: {number!r} has {len(number)} digits, the format {form.digits}")
        first.append([int(c) for c in reversed(numbers[0])])
        second.append([int(c) for c in reversed(numbers[1])])
        minus.append(text[place] == "-")
    shape = (len(texts), form.digits)
    return Questions(form, np.array(first).reshape(shape), np.array(second).reshape(shape), np.array(minus, dtype=bool))


def uniform(form: Format, n: int, seed: int, *, minus: bool | float = False) -> Questions:
    """``n`` questions with every digit uniform; ``minus`` is the share of subtractions (drawn one by one)."""
    rng = np.random.default_rng(seed)
    return Questions(form, *_digits(rng, form, n), rng.random(n) < float(minus))


def _digits(rng: np.random.Generator, form: Format, n: int) -> tuple[np.ndarray, np.ndarray]:
    if n < 0:
        raise UsageError(f"n={n}: a number of questions")
    drawn = rng.integers(0, 10, (2, n, form.digits))
    return drawn[0], drawn[1]


def training_batch(
    form: Format, n: int, rng: np.random.Generator, *, minus: bool | float, batches: float, cells: float
) -> Questions:
    """One training batch, enriched with probability ``batches``.

    An enriched addition has a share ``cells`` of its columns made to sum to 9, by changing the first or the
    second number (one of them for the batch). An enriched subtraction gets, with probability 1/100, two equal
    numbers, else 1 is added to every second digit below 9, which makes more answers negative. ``minus`` is one
    operation for the whole batch (True, False) or the share of subtractions, question by question.
    """
    first, second = _digits(rng, form, n)
    taken = np.full(n, minus) if isinstance(minus, bool) else rng.random(n) < minus
    if rng.random() < batches:
        nines = (rng.random(first.shape) < cells) & ~taken[:, None]
        if rng.random() < 0.5:
            second = np.where(nines, 9 - first, second)
        else:
            first = np.where(nines, 9 - second, first)
        equal = taken & (rng.random(n) < 0.01)
        raised = np.where(taken[:, None], np.minimum(second + 1, 9), second)
        second = np.where(equal[:, None], first, raised)
    return Questions(form, first, second, taken)


def chain(form: Format, start: int, length: int, n: int, seed: int) -> Questions:
    """``n`` additions with a carry made in column ``start`` that runs through exactly ``length`` columns of sum 9.

    The column after the chain does not sum to 9, and no other column makes a longer chain by itself being part
    of this one; the rest is uniform.
    """
    if length < 0 or start < 0 or start + length >= form.digits:
        raise UsageError(f"chain start={start}, length={length}: does not fit into {form.digits} digits")
    rng = np.random.default_rng(seed)
    first, second = _digits(rng, form, n)
    first[:, start] = rng.integers(1, 10, n)
    second[:, start] = 10 - first[:, start] + (rng.random(n) * first[:, start]).astype(np.int64)
    inside = slice(start + 1, start + 1 + length)
    second[:, inside] = 9 - first[:, inside]
    after = start + length + 1
    if after < form.digits:
        # A sum of 9 is moved off by one, up or down by coin where both are possible.
        nine = first[:, after] + second[:, after] == 9
        up = np.where(second[:, after] == 9, False, (second[:, after] == 0) | (rng.random(n) < 0.5))
        second[:, after] += np.where(nine, np.where(up, 1, -1), 0)
    return Questions(form, first, second, np.zeros(n, dtype=bool))
