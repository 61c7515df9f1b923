"""Choose which edges to keep: by score, from the logits backwards, at random, nested over sizes, as small as will do.

    top         the n edges of largest score, absolute (for closeness to the model) or signed (for performance)
    greedy      from the logits backwards, always the largest edge into what is reached already
    threshold   every edge of at least a score
    prune       drop what carries nothing: edges from writers without input, edges to readers that lead nowhere
    fitted      the longest top list that keeps at most n edges after pruning; makes controls of equal kept size
    tiers       the smallest winner that holds each edge; ``nested`` fills sizes tier by tier (best-of-N, combined)
    smallest    the smallest size that reaches a faithfulness, by grid, bisection and a look below

Pruning changes no value while cut edges carry the corrupted run: a head all of whose inputs are the corrupted run's
writes what it wrote there. It does with mean or zero ablation (the head of a mean is not the mean of heads), and where
a norm stands behind attention (its scale depends on the other heads of the run at hand).
Sources: EAP-IG (peers page sections 3 and 4), query circuits (card, Method and "Combining sizes").
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError, nearest

By = Literal["absolute", "signed"]
Mask = Bool[np.ndarray, "*pos writer reader"]


def top(graph: CircuitGraph, n: int, *, by: By | str = "absolute") -> Mask:
    """Return the mask of the ``n`` edges of largest score; of equal scores the earlier edge.

    >>> circuit = graph.keep(prune(graph.wiring, top(graph, 200)))  # doctest: +SKIP
    """
    _check_size(n, graph.n_edges)
    return _first(graph, ranking(graph, by=by), n)


def ranking(graph: CircuitGraph, *, by: By | str = "absolute") -> Int[np.ndarray, " edge"]:
    """Return the flat indices of all edges, the largest score first."""
    legal = np.flatnonzero(np.broadcast_to(graph.wiring.legal, graph.scores.shape))
    strength = _strength(graph, by).ravel()[legal]
    return legal[np.argsort(-strength, kind="stable")]


def threshold(graph: CircuitGraph, least: float, *, by: By | str = "absolute") -> Mask:
    """Return the mask of the edges that score ``least`` or more."""
    return (_strength(graph, by) >= least) & graph.wiring.legal


def greedy(graph: CircuitGraph, n: int) -> Mask:
    """Return ``n`` edges chosen from the logits backwards: each time the largest score that leads to the circuit.

    Every edge kept leads to the logits; writers may still lack an input (`prune`). Fewer than ``n`` edges come back
    only where no more lead to the logits.
    """
    wiring = graph.wiring
    if graph.scores.ndim == 3:
        raise UsageError("greedy walks from node to node: sum the scores over positions first")
    _check_size(n, graph.n_edges)
    # The readers that lead to each writer, and last the one that leads to the answer.
    into: list[list[int]] = [[] for _ in wiring.writers]
    into.append([len(wiring.readers) - 1])
    for reader in range(len(wiring.readers) - 1):
        for writer in wiring.outputs_of(reader):
            into[writer].append(reader)
    mask = np.zeros(graph.scores.shape, dtype=bool)
    seen, queue = {len(wiring.writers)}, list[tuple[float, int, int]]()
    open_readers: set[int] = set()

    def reach(node: int) -> None:
        for reader in into[node]:
            if reader not in open_readers:
                open_readers.add(reader)
                for writer in range(wiring.written_before(reader)):
                    heapq.heappush(queue, (-abs(float(graph.scores[writer, reader])), writer, reader))

    reach(len(wiring.writers))
    for _ in range(n):
        if not queue:
            break
        _, writer, reader = heapq.heappop(queue)
        mask[writer, reader] = True
        if writer not in seen:
            seen.add(writer)
            reach(writer)
    return mask


def prune(wiring: Wiring, mask: Mask) -> Mask:
    """Return ``mask`` without dangling edges: none from a writer without input, none to a reader that leads nowhere.

    The embedding always has input, the logits are always wanted. A key or value that heads share leads to all of
    them. With positions, keys and values serve their own position and later ones, and only the last position's logits
    are wanted.
    """
    if mask.shape[-2:] != wiring.legal.shape:
        raise UsageError(f"mask of shape {list(mask.shape)}; this wiring needs {list(wiring.legal.shape)} at the end")
    made = _made_by(wiring)  # reader, writer
    within, across = made.copy(), np.zeros_like(made)
    if mask.ndim == 3:
        later = np.array([name.startswith(("k.", "v.", "head_in.")) for name in wiring.readers])
        within[later], across[later] = False, made[later]
    kept = mask & wiring.legal
    if mask.ndim == 3:
        kept[:-1, :, -1] = False
    while True:
        read = kept.any(-2).astype(np.float32)  # ..., reader
        fed = read @ within > 0
        if mask.ndim == 3:
            fed |= np.maximum.accumulate(read, 0) @ across > 0
        fed[..., 0] = True
        used = kept.any(-1).astype(np.float32)  # ..., writer
        useful = used @ within.T > 0
        if mask.ndim == 3:
            useful |= np.maximum.accumulate(used[::-1], 0)[::-1] @ across.T > 0
        useful[..., -1] = True
        rest = kept & fed[..., :, None] & useful[..., None, :]
        if rest.sum() == kept.sum():
            return rest
        kept = rest


def fitted(graph: CircuitGraph, n: int, *, by: By | str = "absolute") -> Mask:
    """Return the pruned circuit of the longest top list that keeps at most ``n`` edges after pruning.

    Lists are nested, so what pruning leaves of them grows with their length, and bisection finds the longest.
    """
    _check_size(n, graph.n_edges)
    order = ranking(graph, by=by)
    low, high = 0, len(order) + 1  # low fits, high does not
    best = np.zeros(graph.scores.shape, dtype=bool)
    while high - low > 1:
        middle = (low + high) // 2
        kept = prune(graph.wiring, _first(graph, order, middle))
        if kept.sum() <= n:
            low, best = middle, kept
        else:
            high = middle
    return best


def random_mask(wiring: Wiring, n: int, seed: int = 0, *, positions: int | None = None) -> Mask:
    """Return ``n`` edges drawn uniformly, without pruning; nearly all of a small draw dangles (see `fitted`)."""
    shape = (*([positions] if positions else []), *wiring.legal.shape)
    legal = np.flatnonzero(np.broadcast_to(wiring.legal, shape))
    _check_size(n, len(legal))
    mask = np.zeros(shape, dtype=bool)
    mask.flat[np.random.default_rng(seed).choice(legal, n, replace=False)] = True
    return mask


def randomised(graph: CircuitGraph, seed: int = 0) -> CircuitGraph:
    """Return the graph with uniform random scores: the control that knows nothing."""
    scores = np.random.default_rng(seed).random(graph.scores.shape, dtype=np.float32)
    return replace(graph, scores=scores * graph.wiring.legal)


def shuffled(graph: CircuitGraph, seed: int = 0) -> CircuitGraph:
    """Return the graph with each reader's scores dealt anew among its writers.

    The control that knows which readers matter and how spread their scores are, but not whom they listen to.
    """
    rng, scores = np.random.default_rng(seed), graph.scores.copy()
    for reader in range(scores.shape[-1]):
        before = graph.wiring.written_before(reader)
        scores[..., :before, reader] = scores[..., rng.permutation(before), reader]
    return replace(graph, scores=scores)


def tiers(masks: Bool[np.ndarray, "size *pos writer reader"]) -> Int[np.ndarray, "*pos writer reader"]:
    """Return for each edge the index of the first mask that holds it; the number of masks where none does."""
    first: np.ndarray = masks.argmax(0)
    return np.where(masks.any(0), first, len(masks))


def nested(
    tier: Int[np.ndarray, "*pos writer reader"],
    sizes: Sequence[int],
    scores: Float[np.ndarray, "*pos writer reader"] | None = None,
) -> Bool[np.ndarray, "size *pos writer reader"]:
    """Return one mask for each size, each holding those before: tiers are filled in order, by falling absolute score.

    Edges of the last tier number, which no winner holds, are never taken; so a mask may stay below its size.
    """
    if tier.size == 0 or list(sizes) != sorted(sizes):
        raise UsageError(f"sizes={list(sizes)}: give them rising")
    strength = np.zeros(tier.size) if scores is None else np.abs(scores).ravel()
    order = np.lexsort((-strength, tier.ravel()))
    # The number of masks that `tiers` saw marks the edges of none; there is always one, where there is no edge.
    taken = int((tier < tier.max()).sum())
    masks = np.zeros((len(sizes), tier.size), dtype=bool)
    for row, size in zip(masks, sizes, strict=True):
        row[order[: min(size, taken)]] = True
    return masks.reshape(len(sizes), *tier.shape)


@dataclass(frozen=True)
class Smallest:
    """The smallest size found that reaches the target, and every size that was tried."""

    size: int | None
    """None: no size tried reaches the target."""
    value: float
    """At ``size``; the best value seen where there is none."""
    target: float
    tried: tuple[tuple[int, float], ...]
    """``(size, value)`` by rising size. No smaller size in this list reaches the target; others were not run."""

    def __repr__(self) -> str:
        if self.size is None:
            return f"Smallest(none of {len(self.tried)} sizes reaches {self.target:g}; best {self.value:.3f})"
        return f"Smallest({self.size} edges reach {self.value:.3f} >= {self.target:g}; {len(self.tried)} sizes tried)"


def smallest(
    value_at: Callable[[Sequence[int]], Sequence[float]],
    largest: int,
    target: float,
    *,
    least: int = 1,
    grid: int = 9,
    at_once: int = 4,
) -> Smallest:
    """Find the smallest size whose value reaches ``target``, without assuming that the curve rises.

    value_at: returns the value at each of several sizes (they share a forward pass); NaN never reaches the target.

    1. A grid from ``least`` to ``largest``, even in the logarithm; its first size that reaches is the upper end.
    2. ``at_once`` sizes between the ends at a time, until the ends are neighbours.
    3. The ``at_once`` untried sizes just below, and as many spread over the gaps under it; if one of them reaches,
       back to 2 from there.
    """
    if not 1 <= least <= largest:
        raise UsageError(f"least={least}, largest={largest}: sizes from 1 up, the least first")
    tried: dict[int, float] = {}

    def look(sizes: Sequence[int]) -> None:
        new = sorted({size for size in sizes if least <= size <= largest} - tried.keys())
        if new:
            tried.update(zip(new, map(float, value_at(new)), strict=True))

    look([round(size) for size in np.geomspace(least, largest, grid)] + [largest])
    while (found := _first_reaching(tried, target)) is not None:
        below = max((size for size in tried if size < found), default=least)
        if found - below > 1:
            look([below + round((found - below) * step / (at_once + 1)) for step in range(1, at_once + 1)])
            continue
        look(range(found - at_once - 1, found))
        look(_gaps(sorted(size for size in tried if size < found), at_once))
        if _first_reaching(tried, target) == found:
            break
    best = max(tried.values(), key=lambda value: -np.inf if np.isnan(value) else value)
    return Smallest(found, best if found is None else tried[found], target, tuple(sorted(tried.items())))


def _first_reaching(tried: dict[int, float], target: float) -> int | None:
    return min((size for size, value in tried.items() if value >= target), default=None)


def _gaps(sizes: Sequence[int], n: int) -> list[int]:
    """Return the middles of the ``n`` widest gaps in the logarithm."""
    gaps = sorted(pairwise(sizes), key=lambda gap: gap[0] / gap[1])
    return [round((low * high) ** 0.5) for low, high in gaps[:n]]


def _strength(graph: CircuitGraph, by: By | str) -> Float[np.ndarray, "*pos writer reader"]:
    if by not in get_args(By):
        raise UsageError(f"by={by!r}{nearest(by, get_args(By))}")
    return np.abs(graph.scores) if by == "absolute" else graph.scores


def _first(graph: CircuitGraph, order: Int[np.ndarray, " edge"], n: int) -> Mask:
    mask = np.zeros(graph.scores.shape, dtype=bool)
    mask.flat[order[:n]] = True
    return mask


@cache
def _made_by(wiring: Wiring) -> Float[np.ndarray, "reader writer"]:
    """Return 1 where a writer's output depends on a reader directly."""
    made = np.zeros((len(wiring.readers), len(wiring.writers)), dtype=np.float32)
    for reader in range(len(wiring.readers)):
        made[reader, list(wiring.outputs_of(reader))] = 1
    return made


def _check_size(n: int, n_edges: int) -> None:
    if not 0 <= n <= n_edges:
        raise UsageError(f"n={n}: from 0 to the {n_edges} edges there are")
