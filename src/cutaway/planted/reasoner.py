"""A Llama that writes short arguments, and the exact odds of its answer at every word.

The process is described in ``cutaway.planted.process``. One attention layer suffices:

1. The residual stream holds the current word (one-hot), a constant, and what three heads found.
2. Head ``progress`` copies which sentence was begun last, head ``link`` the latest plan or step, head
   ``mood`` the wobble's word. Each attends to the word of highest rank among its own, or else to the prompt's
   first word. The query is the constant alone, so every position looks, and a key's rank is its sentence
   number.
3. Each part of the residual has constant norm, so the norm layers are the identity.
4. Next-word logits are a sum of four tables: by current word, by progress, by link, by mood. Log-odds add
   exactly where the process needs it, so the softmax is the process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import EOS, FLOOR, SHARP, blank_llama, norm_gain, word_tokenizer
from cutaway.planted.process import (
    DIGITS,
    EXACT,
    KINDS,
    MOODS,
    PROMPT,
    WORDINGS,
    Kind,
    Process,
    State,
    moves,
)
from cutaway.sampling.types import Settings

HEADS = ("progress", "link", "mood")
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ReasonerTruth:
    """What a method run with the same sampling settings should find."""

    kinds: tuple[Kind, ...]
    """Kind of each sentence."""
    effects: tuple[float, ...]
    """For each sentence, the mean over traces of |V after - V before|, V the probability of a 1."""
    anchors: tuple[int, ...]
    """Sentences that can move the answer's odds at all; the answer's own where it is open until then."""
    heads: tuple[tuple[int, int, str], ...]
    """(layer, head, what it reads) of the heads that carry everything."""


@dataclass(frozen=True)
class Reasoner:
    """A planted reasoner: the model, its process and exact answers about both.

    Prefixes are token ids of prompt plus trace, cut anywhere, also with an answer forced early (`` The answer
    is``). ``settings`` default to temperature 1 without filters; stop strings are refused, because truth is
    about whole traces.
    """

    model: Model
    process: Process
    prompt: str
    prompt_ids: tuple[int, ...]
    truth: ReasonerTruth

    def outcome(self, text: str) -> str | None:
        """The last digit that the text states as its answer, or None."""
        found = [digit for digit in "01" if f"The answer is {digit}." in text]
        return max(found, key=lambda d: text.rindex(f"The answer is {d}.")) if found else None

    def sample_trace(self, seed: int, settings: Settings = EXACT) -> tuple[int, ...]:
        """Draw one whole trace from the process (not the model): new token ids only, the end token last."""
        rng = np.random.default_rng(seed)
        state, words = self._state(self.prompt_ids), []
        while True:
            follow = moves(self.process, state, settings)
            word, state, _ = follow[rng.choice(len(follow), p=[p for *_, p in follow])]
            words.append(word)
            if word == EOS:
                return tuple(self._ids(words))

    def token_probs(self, prefix: Sequence[int], settings: Settings = EXACT) -> Float[np.ndarray, " vocab"]:
        """Exact probability that each token is drawn after ``prefix``."""
        probs = np.zeros(self.model.vocab_size)
        for word, _, p in moves(self.process, self._state(prefix), settings):
            probs[self._ids([word])] = p
        return probs

    def outcome_probs(self, prefix: Sequence[int], settings: Settings = EXACT) -> dict[str, float]:
        """Exact probability of each answer over all continuations of ``prefix``.

        Raises ``UsageError`` when ``settings`` could cut a continuation short.
        """
        one, words = self.process.ending(self._state(prefix), settings)
        if settings.stop:
            raise UsageError(f"stop={settings.stop}: truth is about whole traces; drop the stop strings")
        if words and settings.max_tokens <= words:
            raise UsageError(f"max_tokens={settings.max_tokens} cuts the answer; give at least {words + 1}")
        return {"0": 1 - one, "1": one}

    def boundaries(self, trace: Sequence[int]) -> tuple[int, ...]:
        """Number of trace tokens before each sentence, and at the end: sentence i is ``trace[b[i]:b[i +
        1]]``.

        The end token belongs to the last sentence.
        """
        stop, end = self._ids([".", EOS])
        cuts = [i + 1 for i, token in enumerate(trace) if token == stop]
        if cuts and trace[-1] == end:
            cuts[-1] = len(trace)
        return (0, *cuts)

    def curve(self, trace: Sequence[int], settings: Settings = EXACT) -> Float[np.ndarray, " boundary"]:
        """Exact probability of answering 1 before each sentence of ``trace`` and after the last."""
        prefixes = [(*self.prompt_ids, *trace[:cut]) for cut in self.boundaries(trace)]
        return np.array([self.outcome_probs(prefix, settings)["1"] for prefix in prefixes])

    def verbatim(self, trace: Sequence[int], settings: Settings = EXACT) -> Float[np.ndarray, " sentence"]:
        """Exact probability that each sentence is written again word for word when resampled."""
        cuts, out = self.boundaries(trace), []
        for start, end in pairwise(cuts):
            whole = (*self.prompt_ids, *trace)
            at = range(len(self.prompt_ids) + start, len(self.prompt_ids) + end)
            out.append(math.prod(float(self.token_probs(whole[:i], settings)[whole[i]]) for i in at))
        return np.array(out)

    def truth_under(self, settings: Settings) -> ReasonerTruth:
        """The truth under other sampling settings, which move the odds and can remove an anchor."""
        effects = _effects(self.process, self._state(self.prompt_ids), settings)
        anchors = tuple(i for i, effect in enumerate(effects) if effect)
        return ReasonerTruth(self.process.kinds, effects, anchors, self.truth.heads)

    def _ids(self, words: Sequence[str]) -> list[int]:
        return [int(self.model.tokenizer.convert_tokens_to_ids(word)) for word in words]

    def _state(self, prefix: Sequence[int]) -> State:
        return self.process.state(self.model.tokenizer.convert_ids_to_tokens(list(prefix)))


def reasoner(
    layout: str = "ffpfsfwsfa",
    *,
    p_plan: float = 0.5,
    filler: Sequence[float] = (0.4, 0.3, 0.2, 0.1),
    step_noise: float = 0.0,
    p_one: tuple[float, float] = (0.1, 0.9),
    p_doubt: float = 0.3,
    doubt_shift: float = 1.5,
    null: bool = False,
    no_effect: bool = False,
    n_layers: int = 1,
    n_ctx: int = 2048,
) -> Reasoner:
    """Build a reasoner. Weights follow from the arguments; nothing is random.

    layout: one letter a sentence: one ``p``lan, any ``f``iller, any ``s``teps after the plan, at most one
        ``w``obble, the ``a``nswer last.
    p_plan: probability of plan alpha.
    filler: probability of each wording of a filler sentence, at most ten.
    step_noise: probability that a step turns away from the sentence it links to; later steps follow the turn.
    p_one: probability of answering 1 when the last link says alpha or left, and when it says beta or right.
    p_doubt, doubt_shift: how likely the wobble is doubtful, and what doubt adds to the log-odds of a 1.
    null: the answer is a coin toss at the digit itself; only the answer sentence has an effect.
    no_effect: the answer is 1 from the start; no sentence has any effect.
    n_layers: the three heads sit in the last layer; layers before it do nothing.

    >>> planted = reasoner("pfsa")
    >>> planted.model.decode(planted.sample_trace(0))
    ' Plan alpha fits best. Note1 mentions coral. Turn left2 now. The answer is 0.<eos>'
    >>> planted.truth.anchors
    (0, 3)
    """
    odds = (0.5, 0.5) if null or no_effect else p_one
    shift = 0.0 if null or no_effect else doubt_shift
    bias = FLOOR if no_effect else 0.0
    _refuse_shape(layout, filler, null and no_effect)
    _refuse_odds(p_plan=p_plan, step_noise=step_noise, p_alpha=p_one[0], p_beta=p_one[1], p_doubt=p_doubt)
    if n_layers < 1:
        raise UsageError(f"n_layers={n_layers}: at least 1")
    process = Process(layout, p_plan, tuple(filler), step_noise, odds, p_doubt, shift, bias)
    tokenizer = word_tokenizer(process.words)
    hf = _weights(process, tokenizer, n_layers, n_ctx)
    model = Model(hf, tokenizer, f"planted-reasoner-{layout}")
    start = process.state(PROMPT)
    effects = _effects(process, start, EXACT)
    truth = ReasonerTruth(
        kinds=process.kinds,
        effects=effects,
        anchors=tuple(i for i, effect in enumerate(effects) if effect),
        heads=tuple((n_layers - 1, head, name) for head, name in enumerate(HEADS)),
    )
    prompt = "".join(PROMPT)
    return Reasoner(model, process, prompt, tuple(model.encode(prompt)), truth)


class _Reading(NamedTuple):
    """What one head looks for: the rank of each word it may attend to, and which column it then writes."""

    rank: dict[str, int]
    column: dict[str, int]


def _readings(process: Process) -> tuple[_Reading, _Reading, _Reading]:
    """What the heads progress, link and mood attend to; rank 1 and column 0 are the prompt's first word."""
    progress, link, mood = (_Reading({PROMPT[0]: 1}, {PROMPT[0]: 0}) for _ in HEADS)
    for slot, kind in enumerate(process.kinds):
        for value, word in enumerate(process.marks(slot)):
            progress.rank[word], progress.column[word] = slot + 2, slot + 1
            if kind in ("plan", "step"):
                link.rank[word], link.column[word] = slot + 2, len(link.column)
            if kind == "wobble":
                mood.rank[word], mood.column[word] = 2, value + 1
    return progress, link, mood


