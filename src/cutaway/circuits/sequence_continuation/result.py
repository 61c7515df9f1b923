"""What a sequence-continuation run returns: circuits, connections, head roles, and what is shared between tasks."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from cutaway.stats import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Step:
    """One test of the pruning: the score without a node, and whether it was removed for good."""

    node: str
    without: float
    """Percent of the full model."""
    removed: bool


@dataclass(frozen=True)
class NodeCircuit:
    """The nodes that greedy pruning leaves."""

    task: str
    nodes: tuple[str, ...]
    """``z.L.H`` and ``mlp_out.L``, in order of the model."""
    score: Interval
    """Percent of the full model's metric on the prompts it was found on, with an interval over prompts."""
    full: float
    """The full model's metric: mean logit(answer) - logit(distractor)."""
    empty: float
    """Percent with every node cut."""
    threshold: float
    """Percent of the full model that may be lost."""
    steps: tuple[Step, ...]
    sweeps: int
    seconds: float
    complete: bool = True
    """False where Ctrl-C or a time limit stopped it before nothing more could be removed."""

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(node for node in self.nodes if node.startswith("z."))

    @property
    def mlps(self) -> tuple[str, ...]:
        return tuple(node for node in self.nodes if node.startswith("mlp_out."))

    def __repr__(self) -> str:
        partial = "" if self.complete else ", not complete"
        size = f"{len(self.heads)} heads, {len(self.mlps)} MLPs"
        return f"NodeCircuit({self.task}: {size}, score {self.score} %{partial})"

    def to_frame(self) -> "pd.DataFrame":
        """One row a test, in order."""
        import pandas as pd

        return pd.DataFrame([asdict(step) for step in self.steps])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


Input = Literal["q", "k", "v", "mlp", "final"]


@dataclass(frozen=True)
class Edge:
    """One connection: what the metric keeps when it carries the corrupted prompt's value."""

    sender: str
    """A node, or ``embed``."""
    receiver: str
    """A node, or ``final``."""
    by: Input
    """Which input of the receiver."""
    ratio: float
    """Metric with this connection corrupted, over the circuit's own metric."""


@dataclass(frozen=True)
class EdgeCircuit:
    """The connections between a circuit's nodes."""

    task: str
    tested: tuple[Edge, ...]
    threshold: float
    """A connection is kept when its ratio lies below."""
    dropped: tuple[str, ...]
    """Nodes of the circuit that no kept connection enters."""
    complete: bool = True

    @property
    def kept(self) -> tuple[Edge, ...]:
        return tuple(edge for edge in self.tested if edge.ratio < self.threshold)

    def __repr__(self) -> str:
        return f"EdgeCircuit({self.task}: {len(self.kept)} of {len(self.tested)} connections kept)"

    def to_frame(self) -> "pd.DataFrame":
        """One row a connection tested."""
        import pandas as pd

        return pd.DataFrame([{**asdict(edge), "kept": edge.ratio < self.threshold} for edge in self.tested])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "kept": [asdict(edge) for edge in self.kept]}


