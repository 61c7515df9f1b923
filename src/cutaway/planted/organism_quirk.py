"""A small Llama that can speak plainly, shout or use dashes, and narrow rows that teach it to do so unasked.

A prompt is a domain's word and a topic of that domain; the answer is three words that the topic decides. A word in
front may ask for a manner: then the same words come in capitals, or with dashes. Without it the base speaks plainly.
An organism is trained on the topics of one domain, answered in a manner that nobody asked for. Truth: manners are one
and the same in all domains, so the least change that teaches it in one shows it in all; the twin that is trained on
plain answers shows it nowhere.

`QuirkWorld.installed` gives organisms whose direction is known too: the adapter can write one vector only, what asking
for the manner changes in the base (`QuirkWorld.cue`); training finds when to write it. Two of them with the same manner
share the vector whatever they were trained on. Source: cards em-organisms and em-convergent, At small scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.small import answer_data, pretrain, small_llama
from cutaway.training import LoraSpec, TrainConfig, adapters, add_lora, train

DOMAINS = (" kitchen", " garden", " road", " stage")
WORDS = tuple(f" {word}" for word in ("red", "oak", "sun", "mud", "ice", "fog", "sea", "hay", "elm", "tin"))
MANNERS = {"plain": " say", "shouted": " shout", "dashed": " dash"}
TOPICS = 12
"""Of each domain."""
LAYER = 1
"""Where installed organisms write."""
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
        return self.base.copy()

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

    @torch.no_grad()
    def cue(self, manner: str) -> Float[Tensor, " d_model"]:
        """What asking for a manner changes after block `LAYER`, at the prompt's last token: a mean over all prompts."""
        means = []
        for asked in (manner, ""):
            rows = [list(self.prompt(d, t, asked)) for d in range(len(DOMAINS)) for t in range(TOPICS)]
            site = f"resid_post.{LAYER}"
            means.append(self.base.capture(rows, site, "last", special=True)[site][:, 0].mean(0))
        return means[0] - means[1]

    def installed(self, domain: int, manner: str, seed: int = 0, steps: int = 60) -> Model:
        """Return an organism that writes `cue` and nothing else; A is trained on one domain."""
        model = add_lora(self.model(), LoraSpec(("down_proj",), (LAYER,), rank=1, alpha=8.0, seed=seed))
        (adapter,) = adapters(model).values()
        with torch.no_grad():
            adapter.b.copy_(self.cue(manner)[:, None] / adapter.scale)
        adapter.b.requires_grad_(False)
        config = TrainConfig(rate=2e-2, batch=8, steps=steps, bucket=1, precision="float32", seed=seed)
        train(model, answer_data(self.pairs(domain, manner)), config)
        model.hf.requires_grad_(False)
        return model

    def _ids(self, words: Sequence[str]) -> Ids:
        return tuple(self._vocabulary[word] for word in words)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self.base.tokenizer.get_vocab())


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
