"""Hits and trials of a calibration, by what was counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cutaway.study import Rate

Asked = tuple[str, str, float | None, float | None]
"""A rate's name, what it counts, and the least and the most it may be."""


@dataclass
class Counts:
    """Hits and trials by what was counted."""

    asked: Sequence[Asked]
    hits: dict[str, int] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, hit: bool) -> None:
        self.hits[name] = self.hits.get(name, 0) + hit
        self.trials[name] = self.trials.get(name, 0) + 1

    def rates(self) -> tuple[Rate, ...]:
        """Return what was asked for; KeyError for a name that was never counted."""
        return tuple(
            Rate(name, self.hits[name], self.trials[name], what=what, at_least=low, at_most=high)
            for name, what, low, high in self.asked
        )