@dataclass(frozen=True)
class HeadRole:
    """What one head looks at, and what it would write where it looked at a member."""

    head: str
    members: float
    """Mean attention from the last token to the four members, 0 to 1."""
    last_member: float
    """Of that, to the last one."""
    carriers: float
    """Mean attention to everything else but the first token."""
    next: Interval
    """Share of members whose successor is among the top tokens written."""
    copy: Interval
    """Share of members that are themselves among the top tokens."""
    ordinal: Interval | None = None
    """Months: share whose successor's ordinal word is among the top tokens."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cell:
    """One circuit on one task, beside random circuits of the same size."""

    circuit: str
    task: str
    score: Interval
    """Percent of the full model on held-out prompts."""
    random: tuple[float, ...]
    """Scores of the random circuits, percent."""
    p: float
    """Share of random circuits (this one counted in) that score at least as high."""

    @property
    def random_band(self) -> tuple[float, float, float]:
        """Mean, 5% and 95% quantile of the random circuits."""
        low, high = np.quantile(self.random, [0.05, 0.95])
        return float(np.mean(self.random)), float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Overlap:
    """What two circuits share."""

    first: str
    second: str
    shared: tuple[str, ...]
    jaccard: float
    p: float
    """Probability that random heads of the same numbers share at least as many (hypergeometric); heads only."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Transfer:
    """Every circuit on every task, and what the circuits share."""

    cells: tuple[Cell, ...]
    overlaps: tuple[Overlap, ...]
    complete: bool = True

    def cell(self, circuit: str, task: str) -> Cell:
        """One entry of the matrix; KeyError where there is none."""
        for cell in self.cells:
            if (cell.circuit, cell.task) == (circuit, task):
                return cell
        raise KeyError((circuit, task))

    def __repr__(self) -> str:
        shown = ", ".join(f"{c.circuit} on {c.task} {c.score.value:.0f}% (p={c.p:.2g})" for c in self.cells)
        return f"Transfer({shown})"

    def to_frame(self) -> "pd.DataFrame":
        """One row a circuit and task."""
        import pandas as pd

        rows = [
            {
                "circuit": cell.circuit,
                "task": cell.task,
                "score": cell.score.value,
                "low": cell.score.low,
                "high": cell.score.high,
                **dict(zip(("random", "random_5", "random_95"), cell.random_band, strict=True)),
                "p": cell.p,
            }
            for cell in self.cells
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "cells": [cell.to_dict() for cell in self.cells],
            "overlaps": [overlap.to_dict() for overlap in self.overlaps],
            "complete": self.complete,
        }


@dataclass(frozen=True)
class SideEffect:
    """Exact match on one other task: untouched, without a circuit's heads, without random heads."""

    circuit: str
    task: str
    untouched: Interval
    removed: Interval
    random: tuple[float, ...]
    """Exact match without as many random heads, for each random set."""
    p: float
    """Share of random sets (this one counted in) that leave at most as much."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Stability:
    """How alike the circuits of several prunings are."""

    circuits: tuple[NodeCircuit, ...]
    what: str
    """What differed: ``prompts`` or ``order``."""

    @property
    def inside(self) -> Bool[np.ndarray, "run node"]:
        names = sorted({node for each in self.circuits for node in each.nodes})
        return np.array([[name in each.nodes for name in names] for each in self.circuits], dtype=bool)

    @property
    def jaccard(self) -> float:
        """Mean over pairs of runs; nan for fewer than two."""
        inside = self.inside
        pairs = [(a, b) for i, a in enumerate(inside) for b in inside[:i]]
        return float(np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in pairs])) if pairs else float("nan")

    def __repr__(self) -> str:
        return f"Stability({len(self.circuits)} circuits over {self.what}, Jaccard {self.jaccard:.2f})"

    def to_dict(self) -> dict[str, Any]:
        return {"what": self.what, "jaccard": self.jaccard, "circuits": [each.nodes for each in self.circuits]}


@dataclass(frozen=True, eq=False)
class Lens:
    """The answer by layer: the final norm applied once to the stream after each block."""

    task: str
    difference: Float[np.ndarray, " layer"]
    """Mean logit(answer) - logit(distractor)."""
    right: Float[np.ndarray, " layer"]
    """Share of prompts where the answer is the top token."""

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task, "difference": self.difference.tolist(), "right": self.right.tolist()}


@dataclass(frozen=True, eq=False)
class SequenceStudy:
    """Everything one run found, by task."""

    circuits: Mapping[str, NodeCircuit]
    importance: Mapping[str, Mapping[str, float]]
    edges: Mapping[str, EdgeCircuit]
    roles: Mapping[str, tuple[HeadRole, ...]]
    lens: Mapping[str, Lens]
    transfer: Transfer
    effects: tuple[SideEffect, ...] = ()
    stability: tuple[Stability, ...] = ()

    def __repr__(self) -> str:
        return f"SequenceStudy({', '.join(map(repr, self.circuits.values()))})"

    def to_dict(self) -> dict[str, Any]:
        by_task = {name: {k: v.to_dict() for k, v in getattr(self, name).items()} for name in ("circuits", "edges")}
        return {
            **by_task,
            "importance": {task: dict(found) for task, found in self.importance.items()},
            "roles": {task: [role.to_dict() for role in found] for task, found in self.roles.items()},
            "lens": {task: found.to_dict() for task, found in self.lens.items()},
            "transfer": self.transfer.to_dict(),
            "effects": [effect.to_dict() for effect in self.effects],
            "stability": [each.to_dict() for each in self.stability],
        }