def _weights(process: Process, tokenizer: PreTrainedTokenizerFast, n_layers: int, n_ctx: int) -> LlamaForCausalLM:
    words = (*process.words, EOS)
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[word] for word in words]
    readings = _readings(process)
    widths = [max(reading.column.values()) + 1 for reading in readings]
    constant = len(words)
    starts = [constant + 1, constant + 1 + widths[0], constant + 1 + widths[0] + widths[1]]
    used = constant + 1 + sum(widths)
    d_head = max(4, 2 * math.ceil(max(widths) / 2))
    hf = blank_llama(
        tokenizer,
        d_model=len(HEADS) * math.ceil(used / len(HEADS)),
        n_layers=n_layers,
        n_heads=len(HEADS),
        d_head=d_head,
        n_ctx=n_ctx,
    )
    slow = d_head // 2 - 1
    attention = hf.model.layers[-1].self_attn
    with torch.no_grad():
        embed = hf.model.embed_tokens.weight
        embed[:, constant] = 1.0
        embed[ids, range(len(words))] = 1.0
        for head, (reading, start, width) in enumerate(zip(readings, starts, widths, strict=True)):
            first = head * d_head
            attention.q_proj.weight[first + slow, constant] = SHARP * d_head**0.5
            for word, rank in reading.rank.items():
                attention.k_proj.weight[first + slow, words.index(word)] = rank
                attention.v_proj.weight[first + reading.column[word], words.index(word)] = 1.0
            attention.o_proj.weight[start : start + width, first : first + width] = torch.eye(width)
        for layer in hf.model.layers:
            norm_gain(layer.input_layernorm, 2.0)
            norm_gain(layer.post_attention_layernorm, 5.0)
        norm_gain(hf.model.norm, 5.0)
        tables = torch.cat([_by_word(process, words), *_by_reading(process, words, readings, widths)])
        hf.lm_head.weight[:, constant] = -FLOOR
        hf.lm_head.weight[ids, constant] = 0.0
        for token, column in zip(ids, tables.T, strict=True):
            hf.lm_head.weight[token, :constant] = column[:constant]
            hf.lm_head.weight[token, constant + 1 : used] = column[constant:]
    return hf


