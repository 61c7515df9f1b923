"""Curves, splits and evaluations: values equal single runs, ends are the model and nothing, controls are as large."""

import numpy as np
import pytest
import torch

from cutaway.circuits.attribution import Settings, attribute
from cutaway.circuits.evaluation import curve, evaluate, find, split
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.items import attribute_all, circuit_values, clusters
from cutaway.circuits.knockout import completeness, minimality
from cutaway.circuits.pairs import Pair, Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.record import reference
from cutaway.circuits.select import prune, random_mask, top
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.circuits import lookup


def random_pairs(n: int, length: int, seed: int, groups: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    rows = rng.integers(3, 60, (n, 2, length))
    return Pairs(
        tuple(
            Pair(tuple(clean), tuple(other), (11,), (12,), f"{seed}-{place}", f"g{place % groups}" if groups else "")
            for place, (clean, other) in enumerate(rows.tolist())
        )
    )


@pytest.fixture
def mixed() -> list[Pairs]:
    """Five pairs of four tokens and three of six."""
    return [random_pairs(5, 4, 0), random_pairs(3, 6, 1)]


@pytest.fixture
def graph(llama: Model, mixed: list[Pairs]) -> CircuitGraph:
    return attribute_all(llama, mixed, Settings("eap"))


@torch.no_grad()
@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_values_equal_runs_of_one_circuit_and_one_group(llama: Model, mixed: list[Pairs], ablation: str) -> None:
    """Also where memory holds one circuit of one pair at a time; a mean is over the group all the same."""
    body, wiring = anatomy(llama), Wiring.of(llama)
    masks = np.stack([random_mask(wiring, size, size) for size in (40, 90)])
    oracle = np.concatenate(
        [
            np.stack(
                [
                    group.value(
                        run(
                            body,
                            wiring,
                            group.clean,
                            torch.from_numpy(mask[None]),
                            reference(body, group.corrupted, ablation),
                        )
                    )[0].numpy()
                    for mask in masks
                ]
            )
            for group in mixed
        ],
        1,
    )
    for memory in (None, 200_000):
        values = circuit_values(body, wiring, masks, mixed, ablation, memory=memory)
        assert np.allclose(values, oracle, atol=1e-5)


def test_a_curve_runs_from_nothing_to_the_model(llama: Model, graph: CircuitGraph, mixed: list[Pairs]) -> None:
    sizes = [1, 20, 100, graph.n_edges]
    found = curve(llama, graph, mixed, sizes, seeds=2)
    assert found.sizes == tuple(sizes)
    assert found.faithfulness[-1].value == pytest.approx(1.0, abs=1e-4)
    assert found.ndf[-1].value == pytest.approx(1.0, abs=1e-4)
    masks = [prune(graph.wiring, top(graph, size)) for size in sizes]
    assert found.kept == tuple(int(mask.sum()) for mask in masks)
    body = anatomy(llama)
    assert np.allclose(found.values, circuit_values(body, graph.wiring, np.stack(masks), mixed), atol=1e-4)
    ratio = (found.values[1].mean() - found.none.mean()) / (found.full.mean() - found.none.mean())
    assert found.faithfulness[1].value == pytest.approx(ratio)
    assert {values.shape for values in found.controls.values()} == {(2, 4, 8)}
    frame = found.to_frame()
    assert list(frame["size"]) == sizes
    assert {"random_faithfulness", "shuffled_ndf", "kept", "low"} <= set(frame.columns)
    ratio_chart, distance_chart = found.charts()
    assert [series.control for series in ratio_chart.series] == [False, True, True]
    assert distance_chart.series[0].y[-1] == pytest.approx(1.0, abs=1e-4)
    assert "4 sizes to" in repr(found)


def test_areas_carry_intervals_and_controls(llama: Model, graph: CircuitGraph, mixed: list[Pairs]) -> None:
    found = curve(llama, graph, mixed, seeds=3)
    ratios = np.array([each.value for each in found.faithfulness])
    shares = np.array(found.sizes) / graph.n_edges
    by_hand = float((np.diff(shares) * (ratios[1:] + ratios[:-1]) / 2).sum())
    area = found.cpr()
    assert area.interval.value == pytest.approx(by_hand)
    assert area.interval.low <= by_hand <= area.interval.high
    assert set(area.controls) == {"random", "shuffled"}
    assert all(each.n == 3 for each in area.controls.values())
    assert found.cmd().interval.value >= 0
    assert found.cpr("log").interval.value != pytest.approx(by_hand)


def test_splits_keep_groups_apart_and_everything_once() -> None:
    pairs = random_pairs(40, 5, 0, groups=8)
    both = split([pairs, random_pairs(10, 7, 1)], seed=3)
    names = [{pair.name for group in half for pair in group.items} for half in (both.discovery, both.held_out)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 50
    groups = [{pair.group for g in half for pair in g.items if pair.group} for half in (both.discovery, both.held_out)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {f"g{place}" for place in range(8)}
    assert split(pairs, 3).discovery == split(pairs.items, 3).discovery
    assert split(pairs, 3).discovery != split(pairs, 4).discovery
    with pytest.raises(UsageError, match="40 pairs in 1 group"):
        split(random_pairs(40, 5, 0, groups=1))
    with pytest.raises(UsageError, match="one for all pairs"):
        split([pairs, Pairs(pairs.items, "prob_diff")])


def test_scores_of_several_lengths_are_means_over_pairs(llama: Model, mixed: list[Pairs]) -> None:
    graphs = [attribute(llama, group, Settings("eap")) for group in mixed]
    whole = attribute_all(llama, mixed, Settings("eap"))
    assert np.allclose(whole.scores, (5 * graphs[0].scores + 3 * graphs[1].scores) / 8, atol=1e-6)
    assert whole.header.settings["pairs"] == 8
    assert clusters(mixed) == tuple(f"#{place}" for place in range(8))


def test_knockouts_by_hand() -> None:
    """A made-up model whose value is the sum of its kept edges' weights, twice: known drops, known gaps."""
    wiring = Wiring(1, 2, 2)
    rng = np.random.default_rng(0)
    weight = np.where(rng.random(wiring.legal.shape) < 0.5, 1.0, 0.0) * wiring.legal
    weight[0, wiring.reader("logits")] = 1.0
    scale = np.array([1.0, 2.0, 1.5, 0.5])

    def value(masks: np.ndarray) -> np.ndarray:
        return (masks * weight).sum((1, 2))[:, None] * scale

    whole = wiring.legal
    full, none = value(whole[None])[0], np.zeros(4)
    circuit = (weight > 0) & (np.arange(weight.size).reshape(weight.shape) % 2 == 0)
    circuit[0, wiring.reader("q.0.0")] = True
    weight[0, wiring.reader("q.0.0")] = 0.0
    full = value(whole[None])[0]
    labels = ("a", "b", "c", "d")
    minimal = minimality(value, circuit, wiring, full, none, labels)
    assert minimal.n_circuit == circuit.sum() == len(minimal.edges)
    for edge, drop, needed in zip(minimal.edges, minimal.drops, minimal.needed, strict=True):
        assert drop.value == pytest.approx(weight[edge] / weight.sum())
        if weight[edge] == 0:
            assert not needed
    # A circuit that lacks part of the model stays behind by that part, whatever both lose.
    complete = completeness(value, circuit, whole & ~circuit, wiring, full, none, labels, sets=7)
    behind = 1 - (circuit * weight).sum() / weight.sum()
    assert complete.incompleteness.value == pytest.approx(behind)
    assert complete.control.value == pytest.approx(1 - behind)
    assert np.allclose(complete.model - complete.circuit, behind)
    assert all(1 <= size <= circuit.sum() for size in complete.sizes)
    empty = np.zeros_like(whole)
    assert completeness(value, empty, empty, wiring, full, none, labels).undefined == "the circuit keeps no edge"
    lonely = completeness(value, circuit, empty, wiring, full, none, labels, sets=3)
    assert np.isnan(lonely.control.value)
    assert lonely.incompleteness.value == pytest.approx(behind)


def test_find_judges_on_pairs_it_did_not_see() -> None:
    planted = lookup(3)
    pairs = [Pair(*row) for row in planted.rows(24, 2)]
    found = find(planted.model, pairs, len(planted.truth.edges), settings=Settings("eap-ig", steps=20))
    assert {edge[:2] for edge in found.graph.edges()} == set(planted.truth.edges)
    assert found.graph.header.settings["pairs"] == 12
    assert len(found.ndf.values) == 12
    rows = {row["number"]: row for row in found.to_frame().to_dict("records")}
    assert rows["faithfulness"]["value"] == pytest.approx(1.0, abs=2e-3)
    assert rows["ndf"]["random_control"] < 0.5
    assert {"cpr_linear", "cpr_log", "cmd_linear", "cmd_log", "incompleteness", "needed edges"} <= set(rows)
    assert rows["cpr_log"]["low"] <= rows["cpr_log"]["value"] <= rows["cpr_log"]["high"]
    bars = found.charts()[-1]
    assert len(bars.x) == len(planted.truth.edges)
    assert "of 110 edges" in repr(found)


def test_what_does_not_fit_is_refused(llama: Model, graph: CircuitGraph, mixed: list[Pairs]) -> None:
    with pytest.raises(UsageError, match="rising, from 1"):
        curve(llama, graph, mixed, [5, 5])
    with pytest.raises(UsageError, match="controls: 'randon'"):
        curve(llama, graph, mixed, [5], controls=["randon"])
    with pytest.raises(UsageError, match="scored by logit_diff, the pairs are measured by prob_diff"):
        evaluate(llama, graph, graph.mask, Pairs(mixed[0].items, "prob_diff"))
    with pytest.raises(UsageError, match="one or more, all with the same measure"):
        curve(llama, graph, [], [5])
