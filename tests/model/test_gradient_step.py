"""The edit that climbs a small network: closed form against autograd, through every family, in the cache, as data."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Add, EditError, Model, load_edits, save_edits
from cutaway.model.edits import GradientStep

Make = Callable[..., Model]


def climb(site: str = "resid_post.1", d: int = 32, seed: int = 0, **settings: object) -> GradientStep:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((12, d), (12,), (10, 12), (10,), (10,))
    weights = [torch.randn(size, generator=generator) / size[-1] ** 0.5 for size in sizes]
    return GradientStep(site, *weights, **settings)  # type: ignore[arg-type]


def by_autograd(edit: GradientStep, value: Tensor) -> Tensor:
    """The naive loop: each row alone, torch's own gradient."""
    rows = []
    for row in value.reshape(-1, value.shape[-1]).double():
        start = here = row
        for step in range(edit.steps):
            at = here.detach().requires_grad_()
            inner = (edit.w1.double() @ at + edit.b1.double()).relu()
            wish = edit.readout.double() @ (edit.w2.double() @ inner + edit.b2.double()).relu()
            if edit.goal is not None and float(wish.detach()) >= edit.goal:
                break
            (push,) = torch.autograd.grad(wish, at)
            push = push / push.norm() if edit.unit else push
            here = here + edit.scale * edit.decay**step * push
        rows.append(here * start.norm() / here.norm() if edit.keep_norm else here)
    return torch.stack(rows).reshape(value.shape).to(value.dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.7, "steps": 5, "decay": 0.8},
        {"unit": True, "steps": 3, "scale": -0.4},
        {"steps": 6, "scale": 0.1, "goal": -0.4},
        {"scale": 2.0, "keep_norm": True},
    ],
)
def test_closed_form_equals_autograd(settings: dict[str, object]) -> None:
    edit = climb(**settings)
    value = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(edit.stepped(value), by_autograd(edit, value), atol=1e-5, rtol=1e-5)


def test_goal_is_reached_and_rows_beyond_it_stay() -> None:
    value = torch.randn(200, 32, generator=torch.Generator().manual_seed(2))
    edit = climb(scale=0.05, steps=200, unit=True, goal=-0.4)
    before, after = edit.wish(value), edit.stepped(value)
    assert torch.equal(after[before >= -0.4], value[before >= -0.4])
    assert 0 < int((before >= -0.4).sum()) < 200
    assert float((edit.wish(after) >= -0.4).float().mean()) > 0.9


def test_every_family_meets_it_at_its_site(model: Model, rows: list[list[int]]) -> None:
    batch = model.batch(rows)
    old = model.capture(batch, "resid_post.1")["resid_post.1"]
    edit = climb(scale=1.5, steps=2, positions=[1, 3])
    with model.edited(edit):
        found = model.capture(batch, "resid_post.1")["resid_post.1"]
    wanted = old.clone()
    wanted[:, [1, 3]] = by_autograd(edit, old)[:, [1, 3]]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def test_cached_decoding_equals_recomputation(model: Model) -> None:
    prompt, edit = [5, 9, 14, 22, 31, 8, 17], climb(scale=2.0, unit=True)
    with torch.no_grad(), model.edited(edit):
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(model.logits(model.batch([ids]))[0, -1].argmax()))
        found = model.hf.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
        )
    assert found[0].tolist() == ids


def test_padding_and_company_change_nothing(llama: Model, rows: list[list[int]]) -> None:
    with llama.edited(climb(scale=1.0, steps=3)):
        together = llama.logits(llama.batch(rows))
        for row, ids in enumerate(rows):
            alone = llama.logits(llama.batch([ids]))[0]
            torch.testing.assert_close(together[row, : len(ids)], alone, atol=1e-4, rtol=1e-4)


def test_it_differentiates(llama: Model, rows: list[list[int]]) -> None:
    batch, edit = llama.batch(rows), climb("resid_post.0")
    extra = torch.zeros(32, requires_grad=True)
    with llama.edited(Add("resid_post.0", extra), edit):
        llama.logits(batch).sum().backward()
    assert extra.grad is not None
    assert float(extra.grad.abs().sum()) > 0


def test_bf16_is_stepped_in_fp32() -> None:
    edit, value = climb(scale=0.5), torch.randn(4, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert edit.stepped(value).dtype == torch.bfloat16
    assert torch.equal(edit.stepped(value), edit.stepped(value.float()).bfloat16())


def test_as_data(llama: Model, tmp_path: Path, rows: list[list[int]]) -> None:
    edit = climb(scale=0.5, steps=2, goal=1.0, unit=True, positions=slice(2, None))
    save_edits([edit], tmp_path / "edits.safetensors")
    (back,) = load_edits(tmp_path / "edits.safetensors")
    assert back == edit
    assert {climb().digest, climb(seed=1).digest, climb(steps=2).digest, climb(goal=0.0).digest} - {edit.digest}
    assert len({climb(), climb(seed=1), climb(steps=2), climb(goal=0.0), edit}) == 5
    with llama.edited(back):
        expected = llama.logits(llama.batch(rows))
    with llama.edited(edit):
        assert torch.equal(llama.logits(llama.batch(rows)), expected)


def test_bad_input(llama: Model, rows: list[list[int]]) -> None:
    good = climb()
    with pytest.raises(UsageError, match="w1 \\[hidden d\\]"):
        GradientStep("resid_post.1", good.w1, good.b1, good.w2.T.contiguous(), good.b2, good.readout)
    with pytest.raises(UsageError, match="readout has 9"):
        GradientStep("resid_post.1", good.w1, good.b1, good.w2, good.b2, good.readout[:9])
    with pytest.raises(UsageError, match="steps=0"):
        climb(steps=0)
    with pytest.raises(UsageError, match="w1 reads 30"), llama.edited(climb(d=30)):
        pass
    with pytest.raises(EditError, match="changed nothing"), llama.edited(climb(scale=0.0)):
        llama.logits(llama.batch(rows))
    assert not any(module._forward_hooks for module in llama.hf.modules())
