"""Explain one answer by a small part of the model: find a query's circuit, and check it where it was not chosen.

1. Score every edge by EAP-IG on the query and on each of its other wordings (`candidates.score_matrices`).
2. Candidates: N score matrices or edge sets for each way of searching (`candidates.WAYS`). For a size k, a matrix
   gives its k edges of largest absolute score; edges that carry nothing are pruned.
3. Run all candidates at all sizes on the query, many circuits to a forward, the corrupted run once (`patch.run`).
4. NDF = 1 - min(|L(M(q)) - L(C(q))| / |L(M(q)) - L(M(q'))|, 1). Each way's winner at each size is its best candidate.
5. The winner was chosen on the query, so its NDF there flatters it. Run winners again on what no choice saw: another
   corruption of the query, another wording. These, beside an equal search over random matrices, are what to quote.
6. Nested: an edge's tier is the smallest size whose winner holds it; tiers filled in order give circuits inside each
   other. Between two sizes, tiers of all sizes (``nested``) or of the two neighbours alone (``neighbours``).
7. Complement: everything but the circuit's edges is kept. A circuit that carries the answer leaves little behind.

Paper: Wu, Barez 2025, arXiv:2509.24808 (best-of-N, BoN-CSM, iBoN, NDF). Known limits: NDF is undefined where clean and
corrupted values agree; an answer is one token (the first one decides); other wordings bring answers of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from cutaway.circuits.attribution import header
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.pairs import Pair, Pairs
from cutaway.circuits.parts import Anatomy, anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.query_circuits.candidates import Search, Sets, candidate_sets, score_matrices
from cutaway.circuits.query_circuits.data import Query
from cutaway.circuits.query_circuits.kept import keep, kept, place_of
from cutaway.circuits.query_circuits.result import QueryCircuits, Searched
from cutaway.circuits.record import Record, reference
from cutaway.circuits.score import ndf, nfs
from cutaway.circuits.select import nested, prune, tiers, top
from cutaway.circuits.wiring import Grouping, Wiring
from cutaway.errors import UsageError
from cutaway.model import Model

Tick = Callable[[float, float, str], None]
Masks = Bool[np.ndarray, "circuit writer reader"]
Numbers = Float[np.ndarray, " circuit"]


def search_circuits(
    model: Model,
    queries: Sequence[Query],
    search: Search | None = None,
    *,
    grouping: Grouping | str = "shared",
    memory: int | None = None,
    folder: Path | None = None,
    tick: Tick = lambda done, total, note: None,
) -> QueryCircuits:
    """Find the circuits of each of ``queries``; Ctrl-C returns those finished, ``complete=False``.

    memory: bytes that runs may use; None takes a share of what is free. folder: where finished queries are kept, and
    found again by a later search for the same. tick: queries done, in all, and which is next.

    >>> found = search_circuits(model, indirect_objects(model, 10).items)  # doctest: +SKIP
    >>> found.curve("wordings", "another corruption")  # doctest: +SKIP
    """
    search = search or Search()
    body, wiring = anatomy(model), Wiring.of(model, grouping)
    if not queries:
        raise UsageError("no queries to explain")
    if search.sizes[-1] > wiring.n_edges:
        raise UsageError(f"sizes up to {search.sizes[-1]}: {model.name} has {wiring.n_edges} edges")
    done: list[Searched] = []
    complete = True
    try:
        for query in queries:
            tick(float(len(done)), float(len(queries)), query.name[:60])
            path = folder and place_of(folder, model.fingerprint, wiring, query, search)
            found = path and kept(path)
            if not found:
                found = search_query(body, wiring, query, search, memory=memory)
                if path:
                    keep(path, found)
            done.append(found)
    except KeyboardInterrupt:
        complete = False
    return QueryCircuits(tuple(done), search.sizes, search.between, complete)


def search_query(body: Anatomy, wiring: Wiring, query: Query, search: Search, *, memory: int | None = None) -> Searched:
    """Find the circuits of one query: steps 1 to 7 of the module's docstring."""
    matrices = score_matrices(body, wiring, query, search.settings, memory=memory)
    asked = place(body, wiring, query.pair, memory)
    graph = CircuitGraph.whole(header(body, wiring, asked.pairs, search.settings), matrices[0])
    sets = candidate_sets(graph, matrices, query, search)
    scored = asked.ndf({way: _pruned(wiring, masks) for way, masks in sets.items()})
    winners = {way: np.nan_to_num(values, nan=-1.0).argmax(0) for way, values in scored.items()}
    sizes = np.arange(len(search.sizes))
    chosen = {way: masks[winners[way], sizes] for way, masks in sets.items()}
    main = "wordings" if "wordings" in chosen else "single"
    chosen["nested"] = nested(tiers(chosen[main]), search.sizes, graph.scores)
    best = {way: _pruned(wiring, masks) for way, masks in chosen.items()}
    between = asked.ndf(_between(wiring, chosen[main], search, graph))
    held_out = {what: place(body, wiring, pair, memory).ndf(best) for what, pair in query.held_out}
    return Searched(
        name=query.name,
        group=query.group,
        full=asked.full,
        none=asked.none,
        candidates=scored,
        winners=winners,
        ndf={way: scored[way][winners[way], sizes] for way in sets} | asked.ndf({"nested": best["nested"]}),
        kept={way: masks.sum((1, 2)) for way, masks in best.items()},
        held_out=held_out,
        between=between,
        complement=asked.nfs(wiring.legal & ~best[main]),
        graph=graph,
        masks=best[main],
    )


