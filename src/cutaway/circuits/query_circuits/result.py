"""What a search found: NDF of each query, way and size; curves with bands, areas, gains, smallest sizes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.integrate import trapezoid

from cutaway.circuits.graph import CircuitGraph
from cutaway.errors import UsageError, nearest
from cutaway.stats import Interval, bootstrap, paired_difference, wilson

if TYPE_CHECKING:
    import pandas as pd

    from cutaway.charts import Chart

CHOSEN = "the query itself"
"""Where winners are chosen; every other place is held out."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class Searched:
    """The circuits of one query."""

    name: str
    group: str
    full: float
    """L(M(q)): the measure with all edges."""
    none: float
    """L(M(q')): the measure of the corrupted prompt."""
    candidates: Mapping[str, Float[np.ndarray, "candidate size"]]
    """NDF on the query; NaN where it is undefined."""
    winners: Mapping[str, Int[np.ndarray, " size"]]
    """The best candidate of each way and size."""
    ndf: Mapping[str, Float[np.ndarray, " size"]]
    """Of the winners, on the query, where they were chosen."""
    kept: Mapping[str, Int[np.ndarray, " size"]]
    """Edges of the winners left after pruning."""
    held_out: Mapping[str, Mapping[str, Float[np.ndarray, " size"]]]
    """Of the winners, where nothing was chosen: place, way."""
    between: Mapping[str, Float[np.ndarray, " between"]]
    """On the query, of circuits halfway between sizes."""
    complement: Float[np.ndarray, " size"]
    """Share of the way from corrupted to clean that is left when the circuit's edges, and only they, are cut."""
    graph: CircuitGraph
    """The query's own scores."""
    masks: Bool[np.ndarray, "size writer reader"]
    """The winners' edges, pruned: of the best of other wordings where that was searched, else of the single query."""

    def circuit(self, at: int) -> CircuitGraph:
        """Return the winner of the size with this index."""
        return self.graph.keep(self.masks[at])

    def curve(self, way: str, where: str = CHOSEN) -> Float[np.ndarray, " size"]:
        """Return the NDF of a way's winners by size; NaN where this query has no such place."""
        if where == CHOSEN:
            return self.ndf[way]
        return self.held_out[where][way] if where in self.held_out else np.full(len(self.ndf[way]), np.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers (not the edges); NaN becomes None."""
        return {
            "name": self.name,
            "group": self.group,
            "full": self.full,
            "none": self.none,
            "candidates": {way: _plain(values) for way, values in self.candidates.items()},
            "winners": {way: values.tolist() for way, values in self.winners.items()},
            "ndf": {way: _plain(values) for way, values in self.ndf.items()},
            "kept": {way: values.tolist() for way, values in self.kept.items()},
            "held_out": {
                where: {way: _plain(values) for way, values in ways.items()} for where, ways in self.held_out.items()
            },
            "between": {way: _plain(values) for way, values in self.between.items()},
            "complement": _plain(self.complement),
        }


@dataclass(frozen=True, repr=False)
class QueryCircuits:
    """The circuits of several queries."""

    queries: tuple[Searched, ...]
    sizes: tuple[int, ...]
    between: tuple[int, ...]
    complete: bool = True

    def __repr__(self) -> str:
        if not self.queries:
            return "QueryCircuits(no query finished)"
        where = next(iter(self.places[1:]), CHOSEN)
        area = self.area(self.main, where)
        return (
            f"QueryCircuits({len(self.queries)} queries, area of {self.main!r} on {where!r} {area!r},"
            f" random {self.area('random', where)!r})"
        )

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(self.queries[0].ndf) if self.queries else ()

    @property
    def main(self) -> str:
        """The way whose circuits are kept: best of other wordings where it was searched."""
        return "wordings" if "wordings" in self.ways else "single"

    @property
    def places(self) -> tuple[str, ...]:
        """Where winners were run: on the query itself first, then what was held out."""
        return (CHOSEN, *dict.fromkeys(where for query in self.queries for where in query.held_out))

    @property
    def undefined(self) -> int:
        """How many queries have no NDF, for clean and corrupted values agree."""
        return int(sum(np.isnan(query.ndf["single"]).all() for query in self.queries))

    def values(self, way: str, where: str = CHOSEN) -> Float[np.ndarray, "query size"]:
        """Return the NDF of a way's winners; rows of NaN where undefined. UsageError for unknown names."""
        for what, name, known in (("way", way, self.ways), ("place", where, self.places)):
            if name not in known:
                raise UsageError(f"no {what} {name!r}{nearest(name, known)}")
        return np.stack([query.curve(way, where) for query in self.queries])

    def curve(self, way: str, where: str = CHOSEN) -> tuple[Interval, ...]:
        """Return the mean NDF at each size, with a bootstrap band that draws whole groups of queries."""
        values, groups = self._defined(self.values(way, where))
        return tuple(_mean(values[:, at], groups) for at in range(len(self.sizes)))

    def area(self, way: str, where: str = CHOSEN) -> Interval:
        """Return the mean normalised area: NDF by edges, trapezoids over the range of sizes; 1 is best."""
        values, groups = self._defined(self.values(way, where))
        return _mean(areas(self.sizes, values), groups)

    def gain(self, way: str, over: str = "single", where: str = CHOSEN) -> tuple[Interval, ...]:
        """Return the mean paired difference in NDF at each size, with a t interval that is robust to groups."""
        both = np.stack([self.values(way, where), self.values(over, where)])
        kept = ~np.isnan(both).any((0, 2))
        groups = self._groups()[kept]
        a, b = both[:, kept]
        return tuple(paired_difference(a[:, at], b[:, at], clusters=groups) for at in range(len(self.sizes)))

    def smallest(self, way: str, target: float, where: str = CHOSEN) -> tuple[int | None, ...]:
        """Return for each defined query the smallest size tried that reaches ``target``; None where none does."""
        values, _ = self._defined(self.values(way, where))
        return tuple(next((s for s, v in zip(self.sizes, row, strict=True) if v >= target), None) for row in values)

    def reached(self, way: str, target: float, where: str = CHOSEN) -> Interval:
        """Return the share of defined queries that reach ``target`` at some size, with a score interval."""
        found = self.smallest(way, target, where)
        return wilson(sum(size is not None for size in found), len(found))

    def complement(self) -> tuple[Interval, ...]:
        """Return the mean share of the answer left without the circuit, at each size."""
        values, groups = self._defined(np.stack([query.complement for query in self.queries]))
        return tuple(_mean(values[:, at], groups) for at in range(len(self.sizes)))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each query, place, way and size."""
        import pandas as pd

        rows = [
            (query.name, query.group, where, way, size, int(query.kept[way][at]), float(query.curve(way, where)[at]))
            for query in self.queries
            for where in (CHOSEN, *query.held_out)
            for way in query.ndf
            for at, size in enumerate(self.sizes)
        ]
        return pd.DataFrame(rows, columns=["query", "group", "where", "way", "size", "kept", "ndf"])

    def to_dict(self) -> dict[str, Any]:
        return {
            "sizes": list(self.sizes),
            "between": list(self.between),
            "complete": self.complete,
            "queries": [query.to_dict() for query in self.queries],
        }

    def save(self, path: str | Path) -> None:
        """Write the numbers as JSON; circuits are saved one by one (`CircuitGraph.save`)."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")

    def plot(self) -> "Chart":
        """Return NDF by edges: on the query, held out, and at random."""
        from cutaway.circuits.query_circuits.report import ndf_chart

        return ndf_chart(self)

    def _groups(self) -> np.ndarray:
        # Queries without a group stand for themselves.
        return np.array([query.group or f"query {at}" for at, query in enumerate(self.queries)])

    def _defined(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = ~np.isnan(values).any(1)
        return values[kept], self._groups()[kept]


def areas(sizes: Sequence[int], values: Float[np.ndarray, "query size"]) -> Float[np.ndarray, " query"]:
    """Return each row's trapezoid area over ``sizes``, divided by their range; the value itself for one size."""
    if len(sizes) == 1:
        return values[:, 0]
    return np.asarray(trapezoid(values, np.asarray(sizes, dtype=float), axis=1) / (sizes[-1] - sizes[0]))


def halfway(found: QueryCircuits, way: str) -> tuple[Interval, ...]:
    """Return the mean NDF of circuits between sizes, on the query: ``single``, ``nested`` or ``neighbours``."""
    values = np.stack([query.between[way] for query in found.queries])
    kept = ~np.isnan(values).any(1)
    groups = np.array([query.group or f"query {at}" for at, query in enumerate(found.queries)])[kept]
    return tuple(_mean(values[kept, at], groups) for at in range(len(found.between)))


def _mean(values: Float[np.ndarray, " query"], groups: np.ndarray) -> Interval:
    average: Callable[[np.ndarray], float] = lambda drawn: float(drawn.mean())  # noqa: E731
    return bootstrap(values, average, clusters=groups, method="percentile", n=_RESAMPLES)


def _plain(values: np.ndarray) -> list[Any]:
    return [_plain(row) if isinstance(row, np.ndarray) else None if np.isnan(row) else float(row) for row in values]
