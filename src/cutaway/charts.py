"""Charts as data: what a study wants drawn, without saying how. The report page draws them, and so can a notebook."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cutaway.errors import UsageError

Numbers = tuple[float | None, ...]


def _plain(numbers: Sequence[float | None]) -> Numbers:
    return tuple(None if x is None or not math.isfinite(x) else float(x) for x in numbers)


@dataclass(frozen=True)
class Series:
    """One line, or one set of bars; gaps are None. ``low`` and ``high`` draw its interval."""

    name: str
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    control: bool = False
    """True for the same quantity where the effect cannot be; drawn in the background."""

    def __post_init__(self) -> None:
        for key in ("y", "low", "high"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, _plain(getattr(self, key)))


@dataclass(frozen=True)
class Chart:
    """Series over one axis: numbers give lines, names give bars."""

    title: str
    x: tuple[float, ...] | tuple[str, ...]
    series: tuple[Series, ...]
    x_label: str = ""
    y_label: str = ""
    note: str = ""
    """One sentence under the chart: what to see, or what to beware of."""
    log_x: bool = False
    kind: Literal["chart"] = "chart"

    def __post_init__(self) -> None:
        for each in self.series:
            wrong = [len(v) for v in (each.y, each.low, each.high) if v is not None and len(v) != len(self.x)]
            if wrong:
                raise UsageError(
                    f"chart {self.title!r}: series {each.name!r} has {wrong[0]} values for {len(self.x)} x"
                )
        if self.log_x and any(isinstance(x, str) or x <= 0 for x in self.x):
            raise UsageError(f"chart {self.title!r}: log_x needs positive numbers on x")


@dataclass(frozen=True)
class Heat:
    """A matrix of numbers by row and column; None is drawn as a gap."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Numbers, ...]
    unit: str = ""
    note: str = ""
    kind: Literal["heat"] = "heat"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(_plain(row) for row in self.values))
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise UsageError(f"heat {self.title!r}: values must be {len(self.rows)} rows of {len(self.columns)}")


def charts_json(charts: Sequence[Chart | Heat]) -> bytes:
    """The artifact ``charts.json`` of a run."""
    return (json.dumps([asdict(chart) for chart in charts], ensure_ascii=False) + "\n").encode()


def charts_from_json(content: bytes) -> tuple[Chart | Heat, ...]:
    """Read back what `charts_json` wrote."""
    return tuple(_heat(each) if each["kind"] == "heat" else _chart(each) for each in json.loads(content))


def _heat(data: dict[str, Any]) -> Heat:
    lists = {key: tuple(data[key]) for key in ("rows", "columns")}
    return Heat(**{**data, **lists, "values": tuple(tuple(row) for row in data["values"])})


def _chart(data: dict[str, Any]) -> Chart:
    series = tuple(_series(each) for each in data["series"])
    return Chart(**{**data, "x": tuple(data["x"]), "series": series})


def _series(data: dict[str, Any]) -> Series:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Series(**fields)
