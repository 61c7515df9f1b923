"""Query circuits measured on a model whose circuit is known: an induction head that reads a previous-token head.

Three corruptions of one task leave three circuits, which follow from how the model was built:

    value   the symbol to copy is another one: embed -> v.1.H, z.1.H -> logits
    key     the symbol before it is another one, so nothing matches: embed -> v.0.P, z.0.P -> k.1.H, z.1.H -> logits
    query   the last symbol is another one, so another place matches: embed -> q.1.H, z.1.H -> logits

The third is where first-order scores go wrong (attention is saturated; several edges into the value seem to matter),
so its edges are asked for within a larger circuit. A fourth pair changes a symbol that nothing copies: the answer stays
and NDF must be undefined.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cutaway.circuits.pairs import Pair
from cutaway.circuits.query_circuits.candidates import Search
from cutaway.circuits.query_circuits.data import Query
from cutaway.circuits.query_circuits.method import search_circuits
from cutaway.circuits.query_circuits.result import CHOSEN, Searched
from cutaway.planted.induction import Induction, induction
from cutaway.study import Rate

KINDS = ("value", "key", "query")
SIZES = (1, 2, 3, 4, 8, 16)
NEAR = 0.95
"""NDF from which a planted circuit counts as complete; distractor heads carry the rest."""
_LENGTH = 6
_WORDINGS = 9


@dataclass(frozen=True)
class Known:
    """A query of the planted model and its edges."""

    query: Query
    edges: frozenset[tuple[str, str]]


def known_query(planted: Induction, kind: str, seed: int) -> Known:
    """Return a query whose circuit is known, with wordings and held-out pairs of the same kind."""
    pairs = [induction_pair(planted, kind, 1000 * seed + at) for at in range(_WORDINGS + 2)]
    held = (("another corruption", induction_pair(planted, kind, 1000 * seed, again=1)), ("another wording", pairs[-1]))
    (_, previous, _), (_, head, _) = planted.truth.heads
    edges = {
        "value": {("embed", f"v.1.{head}"), (f"z.1.{head}", "logits")},
        "key": {("embed", f"v.0.{previous}"), (f"z.0.{previous}", f"k.1.{head}"), (f"z.1.{head}", "logits")},
        "query": {("embed", f"q.1.{head}"), (f"z.1.{head}", "logits")},
        "nothing": set(),
    }[kind]
    return Known(Query(f"{kind} {seed}", pairs[0], tuple(pairs[1:-1]), held, kind), frozenset(edges))


def induction_pair(planted: Induction, kind: str, seed: int, again: int = 0) -> Pair:
    """Return a repeated sequence and its corruption of this ``kind``; ``again`` draws other symbols for it."""
    rng = np.random.default_rng(seed)
    start, *symbols = planted.unrepeated(1, _LENGTH + 2, seed)[0]
    body, extra = symbols[:_LENGTH], symbols[_LENGTH + again]
    at = int(rng.integers(3, _LENGTH - 1))  # body[at] comes next
    clean = [start, *body, *body[:at]]
    corrupted, wrong = list(clean), extra
    if kind == "value":
        corrupted[1 + at] = extra
    elif kind == "key":
        corrupted[at] = extra
    elif kind == "query":
        corrupted[-1], wrong = body[at - 2 + 2 * again], body[at - 1 + 2 * again]
    else:  # the last symbol of the first half, which nothing asks for
        corrupted[_LENGTH] = extra
    return Pair(tuple(clean), tuple(corrupted), (body[at],), (wrong,), f"{kind} {seed} {again}")


def rates(trials: int, tick: Callable[[int], None] = lambda done: None) -> tuple[Rate, ...]:
    """Return what is recovered and what is claimed where nothing is, over ``trials`` models."""
    exact = dict.fromkeys(KINDS, 0)
    held = random = spoken = 0
    for seed in range(trials):
        tick(seed)
        planted = induction(16, previous=seed % 4, head=(seed // 4 + 2) % 4, seed=seed)
        search = Search(SIZES, steps=10, seed=seed)
        asked = [known_query(planted, kind, seed) for kind in KINDS]
        found = search_circuits(planted.model, [each.query for each in asked], search)
        for kind, each, query in zip(KINDS, asked, found.queries, strict=True):
            exact[kind] += _recovered(query, each.edges, len(each.edges) if kind != "query" else 8)
            held += all(query.curve("wordings", where)[-1] >= NEAR for where in query.held_out)
            random += any(query.curve("random", where)[:-1].max() > 0.05 for where in (CHOSEN, *query.held_out))
        # Without distractors, whose noise answers to every change, the answer stays to the last digit but one.
        silent = induction(16, previous=seed % 4, head=(seed // 4 + 2) % 4, noise=0.0, seed=seed)
        nothing = search_circuits(silent.model, [known_query(silent, "nothing", seed).query], search).queries[0]
        spoken += not all(np.isnan(values).all() for values in nothing.ndf.values())
    n = len(KINDS) * trials
    return (
        Rate(
            "value circuit", exact["value"], trials, at_least=0.95, what="circuits of 2 edges, exactly the planted ones"
        ),
        Rate("key circuit", exact["key"], trials, at_least=0.9, what="circuits of 3 edges that are the planted ones"),
        Rate(
            "query circuit", exact["query"], trials, at_least=0.9, what="circuits of 8 edges that hold the planted ones"
        ),
        Rate("held out", held, n, at_least=0.95, what=f"circuits of 16 edges with NDF {NEAR:g} on both held-out pairs"),
        Rate("random", random, n, at_most=0.05, what="queries where random search exceeds NDF 0.05 below 16 edges"),
        Rate(
            "nothing to find", spoken, trials, at_most=0.0, what="queries given an NDF though the answer cannot change"
        ),
    )


def _recovered(query: Searched, edges: frozenset[tuple[str, str]], size: int) -> bool:
    at = SIZES.index(size)
    kept = {(writer, reader) for writer, reader, _ in query.circuit(at).edges()}
    same = kept == edges if size == len(edges) else kept >= edges
    return same and bool(query.curve("wordings")[at] >= NEAR)
