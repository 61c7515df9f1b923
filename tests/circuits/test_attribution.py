"""First-order scores equal the derivative by an explicit mask on every edge, on every family and grouping."""

import numpy as np
import pytest
import torch

from cutaway.circuits.attribution import Settings, attribute, edge_scores
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.record import Record, record, reference
from cutaway.circuits.wiring import Grouping, Wiring
from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model


def by_masks(model: Model, wiring: Wiring, pairs: Pairs, points: list[float]) -> torch.Tensor:
    """Slow oracle: dL/dmask at masks of one, with the embedding at ``points`` of the path, one pair at a time."""
    body = anatomy(model)
    instead, clean = reference(body, pairs.corrupted, "corrupted"), record(body, pairs.clean)
    total = torch.zeros(len(pairs), *wiring.legal.shape)
    for row in range(len(pairs)):
        one = pairs[row : row + 1]
        for point in points:
            total[row] += _at(model, wiring, one, clean.rows(slice(row, row + 1)), instead, row, point) / len(points)
    return total


def _at(
    model: Model, wiring: Wiring, one: Pairs, clean: Record, instead: Record, row: int, point: float
) -> torch.Tensor:
    """Gradients by reader are those of a run on the mixed embedding; the writers' change is that of the ends."""
    body = anatomy(model)
    there = instead.rows(slice(row, row + 1))
    mixed = there.embed + point * (clean.embed - there.embed)
    handle = model.layout.blocks[0].register_forward_pre_hook(
        lambda _module, args, kwargs: (
            ((mixed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": mixed})
        ),
        with_kwargs=True,
    )
    now = record(body, one.clean)
    # The product needs (clean - reference); a run at the mixed embedding has (now - its own), so shift the latter.
    shifted = Record(
        now.embed - (clean.embed - there.embed),
        tuple(a - (b - c) for a, b, c in zip(now.z, clean.z, there.z, strict=True)),
        tuple(a - (b - c) for a, b, c in zip(now.mlp, clean.mlp, there.mlp, strict=True)),
        now.resid,
    )
    mask = torch.ones(1, *wiring.legal.shape, requires_grad=True)
    try:
        with torch.enable_grad():
            answer = one.value(run(body, wiring, one.clean, mask, shifted)).sum()
            return torch.autograd.grad(answer, mask)[0][0]
    finally:
        handle.remove()


CASES = [
    (Settings("eap-ig", steps=1, rule="midpoint"), [0.5]),
    (Settings("eap"), [1.0]),
    (Settings("eap-ig", steps=3), [0.0, 1 / 3, 2 / 3]),
    (Settings("eap-ig", steps=2, rule="midpoint"), [0.25, 0.75]),
    (Settings("clean-corrupted"), [0.0, 1.0]),
]


@pytest.mark.parametrize("grouping", ["shared", "expanded", "whole"])
def test_equals_the_derivative_by_explicit_masks(model: Model, pairs: Pairs, grouping: Grouping) -> None:
    wiring = Wiring.of(model, grouping)
    every = model.name == "tiny-llama" and grouping == "shared"
    for settings, points in CASES if every else CASES[:1]:
        scores = edge_scores(anatomy(model), wiring, pairs, settings)
        oracle = by_masks(model, wiring, pairs, points)
        assert torch.allclose(scores, oracle, atol=1e-5), settings
        assert oracle.abs().max() > 0.1


@pytest.mark.parametrize("grouping", ["shared", "expanded"])
def test_equals_masks_also_where_the_beginning_is_shared(model: Model, late: Pairs, grouping: Grouping) -> None:
    wiring, settings = Wiring.of(model, grouping), Settings("eap-ig", steps=2, rule="midpoint")
    scores = edge_scores(anatomy(model), wiring, late, settings)
    assert torch.allclose(scores, by_masks(model, wiring, late, [0.25, 0.75]), atol=1e-5)
    apart = edge_scores(anatomy(model), wiring, late, Settings("eap-ig", steps=2, rule="midpoint", positions=True))
    assert torch.allclose(apart.sum(1), scores, atol=1e-5)
    assert not apart[:, :2].any()


def test_positions_add_up_and_memory_changes_nothing(model: Model, pairs: Pairs) -> None:
    body, wiring = anatomy(model), Wiring.of(model)
    whole = edge_scores(body, wiring, pairs, Settings(steps=4))
    apart = edge_scores(body, wiring, pairs, Settings(steps=4, positions=True))
    assert apart.shape == (2, pairs.n_pos, *wiring.legal.shape)
    assert torch.allclose(apart.sum(1), whole, atol=1e-5)
    assert torch.allclose(edge_scores(body, wiring, pairs, Settings(steps=4), memory=500_000), whole, atol=1e-5)
    each = torch.cat([edge_scores(body, wiring, pairs[row : row + 1], Settings(steps=4)) for row in range(2)])
    assert torch.allclose(each, whole, atol=1e-5)


def test_positive_means_that_the_edge_helps(llama: Model, pairs: Pairs) -> None:
    """Embedding to logits is linear up to the last norm: cutting its best edge must lower the answer."""
    exact = edge_scores(anatomy(llama), Wiring.of(llama), pairs, Settings("exact"))
    first = edge_scores(anatomy(llama), Wiring.of(llama), pairs, Settings("eap-ig", steps=20))
    legal = torch.from_numpy(Wiring.of(llama).legal)
    both = torch.stack([exact[:, legal].flatten(), first[:, legal].flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.6


def test_exact_is_the_loss_of_each_edge_alone(llama: Model, pairs: Pairs) -> None:
    body, wiring = anatomy(llama), Wiring.of(llama)
    scores = edge_scores(body, wiring, pairs, Settings("exact"))
    instead = reference(body, pairs.corrupted, "corrupted")
    with torch.no_grad():
        whole = pairs.value(llama.logits(llama.batch(pairs.clean.tolist()))[:, -1])
        for writer, reader in (("embed", "q.0.1"), ("z.0.2", "mlp_in.2"), ("mlp_out.2", "logits")):
            mask = torch.ones(1, *wiring.legal.shape, dtype=torch.bool)
            mask[0, wiring.writer(writer), wiring.reader(reader)] = False
            value = pairs.value(run(body, wiring, pairs.clean, mask, instead)[0])
            found = scores[:, wiring.writer(writer), wiring.reader(reader)]
            assert torch.allclose(found, whole - value, atol=1e-5)


def test_frozen_norms_leave_scale_out_of_the_gradient(model: Model, pairs: Pairs) -> None:
    """With every scale constant, doubling what the last norm reads changes nothing by itself: scores differ."""
    body, wiring = anatomy(model), Wiring.of(model)
    true, frozen = (edge_scores(body, wiring, pairs, Settings("eap", norm=norm)) for norm in ("true", "frozen"))
    assert not torch.allclose(true, frozen, atol=1e-3)
    # With frozen scales the logits are linear in what they read: its edges sum to the change of the answer's
    # linear part, which a direct product gives.
    instead, clean = reference(body, pairs.corrupted, "corrupted"), record(body, pairs.clean)
    final = body.final
    last = clean.resid[-1] + body.blocks[-1].write(clean.z[-1]).sum(0) + clean.mlp[-1]
    change = (clean.embed - instead.embed) + sum(
        block.write(a - b).sum(0) + (c - d)
        for block, a, b, c, d in zip(body.blocks, clean.z, instead.z, clean.mlp, instead.mlp, strict=True)
    )
    if all(block.b_o is None for block in body.blocks):
        weight = model.hf.get_output_embeddings().weight
        moved = final.centred(change) * final.scale(last) * final.gain
        direct = pairs.value((moved @ weight.T)[:, -1])
        assert torch.allclose(frozen[:, :, wiring.reader("logits")].sum(1), direct, atol=1e-4)


def test_mask_gradient_integrates_to_the_whole_change(llama: Model, pairs: Pairs) -> None:
    """The masks' path leads from the corrupted to the clean run, so its integral is the whole difference."""
    pairs = pairs[:1]
    scores = edge_scores(anatomy(llama), Wiring.of(llama), pairs, Settings("mask-gradient", steps=16, rule="midpoint"))
    with torch.no_grad():
        ends = [pairs.value(llama.logits(llama.batch(ids.tolist()))[:, -1]) for ids in (pairs.clean, pairs.corrupted)]
    assert torch.allclose(scores.sum((1, 2)), ends[0] - ends[1], atol=2e-2)


def test_graph_keeps_what_it_is_made_of(llama: Model, pairs: Pairs, tmp_path: "object") -> None:
    graph = attribute(llama, pairs, Settings("eap"), grouping="expanded")
    assert graph.n_kept == graph.n_edges == Wiring.of(llama, "expanded").n_edges
    small = graph.keep(np.abs(graph.scores) >= np.sort(np.abs(graph.scores).ravel())[-7])
    assert small.n_kept == 7
    path = f"{tmp_path}/circuit.safetensors"
    small.save(path)
    again = CircuitGraph.load(path)
    assert again.header == small.header
    assert np.array_equal(again.mask, small.mask)
    assert next(iter(again.edges())) == next(small.edges())
    assert len(again.to_frame()) == 7


def test_bad_input(llama: Model, pairs: Pairs, tmp_path: "object") -> None:
    with pytest.raises(UsageError, match="did you mean 'eap-ig'"):
        Settings("eap-ih")
    with pytest.raises(UsageError, match="steps=0"):
        Settings(steps=0)
    with pytest.raises(UsageError, match="leave positions off"):
        Settings("exact", positions=True)
    with open(f"{tmp_path}/no.safetensors", "w") as file:
        file.write("no")
    with pytest.raises(CutawayError, match="is not a circuit written by"):
        CircuitGraph.load(f"{tmp_path}/no.safetensors")
