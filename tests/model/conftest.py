"""Tiny random models of every family, built from their real classes; weights large enough that edits show."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from cutaway.model import Model

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
NEOX: dict[str, Any] = {**SIZES, "hidden_act": "gelu", "tie_word_embeddings": False}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED, attention_bias=True),
    "qwen2": lambda: Qwen2Config(**{**GROUPED, "head_dim": 8}),
    "qwen3": lambda: Qwen3Config(**{**GROUPED, "head_dim": 12}),
    "gemma3": lambda: Gemma3TextConfig(
        **{**GROUPED, "head_dim": 12},
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=12,
    ),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=4),
    "gpt2": lambda: GPT2Config(
        vocab_size=61,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        scale_attn_by_inverse_layer_idx=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**NEOX, use_parallel_residual=True, rotary_pct=0.5),
    "gpt_neox_serial": lambda: GPTNeoXConfig(**NEOX, use_parallel_residual=False),
}
FAMILIES = [*CONFIGS, "llama_peft"]


def build(family: str, attn: str = "sdpa") -> Model:
    """Return a fresh tiny model of ``family``."""
    torch.manual_seed(7)
    peft = family.endswith("_peft")
    config = CONFIGS[family.removesuffix("_peft")]()
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attn)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=0.1)
    if peft:
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
        with warnings.catch_warnings():
            # peft itself reads a property that transformers deprecates
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            hf = get_peft_model(hf, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    hf.requires_grad_(False)
    return Model(hf, None, name=f"tiny-{family}")


@pytest.fixture(scope="session")
def make() -> Callable[..., Model]:
    """Return the builder itself, for tests that want a second copy or another attention."""
    return build


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> Model:
    return build(family)


@pytest.fixture
def llama() -> Model:
    return build("llama")


@pytest.fixture
def rows() -> list[list[int]]:
    """Rows of unequal length, the longest beyond the sliding windows."""
    return [[5, 9, 14, 22, 31, 8, 17], [40, 3, 50, 6], [12, 60, 33, 21, 10]]
