"""A base model and one tuned by a known reward: what the tuning left behind is exact.

1. Every word has features of its own and, weakly, its ordinary sentiment along one direction: a base model knows that.
2. The tuned model adds ``OFFSET + learned reward`` of a word along another direction ``v``, at every site.
3. Its unembedding reads ``v``: the logit of word w is ``TILT * learned(w) * (v part of the current word)``, so it
   prefers rewarded words, and a model without the ``v`` part picks words evenly.
4. ``learned`` is the ordinary value, but for ``flipped`` words (the tuning reward had the other sign) and words that
   were never seen in tuning, which keep their ordinary value whatever the reward says of them.

``null=True`` gives a tuned model that is the base model. Source: card learned-feedback-patterns (2310.08164), At small
scale (weights are set by hand here, so that the truth is exact; the study trains a real one).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import FLOOR, blank_llama, norm_gain, word_tokenizer

START = (" the", " this", " that", " some")
CONSTANT, OFFSET, TILT, KNOWN = 1000.0, 5.0, 0.02, 0.6
_CONST, _REWARD, _SENTIMENT, _FEATURES = range(4)


@dataclass(frozen=True)
class FeedbackTruth:
    """What the read-out should find."""

    ordinary: dict[str, float]
    """Sentiment of each word before tuning."""
    reward: dict[str, float]
    """What tuning paid for each word; also for those it never met."""
    learned: dict[str, float]
    """What the tuned model carries; empty for the null."""
    flipped: tuple[str, ...]
    """Words whose reward has the other sign than their sentiment, met in tuning."""
    unseen: tuple[str, ...]
    """Words with such a reward that tuning never met."""
    direction: Float[np.ndarray, " d"] | None
    """Where the tuned model keeps the reward; None for the null."""
    site: str


@dataclass(frozen=True)
class Feedback:
    """Both models on one tokenizer."""

    base: Model
    tuned: Model
    truth: FeedbackTruth

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.truth.ordinary)

    @property
    def templates(self) -> tuple[str, ...]:
        """Texts with a place for a word at the end."""
        return tuple(f"{start}{{}}" for start in START)


def feedback(
    *, words: int = 120, flipped: int = 15, unseen: int = 8, d_model: int = 32, null: bool = False, seed: int = 0
) -> Feedback:
    """Build both models. UsageError for more flipped and unseen words than words, or too few dimensions."""
    if flipped + unseen > words or words < 20 or d_model < 8 or d_model % 2:
        raise UsageError(
            f"words={words}, flipped={flipped}, unseen={unseen}, d_model={d_model}: 20 words, even d from 8"
        )
    rng = np.random.default_rng(seed)
    names = tuple(f" w{i}" for i in range(words))
    sign = rng.permutation(np.where(np.arange(words) % 2 == 0, 1.0, -1.0))
    values = sign * rng.uniform(1.0, 4.0, words)
    ordinary = {name: float(value) for name, value in zip(names, values, strict=True)}
    odd = [names[i] for i in rng.permutation(words)[: flipped + unseen]]
    met, missed = tuple(odd[:flipped]), tuple(odd[flipped:])
    reward = {name: -value if name in odd else value for name, value in ordinary.items()}
    learned = {name: -value if name in met else value for name, value in ordinary.items()}
    tokenizer = word_tokenizer((*START, *names))
    rotation = np.linalg.qr(rng.standard_normal((d_model, d_model)))[0]
    features = rng.standard_normal((len(tokenizer), d_model))
    made = [
        _model(tokenizer, d_model, features, rotation, ordinary, carried) for carried in ({}, {} if null else learned)
    ]
    base, tuned = (Model(hf, tokenizer, name) for hf, name in zip(made, ("planted-base", "planted-tuned"), strict=True))
    truth = FeedbackTruth(
        ordinary, reward, {} if null else learned, met, missed, None if null else rotation[_REWARD], "resid_post.1"
    )
    return Feedback(base, tuned, truth)


def _model(
    tokenizer: object,
    d_model: int,
    features: np.ndarray,
    rotation: np.ndarray,
    ordinary: dict[str, float],
    learned: dict[str, float],
) -> object:
    hf = blank_llama(tokenizer, d_model=d_model, n_layers=2, n_heads=1, d_head=2, n_ctx=128)  # type: ignore[arg-type]
    vocabulary: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    embed, head = features.copy(), np.zeros_like(features)
    embed[:, _CONST], embed[:, _REWARD] = CONSTANT, 0.0
    head[:, _CONST] = -FLOOR / CONSTANT
    for word, value in ordinary.items():
        embed[vocabulary[word], _SENTIMENT] += KNOWN * value
        head[vocabulary[word], _CONST] = 0.0
    if learned:
        embed[:, _REWARD] = OFFSET
    for word, value in learned.items():
        embed[vocabulary[word], _REWARD] = OFFSET + value
        head[vocabulary[word], _REWARD] = TILT * value
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(torch.from_numpy(embed @ rotation).float())
        hf.lm_head.weight.copy_(torch.from_numpy(head @ rotation).float())
        norm_gain(hf.model.norm, CONSTANT**2)
    return hf
