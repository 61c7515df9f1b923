"""Adapters: where they sit, what they add, and their files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import rows_of, tiny, tiny_gpt2

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model
from cutaway.training import (
    LoraSpec,
    TrainConfig,
    adapter_scalars,
    adapters,
    adapters_scaled,
    add_lora,
    base_fingerprint,
    check_lora,
    load_adapter,
    save_adapter,
    train,
)

ROWS = [[5, 9, 14, 22, 31], [40, 3, 7]]
CONFIG = TrainConfig(rate=0.02, steps=3)


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.batch(ROWS))


def test_rank_1_trains_exactly_the_named_modules() -> None:
    model = tiny(layers=3)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    spec = LoraSpec(modules=("down_proj", "self_attn.q_proj"), layers=(0, 2))
    counted = check_lora(spec, model.hf.config)
    tuned = add_lora(model, spec)
    trainable = sum(weight.numel() for weight in tuned.hf.parameters() if weight.requires_grad)
    assert trainable == counted == 2 * ((24 + 16) + (16 + 16))
    assert {(a.layer, a.module) for a in adapters(tuned).values()} == {
        (layer, path) for layer in (0, 2) for path in ("mlp.down_proj", "self_attn.q_proj")
    }
    train(tuned, rows_of(6), CONFIG)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in tuned.hf.state_dict().items()
        if ".lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(float(adapter.b.detach().norm()) > 0 for adapter in adapters(tuned).values())


@pytest.mark.parametrize("rank", [1, 4, 32])
@pytest.mark.parametrize("build", [tiny, tiny_gpt2])
def test_the_scale_is_alpha_over_the_root_of_the_rank(rank: int, build: Any) -> None:
    module = "down_proj" if build is tiny else "mlp.c_proj"
    tuned = add_lora(build(), LoraSpec(modules=(module,), rank=rank, alpha=8.0))
    train(tuned, rows_of(6), CONFIG)
    apart = logits(tuned)
    assert next(iter(adapters(tuned).values())).scale == pytest.approx(8 / rank**0.5)
    merged = build()
    for adapter in adapters(tuned).values():
        weight = merged.layout.blocks[adapter.layer].get_submodule(adapter.module).weight
        change = 8 / rank**0.5 * (adapter.b @ adapter.a).detach()
        with torch.no_grad():
            weight.add_(change if build is tiny else change.T)
    assert torch.allclose(logits(merged), apart, atol=1e-4)
    assert not torch.allclose(logits(build()), apart, atol=1e-3)


def test_scalars_are_a_times_what_enters() -> None:
    tuned = add_lora(tiny(), LoraSpec(rank=1, layers=(1,)))
    train(tuned, rows_of(6), CONFIG)
    ((path, adapter),) = adapters(tuned).items()
    batch = tuned.batch(ROWS)
    with torch.no_grad():
        found = adapter_scalars(tuned, batch)[path]
        entering = tuned.capture(batch, "neurons.1", special=True)["neurons.1"]
    assert found.shape == (2, 5, 1)
    assert torch.allclose(found[batch.mask], (entering @ adapter.a.T)[batch.mask], atol=1e-6)
    assert not any(module._forward_hooks for module in tuned.hf.modules())


def test_a_factor_of_0_is_exactly_the_base_model() -> None:
    base = logits(tiny())
    tuned = add_lora(tiny(), LoraSpec(alpha=16.0))
    train(tuned, rows_of(6), CONFIG)
    trained = logits(tuned)
    with adapters_scaled(tuned, 0.0):
        assert torch.equal(logits(tuned), base)
    with adapters_scaled(tuned, 2.0):
        assert not torch.equal(logits(tuned), trained)
    assert torch.equal(logits(tuned), trained)


def test_files_are_pefts_and_know_their_base(tmp_path: Path) -> None:
    from peft import PeftModel

    tuned = add_lora(tiny(), LoraSpec(rank=2, alpha=8.0, layers=(1,)))
    assert base_fingerprint(tuned) == tiny().fingerprint
    train(tuned, rows_of(6), CONFIG)
    save_adapter(tuned, tmp_path)
    assert torch.equal(logits(load_adapter(tiny(), tmp_path)), logits(tuned))
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # by peft itself
        theirs = PeftModel.from_pretrained(tiny().hf, str(tmp_path))
    with torch.no_grad():
        assert torch.allclose(theirs(torch.tensor([ROWS[0]])).logits[0], logits(tuned)[0], atol=1e-6)
    assert not list(tmp_path.glob("*.bin"))
    with pytest.raises(CutawayError, match="belongs to base weights"):
        load_adapter(tiny(1), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(CutawayError, match="no adapter that can be read"):
        load_adapter(tiny(), tmp_path)


def test_adapters_start_alike_from_a_seed_and_leave_the_random_state() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    a, b, c = (adapters(add_lora(tiny(), LoraSpec(seed=seed))) for seed in (4, 4, 5))
    first = next(iter(a))
    assert torch.equal(a[first].a, b[first].a)
    assert not torch.equal(a[first].a, c[first].a)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 5000}, "rank=5000"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"modules": ()}, "name at least one"),
        ({"layers": ()}, "name at least one"),
        ({"layers": (2,)}, r"layer 2: the model has 0..1"),
        ({"modules": ("down_prj",)}, "did you mean 'down_proj'"),
    ],
)
def test_bad_specs_are_refused_without_weights(spec: dict[str, Any], match: str) -> None:
    config = tiny().hf.config
    with pytest.raises(UsageError, match=match):
        check_lora(LoraSpec(**spec), config)


def test_adapters_are_not_put_on_adapters() -> None:
    with pytest.raises(UsageError, match="has adapters already"):
        add_lora(add_lora(tiny(), LoraSpec()), LoraSpec())
    with pytest.raises(UsageError, match="has no adapters"), adapters_scaled(tiny(), 0.5):
        pass
