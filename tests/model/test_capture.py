"""Every captured site against plain hooks, recomputation, or the family's own eager attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Add, Batch, Model
from cutaway.model.capture import select

Make = Callable[..., Model]
STREAM = ["resid_pre", "resid_post", "attn_out", "mlp_out"]
ALL = [*STREAM, "q", "k", "v", "z", "neurons", "pattern"]


def base(model: Model) -> Any:
    return model.hf.get_base_model() if hasattr(model.hf, "peft_config") else model.hf


def everything(model: Model) -> list[str]:
    return ["embed", *(f"{kind}.*" for kind in ALL), "logits"]


def record(model: Model, batch: Batch, modules: dict[str, tuple[Any, str]]) -> dict[str, Tensor]:
    """Naive oracle: one plain hook a module, nothing stopped, nothing selected."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, (module, side) in modules.items():
        if side == "in":

            def before(_m: Any, args: tuple[Any, ...], name: str = name) -> None:
                seen[name] = args[0]

            handles.append(module.register_forward_pre_hook(before))
        else:

            def after(_m: Any, _a: Any, output: Any, name: str = name) -> None:
                seen[name] = output[0] if isinstance(output, tuple) else output

            handles.append(module.register_forward_hook(after))
    model.hf(**batch.forward_kwargs(), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def by_hand(model: Model, family: str, layer: int) -> dict[str, tuple[Any, str]]:
    """Return the modules of each site, written out family by family."""
    root = base(model)
    if family == "gpt2":
        block = root.transformer.h[layer]
        attn, attn_out, mlp_out, o, down = (
            block.attn,
            block.attn,
            block.mlp,
            block.attn.c_proj,
            block.mlp.c_proj,
        )
        mid = block.ln_2
    elif family.startswith("gpt_neox"):
        block = root.gpt_neox.layers[layer]
        attn, attn_out, mlp_out = block.attention, block.attention, block.mlp
        o, down, mid = attn.dense, block.mlp.dense_4h_to_h, block.post_attention_layernorm
    else:
        block = root.model.layers[layer]
        attn, o, down = block.self_attn, block.self_attn.o_proj, block.mlp.down_proj
        attn_out, mlp_out, mid = attn, block.mlp, block.post_attention_layernorm
        if family == "gemma3":
            attn_out, mlp_out = block.post_attention_layernorm, block.post_feedforward_layernorm
            mid = block.pre_feedforward_layernorm
    found = {
        "resid_pre": (block, "in"),
        "resid_post": (block, "out"),
        "attn_out": (attn_out, "out"),
        "mlp_out": (mlp_out, "out"),
        "z": (o, "in"),
        "neurons": (down, "in"),
        "resid_mid": (mid, "in"),
    }
    if hasattr(attn, "q_norm"):
        found |= {"q": (attn.q_norm, "out"), "k": (attn.k_norm, "out"), "v": (attn.v_proj, "out")}
    elif hasattr(attn, "q_proj"):
        found |= {kind: (getattr(attn, f"{kind}_proj"), "out") for kind in "qkv"}
    else:
        found["qkv"] = (attn.c_attn if family == "gpt2" else attn.query_key_value, "out")
    return found


def heads_apart(model: Model, family: str, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the oracle's q, k, v, z to [batch pos head d_head]."""
    size, out = model.d_head, dict(seen)
    if "qkv" in seen:
        both = out.pop("qkv")
        for i, kind in enumerate("qkv"):
            if family == "gpt2":
                out[kind] = torch.stack([both[..., i * 32 + h * size : i * 32 + (h + 1) * size] for h in range(4)], 2)
            else:
                out[kind] = torch.stack([both[..., (3 * h + i) * size : (3 * h + i + 1) * size] for h in range(4)], 2)
    for kind in "qkvz":
        if out[kind].ndim == 3:
            out[kind] = torch.stack(out[kind].split(size, -1), 2)
        elif family == "gemma3":
            out[kind] = out[kind].transpose(1, 2)
    return out


def test_logits_are_hugging_faces_bit_for_bit(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    expected = model.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert torch.equal(model.logits(batch), expected)
    assert torch.equal(model.capture(batch, "logits")["logits"], expected)
    alone = model.batch(rows[:1])
    assert torch.equal(model.logits(alone), model.hf(alone.ids).logits)


def test_every_site_equals_a_plain_hook(model: Model, family: str, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    kinds = [kind for kind in ALL if kind != "pattern"] + ([] if family == "gpt_neox" else ["resid_mid"])
    found = model.capture(batch, [f"{kind}.*" for kind in kinds])
    for layer in range(model.n_layers):
        seen = heads_apart(model, family, record(model, batch, by_hand(model, family, layer)))
        for kind in kinds:
            assert torch.equal(found[f"{kind}.{layer}"], seen[kind]), f"{kind}.{layer}"
    embed = record(model, batch, {"embed": (base(model).get_input_embeddings(), "out")})
    assert torch.equal(model.capture(batch, "embed")["embed"], embed["embed"])


def test_what_attention_and_mlp_add_is_the_whole_change(model: Model, family: str, rows: list[list[int]]) -> None:
    found = model.capture(rows, [f"{kind}.*" for kind in STREAM])
    for layer in range(model.n_layers):
        total = sum((found[f"{kind}.{layer}"] for kind in ("resid_pre", "attn_out", "mlp_out")), torch.zeros(()))
        torch.testing.assert_close(total, found[f"resid_post.{layer}"], atol=2e-6, rtol=1e-5)


def test_pattern_equals_eager_attention(family: str, make: Make, rows: list[list[int]]) -> None:
    model, eager = make(family), make(family, "eager")
    batch = model.batch(rows)
    expected = eager.hf(**batch.forward_kwargs(), output_attentions=True).attentions
    found = model.capture(batch, ["pattern.*", "pattern.1.2"])
    real = batch.mask[:, None, :, None]
    for layer in range(model.n_layers):
        torch.testing.assert_close(found[f"pattern.{layer}"] * real, expected[layer] * real, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            eager.capture(batch, f"pattern.{layer}")[f"pattern.{layer}"] * real,
            expected[layer] * real,
            atol=1e-5,
            rtol=0,
        )
    assert torch.equal(found["pattern.1.2"], found["pattern.1"][:, 2])
    assert model.hf.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("width", [4, 2])
def test_head_axis_where_positions_equal_heads(family: str, make: Make, width: int) -> None:
    """Families order q's axes differently; as many positions as heads is where sizes cannot tell."""
    model = make(family)
    ids = [5, 9, 14, 22, 31, 8, 17]
    long = model.capture([ids], ["q.0", "k.0", "pattern.0"])
    short = model.capture([ids[:width]], ["q.0", "k.0", "pattern.0"])
    for kind in "qk":
        torch.testing.assert_close(short[f"{kind}.0"], long[f"{kind}.0"][:, :width])
    torch.testing.assert_close(short["pattern.0"], long["pattern.0"][:, :, :width, :width])


def test_one_row_does_not_see_the_others(model: Model, rows: list[list[int]]) -> None:
    together = model.capture(rows, everything(model))
    for row, ids in enumerate(rows):
        alone = model.capture([ids], everything(model))
        for site, value in alone.items():
            mine = together[site][row : row + 1]
            mine = mine[:, :, : len(ids), : len(ids)] if site.startswith("pattern") else mine[:, : len(ids)]
            torch.testing.assert_close(mine, value, atol=1e-5, rtol=1e-4, msg=site)


def left_padded(model: Model, rows: list[list[int]]) -> Batch:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Batch(ids, mask)


def test_padding_on_the_left_changes_nothing(model: Model, rows: list[list[int]]) -> None:
    right, left = (
        model.capture(batch, ["resid_post.*", "z.*"]) for batch in (model.batch(rows), left_padded(model, rows))
    )
    for site in right:
        torch.testing.assert_close(left.flat(site), right.flat(site), atol=1e-5, rtol=1e-4)
    last = [model.capture(batch, "z.1", "last")["z.1"] for batch in (model.batch(rows), left_padded(model, rows))]
    torch.testing.assert_close(last[0], last[1], atol=1e-5, rtol=1e-4)


def test_positions_pick_the_same_values(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    full = model.capture(batch, ["resid_post.1", "pattern.1"])
    site = full["resid_post.1"]
    last = model.capture(batch, ["resid_post.1", "pattern.1"], "last")
    for row, ids in enumerate(rows):
        assert torch.equal(last["resid_post.1"][row, 0], site[row, len(ids) - 1])
        torch.testing.assert_close(last["pattern.1"][row, :, 0], full["pattern.1"][row, :, len(ids) - 1])
    assert torch.equal(model.capture(batch, "resid_post.1", [2, 0])["resid_post.1"], site[:, [2, 0]])
    assert torch.equal(model.capture(batch, "resid_post.1", 3)["resid_post.1"], site[:, 3:4])
    part = model.capture(batch, "resid_post.1", slice(3, None))
    assert part.mask.sum(1).tolist() == [4, 1, 2]
    assert torch.equal(part.flat("resid_post.1"), torch.cat([site[r, 3 : len(ids)] for r, ids in enumerate(rows)]))
    assert part.positions.tolist() == [[3, 4, 5, 6], [3, -1, -1, -1], [3, 4, -1, -1]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    left=st.booleans(),
    start=st.one_of(st.none(), st.integers(-7, 7)),
    stop=st.one_of(st.none(), st.integers(-7, 7)),
)
def test_slices_follow_python(lengths: list[int], left: bool, start: int | None, stop: int | None) -> None:
    width = max(lengths)
    mask = torch.tensor(
        [[(i >= width - n) if left else (i < n) for i in range(width)] for n in lengths], dtype=torch.bool
    )
    expected = [[i for i in range(width) if mask[row, i]][start:stop] for row in range(len(lengths))]
    if not any(expected):
        with pytest.raises(UsageError, match="no row has a token there"):
            select(slice(start, stop), mask)
        return
    columns, real, _ = select(slice(start, stop), mask)
    assert columns is not None
    assert [columns[row][real[row]].tolist() for row in range(len(lengths))] == expected


def test_forward_stops_after_the_last_site(llama: Model, rows: list[list[int]]) -> None:
    ran: list[int] = []
    blocks = llama.hf.model.layers
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer)) for layer, block in enumerate(blocks)
    ]
    llama.capture(rows, ["resid_post.0", "pattern.1"])
    assert ran == [0]
    for handle in handles:
        handle.remove()


def test_no_hook_is_left(model: Model, rows: list[list[int]]) -> None:
    model.capture(rows, everything(model))
    with pytest.raises(UsageError):
        model.capture(rows, "resid_post.0", 99)
    for module in model.hf.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_gradient_reaches_an_edit_through_a_capture(model: Model, rows: list[list[int]]) -> None:
    vector = torch.zeros(model.d_model, requires_grad=True)
    with model.edited(Add("resid_pre.1", vector)):
        found = model.capture(rows, ["resid_post.2", "pattern.2"])
    found.flat("resid_post.2").pow(2).sum().backward()
    assert vector.grad is not None
    assert bool(vector.grad.ne(0).any())
    assert not any(parameter.grad is not None for parameter in model.hf.parameters())


def test_keys_masks_and_repr(llama: Model, rows: list[list[int]]) -> None:
    found = llama.capture(rows, ["blocks.1.hook_resid_post", "model.layers.1.self_attn.q_proj"])
    assert list(found) == ["resid_post.1", "q.1"]
    assert found["blocks.1.hook_resid_post"] is found["resid_post.1"]
    assert "resid_post.1" in found
    assert "resid_post.2" not in found
    assert found.flat("q.1").shape == (16, 4, 8)
    assert repr(found) == "Activations(2 sites, 3 rows, 7 positions, 16 in the mask)"
    with pytest.raises(KeyError, match=r"did you mean 'resid_post\.1'"):
        found["resid_post.2"]
    with pytest.raises(UsageError, match="two position axes"):
        llama.capture(rows, "pattern.0").flat("pattern.0")


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (4, "position 4 is outside row 1, which has 4 tokens"),
        (-5, "position -5 is outside row 1"),
        ([], "empty"),
        (slice(None, None, 2), "step 1"),
    ],
)
def test_bad_positions(llama: Model, rows: list[list[int]], positions: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llama.capture(rows, "resid_post.0", positions)


@pytest.mark.parametrize("positions", ["first", 1.5, [0.5]])
def test_ill_typed_positions(llama: Model, rows: list[list[int]], positions: Any) -> None:
    """UsageError, or the type checker's own TypeError where it runs."""
    with pytest.raises((UsageError, TypeError)):
        llama.capture(rows, "resid_post.0", positions)


def test_bad_batches(llama: Model) -> None:
    with pytest.raises(UsageError, match="at least one row"):
        llama.batch([])
    with pytest.raises(UsageError, match="a token in every row"):
        llama.batch([[1], []])
    with pytest.raises(UsageError, match=r"token id 61 is outside the vocabulary 0\.\.60"):
        llama.batch([[61]])
    with pytest.raises(UsageError, match="no tokenizer"):
        llama.batch("text")
