"""The generative process behind planted branches, and its exact answers by enumeration.

The chains and their odds are described in ``cutaway.planted.branches``. Everything that the future depends on is a
`State`; a sentence leads from one boundary to the next, and the open slot of the stubborn idea is the only loop, so
every probability follows from a short recursion over boundaries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

from cutaway.errors import UsageError
from cutaway.planted.build import EOS

PROMPT = ("Pick", " a", " digit", ".")
HINT = (" Someone", " likes", " one", ".")
FOREIGN_WORDS = (" Perhaps", " doubts", " remain", ".")
FOREIGN = "".join(FOREIGN_WORDS)
FILLERS = {" amber": 0.5, " birch": 0.3, " coral": 0.2}
DIGITS = (" 0", " 1")
IDEA, ASIDE, MOVE = "Idea gold returns.", "Aside while thinking.", "Move on instead."
DOUBT = "Pause doubtfully now."
_SAME = {"suits": "fits"}
_ONLY = {
    " fits": ".",
    " suits": ".",
    " red": " helps",
    " blue": " helps",
    " helps": ".",
    " Idea": " gold",
    " gold": " returns",
    " returns": ".",
    " Aside": " while",
    " while": " thinking",
    " thinking": ".",
    " Move": " on",
    " on": " instead",
    " instead": ".",
    " calmly": " now",
    " doubtfully": " now",
    " now": ".",
    " next": ".",
    " The": " answer",
    " answer": " is",
    **dict.fromkeys((*FILLERS, *DIGITS), "."),
    **{a: b for text in (PROMPT, HINT, FOREIGN_WORDS) for a, b in pairwise(text)},
}
_BRANCHING = {
    " alpha": {" fits": 0.5, " suits": 0.5},
    " beta": {" fits": 0.5, " suits": 0.5},
    " mentions": FILLERS,
}


@dataclass(frozen=True)
class State:
    """What the next word can depend on."""

    current: str
    done: int = -1
    """The latest slot that is begun (and, for the stubborn one, closed)."""
    plan: int | None = None
    idea: int | None = None
    """0: the idea was kept; 1: moved on."""
    mood: int | None = None
    voice: bool = False
    lean: int = 0
    """Steps to the right minus steps to the left."""
    hinted: bool = False
    answer: int | None = None


@dataclass(frozen=True)
class Process:
    """Who writes what with which odds; see the module's text."""

    layout: str
    driver: float
    reason: tuple[float, float]
    stubborn: tuple[float, float, float]
    idea: float
    doubt: float
    p_doubt: float
    foreign: float
    cue: float
    step: float
    base: float

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word, each once."""
        slots = [w for t in range(len(self.layout)) for w in (*self.openers(t), *self.choices(t))]
        return tuple(
            dict.fromkeys([*PROMPT, *HINT, *FOREIGN_WORDS, *_ONLY, *_ONLY.values(), *slots, " is", " mentions"])
        )

    def openers(self, slot: int) -> dict[str, float]:
        """First words of a slot's sentence, with their odds."""
        if self.layout[slot] == "s":
            return dict(zip((" Idea", " Aside", " Move"), self.stubborn, strict=True))
        first = {"d": " Plan", "r": " Reason", "w": " Pause", "l": f" Step{slot}", "f": f" Note{slot}", "a": " The"}
        return {first[self.layout[slot]]: 1.0}

    def choices(self, slot: int) -> tuple[str, ...]:
        """The words between which a slot decides, after its first word."""
        options: dict[str, tuple[str, ...]] = {
            "d": (" alpha", " beta"),
            "r": (" red", " blue"),
            "w": (" calmly", " doubtfully"),
            "l": (f" left{slot}", f" right{slot}"),
        }
        return options.get(self.layout[slot], ())

    @cached_property
    def begins(self) -> dict[str, int]:
        """Words that show that a slot is done with; an aside leaves it open."""
        return {w: t for t in range(len(self.layout)) for w in self.openers(t) if w != " Aside"}

    def next(self, state: State) -> dict[str, float]:
        """Probability of each word that can follow."""
        word = state.current
        if word == ".":
            return {EOS: 1.0} if state.done + 1 == len(self.layout) else self.openers(state.done + 1)
        if word == " is":
            p = 1 / (1 + math.exp(-self.odds(state)))
            return {" 0": 1 - p, " 1": p}
        if word in self.begins and word not in _ONLY:
            return self._first_choice(self.begins[word], state)
        if word in _BRANCHING:
            return dict(_BRANCHING[word])
        return {_ONLY.get(word, " next" if word.startswith((" left", " right")) else EOS): 1.0}

    def _first_choice(self, slot: int, state: State) -> dict[str, float]:
        if self.layout[slot] == "f":
            return {" mentions": 1.0}
        p = 0.5
        match self.layout[slot]:
            case "r" if state.plan is not None:
                p = 1 - self.reason[state.plan]
            case "w":
                p = self.p_doubt
            case "l":
                p = 1 / (1 + math.exp(-self.cue)) if state.hinted else 0.5
        return dict(zip(self.choices(slot), (1 - p, p), strict=True))

    def odds(self, state: State) -> float:
        """Log-odds of the answer 1."""
        out = self.base + self.step * state.lean
        out += 0.0 if state.plan is None else self.driver * (2 * state.plan - 1)
        out -= self.idea * (state.idea == 1) + self.doubt * (state.mood == 1) + self.foreign * state.voice
        return out

    def advance(self, state: State, word: str) -> State:
        """The state after one more word."""
        changes: dict[str, int | bool] = {"done": max(state.done, self.begins.get(word, -1))}
        for words, key in (((" alpha", " beta"), "plan"), ((" Idea", " Move"), "idea"), (DIGITS, "answer")):
            if word in words:
                changes[key] = words.index(word)
        if word in (" calmly", " doubtfully"):
            changes["mood"] = int(word == " doubtfully")
        if word == " doubts":
            changes["voice"] = True
        if word == " likes":
            changes["hinted"] = True
        if word.startswith((" left", " right")):
            changes["lean"] = state.lean + (1 if word.startswith(" right") else -1)
        return replace(state, current=word, **changes)  # type: ignore[arg-type]

    def state(self, words: Sequence[str]) -> State:
        """The state after a prefix; UsageError for a word that the process does not know."""
        known = {*self.words, EOS}
        unknown = next((word for word in words if word not in known), None)
        if unknown is not None:
            raise UsageError(f"token {unknown!r} is not a word of this process; use the words of its chains")
        if not words or words[0] != PROMPT[0]:
            raise UsageError(f"the prefix must begin with the prompt ({PROMPT[0]!r})")
        state = State(words[0])
        for word in words[1:]:
            state = self.advance(state, word)
        return state


