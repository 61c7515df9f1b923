"""A tiny random model that reads ASCII text, one token a character, with a start token where asked for."""

import pytest
import torch
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig

from cutaway.model import Model
from cutaway.planted.build import quiet_llama, scatter, word_tokenizer


def reader(seed: int = 0, *, layers: int = 3, d_model: int = 16, start: bool = False, n_ctx: int = 128) -> Model:
    tokenizer = word_tokenizer((" the", " a", "the"))
    if start:
        tokenizer.add_special_tokens({"bos_token": "<eos>"})
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=n_ctx,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    hf = scatter(quiet_llama(config), 0.3, seed)
    return Model(hf, tokenizer, f"reader-{seed}")


@pytest.fixture
def model() -> Model:
    return reader()


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def any_model(request: pytest.FixtureRequest) -> Model:
    if request.param == "llama":
        return reader()
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


@pytest.fixture
def started() -> Model:
    return reader(start=True)
