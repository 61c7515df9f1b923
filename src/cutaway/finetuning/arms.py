"""Arms of an experiment: the same measures for each way to train, over repeats, with intervals and differences.

A measure is one number a repeat. Where it is a share of test items, their number is given: its interval is then no
narrower than Wilson's for one repeat's items, since repeats that agree say nothing about other items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.charts import Chart, Series
from cutaway.errors import UsageError, nearest
from cutaway.stats import Interval, covering, mean_interval, newcombe, paired_difference, wilson
from cutaway.study import Finding

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Arm:
    """One way to train, measured once a repeat."""

    name: str
    values: Mapping[str, tuple[float, ...]]
    """Measure to one value a repeat."""
    control: bool = False
    """An arm in which the effect cannot be, or that a cheaper way offers."""


@dataclass(frozen=True, repr=False)
class Arms:
    """What every arm reached."""

    arms: tuple[Arm, ...]
    items: Mapping[str, int] = field(default_factory=dict)
    """Test items behind a measure that is a share."""
    complete: bool = True
    """False when Ctrl-C ended it early."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            for measure in self.items:
                if any(not 0 <= value <= 1 for value in arm.values.get(measure, ())):
                    raise UsageError(f"{measure} of {arm.name!r}: a share of items lies between 0 and 1")

    def __repr__(self) -> str:
        measure = next(iter(self.arms[0].values)) if self.arms else ""
        shown = ", ".join(f"{arm.name} {self.interval(arm.name, measure)!r}" for arm in self.arms)
        return f"Arms({measure}: {shown})"

    def __getitem__(self, name: str) -> Arm:
        found = next((arm for arm in self.arms if arm.name == name), None)
        if found is None:
            raise UsageError(f"arm {name!r}{nearest(name, [arm.name for arm in self.arms])}")
        return found

    def mean(self, name: str, measure: str) -> float:
        """Mean over repeats."""
        return float(np.mean(self._values(name, measure)))

    def interval(self, name: str, measure: str, level: float = 0.95) -> Interval:
        """Mean over repeats with its interval; ``n`` counts repeats, or test items for a share."""
        return self._widened(mean_interval(self._values(name, measure), level), name, measure, level)

    def difference(self, a: str, b: str, measure: str, level: float = 0.95) -> Interval:
        """Mean of ``a - b`` over repeats, paired, with its interval."""
        found = paired_difference(self._values(a, measure), self._values(b, measure), level)
        n = self.items.get(measure)
        if n is None:
            return found
        hits = [round(self.mean(name, measure) * n) for name in (a, b)]
        return replace(covering(found, newcombe(hits[0], n, hits[1], n, level), -1.0, 1.0), n=n)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an arm, repeat and measure."""
        import pandas as pd

        rows = [
            {"arm": arm.name, "measure": measure, "repeat": repeat, "value": value}
            for arm in self.arms
            for measure, values in arm.values.items()
            for repeat, value in enumerate(values)
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        arms = [
            {"name": a.name, "control": a.control, "values": {k: list(v) for k, v in a.values.items()}}
            for a in self.arms
        ]
        return {"arms": arms, "items": dict(self.items), "complete": self.complete}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def chart(self, measures: Sequence[str], title: str, *, label: str = "", note: str = "") -> Chart:
        """Return bars: one an arm, measures side by side."""
        series = []
        for measure in measures:
            found = [self.interval(arm.name, measure) if measure in arm.values else None for arm in self.arms]
            value, low, high = (
                tuple(None if each is None else getattr(each, key) for each in found)
                for key in ("value", "low", "high")
            )
            series.append(Series(measure, value, low, high))
        return Chart(title, tuple(arm.name for arm in self.arms), tuple(series), "", label, note)

    def _values(self, name: str, measure: str) -> tuple[float, ...]:
        values = self[name].values
        if measure not in values:
            raise UsageError(f"measure {measure!r} of {name!r}{nearest(measure, values)}")
        return values[measure]

    def _widened(self, found: Interval, name: str, measure: str, level: float) -> Interval:
        n = self.items.get(measure)
        if n is None:
            return found
        return replace(covering(found, wilson(round(found.value * n), n, level), 0.0, 1.0), n=n)


def gather(runs: Sequence[Mapping[str, Mapping[str, float]]], controls: Sequence[str] = ()) -> tuple[Arm, ...]:
    """Return arms from repeats: each maps an arm's name to its measures. Repeats must name the same arms."""
    if not runs:
        return ()
    names = list(runs[0])
    if any(list(run) != names for run in runs):
        raise UsageError("repeats name different arms")
    return tuple(
        Arm(name, {key: tuple(float(run[name][key]) for run in runs) for key in runs[0][name]}, name in controls)
        for name in names
    )


def share(name: str, values: Sequence[float], items: int, control: Finding | None = None) -> Finding:
    """Return the mean over repeats of a share of ``items``, as a finding."""
    found = Arms((Arm(name, {name: tuple(values)}),), {name: items}).interval(name, name)
    return Finding.of(name, found, control=control)
