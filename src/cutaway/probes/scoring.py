"""How well scores part two classes, and what an alarm costs: areas, differences of areas, conformal thresholds.

Intervals of areas are DeLong's; where rows come in groups (a passage, a template's item) Obuchowski's, which sums a
group's placements first. Source: cards tpc, safetynet and sae-answerability, sections Metrics.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats as scipy_stats

from cutaway.errors import UsageError
from cutaway.stats import Interval


def auroc(
    labels: Bool[np.ndarray, " label"],
    scores: Float[np.ndarray, " row"],
    level: float = 0.95,
    clusters: np.ndarray | None = None,
) -> Interval:
    """Area under the curve with its interval; ties count half. UsageError for scores that are nan."""
    found = _area(labels, _placements(labels, scores), level, clusters)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def auroc_difference(
    labels: Bool[np.ndarray, " label"],
    ours: Float[np.ndarray, " row"],
    other: Float[np.ndarray, " row"],
    level: float = 0.95,
    clusters: np.ndarray | None = None,
) -> Interval:
    """AUROC of ``ours`` less that of ``other`` on the same rows, paired."""
    (a, b), (c, d) = _placements(labels, ours), _placements(labels, other)
    return _area(labels, (a - c, b - d), level, clusters)


def area_gains(
    labels: Bool[np.ndarray, " row"], scores: Float[np.ndarray, "order row"], level: float = 0.95
) -> tuple[Interval, ...]:
    """AUROC of each later row of scores less that of the first, paired; all intervals hold together with ``level``."""
    each = 1 - (1 - level) / max(1, len(scores) - 1)
    return tuple(auroc_difference(labels, row, scores[0], each) for row in scores[1:])


def alarm_threshold(negatives: Float[np.ndarray, " row"], rate: float) -> float | None:
    """Return the score that a new negative exceeds with probability at most ``rate``; None where there are too few.

    The k-th largest of n with k = floor(rate * (n + 1)): conformal, so it holds for exchangeable rows of any kind.
    """
    k = math.floor(rate * (len(negatives) + 1) + 1e-9)
    return None if k < 1 else float(np.sort(negatives)[-k])


def recall_at(
    negatives: Float[np.ndarray, " row"], positives: Float[np.ndarray, " positive"], rate: float
) -> float | None:
    """Share of positives above the threshold that ``negatives`` give for ``rate``; None where these are too few."""
    threshold = alarm_threshold(negatives, rate)
    return None if threshold is None else float(np.mean(positives > threshold))


def calibration_error(labels: Bool[np.ndarray, " row"], logits: Float[np.ndarray, " row"], bins: int = 10) -> float:
    """Expected calibration error of sigmoid(logits): bins of equal count, |mean probability - share positive|."""
    probability = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
    parts = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(labels)))
    gaps = [len(part) * abs(float(probability[part].mean() - labels[part].mean())) for part in parts]
    return float(sum(gaps) / len(labels))


def _placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, and of positives above each negative."""
    if labels.shape != scores.shape:
        raise UsageError(f"{labels.size} labels and {scores.size} scores: give one of each")
    if not np.isfinite(scores).all():
        raise UsageError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are nan or infinite")
    above, below = scores[labels], scores[~labels]
    ranks = scipy_stats.rankdata(np.concatenate([above, below]))
    by_positive = (ranks[: len(above)] - scipy_stats.rankdata(above)) / max(1, len(below))
    by_negative = 1 - (ranks[len(above) :] - scipy_stats.rankdata(below)) / max(1, len(above))
    return by_positive, by_negative


def _area(
    labels: np.ndarray, placed: tuple[np.ndarray, np.ndarray], level: float, clusters: np.ndarray | None
) -> Interval:
    by_positive, by_negative = placed
    m, n = len(by_positive), len(by_negative)
    if m < 2 or n < 2:
        return Interval(float("nan"), float("nan"), float("nan"), m + n, level)
    value = float(by_positive.mean())
    if clusters is None:
        groups = m + n
        variance = by_positive.var(ddof=1) / m + by_negative.var(ddof=1) / n
    else:
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        groups = int(member.max()) + 1
        pulls = np.bincount(member[labels], (by_positive - value) / m, groups)
        pulls += np.bincount(member[~labels], (by_negative - value) / n, groups)
        variance = float(np.sum(pulls**2)) * groups / max(1, groups - 1)
    half = float(scipy_stats.norm.ppf((1 + level) / 2) * math.sqrt(variance))
    return Interval(value, value - half, value + half, groups, level)
