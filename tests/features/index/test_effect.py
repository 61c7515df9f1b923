"""Logit effects against the unembedding applied to one direction at a time."""

import pytest
import torch
from makers import tiny
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from cutaway.features.dictionary import Provenance
from cutaway.features.index.effect import atom_directions, logit_effects, neuron_directions
from cutaway.features.sparse import SparseDictionary
from cutaway.model import Model


def shaken(hf: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return hf


def gpt2() -> Model:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        return Model(shaken(GPT2LMHeadModel(config)), None, "gpt2")


def gemma() -> Model:
    config = Gemma3TextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return Model(shaken(Gemma3ForCausalLM(config)), None, "gemma")


@pytest.mark.parametrize("made", [tiny, gpt2, gemma], ids=lambda each: each.__name__)
def test_effects_are_the_slope_of_the_logits_but_for_one_scale(made: object) -> None:
    """The last neurons' share of the logits, by moving one neuron with the final norm's scale held."""
    model = made() if made is not tiny else Model(shaken(tiny().hf), tiny().tokenizer, "tiny")  # type: ignore[operator]
    last = model.n_layers - 1
    directions = neuron_directions(model, last)
    found = logit_effects(model, directions, 30, top=30)
    decoder = model.layout.decoder
    norm = getattr(decoder, "norm", None) or decoder.ln_f
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    head = model.hf.get_output_embeddings()
    flat = head(norm(x)) - head(norm(torch.zeros_like(x)))
    for unit in (0, 3, 11):
        # Derivative of logits along the direction, minus what comes from the changing scale: that part is a multiple
        # of the logits themselves (bias left out).
        def logits(t: torch.Tensor, unit: int = unit, norm: torch.nn.Module = norm) -> torch.Tensor:
            return head(norm(x + t * directions[unit]))[0, :30]

        slope = torch.autograd.functional.jacobian(logits, torch.zeros(()))
        effect = torch.zeros(30)
        effect[torch.from_numpy(found["up.token"][unit]).long()] = torch.from_numpy(found["up.value"][unit])
        basis = torch.stack([effect, flat[0, :30].detach()], 1)
        solution = torch.linalg.lstsq(basis, slope[:, None]).solution[:, 0]
        torch.testing.assert_close(basis @ solution, slope, atol=1e-3, rtol=1e-3)
        assert solution[0] > 0
        assert list(found["up.value"][unit]) == sorted(found["up.value"][unit], reverse=True)
        assert list(found["down.token"][unit]) == list(found["up.token"][unit])[::-1]


def test_equal_effects_are_ordered_by_token() -> None:
    model = tiny()
    with torch.no_grad():
        model.hf.get_output_embeddings().weight.zero_()
    found = logit_effects(model, neuron_directions(model, 0), 5, top=5)
    assert found["up.token"].tolist() == [[0, 1, 2, 3, 4]] * 24


def test_only_what_is_added_to_the_stream_has_an_effect() -> None:
    model = tiny()
    made = SparseDictionary(16, 8, "relu", provenance=Provenance(site="resid_post.1"))
    found = atom_directions(model, made, "resid_post.1")
    assert found is not None
    assert torch.equal(found, made.atoms)
    inside = SparseDictionary(24, 8, "relu", provenance=Provenance(site="neurons.1"))
    assert atom_directions(model, inside, "neurons.1") is None
    about = Provenance(site="neurons.1", target="mlp_out.1")
    across = SparseDictionary(24, 8, "relu", d_out=16, subtract_bias=False, provenance=about)
    assert atom_directions(model, across, "neurons.1") is not None
