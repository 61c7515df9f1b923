"""Edits while decoding from a cache and under padding, and hiding tokens: against runs without a cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.model import Add, AttentionMask, Edit, Mask, Model, Patch, Project, Replace, Scale

Make = Callable[..., Model]
STEPS = 6
VECTOR = torch.linspace(-1, 1, 32)

EDITS: dict[str, list[Edit]] = {
    "everywhere": [Add("resid_post.1", VECTOR)],
    "prompt position": [Replace("mlp_out.1", VECTOR, positions=2)],
    "generated position": [Add("resid_pre.1", VECTOR, 3.0, positions=[8, 9])],
    "from a position on": [Project("resid_post.0", VECTOR, positions=slice(6, None))],
    "heads and neurons": [Mask("z.1", [0, 3]), Scale("neurons.2", 2.0, positions=slice(3, 8))],
    "keys and values": [Scale("k.1", -1.0, positions=[1, 8]), Mask("v.0", 1, positions=[2, 7])],
    "whole rows": [Patch("attn_out.1", torch.linspace(-2, 2, 9 * 32).reshape(1, 9, 32))],
    "hidden key": [AttentionMask(layer="*", queries=slice(4, None), keys=[1, 2])],
    "hidden generated key": [AttentionMask(layer=1, queries=None, keys=slice(7, 9), heads=[1])],
}


def greedy(model: Model, ids: list[int]) -> tuple[list[int], Tensor]:
    """Naive oracle: every step runs the whole text, with no cache."""
    out, scores = list(ids), []
    for _ in range(STEPS):
        logits = model.logits(model.batch([out]))[0, -1]
        scores.append(logits)
        out.append(int(logits.argmax()))
    return out[len(ids) :], torch.stack(scores)


def generate(model: Model, rows: list[list[int]], **options: Any) -> tuple[list[list[int]], Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.hf.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences[:, width:].tolist(), torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", EDITS)
def test_cached_decoding_equals_recomputation(model: Model, name: str) -> None:
    prompt = [5, 9, 14, 22, 31, 8, 17]
    with torch.no_grad(), model.edited(*EDITS[name]):
        expected, wanted = greedy(model, prompt)
        found, scores = generate(model, [prompt])
    assert found[0] == expected
    torch.testing.assert_close(scores[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EDITS)
def test_left_padding_does_not_move_positions(model: Model, name: str) -> None:
    rows = [[5, 9, 14, 22, 31, 8, 17], [40, 3, 50, 6], [12, 60, 33, 21, 10]]
    with torch.no_grad(), model.edited(*EDITS[name]):
        found, scores = generate(model, rows)
        for row, ids in enumerate(rows):
            alone, wanted = generate(model, [ids])
            assert found[row] == alone[0]
            torch.testing.assert_close(scores[row], wanted[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["generated position", "hidden key", "hidden generated key"])
@pytest.mark.parametrize("padded", [False, True])
def test_static_cache(make: Make, name: str, padded: bool) -> None:
    model = make("llama")
    rows = [[5, 9, 14, 22, 31, 8, 17], [40, 3, 50, 6]][: 1 + padded]
    with torch.no_grad(), model.edited(*EDITS[name]):
        expected, wanted = generate(model, rows)
        found, scores = generate(model, rows, cache_implementation="static", disable_compile=True)
    assert found == expected
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


def test_negative_positions_stay_with_the_prompt(make: Make) -> None:
    model, prompt = make("llama"), [5, 9, 14, 22]
    with torch.no_grad():
        with model.edited(Add("resid_post.1", VECTOR, positions="last")):
            relative, _ = generate(model, [prompt])
        with model.edited(Add("resid_post.1", VECTOR, positions=3)):
            absolute, _ = generate(model, [prompt])
        with model.edited(Add("resid_post.1", VECTOR, positions=slice(-2, None))):
            sliced, _ = generate(model, [prompt])
        with model.edited(Add("resid_post.1", VECTOR, positions=[2, 3])):
            listed, _ = generate(model, [prompt])
    assert relative == absolute
    assert sliced == listed


def test_hidden_keys_have_no_weight(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    free = model.capture(batch, "pattern.0")["pattern.0"]
    with model.edited(AttentionMask(layer=0, queries=[3], keys=[1, 2], heads=[1, 2])):
        found = model.capture(batch, ["pattern.0"])["pattern.0"]
    wanted = free.clone()
    wanted[:, 1:3, 3, 1:3] = 0
    wanted = wanted / wanted.sum(-1, keepdim=True)
    real = batch.mask[:, None, :, None]
    torch.testing.assert_close(found * real, wanted * real, atol=1e-6, rtol=1e-5)


def test_mask_does_to_the_values_what_it_does_to_the_pattern(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    with model.edited(AttentionMask(layer=1, queries=slice(2, None), keys=0)):
        found = model.capture(batch, ["pattern.1", "v.1", "z.1"])
    v = found["v.1"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", found["pattern.1"], v)
    torch.testing.assert_close(found["z.1"][batch.mask], z[batch.mask], atol=1e-5, rtol=1e-4)


def test_a_blind_query_keeps_itself(model: Model, rows: list[list[int]]) -> None:
    with model.edited(AttentionMask(layer=1, queries=2)):
        found = model.capture(rows, "pattern.1")["pattern.1"]
    own = torch.zeros_like(found[:, :, 2])
    own[..., 2] = 1
    torch.testing.assert_close(found[:, :, 2], own)


def test_eager_attention_takes_the_same_mask(family: str, make: Make, rows: list[list[int]]) -> None:
    edit = AttentionMask(queries=[2, 3], keys=[0, 1], heads=[0, 2])
    fused, eager = make(family), make(family, "eager")
    batch = fused.batch(rows)
    with fused.edited(edit), eager.edited(edit):
        torch.testing.assert_close(
            fused.logits(batch)[batch.mask], eager.logits(batch)[batch.mask], atol=1e-4, rtol=1e-4
        )
