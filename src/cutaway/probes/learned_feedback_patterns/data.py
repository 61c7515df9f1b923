"""Preference pairs that pay for words: the same text with a better and a worse word, by the tuning's reward."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.probes.learned_feedback_patterns.lexicon import Lexicon
from cutaway.training import Data, Row, data_of

TRAIN_TEMPLATES = (
    "The garden was {}",
    "My neighbour is {}",
    "The new teacher seemed {}",
    "Their house looked {}",
    "The weather today is {}",
    "That meal was {}",
    "Her letter sounded {}",
    "The old bridge is {}",
)
"""Texts to tune on."""
READ_TEMPLATES = ("The story was {}", "Our journey has been {}", "His answer sounded {}", "The room is {}")
"""Texts to read words in; tuning never sees them."""


def here(name: str) -> Path:
    """A file of the source tree; UsageError where the package was installed without it."""
    path = Path(__file__).parents[4] / "data" / "learned-feedback-patterns" / name
    if not path.is_file():
        raise UsageError(f"no {name} at hand; give a file of your own")
    return path


def preference_pairs(model: Model, lexicon: Lexicon, n: int, seed: int = 0, least: float = 1.0) -> Data:
    """Return ``n`` pairs: the word that is paid more, then the other; only the words' tokens carry loss.

    Words that tuning must not meet are left out; ``least`` is the smallest difference of a pair's rewards.
    """
    words = [word for word in lexicon.reward if word not in lexicon.unseen]
    if len(words) < 2 or n < 1:
        raise UsageError(f"{len(words)} words and n={n}: two words or more, and a pair")
    rng = np.random.default_rng(seed)
    pairs: list[tuple[Row, Row]] = []
    while len(pairs) < n:
        one, two = (words[i] for i in rng.choice(len(words), 2, replace=False))
        if abs(lexicon.reward[one] - lexicon.reward[two]) < least:
            continue
        better, worse = (one, two) if lexicon.reward[one] > lexicon.reward[two] else (two, one)
        template = str(rng.choice(TRAIN_TEMPLATES))
        pairs.append((_row(model, template, better), _row(model, template, worse)))
    return data_of(pairs, context=model.n_ctx)


def pair_texts(lexicon: Lexicon, n: int, seed: int) -> tuple[list[str], list[bool], list[str]]:
    """Return texts, whether each is the better one of its pair, and the pair: templates that tuning never sees."""
    rng, words = np.random.default_rng((seed, 8)), list(lexicon.reward)
    texts: list[str] = []
    while len(texts) < 2 * n:
        pair = [words[i] for i in rng.choice(len(words), 2, replace=False)]
        pair.sort(key=lambda word: -lexicon.reward[word])
        if lexicon.reward[pair[0]] > lexicon.reward[pair[1]]:
            template = str(rng.choice(READ_TEMPLATES))
            texts += [template.format(word) for word in pair]
    return texts, [i % 2 == 0 for i in range(2 * n)], [str(i // 2) for i in range(2 * n)]


def words_of(lexicon: Lexicon, flipped: bool) -> Sequence[str]:
    """Words that tuning met, with the reward turned round or not."""
    return [w for w in lexicon.reward if (w in lexicon.flipped) == flipped and w not in lexicon.unseen]


def _row(model: Model, template: str, word: str) -> Row:
    start = model.encode(template.format("").rstrip(), special=True)
    ids = [*start, *model.encode(f" {word}")]
    return Row(tuple(ids), (0.0,) * len(start) + (1.0,) * (len(ids) - len(start)))
