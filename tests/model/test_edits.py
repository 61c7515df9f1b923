"""What edits do to values: every kind of edit and site against arithmetic written out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import (
    Add,
    AttentionBias,
    AttentionMask,
    Batch,
    Edit,
    EditError,
    Mask,
    Model,
    Patch,
    Project,
    Replace,
    Scale,
)

Make = Callable[..., Model]
KINDS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "neurons"]


def kinds(family: str) -> list[str]:
    return [kind for kind in KINDS if not (kind == "resid_mid" and family == "gpt_neox")]


def random_like(value: Tensor, *, at: int = 2) -> Tensor:
    return torch.randn(value.shape[at:], generator=torch.Generator().manual_seed(3))


def edited_value(model: Model, batch: Batch, site: str, *edits: Edit) -> Tensor:
    with model.edited(*edits):
        return model.capture(batch, site)[site]


def test_each_site_takes_each_edit(model: Model, family: str, rows: list[list[int]]) -> None:
    """At the site: the arithmetic at positions 1 and 3, everything else untouched."""
    batch = model.batch(rows)
    for kind in kinds(family):
        site = f"{kind}.1"
        old = model.capture(batch, site)[site]
        vector = random_like(old)
        directions = torch.randn(2, old.shape[-1], generator=torch.Generator().manual_seed(5))
        onto = torch.linalg.pinv(directions) @ directions
        expected: dict[Edit, Tensor] = {
            Add(site, vector, 2.0, positions=[1, 3]): old + 2 * vector,
            Replace(site, vector, positions=[1, 3]): vector.expand_as(old),
            Scale(site, -0.5, positions=[1, 3]): old * -0.5,
            Scale(site, vector, positions=[1, 3]): old * vector,
            Project(site, directions, positions=[1, 3]): old - old @ onto,
            Project(site, directions, positions=[1, 3], keep=True): old @ onto,
            Mask(site, positions=[1, 3]): torch.zeros_like(old),
        }
        for edit, new in expected.items():
            found = edited_value(model, batch, site, edit)
            wanted = old.clone()
            wanted[:, [1, 3]] = new[:, [1, 3]]
            torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5, msg=repr(edit))


def test_ends_take_edits(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    old = model.capture(batch, ["embed", "logits"])
    vector = random_like(old["embed"])
    torch.testing.assert_close(edited_value(model, batch, "embed", Add("embed", vector)), old["embed"] + vector)
    ban = torch.zeros(model.vocab_size)
    ban[7] = -1e4
    with model.edited(Add("logits", ban, positions=2)):
        found = model.logits(batch)
    assert torch.equal(found[:, 2, 7], old["logits"][:, 2, 7] - 1e4)
    assert torch.equal(found[:, 3], old["logits"][:, 3])


def test_edit_reaches_downstream_and_leaves_no_trace(model: Model, family: str, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    before = model.logits(batch)
    for kind in kinds(family):
        site = f"{kind}.1"
        with model.edited(Scale(site, 3.0, positions=2)):
            changed = model.logits(batch)
        assert not torch.equal(changed[:, 2], before[:, 2]), site
        assert torch.equal(changed[:, :2], before[:, :2]), site
        assert torch.equal(model.logits(batch), before), site
    for module in model.hf.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_stream_edits_equal_naive_hooks(model: Model, rows: list[list[int]]) -> None:
    """resid_post by a hook that writes in place; resid_pre, and embed, as the block before."""
    batch = model.batch(rows)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))

    def naive(_m: Any, _a: Any, output: Any) -> Any:
        for row in range(len(batch)):
            output[row, 2] += vector
        return output

    handle = model.layout.blocks[1].register_forward_hook(naive)
    expected = model.logits(batch)
    handle.remove()
    for site in ("resid_post.1", "resid_pre.2"):
        with model.edited(Add(site, vector, positions=2)):
            assert torch.equal(model.logits(batch), expected)


def test_masking_all_heads_leaves_the_projection_bias(model: Model, rows: list[list[int]]) -> None:
    with model.edited(Mask("z.1")):
        found = model.capture(rows, ["z.1", "attn_out.1"])
    assert not found["z.1"].any()
    o = model.layout.attn(1).get_submodule(model.layout.shape.o)
    bias = getattr(o, "bias", None)
    added = torch.zeros(model.d_model) if bias is None else bias
    torch.testing.assert_close(found["attn_out.1"], added.expand_as(found["attn_out.1"]), atol=1e-6, rtol=0)


def test_heads_by_name_and_by_index(model: Model, rows: list[list[int]]) -> None:
    old = model.capture(rows, "z.1")["z.1"]
    batch = model.batch(rows)
    expected = old.clone()
    expected[:, :, [0, 2]] = 0
    assert torch.equal(edited_value(model, batch, "z.1", Mask("z.1", [0, 2])), expected)
    assert torch.equal(edited_value(model, batch, "z.1", Mask("z.1.0"), Mask("z.1.2")), expected)
    every = {f"z.{layer}": Mask("z.*.3") for layer in range(3)}
    for site, edit in every.items():
        found = edited_value(model, batch, site, edit)
        assert not found[:, :, 3].any()
        assert found[:, :, :3].any()


def test_one_neuron(model: Model, rows: list[list[int]]) -> None:
    old = model.capture(rows, "neurons.2")["neurons.2"]
    found = edited_value(model, model.batch(rows), "neurons.2", Mask("neurons.2", 5))
    assert not found[..., 5].any()
    keep = [i for i in range(old.shape[-1]) if i != 5]
    assert torch.equal(found[..., keep], old[..., keep])


def test_patch_of_the_whole_stream_gives_the_other_run(model: Model, family: str) -> None:
    clean, corrupt = model.batch([[5, 9, 14, 22, 31]]), model.batch([[6, 9, 41, 22, 3]])
    wanted = model.logits(clean)
    sites = [f"{kind}.1" for kind in ("resid_pre", "resid_post", "resid_mid") if kind in kinds(family)]
    source = model.capture(clean, sites)
    for site in sites:
        with model.edited(Patch(site, source[site])):
            torch.testing.assert_close(model.logits(corrupt), wanted, atol=2e-4, rtol=1e-4, msg=site)


def test_patch_takes_the_same_position_from_its_own_row(model: Model, rows: list[list[int]]) -> None:
    source = model.capture([[7] * 7, [8] * 7, [9] * 7], "z.1")["z.1"]
    batch = model.batch(rows)
    old = model.capture(batch, "z.1")["z.1"]
    found = edited_value(model, batch, "z.1", Patch("z.1", source, positions=[2, 3]))
    old[:, [2, 3]] = source[:, [2, 3]]
    assert torch.equal(found, old)
    short = edited_value(model, batch, "z.1", Patch("z.1", source[:1, :2]))
    assert torch.equal(short[:, :2], source[:1, :2].expand(3, -1, -1, -1))


def test_last_position_of_each_row(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    old = model.capture(batch, "resid_post.0")["resid_post.0"]
    found = edited_value(model, batch, "resid_post.0", Scale("resid_post.0", 2.0, positions="last"))
    for row, ids in enumerate(rows):
        old[row, len(ids) - 1] *= 2
    assert torch.equal(found, old)


def test_a_value_for_each_position(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    old = model.capture(batch, "resid_post.0")["resid_post.0"]
    values = torch.randn(2, model.d_model)
    swapped = edited_value(model, batch, "resid_post.0", Replace("resid_post.0", values, positions=[3, 1]))
    old[:, 3], old[:, 1] = values[0], values[1]
    assert torch.equal(swapped, old)
    sliced = edited_value(model, batch, "resid_post.0", Replace("resid_post.0", values, positions=slice(1, 3)))
    assert torch.equal(sliced[:, 1:3], values.expand(3, -1, -1))
    each = torch.randn(3, 2, model.d_model)
    both = edited_value(model, batch, "resid_post.0", Replace("resid_post.0", each, positions=[0, 1]))
    assert torch.equal(both[:, :2], each)


def test_edits_at_one_site_apply_in_order(llama: Model, rows: list[list[int]]) -> None:
    batch, vector = llama.batch(rows), torch.ones(32)
    old = llama.capture(batch, "mlp_out.1")["mlp_out.1"]
    add, scale = Add("mlp_out.1", vector), Scale("mlp_out.1", 2.0)
    torch.testing.assert_close(edited_value(llama, batch, "mlp_out.1", add, scale), (old + 1) * 2)
    torch.testing.assert_close(edited_value(llama, batch, "mlp_out.1", scale, add), old * 2 + 1)
    with llama.edited(add):
        torch.testing.assert_close(edited_value(llama, batch, "mlp_out.1", scale), (old + 1) * 2)
        torch.testing.assert_close(llama.capture(batch, "mlp_out.1")["mlp_out.1"], old + 1)


def test_resid_mid_sees_a_nested_edit_of_its_own_block(llama: Model, rows: list[list[int]]) -> None:
    batch, vector = llama.batch(rows), torch.ones(32)
    with llama.edited(Replace("resid_mid.1", vector)), llama.edited(Add("resid_pre.1", vector)):
        found = llama.capture(batch, "resid_mid.1")["resid_mid.1"]
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-5, rtol=0)


def test_gradient_of_every_tensor_an_edit_carries(model: Model, family: str) -> None:
    """Against central differences: exact where a model is fp64 throughout; RMS norms round to fp32."""
    model.hf.double()
    step, atol, rtol = (1e-5, 1e-6, 1e-5) if family.startswith("gpt") else (1e-3, 2e-3, 1e-2)
    batch = model.batch([[5, 9, 14, 22]])
    source = model.capture([[6, 6, 6, 6]], "z.1")["z.1"]
    shapes: list[tuple[Callable[[Tensor], Edit], Tensor]] = [
        (lambda t: Add("resid_pre.1", t, 0.5, positions=1), torch.randn(model.d_model)),
        (lambda t: Replace("mlp_out.1", t, positions=slice(1, None)), torch.randn(model.d_model)),
        (lambda t: Scale("z.1.2", t), torch.randn(model.d_head)),
        (lambda t: Project("resid_post.0", t), torch.randn(2, model.d_model)),
        (lambda t: Patch("z.1", t), source),
    ]
    for build_edit, start in shapes:
        tensor = start.double().requires_grad_()

        def loss(value: Tensor, build_edit: Callable[[Tensor], Edit] = build_edit) -> Tensor:
            with model.edited(build_edit(value)):
                return model.logits(batch).tanh().sum()

        (gradient,) = torch.autograd.grad(loss(tensor), tensor)
        way = torch.randn_like(tensor)
        with torch.no_grad():
            numeric = (loss(tensor + step * way) - loss(tensor - step * way)) / (2 * step)
        torch.testing.assert_close((gradient * way).sum(), numeric, atol=atol, rtol=rtol)


def test_training_inside_the_block(model: Model, rows: list[list[int]]) -> None:
    """Weights below and above the edit get gradients; a zero vector under training is not an idle edit."""
    model.hf.requires_grad_(True)
    vector = torch.zeros(model.d_model, requires_grad=True)
    batch = model.batch(rows)
    with model.edited(Add("resid_post.1", vector), Project("resid_post.0", torch.randn(model.d_model))):
        model.hf(**batch.forward_kwargs(), labels=batch.ids).loss.backward()
    assert vector.grad is not None
    assert bool(vector.grad.any())
    o = model.layout.attn(0).get_submodule(model.layout.shape.o)
    assert any(p.grad is not None and bool(p.grad.any()) for p in o.parameters())


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 4), copies=st.integers(0, 2), seed=st.integers(0, 99))
def test_projection_algebra(k: int, copies: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(k, 6, generator=generator)
    directions = torch.cat([directions, directions[:1].expand(copies, -1) * 2, torch.zeros(1, 6)])
    basis = Project("resid_post.0", directions).basis()
    assert len(basis) == k
    torch.testing.assert_close(basis @ basis.T, torch.eye(k, dtype=torch.float64))
    wide = directions.double()
    torch.testing.assert_close(basis.T @ basis, torch.linalg.pinv(wide) @ wide, atol=1e-8, rtol=0)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_attention_bias_multiplies_the_odds_of_its_keys(
    family: str, attn: str, make: Make, rows: list[list[int]]
) -> None:
    """Keys 1 and 2 get e**bias times their weight from query 3, in heads 1 and 2 only; values follow the pattern."""
    model = make(family, attn)
    batch = model.batch(rows)
    free = model.capture(batch, "pattern.1")["pattern.1"]
    wanted = free.clone()
    wanted[:, 1:3, 3, 1:3] *= np.exp(1.5)
    wanted = wanted / wanted.sum(-1, keepdim=True).clamp(min=1e-30)
    with model.edited(AttentionBias(1.5, layer=1, queries=3, keys=[1, 2], heads=[1, 2])):
        found = model.capture(batch, ["pattern.1", "v.1", "z.1"])
    real = batch.mask[:, None, :, None]
    torch.testing.assert_close(found["pattern.1"] * real, wanted * real, atol=1e-6, rtol=1e-5)
    v = found["v.1"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", found["pattern.1"], v)
    torch.testing.assert_close(found["z.1"][batch.mask], z[batch.mask], atol=1e-5, rtol=1e-4)


def test_attention_bias_meets_padding_masks_and_its_opposite(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    left = Batch(batch.ids.flip(1), batch.mask.flip(1))
    wide = left.ids.clone()
    for i, row in enumerate(rows):
        wide[i, -len(row) :] = torch.tensor(row)
    left = Batch(wide, left.mask)
    plain = model.logits(batch)[batch.mask]
    bias = AttentionBias(0.8, queries="last", keys=slice(1, 3))
    hidden = AttentionMask(queries="last", keys=2)
    with model.edited(bias, hidden):
        right_side = [model.logits(batch)[i, len(row) - 1] for i, row in enumerate(rows)]
        left_side = model.logits(left)[:, -1]
    torch.testing.assert_close(left_side, torch.stack(right_side), atol=1e-4, rtol=1e-4)
    with model.edited(bias, hidden):
        assert float(model.capture(rows[2:], "pattern.2", "last")["pattern.2"][0, :, 0, 2].max()) == 0
    with model.edited(bias, AttentionBias(-0.8, queries="last", keys=slice(1, 3))):
        torch.testing.assert_close(model.logits(batch)[batch.mask], plain, atol=1e-5, rtol=1e-5)
    with pytest.raises(EditError, match="changed nothing"), model.edited(AttentionBias(1.0, queries=0, keys=3)):
        model.logits(batch)


def test_idle_edits_are_errors(llama: Model, rows: list[list[int]]) -> None:
    batch, zero = llama.batch(rows), torch.zeros(32)
    with pytest.raises(EditError, match="met no forward pass"), llama.edited(Scale("z.1", 2.0)):
        pass
    with pytest.raises(EditError, match="changed nothing"), llama.edited(Add("resid_post.1", zero)):
        llama.logits(batch)
    with (
        pytest.raises(EditError, match=r"Scale\(site='z.1', factor=2.0, positions=\(50,\)\) changed nothing"),
        llama.edited(Scale("z.1", 2.0, positions=50)),
    ):
        llama.logits(batch)
    with pytest.raises(EditError, match="changed nothing"), llama.edited(AttentionMask(queries=0, keys=3)):
        llama.logits(batch)
    with pytest.raises(EditError, match="met no forward pass"), llama.edited(Mask("z.2")):
        llama.capture(batch, "resid_post.0")


def test_another_error_is_not_replaced_and_hooks_go(llama: Model) -> None:
    with pytest.raises(ZeroDivisionError), llama.edited(Mask("z.1"), AttentionMask(keys=0)):
        raise ZeroDivisionError
    with pytest.raises(UsageError), llama.edited(Mask("z.1"), AttentionMask(keys=0), Mask("z.7")):
        pass
    for module in llama.hf.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


V = torch.ones(32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: Add("resid_pots.1", V), "did you mean 'resid_post'"),
        (lambda: Add("resid_post.3", V), r"must be 0\.\.2"),
        (lambda: Add("resid_post.1", torch.ones(31)), r"shape \[31\] does not fit; the site has \[32\]"),
        (lambda: Add("z.1", V), r"shape \[32\] does not fit; the site has \[4, 8\]"),
        (lambda: Add("resid_post.1", torch.ones(32, dtype=torch.long)), "must be a float tensor"),
        (lambda: Mask("z.1", 4), r"head 4 must be 0\.\.3"),
        (lambda: Mask("neurons.1", 48), r"index 48 must be 0\.\.47"),
        (lambda: Mask("pattern.1"), "use AttentionMask"),
        (lambda: Mask("z.1", positions=slice(0, 4, 2)), "step 1"),
        (lambda: Project("resid_post.1", torch.ones(2, 5)), "directions have 5 entries, the site 32"),
        (lambda: Project("resid_post.1", torch.zeros(32)), "not all zero"),
        (lambda: Patch("resid_post.1", V), r"source must be \[batch pos \.\.\.\]"),
        (lambda: Patch("resid_post.1", torch.ones(1, 3, 32), positions=3), "beyond the source's 3 positions"),
        (lambda: Replace("resid_post.1", torch.ones(3, 32), positions=[0, 1]), "3 values for 2 positions"),
        (lambda: Replace("resid_post.1", torch.ones(2, 2, 32)), "2 rows of values for a batch of 3"),
        (lambda: AttentionMask(heads=4), r"head 4 must be 0\.\.3"),
        (lambda: AttentionMask(layer=3), r"must be 0\.\.2"),
    ],
)
def test_bad_edits(llama: Model, rows: list[list[int]], edit: Callable[[], Edit], message: str) -> None:
    with pytest.raises(UsageError, match=message), llama.edited(edit()):
        llama.logits(llama.batch(rows))


def test_ill_typed_edits() -> None:
    """UsageError, or the type checker's own TypeError where it runs."""
    for build_edit in (
        lambda: Add("resid_post.1", [1.0]),  # type: ignore[arg-type]
        lambda: Mask("z.1", "x"),
        lambda: Mask("z.1", positions=1.5),  # type: ignore[arg-type]
    ):
        with pytest.raises((UsageError, TypeError)):
            build_edit()
