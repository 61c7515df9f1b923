"""Small random models of every attention kind: grouped heads, sliding windows, soft caps, head norms, fused q k v."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
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
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen3": lambda: Qwen3Config(**{**GROUPED, "head_dim": 12}),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**GROUPED, sliding_window=6, layer_types=KINDS, attn_logit_softcapping=2.0),
    "gemma3": lambda: Gemma3TextConfig(
        **{**GROUPED, "head_dim": 12}, sliding_window=6, layer_types=KINDS, query_pre_attn_scalar=12
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, tie_word_embeddings=False, rotary_pct=0.5),
}
FAMILIES = list(CONFIGS)


def tiny(family: str, attn: str | None = None, **changes: Any) -> Model:
    """A fresh random model whose edits show; its attention is the family's usual one unless named."""
    attn = attn or ("eager" if family == "gemma2" else "sdpa")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = CONFIGS[family]()
        config.update(changes)
        hf = AutoModelForCausalLM.from_config(config, attn_implementation=attn)
        with torch.no_grad():
            for parameter in hf.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    hf.requires_grad_(False)
    return Model(hf, None, name=f"tiny-{family}")
