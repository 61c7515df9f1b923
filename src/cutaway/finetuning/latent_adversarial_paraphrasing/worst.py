"""Original, average, best and worst score over phrasings of a query, and what noise does to the worst.

The minimum over noisy scores is biased down: even a model that is equally good at all phrasings shows a gap. With
several samples of each score, the worst phrasing is picked on one half and scored on the other, then the halves change
roles. With greedy decoding or exact log-probabilities there is no noise and the plain minimum is right.

Source: card latent-adversarial-paraphrasing, Metrics.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.stats import Interval, mean_interval

PHRASINGS = 11


@dataclass(frozen=True, eq=False)
class Consistency:
    """Scores of queries by phrasing; phrasing 0 is the original."""

    scores: Float[np.ndarray, "query phrasing"]

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape[1] < 2 or not len(self.scores):
            raise UsageError(f"scores of shape {list(self.scores.shape)}: [query phrasing], 2 phrasings or more")
        if not np.isfinite(self.scores).all():
            raise UsageError("scores: all must be finite")

    def __repr__(self) -> str:
        worst, average = self.interval("worst"), self.interval("average")
        return f"Consistency(worst {worst!r}, average {average!r}, {len(self.scores)} queries)"

    def each(self, which: str) -> Float[np.ndarray, " query"]:
        """Return ``original``, ``average``, ``worst``, ``best`` or ``spread`` (standard deviation) of every query."""
        found = {
            "original": self.scores[:, 0],
            "average": self.scores.mean(1),
            "worst": self.scores.min(1),
            "best": self.scores.max(1),
            "spread": self.scores.std(1),
        }
        if which not in found:
            raise UsageError(f"which={which!r}; choose {', '.join(found)}")
        return found[which]

    def interval(self, which: str, level: float = 0.95) -> Interval:
        """Return the mean over queries with its interval."""
        return mean_interval(self.each(which), level)


def naive_worst(samples: Float[np.ndarray, "query phrasing sample"]) -> Float[np.ndarray, " query"]:
    """Return each query's smallest mean score: biased down by sampling noise."""
    _check(samples)
    return samples.mean(2).min(1)


def split_worst(samples: Float[np.ndarray, "query phrasing sample"]) -> Float[np.ndarray, " query"]:
    """Return each query's score on the phrasing that was worst on the other half of its samples, both ways round.

    Unbiased for equal true scores; where they differ it errs upwards, since the worst may be missed.
    """
    _check(samples)
    halves = [samples[:, :, part::2].mean(2) for part in (0, 1)]
    rows = np.arange(len(samples))
    both = [halves[1 - part][rows, halves[part].argmin(1)] for part in (0, 1)]
    return np.asarray((both[0] + both[1]) / 2)


def read_phrasings(path: str | Path, phrasings: int = PHRASINGS) -> list[tuple[str, ...]]:
    """Return queries with their phrasings, the original first, from JSON lines with ``instruction``, ``paraphrases``.

    Raises UsageError, with the line, for one that is no such object, has another number of phrasings, an empty or a
    repeated one.
    """
    found: list[tuple[str, ...]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            found.append(_phrasings(line, f"{Path(path).name}, line {number}", phrasings))
    if not found:
        raise UsageError(f"{Path(path).name} holds no queries")
    originals = [query[0] for query in found]
    if twice := next((text for text in originals if originals.count(text) > 1), None):
        raise UsageError(f"{Path(path).name}: the query {twice[:60]!r} stands there twice")
    return found


def _phrasings(line: str, where: str, phrasings: int) -> tuple[str, ...]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: no JSON ({error.msg})") from error
    if not isinstance(item, Mapping) or not isinstance(item.get("paraphrases"), Sequence):
        raise UsageError(f"{where}: an object with instruction and paraphrases is needed")
    texts = [item.get("instruction"), *item["paraphrases"]]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UsageError(f"{where}: every phrasing needs text")
    if len(texts) != phrasings:
        raise UsageError(f"{where}: {len(texts)} phrasings, the original included; {phrasings} are needed")
    if len(set(texts)) < len(texts):
        raise UsageError(f"{where}: a phrasing stands there twice")
    return tuple(texts)


def _check(samples: np.ndarray) -> None:
    if samples.ndim != 3 or samples.shape[2] < 2:
        raise UsageError(f"samples of shape {list(samples.shape)}: [query phrasing sample], 2 samples or more")
