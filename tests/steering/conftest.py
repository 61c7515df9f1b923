"""Tiny random models for the steering room."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig

from cutaway.model import Model

SIZES = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, **WIDE, max_position_embeddings=64),
    "gpt2": lambda: GPT2Config(**SIZES, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, **WIDE, max_position_embeddings=64),
}


def build(family: str = "llama") -> Model:
    torch.manual_seed(7)
    hf = AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    return Model(hf.requires_grad_(False), None, name=f"tiny-{family}")


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Model:
    return build(request.param)


@pytest.fixture
def llama() -> Model:
    return build()


@pytest.fixture
def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 61, (3 + i % 5,), generator=generator).tolist() for i in range(12)]