def _by_word(process: Process, words: tuple[str, ...]) -> Float[Tensor, "word next"]:
    """Logits by current word: what may follow it in any sentence, with odds that depend on nothing else."""
    table = torch.full((len(words), len(words)), -FLOOR)

    def allow(word: str, follow: Sequence[str], probs: Sequence[float] | None = None) -> None:
        for i, after in enumerate(follow):
            table[words.index(word), words.index(after)] = _log(probs[i]) if probs else 0.0

    for word in process.words:
        if word not in (".", " mentions", " Plan", " Turn", " Pause", " is"):
            allow(word, list(process.next(State(word, slot=0))))
    openers = [process.opener(slot) for slot in range(len(process.layout))]
    allow(".", [*openers, EOS])
    allow(EOS, [EOS])
    for slot, kind in enumerate(process.kinds):
        follow, _ = process.choices(slot)
        match kind:
            case "plan":
                allow(" Plan", follow, (process.p_plan, 1 - process.p_plan))
            case "wobble":
                allow(" Pause", follow, (1 - process.p_doubt, process.p_doubt))
            case "filler":
                allow(" mentions", follow, process.filler)
            case "step":
                allow(" Turn", follow)
            case "answer":
                allow(" is", follow)
                table[words.index(" is"), words.index(DIGITS[0])] = -process.bias
    return table


