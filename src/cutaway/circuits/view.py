"""A circuit as a page draws it: nodes in layers, edges with the sizes at which they belong, what heads attend to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from cutaway.circuits.graph import CircuitGraph
from cutaway.errors import UsageError

LARGEST = 3000
"""Edges a page can show without delay."""


@dataclass(frozen=True)
class Node:
    """A writer of the model, or the logits, at its place in the drawing."""

    name: str
    label: str
    kind: str
    """embed, head, mlp or logits."""
    layer: int
    """-1 for the embedding; one past the last layer for the logits."""
    x: float
    """0 to 1 from left to right."""


@dataclass(frozen=True)
class Edge:
    """A connection between two nodes."""

    source: int
    target: int
    port: str
    """What of the target it enters: q, k, v, input or logits."""
    score: float
    sizes: int
    """Bit i is set where the i-th circuit has this edge."""


@dataclass(frozen=True)
class SizeCurve:
    """How well circuits of growing size do, with interval and control; None where undefined."""

    name: str
    value: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    control: tuple[float | None, ...] | None = None
    """The same for random circuits of equal size."""


@dataclass(frozen=True)
class CircuitView:
    """Everything the page of a circuit shows; plain data."""

    title: str
    tokens: tuple[str, ...]
    """Of the clean prompt."""
    corrupted: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    asked: tuple[int, ...]
    """Edges asked for, each circuit; ascending."""
    kept: tuple[int, ...]
    """Edges left once loose ends were pruned."""
    curve: SizeCurve
    attention: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """``z.L.H`` to the head's pattern on the clean prompt, [query key]."""
    about: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CircuitView":
        """Read back what `to_dict` gave."""
        lists = {key: tuple(data[key]) for key in ("tokens", "corrupted", "asked", "kept")}
        curve: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data["curve"].items()
        }
        return cls(
            title=data["title"],
            **lists,
            nodes=tuple(Node(**each) for each in data["nodes"]),
            edges=tuple(Edge(**each) for each in data["edges"]),
            curve=SizeCurve(**curve),
            attention={name: tuple(map(tuple, rows)) for name, rows in data["attention"].items()},
            about=dict(data["about"]),
        )


def gaps(values: Iterable[float]) -> tuple[float | None, ...]:
    """Return numbers as a curve takes them: None in the place of NaN."""
    return tuple(None if math.isnan(value) else float(value) for value in values)


def circuit_view(
    graph: CircuitGraph,
    masks: Sequence[Bool[np.ndarray, "writer reader"]],
    curve: SizeCurve,
    *,
    title: str,
    tokens: Sequence[str] = (),
    corrupted: Sequence[str] = (),
    asked: Sequence[int] | None = None,
    attention: Mapping[str, Float[np.ndarray, "query key"]] | None = None,
) -> CircuitView:
    """Lay out circuits of growing size over one graph; those too large to draw are left out.

    masks: one for each size, ascending. asked: sizes asked for, where pruning left fewer edges.
    UsageError where no circuit is small enough, or the curve has another number of sizes.
    """
    wiring, kept = graph.wiring, [int(mask.sum()) for mask in masks]
    if len(curve.value) != len(masks):
        raise UsageError(f"curve {curve.name!r} has {len(curve.value)} sizes, the circuits {len(masks)}")
    drawn = [i for i, size in enumerate(kept) if 0 < size <= LARGEST]
    if not drawn:
        raise UsageError(f"no circuit with 1 to {LARGEST} edges to draw; sizes: {', '.join(map(str, kept)) or 'none'}")
    union = np.logical_or.reduce([masks[i] for i in drawn])
    names = _used(graph, union)
    place = {name: i for i, name in enumerate(names)}
    edges = []
    for writer, reader in np.argwhere(union):
        bits = sum(1 << bit for bit, i in enumerate(drawn) if masks[i][writer, reader])
        score = float(graph.scores[writer, reader])
        port = wiring.readers[reader].split(".")[0]
        port = {"mlp_in": "input", "head_in": "input"}.get(port, port)
        targets = [wiring.writers[at] for at in wiring.outputs_of(int(reader))] or ["logits"]
        edges += [Edge(place[wiring.writers[writer]], place[target], port, score, bits) for target in targets]

    def pick(values: Sequence[float | None] | None) -> Any:
        return None if values is None else tuple(values[i] for i in drawn)

    return CircuitView(
        title=title,
        tokens=tuple(tokens),
        corrupted=tuple(corrupted),
        nodes=tuple(_node(name, graph) for name in names),
        edges=tuple(sorted(edges, key=lambda edge: abs(edge.score))),
        asked=tuple((kept if asked is None else list(asked))[i] for i in drawn),
        kept=tuple(kept[i] for i in drawn),
        curve=SizeCurve(curve.name, pick(curve.value), pick(curve.low), pick(curve.high), pick(curve.control)),
        attention={
            name: tuple(tuple(round(float(x), 4) for x in row) for row in pattern)
            for name, pattern in (attention or {}).items()
            if name in place
        },
        about={
            "model": graph.header.model,
            "edges in the model": f"{graph.n_edges:,}",
            "scores": graph.header.method,
            "a cut edge carries": {"corrupted": "the corrupted prompt's value"}.get(
                graph.header.ablation, graph.header.ablation
            ),
            "heads read": graph.header.wiring.grouping,
        },
    )


def _used(graph: CircuitGraph, mask: Bool[np.ndarray, "writer reader"]) -> list[str]:
    """Return the nodes that an edge of ``mask`` touches, in the order of the model, the logits last."""
    wiring = graph.wiring
    used = {wiring.writers[i] for i in np.flatnonzero(mask.any(1))}
    for reader in np.flatnonzero(mask.any(0)):
        used |= {wiring.writers[at] for at in wiring.outputs_of(int(reader))}
    return [name for name in wiring.writers if name in used] + ["logits"]


def _node(name: str, graph: CircuitGraph) -> Node:
    wiring = graph.wiring
    kind, *rest = name.split(".")
    if kind == "embed":
        return Node(name, "embedding", "embed", -1, 0.5)
    if kind == "logits":
        return Node(name, "logits", "logits", wiring.n_layers, 0.5)
    layer, columns = int(rest[0]), wiring.n_heads + 1
    if kind == "mlp_out":
        return Node(name, f"mlp {layer}", "mlp", layer, (wiring.n_heads + 0.5) / columns)
    return Node(name, f"{layer}.{rest[1]}", "head", layer, (int(rest[1]) + 0.5) / columns)
