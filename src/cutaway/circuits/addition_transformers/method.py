"""One-layer addition as a falsifiable claim: the algorithm as code, its rivals, and a verdict with counter-examples.

The published account (Quirke, Barez 2023): at the position before answer digit i one head adds column i, one tells
carry, nine or neither for column i - 1, one tells the carry of column i - 2. As code: A_i = (D_i + D'_i + c) mod 10
with c = 1 if column i - 1 makes a carry, or sums to 9 while column i - 2 makes one. So a carry that must run
through two columns or more comes out wrong, and it is known beforehand on which questions.

1. `predict` executes the claim or a rival: no carry, one column below, two below (the claim), full addition.
2. `agreement` compares a model's digits with each of them, on all questions and, the strict part, on those where
   the claim and true arithmetic differ.
3. `verdict` accepts the claim when at least `ACCEPT` of the disagreement set has exactly its digits, else rejects
   it and shows counter-examples.
4. `staircase` says how much each head attends to the digit pair it should; `damage_by_class` compares heads.

Traps: heads are found by role, never by number. Answers are read with the true answer before them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cutaway.circuits.arithmetic import Format, Questions, Scores, answer_tokens, chain, join, uniform
from cutaway.circuits.arithmetic.ablate import AblationMap
from cutaway.circuits.arithmetic.roles import Roles
from cutaway.errors import UsageError
from cutaway.stats import Interval, wilson

ACCEPT = 0.98
"""Agreement on the disagreement set that the claim needs."""
RIVALS: dict[str, int | None] = {"no carry": 0, "one column below": 1, "two columns below": 2, "full addition": None}
"""Columns below that each account looks at; None: all of them."""
CLAIM = "two columns below"


def predict(questions: Questions, below: int | None) -> Int[np.ndarray, "question token"]:
    """Answer tokens by an account that looks ``below`` columns down (None: all): additions only.

    >>> form = Format(3)
    >>> from cutaway.circuits.arithmetic import from_text
    >>> predict(from_text(form, ["995+005"]), 2).tolist()  # the carry would have to run through two nines
    [[0, 0, 0, 0]]
    """
    if questions.minus.any():
        raise UsageError("the claim is about additions; give questions with + only")
    total = questions.first + questions.second
    n, digits = total.shape
    out = np.zeros((n, digits + 1), dtype=np.int64)
    for i in range(digits + 1):
        carry = np.zeros(n, dtype=bool)
        start = 0 if below is None else max(0, i - below)
        for j in range(start, i):
            carry = (total[:, j] >= 10) | ((total[:, j] == 9) & carry)
        out[:, i] = (carry + (total[:, i] if i < digits else 0)) % 10
    return answer_tokens(questions.format, out, questions.negative)


def question_suite(form: Format, n: int, seed: int) -> Questions:
    """``n`` uniform additions and as many with a chain, spread evenly over every start and length of 1 or more."""
    places = [(start, length) for length in range(1, form.digits) for start in range(form.digits - length)]
    each = -(-n // max(1, len(places)))
    chains = [chain(form, start, length, each, seed + 1 + i) for i, (start, length) in enumerate(places)]
    return join([uniform(form, n, seed), *chains])


@dataclass(frozen=True)
class Agreement:
    """How one account fares against a model."""

    name: str
    everywhere: Interval
    """Share of all questions with exactly its digits."""
    disputed: Interval
    """The same where the claim and true arithmetic differ."""


@dataclass(frozen=True)
class Judged:
    """The claim accepted or rejected, with every account's agreement and the questions that speak against it."""

    accepted: bool
    agreements: tuple[Agreement, ...]
    against: tuple[str, ...]
    """Counter-examples: question, the model's answer, the claim's."""

    def __repr__(self) -> str:
        own = self.of(CLAIM).disputed
        return (
            f"Judged(hypothesis {'accepted' if self.accepted else 'rejected'}: agrees on {own} of disputed, n={own.n})"
        )

    def of(self, name: str) -> Agreement:
        """One account's agreement."""
        return next(each for each in self.agreements if each.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        rows = [
            {"name": a.name, "everywhere": a.everywhere.value, "disputed": a.disputed.value, "n": a.disputed.n}
            for a in self.agreements
        ]
        return {"accepted": self.accepted, "agreements": rows, "against": list(self.against)}


def judge(scores: Scores, *, shown: int = 10) -> Judged:
    """Accept or reject the claim on a scored set; UsageError when no question disputes it."""
    questions, said = scores.questions, scores.predicted
    claim = predict(questions, RIVALS[CLAIM])
    disputed = (claim != questions.answer_tokens).any(axis=1)
    if not disputed.any():
        raise UsageError("no question has a carry running through two columns; add chains (see question_suite)")
    found = []
    for name, below in RIVALS.items():
        same = (predict(questions, below) == said).all(axis=1)
        found.append(Agreement(name, _share(same), _share(same[disputed])))
    accepted = next(a for a in found if a.name == CLAIM).disputed.value >= ACCEPT
    against = np.flatnonzero(disputed & (claim != said).any(axis=1))[: 0 if accepted else shown]
    symbols = np.array(list(questions.format.symbols))
    texts = questions.texts()
    lines = tuple(
        f"{texts[i].split('=')[0]}= model {''.join(symbols[said[i]])}, claim {''.join(symbols[claim[i]])}"
        for i in against
    )
    return Judged(accepted, tuple(found), lines)


def chain_accuracy(scores: Scores) -> dict[int, tuple[Interval, Interval]]:
    """By longest chain (-1: no carry): accuracy of the model, and of the claim on the same questions."""
    columns, questions = scores.questions.columns, scores.questions
    length = np.full(len(questions), -1)
    run = np.full(len(questions), -1)
    for i in range(questions.format.digits):
        going = (run >= 0) & columns.passes[:, i]
        run = np.where(columns.makes[:, i], 0, np.where(going, run + 1, -1))
        length = np.maximum(length, run)
    right = scores.right
    claim = (predict(questions, RIVALS[CLAIM]) == questions.answer_tokens).all(axis=1)
    return {int(k): (_share(right[length == k]), _share(claim[length == k])) for k in np.unique(length)}


def staircase(
    attention: Float[np.ndarray, "layer head pos key"], form: Format
) -> Float[np.ndarray, "layer head shift"]:
    """Mean attention mass on the digit pair ``shift`` columns below the one predicted, over answer positions.

    1 everywhere for a head that reads exactly that pair; 2 / (visible positions) for one that spreads evenly.
    """
    shifts = range(min(3, form.digits))
    out = np.zeros((*attention.shape[:2], len(shifts)))
    for shift in shifts:
        seen = [i for i in range(form.digits + 1) if 0 <= i - shift < form.digits]
        for i in seen:
            pair = [form.first(i - shift), form.second(i - shift)]
            out[:, :, shift] += attention[:, :, form.predicts(i)][..., pair].sum(-1) / len(seen)
    return out


def early_pattern(positions: AblationMap) -> Bool[np.ndarray, " digit"]:
    """Whether the position that hurts each answer digit most is the one before it stands (A0 to A_n)."""
    form = positions.questions.format
    shares = positions.broken_tokens
    places = [node.position for node in positions.nodes]
    worst = [places[int(shares[:, form.column(i)].argmax())] for i in range(form.digits + 1)]
    return np.array([place == form.predicts(i) for i, place in enumerate(worst)])


@dataclass(frozen=True)
class BaseHead:
    """The head whose ablation harms questions without carries most, and how much more than the next one."""

    head: tuple[int, int]
    rise: Interval
    next_rise: Interval

    @property
    def ratio(self) -> float:
        """Its rise over the next head's."""
        return self.rise.value / max(self.next_rise.value, 1e-12)


def base_head(heads: AblationMap, rows: Bool[np.ndarray, " question"] | None = None) -> BaseHead:
    """Find it among whole heads, on the questions of class S0 (or ``rows``)."""
    chosen = np.array(heads.classes) == "S0" if rows is None else rows
    rise = heads.rise(chosen)
    order = np.argsort(-rise.value)
    best, second = heads.nodes[int(order[0])], int(order[1])
    assert best.layer is not None
    assert best.head is not None
    return BaseHead((best.layer, best.head), rise.interval(int(order[0])), rise.interval(second))


def roles_by_shift(roles: Roles) -> dict[tuple[int, int], dict[str, int]]:
    """For each head: how many of its strong or shared tags are of which job.

    Jobs: ``base`` (own column), ``case 1`` (column below), ``case 2`` (two below), and so on.
    """
    out: dict[tuple[int, int], dict[str, int]] = {}
    for tag in roles.tags:
        if tag.strength == "weak" or tag.task.digit is None:
            continue
        shift = tag.task.digit - tag.task.column
        job = "base" if tag.task.variable == "base" else f"case {shift}"
        for node in tag.nodes:
            if node.layer is not None and node.head is not None:
                jobs = out.setdefault((node.layer, node.head), {})
                jobs[job] = jobs.get(job, 0) + 1
    return out


def _share(hits: Sequence[bool] | np.ndarray) -> Interval:
    return wilson(int(np.sum(hits)), len(hits))
