"""The projection in training, arms on a model with a louder unwanted rule, and what does not depend on what."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.finetuning.caft.data import double_task
from cutaway.finetuning.caft.directions import concept, labelled_direction
from cutaway.finetuning.caft.method import (
    Comparison,
    Task,
    ablated,
    compare,
    fixed,
    labelled_concept,
    layer_of,
    overlap,
    readable,
    tune,
)
from cutaway.finetuning.choice import choice_data, margins
from cutaway.model import Model
from cutaway.planted.spurious import TwoRules
from cutaway.training import LoraSpec, NextToken, TrainConfig, collate

SITE = "resid_post.1"
CONFIG = TrainConfig(rate=2e-3, batch=32, steps=50, bucket=1, precision="float32")
FEW = replace(CONFIG, steps=2)


@pytest.fixture(scope="module")
def found(rules: TwoRules, task: Task) -> Comparison:
    return compare(lambda repeat: rules.model.copy(), task, labelled_concept(task, SITE), CONFIG, repeats=1)


def hooks(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_nothing_of_the_concept_is_left_at_the_site(model: Model) -> None:
    span = concept(model, "resid_post.0", torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    with ablated(model, [span]):
        h = model.capture([[5, 6, 7, 8]], "resid_post.0", special=True)["resid_post.0"]
    assert float((h @ span.basis.T).norm(dim=-1).max() / h.norm(dim=-1).min()) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_projection_written_by_hand(model: Model, checkpointing: bool) -> None:
    model.hf.requires_grad_(True)
    span = concept(model, "resid_post.0", torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    batch = collate(choice_data(double([5, 6, 7]), 64), [0], model)
    q = span.basis

    def by_hand(module: object, given: object, out: torch.Tensor) -> torch.Tensor:
        return out - (out @ q.T) @ q

    hook = model.layout.blocks[0].register_forward_hook(by_hand)
    wanted = torch.autograd.grad(NextToken()(model, batch).total, list(model.hf.parameters()), allow_unused=True)
    hook.remove()
    if checkpointing:
        enable = getattr(model.hf, "activation_checkpointing_enable", model.hf.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        model.hf.train()
    with ablated(model, [span]):
        found = torch.autograd.grad(NextToken()(model, batch).total, list(model.hf.parameters()), allow_unused=True)
    for a, b in zip(wanted, found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6)


def double(ids: list[int]) -> list[object]:
    from cutaway.finetuning.choice import Choice

    return [Choice(tuple(ids), 9, 10)]


def test_no_hook_remains_and_the_checkpoint_is_a_plain_model(model: Model, tmp_path: Path) -> None:
    span = concept(model, "resid_post.0", torch.ones(16))
    with ablated(model, [span]):
        assert hooks(model)
        model.hf(torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(RuntimeError, match="size"), ablated(model, [span]):
        model.hf(torch.ones(1, 2, 3, dtype=torch.long))
    assert not hooks(model)
    tuned = tune(model, choice_data(double([5, 6, 7]), 64), replace(FEW, batch=1), [span]).model
    assert not hooks(tuned)
    tuned.hf.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path, dtype="float32")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, tuned.hf(ids).logits)


@pytest.mark.parametrize("lora", [None, LoraSpec(("q_proj", "down_proj"), rank=2)])
def test_a_frozen_trunk_does_not_move(rules: TwoRules, task: Task, lora: LoraSpec | None) -> None:
    base = rules.model.copy()
    data = choice_data(task.train[:64], base.n_ctx)
    before = base.capture([list(task.train[0].ids)], "resid_post.0")["resid_post.0"].detach()
    tuned = tune(rules.model.copy(), data, FEW, above=0, lora=lora).model
    assert torch.equal(tuned.capture([list(task.train[0].ids)], "resid_post.0")["resid_post.0"].detach(), before)
    moved = tune(rules.model.copy(), data, FEW, lora=lora).model
    assert not torch.equal(moved.capture([list(task.train[0].ids)], "resid_post.0")["resid_post.0"].detach(), before)


def test_what_the_arms_learn_where_the_unwanted_rule_is_the_louder(found: Comparison) -> None:
    reached = {arm.name: arm.values for arm in found.arms.arms}
    assert reached["before"]["reversed"] == (0.5,)
    assert reached["none"]["reversed"][0] <= 0.05
    assert reached["random"]["reversed"][0] <= 0.15
    assert reached["ablation frozen"]["reversed"][0] >= 0.95
    assert found.gain("ablation frozen").low > 0
    for name in ("none", "random", "ablation", "ablation frozen"):
        assert reached[name]["tied"][0] >= 0.98, name
    assert reached["ablation"]["reversed"][0] < reached["ablation frozen"]["reversed"][0]


def test_the_leak_is_seen_with_a_trained_trunk_and_not_with_a_frozen_one(found: Comparison) -> None:
    (leaks,) = found.leaks
    assert leaks["ablation"].after >= 0.9
    assert leaks["ablation frozen"].after == leaks["ablation frozen"].before <= 0.65
    assert leaks["ablation frozen"].overlap == pytest.approx(1.0, abs=1e-4)
    assert leaks["ablation"].overlap < 0.99


def test_a_pair_gives_the_same_whatever_came_before(rules: TwoRules) -> None:
    tasks = [
        double_task(rules.model, *pair, train=16, probe=20, test=10)
        for pair in (("agreement", "sentiment"), ("sentiment", "agreement"))
    ]

    def all_of(order: list[int]) -> dict[int, dict[str, object]]:
        return {
            i: compare(
                lambda repeat: rules.model.copy(), tasks[i], labelled_concept(tasks[i], SITE), FEW, repeats=1
            ).to_dict()
            for i in order
        }

    assert all_of([0, 1])[1] == all_of([1])[1]


def test_looking_again_takes_the_direction_of_the_model_as_it_then_is(rules: TwoRules, task: Task) -> None:
    asked = []

    def find(model: Model):  # type: ignore[no-untyped-def]
        span = labelled_concept(task, SITE)(model)
        asked.append(span)
        return span

    data = choice_data(task.train[:64], rules.model.n_ctx)
    start = labelled_concept(task, SITE)(rules.model)
    done = tune(rules.model.copy(), data, replace(CONFIG, steps=6), [start], find=find, every=2)
    assert [step.step for step in done.history] == [1, 2, 3, 4, 5, 6]
    assert len(asked) == 2
    assert not torch.equal(asked[0].basis, asked[1].basis)


def test_a_probe_reads_the_concept_and_not_what_was_taken_out(rules: TwoRules, task: Task) -> None:
    span = labelled_concept(task, SITE)(rules.model)
    elsewhere = concept(rules.model, SITE, torch.eye(rules.model.d_model)[:1])
    assert readable(rules.model, [elsewhere], task.probe, task.held) >= 0.95
    assert readable(rules.model, [span], task.probe, task.held) <= 0.65
    assert overlap(rules.model, span, task.probe) == pytest.approx(1.0, abs=1e-5)


def test_ctrl_c_keeps_whole_repeats(rules: TwoRules, task: Task) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    few = Task(task.train[:16], task.probe[:20], task.held[:20], task.tied[:10], task.reversed[:10])
    found = compare(lambda repeat: rules.model.copy(), few, labelled_concept(few, SITE), FEW, repeats=3, report=stop)
    assert not found.arms.complete
    assert len(found.leaks) == 1


def test_sites_have_the_layer_that_writes_them(model: Model) -> None:
    assert [layer_of(model, site) for site in ("embed", "resid_pre.0", "resid_mid.1", "resid_post.1")] == [-1, -1, 1, 1]


def test_bad_input(rules: TwoRules, task: Task) -> None:
    data = choice_data(task.train[:4], rules.model.n_ctx)
    with pytest.raises(UsageError, match="too late"):
        tune(rules.model.copy(), data, FEW, above=1, lora=LoraSpec(("q_proj",), rank=1))
    with pytest.raises(UsageError, match="find and every together"):
        tune(rules.model.copy(), data, FEW, every=2)
    with pytest.raises(UsageError, match="repeats=0"):
        compare(lambda repeat: rules.model.copy(), task, labelled_concept(task, SITE), FEW, repeats=0)
    one_sided = [item for item in task.probe if item.labels[1]]
    with pytest.raises(UsageError, match="both classes"):
        labelled_direction(rules.model, one_sided, SITE)
    span = labelled_concept(task, SITE)(rules.model)
    assert fixed(span)(rules.model) is span
    assert np.isfinite(margins(rules.model, task.tied[:3])).all()