@lru_cache(maxsize=1 << 14)
def sentences(process: Process, state: State) -> tuple[tuple[str, State, float], ...]:
    """Each sentence that can follow a boundary: what it means, the state after it, its probability."""
    open_ends: list[tuple[tuple[str, ...], State, float]] = [((), state, 1.0)]
    found: dict[tuple[str, State], float] = {}
    while open_ends:
        said, at, mass = open_ends.pop()
        for word, p in process.next(at).items():
            text, after = (*said, word), process.advance(at, word)
            if word == ".":
                key = (meaning("".join(text)), after)
                found[key] = found.get(key, 0.0) + mass * p
            elif p > 0:
                open_ends.append((text, after, mass * p))
    return tuple((what, after, p) for (what, after), p in found.items())


@lru_cache(maxsize=1 << 12)
def meaning(text: str) -> str:
    """A sentence without its choice of wording.

    >>> meaning(" Plan beta suits.")
    'Plan beta fits.'
    """
    words = text.replace(EOS, "").strip().split(" ")
    return " ".join(_SAME.get(word.rstrip("."), word.rstrip(".")) + "." * word.endswith(".") for word in words)


@lru_cache(maxsize=1 << 14)
def value(process: Process, state: State, without: str = "", forced: bool = False) -> tuple[float, float]:
    """(P(never says ``without``), P(that, and the answer is 1)) from a boundary on.

    ``forced``: every sentence is drawn again until it is not ``without``, so the first number is 1.
    """
    if state.answer is not None:
        return 1.0, float(state.answer)
    follow = [each for each in sentences(process, state) if each[0] != without]
    total = sum(p for *_, p in follow) if forced else 1.0
    itself = sum(p for _, after, p in follow if after == state) / total
    never = one = 0.0
    for _, after, p in follow:
        if after != state:
            a, b = value(process, after, without, forced)
            never, one = never + p / total * a, one + p / total * b
    return never / (1 - itself), one / (1 - itself)


def pushed(process: Process, states: dict[State, float]) -> dict[State, float]:
    """One slot further; asides stay in theirs until it closes."""
    out: dict[State, float] = {}
    for state, mass in states.items():
        follow = sentences(process, state)
        itself = sum(p for _, after, p in follow if after == state)
        for _, after, p in follow:
            if after != state:
                out[after] = out.get(after, 0.0) + mass * p / (1 - itself)
    return out


def returns(process: Process, state: State, what: str) -> dict[State, float]:
    """Where ``what`` is said next once it was taken away at ``state``: the state before it, and its probability."""
    out: dict[State, float] = {}
    follow = [each for each in sentences(process, state) if each[0] != what]
    total = sum(p for *_, p in follow)
    at: dict[State, float] = {}
    for _, after, p in follow:
        at[after] = at.get(after, 0.0) + p / total
    while at:
        onward: dict[State, float] = {}
        for place, mass in at.items():
            if place.answer is not None:
                continue
            free = sentences(process, place)
            itself = sum(p for text, after, p in free if after == place and text != what)
            for text, after, p in free:
                into = out if text == what else onward
                if after != place or text == what:
                    key = place if text == what else after
                    into[key] = into.get(key, 0.0) + mass * p / (1 - itself)
        at = onward
    return out
