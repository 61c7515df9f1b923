"""Selections: sizes, pruning against a naive loop, equal value after pruning, nested tiers, bisection."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.record import reference
from cutaway.circuits.select import (
    fitted,
    greedy,
    nested,
    prune,
    random_mask,
    randomised,
    shuffled,
    smallest,
    threshold,
    tiers,
    top,
)
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model import Model

WIRINGS = [
    Wiring(2, 4, 2, grouping, parallel) for grouping in ("shared", "expanded", "whole") for parallel in (False, True)
]


def graph_of(wiring: Wiring, seed: int = 0, positions: int | None = None) -> CircuitGraph:
    labels = tuple(map(str, range(positions or 0)))
    header = Header("random", "none", wiring, "random", positions=labels)
    shape = (*([positions] if positions else []), *wiring.legal.shape)
    return CircuitGraph.whole(header, np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def naive_prune(wiring: Wiring, mask: np.ndarray) -> np.ndarray:
    """Drop one dangling edge at a time until there is none."""
    edges = {(int(w), int(r)) for w, r in np.argwhere(mask & wiring.legal)}
    while True:
        fed = {writer for _, reader in edges for writer in wiring.outputs_of(reader)} | {0}
        used = {writer for writer, _ in edges}
        bad = next(
            (
                (writer, reader)
                for writer, reader in sorted(edges)
                if writer not in fed
                or (wiring.readers[reader] != "logits" and not used.intersection(wiring.outputs_of(reader)))
            ),
            None,
        )
        if bad is None:
            break
        edges.remove(bad)
    kept = np.zeros_like(mask)
    for edge in edges:
        kept[edge] = True
    return kept


@given(st.sampled_from(WIRINGS), st.integers(0, 10_000), st.floats(0.01, 0.6))
@settings(max_examples=60, deadline=None)
def test_prune_is_what_dropping_edges_one_by_one_leaves(wiring: Wiring, seed: int, share: float) -> None:
    mask = random_mask(wiring, round(share * wiring.n_edges), seed)
    kept = prune(wiring, mask)
    assert np.array_equal(kept, naive_prune(wiring, mask))
    assert np.array_equal(prune(wiring, kept), kept)


def partly_pruned(wiring: Wiring, positions: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return random masks, sparse to dense, of which pruning leaves something and not all; and what it leaves."""
    total = wiring.n_edges * (positions or 1)
    masks = [random_mask(wiring, total // part, 7 * part, positions=positions) for part in (20, 12, 8, 6, 4, 3)]
    both = [(mask, prune(wiring, mask)) for mask in masks]
    both = [(mask, pruned) for mask, pruned in both if 0 < pruned.sum() < mask.sum()]
    assert len(both) >= 2
    return [mask for mask, _ in both], [pruned for _, pruned in both]


@torch.no_grad()
@pytest.mark.parametrize("grouping", ["shared", "expanded", "whole"])
def test_pruning_leaves_the_value_as_it_is(model: Model, pairs: Pairs, grouping: str) -> None:
    """Except where a norm stands behind attention, whose scale is that of the run at hand."""
    body, wiring = anatomy(model), Wiring.of(model, grouping)
    masks, pruned = partly_pruned(wiring)
    stacked = torch.from_numpy(np.stack(masks + pruned))
    logits = run(body, wiring, pairs.clean, stacked, reference(body, pairs.corrupted, "corrupted"))
    before, after = logits.unflatten(0, (2, -1))
    assert torch.allclose(before, after, atol=1e-4) == (model.name != "tiny-gemma3")


@torch.no_grad()
def test_pruning_by_position_leaves_the_value_as_it_is(llama: Model, pairs: Pairs) -> None:
    body, wiring = anatomy(llama), Wiring.of(llama)
    masks, pruned = partly_pruned(wiring, pairs.n_pos)
    stacked = torch.from_numpy(np.stack(masks + pruned))
    before, after = run(body, wiring, pairs.clean, stacked, reference(body, pairs.corrupted, "corrupted")).unflatten(
        0, (2, -1)
    )
    assert torch.allclose(before, after, atol=1e-4)


@given(st.sampled_from(WIRINGS), st.integers(0, 1000), st.integers(0, 60), st.sampled_from(["absolute", "signed"]))
@settings(max_examples=40, deadline=None)
def test_top_keeps_the_largest(wiring: Wiring, seed: int, n: int, by: str) -> None:
    graph, n = graph_of(wiring, seed), min(n, wiring.n_edges - 1)
    mask = top(graph, n, by=by)
    assert mask.sum() == n
    assert not (mask & ~wiring.legal).any()
    strength = np.abs(graph.scores) if by == "absolute" else graph.scores
    if n > 0:
        least = float(strength[mask].min())
        assert least >= strength[wiring.legal & ~mask].max()
        assert np.array_equal(threshold(graph, least, by=by), mask)


def test_top_breaks_ties_by_place_and_counts_positions() -> None:
    wiring = WIRINGS[0]
    flat = graph_of(wiring, positions=3)
    flat = CircuitGraph.whole(flat.header, np.ones_like(flat.scores))
    assert (
        np.flatnonzero(top(flat, 2)).tolist()
        == np.flatnonzero(np.broadcast_to(wiring.legal, flat.scores.shape))[:2].tolist()
    )
    assert top(flat, flat.n_edges).sum() == 3 * wiring.n_edges


def naive_greedy(graph: CircuitGraph, n: int) -> np.ndarray:
    wiring, mask = graph.wiring, np.zeros_like(graph.mask)
    nodes: set[int] = set()
    for _ in range(n):
        leads = [
            r for r in range(len(wiring.readers)) if r == len(wiring.readers) - 1 or nodes & {*wiring.outputs_of(r)}
        ]
        allowed = np.zeros_like(mask)
        allowed[:, leads] = wiring.legal[:, leads]
        strength = np.where(allowed & ~mask, np.abs(graph.scores), -1.0)
        if strength.max() < 0:
            break
        writer, reader = np.unravel_index(strength.argmax(), strength.shape)
        mask[writer, reader] = True
        nodes.add(int(writer))
    return mask


@given(st.sampled_from(WIRINGS), st.integers(0, 1000), st.integers(0, 46))
@settings(max_examples=25, deadline=None)
def test_greedy_grows_from_the_logits(wiring: Wiring, seed: int, n: int) -> None:
    graph = graph_of(wiring, seed)
    mask = greedy(graph, n)
    assert np.array_equal(mask, naive_greedy(graph, n))


@given(st.sampled_from(WIRINGS), st.integers(0, 1000), st.integers(0, 46))
@settings(max_examples=8, deadline=None)
def test_fitted_is_the_longest_list_that_fits(wiring: Wiring, seed: int, n: int) -> None:
    graph = graph_of(wiring, seed)
    pruned = [prune(wiring, top(graph, size)) for size in range(graph.n_edges + 1)]
    longest = max(size for size, mask in enumerate(pruned) if mask.sum() <= n)
    assert np.array_equal(fitted(graph, n), pruned[longest])


def test_controls_keep_what_they_promise() -> None:
    graph = graph_of(WIRINGS[0], 3)
    dealt = shuffled(graph, 1)
    before = [np.sort(graph.scores[: graph.wiring.written_before(r), r]) for r in range(len(graph.wiring.readers))]
    after = [np.sort(dealt.scores[: graph.wiring.written_before(r), r]) for r in range(len(graph.wiring.readers))]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(graph.scores, dealt.scores)
    assert np.array_equal(shuffled(graph, 1).scores, dealt.scores)
    assert not np.array_equal(randomised(graph, 0).scores, randomised(graph, 1).scores)
    assert not np.array_equal(random_mask(graph.wiring, 20, 0), random_mask(graph.wiring, 20, 1))


@given(st.integers(0, 1000), st.lists(st.integers(1, 60), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_nested_circuits_hold_each_other_and_start_with_the_first_winner(seed: int, sizes: list[int]) -> None:
    wiring, sizes = WIRINGS[0], sorted(sizes)
    winners = np.stack([top(graph_of(wiring, seed + place), size) for place, size in enumerate(sizes)])
    tier = tiers(winners)
    masks = nested(tier, sizes, graph_of(wiring, seed).scores)
    assert np.array_equal(masks[0], winners[0])
    assert (tier[~winners.any(0)] == len(sizes)).all()
    for place, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
        assert mask.sum() == size  # the winners up to here hold at least as many
        assert not (mask & ~winners[: place + 1].any(0)).any()
        assert place == 0 or not (masks[place - 1] & ~mask).any()


def test_smallest_finds_the_first_size_of_a_rising_curve_and_sees_a_dip() -> None:
    runs: list[int] = []

    def rising(sizes: Sequence[int]) -> list[float]:
        runs.append(len(sizes))
        return [size / 1000 for size in sizes]

    found = smallest(rising, 1000, 0.437)
    assert found.size == 437
    assert found.value == pytest.approx(0.437)
    assert sum(runs) < 60
    assert len(runs) < 12

    def dipping(sizes: Sequence[int]) -> list[float]:
        return [0.9 if size in (430, 431, 432) or size >= 437 else 0.1 for size in sizes]

    assert smallest(dipping, 1000, 0.8).size == 430
    never = smallest(lambda sizes: [float("nan") if size < 9 else 0.2 for size in sizes], 1000, 0.8)
    assert never.size is None
    assert never.value == pytest.approx(0.2)
    assert "none of" in repr(never)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda graph: top(graph, -1), "n=-1: from 0 to the"),
        (lambda graph: top(graph, 10**6), "n=1000000: from 0 to the"),
        (lambda graph: top(graph, 3, by="abs"), "by='abs'"),
        (lambda graph: greedy(graph_of(graph.wiring, positions=2), 3), "sum the scores over positions"),
        (lambda graph: prune(graph.wiring, np.ones((2, 2), dtype=bool)), "mask of shape"),
        (lambda graph: smallest(lambda sizes: [0.0], 5, 0.5, least=9), "least=9, largest=5"),
        (lambda graph: nested(tiers(graph.mask[None]), [5, 3]), "give them rising"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match=message):
        call(graph_of(WIRINGS[0]))
