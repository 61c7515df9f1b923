"""Intervals for proportions, means and differences. What cannot be known is nan, never zero.

An empty sample gives value nan; its interval is [0, 1] for a proportion (nothing is known), nan for a mean.
A mean of one value, or of one cluster, has a value and no interval (nan ends).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from cutaway.errors import UsageError
from cutaway.stats.values import Number, Values, check_level


@dataclass(frozen=True, repr=False)
class Interval:
    """An estimate with its interval; ``n`` counts what the estimate rests on (see each function)."""

    value: float
    low: float
    high: float
    n: int
    level: float

    def __repr__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson(k: Number, n: Number, level: float = 0.95) -> Interval:
    """Score interval of a proportion, ``k`` of ``n`` (Wilson 1927): near the nominal level on average."""
    _check_counts(k, n, level)
    if n == 0:
        return Interval(np.nan, 0.0, 1.0, 0, level)
    z, p = stats.norm.ppf((1 + level) / 2), k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low = 0.0 if k == 0 else float(centre - half)
    high = 1.0 if k == n else float(centre + half)
    return Interval(float(p), low, high, int(n), level)


def clopper_pearson(k: Number, n: Number, level: float = 0.95) -> Interval:
    """Exact interval of a proportion, ``k`` of ``n``: covers with at least the nominal level everywhere."""
    _check_counts(k, n, level)
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.isf(tail, k + 1, n - k))
    return Interval(float(k / n) if n else np.nan, low, high, int(n), level)


def newcombe(k1: Number, n1: Number, k2: Number, n2: Number, level: float = 0.95) -> Interval:
    """Difference of two independent proportions, ``k1 / n1 - k2 / n2`` (Newcombe 1998, from Wilson ends).

    ``n`` is the smaller sample. An empty sample gives value nan and the widest interval, [-1, 1].
    """
    a, b = wilson(k1, n1, level), wilson(k2, n2, level)
    if n1 == 0 or n2 == 0:
        return Interval(np.nan, -1.0, 1.0, 0, level)
    value = a.value - b.value
    low = value - np.hypot(a.value - a.low, b.high - b.value)
    high = value + np.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, float(low), float(high), int(min(n1, n2)), level)


def mean_interval(values: Values, level: float = 0.95, clusters: Values | None = None) -> Interval:
    """Mean of ``values`` with a t interval; ``clusters`` (a label per value) makes it robust to correlation.

    The clustered standard error sums residuals within a cluster first (Liang, Zeger 1986, times G / (G - 1))
    and uses G - 1 degrees of freedom; ``n`` is then the number of clusters G.
    """
    check_level(level)
    x = _numbers(values)
    labels = np.arange(x.size) if clusters is None else np.asarray(clusters)
    if labels.shape != x.shape:
        raise UsageError(f"clusters has {labels.size} labels for {x.size} values: give one label per value")
    if x.size == 0:
        return Interval(np.nan, np.nan, np.nan, 0, level)
    _, member = np.unique(labels, return_inverse=True)
    sums = np.bincount(member, weights=x - x.mean())
    groups, mean = len(sums), float(x.mean())
    if groups == 1:
        return Interval(mean, np.nan, np.nan, 1, level)
    error = np.sqrt(groups / (groups - 1) * np.sum(sums**2)) / x.size
    half = float(stats.t.ppf((1 + level) / 2, groups - 1) * error)
    return Interval(mean, mean - half, mean + half, groups, level)


def paired_difference(a: Values, b: Values, level: float = 0.95, clusters: Values | None = None) -> Interval:
    """Mean of ``a[i] - b[i]`` over pairs, as `mean_interval`."""
    x, y = _numbers(a), _numbers(b)
    if x.shape != y.shape:
        raise UsageError(f"a has {x.size} values and b has {y.size}: pairs need one of each")
    return mean_interval(x - y, level, clusters)


def share_interval(values: Values, level: float = 0.95, clusters: Values | None = None) -> Interval:
    """Mean of numbers between 0 and 1, as `mean_interval` but inside 0 and 1 and no narrower than Wilson's.

    Items that all agree have no spread, and yet a handful of them says little about other items. ``n`` counts values,
    or clusters where they are given.
    """
    found = mean_interval(values, level, clusters)
    if not 0 <= found.value <= 1:
        raise UsageError(f"the mean is {found.value:g}: shares lie between 0 and 1")
    return covering(found, wilson(round(found.value * found.n), found.n, level), 0.0, 1.0)


def share_difference(a: Values, b: Values, level: float = 0.95, clusters: Values | None = None) -> Interval:
    """Mean of ``a[i] - b[i]`` for numbers between 0 and 1, as `paired_difference` but no narrower than Newcombe's."""
    found = paired_difference(a, b, level, clusters)
    hits = [round(float(_numbers(side).mean()) * found.n) for side in (a, b)]
    return covering(found, newcombe(hits[0], found.n, hits[1], found.n, level), -1.0, 1.0)


