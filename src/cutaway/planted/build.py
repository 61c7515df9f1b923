"""Parts that every planted model is made of: a lossless word tokenizer and an all-zero Llama.

Hand-set weights use three facts about Llama:

- RMSNorm divides by the root mean square. Where the residual stream always has the same norm, the norm
  layer's weight can undo the division, so the block reads the residual itself (``norm_gain``).
- Rotary pair ``i`` of a head turns by ``position * rope_theta ** (-2 i / d_head)``. With a huge
  ``rope_theta`` the slow pairs do not turn at all, so content placed there is looked up at any distance
  (``THETA``).
- A head whose best key beats all others by ``SHARP`` in score copies that key's value up to ``exp(-SHARP)``.
"""

import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS, PAD, UNK = "<eos>", "<pad>", "<unk>"
THETA = 1e30
SHARP = 30.0
FLOOR = 100.0
"""Log-odds against a token that is never written; ``exp(-FLOOR / T)`` is below 1e-8 up to temperature 5."""

_IDENTITY_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def word_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word (leading space included) and one for each ASCII
    character.

    Word ``i`` has id ``3 + i`` after the specials. Any ASCII text survives a round trip, because a character
    is a token of last resort, and decoding token by token concatenates to the text. The chat template writes
    messages as they are.
    """
    specials = (EOS, PAD, UNK)
    characters = [chr(code) for code in (10, *range(32, 127)) if chr(code) not in words]
    pieces = [(word, -1.0) for word in (*specials, *words)] + [(c, -10.0) for c in characters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        chat_template=_IDENTITY_CHAT,
        clean_up_tokenization_spaces=False,
    )


def blank_llama(
    tokenizer: PreTrainedTokenizerFast,
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_head: int,
    n_ctx: int,
    d_mlp: int = 1,
    rope_theta: float = THETA,
) -> LlamaForCausalLM:
    """Return an fp32 Llama whose every weight is zero, with end and padding ids of ``tokenizer``."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=d_head,
        max_position_embeddings=n_ctx,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = quiet_llama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def quiet_llama(config: LlamaConfig) -> LlamaForCausalLM:
    """Return a Llama in eval mode, built without moving the global random state."""
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(config).eval()


def scatter(hf: LlamaForCausalLM, spread: float, seed: int) -> LlamaForCausalLM:
    """Draw every weight but the norms' from a normal law of standard deviation ``spread``; return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(hf.named_parameters()):
            if "norm" not in name:
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))
    return hf


def norm_gain(norm: nn.Module, squared_norm: float) -> None:
    """Set an RMSNorm so that it returns an input of squared norm ``squared_norm`` unchanged."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    with torch.no_grad():
        weight.fill_((squared_norm / weight.numel()) ** 0.5)
