"""The lookup model answers as its task says, and exactly its planted edges matter, each by itself."""

import math

import numpy as np
import pytest
import torch

from cutaway.circuits.attribution import Settings, attribute
from cutaway.circuits.evaluation import curve, evaluate
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.items import split
from cutaway.circuits.pairs import Pair, Pairs
from cutaway.circuits.select import prune, threshold, top
from cutaway.errors import UsageError
from cutaway.planted.circuits import Lookup, lookup


@pytest.fixture(scope="module")
def planted() -> Lookup:
    return lookup()


def pairs_of(planted: Lookup, n: int, seed: int = 0, change: str | None = None) -> Pairs:
    return Pairs(tuple(Pair(*row) for row in planted.rows(n, seed, change)))


def edges_of(graph: CircuitGraph) -> set[tuple[str, str]]:
    return {(writer, reader) for writer, reader, _ in graph.edges()}


@torch.no_grad()
@pytest.mark.parametrize("change", ["query", "keys", "values", "gate"])
def test_the_model_answers_as_the_task_says(planted: Lookup, change: str) -> None:
    pairs = pairs_of(planted, 12, 3, change)
    clean, other = (
        planted.model.logits(planted.model.batch(ids.tolist()))[:, -1] for ids in (pairs.clean, pairs.corrupted)
    )
    assert [int(row.argmax()) for row in clean] == [pair.right[0] for pair in pairs.items]
    full = 2 * 4 / (1 + math.exp(-4))
    assert torch.allclose(pairs.value(clean), torch.tensor(full), rtol=0.02)
    assert torch.allclose(pairs.value(other), torch.tensor(0.0 if change == "gate" else -full), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("change", ["query", "keys", "values", "gate"])
def test_exactly_the_planted_edges_matter(planted: Lookup, change: str) -> None:
    exact = attribute(planted.model, pairs_of(planted, 4, 1, change), Settings("exact"))
    assert edges_of(exact.keep(threshold(exact, 0.02))) == set(planted.truth.by_change[change])


@pytest.mark.parametrize("grouping", ["shared", "expanded"])
def test_integrated_gradients_find_the_circuit_and_it_does_all_the_work(planted: Lookup, grouping: str) -> None:
    parts = split(pairs_of(planted, 56), seed=1)
    graph = attribute(planted.model, parts.discovery[0][:16], Settings("eap-ig", steps=20), grouping=grouping)
    size = len(planted.truth.edges)
    circuit = graph.keep(prune(graph.wiring, top(graph, size)))
    assert edges_of(circuit) == set(planted.truth.edges)
    result = evaluate(planted.model, graph, circuit.mask, parts.held_out, sizes=[1, size], sets=5, members=20)
    assert np.allclose(result.ndf.values, 1.0, atol=2e-3)
    assert result.faithfulness.value == pytest.approx(1.0, abs=2e-3)
    assert result.controls["random"].value < 0.5
    assert result.controls["shuffled"].value < 0.5
    assert all(result.minimality.needed)
    assert result.completeness.incompleteness.value < 5e-3
    assert result.completeness.control.value > 0.05


def test_loud_decoys_are_left_out_and_one_edge_less_breaks_it(planted: Lookup) -> None:
    pairs = pairs_of(planted, 8)
    graph = attribute(planted.model, pairs, Settings("eap-ig", steps=20))
    size = len(planted.truth.edges)
    loud = [graph.wiring.writer(name) for name in planted.truth.decoys]
    assert not top(graph, size)[loud].any()
    less, enough = curve(planted.model, graph, pairs_of(planted, 8, 5), [size - 1, size], controls=()).faithfulness
    assert less.value < 0.9
    assert enough.value == pytest.approx(1.0, abs=2e-3)


def test_the_null_is_silent() -> None:
    null = lookup(null=True)
    assert null.truth.edges == ()
    pairs = pairs_of(null, 8)
    graph = attribute(null.model, pairs, Settings("eap-ig", steps=5))
    assert np.abs(graph.scores).max() < 1e-5
    result = evaluate(null.model, graph, np.ones_like(graph.mask), pairs_of(null, 8, 1), sizes=[5, 20])
    assert np.isnan(result.faithfulness.value)
    assert "less than 0.001" in result.faithfulness.undefined
    assert result.ndf.n_undefined == 8
    assert "do not differ" in result.minimality.undefined
    assert "do not differ" in result.completeness.undefined


def test_rows_are_reproducible_and_bad_input_is_refused(planted: Lookup) -> None:
    assert planted.rows(6, 2) == planted.rows(6, 2)
    assert planted.rows(6, 2) != planted.rows(6, 3)
    assert [row.name for row in planted.rows(5)] == ["query", "keys", "values", "gate", "query"]
    with pytest.raises(UsageError, match="change='key'"):
        planted.rows(1, change="key")
    with pytest.raises(UsageError, match="n_keys=1: 2 to 25"):
        lookup(1)