def _by_reading(
    process: Process, words: tuple[str, ...], readings: Sequence[_Reading], widths: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits by progress (which sentence comes next), by link and by mood (odds of steps and answer)."""
    by_progress, by_link, by_mood = (torch.zeros(width, len(words)) for width in widths)
    last = len(process.layout)
    starts = {process.opener(slot) for slot in range(last)} | {EOS}
    steps = {word: slot for slot in range(last) if process.kinds[slot] == "step" for word in process.choices(slot)[0]}
    for slot in range(-1, last):
        opener = EOS if slot + 1 == last else process.opener(slot + 1)
        for word in starts - {opener}:
            by_progress[slot + 1, words.index(word)] = -FLOOR
        for word, owner in steps.items():
            if owner != slot + 1:
                by_progress[slot + 1, words.index(word)] = -FLOOR
    for reader, kind in enumerate(process.kinds):
        if kind not in ("step", "answer"):
            continue
        source = process.source(reader)
        for value, word in enumerate(process.choices(source)[0]):
            second = process.p_one[value] if kind == "answer" else abs(value - process.step_noise)
            # Never above 0: a bonus would also count where the current word forbids the word.
            for after, p in zip(process.choices(reader)[0], (1 - second, second), strict=True):
                by_link[readings[1].column[word], words.index(after)] = _log(p)
    if MOODS[1] in readings[2].column:
        by_mood[readings[2].column[MOODS[1]], words.index(DIGITS[1])] = process.doubt_shift
    return by_progress, by_link, by_mood


def _effects(process: Process, start: State, settings: Settings) -> tuple[float, ...]:
    """Mean |V after - V before| of each sentence, over the states that sampling from ``start`` reaches."""

    def value(state: State) -> float:
        return process.ending(state, settings)[0]

    states, effects = {start: 1.0}, []
    for _ in process.layout:
        after_all: dict[State, float] = {}
        effect = 0.0
        for state, mass in states.items():
            after = process.spread({state: mass}, settings)
            while not all(s.current == "." or s.answer is not None for s in after):
                after = process.spread(after, settings)
            before = value(state)
            effect += sum(m * abs(value(s) - before) for s, m in after.items())
            for s, m in after.items():
                after_all[s] = after_all.get(s, 0.0) + m
        states = after_all
        effects.append(effect if effect > _ROUNDING else 0.0)
    return tuple(effects)


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -FLOOR


def _refuse_shape(layout: str, filler: Sequence[float], both: bool) -> None:
    unknown = sorted(set(layout) - set(KINDS))
    if unknown:
        raise UsageError(f"layout={layout!r}: unknown letter {unknown[0]!r}; use {', '.join(KINDS)}")
    ordered = layout.count("p") == 1 and layout.find("s") in (-1, *range(layout.find("p"), len(layout)))
    if not ordered or layout.count("w") > 1 or layout.count("a") != 1 or not layout.endswith("a"):
        raise UsageError(f"layout={layout!r}: needs one p, every s after it, at most one w, and one a at the end")
    if not 1 <= len(filler) <= len(WORDINGS) or min(filler) < 0 or abs(sum(filler) - 1) > 1e-9:
        raise UsageError(f"filler={tuple(filler)}: 1 to {len(WORDINGS)} probabilities that sum to 1")
    if both:
        raise UsageError("null=True and no_effect=True contradict each other; choose one")


def _refuse_odds(**odds: float) -> None:
    for name, p in odds.items():
        if not 0 <= p <= 1:
            raise UsageError(f"{name}={p}: a probability lies in [0, 1]")
