"""A four-layer Llama that continues sequences by a known circuit; two tasks share its table, a third has its own.

"Van done in 1. Hat done in 2. Ring done in 3. Desk done in 4. Sun done in" -> " 5", and so for number words; the third
task counts months backwards.

1. MLP 0 turns a member into its rank. Numerals and number words share one rank field; months have another.
2. Layer 1, the detector copies a rank: from its own position (``composition`` v or k), or from the last member to the
   last token (q).
3. Layer 2, the successor head (numerals, number words) and the predecessor head (months) read what the detector wrote
   through their values (v), their keys (k: the position of the furthest member) or their query (q: the position of the
   member of that rank), and write the rank after (before) it.
4. Layer 2 too: the family head says which list the answer is from (all prompts of a task agree, so no mean ablation
   can tell), and the decoy attends to the last member like the successor but writes where nothing reads.
5. With ``compensate``, layer 3 holds a weak second successor head and a head that takes as much away.

All other heads are distractors with small random weights; all other MLPs are zero.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer

WORDS = ("Van", "Hat", "Ring", "Desk", "Sun", "Door", "Lake", "Map", "Ship", "Star", "Tree", "Key")
VERBS = ("done", "lost")
TASKS: dict[str, tuple[str, ...]] = {
    "numerals": tuple(str(i) for i in range(1, 13)),
    "numwords": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    "months backwards": (
        *("December", "November", "October", "September", "August", "July", "June", "May"),
        *("April", "March", "February", "January"),
    ),
}
"""Members in the order in which each task asks for them."""
_RANKS = 12
_HEADS, _D_HEAD, _N_CTX, _THETA = 5, 64, 64, 1e20
_FAST, _SLOW = 4, 9
_CONST = 8.0
"""A large constant in the stream: norms barely depend on what else is written."""
_SQUARED = _CONST**2 + 3
_PROMOTE = 12.0
_BACK = 4
"""From the last token to the last member."""
Composition = Literal["v", "k", "q"]


@dataclass(frozen=True)
class SequenceTruth:
    """What a method should find."""

    nodes: dict[str, tuple[str, ...]]
    """By task: the nodes that pruning must leave, in any order of tests."""
    edges: dict[str, tuple[tuple[str, str, str], ...]]
    """By task: (sender, receiver, q, k, v, mlp or final) of every connection that carries the answer."""
    roles: dict[str, str]
    """Node to its role, for those that have one."""
    compensating: tuple[str, ...]
    """The weak second successor and the head that cancels it; empty without ``compensate``."""


@dataclass(frozen=True)
class Sequence:
    """A planted sequence model and its tasks."""

    model: Model
    truth: SequenceTruth
    tasks: dict[str, tuple[str, ...]]
    words: tuple[str, ...]
    """Carrier words it knows."""


def sequence(
    composition: Composition = "v",
    *,
    compensate: bool = False,
    null: bool = False,
    noise: float = 0.02,
    seed: int = 0,
) -> Sequence:
    """Build a sequence model.

    composition: how the successor head reads what the detector wrote.
    compensate: add the weak successor and the head against it; for composition v.
    null: no head writes any answer.
    noise: size of a distractor's output; the real heads write vectors of length 1.
    seed: of the distractors' weights.
    """
    if composition not in ("v", "k", "q"):
        raise UsageError(f"composition={composition!r}: v, k or q")
    if compensate and (composition != "v" or null):
        raise UsageError("compensate goes with composition v, and not with null")
    if noise < 0:
        raise UsageError(f"noise={noise}: 0 or larger")
    members = [f" {m}" for task in TASKS.values() for m in task]
    words = (*WORDS, *(f" {w}" for w in WORDS), *(f" {v}" for v in VERBS), " in", ".", *members)
    tokenizer = word_tokenizer(words)
    fields = _Fields.of(len(words))
    hf = blank_llama(
        tokenizer,
        d_model=-(-fields.size // _HEADS) * _HEADS,
        n_layers=4,
        n_heads=_HEADS,
        d_head=_D_HEAD,
        n_ctx=_N_CTX,
        rope_theta=_THETA,
    )
    strengths = {} if null else {"successor": 1.0, "predecessor": 1.0}
    roles = {(1, 1): "detector", (2, 2): "successor", (2, 0): "predecessor", (2, 4): "family", (2, 1): "decoy"}
    if compensate:
        roles |= {(3, 3): "weak successor", (3, 1): "against"}
        strengths |= {"weak successor": 0.3, "against": -0.3}
    with torch.no_grad():
        _frame(hf, fields, len(words))
        _ranks(hf, fields, len(words))
        for (layer, head), role in roles.items():
            _head(hf, fields, layer, head, role, composition, strengths.get(role, 0.0), len(words))
        _distract(hf, set(roles), noise, seed)
    model = Model(hf, tokenizer, f"planted-sequence-{composition}")
    return Sequence(model, _truth(roles, composition, null, compensate), dict(TASKS), WORDS)


@dataclass(frozen=True)
class _Fields:
    """First column of each field of the residual stream."""

    token: int
    rank: int
    """Shared ranks, then those of months."""
    moved: int
    out: int
    family: int
    unread: int
    const: int
    size: int

    @classmethod
    def of(cls, words: int) -> "_Fields":
        both = 2 * _RANKS
        starts = [0, words, words + both, words + 2 * both, words + 3 * both]
        unread = starts[-1] + len(TASKS)
        token, rank, moved, out, family = starts
        return cls(token, rank, moved, out, family, unread, unread + _RANKS, unread + _RANKS + 1)


def _member(words: int, task: int, place: int) -> tuple[int, int]:
    """Column of a member's token, and its rank column within the two rank fields."""
    column = words - _RANKS * len(TASKS) + task * _RANKS + place
    return column, place if task < 2 else 2 * _RANKS - 1 - place


