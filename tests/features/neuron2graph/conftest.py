"""The room's tiny model, and one of every shape that keeps a past."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from cutaway.model import Model
from cutaway.planted.build import word_tokenizer

_spec = importlib.util.spec_from_file_location("features_conftest", Path(__file__).parent.parent / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
room = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(room)


@pytest.fixture
def model() -> Model:
    return room.reader()


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def any_model(request: pytest.FixtureRequest) -> Model:
    if request.param == "llama":
        return room.reader()
    tokenizer = word_tokenizer((" the", " a", "the"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "gpt2":
            hf = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, n_positions=128, initializer_range=0.3
                )
            )
        else:
            hf = GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    intermediate_size=32,
                    max_position_embeddings=128,
                    initializer_range=0.3,
                )
            )
    return Model(hf, tokenizer, request.param)
