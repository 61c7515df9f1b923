"""A model in which there is nothing to find: random weights, and labels drawn by coin."""

from dataclasses import dataclass

import numpy as np

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import quiet_llama, scatter
from cutaway.planted.direction import linear_direction


@dataclass(frozen=True)
class NullTruth:
    """Labels are independent of texts, so no method can do better than these rates."""

    accuracy: float
    auc: float


@dataclass(frozen=True)
class NullModel:
    """Random weights behind a planted model's tokenizer, with texts and unrelated labels."""

    model: Model
    truth: NullTruth

    def texts(self, n: int, *, length: int = 8, seed: int = 0) -> list[str]:
        """``n`` texts of ``length`` words drawn from the tokenizer's words."""
        vocabulary = self.model.tokenizer.get_vocab()
        words = sorted(word for word in vocabulary if word.startswith(" ") and len(word) > 2)
        rng = np.random.default_rng((seed, 0))
        return ["".join(rng.choice(words, length)) for _ in range(n)]

    def labels(self, n: int, *, seed: int = 0) -> np.ndarray:
        """``n`` fair coin tosses [n], 0 or 1."""
        return np.random.default_rng((seed, 1)).integers(0, 2, n)


def null_model(like: Model | None = None, *, spread: float = 0.2, seed: int = 0) -> NullModel:
    """Build a model of the same shape and tokenizer as ``like`` (default: the planted direction) with random
    weights.

    Weights are normal with standard deviation ``spread``, norms are 1; the global random state is not
    touched.
    """
    source = linear_direction().model if like is None else like
    if source.hf.config.model_type != "llama":
        raise UsageError(f"null_model(like={source.name!r}): a {source.hf.config.model_type} model; give a Llama")
    hf = scatter(quiet_llama(source.hf.config), spread, seed)
    return NullModel(Model(hf, source.tokenizer, f"null-{source.name}"), NullTruth(0.5, 0.5))
