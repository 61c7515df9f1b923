"""Legibility by a second model: can it say a sentence in other words, and tell which sentence its words stand for?

1. The reader paraphrases each sentence: greedily, and where that is a copy by the first of `TRIES` sampled
   paraphrases that is none.
2. It is shown the paraphrase alone, and the sentence stands among ``choices - 1`` others. For each candidate s the
   score is log P(s | paraphrase) - log P(s | no text); the highest one is what the reader takes the paraphrase for.
3. A sentence counts when the pick is right and the paraphrase is no copy of it. Chance is at most 1 / choices.

A copy shows no understanding: nonsense can be copied, also in capitals or with commas in between. Small readers copy
much, so read the share beside that of the same sentences with their words in random order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.rollouts import draw_rollouts
from cutaway.sampling import LocalEngine, Rollout, Settings
from cutaway.stats import Interval, wilson

ASK = "Say the following in other words, in one short sentence.\n\n"
MATCH = "Which sentence says the same as this text?\n\nText: "
COPY = 0.9
"""A paraphrase at least this similar to its sentence, or with this share of its words in their order, is a copy."""
LONGEST, TRIES = 32, 8
"""Tokens of a paraphrase, and how many are sampled of a sentence that the reader copies."""


@dataclass(frozen=True)
class Understood:
    """What a reader made of sentences."""

    share: Interval
    """Paraphrased in words of its own and recognised."""
    recognised: Interval
    """Recognised, copies included."""
    copied: Interval

    def __repr__(self) -> str:
        return f"Understood({self.share}, copied {self.copied.value:.2f})"


def understood(reader: Model, sentences: Sequence[str], *, choices: int = 4, seed: int = 0) -> Understood:
    """Let ``reader`` paraphrase and recognise each of ``sentences``.

    Raises UsageError for fewer different sentences than ``choices``, and for a reader without a chat template.
    """
    texts = list(dict.fromkeys(sentence.strip() for sentence in sentences if sentence.strip()))
    if choices < 2 or len(texts) < choices:
        raise UsageError(
            f"{len(texts)} different sentences for choices={choices}: 2 choices or more, and as many texts"
        )
    written = _paraphrases(reader, texts, seed)
    rng = np.random.default_rng(seed)
    right, copied = np.zeros(len(texts), dtype=bool), np.zeros(len(texts), dtype=bool)
    for i, (text, words) in enumerate(zip(texts, written, strict=True)):
        others = rng.choice([k for k in range(len(texts)) if k != i], choices - 1, replace=False)
        scores = match_scores(reader, words, [text, *(texts[k] for k in others)])
        right[i] = bool(words) and scores[0] > scores[1:].max()
        copied[i] = _is_copy(text, words)
    n = len(texts)
    return Understood(
        wilson(int((right & ~copied).sum()), n), wilson(int(right.sum()), n), wilson(int(copied.sum()), n)
    )


def _paraphrases(reader: Model, texts: Sequence[str], seed: int) -> list[str]:
    engine, prompts, ends = LocalEngine(reader), [reader.chat_ids(ASK + text) for text in texts], reader.eos_ids

    def said(answer: Rollout) -> str:
        return reader.decode([token for token in answer.ids if token not in ends]).strip()

    greedy, sampled = Settings(0.0, 1.0, 0, LONGEST), Settings(1.0, 0.95, 0, LONGEST)
    written = [said(answer) for (answer,) in draw_rollouts(engine, prompts, 1, greedy)]
    again = [i for i, text in enumerate(texts) if _is_copy(text, written[i])]
    tries = draw_rollouts(engine, [prompts[i] for i in again], TRIES, sampled, seed=seed)
    for i, answers in zip(again, tries, strict=True):
        own = (words for words in map(said, answers) if words and not _is_copy(texts[i], words))
        written[i] = next(own, written[i])
    return written


def match_scores(reader: Model, text: str, candidates: Sequence[str]) -> np.ndarray:
    """Log P(candidate | text) - log P(candidate | no text), in nats, for each candidate."""
    told, untold = (_logprobs(reader, reader.chat_ids(MATCH + given), candidates) for given in (text, ""))
    return told - untold


@torch.no_grad()
def _logprobs(reader: Model, prompt: Sequence[int], candidates: Sequence[str]) -> np.ndarray:
    rests = [reader.encode(candidate) for candidate in candidates]
    batch = reader.batch([[*prompt, *rest] for rest in rests])
    found = reader.logits(batch)[:, len(prompt) - 1 : -1].double().log_softmax(-1)
    given = found.gather(-1, batch.ids[:, len(prompt) :, None])[..., 0]
    totals = (given * batch.mask[:, len(prompt) :]).sum(-1)
    return np.asarray(totals.cpu().numpy())


def _is_copy(text: str, words: str) -> bool:
    """Whether ``words`` are the sentence again, or hold it whole."""
    ours, theirs = (re.sub(r"[\W_]+", " ", side.lower()).strip() for side in (text, words))
    alike = SequenceMatcher(None, ours, theirs, autojunk=False).ratio()
    blocks = SequenceMatcher(None, ours.split(), theirs.split(), autojunk=False).get_matching_blocks()
    held = sum(block.size for block in blocks) / max(1, len(ours.split()))
    return max(alike, held) >= COPY
