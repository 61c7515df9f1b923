"""Judge circuits on pairs they were not found on: curves over sizes, and one circuit in full.

    split     pairs for discovery and other pairs for judging, by group
    curve     faithfulness and NDF at each size, with random and shuffled circuits of equal kept size beside them
    evaluate  one circuit: faithfulness, NDF, NFS, areas (CPR, CMD), completeness, minimality
    find      all of it: split, score, keep the largest edges, prune, evaluate on the held-out part

Every circuit of every size and control is one row of the batched patched forward (`patch.run`); reference and clean
runs are made once. Settings (ablation, measure, grouping) belong to every number and stand in the header.
Controls: ``random`` knows nothing; ``shuffled`` keeps each reader's scores and deals them anew among its writers.
Both keep as many edges *after pruning* as the circuit, so that they are not merely disconnected.
Sources: query circuits (card, Metrics), MIB and the IOI paper's criteria (peers page section 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from cutaway.charts import Chart, Series
from cutaway.circuits.attribution import Settings
from cutaway.circuits.curves import CONTROLS, Area, Curve, checked_ablation, curve
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.items import Items, Split, attribute_all, circuit_values, clusters, split
from cutaway.circuits.knockout import Completeness, Minimality, completeness, minimality
from cutaway.circuits.pairs import Pair
from cutaway.circuits.parts import anatomy
from cutaway.circuits.score import Faithfulness, PerItem, faithfulness, ndf, nfs
from cutaway.circuits.select import By, fitted, prune, top
from cutaway.circuits.wiring import Grouping
from cutaway.model import Model
from cutaway.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

Mask = Bool[np.ndarray, "*pos writer reader"]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What one circuit is worth on held-out pairs."""

    graph: CircuitGraph
    """With the circuit's mask."""
    faithfulness: Faithfulness
    controls: Mapping[str, Faithfulness]
    """Random and shuffled circuits that keep as many edges, values averaged over seeds."""
    ndf: PerItem
    nfs: PerItem
    control_ndf: Mapping[str, Interval]
    clusters: tuple[str, ...]
    signed: Curve
    """Edges by signed score: the curve of CPR."""
    absolute: Curve
    """Edges by absolute score: the curve of CMD."""
    completeness: Completeness
    minimality: Minimality

    def __repr__(self) -> str:
        graph = self.graph
        return f"Evaluation({graph.n_kept} of {graph.n_edges} edges, {self.faithfulness!r}, NDF {self.mean_ndf!r})"

    @property
    def mean_ndf(self) -> Interval:
        return self.ndf.mean(self.clusters)

    @property
    def mean_nfs(self) -> Interval:
        return self.nfs.mean(self.clusters)

    @cached_property
    def areas(self) -> dict[str, Area]:
        """CPR and CMD on linear and logarithmic axes."""
        found: dict[str, Area] = {}
        for x in ("linear", "log"):
            found |= {f"cpr_{x}": self.signed.cpr(x), f"cmd_{x}": self.absolute.cmd(x)}
        return found

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each number: value, interval, n, random and shuffled control, why undefined."""
        import pandas as pd

        beside = {name: each.interval for name, each in self.controls.items()}
        rows = [
            _row("faithfulness", self.faithfulness.interval, beside, self.faithfulness.undefined),
            _row("ndf", self.mean_ndf, self.control_ndf, self.ndf.reason),
            _row("nfs", self.mean_nfs, {}, self.nfs.reason),
            *(_row(name, area.interval, area.controls, "") for name, area in self.areas.items()),
        ]
        complete, minimal = self.completeness, self.minimality
        rows.append(_row("incompleteness", complete.incompleteness, {"random": complete.control}, complete.undefined))
        return pd.DataFrame([*rows, _row("needed edges", minimal.share_needed, {}, minimal.undefined)])

    def charts(self, edges: int = 20) -> tuple[Chart, ...]:
        """Return the curves by absolute score, and what the ``edges`` most needed edges contribute."""
        wiring, tried = self.graph.wiring, self.minimality
        ranked = sorted(zip(tried.edges, tried.drops, strict=True), key=lambda row: -row[1].value)[:edges]
        names = tuple(f"{wiring.writers[edge[-2]]} > {wiring.readers[edge[-1]]}" for edge, _ in ranked)
        if not names:
            return self.absolute.charts()
        y, low, high = zip(*((drop.value, drop.low, drop.high) for _, drop in ranked), strict=True)
        series = (
            Series("edge cut from the circuit", y, low, high),
            Series("edge outside cut from the model (95th percentile)", (tried.control,) * len(y), control=True),
        )
        bars = Chart("What each edge contributes", names, series, "edge", "faithfulness lost", repr(tried))
        return (*self.absolute.charts(), bars)


def _row(name: str, own: Interval, beside: Mapping[str, Interval], reason: str) -> dict[str, Any]:
    row: dict[str, Any] = {"number": name, "value": own.value, "low": own.low, "high": own.high, "n": own.n}
    return row | {f"{name}_control": each.value for name, each in beside.items()} | {"undefined": reason}


def evaluate(
    model: Model,
    graph: CircuitGraph,
    circuit_mask: Mask,
    held_out: Items,
    *,
    ablation: str | None = None,
    sizes: Sequence[int] | None = None,
    seeds: int = 3,
    sets: int = 20,
    members: int = 128,
    seed: int = 0,
    memory: int | None = None,
) -> Evaluation:
    """Judge the circuit ``circuit_mask`` of ``graph`` on ``held_out`` pairs.

    sizes: of the two curves; None takes MIB's shares. seeds: circuits of each control. sets: random sets knocked out
    for completeness. members: edges tried for minimality at most.
    """
    ablation = checked_ablation(graph, held_out, ablation)
    body, labels = anatomy(model), clusters(held_out)
    circuit = prune(graph.wiring, circuit_mask)
    rivals = {
        name: [fitted(deal(graph, n), int(circuit.sum())) for n in range(seeds)] for name, deal in CONTROLS.items()
    }

    def run(masks: Bool[np.ndarray, "circuit *pos writer reader"]) -> Float[np.ndarray, "circuit item"]:
        return circuit_values(body, graph.wiring, masks, held_out, ablation, memory=memory)

    whole = np.ones_like(circuit)
    values = run(np.stack([whole, ~whole, circuit, *(mask for masks in rivals.values() for mask in masks)]))
    full, none, own = values[:3]
    beside = dict(zip(rivals, values[3:].reshape(len(rivals), seeds, values.shape[1]), strict=True))
    args = (graph.wiring, full, none, labels)
    curves = [
        curve(model, graph, held_out, sizes, by=by, ablation=ablation, seeds=seeds, memory=memory)
        for by in ("signed", "absolute")
    ]
    return Evaluation(
        graph=graph.keep(circuit),
        faithfulness=faithfulness(own, full, none, clusters=labels),
        controls={name: faithfulness(row.mean(0), full, none, clusters=labels) for name, row in beside.items()},
        ndf=ndf(own, full, none),
        nfs=nfs(own, full, none),
        control_ndf={name: _mean_ndf(row, full, none, labels) for name, row in beside.items()},
        clusters=labels,
        signed=curves[0],
        absolute=curves[1],
        completeness=completeness(run, circuit, rivals["random"][0], *args, sets=sets, seed=seed),
        minimality=minimality(run, circuit, *args, members=members, seed=seed),
    )


def find(
    model: Model,
    pairs: Items | Sequence[Pair],
    n: int,
    *,
    settings: Settings | None = None,
    grouping: Grouping | str = "shared",
    by: By | str = "absolute",
    seed: int = 0,
    memory: int | None = None,
) -> Evaluation:
    """Score edges on one part of ``pairs``, keep the ``n`` largest, prune, and judge on the other part.

    >>> found = find(model, pairs, 200)  # doctest: +SKIP
    >>> found.graph.save("circuit.safetensors")  # doctest: +SKIP
    """
    parts = split(pairs, seed)
    graph = attribute_all(model, parts.discovery, settings, grouping=grouping)
    return evaluate(model, graph, top(graph, n, by=by), parts.held_out, seed=seed, memory=memory)


def _mean_ndf(values: np.ndarray, full: np.ndarray, none: np.ndarray, labels: tuple[str, ...]) -> Interval:
    per_item = ndf(values, full, none)
    mean = np.where(per_item.undefined, np.nan, per_item.values.mean(0))
    return replace(per_item, values=mean).mean(labels)


__all__ = ["CONTROLS", "Area", "Curve", "Evaluation", "Split", "curve", "evaluate", "find", "split"]
