"""Connections against brute force and planted truth; OV scores, lens and attention against direct computation."""

import numpy as np
import pytest
import torch

from cutaway.circuits.nodes import Nodes, Reference, node_means
from cutaway.circuits.sequence_continuation.data import Prompt, Rows
from cutaway.circuits.sequence_continuation.edges import _Paths, prune_edges
from cutaway.circuits.sequence_continuation.method import Bench
from cutaway.circuits.sequence_continuation.roles import head_roles, logit_lens, ov_write
from cutaway.errors import UsageError
from cutaway.model import Model, Replace
from cutaway.planted.sequence import Sequence

IDS = torch.tensor([[5, 9, 14, 22, 31, 8], [40, 3, 50, 6, 11, 12]])


def tiny_rows(model: Model) -> Rows:
    """Two rows of a random model, with the answers for which its metric is positive."""
    top = model.logits(model.batch(IDS.tolist()))[:, -1].topk(3).indices
    prompts = tuple(Prompt("tiny", "done", ("",) * 5, ("",) * 4, ("",) * 4, "") for _ in IDS)
    return Rows("tiny", prompts, IDS, IDS.flip(0), top[:, 0], top[:, 2], (1, 2, 3, 4))


def test_planted_connections_are_found_with_their_input(composed: tuple[Sequence, dict[str, Rows]]) -> None:
    planted, rows = composed
    for task in ("numerals", "months backwards"):
        found = prune_edges(Bench(planted.model, rows[task]), planted.truth.nodes[task])
        assert {(edge.sender, edge.receiver, edge.by) for edge in found.kept} == {*planted.truth.edges[task]}
        assert found.dropped == ()
        nodes = Nodes.of(planted.model)
        for edge in found.tested:
            if edge.sender != "embed" and edge.receiver != "final":
                first, second = nodes.layer(edge.sender), nodes.layer(edge.receiver)
                assert first < second or (first == second and edge.by == "mlp")


def test_a_node_without_connections_is_dropped(planted: Sequence, bench: Bench) -> None:
    decoy = next(name for name, role in planted.truth.roles.items() if role == "decoy")
    found = prune_edges(bench, (*planted.truth.nodes["numerals"], decoy))
    assert found.dropped == (decoy,)


@torch.no_grad()
@pytest.mark.parametrize("model", ["llama", "gemma3", "gpt2", "gpt_neox"], indirect=True)
def test_every_connection_equals_brute_force(model: Model) -> None:
    """Random models, with grouped queries, norms after the parts, and parts side by side.

    The stream is rebuilt by plain edits, and the receiver's input is changed in it alone.
    """
    rows, nodes = tiny_rows(model), Nodes.of(model)
    bench = Bench(model, rows, node_means(model, rows.corrupted))
    names = [name for name in nodes.names if name in ("z.0.0", "mlp_out.0", "z.1.0", "z.1.3", "mlp_out.2", "z.2.1")]
    keep = nodes.keep(names)
    if float(bench.differences(keep[None]).mean()) <= 0:
        bench.rows = Rows("tiny", rows.prompts, rows.ids, rows.corrupted, rows.distractor, rows.answer, rows.places)
    found = prune_edges(bench, names)
    base = float(bench.differences(keep[None]).mean())
    paths = _Paths(bench, keep, nodes.kept(keep))
    rng = np.random.default_rng(0)
    for i in rng.choice(len(found.tested), 6, replace=False):
        edge = found.tested[i]
        logits = brute(bench, bench.runner.reference, keep, edge.receiver, edge.by, paths.change[edge.sender])
        assert edge.ratio == pytest.approx(float(bench.read(logits[None]).mean()) / base, abs=1e-4), edge


def brute(
    bench: Bench, means: Reference, keep: torch.Tensor, receiver: str, by: str, change: torch.Tensor
) -> torch.Tensor:
    """Logits when ``change`` is added to what one input of ``receiver`` reads, by plain edits and whole forwards."""
    model, nodes, ids = bench.model, bench.nodes, bench.rows.ids
    batch = model.batch(ids.tolist())
    cut = []
    for name, inside in zip(nodes.names, keep.tolist(), strict=True):
        if not inside:
            layer = nodes.layer(name)
            value = means.mlp[0, layer] if name.startswith("mlp") else means.z[0, layer, :, int(name.split(".")[2])]
            cut.append(Replace(name, value))
    last = f"resid_post.{nodes.n_layers - 1}"
    if receiver == "final":
        with model.edited(*cut):
            plain = model.capture(batch, [last, "logits"])[last]
        with model.edited(*cut, Replace(last, plain + change)):
            return model.logits(batch)[:, -1]
    layer = nodes.layer(receiver)
    parallel = getattr(model.layout.blocks[0], "use_parallel_residual", False)
    site = f"resid_mid.{layer}" if by == "mlp" and not parallel else f"resid_pre.{layer}"
    with model.edited(*cut):
        plain = model.capture(batch, [site, "logits"])[site]
    with model.edited(*cut, Replace(site, plain + change)):
        if by == "mlp":
            value = model.capture(batch, [receiver, "logits"])[receiver]
        else:
            given = model.capture(batch, [f"{by}.{layer}", "logits"])[f"{by}.{layer}"]
    if by != "mlp":
        with model.edited(*cut, Replace(f"{by}.{layer}", given)):
            value = model.capture(batch, [receiver, "logits"])[receiver]
    with model.edited(*cut, Replace(receiver, value)):
        return model.logits(batch)[:, -1]


def test_a_planted_successor_head_writes_the_next_member(composed: tuple[Sequence, dict[str, Rows]]) -> None:
    planted, rows = composed
    names = {role: name for name, role in planted.truth.roles.items() if role != "ranks"}
    for task, role in (("numerals", "successor"), ("months backwards", "predecessor")):
        (found,) = head_roles(planted.model, rows[task], [names[role]], members=planted.tasks[task])
        reads_block_0 = not planted.model.name.endswith("-v")
        assert (found.next.value == 1.0) == reads_block_0
        assert found.members > 0.99
        assert found.last_member > 0.99


def test_the_ov_write_is_the_heads_own_norm_value_and_output(llama: Model) -> None:
    """By hand, on a Llama with grouped queries and biases: also that another layer's norm gives something else."""
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(5, llama.d_model, generator=generator)
    for layer, head in ((1, 0), (2, 3)):
        block = llama.hf.model.layers[layer]
        value = block.self_attn.v_proj(block.input_layernorm(stream)).view(5, 2, 8)[:, head // 2]
        expected = value @ block.self_attn.o_proj.weight[:, head * 8 : head * 8 + 8].T
        assert torch.allclose(ov_write(llama, stream, layer, head), expected, atol=1e-5)
        other = block.self_attn.v_proj(llama.hf.model.layers[layer - 1].input_layernorm(stream)).view(5, 2, 8)
        assert not torch.allclose(
            expected, other[:, head // 2] @ block.self_attn.o_proj.weight[:, head * 8 : head * 8 + 8].T
        )


def test_the_lens_ends_at_the_models_own_logits(planted: Sequence, rows: dict[str, Rows], bench: Bench) -> None:
    lens = logit_lens(planted.model, rows["numerals"])
    assert lens.difference[-1] == pytest.approx(bench.full, abs=1e-4)
    assert lens.right.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_bad_settings(planted: Sequence, bench: Bench) -> None:
    with pytest.raises(UsageError, match="threshold"):
        prune_edges(bench, bench.nodes.names, threshold=1.0)
    against = ("mlp_out.0", "z.1.1", planted.truth.compensating[1])
    with pytest.raises(UsageError, match="no ratio"):
        prune_edges(bench, against)
