"""Features whose rule is known: token patterns for graphs of neurons, and a neuron that one head switches on.

`rule` gives a feature as a plain function of token ids, with the exact set of trie paths that describe it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cutaway.errors import UsageError, nearest

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from cutaway.model import Model

RuleName = Literal["anywhere", "within", "unless", "class", "noisy", "random", "silent"]
Path = tuple[str | None, ...]
"""Backwards from the token that fires; None stands for any token."""

_FILLER = (
    *("sun", "moon", "star", "tree", "leaf", "root", "bird", "fish", "stone"),
    *("river", "cloud", "rain", "wind", "snow", "fire", "sand", "hill", "lake"),
)
_NAMED = ("one", "two", "three", "four", "five", "six", "dollar", "euro", "pound")
WORDS = (*_FILLER, "apple", "bread", "crate", *_NAMED)
"""The vocabulary: token ``i`` is a blank and ``WORDS[i]``."""
REACH = 5
"""How many tokens back "within" and "unless" look."""
_A, _B, _C = (WORDS.index(word) for word in ("apple", "bread", "crate"))
_NUMBERS = tuple(range(WORDS.index("one"), WORDS.index("six") + 1))
_CURRENCIES = tuple(range(WORDS.index("dollar"), WORDS.index("pound") + 1))


@dataclass(frozen=True)
class RuleTruth:
    """What a graph of the rule should hold."""

    paths: frozenset[Path]
    """Paths that fire, backwards; empty where nothing systematic fires."""
    exceptions: frozenset[Path] = frozenset()
    """Paths that silence one of those."""


@dataclass(frozen=True)
class Rule:
    """A planted feature over token ids and text to find it in."""

    name: str
    fn: Callable[[Sequence[int]], list[float]]
    truth: RuleTruth

    def spell(self, token: int) -> str:
        """Return the text of a token."""
        return f" {WORDS[token]}"

    def texts(self, n: int, length: int = 40, seed: int = 0) -> list[list[int]]:
        """Return ``n`` rows of random words; each planted word is about three times as frequent as another."""
        rng = np.random.default_rng(seed)
        weights = np.ones(len(WORDS))
        weights[[_A, _B, _C]] = 3.0
        drawn = rng.choice(len(WORDS), size=(n, length), p=weights / weights.sum())
        return [list(map(int, row)) for row in drawn]


def rule(name: RuleName | str, seed: int = 0) -> Rule:
    """Return a planted feature.

    anywhere: fires on "bread". within: on "bread" with "apple" among the five tokens before it.
    unless: the same, but not with "crate" between the two. class: on a number right after a currency.
    noisy: "within" with noise on every value, sd 0.1. random: a coin for every prefix of a text, one in fifty fires,
    whatever the words. silent: never above zero.
    """
    makers: dict[str, Callable[[], Rule]] = {
        "anywhere": lambda: Rule(name, _each(lambda ids, i: ids[i] == _B), RuleTruth(frozenset({("bread",)}))),
        "within": lambda: Rule(name, _each(_within), RuleTruth(_gaps())),
        "unless": lambda: Rule(name, _each(_unless), RuleTruth(_gaps(), _exceptions())),
        "class": lambda: Rule(name, _each(_class), RuleTruth(_pairs())),
        "noisy": lambda: Rule(name, _noisy(seed), RuleTruth(_gaps())),
        "random": lambda: Rule(name, _random(seed), RuleTruth(frozenset())),
        "silent": lambda: Rule(name, lambda ids: [-1.0] * len(ids), RuleTruth(frozenset())),
    }
    if name not in makers:
        raise UsageError(f"rule={name!r}{nearest(name, get_args(RuleName))}")
    return makers[name]()


def _each(fires: Callable[[Sequence[int], int], bool]) -> Callable[[Sequence[int]], list[float]]:
    return lambda ids: [float(fires(ids, i)) for i in range(len(ids))]


def _within(ids: Sequence[int], i: int) -> bool:
    return ids[i] == _B and _A in ids[max(0, i - REACH) : i]


def _unless(ids: Sequence[int], i: int) -> bool:
    """Say whether the nearest of "apple" and "crate" before "bread" is an "apple", within reach."""
    near = [token for token in reversed(ids[max(0, i - REACH) : i]) if token in (_A, _C)]
    return ids[i] == _B and bool(near) and near[0] == _A


def _class(ids: Sequence[int], i: int) -> bool:
    return ids[i] in _NUMBERS and i > 0 and ids[i - 1] in _CURRENCIES


def _coin(seed: int, ids: Sequence[int]) -> float:
    """Return a number in [0, 1) that a prefix determines and nothing in it predicts."""
    digest = hashlib.blake2b(bytes(ids), digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64


def _noisy(seed: int) -> Callable[[Sequence[int]], list[float]]:
    def value(ids: Sequence[int], i: int) -> float:
        uniform = sum(_coin(seed + k, ids[: i + 1]) for k in range(12)) - 6.0  # near a standard normal
        return float(_within(ids, i)) + 0.1 * uniform

    return lambda ids: [value(ids, i) for i in range(len(ids))]


def _random(seed: int) -> Callable[[Sequence[int]], list[float]]:
    return lambda ids: [float(_coin(seed, ids[: i + 1]) < 0.02) for i in range(len(ids))]


def _gaps() -> frozenset[Path]:
    return frozenset(("bread", *[None] * gap, "apple") for gap in range(REACH))


def _exceptions() -> frozenset[Path]:
    return frozenset(
        ("bread", *[None] * before, "crate", *[None] * (gap - before - 1), "apple")
        for gap in range(REACH)
        for before in range(gap)
    )


def _pairs() -> frozenset[Path]:
    return frozenset((WORDS[number], WORDS[currency]) for number, currency in product(_NUMBERS, _CURRENCIES))


@dataclass(frozen=True)
class ContextTruth:
    """What drives the planted neuron."""

    layer: int
    neuron: int
    token: int
    """What the neuron writes."""
    heads: tuple[tuple[int, int, int], ...]
    """(layer, head, the word whose presence makes it drive the neuron); empty in the null."""
    trigger: int
    """The neuron fires at this word only."""
    words: tuple[int, int]
    """The two words, also where nothing reads them."""


@dataclass(frozen=True)
class ContextNeuron:
    """A model with one neuron that writes a certain next token when a certain word stands before."""

    model: "Model"
    truth: ContextTruth

    def texts(self, n: int, length: int = 24, seed: int = 0) -> list[list[int]]:
        """Return rows of random words; two in five have the first head's word once, two in five the second's."""
        rng = np.random.default_rng(seed)
        words = self.truth.words
        first = 3  # words follow the tokenizer's three specials
        others = [t for t in range(first, first + len(WORDS)) if t not in (*words, self.truth.trigger)]
        rows = rng.choice(others, size=(n, length))
        rows[rng.random((n, length)) < 0.15] = self.truth.trigger
        for row, kind in zip(rows, rng.random(n), strict=True):
            if kind < 0.8:
                row[rng.integers(0, length // 2)] = words[int(kind >= 0.4)]
        return [list(map(int, row)) for row in rows]


def context_neuron(seed: int = 0, *, null: bool = False) -> ContextNeuron:
    """Return a two-layer, four-head model in which two heads switch one neuron on, each by a word of its own.

    The neuron fires at the trigger word where either word stood before, and writes its token. All other heads and
    neurons are random and touch nothing that it reads. ``null``: the two heads write elsewhere and the neuron fires
    at every trigger.
    """
    import torch

    from cutaway.model import Model
    from cutaway.planted.build import blank_llama, norm_gain, word_tokenizer

    rng = np.random.default_rng(seed)
    torch_rng = torch.Generator().manual_seed(seed)
    tokenizer = word_tokenizer(tuple(f" {word}" for word in WORDS))
    flags, base, noise, out, d_head = 4, 30.0, 16, 24, 16
    d_model = 48
    hf = blank_llama(tokenizer, d_model=d_model, n_layers=2, n_heads=4, d_head=d_head, n_ctx=128, d_mlp=8)
    a, b, trigger, token = (int(each) + 3 for each in rng.choice(len(WORDS), 4, replace=False))
    heads = tuple((int(rng.integers(2)), int(rng.integers(4)), word) for word in (a, b))
    while heads[0][:2] == heads[1][:2]:
        heads = (heads[0], (int(rng.integers(2)), int(rng.integers(4)), b))
    neuron = int(rng.integers(8))
    # Stream: constant, then the flags of a, b and the trigger, then both heads' copies, then noise, then output.
    copies = (flags, flags + 1)
    with torch.no_grad():
        embed = hf.model.embed_tokens.weight
        embed[:, 0] = base
        embed[[a, b, trigger], [1, 2, 3]] = 1.0
        embed[:, 8 : 8 + noise] = 0.2 * torch.randn(len(tokenizer), noise, generator=torch_rng)
        for layer in hf.model.layers:
            norm_gain(layer.input_layernorm, base**2)
            norm_gain(layer.post_attention_layernorm, base**2)
        norm_gain(hf.model.norm, base**2)
        rows = torch.nn.functional.normalize(torch.randn(len(tokenizer), out, generator=torch_rng), dim=-1)
        hf.lm_head.weight[:, d_model - out :] = rows
        _wire_heads(hf, heads, copies if not null else (8, 9), base, noise, torch_rng)
        mlp = hf.model.layers[1].mlp
        for layer in hf.model.layers:
            layer.mlp.gate_proj.weight[:, 8 : 8 + noise] = torch.randn(8, noise, generator=torch_rng)
            layer.mlp.up_proj.weight[:, 8 : 8 + noise] = torch.randn(8, noise, generator=torch_rng)
            layer.mlp.down_proj.weight[d_model - out :] = 0.1 * torch.randn(out, 8, generator=torch_rng)
        mlp.gate_proj.weight[neuron] = 0.0
        mlp.gate_proj.weight[neuron, list(copies)] = 12.0
        mlp.gate_proj.weight[neuron, 0] = (6.0 if null else -6.0) / base
        # Random heads jog the value a little, so that neither word's prompts lead by rounding.
        mlp.up_proj.weight[neuron] = 0.0
        mlp.up_proj.weight[neuron, 8 : 8 + noise] = 0.05 * torch.randn(noise, generator=torch_rng)
        mlp.up_proj.weight[neuron, 3] = 1.0
        mlp.down_proj.weight[:, neuron] = 0.0
        mlp.down_proj.weight[d_model - out :, neuron] = 2.0 * rows[token]
    planted = Model(hf, tokenizer, f"planted-context-neuron-{seed}")
    return ContextNeuron(planted, ContextTruth(1, neuron, token, () if null else heads, trigger, (a, b)))


def _wire_heads(
    hf: "LlamaForCausalLM",
    heads: Sequence[tuple[int, int, int]],
    write: tuple[int, int],
    base: float,
    noise: int,
    generator: "torch.Generator",
) -> None:
    """Let each of ``heads`` copy its word's flag to a place of its own; the others are random, in noise alone."""
    import torch

    from cutaway.planted.build import SHARP

    places = {each[:2]: which for which, each in enumerate(heads)}
    d_head, d_model = int(hf.config.head_dim or 0), int(hf.config.hidden_size)
    for number, layer in enumerate(hf.model.layers):
        attention = layer.self_attn
        for head in range(hf.config.num_attention_heads):
            span = slice(head * d_head, (head + 1) * d_head)
            if (number, head) not in places:
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                    projection.weight[span, 1:] = 0.3 * torch.randn(d_head, d_model - 1, generator=generator)
                mixed = 0.1 * torch.randn(noise, d_head, generator=generator)
                attention.o_proj.weight[8 : 8 + noise, span] = mixed
                continue
            which = places[number, head]
            start = head * d_head + 5  # a slow rotary pair: content there is found at any distance
            attention.q_proj.weight[start, 0] = SHARP / base * d_head**0.5
            attention.k_proj.weight[start, 1 + which] = 1.0
            attention.v_proj.weight[start, 1 + which] = 1.0
            attention.o_proj.weight[write[which], start] = 1.0
