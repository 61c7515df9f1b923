"""What the ledger hands out: plain records with the judgements computed from the stored facts."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from cutaway.sampling.types import Cost
from cutaway.study import Finding

Verdict = Literal["identical", "within", "outside"]
Status = Literal["reproduced", "changed", "not reproduced"]


@dataclass(frozen=True)
class RunRecord:
    """One run of a study, without its findings and files."""

    id: str
    study: str
    config: Mapping[str, Any]
    seed: int | None
    started: str
    """UTC, ISO 8601."""
    seconds: float
    complete: bool
    summary: str
    inputs: Mapping[str, str]
    """``weights:<name>`` or ``data:<name>`` to sha256."""
    code: str
    """sha256 over the package's own sources."""
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    cost: Cost

    @property
    def state(self) -> Literal["finished", "partial"]:
        return "finished" if self.complete else "partial"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


@dataclass(frozen=True)
class ArtifactRecord:
    """A file of a run, without its content."""

    run: str
    name: str
    sha256: str
    media_type: str
    size: int
    """Bytes."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """Something a run depended on that is different now."""

    kind: Literal["weights", "data", "code", "version", "machine", "state"]
    name: str
    before: str
    after: str

    @property
    def stops(self) -> bool:
        """Whether the change makes the numbers incomparable, so that a recheck stops before the rerun."""
        return self.kind in ("weights", "data")

    def __str__(self) -> str:
        named = self.kind if self.kind in ("code", "state") else f"{self.kind} of {self.name}"
        cut = 8 if self.kind in ("weights", "data", "code") else None
        return f"{named} changed: {self.before[:cut]} -> {self.after[:cut]}"


@dataclass(frozen=True)
class Comparison:
    """One finding before and after; None where a run did not have it."""

    name: str
    before: Finding | None
    after: Finding | None

    @property
    def verdict(self) -> Verdict:
        """``identical``; ``within``: the new value lies in the old interval; ``outside``: anything else.

        Two undefined findings agree whatever their reasons. A finding without interval must be identical.
        """
        before, after = self.before, self.after
        if before is None or after is None:
            return "outside"
        if before == after:
            return "identical"
        if before.value is None or after.value is None:
            return "within" if before.value is after.value else "outside"
        if before.low is None and before.high is None:
            return "identical" if before.value == after.value else "outside"
        above = before.low is None or after.value >= before.low
        return "within" if above and (before.high is None or after.value <= before.high) else "outside"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Recheck:
    """A run examined again: what changed since, and how each finding came out."""

    id: str
    run: str
    rerun: str | None
    """Id of the new run; None when changed weights or data stopped the recheck."""
    changes: tuple[Change, ...]
    comparisons: tuple[Comparison, ...] = ()
    made: str = field(default="")

    @property
    def status(self) -> Status:
        """``reproduced``: every finding identical or within its interval.

        ``changed``: weights or data differ, and the rerun was not made or came out otherwise.
        ``not reproduced``: the same weights and data gave a finding outside its interval.
        """
        agrees = all(each.verdict != "outside" for each in self.comparisons)
        if self.rerun is not None and agrees:
            return "reproduced"
        return "changed" if any(change.stops for change in self.changes) else "not reproduced"

    def __str__(self) -> str:
        same = sum(each.verdict != "outside" for each in self.comparisons)
        counted = f" ({same} of {len(self.comparisons)} findings agree)" if self.rerun else " (not run again)"
        named = "".join(f"; {change}" for change in self.changes)
        return f"run {self.run}: {self.status}{counted}{named}"

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "comparisons": [each.to_dict() for each in self.comparisons],
            "status": self.status,
        }


def now() -> str:
    """UTC time in ISO 8601 with microseconds; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def new_id(*parts: str) -> str:
    """Ten hex digits from what is stored, the time and 64 random bits."""
    return hashlib.sha256("\0".join([*parts, now(), secrets.token_hex(8)]).encode()).hexdigest()[:10]
