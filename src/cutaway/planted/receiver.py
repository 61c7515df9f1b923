"""A Llama with heads that must read a plan: receiver heads at known places, and sentences known to depend on it.

A trace has one sentence that picks a plan (" Plan alpha fits best."), fillers, and steps (" Turn north now.") whose
direction follows from the plan.

1. The residual stream holds the current word (one-hot), a constant, and which plan was read.
2. Each receiver head's query is the constant alone: from every later position it attends to the plan's word, before
   that to the prompt's first word. Each writes an equal share of the plan's column.
3. Next-word logits are a table by current word; after " Turn" the plan's column decides between four directions.

All other heads are distractors: random, mildly uneven attention and a small random output. The MLPs are zero. The null
has no receivers, every head attends uniformly, and directions are drawn at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from transformers import LlamaForCausalLM

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import EOS, FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer
from cutaway.planted.process import EXACT
from cutaway.sampling.trace import Trace

PROMPT = ("Find", " a", " way", " home", ".")
PLANS = (" alpha", " beta", " gamma", " delta")
TURNS = (" north", " east", " south", " west")
NOUNS = (" amber", " birch", " coral", " ember", " fern", " grain", " hazel", " ivory", " jade", " kelp")
LOOKS = (" calm", " bright", " cold")
_FIXED = {
    **dict(pairwise(PROMPT)),
    **dict.fromkeys(PLANS, " fits"),
    " fits": " best",
    **dict.fromkeys((" best", " now", " today"), "."),
    **dict.fromkeys(TURNS, " now"),
    **dict.fromkeys(LOOKS, " today"),
    " looks": "",
    EOS: EOS,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    ".": (" Plan", " Turn", " Note", " The", EOS),
    " Plan": PLANS,
    " Turn": TURNS,
    " Note": NOUNS,
    " The": NOUNS,
    " looks": LOOKS,
    **dict.fromkeys(NOUNS, (" looks", ".")),
}
_D_HEAD = 16
_N_CTX = 512


@dataclass(frozen=True)
class ReceiverTruth:
    """What a method should find."""

    heads: tuple[tuple[int, int], ...]
    """(layer, head) of the heads that read the plan; empty in the null."""
    distractors: tuple[tuple[int, int], ...]
    """(layer, head) of all others."""
    p_right: float
    """Probability that a step turns as the plan says, up to the distractors' noise; 1/4 in the null."""


@dataclass(frozen=True)
class Receiver:
    """A planted receiver model and its traces."""

    model: Model
    truth: ReceiverTruth

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return tuple(self._ids(PROMPT))

    def trace(self, seed: int, n_sentences: int = 20) -> Trace:
        """A trace whose plan is one of its second to fourth sentences and whose last sentence is a step."""
        if n_sentences < 6:
            raise UsageError(f"n_sentences={n_sentences}: at least 6")
        rng = np.random.default_rng(seed)
        at, plan = int(rng.integers(1, 4)), int(rng.integers(len(PLANS)))
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        for i in range(n_sentences):
            start = len(words)
            if i == at:
                words += [" Plan", PLANS[plan], " fits", " best", "."]
            elif i == n_sentences - 1 or (i > at and rng.random() < 0.4):
                turn = plan if self.truth.heads else int(rng.integers(len(TURNS)))
                words += [" Turn", TURNS[turn], " now", "."]
            else:
                words += _filler(rng)
            spans.append((start, len(words)))
        return Trace(self.prompt_ids, tuple(self._ids(words)), (), tuple(spans), EXACT)

    def plan_sentence(self, trace: Trace) -> int:
        """Index of the sentence that picks the plan."""
        return next(i for i, word in enumerate(self._first_words(trace)) if word == " Plan")

    def steps(self, trace: Trace) -> tuple[int, ...]:
        """Indices of the sentences that depend on the plan (in the null: that would)."""
        return tuple(i for i, word in enumerate(self._first_words(trace)) if word == " Turn")

    def question(self, trace: Trace, step: int) -> tuple[tuple[int, ...], str]:
        """Token ids up to the point where a step names its direction, and the word the plan asks for."""
        first = trace.spans[step][0] + 1
        plan = trace.ids[trace.spans[self.plan_sentence(trace)][0] + 1]
        return (*trace.prompt, *trace.ids[:first]), TURNS[self._ids(PLANS).index(plan)]

    def _first_words(self, trace: Trace) -> list[str]:
        return list(self.model.tokenizer.convert_ids_to_tokens([trace.ids[start] for start, _ in trace.spans]))

    def _ids(self, words: Sequence[str]) -> list[int]:
        return [int(each) for each in self.model.tokenizer.convert_tokens_to_ids(list(words))]