@dataclass(frozen=True)
class Place:
    """A pair to run circuits on: its corrupted run, and what the model says with and without all edges."""

    body: Anatomy
    wiring: Wiring
    pairs: Pairs
    instead: Record
    full: float
    none: float
    memory: int | None = None

    def ndf(self, circuits: Mapping[str, Bool[np.ndarray, "*rows writer reader"]]) -> dict[str, np.ndarray]:
        """Return the NDF of every circuit, NaN where it is undefined; circuits that are alike run once."""
        if not circuits:
            return {}
        flat = np.concatenate([masks.reshape(-1, *self.wiring.legal.shape) for masks in circuits.values()])
        values = ndf(self.values(flat)[:, None], *self._ends()).values[:, 0]
        out: dict[str, np.ndarray] = {}
        start = 0
        for name, masks in circuits.items():
            stop = start + int(np.prod(masks.shape[:-2]))
            out[name] = values[start:stop].reshape(masks.shape[:-2])
            start = stop
        return out

    def nfs(self, masks: Masks) -> Numbers:
        """Return how much of the way from the corrupted to the clean value each circuit goes."""
        return np.asarray(nfs(self.values(masks)[:, None], *self._ends()).values[:, 0])

    def values(self, masks: Masks) -> Numbers:
        """Return the answer's measure in each circuit."""
        packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
        _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        with torch.no_grad():
            kept = torch.from_numpy(masks[first])
            logits = run(self.body, self.wiring, self.pairs.clean, kept, self.instead, memory=self.memory)
            found: np.ndarray = self.pairs.value(logits)[:, 0].double().cpu().numpy()
        return found[which.reshape(-1)]

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self.full]), np.array([self.none])


def place(body: Anatomy, wiring: Wiring, pair: Pair, memory: int | None = None) -> Place:
    """Make ready to run circuits on ``pair``: one forward on clean and corrupted, and the corrupted run's record."""
    pairs = Pairs((pair,))
    with torch.no_grad():
        batch = body.model.batch([list(pair.clean), list(pair.corrupted)])
        logits = body.model.hf(**batch.forward_kwargs(), use_cache=False, logits_to_keep=1).logits[:, -1]
        full, none = (float(pairs.value(row[None])) for row in logits)
    return Place(body, wiring, pairs, reference(body, pairs.corrupted, "corrupted", pairs.clean), full, none, memory)


def _pruned(wiring: Wiring, masks: Sets | Masks) -> np.ndarray:
    """Return each mask pruned; one at a time, for `prune` reads a third axis as positions."""
    flat = masks.reshape(-1, *wiring.legal.shape)
    return np.stack([prune(wiring, mask) for mask in flat]).reshape(masks.shape)


def _between(
    wiring: Wiring, winners: Bool[np.ndarray, "size writer reader"], search: Search, graph: CircuitGraph
) -> dict[str, Masks]:
    """Return circuits halfway between sizes: the query's own, by the tiers of all sizes, by those of two neighbours."""
    if not search.between:
        return {}
    circuits = {
        "single": np.stack([top(graph, size) for size in search.between]),
        "nested": nested(tiers(winners), search.between, graph.scores),
        "neighbours": np.concatenate(
            [nested(tiers(winners[at : at + 2]), [size], graph.scores) for at, size in enumerate(search.between)]
        ),
    }
    return {name: _pruned(wiring, masks) for name, masks in circuits.items()}
