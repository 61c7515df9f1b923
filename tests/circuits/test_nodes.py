"""The node engine against a naive loop: one plain forward for each set, with Replace edits."""

import pytest
import torch
from torch import Tensor

from cutaway.circuits.nodes import (
    NodeRunner,
    Nodes,
    Overwrite,
    Reference,
    node_means,
    node_resample,
    node_zeros,
    read_out,
    run_nodes,
)
from cutaway.errors import UsageError
from cutaway.model import Model, Replace

IDS = torch.tensor([[5, 9, 14, 22, 31, 8, 17], [40, 3, 50, 6, 11, 12, 13], [12, 60, 33, 21, 10, 2, 7]])
OTHER = IDS.flip(1)


def naive(model: Model, ids: Tensor, keep: Tensor, reference: Reference) -> Tensor:
    """One forward for each set: `Replace` at every node that is cut."""
    nodes, found = Nodes.of(model), []
    for mask in keep:
        edits = []
        for name, inside in zip(nodes.names, mask.tolist(), strict=True):
            if not inside:
                layer, rest = nodes.layer(name), name.split(".")
                value = reference.z[:, layer, :, int(rest[2])] if rest[0] == "z" else reference.mlp[:, layer]
                edits.append(Replace(name, value if len(value) > 1 else value[0]))
        with torch.no_grad(), model.edited(*edits):
            found.append(model.logits(model.batch(ids.tolist()))[:, -1])
    return torch.stack(found)


