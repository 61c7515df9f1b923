"""How alike two circuits are, beside circuits that know nothing; and whether one task's circuit serves another's.

Agreement of edges says little about agreement of function (peers page section 4), hence `transfer`. A tail of the
hypergeometric law takes circuits for random sets of edges, which pruned circuits are not: they cluster on the same
few readers. So the overlap is shown beside that with the second circuit dealt anew (`shuffled`, equal kept size).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool
from scipy import stats

from cutaway.charts import Heat
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.items import Items, circuit_values, clusters
from cutaway.circuits.parts import Anatomy, anatomy
from cutaway.circuits.score import Faithfulness, faithfulness
from cutaway.circuits.select import fitted, randomised, shuffled
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two circuits of one wiring; each number says what it is beside."""

    edges: float
    """Jaccard index of the kept edges; NaN where both keep none. It describes these two circuits: no interval."""
    nodes: float
    """Jaccard index of writers with a kept edge."""
    shared_edges: int
    sizes: tuple[int, int]
    control: Interval
    """Jaccard index of edges with the second circuit's scores dealt anew; over seeds."""
    rank: float
    """Spearman correlation of all scores, signed."""
    rank_absolute: float
    rank_control: Interval
    """Signed correlation with scores dealt anew; over seeds."""
    p_overlap: float
    """Chance of so many shared edges or more, were both random sets (hypergeometric). Optimistic: see the module."""

    def __repr__(self) -> str:
        return (
            f"Comparison(edges {self.edges:.2f} (dealt anew {self.control!r}), nodes {self.nodes:.2f},"
            f" rank {self.rank:.2f}, p {self.p_overlap:.1e})"
        )


def compare(a: CircuitGraph, b: CircuitGraph, *, seeds: int = 10) -> Comparison:
    """Compare two circuits; UsageError where they are not of the same wiring and positions."""
    if a.wiring != b.wiring or a.scores.shape != b.scores.shape:
        raise UsageError(f"{a.wiring} and {b.wiring}: compare circuits of one wiring and the same positions")
    legal = np.broadcast_to(a.wiring.legal, a.scores.shape)
    dealt = [shuffled(b, seed) for seed in range(seeds)]
    rivals = [fitted(each, b.n_kept) for each in dealt]
    shared = int((a.mask & b.mask).sum())
    return Comparison(
        edges=jaccard(a.mask, b.mask),
        nodes=jaccard(_nodes(a), _nodes(b)),
        shared_edges=shared,
        sizes=(a.n_kept, b.n_kept),
        control=mean_interval([jaccard(a.mask, mask) for mask in rivals]) if a.n_kept + b.n_kept else _NOTHING,
        rank=_spearman(a.scores[legal], b.scores[legal]),
        rank_absolute=_spearman(np.abs(a.scores[legal]), np.abs(b.scores[legal])),
        rank_control=_mean([_spearman(a.scores[legal], each.scores[legal]) for each in dealt]),
        p_overlap=float(stats.hypergeom.sf(shared - 1, a.n_edges, a.n_kept, b.n_kept)),
    )


def jaccard(a: Bool[np.ndarray, "*shape"], b: Bool[np.ndarray, "*shape"]) -> float:
    """Return the share of the union that both hold; NaN for two empty sets."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else float("nan")


_NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0, 0.95)


def _nodes(graph: CircuitGraph) -> Bool[np.ndarray, " writer"]:
    mask = graph.mask.reshape(-1, *graph.wiring.legal.shape)
    return np.asarray(mask.any(axis=(0, 2)))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation; NaN where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _mean(values: list[float]) -> Interval:
    return _NOTHING if np.isnan(values).any() else mean_interval(values)


@dataclass(frozen=True, repr=False)
class Transfer:
    """Faithfulness of each task's circuit on every task's pairs."""

    circuits: tuple[str, ...]
    tasks: tuple[str, ...]
    cells: tuple[tuple[Faithfulness, ...], ...]
    """A row for each circuit, a column for each task; the last row is a random circuit."""

    def __repr__(self) -> str:
        return f"Transfer({len(self.circuits) - 1} circuits on {len(self.tasks)} tasks)"

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each circuit and task."""
        import pandas as pd

        rows = []
        for circuit, row in zip(self.circuits, self.cells, strict=True):
            for task, cell in zip(self.tasks, row, strict=True):
                own = cell.interval
                numbers = {"faithfulness": own.value, "low": own.low, "high": own.high, "n": own.n}
                rows.append({"circuit": circuit, "task": task, **numbers, "undefined": cell.undefined})
        return pd.DataFrame(rows)

    def chart(self) -> Heat:
        """Return the table as a heat map; what is undefined is a gap."""
        values = tuple(tuple(cell.value for cell in row) for row in self.cells)
        note = "Last row: a random circuit as large as the largest."
        return Heat("Faithfulness across tasks", self.circuits, self.tasks, values, "faithfulness", note)


def transfer(
    model: Model,
    circuits: Mapping[str, CircuitGraph],
    tasks: Mapping[str, Items],
    *,
    ablation: str | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> Transfer:
    """Run every circuit on every task's (held-out) pairs, and a random circuit as large as the largest.

    ablation: None takes that of the circuits, which must then agree.
    """
    graphs = list(circuits.values())
    if not graphs or not tasks:
        raise UsageError("transfer needs a circuit and a task")
    if len({graph.wiring for graph in graphs}) > 1 or len({graph.scores.shape for graph in graphs}) > 1:
        raise UsageError("transfer compares circuits of one wiring and the same positions")
    ablations = {graph.header.ablation for graph in graphs}
    if ablation is None and len(ablations) > 1:
        raise UsageError(f"circuits found with {', '.join(sorted(ablations))} ablation: say which to judge them with")
    body, wiring = anatomy(model), graphs[0].wiring
    control = fitted(randomised(graphs[0], seed), max(graph.n_kept for graph in graphs))
    whole = np.ones_like(control)
    masks = np.stack([whole, ~whole, *(graph.mask for graph in graphs), control])
    columns = [_column(body, wiring, masks, items, ablation or min(ablations), memory) for items in tasks.values()]
    return Transfer((*circuits, "random"), tuple(tasks), tuple(zip(*columns, strict=True)))


def _column(
    body: Anatomy,
    wiring: Wiring,
    masks: Bool[np.ndarray, "circuit *pos writer reader"],
    items: Items,
    ablation: str,
    memory: int | None,
) -> tuple[Faithfulness, ...]:
    """Return what each circuit keeps of the model's effect on one task."""
    full, none, *values = circuit_values(body, wiring, masks, items, ablation, memory=memory)
    return tuple(faithfulness(row, full, none, clusters=clusters(items)) for row in values)
