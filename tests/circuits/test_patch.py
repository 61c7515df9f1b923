"""Circuits run as one batch: the ends are the clean and the corrupted run, on every family and grouping."""

import pytest
import torch

from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.record import record, reference
from cutaway.circuits.wiring import Grouping, Wiring
from cutaway.errors import UsageError
from cutaway.model import Model

GROUPINGS: tuple[Grouping, ...] = ("shared", "expanded", "whole")


def random_masks(wiring: Wiring, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *wiring.legal.shape, generator=generator) < 0.5


@torch.no_grad()
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_all_kept_is_the_clean_run_and_none_kept_the_corrupted(model: Model, pairs: Pairs, grouping: Grouping) -> None:
    body, wiring = anatomy(model), Wiring.of(model, grouping)
    masks = torch.tensor([True, False])[:, None, None].expand(2, *wiring.legal.shape)
    logits = run(body, wiring, pairs.clean, masks, reference(body, pairs.corrupted, "corrupted"))
    for row, ids in enumerate((pairs.clean, pairs.corrupted)):
        assert torch.allclose(logits[row], model.logits(model.batch(ids.tolist()))[:, -1], atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_circuit_is_the_same_alone_and_among_others(model: Model, pairs: Pairs, grouping: Grouping) -> None:
    body, wiring = anatomy(model), Wiring.of(model, grouping)
    instead = reference(body, pairs.corrupted, "corrupted")
    masks = random_masks(wiring, 5)
    masks[3:, :, : 2 * wiring.readers_per_layer] = True  # these two start at the last layer
    together = run(body, wiring, pairs.clean, masks, instead)
    alone = torch.cat([run(body, wiring, pairs.clean, mask[None], instead) for mask in masks])
    assert torch.allclose(together, alone, atol=1e-5)
    small = run(body, wiring, pairs.clean, masks, instead, memory=600_000)
    assert torch.allclose(together, small, atol=1e-5)


@torch.no_grad()
def test_cutting_every_edge_of_a_writer_is_replacing_its_output(llama: Model, pairs: Pairs) -> None:
    """Where nothing else reads it, a writer with all edges cut might as well have written the other value."""
    from cutaway.model import Patch

    body, wiring = anatomy(llama), Wiring.of(llama)
    instead = reference(body, pairs.corrupted, "corrupted")
    for name in ("z.0.1", "mlp_out.1", "z.2.3"):
        mask = torch.ones(1, *wiring.legal.shape, dtype=torch.bool)
        mask[:, wiring.writer(name)] = False
        kind, layer, *head = name.split(".")
        source = instead.z[int(layer)][:, :, int(head[0])] if head else instead.mlp[int(layer)]
        with llama.edited(Patch(name, source)):
            patched = llama.logits(llama.batch(pairs.clean.tolist()))[:, -1]
        assert torch.allclose(run(body, wiring, pairs.clean, mask, instead)[0], patched, atol=1e-5), kind


@torch.no_grad()
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_beginning_that_both_runs_share_is_not_run_again(model: Model, late: Pairs, grouping: Grouping) -> None:
    """The same logits from forwards of three tokens of five."""
    body, wiring = anatomy(model), Wiring.of(model, grouping)
    masks = random_masks(wiring, 4)
    masks[3:, :, : 2 * wiring.readers_per_layer] = True
    whole = run(body, wiring, late.clean, masks, reference(body, late.corrupted, "corrupted"))
    instead = reference(body, late.corrupted, "corrupted", late.clean)
    assert instead.start == 2
    widths: list[int] = []
    handle = model.layout.blocks[-1].register_forward_pre_hook(
        lambda _module, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    found = run(body, wiring, late.clean, masks, instead)
    handle.remove()
    assert torch.allclose(found, whole, atol=1e-5)
    assert widths[-1] == 3
    by_place = masks[:, None].expand(4, late.n_pos, *wiring.legal.shape)
    assert torch.allclose(run(body, wiring, late.clean, by_place, instead), whole, atol=1e-5)


@torch.no_grad()
def test_masks_by_position(llama: Model, pairs: Pairs) -> None:
    body, wiring = anatomy(llama), Wiring.of(llama)
    instead = reference(body, pairs.corrupted, "corrupted")
    masks = random_masks(wiring, 2)
    everywhere = masks[:, None].expand(2, pairs.n_pos, *wiring.legal.shape)
    whole = run(body, wiring, pairs.clean, masks, instead)
    assert torch.allclose(run(body, wiring, pairs.clean, everywhere, instead), whole, atol=1e-5)
    somewhere = torch.ones_like(everywhere, memory_format=torch.contiguous_format)
    somewhere[:, 0] = masks  # before the first changed token the runs agree for the first pair
    assert torch.allclose(
        run(body, wiring, pairs.clean[:1], somewhere, instead.rows(slice(0, 1)))[0],
        llama.logits(llama.batch(pairs.clean[:1].tolist()))[:, -1],
        atol=1e-5,
    )


@torch.no_grad()
@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_things_to_put_instead(model: Model, pairs: Pairs, ablation: str) -> None:
    """Only the edge from the embedding to the logits is kept: the last norm reads the embedding and what stands in."""
    body, wiring = anatomy(model), Wiring.of(model)
    instead = reference(body, pairs.corrupted, ablation)
    mask = torch.zeros(1, *wiring.legal.shape, dtype=torch.bool)
    mask[:, wiring.writer("embed"), wiring.reader("logits")] = True
    logits = run(body, wiring, pairs.clean, mask, instead)[0]
    read = record(body, pairs.clean).embed
    if ablation == "mean":
        kept = record(body, pairs.corrupted)
        for block, z, mlp in zip(body.blocks, kept.z, kept.mlp, strict=True):
            read = read + (block.write(z).sum(0) + mlp).mean(0)
    biases = [bias for block in body.blocks if (bias := block.b_o) is not None]
    read = body.final(read + sum(biases, torch.zeros(())))
    assert torch.allclose(logits, model.hf.get_output_embeddings()(read)[:, -1], atol=1e-5)


@torch.no_grad()
def test_hooks_are_gone_also_after_an_error(model: Model, pairs: Pairs) -> None:
    body, wiring = anatomy(model), Wiring.of(model, "expanded")
    batch = model.batch(pairs.clean.tolist())
    before = model.logits(batch)
    instead = reference(body, pairs.corrupted, "corrupted")
    with pytest.raises(UsageError, match="masks end in"):
        run(body, wiring, pairs.clean, torch.ones(1, 3, 3, dtype=torch.bool), instead)
    with pytest.raises((RuntimeError, ValueError)):
        run(body, wiring, pairs.clean, random_masks(wiring, 2), instead.rows(slice(0, 1)))
    assert torch.equal(model.logits(batch), before)


@torch.no_grad()
def test_memory_that_cannot_hold_one_circuit_is_refused(llama: Model, pairs: Pairs) -> None:
    body, wiring = anatomy(llama), Wiring.of(llama)
    with pytest.raises(UsageError, match="memory=1000: one circuit run of these prompts takes about"):
        run(body, wiring, pairs.clean, random_masks(wiring, 2), record(body, pairs.corrupted), memory=1000)