def receiver(
    heads: Sequence[tuple[int, int]] = ((1, 2), (2, 0), (2, 3)),
    *,
    n_layers: int = 3,
    n_heads: int = 4,
    strength: float = 6.0,
    noise: float = 0.02,
    null: bool = False,
    seed: int = 0,
) -> Receiver:
    """Build a receiver model.

    heads: (layer, head) of the receivers, none in layer 0.
    strength: log-odds that the plan takes from each direction it does not name.
    noise: size of a distractor's output; the receivers together write a vector of length 1.
    null: no receivers, uniform attention everywhere, steps at random.
    seed: of the distractors' weights.
    """
    planted = () if null else tuple(sorted(set(heads)))
    bad = next((each for each in heads if not (1 <= each[0] < n_layers and 0 <= each[1] < n_heads)), None)
    if bad is not None or not heads:
        raise UsageError(f"heads={tuple(heads)}: each a (layer 1..{n_layers - 1}, head 0..{n_heads - 1})")
    words = tuple(dict.fromkeys((*PROMPT, *_CHOICES, *(w for follow in _CHOICES.values() for w in follow), *_FIXED)))
    words = tuple(word for word in words if word not in ("", EOS))
    tokenizer = word_tokenizer(words)
    used = len(words) + 1 + 1 + len(PLANS) + 1  # words, end, constant, plan columns and the one for "no plan yet"
    hf = blank_llama(
        tokenizer,
        d_model=n_heads * -(-used // n_heads),
        n_layers=n_layers,
        n_heads=n_heads,
        d_head=_D_HEAD,
        n_ctx=_N_CTX,
    )
    distractors = tuple((la, h) for la in range(n_layers) for h in range(n_heads) if (la, h) not in planted)
    listed = (*words, EOS)
    with torch.no_grad():
        _frame(hf, listed, [tokenizer.get_vocab()[word] for word in listed], planted, strength)
        for layer, head in planted:
            _receive(hf, listed, layer, head, 1 / len(planted))
        _distract(hf, distractors, noise, null, seed)
    right = 0.25 if null else 1 / (1 + 3 * float(np.exp(-strength)))
    return Receiver(Model(hf, tokenizer, "planted-receiver"), ReceiverTruth(planted, distractors, right))


def _filler(rng: np.random.Generator) -> list[str]:
    noun = NOUNS[rng.integers(len(NOUNS))]
    if rng.random() < 0.5:
        return [" Note", noun, "."]
    return [" The", noun, " looks", LOOKS[rng.integers(len(LOOKS))], " today", "."]


def _frame(
    hf: LlamaForCausalLM,
    words: tuple[str, ...],
    ids: list[int],
    planted: tuple[tuple[int, int], ...],
    strength: float,
) -> None:
    """Residual = current word (one-hot), constant (1), plan read (1 + plans)."""
    constant = len(words)
    hf.model.embed_tokens.weight[:, constant] = 1.0
    hf.model.embed_tokens.weight[ids, range(len(words))] = 1.0
    read = 0.0
    for number, layer in enumerate(hf.model.layers):
        norm_gain(layer.input_layernorm, 2 + read**2)
        read += sum(at == number for at, _ in planted) / max(len(planted), 1)
        norm_gain(layer.post_attention_layernorm, 2 + read**2)
    norm_gain(hf.model.norm, 2 + read**2)
    head = hf.lm_head.weight
    head[:, constant] = -FLOOR
    head[ids, constant] = 0.0
    table = torch.full((len(words), len(words)), -FLOOR)
    for row, word in enumerate(words):
        follow = _CHOICES.get(word) or (_FIXED[word],)
        table[[words.index(after) for after in follow], row] = -float(np.log(len(follow)))
    head[ids, : len(words)] = table
    for plan in range(len(PLANS)):
        others = [ids[words.index(turn)] for i, turn in enumerate(TURNS) if i != plan]
        head[others, constant + 2 + plan] = -strength


def _receive(hf: LlamaForCausalLM, words: tuple[str, ...], layer: int, head: int, share: float) -> None:
    attention, first, constant = hf.model.layers[layer].self_attn, head * _D_HEAD, len(words)
    slow = first + _D_HEAD // 2 - 1  # a rotary pair that does not turn
    attention.q_proj.weight[slow, constant] = 2 * SHARP * _D_HEAD**0.5
    marks = (PROMPT[0], *PLANS)
    for column, word in enumerate(marks):
        at = words.index(word)
        attention.k_proj.weight[slow, at] = 0.5 if column == 0 else 1.0
        attention.v_proj.weight[first + column, at] = 1.0
        attention.o_proj.weight[constant + 1 + column, first + column] = share


def _distract(
    hf: LlamaForCausalLM, distractors: tuple[tuple[int, int], ...], noise: float, uniform: bool, seed: int
) -> None:
    generator, width = torch.Generator().manual_seed(seed), hf.config.hidden_size
    for layer, head in distractors:
        attention, rows = hf.model.layers[layer].self_attn, slice(head * _D_HEAD, (head + 1) * _D_HEAD)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows] = torch.randn(_D_HEAD, width, generator=generator) / _D_HEAD**0.25
        if uniform:
            attention.q_proj.weight[rows] = 0.0
        out = torch.randn(width, _D_HEAD, generator=generator)
        attention.o_proj.weight[:, rows] = out * noise / width**0.5
