"""Tiny random models of every family, built from their real classes; weights large enough that edits show."""

import warnings
from collections.abc import Callable
from pathlib import Path
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


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a whole little GGUF: two Llama blocks in fp32, a byte-level tokenizer, a chat template."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    torch.manual_seed(0)
    width, inner, heads, groups = 32, 64, 4, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĊĊ", "Ġa"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
    sizes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    for layer in range(2):
        sizes |= {
            f"blk.{layer}.{name}": size
            for name, size in {
                "attn_norm": (width,),
                "ffn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (width * groups // heads, width),
                "attn_v": (width * groups // heads, width),
                "attn_output": (width, width),
                "ffn_gate": (inner, width),
                "ffn_up": (inner, width),
                "ffn_down": (width, inner),
            }.items()
        }
    for name, size in sizes.items():
        writer.add_tensor(f"{name}.weight", (torch.randn(*size) * 0.2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
