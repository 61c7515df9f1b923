"""A two-layer model that looks up a value by key behind a gate, with every needed connection known.

Prompt: ``Find``, pairs of a key and its value (``+`` or ``-``), a gate word (``open`` or ``shut``), a key to look up,
``is``. Answer: that key's value; behind a shut gate both values are equally likely.

1. Layer 0, fixed patterns: ``previous`` copies the token one back, ``copy`` the token itself, ``gate`` two back.
2. Layer 1, ``lookup``: its query is the key asked for and its keys are the keys one back, both read from ``previous``
   (query and key composition); its values are read from ``copy`` (value composition).
3. Layer 1, MLP: the value found times silu(the gate that ``gate`` brought). The unembedding reads nothing else.

Decoys: layer-0 and layer-1 heads that write vectors six times as long as the others', about the same tokens, where no
one of consequence reads. The stream holds one large constant, so that norms hardly move with what is written.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import blank_llama, norm_gain, word_tokenizer

_FRAME = ("Find", " is", " open", " shut", " +", " -")
_KEYS = tuple(f" {c}{v}" for v in "aeiou" for c in "bdfgk")
_THETA = 1e20
_D_HEAD = 64
_N_CTX = 64
_FAST, _SLOW = 4, 9
_CONSTANT = 32.0
_FIXED = 30.0
"""Margin of a fixed pattern."""
_MATCH = 14.0
"""Margin of the lookup: it leaks 1e-6, and changes over a sixth of the way from prompt to prompt."""
_LOUD = 6.0
_OPEN, _SHUT = 4.0, -12.0
_PREVIOUS, _COPY, _GATE, _DECOY = 1, 0, 3, 2
_LOOKUP, _LATE_DECOY = 2, 1
_CHANGES = ("query", "keys", "values", "gate")


class Row(NamedTuple):
    """One prompt and its corrupted twin, as token ids, with the right and the wrong next token."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    name: str
    """What differs: query, keys, values or gate."""
    group: str


@dataclass(frozen=True)
class CircuitTruth:
    """Which connections are needed, by the names of writer and reader."""

    edges: tuple[tuple[str, str], ...]
    """Empty for the null: nothing reaches the answer."""
    by_change: dict[str, tuple[tuple[str, str], ...]]
    """Those needed when only the query, the keys, the values or the gate differ."""
    decoys: tuple[str, ...]
    """Writers that write much and are not needed."""


@dataclass(frozen=True)
class Lookup:
    """A planted lookup model and its task."""

    model: Model
    truth: CircuitTruth
    n_keys: int

    def rows(self, n: int, seed: int = 0, change: str | None = None) -> list[Row]:
        """Return ``n`` pairs of prompts; ``change`` says what differs, None takes the four in turn."""
        if change is not None and change not in _CHANGES:
            raise UsageError(f"change={change!r}: one of {', '.join(_CHANGES)}")
        rng = np.random.default_rng(seed)
        return [self._row(rng, change or _CHANGES[place % len(_CHANGES)]) for place in range(n)]

    def _row(self, rng: np.random.Generator, change: str) -> Row:
        first, second = (" " + key.strip() for key in rng.choice(_KEYS[: self.n_keys], 2, replace=False))
        values = [" +", " -"] if rng.random() < 0.5 else [" -", " +"]
        keys, asked = [first, second], first
        clean = self._prompt(keys, values, " open", asked)
        other = {
            "query": lambda: self._prompt(keys, values, " open", second),
            "keys": lambda: self._prompt(keys[::-1], values, " open", asked),
            "values": lambda: self._prompt(keys, values[::-1], " open", asked),
            "gate": lambda: self._prompt(keys, values, " shut", asked),
        }[change]()
        right, wrong = (self._ids(value) for value in values)
        return Row(clean, other, right, wrong, change, "")

    def _prompt(self, keys: list[str], values: list[str], gate: str, asked: str) -> tuple[int, ...]:
        pairs = "".join(key + value for key, value in zip(keys, values, strict=True))
        return self._ids(f"Find{pairs}{gate}{asked} is")

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.model.encode(text))


