"""A written algorithm as a list of claims, each checked against the tags found: valid, invalid or not testable.

A clause is data: which sub-task must be found at which positions and layers, and how often. The language knows
nothing of arithmetic, only names, numbers and positions, so any model with tagged nodes can be checked with it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cutaway.errors import UsageError

Outcome = Literal["valid", "invalid", "not testable"]


@dataclass(frozen=True)
class Fact:
    """Something found: ``tag`` (a sub-task, or any other name) at a position, layer and head."""

    tag: str
    position: int
    layer: int
    head: int | None = None
    digit: int | None = None
    """The answer digit it is for, where there is one."""


@dataclass(frozen=True)
class Clause:
    """At least ``least`` and at most ``most`` facts with this tag (and digit) lie between these positions and layers.

    ``least=0, most=0`` says that there is none.
    """

    says: str
    tag: str
    digit: int | None = None
    first: int | None = None
    """First position allowed; None: any."""
    last: int | None = None
    layers: tuple[int, ...] | None = None
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least < 0 or (self.most is not None and self.most < self.least):
            raise UsageError(f"clause {self.says!r}: least={self.least}, most={self.most} allows nothing")

    def covers(self, fact: Fact) -> bool:
        """Whether a fact is one of those counted."""
        return (
            fact.tag == self.tag
            and (self.digit is None or fact.digit == self.digit)
            and (self.first is None or fact.position >= self.first)
            and (self.last is None or fact.position <= self.last)
            and (self.layers is None or fact.layer in self.layers)
        )


@dataclass(frozen=True)
class Verdict:
    """A clause with its outcome and why."""

    clause: Clause
    outcome: Outcome
    reason: str
    facts: tuple[Fact, ...] = ()

    def __str__(self) -> str:
        return f"{self.outcome}: {self.clause.says} ({self.reason})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"says": self.clause.says, "outcome": self.outcome, "reason": self.reason, "facts": len(self.facts)}


def check(clauses: Sequence[Clause], facts: Collection[Fact], searched: Collection[str]) -> tuple[Verdict, ...]:
    """Check every clause. One whose tag was never ``searched`` for is not testable, whatever the facts."""
    return tuple(_check(clause, facts, set(searched)) for clause in clauses)


def _check(clause: Clause, facts: Collection[Fact], searched: set[str]) -> Verdict:
    if clause.tag not in searched:
        return Verdict(clause, "not testable", f"{clause.tag} was not searched for")
    hits = tuple(fact for fact in facts if clause.covers(fact))
    wanted = f"at least {clause.least}" if clause.most is None else f"{clause.least} to {clause.most}"
    good = clause.least <= len(hits) and (clause.most is None or len(hits) <= clause.most)
    return Verdict(clause, "valid" if good else "invalid", f"found {len(hits)}, wanted {wanted}", hits)
