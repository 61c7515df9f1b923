"""Is a circuit complete, and is every edge of it needed: the same edges knocked out of circuit and model.

- Completeness: for random sets K of the circuit's edges, f(C without K) should be f(model without K). What is left
  over, mean |f(C - K) - f(M - K)|, is the circuit's incompleteness: what the model can do without K and the circuit
  cannot. The control is a random circuit of equal size, with random sets of its own.
- Minimality: f(C) - f(C without e) for each edge e. An edge is needed where the interval of this drop lies above
  what cutting an edge outside the circuit does to the whole model (95th percentile of its size over a random sample).

f is faithfulness. Source: the IOI paper's criteria, over edges (peers page section 4).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cutaway.circuits.score import LEAST
from cutaway.circuits.wiring import Wiring
from cutaway.stats import Interval, bootstrap, mean_interval, wilson

Mask = Bool[np.ndarray, "*pos writer reader"]
Run = Callable[[Bool[np.ndarray, "circuit *pos writer reader"]], Float[np.ndarray, "circuit item"]]
_RESAMPLES = 1000
_CONTROL_QUANTILE = 0.95


@dataclass(frozen=True, repr=False)
class Completeness:
    """How far the circuit is from the model when both lose the same edges."""

    incompleteness: Interval
    """Mean over sets of |difference in faithfulness|; its interval is over items, the sets are fixed."""
    control: Interval
    """The same for a random circuit of equal size; NaN where that keeps no edge."""
    circuit: Float[np.ndarray, " set"]
    """Faithfulness of the circuit without each set."""
    model: Float[np.ndarray, " set"]
    """Faithfulness of the model without it."""
    sizes: tuple[int, ...]
    """Edges in each set."""
    undefined: str = ""

    def __repr__(self) -> str:
        if self.undefined:
            return f"Completeness(undefined: {self.undefined})"
        return f"Completeness(incomplete by {self.incompleteness!r}, random circuit {self.control!r})"


@dataclass(frozen=True, repr=False)
class Minimality:
    """What each edge contributes to the circuit."""

    edges: tuple[tuple[int, ...], ...]
    """Places in the mask; all of the circuit's edges, or a random sample of a large circuit's."""
    drops: tuple[Interval, ...]
    """Faithfulness lost without each edge; over items, in units of the mean clean-corrupted difference."""
    control: float
    """95th percentile of |change| when the model loses an edge outside the circuit; NaN where there is none."""
    n_circuit: int
    undefined: str = ""

    def __repr__(self) -> str:
        if self.undefined:
            return f"Minimality(undefined: {self.undefined})"
        return f"Minimality({self.share_needed!r} of edges needed, {len(self.edges)} of {self.n_circuit} tried)"

    @property
    def needed(self) -> tuple[bool, ...]:
        bar = 0.0 if np.isnan(self.control) else self.control
        # Where all items agree there is no interval, and the drop itself decides.
        return tuple((drop.value if np.isnan(drop.low) else drop.low) > bar for drop in self.drops)

    @property
    def share_needed(self) -> Interval:
        return wilson(sum(self.needed), len(self.needed))


def completeness(
    run: Run,
    circuit: Mask,
    random_circuit: Mask,
    wiring: Wiring,
    full: Float[np.ndarray, " item"],
    none: Float[np.ndarray, " item"],
    clusters: tuple[str, ...],
    *,
    sets: int = 20,
    seed: int = 0,
) -> Completeness:
    """Knock the same ``sets`` random sets of edges out of circuit and model, and likewise for ``random_circuit``."""
    nothing, reason = Interval(np.nan, np.nan, np.nan, 0, 0.95), _no_scale(full, none, circuit)
    if reason:
        return Completeness(nothing, nothing, np.empty(0), np.empty(0), (), reason)
    rng = np.random.default_rng(seed)
    whole = np.broadcast_to(wiring.legal, circuit.shape)
    own_sets, other_sets = _random_sets(circuit, sets, rng), _random_sets(random_circuit, sets, rng)
    masks = [base & ~k for k in own_sets for base in (circuit, whole)]
    masks += [base & ~k for k in other_sets for base in (random_circuit, whole)]
    values = run(np.stack(masks)).reshape(-1, 2, len(full))
    own, control = values[: len(own_sets)], values[len(own_sets) :]
    span = (full - none).mean()
    means = (own.mean(-1) - none.mean()) / span
    return Completeness(
        _mean_gap(own, full, none, clusters, seed),
        _mean_gap(control, full, none, clusters, seed) if len(control) else nothing,
        means[:, 0],
        means[:, 1],
        tuple(int(k.sum()) for k in own_sets),
    )


def _random_sets(circuit: Mask, sets: int, rng: np.random.Generator) -> list[Mask]:
    """Return subsets of the circuit of random sizes, from one edge to all."""
    edges, chosen = np.flatnonzero(circuit), []
    for _ in range(sets if len(edges) else 0):
        k = np.zeros_like(circuit)
        k.flat[rng.choice(edges, rng.integers(1, len(edges) + 1), replace=False)] = True
        chosen.append(k)
    return chosen


def _mean_gap(values: np.ndarray, full: np.ndarray, none: np.ndarray, labels: tuple[str, ...], seed: int) -> Interval:
    """Return mean over sets of |f(circuit) - f(model)|, bootstrapped over clusters: values [set 2 item]."""
    rows = np.concatenate([values[:, 0] - values[:, 1], (full - none)[None]]).T
    _, member = np.unique(labels, return_inverse=True)
    sums = np.stack([np.bincount(member, weights=column) for column in rows.T], -1)

    def gap(drawn: np.ndarray) -> float:
        total = drawn.sum(0)
        return float(np.abs(total[:-1] / total[-1]).mean()) if total[-1] else float("nan")

    return bootstrap(sums, gap, method="percentile", n=_RESAMPLES, seed=seed)


def minimality(
    run: Run,
    circuit: Mask,
    wiring: Wiring,
    full: Float[np.ndarray, " item"],
    none: Float[np.ndarray, " item"],
    clusters: tuple[str, ...],
    *,
    members: int = 128,
    seed: int = 0,
) -> Minimality:
    """Cut each edge of ``circuit`` by itself (``members`` random ones of a larger circuit)."""
    reason = _no_scale(full, none, circuit)
    if reason:
        return Minimality((), (), float("nan"), int(circuit.sum()), reason)
    rng, whole = np.random.default_rng(seed), np.broadcast_to(wiring.legal, circuit.shape)
    inside, outside = np.argwhere(circuit), np.argwhere(whole & ~circuit)
    inside = inside[np.sort(rng.permutation(len(inside))[:members])]
    outside = outside[rng.permutation(len(outside))[:members]]
    masks = np.concatenate(
        [circuit[None], _without(circuit, inside), np.asarray(whole)[None], _without(np.asarray(whole), outside)]
    )
    values, span = run(masks), float((full - none).mean())
    base, cut = values[0], values[1 : 1 + len(inside)]
    model, model_cut = values[1 + len(inside)], values[2 + len(inside) :]
    changes = np.abs((model_cut - model).mean(-1) / span)
    return Minimality(
        tuple(tuple(map(int, edge)) for edge in inside),
        tuple(mean_interval((base - row) / span, clusters=clusters) for row in cut),
        float(np.quantile(changes, _CONTROL_QUANTILE)) if len(changes) else float("nan"),
        int(circuit.sum()),
    )


def _without(mask: Mask, edges: np.ndarray) -> np.ndarray:
    masks = np.repeat(mask[None], len(edges), 0)
    masks[(np.arange(len(edges)), *edges.T)] = False
    return masks


def _no_scale(full: np.ndarray, none: np.ndarray, circuit: Mask) -> str:
    if not circuit.any():
        return "the circuit keeps no edge"
    if abs(float((full - none).mean())) < LEAST:
        return "mean clean and corrupted values do not differ"
    return ""
