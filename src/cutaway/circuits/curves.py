"""The measure of circuits of rising size, with the same for circuits that know nothing and keep as many edges."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from cutaway.charts import Chart, Series
from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.items import Items, as_groups, circuit_values, clusters
from cutaway.circuits.parts import anatomy
from cutaway.circuits.score import LEAST, SHARES, Faithfulness, cmd, cpr, faithfulness, ndf
from cutaway.circuits.select import By, fitted, prune, randomised, shuffled, top
from cutaway.circuits.view import SizeCurve, gaps
from cutaway.errors import UsageError, nearest
from cutaway.model import Model
from cutaway.stats import Interval, bootstrap, mean_interval

if TYPE_CHECKING:
    import pandas as pd

CONTROLS: Mapping[str, Callable[[CircuitGraph, int], CircuitGraph]] = {"random": randomised, "shuffled": shuffled}
_RESAMPLES = 1000


@dataclass(frozen=True, repr=False)
class Area:
    """An area under (or beside) the curve on one axis, with those of the controls."""

    interval: Interval
    controls: Mapping[str, Interval]
    """Over seeds."""

    def __repr__(self) -> str:
        beside = "".join(f", {name} {each!r}" for name, each in self.controls.items())
        return f"Area({self.interval!r}{beside})"


@dataclass(frozen=True, repr=False)
class Curve:
    """The measure of circuits of rising size, on each pair."""

    header: Header
    by: str
    ablation: str
    sizes: tuple[int, ...]
    """Edges asked for."""
    kept: tuple[int, ...]
    """Edges left after pruning."""
    n_edges: int
    values: Float[np.ndarray, "size item"]
    full: Float[np.ndarray, " item"]
    none: Float[np.ndarray, " item"]
    clusters: tuple[str, ...]
    controls: Mapping[str, Float[np.ndarray, "seed size item"]]

    def __repr__(self) -> str:
        best = self.faithfulness[-1]
        return f"Curve({len(self.sizes)} sizes to {self.sizes[-1]} of {self.n_edges} edges, last {best!r})"

    @cached_property
    def faithfulness(self) -> tuple[Faithfulness, ...]:
        rows = self.values
        return tuple(faithfulness(row, self.full, self.none, clusters=self.clusters) for row in rows)

    @cached_property
    def ndf(self) -> tuple[Interval, ...]:
        """Mean NDF at each size over the items where it is defined."""
        per_item = ndf(self.values, self.full, self.none)
        return tuple(per_item[place].mean(self.clusters) for place in range(len(self.sizes)))

    @property
    def n_undefined(self) -> int:
        """Items without NDF: their clean and corrupted values agree."""
        return ndf(self.values[0], self.full, self.none).n_undefined

    @cached_property
    def control_faithfulness(self) -> dict[str, tuple[Interval, ...]]:
        """Of each control at each size; intervals are over its seeds. NaN where the circuit's is undefined."""
        base, span = self.none.mean(), float((self.full - self.none).mean())
        if abs(span) < LEAST:
            return dict.fromkeys(self.controls, (Interval(np.nan, np.nan, np.nan, 0, 0.95),) * len(self.sizes))
        ratios = {name: (values.mean(-1) - base) / span for name, values in self.controls.items()}
        return {name: tuple(mean_interval(row) for row in each.T) for name, each in ratios.items()}

    @cached_property
    def control_ndf(self) -> dict[str, tuple[float, ...]]:
        """Mean NDF of each control at each size, over seeds and items; NaN where no item has one."""
        found = {}
        for name, values in self.controls.items():
            per_item = ndf(values, self.full, self.none)
            kept = per_item.values[..., ~per_item.undefined]
            found[name] = tuple(kept.mean((0, 2)).tolist()) if kept.size else (float("nan"),) * len(self.sizes)
        return found

    def drawn(self) -> SizeCurve:
        """Return faithfulness by size as `circuit_view` takes it, random circuits as its control."""
        own, random = self.faithfulness, self.control_faithfulness.get("random")
        value, low, high = (gaps(getattr(each.interval, key) for each in own) for key in ("value", "low", "high"))
        control = None if random is None else gaps(each.value for each in random)
        return SizeCurve("faithfulness, held out", value, low, high, control)

    def cpr(self, x: str = "linear") -> Area:
        """Return the area under faithfulness; more is better. Shares are of edges asked for."""
        return self._area(cpr, x)

    def cmd(self, x: str = "linear") -> Area:
        """Return the area of |1 - faithfulness|; less is better."""
        return self._area(cmd, x)

    def _area(self, area: Callable[..., float], x: str) -> Area:
        shares = [size / self.n_edges for size in self.sizes]
        _, member = np.unique(self.clusters, return_inverse=True)

        def sums(values: np.ndarray) -> np.ndarray:
            columns = [*values, self.full, self.none]
            return np.stack([np.bincount(member, weights=column) for column in columns], -1)

        def under(drawn: np.ndarray) -> float:
            total = drawn.sum(0)
            span = total[-2] - total[-1]
            return area(shares, (total[:-2] - total[-1]) / span, x=x) if span else float("nan")

        own = bootstrap(sums(self.values), under, method="percentile", n=_RESAMPLES)
        beside = {
            name: mean_interval([under(sums(values)) for values in seeds]) for name, seeds in self.controls.items()
        }
        return Area(own, beside)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each size: asked, kept, faithfulness, NDF, with intervals and controls."""
        import pandas as pd

        rows = []
        for place, (size, kept) in enumerate(zip(self.sizes, self.kept, strict=True)):
            ratio, distance = self.faithfulness[place].interval, self.ndf[place]
            row: dict[str, Any] = {"size": size, "kept": kept, "share": size / self.n_edges}
            row |= {"faithfulness": ratio.value, "low": ratio.low, "high": ratio.high}
            row |= {"ndf": distance.value, "ndf_low": distance.low, "ndf_high": distance.high}
            for name in self.controls:
                row[f"{name}_faithfulness"] = self.control_faithfulness[name][place].value
                row[f"{name}_ndf"] = self.control_ndf[name][place]
            rows.append(row | {"undefined": self.faithfulness[place].undefined})
        return pd.DataFrame(rows)

    def charts(self) -> tuple[Chart, ...]:
        """Return faithfulness and NDF over size, controls behind."""
        ratios = [each.interval for each in self.faithfulness]
        beside = self.control_faithfulness
        lines = [(name, tuple(each.value for each in beside[name])) for name in beside]
        note = f"{len(self.full)} held-out prompts; cut edges carry: {self.ablation}; controls keep as many edges."
        return (
            self._chart("Faithfulness by size", "share of the model's effect", ratios, lines, note),
            self._chart(
                "NDF by size",
                "normalised closeness to the model",
                list(self.ndf),
                list(self.control_ndf.items()),
                f"{self.n_undefined} of {len(self.full)} prompts have no NDF.",
            ),
        )

    def _chart(
        self, title: str, label: str, own: list[Interval], beside: Sequence[tuple[str, tuple[float, ...]]], note: str
    ) -> Chart:
        y, low, high = zip(*((each.value, each.low, each.high) for each in own), strict=True)
        series = (Series("circuit", y, low, high), *(Series(name, line, control=True) for name, line in beside))
        return Chart(title, tuple(map(float, self.sizes)), series, "edges", label, note, log_x=True)


def curve(
    model: Model,
    graph: CircuitGraph,
    pairs: Items,
    sizes: Sequence[int] | None = None,
    *,
    by: By | str = "absolute",
    ablation: str | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    seeds: int = 3,
    memory: int | None = None,
) -> Curve:
    """Run the graph's circuits of each size, and its controls, on ``pairs`` (which it was not found on).

    sizes: edges before pruning, rising; None takes MIB's shares. ablation: None takes the graph's.
    seeds: how many circuits of each control at each size. memory: bytes to use; None takes a share of what is free.
    """
    sizes = _sizes(graph, sizes)
    for name in controls:
        if name not in CONTROLS:
            raise UsageError(f"controls: {name!r}{nearest(name, list(CONTROLS))}")
    ablation = checked_ablation(graph, pairs, ablation)
    masks = [prune(graph.wiring, top(graph, size, by=by)) for size in sizes]
    kept = [int(mask.sum()) for mask in masks]
    beside = {name: [CONTROLS[name](graph, seed) for seed in range(seeds)] for name in controls}
    rivals = [fitted(other, n, by=by) for others in beside.values() for other in others for n in kept]
    whole = np.ones_like(graph.mask)
    stacked = np.stack([whole, ~whole, *masks, *rivals])
    values = circuit_values(anatomy(model), graph.wiring, stacked, pairs, ablation, memory=memory)
    rest = values[2 + len(sizes) :].reshape(len(controls), seeds, len(sizes), values.shape[1])
    return Curve(
        header=graph.header,
        by=by,
        ablation=ablation,
        sizes=tuple(sizes),
        kept=tuple(kept),
        n_edges=graph.n_edges,
        values=values[2 : 2 + len(sizes)],
        full=values[0],
        none=values[1],
        clusters=clusters(pairs),
        controls=dict(zip(controls, rest, strict=True)),
    )


def _sizes(graph: CircuitGraph, sizes: Sequence[int] | None) -> list[int]:
    if sizes is None:
        return sorted({max(1, round(share * graph.n_edges)) for share in SHARES})
    if len(sizes) == 0 or list(sizes) != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= graph.n_edges:
        raise UsageError(f"sizes={list(sizes)}: rising, from 1 to the {graph.n_edges} edges there are")
    return list(sizes)


def checked_ablation(graph: CircuitGraph, pairs: Items, ablation: str | None) -> str:
    """Return the ablation to use; UsageError where graph and pairs are measured differently."""
    measure = as_groups(pairs)[0].measure
    if measure != graph.header.measure:
        raise UsageError(f"the graph was scored by {graph.header.measure}, the pairs are measured by {measure}")
    return graph.header.ablation if ablation is None else ablation
