"""Node pruning: planted circuits, the sequential greedy algorithm as oracle, the threshold, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cutaway.circuits.nodes import node_means, node_zeros
from cutaway.circuits.sequence_continuation.data import Rows
from cutaway.circuits.sequence_continuation.method import Bench, backward, importance, prune, stability
from cutaway.circuits.sequence_continuation.result import Step
from cutaway.errors import UsageError
from cutaway.planted.sequence import Sequence


def one_by_one(bench: Bench, threshold: float, *, to_current: bool = False) -> tuple[tuple[str, ...], list[Step]]:
    """The published loop: one test after another; ``to_current`` measures against the circuit so far."""
    nodes, keep, steps, sweep = bench.nodes, torch.ones(len(bench.nodes), dtype=torch.bool), [], 0
    while True:
        order, before = backward(nodes)[:: -1 if sweep % 2 else 1], keep.clone()
        for name in order:
            if not keep[nodes.index(name)]:
                continue
            trial = keep.clone()
            trial[nodes.index(name)] = False
            whole = float(bench.scores(keep[None])[0]) if to_current else 100.0
            score = float(bench.scores(trial[None])[0])
            removed = score > whole * (1 - threshold / 100)
            steps.append(Step(name, score, removed))
            keep = trial if removed else keep
        sweep += 1
        if torch.equal(before, keep):
            return nodes.kept(keep), steps


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_nodes_are_left_in_any_order(composed: tuple[Sequence, dict[str, Rows]], seed: int) -> None:
    planted, rows = composed
    task = list(rows)[seed % 3]
    bench = Bench(planted.model, rows[task])
    order = [bench.nodes.names[i] for i in np.random.default_rng(seed).permutation(len(bench.nodes))]
    circuit = prune(bench, order=order)
    assert circuit.nodes == planted.truth.nodes[task]
    assert circuit.complete
    assert circuit.score.low > 80


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_chains_give_the_result_of_one_test_after_another(
    planted: Sequence, rows: dict[str, Rows], tokens: int
) -> None:
    expected, steps = one_by_one(Bench(planted.model, rows["numerals"]), 20.0)
    found = prune(Bench(planted.model, rows["numerals"], tokens=tokens))
    assert found.nodes == expected
    assert [(s.node, s.removed) for s in found.steps] == [(s.node, s.removed) for s in steps]
    assert np.allclose([s.without for s in found.steps], [s.without for s in steps], atol=1e-3)


def test_the_threshold_is_relative_to_the_full_model(planted: Sequence, bench: Bench) -> None:
    """Without the head that works against it the circuit is at 130%; the weak successor gives 30 of these.

    Against the full model it may go (100% stays); against the circuit so far it may not (100 of 130 is 77%).
    """
    weak, against = planted.truth.compensating
    nodes = bench.nodes
    without = [[n for n in nodes.names if n not in gone] for gone in ((against,), (against, weak), (weak,))]
    high, both, low = (float(bench.scores(nodes.keep(names)[None])[0]) for names in without)
    assert high == pytest.approx(130, abs=3)
    assert both == pytest.approx(100, abs=3)
    assert low < 80
    assert weak not in prune(bench).nodes
    assert weak in one_by_one(bench, 20.0, to_current=True)[0]


def test_full_and_empty_sets(planted: Sequence, rows: dict[str, Rows], bench: Bench) -> None:
    nodes, given = bench.nodes, rows["numerals"]
    means = node_means(planted.model, given.corrupted)
    ends = torch.tensor([[True], [False]]).expand(2, len(nodes))
    full, empty = bench.scores(ends)
    assert full == pytest.approx(100, abs=1e-4)
    embed = planted.model.capture(planted.model.batch(given.ids.tolist()), "resid_pre.0")["resid_pre.0"]
    resid = embed.clone()
    for layer in range(nodes.n_layers):
        project = planted.model.hf.model.layers[layer].self_attn.o_proj
        with torch.no_grad():
            resid = resid + project(means.z[0, layer].flatten(-2)) + means.mlp[0, layer]
    with torch.no_grad():
        logits = planted.model.hf.lm_head(planted.model.hf.model.norm(resid[:, -1]))
    lead = bench.read(logits[None]).mean() / bench.base.mean() * 100
    assert empty == pytest.approx(float(lead), abs=1e-4)
    assert bench.score(nodes.names).value == pytest.approx(100, abs=1e-9)


def test_the_means_are_taken_once(planted: Sequence, rows: dict[str, Rows]) -> None:
    given, calls = rows["numwords"], []

    def count(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        calls.append(torch.equal(kwargs["input_ids"][: len(given)], given.corrupted))

    handle = planted.model.hf.register_forward_pre_hook(count, with_kwargs=True)
    try:
        circuit = prune(Bench(planted.model, given, tokens=400))
    finally:
        handle.remove()
    assert sum(calls) == 1
    assert len(calls) - 1 <= len(circuit.steps) + 20


def test_a_metric_that_is_not_positive_is_refused(planted: Sequence, rows: dict[str, Rows]) -> None:
    """Answer and distractor exchanged: what a wrong token id did to the published Llama run."""
    given = rows["numerals"]
    wrong = replace(given, answer=given.distractor, distractor=given.answer)
    with pytest.raises(UsageError, match="not above 0, so percentages"):
        Bench(planted.model, wrong)


def test_importance_and_interval(planted: Sequence, bench: Bench) -> None:
    circuit = prune(bench)
    falls = importance(bench, circuit.nodes)
    assert set(falls) == set(circuit.nodes)
    assert list(falls.values()) == sorted(falls.values(), reverse=True)
    whole = float(bench.scores(bench.nodes.keep(circuit.nodes)[None])[0])
    for name, fall in falls.items():
        rest = bench.nodes.keep([n for n in circuit.nodes if n != name])
        assert fall == pytest.approx(whole - float(bench.scores(rest[None])[0]), abs=1e-3)
    assert circuit.score.value == pytest.approx(whole, abs=1e-3)
    assert circuit.score.low <= whole <= circuit.score.high
    assert circuit.score.n == len(bench.rows)
    assert len(circuit.to_frame()) == len(circuit.steps)


def test_stability_of_a_unique_circuit_is_one(planted: Sequence, rows: dict[str, Rows]) -> None:
    few = rows["numwords"].take(range(3))
    for over in ("prompts", "order"):
        found = stability(planted.model, few, over=over, runs=2)
        assert found.jaccard == 1.0
        assert {each.nodes for each in found.circuits} == {planted.truth.nodes["numwords"]}


def test_one_iter_ends_after_two_sweeps_and_ctrl_c_leaves_a_result(bench: Bench) -> None:
    assert prune(bench, one_iter=True).sweeps == 2

    def stop(done: int, _all: int, _note: str) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    part = prune(bench, report=stop)
    assert not part.complete
    assert 5 <= len(part.steps) < len(bench.nodes)
    assert len(part.nodes) >= len(bench.nodes) - len(part.steps)
    assert not prune(bench, deadline=0.0).complete


def test_bad_settings(planted: Sequence, rows: dict[str, Rows], bench: Bench) -> None:
    for threshold in (0.0, 100.0, -5.0):
        with pytest.raises(UsageError, match="threshold"):
            prune(bench, threshold=threshold)
    with pytest.raises(UsageError, match="every node once"):
        prune(bench, order=bench.nodes.names[1:])
    with pytest.raises(UsageError, match="does not fit"):
        Bench(planted.model, rows["numerals"], node_zeros(planted.model, 3))
