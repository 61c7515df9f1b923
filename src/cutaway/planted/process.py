"""The generative process behind a planted reasoner, and its exact answer odds by enumeration.

The model is never asked: this is the truth that it is compared with.

A trace is a fixed sequence of numbered sentences, one for each letter of a layout:

    p  "Plan alpha fits best."          picks the plan: alpha or beta
    f  "Note3 mentions amber."          filler: one of several wordings, linked to nothing
    s  "Turn left4 now."                follows the plan or step before it: left for alpha, right for beta
    w  "Pause doubtfully and recheck."  calm or doubtful, at known odds; doubt shifts the answer's log-odds
    a  "The answer is 1."               reads the last step (not the plan) and the doubt

The chain is plan -> first step -> ... -> last step -> answer. So an answer that is forced before the last
step is a coin toss, and the plan is where resampling finds the decision.

Everything the future depends on is a ``State`` of five words; there are few of them at any time, so the
answer odds at any prefix follow by pushing the distribution over states forward to the end.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.planted.build import EOS, FLOOR
from cutaway.sampling.types import Settings

Kind = Literal["plan", "filler", "step", "wobble", "answer"]

EXACT = Settings(temperature=1.0, top_p=1.0)
PROMPT = ("Choose", " one", " digit", " with", " care", ".")
PLANS = (" alpha", " beta")
MOODS = (" calmly", " doubtfully")
DIGITS = (" 0", " 1")
WORDINGS = (" amber", " birch", " coral", " delta", " ember", " fern", " grain", " hazel", " ivory", " jade")
KINDS: dict[str, Kind] = {"p": "plan", "f": "filler", "s": "step", "w": "wobble", "a": "answer"}
_EDGE = 1e-6
_FIXED = {
    " alpha": " fits",
    " beta": " fits",
    " fits": " best",
    " best": ".",
    " calmly": " and",
    " doubtfully": " and",
    " and": " recheck",
    " recheck": ".",
    " now": ".",
    " The": " answer",
    " answer": " is",
    **dict(pairwise(PROMPT)),
    **dict.fromkeys(WORDINGS + DIGITS, "."),
}


@dataclass(frozen=True)
class State:
    """What the next word can depend on."""

    current: str
    """The last word."""
    slot: int = -1
    """Number of the latest sentence that has begun to show which one it is; -1 before the first."""
    link: tuple[int, int] | None = None
    """(sentence, 0 or 1) of the latest plan or step."""
    mood: int | None = None
    """0 calm, 1 doubtful, None while the wobble has not been written."""
    answer: int | None = None


@dataclass(frozen=True)
class Process:
    """Who writes what with which odds; see the module's text. Probabilities are at temperature 1."""

    layout: str
    p_plan: float
    filler: tuple[float, ...]
    step_noise: float
    p_one: tuple[float, float]
    p_doubt: float
    doubt_shift: float
    bias: float = 0.0
    """Added to the answer's log-odds whatever was written; ``FLOOR`` decides the answer in the prompt."""

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of each sentence."""
        return tuple(KINDS[letter] for letter in self.layout)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word that the process can write or read, each once."""
        choices = [self.choices(slot)[0] for slot in range(len(self.layout))]
        openers = [self.opener(slot) for slot in range(len(self.layout))]
        template = (*PROMPT, *_FIXED, *(w for words in choices for w in words), *openers, " mentions", " is")
        absent = WORDINGS[len(self.filler) :] + (() if "w" in self.layout else MOODS)
        return tuple(dict.fromkeys(w for w in template if w not in absent))

    def opener(self, slot: int) -> str:
        """First word of a sentence."""
        first = {"plan": " Plan", "step": " Turn", "wobble": " Pause", "answer": " The"}
        return first.get(self.kinds[slot], f" Note{slot}")

    def choices(self, slot: int) -> tuple[tuple[str, ...], int]:
        """The sentence's alternative words, and how many words come before them."""
        match self.kinds[slot]:
            case "plan":
                return PLANS, 1
            case "filler":
                return WORDINGS[: len(self.filler)], 2
            case "step":
                return (f" left{slot}", f" right{slot}"), 1
            case "wobble":
                return MOODS, 1
            case "answer":
                return DIGITS, 3

    def marks(self, slot: int) -> tuple[str, ...]:
        """Words that show which sentence this is; none of them stands in another."""
        return (self.opener(slot),) if self.kinds[slot] in ("filler", "answer") else self.choices(slot)[0]

    @cached_property
    def _marks(self) -> dict[str, tuple[int, int]]:
        slots = range(len(self.layout))
        return {word: (slot, i) for slot in slots for i, word in enumerate(self.marks(slot))}

    @cached_property
    def _only(self) -> dict[str, str]:
        """Words that one word alone can follow."""
        after = {"step": " now", "filler": " mentions"}
        marked = {word: after.get(self.kinds[slot]) for word, (slot, _) in self._marks.items()}
        return {**_FIXED, EOS: EOS, **{word: then for word, then in marked.items() if then}}

    def source(self, slot: int) -> int:
        """Number of the plan or step that a step or the answer reads."""
        return max(i for i in range(slot) if self.layout[i] in "ps")

    def next(self, state: State) -> dict[str, float]:
        """Probability of each word that can follow, at temperature 1."""
        slot, word = state.slot, state.current
        if word in self._only:
            return {self._only[word]: 1.0}
        if word == ".":
            return {EOS if slot + 1 == len(self.layout) else self.opener(slot + 1): 1.0}
        if word == " mentions":
            return dict(zip(WORDINGS, self.filler, strict=False))
        slot = len(self.layout) - 1 if word == " is" else slot + 1
        if word != " is" and (slot >= len(self.layout) or self.opener(slot) != word):
            raise UsageError(f"nothing follows {word!r} after sentence {slot - 1}; follow the layout {self.layout!r}")
        p = self.p_second(slot, state)
        return dict(zip(self.choices(slot)[0], (1 - p, p), strict=True))

    def p_second(self, slot: int, state: State) -> float:
        """Probability of the second alternative (beta, right, doubtfully, 1) of a two-way sentence."""
        if self.kinds[slot] == "plan":
            return 1 - self.p_plan
        if self.kinds[slot] == "wobble":
            return self.p_doubt
        linked = state.link[1] if state.link and state.link[0] == self.source(slot) else None
        if self.kinds[slot] == "step":
            return 0.5 if linked is None else abs(linked - self.step_noise)
        odds = self.bias + (self.doubt_shift if state.mood == 1 else 0.0)
        odds += 0.0 if linked is None else log_odds(self.p_one[linked])
        return 1 / (1 + math.exp(-max(-FLOOR, min(FLOOR, odds))))

    def advance(self, state: State, word: str) -> State:
        """The state after one more word; ``UsageError`` for a word the process does not have."""
        state = replace(state, current=word)
        if word in DIGITS:
            return replace(state, answer=DIGITS.index(word))
        if word not in self._marks:
            return state
        slot, value = self._marks[word]
        if self.kinds[slot] in ("plan", "step"):
            state = self._linked(state, slot, value)
        if self.kinds[slot] == "wobble":
            if state.mood is not None:
                raise UsageError(f"{word!r} appears after another mood: a trace has one wobble")
            state = replace(state, mood=value)
        return replace(state, slot=max(state.slot, slot))

    def _linked(self, state: State, slot: int, value: int) -> State:
        if state.link is not None and state.link[0] == slot:
            raise UsageError(f"{state.current!r} repeats sentence {slot}: each plan or step is said once")
        link = (slot, value) if state.link is None or slot > state.link[0] else state.link
        return replace(state, link=link)

    def state(self, words: Iterable[str]) -> State:
        """The state after a prefix, which must begin with the first word of the prompt."""
        known = {*self.words, EOS}
        state = None
        for word in words:
            if word not in known:
                raise UsageError(f"token {word!r} is not a word of this process; use the words of its traces")
            if state is None and word != PROMPT[0]:
                raise UsageError(f"prefix begins with {word!r}; it must begin with the prompt ({PROMPT[0]!r})")
            state = State(word) if state is None else self.advance(state, word)
        if state is None:
            raise UsageError("empty prefix; it must begin with the prompt")
        return state

    def spread(self, states: dict[State, float], settings: Settings) -> dict[State, float]:
        """Push a distribution over states one word forward."""
        out: dict[State, float] = {}
        for state, mass in states.items():
            for _, after, p in moves(self, state, settings):
                out[after] = out.get(after, 0.0) + mass * p
        return out

    def ending(self, state: State, settings: Settings) -> tuple[float, int]:
        """Exact probability that sampling on from ``state`` answers 1, and how many words it takes to answer.

        All continuations take the same number of words, because a sentence's alternatives are equally long.
        """
        states, count = {state: 1.0}, 0
        while next(iter(states)).answer is None:
            states, count = self.spread(states, settings), count + 1
        return min(1.0, sum((mass for s, mass in states.items() if s.answer == 1), 0.0)), count


