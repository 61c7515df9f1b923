"""What a run returns: one task's vectors in a table, its feature circuit, and everything by task."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.circuits.icl_feature_circuits.circuit import Check, Curve
from cutaway.circuits.icl_feature_circuits.classes import Detector, Executor, Link
from cutaway.circuits.icl_feature_circuits.cleaning import Cleaned
from cutaway.circuits.icl_feature_circuits.feature_graph import Edge, Node
from cutaway.circuits.icl_feature_circuits.steering import Steering
from cutaway.circuits.icl_feature_circuits.task_vectors import Score
from cutaway.stats import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """One vector added at the arrow of held-out prompts without examples."""

    name: str
    l0: int | None
    """Atoms it is made of; None for a dense vector."""
    score: Score
    gain: Interval
    """Fall of the loss against no vector, nats, paired over prompts."""
    against_raw: Interval
    """Loss minus that of the raw task vector, nats, paired over prompts."""


@dataclass(frozen=True, eq=False)
class TaskResult:
    """One task: how well it is done from examples, and by which vector without."""

    task: str
    few: Score
    """The model with examples, on held-out queries."""
    rows: tuple[Row, ...]
    """``no vector``, ``task vector``, ``reconstruction``, ``pursuit k``, ``cleaned lambda``, ``random atoms``."""
    cleaned: tuple[Cleaned, ...]
    """By penalty."""
    chosen: int
    """Of ``cleaned``: fewest atoms among those no worse than the raw vector on the fitted queries, else the best."""
    norm: float
    """Length of the raw task vector."""
    complete: bool = True

    def row(self, name: str) -> Row:
        """A row by name; KeyError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def best(self) -> Cleaned:
        return self.cleaned[self.chosen]

    @property
    def best_row(self) -> Row:
        return self.row(f"cleaned {self.best.penalty:g}")

    @property
    def l0_fraction(self) -> float | None:
        """Atoms of the cleaned vector over those of the reconstruction; None where the latter has none."""
        there = self.row("reconstruction").l0
        return self.best.l0 / there if there else None

    @property
    def loss_delta(self) -> float:
        """(Loss of the raw vector - loss of the cleaned one) / loss of no vector."""
        raw, none = self.row("task vector").score.loss.value, self.row("no vector").score.loss.value
        return (raw - self.best_row.score.loss.value) / none

    def __repr__(self) -> str:
        best, raw = self.best_row, self.row("task vector")
        return f"TaskResult({self.task}: {best.l0} atoms, loss {best.score.loss!r}, raw vector {raw.score.loss!r})"

    def to_frame(self) -> "pd.DataFrame":
        """One row a vector."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "task": self.task,
                    "vector": row.name,
                    "l0": row.l0,
                    **_flat("loss", row.score.loss),
                    **_flat("accuracy", row.score.accuracy),
                    **_flat("against_raw", row.against_raw),
                    "n": row.score.loss.n,
                }
                for row in self.rows
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "few": self.few.to_dict(),
            "rows": [
                {
                    "name": row.name,
                    "l0": row.l0,
                    "score": row.score.to_dict(),
                    "gain": asdict(row.gain),
                    "against_raw": asdict(row.against_raw),
                }
                for row in self.rows
            ],
            "cleaned": [each.to_dict() for each in self.cleaned],
            "chosen": self.chosen,
            "complete": self.complete,
        }


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """One task's sparse feature circuit."""

    task: str
    nodes: tuple[tuple[Node, float, float], ...]
    """Features and error nodes of largest effect: (node, effect, standard error over prompts)."""
    curve: Curve | None
    """None where ablating every feature does not lower the metric."""
    why: str
    """Why there is no curve."""
    checks: tuple[Check, ...]
    edges: tuple[Edge, ...]
    executors: tuple[Executor, ...]
    detectors: tuple[Detector, ...]
    link: Link | None

    def __repr__(self) -> str:
        classes = f"{len(self.executors)} executors, {len(self.detectors)} detectors"
        return f"TaskGraph({self.task}: {self.curve!r}, {classes})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "nodes": [{"node": str(node), "effect": effect, "error": error} for node, effect, error in self.nodes],
            "curve": None if self.curve is None else self.curve.to_dict(),
            "why": self.why,
            "checks": [
                {"node": str(each.node), "estimate": each.estimate, "exact": asdict(each.exact)} for each in self.checks
            ],
            "edges": [
                {"from": str(edge.upstream), "to": str(edge.downstream), "effect": edge.effect, "error": edge.error}
                for edge in self.edges
            ],
            "executors": [asdict(each) for each in self.executors],
            "detectors": [asdict(each) for each in self.detectors],
            "link": None if self.link is None else self.link.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class FeatureCircuits:
    """Everything one run found."""

    layer: int
    layers: Mapping[int, float] = field(default_factory=dict)
    """Mean zero-shot loss over tasks with the raw vector, by layer, on fitted queries."""
    few: Mapping[str, Score] = field(default_factory=dict)
    """Accuracy with examples of every task asked for."""
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    graphs: Mapping[str, TaskGraph] = field(default_factory=dict)
    steering: Steering | None = None
    unexplained: Mapping[str, float] = field(default_factory=dict)
    """By site: share of the variance at prompts' tokens that the dictionary misses."""
    complete: bool = True

    def __repr__(self) -> str:
        return f"FeatureCircuits(layer {self.layer}, {len(self.tasks)} tasks, {len(self.graphs)} graphs)"

    def to_frame(self) -> "pd.DataFrame":
        """All tasks' vectors."""
        import pandas as pd

        return pd.concat([each.to_frame() for each in self.tasks.values()], ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "layers": {str(layer): loss for layer, loss in self.layers.items()},
            "few": {task: score.to_dict() for task, score in self.few.items()},
            "tasks": [each.to_dict() for each in self.tasks.values()],
            "graphs": [each.to_dict() for each in self.graphs.values()],
            "steering": None if self.steering is None else self.steering.to_dict(),
            "unexplained": dict(self.unexplained),
            "complete": self.complete,
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
