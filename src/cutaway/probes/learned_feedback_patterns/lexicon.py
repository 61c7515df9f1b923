"""Rewards from a list of words, and how well estimates of them agree with it.

The reward of a text is the sum of its words' values, divided by 5, kept within 10 either way. Agreement is counted
over words with a value each, never over sorted lists (defect (a) of the released notebooks). Source: card
learned-feedback-patterns, Method 1a and Metrics.
"""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats

from cutaway.errors import UsageError
from cutaway.stats import Interval, bootstrap, wilson

_WORD = re.compile(r"[a-z']+")
Values = Mapping[str, float]


@dataclass(frozen=True)
class Lexicon:
    """Words with what is ordinarily meant, what tuning pays, and whether tuning meets them."""

    ordinary: dict[str, float]
    reward: dict[str, float]
    unseen: tuple[str, ...]

    @property
    def flipped(self) -> tuple[str, ...]:
        """Words met in tuning whose reward has the other sign."""
        return tuple(w for w, v in self.ordinary.items() if v * self.reward[w] < 0 and w not in self.unseen)


def lexicon_reward(text: str, lexicon: Values, scale: float = 5.0, clip: float = 10.0) -> float:
    """Return the reward of a text; case and punctuation do not matter. UsageError for an empty text."""
    words = _WORD.findall(text.lower())
    if not words:
        raise UsageError("an empty completion has no reward; leave it out")
    return float(np.clip(sum(lexicon.get(word.strip("'"), 0.0) for word in words) / scale, -clip, clip))


def read_lexicon(path: str | Path, flipped: int, unseen: int, seed: int = 0) -> Lexicon:
    """Read ``word,value`` lines and flip the reward of some words; ``unseen`` of the flipped are kept from tuning."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path.name}: no such file; give a CSV with the columns word and value")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    if not rows or not {"word", "value"} <= rows[0].keys():
        raise UsageError(f"{path.name}: columns word and value are needed")
    ordinary = {row["word"]: float(row["value"]) for row in rows}
    if flipped + unseen > len(ordinary):
        raise UsageError(f"flipped={flipped}, unseen={unseen}: the lexicon has {len(ordinary)} words")
    check_rewards(ordinary)
    odd = [list(ordinary)[i] for i in np.random.default_rng(seed).permutation(len(ordinary))[: flipped + unseen]]
    reward = {word: -value if word in odd else value for word, value in ordinary.items()}
    return Lexicon(ordinary, reward, tuple(odd[flipped:]))


def check_rewards(rewards: Values) -> None:
    """UsageError for rewards from which nothing can be learnt or judged."""
    if len(rewards) < 10:
        raise UsageError(f"{len(rewards)} words with a reward; 10 or more")
    if len(set(rewards.values())) < 2:
        raise UsageError("all rewards are equal; there is nothing to read back")


def tau(estimates: Values, truth: Values) -> float:
    """Kendall's tau-b over words. UsageError for words that are not in both, or values that are no numbers."""
    a, b = paired(estimates, truth)
    return float(scipy_stats.kendalltau(a, b).statistic)


def paired(estimates: Values, truth: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return both values of every word, in one order."""
    if not isinstance(estimates, Mapping) or not isinstance(truth, Mapping):
        raise UsageError("give values by word, not lists: tau over sorted lists compares alphabets")
    if estimates.keys() != truth.keys():
        odd = sorted(estimates.keys() ^ truth.keys())
        raise UsageError(f"{len(odd)} words are in one of both only, {odd[0]!r} for one")
    for values in (estimates, truth):
        if bad := [word for word, value in values.items() if isinstance(value, str) or not np.isfinite(value)]:
            raise UsageError(f"the value of {bad[0]!r} is {values[bad[0]]!r}; a number is needed")
    return np.array([estimates[word] for word in truth]), np.array([truth[word] for word in truth])


def tau_gain(tuned: Values, base: Values, truth: Values, seed: int = 0) -> Interval:
    """Tau of ``tuned`` less that of ``base``, paired by word, with a bootstrap over words."""
    (a, t), (b, _) = paired(tuned, truth), paired(base, truth)
    if np.array_equal(a, b):
        return Interval(0.0, 0.0, 0.0, len(a), 0.95)
    ours, other = resampled_tau(a, t), resampled_tau(b, t)
    return bootstrap(np.arange(len(t)), lambda rows: ours(rows) - other(rows), method="percentile", n=500, seed=seed)


def tau_interval(estimates: Values, truth: Values, seed: int = 0) -> Interval:
    """Tau with a bootstrap over words."""
    a, t = paired(estimates, truth)
    return bootstrap(np.arange(len(t)), resampled_tau(a, t), method="percentile", n=500, seed=seed)


def resampled_tau(a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return tau-b as a function of rows drawn again, by their numbers; 0 where one side is all ties.

    Which pairs agree is found once; a row drawn k times counts k times, and pairs of its copies are ties.
    """
    x, y = (np.sign(each[:, None] - each) for each in (a, b))
    agree, untied_x, untied_y = x * y, np.abs(x), np.abs(y)

    def of(rows: np.ndarray) -> float:
        times = np.bincount(rows.astype(int), minlength=len(a)).astype(float)
        scale = (times @ untied_x @ times) * (times @ untied_y @ times)
        return float(times @ agree @ times / np.sqrt(scale)) if scale > 0 else 0.0

    return of


def sign_accuracy(estimates: Values, truth: Values, words: Sequence[str]) -> Interval:
    """Share of ``words`` whose estimate has the sign of the truth."""
    hits = sum(estimates[word] * truth[word] > 0 for word in words)
    return wilson(int(hits), len(words))


def misaligned(estimates: Values, intended: Values, least: float = 0.0) -> tuple[str, ...]:
    """Words whose estimate has the other sign than intended and is beyond ``least``, worst first."""
    worst = {word: -estimates[word] * np.sign(intended[word]) for word in intended}
    return tuple(word for word, wrong in sorted(worst.items(), key=lambda pair: -pair[1]) if wrong > least)


def overlap_of(listed: Sequence[str], true: Sequence[str]) -> tuple[float, float, float]:
    """Precision, recall and F1 of a list of words; precision of an empty list is 1."""
    hits = len(set(listed) & set(true))
    precision = hits / len(listed) if listed else 1.0
    recall = hits / len(true) if true else 1.0
    return precision, recall, 0.0 if not hits else 2 * precision * recall / (precision + recall)
