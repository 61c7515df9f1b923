"""Candidate circuits of a query: several ways to get N score matrices, and the edges each keeps at each size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float

from cutaway.circuits.attribution import Rule, Settings, edge_scores
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.pairs import by_length
from cutaway.circuits.parts import Anatomy
from cutaway.circuits.query_circuits.data import Query
from cutaway.circuits.select import top
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError, nearest

WAYS: Mapping[str, str] = {
    "single": "the query's own scores alone",
    "wordings": "best of N: the query's scores and those of its other wordings",
    "noise 0.01": "best of N: the query's scores, plain and with Gaussian noise of this size",
    "noise 0.001": "best of N: the query's scores, plain and with Gaussian noise of this size",
    "swap 0.1": "best of N: the query's edges, plain and with this share exchanged for random ones",
    "swap 0.3": "best of N: the query's edges, plain and with this share exchanged for random ones",
    "mean": "the mean of the scores of the query and its wordings",
    "random": "control: best of N uniform random matrices",
}
"""How candidates are made. ``single`` is candidate 0 of every best-of-N way but ``random``."""

Sets = Bool[np.ndarray, "set size writer reader"]


@dataclass(frozen=True)
class Search:
    """What is tried."""

    sizes: tuple[int, ...] = (50, 100, 250, 500, 1000, 2000, 5000, 10000)
    """Edges kept before pruning, rising."""
    ways: tuple[str, ...] = ("single", "wordings", "mean", "random")
    steps: int = 20
    """Points of the integrated gradient."""
    rule: Rule | str = "left"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise UsageError(f"sizes={self.sizes}: one or more, from 1 up, rising")
        for way in self.ways:
            if way not in WAYS:
                raise UsageError(f"way {way!r}{nearest(way, WAYS)}")
        for way in ("single", "random"):
            if way not in self.ways:
                raise UsageError(f"ways={self.ways}: {way!r} belongs to every search; without it nothing compares")
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: 1 or more")
        if self.rule not in get_args(Rule):
            raise UsageError(f"rule={self.rule!r}{nearest(self.rule, get_args(Rule))}")

    @property
    def between(self) -> tuple[int, ...]:
        """The sizes halfway, in the logarithm, between neighbours."""
        return tuple(round((a * b) ** 0.5) for a, b in zip(self.sizes, self.sizes[1:], strict=False))

    @property
    def settings(self) -> Settings:
        return Settings("eap-ig", steps=self.steps, rule=self.rule)


def score_matrices(
    body: Anatomy, wiring: Wiring, query: Query, settings: Settings, *, memory: int | None = None
) -> Float[np.ndarray, "candidate writer reader"]:
    """Return the edge scores of the query and of each wording; pairs of one length share their passes."""
    pairs = [query.pair, *query.wordings]
    found: dict[int, np.ndarray] = {}
    for group in by_length(pairs):
        scores = edge_scores(body, wiring, group, settings, memory=memory).float().cpu().numpy()
        rows = {id(pair): row for pair, row in zip(group.items, scores, strict=True)}
        found |= {place: rows[id(pair)] for place, pair in enumerate(pairs) if id(pair) in rows}
    return np.stack([found[place] for place in range(len(pairs))])


def candidate_sets(
    graph: CircuitGraph, matrices: Float[np.ndarray, "candidate writer reader"], query: Query, search: Search
) -> dict[str, Sets]:
    """Return each way's edge sets, unpruned. All best-of-N ways have as many candidates as there are ``matrices``."""
    single = _tops(graph, matrices[:1], search)
    sets: dict[str, Sets] = {}
    for way in search.ways:
        # Each way has its own stream, so that leaving one out does not change another.
        rng = np.random.default_rng([search.seed, list(WAYS).index(way), *query.pair.clean])
        others = (len(matrices) - 1, *matrices.shape[1:])
        if way == "single":
            sets[way] = single
        elif way == "wordings":
            sets[way] = np.concatenate([single, _tops(graph, matrices[1:], search)])
        elif way == "mean":
            sets[way] = _tops(graph, matrices.mean(0, keepdims=True), search)
        elif way == "random":
            sets[way] = _tops(graph, rng.random(matrices.shape), search)
        elif way.startswith("noise"):
            noise = float(way.split()[1]) * rng.standard_normal(others)
            sets[way] = np.concatenate([single, _tops(graph, matrices[0] + noise, search)])
        else:
            share = float(way.split()[1])
            swapped = [[exchanged(mask, share, graph.wiring, rng) for mask in single[0]] for _ in range(others[0])]
            sets[way] = np.concatenate([single, np.array(swapped, bool).reshape(-1, *single.shape[1:])])
    return sets


def exchanged(
    mask: Bool[np.ndarray, "writer reader"], share: float, wiring: Wiring, rng: np.random.Generator
) -> Bool[np.ndarray, "writer reader"]:
    """Return ``mask`` with this share of its edges exchanged for others, drawn uniformly."""
    inside, outside = np.flatnonzero(mask & wiring.legal), np.flatnonzero(~mask & wiring.legal)
    n = min(round(share * len(inside)), len(outside))
    out = mask.copy()
    out.flat[rng.choice(inside, n, replace=False)] = False
    out.flat[rng.choice(outside, n, replace=False)] = True
    return out


def _tops(graph: CircuitGraph, matrices: np.ndarray, search: Search) -> Sets:
    legal = graph.wiring.legal
    sets = np.zeros((len(matrices), len(search.sizes), *legal.shape), dtype=bool)
    for row, matrix in zip(sets, matrices, strict=True):
        scored = CircuitGraph.whole(graph.header, matrix.astype(np.float32))
        for at, size in enumerate(search.sizes):
            row[at] = top(scored, size)
    return sets
