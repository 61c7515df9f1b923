"""Overlap and rank against sets worked by hand and against chance; a circuit serves its own task."""

from math import comb

import numpy as np
import pytest

from cutaway.circuits.attribution import Settings, attribute
from cutaway.circuits.comparison import compare, jaccard, transfer
from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.pairs import Pair, Pairs
from cutaway.circuits.select import prune, random_mask, top
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.planted.circuits import lookup

WIRING = Wiring(2, 2, 2)


def graph_of(seed: int, mask: np.ndarray | None = None) -> CircuitGraph:
    scores = np.random.default_rng(seed).normal(size=WIRING.legal.shape).astype(np.float32)
    graph = CircuitGraph.whole(Header("random", "none", WIRING, "random"), scores)
    return graph if mask is None else graph.keep(mask)


def test_overlap_by_hand() -> None:
    edges = np.argwhere(WIRING.legal)
    a, b = np.zeros_like(WIRING.legal), np.zeros_like(WIRING.legal)
    a[tuple(edges[:6].T)] = True
    b[tuple(edges[4:9].T)] = True
    found = compare(graph_of(0, a), graph_of(1, b))
    assert found.shared_edges == 2
    assert found.sizes == (6, 5)
    assert found.edges == pytest.approx(2 / 9)
    writers = [{int(writer) for writer in np.argwhere(mask)[:, 0]} for mask in (a, b)]
    assert found.nodes == pytest.approx(len(writers[0] & writers[1]) / len(writers[0] | writers[1]))
    n = WIRING.n_edges
    tail = sum(comb(6, k) * comb(n - 6, 5 - k) for k in range(2, 6)) / comb(n, 5)
    assert found.p_overlap == pytest.approx(tail)


def test_a_circuit_is_like_itself_and_unlike_others() -> None:
    graph = graph_of(0)
    own = graph.keep(top(graph, 12))
    same = compare(own, own)
    assert (same.edges, same.nodes) == (1.0, 1.0)
    assert same.rank == pytest.approx(1.0)
    assert same.control.high < 1
    assert same.p_overlap < 1e-6
    flipped = CircuitGraph(own.header, -own.scores, own.mask)
    assert compare(own, flipped).rank == pytest.approx(-1.0)
    assert compare(own, flipped).rank_absolute == pytest.approx(1.0)


def test_unrelated_circuits_give_uniform_p() -> None:
    """Of random sets, at most 5% fall below 0.05 (the law is discrete), and the correlation is near zero."""
    n = 100
    low = 0
    for seed in range(n):
        a, b = (graph_of(2 * seed + side, random_mask(WIRING, 15, 2 * seed + side)) for side in (0, 1))
        low += compare(a, b, seeds=1).p_overlap < 0.05
    assert low <= 12  # more than 12 of 100 has probability 0.0015 at 5%


def test_what_cannot_be_said() -> None:
    empty = graph_of(0, np.zeros_like(WIRING.legal))
    nothing = compare(empty, empty)
    assert np.isnan(nothing.edges)
    assert np.isnan(nothing.control.value)
    flat = CircuitGraph.whole(empty.header, np.zeros(WIRING.legal.shape, dtype=np.float32))
    assert np.isnan(compare(flat, empty).rank)
    assert np.isnan(jaccard(empty.mask, empty.mask))
    other = CircuitGraph.whole(Header("m", "f", Wiring(1, 2, 2), "eap"), np.zeros(Wiring(1, 2, 2).legal.shape, "f4"))
    with pytest.raises(UsageError, match="circuits of one wiring"):
        compare(empty, other)
    with pytest.raises(UsageError, match="needs a circuit and a task"):
        transfer(lookup().model, {}, {})


def test_a_circuit_serves_its_own_task_and_not_the_other() -> None:
    planted = lookup()
    tasks = {
        change: Pairs(tuple(Pair(*row) for row in planted.rows(8, seed, change)))
        for seed, change in enumerate(("query", "values"))
    }
    circuits = {}
    for seed, change in enumerate(tasks):
        found = Pairs(tuple(Pair(*row) for row in planted.rows(8, 10 + seed, change)))
        graph = attribute(planted.model, found, Settings("eap-ig", steps=20))
        circuits[change] = graph.keep(prune(graph.wiring, top(graph, 4)))
    table = transfer(planted.model, circuits, tasks)
    assert table.circuits == ("query", "values", "random")
    for row, circuit in enumerate(table.circuits):
        for column, task in enumerate(table.tasks):
            assert table.cells[row][column].value == pytest.approx(float(circuit == task), abs=5e-3)
    assert len(table.to_frame()) == 6
    assert table.chart().columns == ("query", "values")