def lookup(n_keys: int = 8, *, null: bool = False) -> Lookup:
    """Build the lookup model.

    n_keys: how many keys there are, 2 to 25.
    null: nothing reads the MLP, so no prompt changes the answer.
    """
    if not 2 <= n_keys <= len(_KEYS):
        raise UsageError(f"n_keys={n_keys}: 2 to {len(_KEYS)}")
    words = (*_FRAME, *_KEYS[:n_keys])
    tokenizer, width = word_tokenizer(words), len(words)
    hf = blank_llama(
        tokenizer,
        d_model=4 * -(-(7 * width + 2) // 4),
        n_layers=2,
        n_heads=4,
        d_head=_D_HEAD,
        n_ctx=_N_CTX,
        rope_theta=_THETA,
    )
    with torch.no_grad():
        _frame(hf, width, null)
        for head, back, block, size in ((_COPY, 0, 2, 1.0), (_PREVIOUS, 1, 1, 1.0), (_GATE, 2, 3, 1.0)):
            _look_back(hf, 0, head, back, width)
            _copy(hf, 0, head, 0, block, size, width)
        _look_back(hf, 0, _DECOY, 1, width)
        _copy(hf, 0, _DECOY, 0, 5, _LOUD, width)
        _look_back(hf, 1, _LATE_DECOY, 0, width)
        _copy(hf, 1, _LATE_DECOY, 5, 6, 1.0, width)
        _lookup_head(hf, width)
        _gated(hf, width)
    return Lookup(Model(hf, tokenizer, "planted-lookup"), _truth(null), n_keys)


def _truth(null: bool) -> CircuitTruth:
    found = f"z.1.{_LOOKUP}"
    end = ((found, "mlp_in.1"), ("mlp_out.1", "logits"))
    previous = ("embed", f"v.0.{_PREVIOUS}")
    by_change = {
        "query": (previous, (f"z.0.{_PREVIOUS}", f"q.1.{_LOOKUP}"), *end),
        "keys": (previous, (f"z.0.{_PREVIOUS}", f"k.1.{_LOOKUP}"), *end),
        "values": (("embed", f"v.0.{_COPY}"), (f"z.0.{_COPY}", f"v.1.{_LOOKUP}"), *end),
        "gate": (("embed", f"v.0.{_GATE}"), (f"z.0.{_GATE}", "mlp_in.1"), end[1]),
    }
    if null:
        by_change = dict.fromkeys(by_change, ())
    edges = tuple(dict.fromkeys(edge for some in by_change.values() for edge in some))
    return CircuitTruth(edges, by_change, (f"z.0.{_DECOY}", f"z.1.{_LATE_DECOY}"))


def _frame(hf: LlamaForCausalLM, width: int, null: bool) -> None:
    """Stream = token, one back, itself, two back, found, decoy, late decoy (width each), answer, constant."""
    ids, answer = torch.arange(3, 3 + width), 7 * width
    hf.model.embed_tokens.weight[:, answer + 1] = _CONSTANT
    hf.model.embed_tokens.weight[ids, torch.arange(width)] = 1.0
    squared = _CONSTANT**2 + 1
    first, second = hf.model.layers
    norm_gain(first.input_layernorm, squared)
    squared += 3 + _LOUD**2
    norm_gain(first.post_attention_layernorm, squared)
    norm_gain(second.input_layernorm, squared)
    squared += 1 + _LOUD**2
    norm_gain(second.post_attention_layernorm, squared)
    norm_gain(hf.model.norm, squared)
    hf.lm_head.weight[:, answer + 1] = -100.0 / _CONSTANT
    plus, minus = 3 + _FRAME.index(" +"), 3 + _FRAME.index(" -")
    hf.lm_head.weight[[plus, minus], answer + 1] = 0.0
    if not null:
        hf.lm_head.weight[plus, answer], hf.lm_head.weight[minus, answer] = 1.0, -1.0


def _look_back(hf: LlamaForCausalLM, layer: int, head: int, back: int, width: int) -> None:
    """Let a head attend to the token ``back`` places before, by rotary angles of the constant alone."""
    attention, first, constant = hf.model.layers[layer].self_attn, head * _D_HEAD, 7 * width + 1
    turn = _THETA ** (-torch.arange(_FAST, dtype=torch.float64) * 2 / _D_HEAD)
    loss = (1 - ((torch.arange(_N_CTX)[:, None] - back) * turn).cos()).sum(-1)
    loss[back] = torch.inf
    strength = _FIXED / float(loss.min()) * _D_HEAD**0.5
    attention.q_proj.weight[first : first + _FAST, constant] = strength / _CONSTANT
    attention.k_proj.weight[first : first + _FAST, constant] = (back * turn).cos().float() / _CONSTANT
    half = first + _D_HEAD // 2
    attention.k_proj.weight[half : half + _FAST, constant] = (back * turn).sin().float() / _CONSTANT


def _copy(hf: LlamaForCausalLM, layer: int, head: int, source: int, target: int, size: float, width: int) -> None:
    """Let a head carry one block of the stream into another, ``size`` times as long."""
    attention, rows = hf.model.layers[layer].self_attn, slice(head * _D_HEAD, head * _D_HEAD + width)
    attention.v_proj.weight[rows, source * width : (source + 1) * width] = torch.eye(width)
    attention.o_proj.weight[target * width : (target + 1) * width, rows] = size * torch.eye(width)


def _lookup_head(hf: LlamaForCausalLM, width: int) -> None:
    attention, first = hf.model.layers[1].self_attn, _LOOKUP * _D_HEAD
    slow = torch.tensor([i for i in range(_D_HEAD) if i % (_D_HEAD // 2) >= _SLOW]) + first
    keys = torch.arange(len(_FRAME), width)
    places, avoid = slow[: len(keys)], slow[len(keys)]
    scale = _MATCH * _D_HEAD**0.5
    attention.q_proj.weight[places, width + keys] = scale
    attention.k_proj.weight[places, width + keys] = 1.0
    # The last word stands behind the key asked for too, and must not find itself.
    attention.q_proj.weight[avoid, 7 * width + 1] = -3 * scale / _CONSTANT
    attention.k_proj.weight[avoid, _FRAME.index(" is")] = 1.0
    _copy(hf, 1, _LOOKUP, 2, 4, 1.0, width)


def _gated(hf: LlamaForCausalLM, width: int) -> None:
    mlp = hf.model.layers[1].mlp
    mlp.up_proj.weight[0, 4 * width + _FRAME.index(" +")] = 1.0
    mlp.up_proj.weight[0, 4 * width + _FRAME.index(" -")] = -1.0
    mlp.gate_proj.weight[0, 3 * width + _FRAME.index(" open")] = _OPEN
    mlp.gate_proj.weight[0, 3 * width + _FRAME.index(" shut")] = _SHUT
    mlp.down_proj.weight[7 * width, 0] = 1.0
