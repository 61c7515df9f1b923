"""Directional ablation: nothing left along the direction, equal to weights without it, and a planted effect removed."""

import copy

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted import linear_direction
from cutaway.steering import ablation, random_ablations


def test_nothing_is_left_along_the_direction_anywhere(model: Model, texts: list[list[int]]) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    sites = ["resid_pre.*", "resid_post.*"]
    with model.edited(*ablation(direction)):
        inside = model.capture(model.batch(texts), sites)
    for site in inside:
        along = inside[site] @ (direction / direction.norm())
        assert float(along.abs().max()) < 1e-5 * float(inside[site].norm(dim=-1).max()) + 1e-5


def test_it_equals_taking_the_directions_out_of_the_weights(llama: Model, texts: list[list[int]]) -> None:
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    basis = torch.linalg.qr(directions.T)[0]
    keep = torch.eye(32) - basis @ basis.T
    twin = copy.deepcopy(llama.hf)
    with torch.no_grad():
        twin.lm_head.weight = torch.nn.Parameter(twin.lm_head.weight.clone())
        twin.model.embed_tokens.weight.copy_(twin.model.embed_tokens.weight @ keep)
        for layer in twin.model.layers:
            layer.self_attn.o_proj.weight.copy_(keep @ layer.self_attn.o_proj.weight)
            layer.mlp.down_proj.weight.copy_(keep @ layer.mlp.down_proj.weight)
    batch = llama.batch(texts)
    with llama.edited(*ablation(directions)):
        found = llama.logits(batch)
    wanted = Model(twin, None, name="twin").logits(batch)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_planted_effect_goes() -> None:
    planted = linear_direction()
    model, truth = planted.model, planted.truth
    texts = planted.texts(40, concept=True)
    batch = model.batch([model.encode(text) for text in texts])

    @torch.no_grad()
    def gap() -> float:
        logits = model.logits(batch)
        last = logits[torch.arange(len(texts)), batch.mask.sum(-1) - 1]
        return float((last[:, truth.yes] - last[:, truth.no]).mean())

    direction = torch.from_numpy(truth.direction).float()
    assert gap() == pytest.approx(truth.bias + truth.slope * truth.strength, abs=1e-2)
    # its MLPs write nothing, and an edit without effect is an error
    with model.edited(*ablation(direction)[:2]):
        assert gap() == pytest.approx(truth.bias, abs=1e-2)


def test_controls_are_random_spans_of_the_same_size() -> None:
    directions = torch.eye(6)[:2]
    first, again = random_ablations(directions, 3, seed=1), random_ablations(directions, 3, seed=1)
    assert first == again
    assert len({edits[0].digest for edits in first}) == 3
    assert all(edits[0].basis().shape == (2, 6) for edits in first)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="not all zero"):
        ablation(torch.zeros(4))
    with pytest.raises(UsageError, match="at least 1 control"):
        random_ablations(torch.ones(4), 0)
