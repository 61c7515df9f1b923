"""Tiny models, tokenizers with real forms of chat templates, and rows to train on."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.model import Model
from cutaway.training import Data, Row, data_of

SPECIALS = ["<end>", "<pad>", "<unk>", "<start>", "<turn>", "<head>", "</head>"]
TEMPLATES = {
    # as ChatML: role in plain text after a start token, one end token, a newline that is not learnt
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}<turn>system\nBe kind.<end>\n{% endif %}"
        "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    ),
    # as Llama 3: header tokens, trimmed content, nothing after the end token
    "headers": (
        "<start>{% for m in messages %}<head>{{ m['role'] }}</head>\n\n{{ m['content'] | trim }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<head>assistant</head>\n\n{% endif %}"
    ),
    # as Gemma: another name for the assistant
    "renamed": (
        "<start>{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    # as the planted models': messages one after another, no end token
    "identity": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}
THINKING = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<head>\n\n</head>\n\n{% endif %}"
    "{{ m['content'] }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
"""As Qwen 3: an empty thought stands in the last answer only."""


def character_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A token for each character, and words of several, so that tokens could straddle a span's edge."""
    pieces = [*SPECIALS, *map(chr, (10, *range(32, 127))), "system", "user", "assistant", "model", " the", "\n\n"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merged = Tokenizer(models.Unigram([(p, -1.0 if len(p) > 1 else -8.0) for p in vocab], unk_id=2))
    merged.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    merged.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=merged, eos_token="<end>", pad_token="<pad>", unk_token="<unk>", chat_template=template
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[3:]})
    return made


def tiny(seed: int = 0, *, tied: bool = False, layers: int = 2, tokenizer: Any = None) -> Model:
    """A random Llama of width 16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48 if tokenizer is None else len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256 if tokenizer is not None else 24,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    return Model(hf.requires_grad_(False), tokenizer, name="tiny")


def tiny_gpt2() -> Model:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=24, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    return Model(GPT2LMHeadModel(config).requires_grad_(False), None, name="tiny-gpt2")


def rows_of(n: int, seed: int = 0, *, members: int = 1, mixed: bool = True) -> Data:
    """Random rows of 4 to 12 tokens; with ``mixed`` their weights vary, the first half carrying none."""
    draw = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(n):
        example = []
        for _ in range(members):
            length = int(torch.randint(4, 13, (1,), generator=draw))
            ids = torch.randint(3, 48, (length,), generator=draw).tolist()
            weights = torch.rand(length, generator=draw)
            weights = weights * (torch.arange(length) >= length // 2) if mixed else torch.ones(length)
            example.append(Row(tuple(ids), tuple(weights.tolist())))
        examples.append(example)
    return data_of(examples, context=24)