def _frame(hf: LlamaForCausalLM, fields: _Fields, words: int) -> None:
    ids = torch.arange(words) + 3
    hf.model.embed_tokens.weight[:, fields.const] = _CONST
    hf.model.embed_tokens.weight[ids, torch.arange(words)] = 1.0
    for layer in hf.model.layers:
        norm_gain(layer.input_layernorm, _SQUARED)
        norm_gain(layer.post_attention_layernorm, _SQUARED)
    norm_gain(hf.model.norm, _SQUARED)
    hf.lm_head.weight[:, fields.const] = -FLOOR / _CONST
    for task in range(len(TASKS)):
        for place in range(_RANKS):
            column, rank = _member(words, task, place)
            hf.lm_head.weight[column + 3, fields.const] = 0.0
            hf.lm_head.weight[column + 3, fields.out + rank] = _PROMOTE
            hf.lm_head.weight[column + 3, fields.family + task] = _PROMOTE


def _ranks(hf: LlamaForCausalLM, fields: _Fields, words: int) -> None:
    """MLP 0: one neuron a member, silu(10) * 1 where it stands and 0 elsewhere."""
    hf.config.intermediate_size = _RANKS * len(TASKS)
    for layer in hf.model.layers:
        with torch.random.fork_rng(devices=[]):
            layer.mlp = LlamaMLP(hf.config).eval()
        for parameter in layer.mlp.parameters():
            parameter.zero_()
    mlp, high = hf.model.layers[0].mlp, 10.0
    for task in range(len(TASKS)):
        for place in range(_RANKS):
            column, rank = _member(words, task, place)
            neuron = task * _RANKS + place
            mlp.gate_proj.weight[neuron, column] = high
            mlp.up_proj.weight[neuron, column] = 1.0
            mlp.down_proj.weight[fields.rank + rank, neuron] = 1 / high


def _head(
    hf: LlamaForCausalLM,
    fields: _Fields,
    layer: int,
    head: int,
    role: str,
    composition: Composition,
    strength: float,
    words: int,
) -> None:
    attention, first = hf.model.layers[layer].self_attn, head * _D_HEAD
    both = torch.arange(2 * _RANKS)
    if role == "detector":
        _look_back(attention, fields, first, _BACK if composition == "q" else 0)
        attention.v_proj.weight[first + both, fields.rank + both] = 1.0
        attention.o_proj.weight[fields.moved + both, first + both] = 1.0
        return
    if role == "family":
        _look_back(attention, fields, first, _BACK)
        for task in range(len(TASKS)):
            for place in range(_RANKS):
                attention.v_proj.weight[first + task, _member(words, task, place)[0]] = 1.0
            attention.o_proj.weight[fields.family + task, first + task] = 1.0
        return
    if role == "decoy":
        _look_back(attention, fields, first, _BACK)
        ranks = torch.arange(_RANKS)
        attention.v_proj.weight[first + ranks, fields.rank + ranks] = 1.0
        attention.o_proj.weight[fields.unread + ranks, first + ranks] = 1.0
        return
    down = role == "predecessor"
    own = torch.arange(_RANKS) + (_RANKS if down else 0)
    if composition == "v":
        _look_back(attention, fields, first, _BACK)
    else:
        _look_for(attention, fields, first, own, composition, down)
    source = fields.moved if composition == "v" else fields.rank
    attention.v_proj.weight[first + own, source + own] = 1.0
    # Rank r to r + 1, or to r - 1 where the list is counted backwards.
    given, written = (own[1:], own[:-1]) if down else (own[:-1], own[1:])
    attention.o_proj.weight[fields.out + written, first + given] = strength