def random_sets(model: Model, k: int, share: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(k, len(Nodes.of(model)), generator=generator) < share


def references(model: Model) -> list[Reference]:
    return [node_means(model, OTHER), node_zeros(model, IDS.shape[1]), node_resample(model, OTHER)]


@pytest.mark.parametrize("share", [0.5, 0.08])
def test_sets_equal_one_plain_forward_each(model: Model, share: float) -> None:
    """Few, half and most nodes kept: whole attentions and MLPs are left out of some forwards and not of others."""
    keep = random_sets(model, 4, share)
    keep[:2, : len(keep[0]) // 3] = keep[2, : len(keep[0]) // 3]
    # Every kind of reference with one share of nodes, means with the other; all sets at once, or two at a time.
    for reference in references(model)[: 3 if share == 0.5 else 1]:
        expected = naive(model, IDS, keep, reference)
        tokens = None if reference.kind == "zero" else 42
        assert torch.allclose(run_nodes(model, IDS, keep, reference, tokens=tokens), expected, atol=1e-5)


def test_the_ends_are_the_full_model_and_the_all_reference_run(model: Model) -> None:
    reference = node_means(model, OTHER)
    keep = torch.tensor([[True], [False]]).expand(2, len(Nodes.of(model)))
    full, empty = run_nodes(model, IDS, keep, reference)
    assert torch.allclose(full, model.logits(model.batch(IDS.tolist()))[:, -1], atol=1e-5)
    assert torch.allclose(empty, naive(model, IDS, keep[1:], reference)[0], atol=1e-5)


def test_what_a_runner_remembers_changes_nothing(model: Model) -> None:
    """Any sequence of calls, one set or several, gives what a fresh runner gives."""
    reference, nodes = node_means(model, OTHER), Nodes.of(model)
    runner, generator = NodeRunner(model, IDS, reference), torch.Generator().manual_seed(3)
    keep = torch.ones(len(nodes), dtype=torch.bool)
    for step in range(8):
        sets = keep.repeat(1 + step % 2, 1)
        for row in sets:
            row[torch.randint(len(nodes), (2,), generator=generator)] ^= True
        assert torch.allclose(runner.run(sets), naive(model, IDS, sets, reference), atol=1e-5), step
        if step % 3 == 0:
            keep = sets[-1]
    layer = nodes.n_layers - 1
    runner.run(keep[None])
    assert torch.allclose(runner.residual(keep, layer), NodeRunner(model, IDS, reference).residual(keep, layer))


def test_means_are_per_position_and_independent_of_the_chunk(llama: Model) -> None:
    z = llama.capture(llama.batch(IDS.tolist()), ["z.1", "mlp_out.2"])
    whole, pieces = node_means(llama, IDS), node_means(llama, IDS, tokens=7)
    assert torch.allclose(whole.z[0, 1], z["z.1"].mean(0), atol=1e-6)
    assert torch.allclose(whole.mlp[0, 2], z["mlp_out.2"].mean(0), atol=1e-6)
    assert torch.allclose(whole.z, pieces.z, atol=1e-6)


def test_an_overwrite_is_a_plain_replacement_after_the_nodes(model: Model) -> None:
    reference, nodes = node_means(model, OTHER), Nodes.of(model)
    keep = random_sets(model, 1, 0.5)[0]
    generator = torch.Generator().manual_seed(1)
    for site, size in (("z.1.2", model.d_head), ("mlp_out.1", model.d_model), ("resid_post.2", model.d_model)):
        if not site.startswith("resid"):
            keep[nodes.index(site)] = True
        value = torch.randn(4, *IDS.shape, size, generator=generator)
        found = NodeRunner(model, IDS, reference, tokens=50).run(keep.repeat(4, 1), overwrite=Overwrite(site, value))
        for row in range(4):
            with torch.no_grad(), model.edited(Replace(site, value[row])):
                expected = naive(model, IDS, keep[None], reference)[0]
            assert torch.allclose(found[row], expected, atol=1e-5), site


def test_reading_out_the_last_residual_gives_the_logits(model: Model) -> None:
    found = model.capture(model.batch(IDS.tolist()), ["resid_post.2", "logits"])
    assert torch.allclose(read_out(model, found["resid_post.2"][:, -1]), found["logits"][:, -1], atol=1e-5)


def test_work_is_what_ran(llama: Model) -> None:
    """Three layers, 21 tokens: a set that differs in the last layer costs its last layer; what is cut costs nothing."""
    nodes, reference = Nodes.of(llama), node_means(llama, OTHER)
    runner = NodeRunner(llama, IDS, reference)
    keep = torch.ones(1, len(nodes), dtype=torch.bool)
    runner.run(keep)
    assert (runner.work.attention, runner.work.mlp, runner.work.unembed) == (63, 63, 3)
    keep[0, nodes.index("z.2.1")] = False
    runner.run(keep)
    assert (runner.work.attention, runner.work.mlp) == (84, 84)
    keep[0, nodes.index("mlp_out.2")] = False
    runner.run(keep)
    assert (runner.work.attention, runner.work.mlp) == (105, 84)
    assert runner.work.operations(llama) > 0


def test_no_hook_or_stand_in_is_left(model: Model) -> None:
    before = model.logits(model.batch(IDS.tolist()))
    reference = node_means(model, OTHER)
    run_nodes(model, IDS, random_sets(model, 3, 0.1), reference)
    keep = torch.zeros(1, len(Nodes.of(model)), dtype=torch.bool)
    change = Overwrite("mlp_out.0", torch.zeros(1, *IDS.shape, model.d_model))
    with pytest.raises(UsageError, match="cut"):
        NodeRunner(model, IDS, reference).run(keep, overwrite=change)
    assert torch.equal(model.logits(model.batch(IDS.tolist())), before)
    assert all("forward" not in vars(module) and not module._forward_hooks for module in model.hf.modules())


def test_names(llama: Model) -> None:
    nodes = Nodes.of(llama)
    assert len(nodes) == 15
    assert nodes.names[:6] == ("z.0.0", "z.0.1", "z.0.2", "z.0.3", "mlp_out.0", "z.1.0")
    assert [nodes.index(name) for name in nodes.names] == list(range(15))
    assert nodes.kept(nodes.keep(["mlp_out.1", "z.0.3"])) == ("z.0.3", "mlp_out.1")
    assert (len(nodes.heads), len(nodes.mlps), nodes.layer("z.2.1")) == (12, 3, 2)
    for wrong in ("z.3.0", "z.0.4", "z.0", "mlp_out.3", "mlp_out.0.1", "resid_post.0", "z.-1.0", ""):
        with pytest.raises(UsageError, match="write z"):
            nodes.index(wrong)


def test_a_reference_of_another_size_is_refused(llama: Model) -> None:
    for wrong in (node_means(llama, OTHER[:, 1:]), node_resample(llama, OTHER[:2])):
        with pytest.raises(UsageError, match="does not fit"):
            NodeRunner(llama, IDS, wrong)
    reference = node_means(llama, OTHER)
    keep = torch.ones(1, len(Nodes.of(llama)), dtype=torch.bool)
    for site in ("z.0", "q.0.1", "embed"):
        change = Overwrite(site, torch.zeros(1, *IDS.shape, llama.d_head))
        with pytest.raises(UsageError, match="overwrite"):
            NodeRunner(llama, IDS, reference).run(keep, overwrite=change)