def covering(found: Interval, other: Interval, least: float, most: float) -> Interval:
    """``found``, widened to hold the known ends of ``other`` as well, inside ``least`` and ``most``."""
    low = float(np.nanmin([found.low, other.low, found.value]))
    high = float(np.nanmax([found.high, other.high, found.value]))
    return Interval(found.value, max(low, least), min(high, most), found.n, found.level)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value that discordant pairs split evenly: ``b`` first only, ``c`` second only.

    Without discordant pairs there is no evidence either way and the p-value is 1.
    """
    if b < 0 or c < 0:
        raise UsageError(f"b={b}, c={c}: counts of discordant pairs cannot be negative")
    return 1.0 if b + c == 0 else float(stats.binomtest(b, b + c).pvalue)


def bootstrap(
    values: Values,
    statistic: Callable[[np.ndarray], float],
    *,
    clusters: Values | None = None,
    method: Literal["bca", "percentile"] = "bca",
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of ``statistic(values)``; whole clusters are drawn when ``clusters`` is given.

    ``bca`` corrects bias and skewness (Efron 1987), with jackknife over clusters. When every resample gives
    the same number (or fewer than two clusters exist) the resamples know no interval and both ends are nan.
    """
    check_level(level)
    if method not in {"bca", "percentile"}:
        raise UsageError(f"method={method!r}: choose 'bca' or 'percentile'")
    x = np.asarray(values, dtype=float)
    labels = np.arange(len(x)) if clusters is None else np.asarray(clusters)
    if labels.shape != x.shape[:1]:
        raise UsageError(f"clusters has {labels.size} labels for {len(x)} values: give one label per value")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    value = float(statistic(x)) if len(x) else np.nan
    if len(members) < 2:
        return Interval(value, np.nan, np.nan, len(members), level)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(members), (n, len(members)))
    replicates = np.array([statistic(x[np.concatenate([members[g] for g in row])]) for row in picks])
    if np.ptp(replicates) == 0:
        return Interval(value, np.nan, np.nan, len(members), level)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        left_out = [np.concatenate(members[:g] + members[g + 1 :]) for g in range(len(members))]
        tails = _bca_tails(tails, value, replicates, np.array([statistic(x[rows]) for rows in left_out]))
    low, high = np.quantile(replicates, tails)
    return Interval(value, float(low), float(high), len(members), level)


def _bca_tails(tails: np.ndarray, value: float, replicates: np.ndarray, jackknife: np.ndarray) -> np.ndarray:
    below = np.mean(replicates < value) + np.mean(replicates == value) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / replicates.size, 1 - 0.5 / replicates.size))
    pull = jackknife.mean() - jackknife
    scale = np.sum(pull**2) ** 1.5
    skew = np.sum(pull**3) / (6 * scale) if scale > 0 else 0.0
    shifted = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + shifted / (1 - skew * shifted))


def _check_counts(k: Number, n: Number, level: float) -> None:
    check_level(level)
    if not 0 <= k <= n:
        raise UsageError(f"k={k}, n={n}: k successes in n trials needs 0 <= k <= n")


def _numbers(values: Values) -> np.ndarray:
    x = np.asarray(values, dtype=float).reshape(-1)
    if np.isnan(x).any():
        raise UsageError(f"{int(np.isnan(x).sum())} of {x.size} values are nan: drop or count them first")
    return x