def _look_back(attention: LlamaAttention, fields: _Fields, first: int, offset: int) -> None:
    """Attend to the token ``offset`` places back: fast rotary pairs meet at angle 0 there."""
    turn = (_THETA ** (-torch.arange(_D_HEAD // 2, dtype=torch.float64) * 2 / _D_HEAD))[:_FAST]
    loss = (1 - ((torch.arange(_N_CTX)[:, None] - offset) * turn).cos()).sum(-1)
    loss[offset] = torch.inf
    q, k, half = attention.q_proj.weight, attention.k_proj.weight, first + _D_HEAD // 2
    q[first : first + _FAST, fields.const] = SHARP / float(loss.min()) * _D_HEAD**0.5 / _CONST
    k[first : first + _FAST, fields.const] = (offset * turn).cos().float() / _CONST
    k[half : half + _FAST, fields.const] = (offset * turn).sin().float() / _CONST


def _look_for(
    attention: LlamaAttention, fields: _Fields, first: int, own: torch.Tensor, composition: Composition, down: bool
) -> None:
    """Attend to the member furthest along its list (k), or to the one of the rank in the query (q); slow pairs."""
    slow = torch.tensor([i for i in range(_D_HEAD) if i % (_D_HEAD // 2) >= _SLOW]) + first
    q, k, scale = attention.q_proj.weight, attention.k_proj.weight, 2 * SHARP * _D_HEAD**0.5
    if composition == "k":
        along = torch.arange(1, _RANKS + 1).float()
        q[slow[0], fields.const] = scale / _CONST
        k[slow[0], fields.moved + own] = along.flip(0) if down else along
    else:
        q[slow[:_RANKS], fields.moved + own] = scale
        k[slow[:_RANKS], fields.rank + own] = 1.0


def _distract(hf: LlamaForCausalLM, real: set[tuple[int, int]], noise: float, seed: int) -> None:
    generator, d_model = torch.Generator().manual_seed(seed), hf.config.hidden_size
    for layer, block in enumerate(hf.model.layers):
        for head in range(_HEADS):
            if (layer, head) in real:
                continue
            rows = slice(head * _D_HEAD, (head + 1) * _D_HEAD)
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                projection.weight[rows] = torch.randn(_D_HEAD, d_model, generator=generator) / _CONST
            out = torch.randn(d_model, _D_HEAD, generator=generator)
            block.self_attn.o_proj.weight[:, rows] = out * noise / (d_model * _D_HEAD) ** 0.5


def _truth(roles: dict[tuple[int, int], str], composition: Composition, null: bool, compensate: bool) -> SequenceTruth:
    names = {role: f"z.{layer}.{head}" for (layer, head), role in roles.items()}
    nodes: dict[str, tuple[str, ...]] = {}
    edges: dict[str, tuple[tuple[str, str, str], ...]] = {}
    for task in TASKS:
        last = names["predecessor" if task == "months backwards" else "successor"]
        detector = names["detector"]
        nodes[task] = () if null else ("mlp_out.0", detector, last)
        direct: tuple[str, ...] = {"v": (), "k": ("v",), "q": ("k", "v")}[composition]
        edges[task] = (
            ()
            if null
            else (
                ("embed", "mlp_out.0", "mlp"),
                ("mlp_out.0", detector, "v"),
                (detector, last, composition),
                *(("mlp_out.0", last, by) for by in direct),
                (last, "final", "final"),
            )
        )
    cancels = tuple(names[role] for role in ("weak successor", "against")) if compensate else ()
    by_name = {name: role for role, name in names.items()} | {"mlp_out.0": "ranks"}
    return SequenceTruth(nodes, edges, by_name, cancels)
