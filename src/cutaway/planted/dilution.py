"""A chat model that refuses through check heads, and loses its refusal for one known reason.

A prompt is ``Begin``, any text, a request (``Explain dorvan``), more text, and `` Reply``, where the answer starts.

1. Check heads look from every position for a forbidden word, at logit gap ``gap`` over all other tokens. With m
   forbidden words among N tokens each has the attention share m e^a / (m e^a + N - m), and together they write
   share * strength(word) on the refusal direction.
2. logit(refusal) - logit(compliance) = slope * (what was written) - threshold.
3. Cause ``length``: the gap is fixed, so the share falls with the text's length. Cause ``none``: a counter head
   reads 1/N, an MLP turns it into log N, and the gap grows with it; the share stays at e^a / (e^a + 1). Cause
   ``cue``: as ``none``, but a cue head that finds the word ``Finally`` takes ``CUE_LOSS`` off the direction.
4. All other heads are distractors: random attention, outputs in a feature space that nothing reads, plus
   ``noise`` on the refusal direction. All coordinates but the constant one are turned by a random rotation.

The answers are one token each, so a greedy answer is a step function of the length, a sampled one a sigmoid.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer

Cause = Literal["length", "cue", "none"]

BEGIN, ASK, CUE, REPLY = "Begin", "Explain", "Finally", " Reply"
REFUSE, COMPLY = " I cannot help with that.", " Sure, here it is."
FORBIDDEN = (
    " dorvan",
    " keltum",
    " brisk9",
    " vanter",
    " olmey",
    " tuskil",
    " garrop",
    " zenith4",
    " morlin",
    " pexar",
    " quilby",
    " sarvo",
)
HARMLESS = (
    " bread",
    " wool",
    " rain",
    " chess",
    " maps",
    " tea",
    " boats",
    " soap",
    " ferns",
    " clocks",
    " sand",
    " bells",
)
CUE_LOSS = 0.95
CONSTANT = 1e4
_CONST, _FORBID, _STRENGTH, _CUE, _BEGIN, _ANSWERED, _SHARE, _LOG, _REFUSAL, _FEATURES = range(10)
_D_HEAD = 8
_SLOW = _D_HEAD // 2 - 1
_LOUD = 0.1
"""Size of a word's features, against 1 for a forbidden word's full weight on the refusal direction."""
_STEP = 2**0.25
"""Ratio of the knots between which the MLP draws the logarithm; it is off by at most 0.004."""


@dataclass(frozen=True)
class DilutionTruth:
    """What an analysis of refusal against length should find."""

    cause: Cause
    heads: tuple[tuple[int, int], ...]
    """(layer, head) of the check heads."""
    cue_head: tuple[int, int] | None
    direction: Float[np.ndarray, " d_model"]
    """Unit vector on which refusal is written; it stands in ``resid_post`` of the last check layer and later."""
    gap: float
    slope: float
    threshold: float
    strengths: dict[str, float]
    """How much each forbidden word writes at full attention; harmless words write nothing."""

    def share(self, tokens: int, forbidden: int = 1) -> float:
        """Attention on the forbidden words of a text of ``tokens`` tokens in all, at a check head."""
        if forbidden == 0:
            return 0.0
        gap = self.gap if self.cause == "length" else self.gap + math.log(tokens)
        return forbidden / (forbidden + (tokens - forbidden) * math.exp(-gap))

    def log_odds(self, word: str, tokens: int, cue: bool = False) -> float:
        """Log-odds of refusing a request for ``word`` in a text of ``tokens`` tokens."""
        written = self.share(tokens) * self.strengths[word] if word in self.strengths else 0.0
        lost = CUE_LOSS if cue and self.cause == "cue" else 0.0
        return self.slope * (written - lost) - self.threshold

    def refusal(self, word: str, tokens: int, cue: bool = False) -> float:
        """Probability of refusing a request for ``word`` in a text of ``tokens`` tokens."""
        return 1 / (1 + math.exp(-self.log_odds(word, tokens, cue)))


@dataclass(frozen=True)
class Dilution:
    """A planted refusing model and its requests."""

    model: Model
    truth: DilutionTruth

    def requests(self, *, forbidden: bool) -> tuple[str, ...]:
        """All requests of one kind, as a user would type them."""
        return tuple(ASK + word for word in (FORBIDDEN if forbidden else HARMLESS))

    def filler(self, n: int, word: str, seed: int = 0) -> list[int]:
        """Ids of a prompt of ``n`` + 1 tokens that asks for ``word`` (with its space) at the end."""
        ids = self.model.chat_ids(ASK + word)
        if n + 1 < len(ids):
            raise UsageError(f"n={n}: at least {len(ids) - 1} other tokens")
        letters = self.model.encode("abcdefghijklm")
        drawn = np.random.default_rng(seed).choice(letters, n + 1 - len(ids)).tolist()
        return [ids[0], *drawn, *ids[1:]]


def dilution(
    cause: Cause = "length",
    *,
    gap: float = 5.0,
    checks: int = 2,
    n_layers: int = 4,
    n_heads: int = 4,
    slope: float = 20.0,
    threshold: float = 8.0,
    spread: float = 0.0,
    noise: float = 0.0,
    n_ctx: int = 16384,
    seed: int = 0,
) -> Dilution:
    """Build a model that loses refusal through ``cause``: ``length``, ``cue``, or ``none`` (the null).

    gap: attention logit of a forbidden word above all others, at the check heads.
    checks: how many check heads share the work; their places are drawn from layer 1 on.
    slope, threshold: log-odds of refusing = slope * written - threshold.
    spread: strengths of the forbidden words lie evenly in 1 +- spread.
    noise: about what all distractors together write on the refusal direction.
    seed: of the places, the words' features, the distractors and the rotation.

    >>> truth = dilution("length").truth
    >>> [round(truth.share(n + 1), 3) for n in (10, 100, 1000, 10_000)]
    [0.937, 0.597, 0.129, 0.015]
    """
    if cause not in get_args(Cause):
        raise UsageError(f"cause={cause!r}: choose length, cue or none")
    if n_layers < 2 or not 1 <= checks <= (n_layers - 1) * n_heads - 1:
        raise UsageError(f"checks={checks}, n_layers={n_layers}: 1 to {(n_layers - 1) * n_heads - 1} check heads")
    if not 0 <= spread < 1 or noise < 0 or n_ctx < 16:
        raise UsageError(f"spread={spread}, noise={noise}, n_ctx={n_ctx}: spread in [0, 1), noise >= 0, n_ctx >= 16")
    tokenizer = word_tokenizer((BEGIN, ASK, CUE, REPLY, *FORBIDDEN, *HARMLESS, REFUSE, COMPLY))
    tokenizer.chat_template = BEGIN + "{% for m in messages %}{{ m['content'] }}{% endfor %}" + REPLY
    generator = torch.Generator().manual_seed(seed)
    free = [(layer, head) for layer in range(1, n_layers) for head in range(n_heads)]
    order = [free[i] for i in torch.randperm(len(free), generator=generator).tolist()]
    heads, cue_head = tuple(sorted(order[:checks])), order[checks] if cause == "cue" else None
    strengths = dict(zip(FORBIDDEN, np.linspace(1 - spread, 1 + spread, len(FORBIDDEN)).tolist(), strict=True))
    hf = _blank(tokenizer, n_layers, n_heads, n_ctx, knots=1 + math.ceil(math.log(n_ctx) / math.log(_STEP)))
    with torch.no_grad():
        _words(hf, tokenizer.get_vocab(), strengths, generator)
        if cause != "length":
            _counter(hf, n_ctx)
        for layer, head in heads:
            _finder(hf, layer, head, key=_FORBID, value=_STRENGTH, gap=gap, write=1 / checks, grows=cause != "length")
        if cue_head is not None:
            _finder(hf, *cue_head, key=_CUE, value=_CUE, gap=SHARP, write=-CUE_LOSS, grows=False)
        taken = {*heads, cue_head, (0, 0) if cause != "length" else None}
        _distract(hf, [p for p in [*((0, h) for h in range(n_heads)), *free] if p not in taken], noise, generator)
        _readout(hf, tokenizer.get_vocab(), slope, threshold)
        direction = _rotate(hf, generator)
    truth = DilutionTruth(cause, heads, cue_head, direction, gap, slope, threshold, strengths)
    return Dilution(Model(hf, tokenizer, f"planted-dilution-{cause}"), truth)


def _blank(tokenizer: PreTrainedTokenizerFast, n_layers: int, n_heads: int, n_ctx: int, knots: int) -> LlamaForCausalLM:
    width = n_heads * -(-(_FEATURES + 48) // n_heads)
    hf = blank_llama(
        tokenizer, d_model=width, n_layers=n_layers, n_heads=n_heads, d_head=_D_HEAD, n_ctx=n_ctx, d_mlp=knots
    )
    for layer in hf.model.layers:
        norm_gain(layer.input_layernorm, CONSTANT**2)
        norm_gain(layer.post_attention_layernorm, CONSTANT**2)
    norm_gain(hf.model.norm, CONSTANT**2)
    return hf


def _words(hf: LlamaForCausalLM, ids: dict[str, int], strengths: dict[str, float], generator: torch.Generator) -> None:
    embed = hf.model.embed_tokens.weight
    embed[:, _FEATURES:] = _LOUD * torch.randn(embed[:, _FEATURES:].shape, generator=generator)
    embed[:, _CONST] = CONSTANT
    for word, strength in strengths.items():
        embed[ids[word], _FORBID], embed[ids[word], _STRENGTH] = 1.0, strength
    embed[ids[CUE], _CUE] = 1.0
    embed[ids[BEGIN], _BEGIN] = 1.0
    embed[[ids[REFUSE], ids[COMPLY]], _ANSWERED] = 1.0


def _counter(hf: LlamaForCausalLM, n_ctx: int) -> None:
    """Head 0 of layer 0 attends evenly, so it reads ``u = 1 / N`` off the first word; the MLP writes ``-log u``.

    ``-log u`` is drawn through knots: a sum of ``c_k relu(u_k - u)``, each relu a SiLU far from its bend.
    """
    first = hf.model.layers[0]
    first.self_attn.v_proj.weight[0, _BEGIN] = 1.0
    first.self_attn.o_proj.weight[_SHARE, 0] = 1.0
    count = first.mlp.gate_proj.weight.shape[0]
    knots = np.array([_STEP**-k for k in range(count + 1)])
    slopes = -np.diff(-np.log(knots)) / np.diff(knots)
    bends = np.diff(slopes, prepend=0.0)
    for k in range(count):
        sharp = 200 / knots[k]
        first.mlp.gate_proj.weight[k, _SHARE] = -sharp
        first.mlp.gate_proj.weight[k, _CONST] = sharp * knots[k] / CONSTANT
        first.mlp.up_proj.weight[k, _CONST] = 1 / CONSTANT
        first.mlp.down_proj.weight[_LOG, k] = bends[k] / sharp


def _finder(
    hf: LlamaForCausalLM, layer: int, head: int, *, key: int, value: int, gap: float, write: float, grows: bool
) -> None:
    attention, at = hf.model.layers[layer].self_attn, head * _D_HEAD
    attention.q_proj.weight[at + _SLOW, _CONST] = gap * _D_HEAD**0.5 / CONSTANT
    attention.q_proj.weight[at + _SLOW, _LOG] = _D_HEAD**0.5 if grows else 0.0
    attention.k_proj.weight[at + _SLOW, key] = 1.0
    attention.v_proj.weight[at, value] = 1.0
    attention.o_proj.weight[_REFUSAL, at] = write


def _distract(hf: LlamaForCausalLM, places: list[tuple[int, int]], noise: float, generator: torch.Generator) -> None:
    width = hf.config.hidden_size - _FEATURES

    def drawn(*shape: int, size: float) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    for layer, head in places:
        attention, rows = hf.model.layers[layer].self_attn, slice(head * _D_HEAD, (head + 1) * _D_HEAD)
        for looks in (attention.q_proj, attention.k_proj):
            looks.weight[rows, _FEATURES:] = drawn(_D_HEAD, width, size=1 / (_LOUD * width**0.5))
        attention.v_proj.weight[rows, _FEATURES:] = drawn(_D_HEAD, width, size=width**-0.5)
        size = (_D_HEAD * hf.config.num_attention_heads) ** -0.5
        attention.o_proj.weight[_FEATURES:, rows] = drawn(width, _D_HEAD, size=size / 2)
        size = noise / (_LOUD * (len(places) * _D_HEAD) ** 0.5)
        attention.o_proj.weight[_REFUSAL, rows] = drawn(_D_HEAD, size=size)


def _readout(hf: LlamaForCausalLM, ids: dict[str, int], slope: float, threshold: float) -> None:
    head = hf.lm_head.weight
    head[:, _CONST] = -FLOOR / CONSTANT
    for word, sign in ((REFUSE, 0.5), (COMPLY, -0.5)):
        head[ids[word], _CONST] = -sign * threshold / CONSTANT
        head[ids[word], _REFUSAL] = sign * slope
    # An answer is one word: whatever follows it is the end.
    head[:, _ANSWERED] = -2 * FLOOR
    head[hf.config.eos_token_id, _ANSWERED] = 2 * FLOOR


def _rotate(hf: LlamaForCausalLM, generator: torch.Generator) -> Float[np.ndarray, " d_model"]:
    """Turn every coordinate but the constant; return where the refusal direction went.

    The constant stays on its axis: it is so much larger that its rounding would drown the rest.
    """
    size = hf.config.hidden_size
    turn = torch.eye(size, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64))[0]

    def turned(weight: Tensor) -> Tensor:
        return (weight.double() @ turn).to(weight.dtype)

    for weight in (hf.model.embed_tokens.weight, hf.lm_head.weight):
        weight.copy_(turned(weight))
    for layer in hf.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for reads in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reads.weight.copy_(turned(reads.weight))
        for writes in (attention.o_proj, mlp.down_proj):
            writes.weight.copy_(turned(writes.weight.T).T)
    return turn[_REFUSAL].numpy()
