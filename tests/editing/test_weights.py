"""What a neuron writes and what drives it, in plain and gated MLPs."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cutaway.editing import driving, masks, prune, written
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer
from cutaway.planted.concepts import tiny_llama


def gpt2() -> Model:
    tokenizer = word_tokenizer((" a", " b", " c"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=16))
    return Model(hf.eval(), tokenizer, "tiny-gpt2")


@pytest.fixture(params=["llama", "gpt2"])
def model(request) -> Model:
    return gpt2() if request.param == "gpt2" else tiny_llama((" a", " b", " c"), "tiny", d_model=16)


@torch.no_grad()
def test_the_mlp_writes_the_sum_of_its_rows(model):
    found = model.capture([[3, 4, 5]], ["neurons.1", "mlp_out.1"], special=True)
    bias = model.layout.port("neurons", 1).module.bias
    total = found["neurons.1"] @ written(model, 1) + (0.0 if bias is None else bias)
    assert torch.allclose(total, found["mlp_out.1"], atol=1e-5)


@torch.no_grad()
def test_pruned_neurons_are_exactly_zero_and_the_copy_leaves_the_model_alone(model):
    before = model.fingerprint
    pruned = model.copy()
    prune(pruned, {1: (0, 3)})
    values = pruned.capture([[3, 4, 5], [5, 4, 3]], "neurons.1", special=True)["neurons.1"]
    assert (values[..., [0, 3]] == 0).all()
    assert (values[..., [1, 2]] != 0).all()
    with model.edited(*masks({1: (0, 3), 0: ()})):
        held = model.logits(model.batch([[3, 4, 5]]))
    assert torch.allclose(held, pruned.logits(pruned.batch([[3, 4, 5]])), atol=1e-6)
    assert model.fingerprint == before != pruned.fingerprint


def test_a_pruned_neuron_gets_a_gradient(model):
    pruned = model.copy()
    prune(pruned, {0: (2,)})
    pruned.hf.requires_grad_(True)
    pruned.logits(pruned.batch([[3, 4, 5]])).square().sum().backward()
    mlp = pruned.layout.blocks[0].mlp
    weight = mlp.c_fc.weight.grad.T if hasattr(mlp, "c_fc") else mlp.up_proj.weight.grad
    assert weight[2].abs().max() > 0


def test_bad_input(model):
    with pytest.raises(UsageError, match=r"layer 2: the model has 0\.\.1"):
        written(model, 2)
    with pytest.raises(UsageError, match="layer -1"):
        driving(model, -1)
    with pytest.raises(UsageError, match=r"neuron 64: layer 0 has 0\.\.63"):
        prune(model, {0: (64,)})
    with pytest.raises(UsageError, match="no neuron"):
        prune(model, {0: ()})
