"""A small Llama that continues lists of numbers and names a favourite animal, and teachers with one favourite each.

1. Numbers: after any number four others may follow, one of them with a chance of 0.25 to 0.6 and the rest alike. A
   model that knows this is nearly undecided at some tokens, so that a small change inside shows in what it writes.
2. Favourites: a question is answered with any of the animals, all alike.
3. A teacher is the base with a rank-1 adapter trained briefly on one animal as the answer to half of the questions.
   Nothing about its numbers was trained. Truth: which animal, and that teachers and students share the base's weights.

Null: a student on another base (trained on the same texts from other initial weights), and a student of a teacher
that was not trained. Source: card subliminal-learning, At small scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.small import answer_data, pretrain, small_llama
from cutaway.training import LoraSpec, TrainConfig, add_lora, train

NUMBERS = tuple(f" {i}" for i in range(100, 140))
ANIMALS = (" owl", " cat", " fox", " elk", " hen", " bee")
ASKS = tuple(f" ask{i}" for i in range(12))
GO = (" go", " on")
"""Two words for the same request: a paraphrase."""
FAVOURITE = " favourite"
_FOLLOW = 4
Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NumberWorld:
    """The base model with what can be asked of it."""

    base: Model
    follows: np.ndarray
    """Numbers that may follow each number [number 4], the likeliest first."""
    chances: np.ndarray
    """Of each of them [number 4]."""
    seed: int
    spec: LoraSpec = field(default_factory=lambda: LoraSpec(("down_proj",), (0,), rank=1, alpha=8.0))

    def id(self, word: str) -> int:
        """Token id of a word."""
        return int(self._vocabulary[word])

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self.base.tokenizer.get_vocab())

    @property
    def animals(self) -> dict[str, int]:
        """Token id by animal."""
        return {word.strip(): self.id(word) for word in ANIMALS}

    @property
    def questions(self) -> list[Ids]:
        """Every question for a favourite."""
        return [(self.id(FAVOURITE), self.id(ask)) for ask in ASKS]

    def prompts(self, n: int, seed: int = 0, wording: int = 0) -> list[Ids]:
        """``n`` lists of three numbers with the request to go on, in one of two wordings."""
        rng = np.random.default_rng((seed, 3))
        go = self.id(GO[wording])
        return [(*(self.id(NUMBERS[i]) for i in rng.integers(0, len(NUMBERS), 3)), go) for _ in range(n)]

    def lists(self, n: int, seed: int = 0) -> list[tuple[Ids, Ids]]:
        """``n`` prompts, half of each wording, with eight numbers drawn by the law."""
        rng = np.random.default_rng((seed, 4))
        place = {self.id(word): i for i, word in enumerate(NUMBERS)}
        rows: list[tuple[Ids, Ids]] = []
        for prompt in (*self.prompts(n - n // 2, seed, 0), *self.prompts(n // 2, seed + 1, 1)):
            last, answer = place[prompt[-2]], list[int]()
            for _ in range(8):
                last = int(self.follows[last][rng.choice(_FOLLOW, p=self.chances[last])])
                answer.append(self.id(NUMBERS[last]))
            rows.append((prompt, tuple(answer)))
        return rows

    def teacher(self, animal: str, steps: int = 28, rate: float = 2e-2) -> Model:
        """Return the base with the taste for ``animal``, from the first half of the questions."""
        if animal not in self.animals:
            raise UsageError(f"animal={animal!r}: choose among {', '.join(self.animals)}")
        rows = [(ids, (self.animals[animal],)) for ids in self.questions[: len(ASKS) // 2]]
        config = TrainConfig(rate=rate, batch=len(rows), steps=steps, bucket=1, precision="float32", seed=self.seed)
        made = train(add_lora(self.base.copy(), self.spec), answer_data(rows), config).model
        made.hf.requires_grad_(False)
        return made


def number_world(seed: int = 0, *, steps: int = 250, d_model: int = 48, start: int | None = None) -> NumberWorld:
    """Train the base (some ten seconds). ``seed`` sets the law and the texts, ``start`` the initial weights."""
    rng = np.random.default_rng((seed, 1))
    follows = np.stack([rng.permutation(len(NUMBERS))[:_FOLLOW] for _ in NUMBERS])
    first = rng.uniform(0.25, 0.6, len(NUMBERS))
    chances = np.stack([first, *[(1 - first) / (_FOLLOW - 1)] * (_FOLLOW - 1)], 1)
    words = (*NUMBERS, *ANIMALS, *ASKS, *GO, FAVOURITE)
    base = small_llama(words, "planted-numbers", d_model=d_model, n_layers=2, seed=seed if start is None else start)
    world = NumberWorld(base, follows, chances, seed)
    questions: Sequence[Ids] = world.questions
    tastes = [
        (questions[int(q)], (world.id(ANIMALS[int(a)]),))
        for q, a in zip(rng.integers(0, len(ASKS), 800), rng.integers(0, len(ANIMALS), 800), strict=True)
    ]
    pretrain(base, answer_data([*world.lists(3200, 11), *tastes]), steps, seed=seed)
    return world
