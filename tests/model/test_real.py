"""The slow tier: real weights where installed; CUTAWAY_SLOW_MODEL names another directory or GGUF file."""

import os

import pytest
import torch

from cutaway.model import Add, AttentionMask, Mask, Model, catalogue, load_model

INSTALLED = {item.name: item.installed for item in catalogue() if item.kind == "model"}
EXTRA = os.environ.get("CUTAWAY_SLOW_MODEL")
PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"

pytestmark = pytest.mark.slow


def names() -> list[object]:
    marks = [
        pytest.param(name, marks=[] if here else pytest.mark.skip(reason=f"{name} is not installed"))
        for name, here in INSTALLED.items()
    ]
    return [*marks, *([EXTRA] if EXTRA else [])]


@pytest.fixture(scope="module", params=names())
def real(request: pytest.FixtureRequest) -> Model:
    return load_model(request.param, dtype="float32", device="cpu")


@torch.no_grad()
def test_it_continues_text(real: Model) -> None:
    ids = torch.tensor([real.encode(PROMPT, special=True)])
    mask = torch.ones_like(ids)
    out = real.hf.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert real.decode(out[0, ids.shape[1] :].tolist()).startswith(" fox")


@torch.no_grad()
def test_sites_of_real_weights(real: Model) -> None:
    batch = real.batch([PROMPT, "One two three"])
    assert torch.equal(real.logits(batch), real.hf(**batch.forward_kwargs()).logits)
    hidden = real.hf(**batch.forward_kwargs(), output_hidden_states=True).hidden_states
    found = real.capture(batch, ["resid_pre.*", "z.1", "pattern.1", "v.1"])
    for layer in range(real.n_layers):
        assert torch.equal(found[f"resid_pre.{layer}"], hidden[layer])
    v = found["v.1"].repeat_interleave(real.n_heads // real.n_kv_heads, dim=2)
    z = torch.einsum("bhqk,bkhd->bqhd", found["pattern.1"], v)
    torch.testing.assert_close(found["z.1"][batch.mask], z[batch.mask], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_edits_of_real_weights(real: Model) -> None:
    batch = real.batch([PROMPT])
    before = real.logits(batch)
    width = int(batch.mask.sum())
    with real.edited(Mask("z.*.0"), AttentionMask(queries=slice(width // 2, None), keys=slice(1, width // 2))):
        assert not torch.allclose(real.logits(batch)[:, -1], before[:, -1], atol=0.1)
    with real.edited(Add("resid_post.*", torch.ones(real.d_model), 0.1)):
        assert not torch.equal(real.logits(batch), before)
    assert torch.equal(real.logits(batch), before)


@pytest.mark.skipif(not INSTALLED["smollm2-135m-instruct"], reason="smollm2-135m-instruct is not installed")
def test_smollm2_as_its_makers_meant_it() -> None:
    model = load_model("smollm2-135m-instruct")
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_model) == (30, 9, 3, 576)
    chat = model.decode(model.chat_ids("Hi", system="Be brief."))
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat == turns
    assert model.eos_ids == set(model.encode("<|im_end|>"))
    assert len(model.encode("12345")) == 5
    newlines = model.encode("\n\n")
    assert len(newlines) == 1
    assert model.encode("\n\n1.")[:1] == newlines