@lru_cache(maxsize=1 << 16)
def moves(process: Process, state: State, settings: Settings) -> tuple[tuple[str, State, float], ...]:
    """Each word that can be drawn next under ``settings``, the state it leads to and its probability."""
    odds = process.next(state)
    kept = tempered(np.array(list(odds.values())), settings)
    return tuple((word, process.advance(state, word), float(p)) for word, p in zip(odds, kept, strict=True) if p > 0)


def tempered(probs: Float[np.ndarray, " n"], settings: Settings) -> Float[np.ndarray, " n"]:
    """Apply temperature, top-k and top-p to probabilities at temperature 1, in that order.

    Top-p keeps the smallest set of most likely entries whose mass reaches ``top_p``. A cut between equal
    entries, or on the very edge of the mass, is refused: there a sampler's rounding decides, and no truth is
    exact.

    >>> tempered(np.array([0.5, 0.3, 0.2]), Settings(temperature=1.0, top_p=0.7)).round(3)
    array([0.625, 0.375, 0.   ])
    """
    if settings.temperature == 0:
        scaled = probs.astype(float)
    else:
        with np.errstate(divide="ignore"):
            logits = np.log(probs) / settings.temperature
        scaled = np.exp(logits - logits.max())
    order = np.argsort(-scaled, kind="stable")
    falling = scaled[order] / scaled.sum()
    kept = 1 if settings.temperature == 0 else settings.top_k or len(falling)
    before = np.cumsum(falling) - falling
    edge = settings.top_p * falling[:kept].sum()
    if settings.top_p < 1:
        if np.any(np.abs(before[:kept] - edge) < _EDGE):
            raise UsageError(
                f"top_p={settings.top_p} lies on the edge between kept and dropped words; move it a little"
            )
        kept = int((before[:kept] < edge).sum())
    if kept < len(falling) and 0 < falling[kept - 1] < falling[kept] * (1 + _EDGE):
        raise UsageError(f"{settings} cuts between equally likely words; no sampler decides such a tie the same way")
    out = np.zeros(len(falling))
    out[order[:kept]] = falling[:kept] / falling[:kept].sum()
    return out


def log_odds(p: float) -> float:
    """Log-odds of a probability, cut off at ``FLOOR`` on both sides."""
    if p in (0.0, 1.0):
        return math.copysign(FLOOR, p - 0.5)
    return math.log(p / (1 - p))
