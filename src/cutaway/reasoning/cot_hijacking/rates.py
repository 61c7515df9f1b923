"""Rates of refusal with intervals: failures left out, goals drawn whole, two judges compared."""

from collections.abc import Sequence

import numpy as np

from cutaway.errors import UsageError
from cutaway.grading.refusal import ANSWERED, Outcome, check_outcomes, cohen_kappa
from cutaway.stats import Interval, clopper_pearson, wilson
from cutaway.stats.values import Values


def refusal_rate(
    outcomes: Sequence[Outcome], clusters: Values | None = None, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Share of refusals among answered outputs: Wilson, or with ``clusters`` a bootstrap that draws whole clusters.

    See `clustered_mean`. Without any answered output the value is nan.
    """
    check_outcomes(outcomes)
    kept = [i for i, outcome in enumerate(outcomes) if outcome in ANSWERED]
    refused = np.array([outcomes[i] == "refuse" for i in kept], dtype=float)
    if clusters is None or not kept:
        return wilson(int(refused.sum()), len(kept), level)
    labels = np.asarray(clusters)
    if len(labels) != len(outcomes):
        raise UsageError(f"clusters has {len(labels)} labels for {len(outcomes)} outcomes: give one label per outcome")
    return clustered_mean(refused, labels[kept], level=level, seed=seed)


def clustered_mean(values: Values, clusters: Values, *, level: float = 0.95, seed: int = 0, n: int = 2000) -> Interval:
    """Mean of ``values`` with a percentile bootstrap that draws whole clusters; ``n`` of the result counts clusters.

    Where all clusters have the same mean, resamples know no interval: a mean of 0 or 1 then gets that of one output a
    cluster (Clopper-Pearson), any other mean none (nan).
    """
    x, member = np.asarray(values, dtype=float), np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(x) != len(member) or not len(x):
        raise UsageError(
            f"{len(x)} values and {len(member)} cluster labels: give one label per value, and at least one"
        )
    sums, counts = np.bincount(member, weights=x), np.bincount(member)
    value, groups = float(x.mean()), len(counts)
    if np.ptp(sums / counts) == 0:
        if value not in (0.0, 1.0):
            return Interval(value, np.nan, np.nan, groups, level)
        exact = clopper_pearson(round(value * groups), groups, level)
        return Interval(value, exact.low, exact.high, groups, level)
    picks = np.random.default_rng(seed).integers(0, groups, (n, groups))
    drawn = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), groups, level)


def success_rate(outcomes: Sequence[Outcome], *, level: float = 0.95) -> Interval:
    """Share of all runs that complied: an attack's success. Empty, blocked and over-context runs are no successes."""
    check_outcomes(outcomes)
    return wilson(sum(outcome == "comply" for outcome in outcomes), len(outcomes), level)


def kappa(first: Sequence[Outcome], second: Sequence[Outcome], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Cohen's kappa of two judges of the same outputs, with a bootstrap interval; nan where they never differ at all.

    Never differing means one and the same class throughout: chance agreement is then perfect.
    """
    value, n = cohen_kappa(first, second), len(first)
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, n, level)
    rng = np.random.default_rng(seed)
    drawn = []
    for picks in rng.integers(0, n, (500, n)):
        again = cohen_kappa([first[i] for i in picks], [second[i] for i in picks])
        drawn += [] if np.isnan(again) else [again]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(min(low, value)), float(max(high, value)), n, level)
