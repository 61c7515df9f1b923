"""A model in which one direction of the residual stream carries a concept and decides a yes or no.

1. Words of the concept carry a flag. One head of layer ``layer`` attends to flagged words, and writes
   ``strength * direction`` at every position from the first one on; without any it writes nothing.
2. The unembedding reads the direction: logit(yes) - logit(no) = bias + slope * (residual . direction).
3. Later layers do nothing, so adding ``s * direction`` at ``resid_post.layer`` moves the difference by
   ``slope * s``.
4. Words also carry random features of their own, and the whole residual space is turned by a random rotation,
   so no coordinate axis means anything.

The final norm divides by the residual's length. A constant component of length ``CONSTANT`` keeps that length
the same up to ``s ** 2 / (2 * CONSTANT ** 2)``, which bounds how far the effect is from linear.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer

START, YES, NO = "Today", " yes", " no"
CONCEPT = (" rain", " storm", " hail", " flood", " thunder")
NEUTRAL = (
    " table",
    " lamp",
    " chair",
    " piano",
    " ladder",
    " window",
    " carpet",
    " basket",
    " mirror",
    " candle",
)
CONSTANT = 1000.0
_CONST, _DIRECTION, _FLAG, _ANSWERED, _FEATURES = range(5)
_D_HEAD = 8


@dataclass(frozen=True)
class DirectionTruth:
    """What a probe, a steering method or a dictionary should find."""

    direction: Float[np.ndarray, " d_model"]
    """Unit vector."""
    site: str
    """First site where the concept stands in the residual stream; it stays in every later ``resid_post``."""
    strength: float
    """Component along the direction where the concept is present; 0 where it is not."""
    slope: float
    """Change of logit(yes) - logit(no) for one unit along the direction, at this site or a later one."""
    bias: float
    """logit(yes) - logit(no) without the concept."""
    head: tuple[int, int]
    """(layer, head) that writes the concept."""
    yes: int
    no: int


@dataclass(frozen=True)
class LinearDirection:
    """A planted direction and texts with and without its concept."""

    model: Model
    truth: DirectionTruth

    def texts(self, n: int, *, concept: bool, length: int = 8, seed: int = 0) -> list[str]:
        """``n`` texts of ``length`` words; with ``concept`` one word, anywhere, is of the concept."""
        if length < 1:
            raise UsageError(f"length={length}: at least 1 word")
        rng = np.random.default_rng((seed, int(concept)))
        texts = []
        for _ in range(n):
            words = list(rng.choice(NEUTRAL, length))
            if concept:
                words[rng.integers(length)] = rng.choice(CONCEPT)
            texts.append(START + "".join(words) + ".")
        return texts


def linear_direction(
    *,
    d_model: int = 32,
    n_layers: int = 3,
    layer: int = 1,
    strength: float = 2.0,
    slope: float = 1.5,
    bias: float = -1.5,
    seed: int = 0,
) -> LinearDirection:
    """Build a model with a planted direction; ``seed`` draws the words' features and the rotation.

    Raises ``UsageError`` when ``layer`` does not exist or ``d_model`` is odd or below 8.
    """
    if not 0 <= layer < n_layers:
        raise UsageError(f"layer={layer}: a layer from 0 to {n_layers - 1}")
    if d_model < 8 or d_model % 2:
        raise UsageError(f"d_model={d_model}: an even number, 8 or more")
    words = (START, *CONCEPT, *NEUTRAL, YES, NO, ".")
    tokenizer = word_tokenizer(words)
    hf = blank_llama(tokenizer, d_model=d_model, n_layers=n_layers, n_heads=2, d_head=_D_HEAD, n_ctx=512)
    vocabulary = tokenizer.get_vocab()
    ids = {word: vocabulary[word] for word in words}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _words(hf, ids, generator)
        _writer(hf, layer, strength)
        _readout(hf, ids, int(tokenizer.eos_token_id), slope, bias)
        rotation, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator, dtype=torch.float64))
        _rotate(hf, rotation)
    truth = DirectionTruth(
        direction=rotation[_DIRECTION].numpy(),
        site=f"resid_post.{layer}",
        strength=strength,
        slope=slope,
        bias=bias,
        head=(layer, 0),
        yes=ids[YES],
        no=ids[NO],
    )
    return LinearDirection(Model(hf, tokenizer, "planted-direction"), truth)


def _words(hf: LlamaForCausalLM, ids: dict[str, int], generator: torch.Generator) -> None:
    embed = hf.model.embed_tokens.weight
    embed[:, _FEATURES:] = torch.randn(embed[:, _FEATURES:].shape, generator=generator)
    embed[:, _CONST] = CONSTANT
    embed[[ids[word] for word in CONCEPT], _FLAG] = 1.0
    embed[[ids[YES], ids[NO]], _ANSWERED] = 1.0
    for layer in hf.model.layers:
        norm_gain(layer.input_layernorm, CONSTANT**2)
        norm_gain(layer.post_attention_layernorm, CONSTANT**2)
    norm_gain(hf.model.norm, CONSTANT**2)


def _writer(hf: LlamaForCausalLM, layer: int, strength: float) -> None:
    attention, slow = hf.model.layers[layer].self_attn, _D_HEAD // 2 - 1
    attention.q_proj.weight[slow, _CONST] = SHARP * _D_HEAD**0.5 / CONSTANT
    attention.k_proj.weight[slow, _FLAG] = 1.0
    attention.v_proj.weight[0, _FLAG] = 1.0
    attention.o_proj.weight[_DIRECTION, 0] = strength


def _readout(hf: LlamaForCausalLM, ids: dict[str, int], eos: int, slope: float, bias: float) -> None:
    head = hf.lm_head.weight
    head[:, _CONST] = -FLOOR / CONSTANT
    for word, sign in ((YES, 0.5), (NO, -0.5)):
        head[ids[word], _CONST] = sign * bias / CONSTANT
        head[ids[word], _DIRECTION] = sign * slope
    head[eos, _ANSWERED] = 2 * FLOOR


def _rotate(hf: LlamaForCausalLM, rotation: torch.Tensor) -> None:
    """Turn the residual space; a norm weighs all coordinates alike, so the function stays the same."""

    def turned(weight: torch.Tensor) -> torch.Tensor:
        return (weight.double() @ rotation).to(weight.dtype)

    hf.model.embed_tokens.weight.copy_(turned(hf.model.embed_tokens.weight))
    hf.lm_head.weight.copy_(turned(hf.lm_head.weight))
    for layer in hf.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.copy_(turned(projection.weight))
        attention.o_proj.weight.copy_(turned(attention.o_proj.weight.T).T)
