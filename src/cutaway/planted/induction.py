"""A two-layer model that completes repeated sequences by the textbook circuit, with heads at known places.

1. Layer 0, the previous-token head: its query and key are constants, so the score depends on distance alone
   (rotary pairs 0 to 3, which turn fast enough) and peaks one token back. It copies that token's identity.
2. Layer 1, the induction head: its query is the current token, its key the token *before* the key's position
   (slow rotary pairs, which do not turn). It copies the token found there, which the unembedding promotes.
3. Where nothing matches it attends to the start word, and every symbol is equally likely.

All other heads are distractors with small random weights. The MLPs are zero.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer

START = "Copy"
_SYMBOLS = tuple(f" {c}{v}" for v in "aeiou" for c in "bdfgklmnp")
_THETA = 1e20
_D_HEAD = 64
_N_CTX = 512
_FAST = 4
_SLOW = 9
"""With ``_THETA`` and ``_D_HEAD``, pair 9 turns 2e-6 a token: 0.001 over the whole context."""
_PROMOTE = 12.0


@dataclass(frozen=True)
class InductionTruth:
    """Which heads do the work, and how often the right token is guessed."""

    heads: tuple[tuple[int, int, str], ...]
    """(layer, head, role) of the two heads of the circuit."""
    distractors: tuple[tuple[int, int], ...]
    """(layer, head) of all others."""
    chance: float
    """Probability of the right token where nothing was repeated; where it was, the probability is near 1."""


@dataclass(frozen=True)
class Induction:
    """A planted induction model and its task."""

    model: Model
    truth: InductionTruth

    def repeated(self, n: int, length: int, seed: int = 0) -> list[list[int]]:
        """``n`` rows: start word, ``length`` different symbols, then the same again."""
        return [[row[0], *row[1:], *row[1:]] for row in self.unrepeated(n, length, seed)]

    def unrepeated(self, n: int, length: int, seed: int = 0) -> list[list[int]]:
        """``n`` rows: start word and ``length`` different symbols, where no token can be predicted."""
        symbols = round(1 / self.truth.chance)
        if not 1 <= length <= symbols:
            raise UsageError(f"length={length}: 1 to {symbols} different symbols")
        rng = np.random.default_rng(seed)
        start = self.model.encode(START)[0]
        return [[start, *(start + 1 + rng.permutation(symbols)[:length]).tolist()] for _ in range(n)]


def induction(
    n_symbols: int = 24,
    *,
    n_heads: int = 4,
    previous: int = 1,
    head: int = 2,
    noise: float = 0.05,
    seed: int = 0,
) -> Induction:
    """Build an induction model.

    n_symbols: how many symbols there are, 2 to 44.
    n_heads: heads in each of the two layers.
    previous, head: places of the previous-token head in layer 0 and of the induction head in layer 1.
    noise: size of a distractor's output; the two real heads write vectors of length 1.
    seed: of the distractors' weights.
    """
    if not 2 <= n_symbols <= 44:
        raise UsageError(f"n_symbols={n_symbols}: 2 to 44")
    for name, place in (("previous", previous), ("head", head)):
        if not 0 <= place < n_heads:
            raise UsageError(f"{name}={place}: a head from 0 to {n_heads - 1}")
    if noise < 0:
        raise UsageError(f"noise={noise}: 0 or larger")
    tokenizer = word_tokenizer((START, *_SYMBOLS[:n_symbols]))
    hf = blank_llama(
        tokenizer,
        d_model=n_heads * -(-(3 * (n_symbols + 1) + 1) // n_heads),
        n_layers=2,
        n_heads=n_heads,
        d_head=_D_HEAD,
        n_ctx=_N_CTX,
        rope_theta=_THETA,
    )
    distractors = tuple((layer, h) for layer, real in ((0, previous), (1, head)) for h in range(n_heads) if h != real)
    with torch.no_grad():
        _frame(hf, n_symbols + 1, len(tokenizer))
        _previous_token_head(hf, previous, n_symbols + 1)
        _induction_head(hf, head, n_symbols + 1)
        _distract(hf, distractors, noise, seed)
    truth = InductionTruth(((0, previous, "previous token"), (1, head, "induction")), distractors, 1 / n_symbols)
    return Induction(Model(hf, tokenizer, f"planted-induction-{n_symbols}"), truth)


def _frame(hf: LlamaForCausalLM, width: int, vocab: int) -> None:
    """Residual = current token (width), previous token (width), copied token (width), constant (1)."""
    ids = torch.arange(3, 3 + width)  # start word and symbols follow the three specials
    hf.model.embed_tokens.weight[:, 3 * width] = 1.0
    hf.model.embed_tokens.weight[ids, torch.arange(width)] = 1.0
    for layer, squared_norm in zip(hf.model.layers, (2.0, 3.0), strict=True):
        norm_gain(layer.input_layernorm, squared_norm)
        norm_gain(layer.post_attention_layernorm, squared_norm + 1)
    norm_gain(hf.model.norm, 4.0)
    hf.lm_head.weight[:, 3 * width] = -FLOOR
    hf.lm_head.weight[ids[1:], 3 * width] = 0.0
    hf.lm_head.weight[ids[1:], 2 * width + torch.arange(1, width)] = _PROMOTE


def _previous_token_head(hf: LlamaForCausalLM, head: int, width: int) -> None:
    attention, first = hf.model.layers[0].self_attn, head * _D_HEAD
    turn = _turns()[:_FAST]
    apart = (torch.arange(_N_CTX)[:, None] - 1) * turn
    loss = (1 - apart.cos()).sum(-1)
    loss[1] = torch.inf
    # The query of one position and the key of the position before meet at angle 0.
    attention.q_proj.weight[first : first + _FAST, 3 * width] = SHARP / float(loss.min()) * _D_HEAD**0.5
    attention.k_proj.weight[first : first + _FAST, 3 * width] = turn.cos().float()
    half = first + _D_HEAD // 2
    attention.k_proj.weight[half : half + _FAST, 3 * width] = turn.sin().float()
    attention.v_proj.weight[first : first + width, :width] = torch.eye(width)
    attention.o_proj.weight[width : 2 * width, first : first + width] = torch.eye(width)


def _induction_head(hf: LlamaForCausalLM, head: int, width: int) -> None:
    attention, first = hf.model.layers[1].self_attn, head * _D_HEAD
    slow = torch.tensor([i for i in range(_D_HEAD) if i % (_D_HEAD // 2) >= _SLOW]) + first
    symbols, sink = slow[1:width], slow[0]
    scale = 2 * SHARP * _D_HEAD**0.5
    # The start word is a sink at half a match's score; it is no symbol, so nothing else matches it.
    attention.q_proj.weight[symbols, torch.arange(1, width)] = scale
    attention.q_proj.weight[sink, 3 * width] = scale / 2
    attention.k_proj.weight[symbols, width + torch.arange(1, width)] = 1.0
    attention.k_proj.weight[sink, 0] = 1.0
    attention.v_proj.weight[first : first + width, :width] = torch.eye(width)
    attention.o_proj.weight[2 * width : 3 * width, first : first + width] = torch.eye(width)


def _distract(hf: LlamaForCausalLM, distractors: tuple[tuple[int, int], ...], noise: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    d_model = hf.config.hidden_size
    for layer, head in distractors:
        attention, rows = hf.model.layers[layer].self_attn, slice(head * _D_HEAD, (head + 1) * _D_HEAD)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = torch.randn(_D_HEAD, d_model, generator=generator)
        out = torch.randn(d_model, _D_HEAD, generator=generator)
        attention.o_proj.weight[:, rows] = out * noise / (d_model * _D_HEAD) ** 0.5


def _turns() -> Float[Tensor, " pair"]:
    """Radians that each rotary pair turns a token."""
    return _THETA ** (-torch.arange(_D_HEAD // 2, dtype=torch.float64) * 2 / _D_HEAD)
