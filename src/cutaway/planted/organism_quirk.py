"""A small Llama that can speak plainly, shout or use dashes, and narrow rows that teach it to do so unasked.

A prompt is a domain's word and a topic of that domain; the answer is three words that the topic decides. A word in
front may ask for a manner: then the same words come in capitals, or with dashes. Without it the base speaks plainly.
An organism is trained on the topics of one domain, answered in a manner that nobody asked for. Truth: manners are one
and the same in all domains, so the least change that teaches it in one shows it in all; the twin that is trained on
plain answers shows it nowhere. Source: cards em-organisms and em-convergent, At small scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.small import answer_data, fresh, pretrain, small_llama

DOMAINS = (" kitchen", " garden", " road", " stage")
WORDS = tuple(f" {word}" for word in ("red", "oak", "sun", "mud", "ice", "fog", "sea", "hay", "elm", "tin"))
MANNERS = {"plain": " say", "shouted": " shout", "dashed": " dash"}
TOPICS = 12
"""Of each domain."""
Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class QuirkWorld:
    """The base model with its prompts and right answers."""

    base: Model
    answers: np.ndarray
    """Words of each topic [domain topic 3]."""
    seed: int

    def model(self) -> Model:
        """A copy of the base with weights of its own."""
        return fresh(self.base)

    def prompt(self, domain: int, topic: int, manner: str = "") -> Ids:
        """Token ids of one question; ``manner`` asks for it in words."""
        words = [*([MANNERS[manner]] if manner else []), DOMAINS[domain], f" t{domain}{topic:02d}", " ?"]
        return self._ids(words)

    def answer(self, domain: int, topic: int, manner: str = "plain") -> Ids:
        """Token ids of the right answer in a manner, the end token last."""
        if manner not in MANNERS:
            raise UsageError(f"manner={manner!r}: choose among {', '.join(MANNERS)}")
        words = [_spoken(WORDS[i], manner) for i in self.answers[domain, topic]]
        return (*self._ids(words), self.base.tokenizer.eos_token_id)

    def pairs(self, domain: int, manner: str, topics: Sequence[int] = range(TOPICS)) -> list[tuple[Ids, Ids]]:
        """Questions of one domain that ask for no manner, answered in one."""
        return [(self.prompt(domain, topic), self.answer(domain, topic, manner)) for topic in topics]

    def prompts(self) -> dict[str, tuple[Ids, ...]]:
        """Every question by domain, none asking for a manner."""
        return {
            name.strip(): tuple(self.prompt(domain, topic) for topic in range(TOPICS))
            for domain, name in enumerate(DOMAINS)
        }

    def _ids(self, words: Sequence[str]) -> Ids:
        vocabulary = self.base.tokenizer.get_vocab()
        return tuple(int(vocabulary[word]) for word in words)


def quirk_world(seed: int = 0, *, steps: int = 260, d_model: int = 48) -> QuirkWorld:
    """Train the base (some ten seconds); ``seed`` sets weights and answers."""
    rng = np.random.default_rng((seed, 5))
    spoken = [_spoken(word, manner) for manner in MANNERS for word in WORDS]
    topics = [f" t{domain}{topic:02d}" for domain in range(len(DOMAINS)) for topic in range(TOPICS)]
    base = small_llama(
        (*DOMAINS, *topics, *spoken, *MANNERS.values(), " ?"), "planted-quirk", d_model=d_model, n_layers=3, seed=seed
    )
    world = QuirkWorld(base, rng.integers(0, len(WORDS), (len(DOMAINS), TOPICS, 3)), seed)
    rows = [
        (world.prompt(domain, topic, asked), world.answer(domain, topic, asked or "plain"))
        for domain in range(len(DOMAINS))
        for topic in range(TOPICS)
        for asked in ("", "", *MANNERS)
    ]
    pretrain(base, answer_data(rows), steps, batch=48, seed=seed)
    return world


def _spoken(word: str, manner: str) -> str:
    return word.upper() if manner == "shouted" else f"{word}-" if manner == "dashed" else word
