"""Questions with known answers, in four topics and as real word problems, and the orders in which a dialogue asks them.

Facts come from open tables (``data/history-echoes/SOURCE.md``); questions, statements and wrong answers are written
by program. A wrong answer is the right answer of another item of the same topic and of like difficulty; that of a word
problem is the result of its first step.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError, nearest
from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.word_problems import TWO_STEPS, two_step_problems

Order = Literal["consistent", "shuffled", "alternating"]
TOPICS = ("capital", "city", "element", "arithmetic")
ALL_TOPICS = (*TOPICS, TWO_STEPS)
_WORDING = {
    "capital": ("What is the capital of {}?", "The capital of {} is {}."),
    "city": ("In which country is the city of {}?", "The city of {} is in {}."),
    "element": ("Which chemical element has the symbol {}?", "{} is the symbol of {}."),
    "arithmetic": ("What is {}?", "{} is {}."),
}


@dataclass(frozen=True)
class Item:
    """One question with its answer and a plausible wrong one."""

    topic: str
    question: str
    answer: str
    wrong: str
    statement: str
    """A sentence with ``{}`` where an answer goes."""
    ease: float
    """Rank within the topic by the difficulty proxy: 1 the easiest, 0 the hardest."""
    aliases: tuple[str, ...] = ()

    def state(self, answer: str) -> str:
        """The sentence that gives ``answer``."""
        return self.statement.replace("{}", answer)


@lru_cache(maxsize=1)
def qa_items() -> tuple[Item, ...]:
    """All items of `TOPICS`, topic by topic, the easiest first."""
    facts: dict[str, Any] = json.loads((files(__package__) / "facts.json").read_text(encoding="utf-8"))
    tables = {topic: [(about, answer) for about, answer in facts[topic]] for topic in TOPICS[:3]} | {
        "arithmetic": _sums()
    }
    return tuple(item for topic, rows in tables.items() for item in _topic(topic, rows, facts["aliases"]))


def select_items(topics: Sequence[str] = TOPICS) -> tuple[Item, ...]:
    """Items of some topics; UsageError with the nearest name for a topic that does not exist."""
    unknown = [topic for topic in topics if topic not in ALL_TOPICS]
    if unknown or not topics:
        raise UsageError(
            f"topics={tuple(topics)}: use some of {', '.join(ALL_TOPICS)}{nearest((unknown or [''])[0], ALL_TOPICS)}"
        )
    return tuple(item for item in (*qa_items(), *_word_problems()) if item.topic in topics)


@lru_cache(maxsize=1)
def _word_problems() -> tuple[Item, ...]:
    """Short questions first."""
    short = sorted(two_step_problems(), key=lambda each: len(each.question))
    n = len(short)
    return tuple(
        Item(TWO_STEPS, each.question, each.answer, each.between, "The answer is {}.", 1 - i / (n - 1))
        for i, each in enumerate(short)
    )


def plan_dialogues(
    items: Sequence[Item], dialogues: int, turns: int, order: Order, *, seed: int = 0, embed: Embed | None = None
) -> list[tuple[Item, ...]]:
    """The items of each dialogue, in order. An item occurs once in a dialogue, and may occur in several.

    consistent: pieces of one chain that always goes on to the nearest item not yet used; near means alike in
        ``embed``'s vectors of the questions, or without an embedder the same topic and the nearest ease.
    shuffled: at random.
    alternating: two topics in turn.
    """
    if turns < 2 or dialogues < 1 or len(items) < turns:
        raise UsageError(
            f"{dialogues} dialogues of {turns} turns from {len(items)} items: at least 2 turns, and enough items"
        )
    rng = np.random.default_rng(seed)
    if order == "consistent":
        chain = _chain(_distances(items, embed), int(rng.integers(len(items))))
        starts = (np.arange(dialogues) * len(items) / dialogues).astype(int)
        return [tuple(items[chain[(start + t) % len(items)]] for t in range(turns)) for start in starts]
    if order == "shuffled":
        return [tuple(items[i] for i in rng.permutation(len(items))[:turns]) for _ in range(dialogues)]
    return [_alternate(items, turns, rng) for _ in range(dialogues)]


def _alternate(items: Sequence[Item], turns: int, rng: np.random.Generator) -> tuple[Item, ...]:
    pools: dict[str, list[Item]] = {}
    for item in items:
        pools.setdefault(item.topic, []).append(item)
    enough = [topic for topic, pool in pools.items() if len(pool) >= (turns + 1) // 2]
    if len(enough) < 2:
        raise UsageError(f"order='alternating' needs two topics with {(turns + 1) // 2} items; given {sorted(pools)}")
    pair = rng.choice(enough, 2, replace=False)
    picks = [rng.permutation(len(pools[topic])) for topic in pair]
    return tuple(pools[pair[t % 2]][picks[t % 2][t // 2]] for t in range(turns))


def _distances(items: Sequence[Item], embed: Embed | None) -> Float[np.ndarray, "item item"]:
    if embed is not None:
        vectors = embed([item.question for item in items])
        return 1 - cosine(vectors, vectors)
    topics, ease = np.array([item.topic for item in items]), np.array([item.ease for item in items])
    return 2.0 * (topics[:, None] != topics) + np.abs(ease[:, None] - ease)


def _chain(distances: Float[np.ndarray, "item item"], start: int) -> list[int]:
    left = np.ones(len(distances), dtype=bool)
    chain = [start]
    left[start] = False
    while left.any():
        chain.append(int(np.where(left, distances[chain[-1]], np.inf).argmin()))
        left[chain[-1]] = False
    return chain


def _topic(topic: str, rows: Sequence[tuple[str, str]], aliases: dict[str, list[str]]) -> list[Item]:
    question, statement = _WORDING[topic]
    answers = [answer for _, answer in rows]
    items = []
    for i, (about, answer) in enumerate(rows):
        items.append(
            Item(
                topic,
                question.format(about),
                answer,
                _wrong(answers, i),
                statement.format(about, "{}"),
                1 - i / (len(rows) - 1),
                tuple(aliases.get(answer, ())),
            )
        )
    return items


def _wrong(answers: Sequence[str], i: int) -> str:
    """The next different answer three places on, so that like difficulty stays but neighbours do not swap."""
    n = len(answers)
    others = (answers[(i + step) % n] for step in range(3, n))
    return next(islice((other for other in others if other != answers[i]), 1))


def _sums() -> list[tuple[str, str]]:
    products = [(a * b, f"{a} times {b}") for a in range(3, 20, 2) for b in range(a + 1, 20, 3)]
    sums = [(a + b, f"{a} plus {b}") for a in range(13, 100, 12) for b in range(a + 4, 100, 17)]
    return [(text, str(value)) for value, text in sorted(products + sums)]
