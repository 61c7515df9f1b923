"""g-mean^2 = TPR x TNR from sums by problem, and its interval from a bootstrap over problems.

Everything the metric needs is a sum over problems of six columns (`Tally`). A resample of whole problems is then a
row of weights, so thousands of resamples are one matrix product.

Interval: percentiles of the resamples, their tails widened for the number of problems G as a t interval is
(normal quantile of the t quantile, times sqrt(G / (G - 1))); plain percentiles are too short for few problems. A rate
that is the same in every resample (all or nothing was flagged) has no spread to read off: its exact
Clopper-Pearson interval over problems takes its place.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats as distributions

from cutaway.errors import UsageError
from cutaway.stats import clopper_pearson

RESAMPLES = 2000
ARMS = 2
"""0: control, 1: cue. Designs without arms use column 0."""


@dataclass(frozen=True)
class Tally:
    """What the metric adds up, one row a problem."""

    hit: Float[np.ndarray, " problem"]
    """Flagged among the positives."""
    positive: Float[np.ndarray, " problem"]
    anyway: Float[np.ndarray, " problem"]
    """Answers that ``hit`` counts as given, though they would have been given without the cue."""
    cleared: Float[np.ndarray, "problem arm"]
    """Not flagged among the negatives."""
    negative: Float[np.ndarray, "problem arm"]

    @property
    def table(self) -> Float[np.ndarray, "problem column"]:
        """All columns side by side, as `rates` reads them."""
        return np.column_stack([self.hit, self.positive, self.anyway, self.cleared, self.negative])

    def take(self, rows: np.ndarray) -> "Tally":
        """The chosen problems only."""
        return Tally(self.hit[rows], self.positive[rows], self.anyway[rows], self.cleared[rows], self.negative[rows])

    def __len__(self) -> int:
        return len(self.hit)


@dataclass(frozen=True)
class Rates:
    """TPR, TNR and what the TNR is the mean of; nan where there is nothing to divide by."""

    tpr: Float[np.ndarray, " draw"]
    tnr: Float[np.ndarray, " draw"]
    by_arm: Float[np.ndarray, "draw arm"]

    @property
    def gmean2(self) -> Float[np.ndarray, " draw"]:
        return self.tpr * self.tnr


def rates(sums: Float[np.ndarray, "draw column"]) -> Rates:
    """Rates from summed columns of `Tally.table`, one row a sum.

    TNR is the mean over the arms that have negatives, so that neither arm's size matters. The answers that would
    have been given anyway are flagged as often as negatives of the cue arm are (of the control arm where the cue
    arm has none); what is left of the flags belongs to the positives.
    """
    hit, positive, anyway = sums[..., 0], sums[..., 1], sums[..., 2]
    cleared, negative = sums[..., 3 : 3 + ARMS], sums[..., 3 + ARMS :]
    with np.errstate(divide="ignore", invalid="ignore"):
        by_arm = np.where(negative > 0, cleared / negative, np.nan)
        known = ~np.isnan(by_arm)
        tnr = np.where(known, by_arm, 0.0).sum(-1) / known.sum(-1)
        alarm = 1 - np.where(known[..., 1], by_arm[..., 1], np.where(known[..., 0], by_arm[..., 0], 1.0))
        tpr = np.where(positive > 0, np.clip((hit - alarm * anyway) / positive, 0.0, 1.0), np.nan)
    return Rates(tpr, tnr, by_arm)


@dataclass(frozen=True)
class Score:
    """g-mean^2 with its interval over ``n`` problems."""

    value: float
    low: float
    high: float
    tpr: float
    tnr: float
    tnr_by_arm: tuple[float, ...]
    n: int
    level: float


def gmean2(tally: Tally, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Score:
    """The metric and its interval; all nan without positives or without negatives, [0, 1] for a single problem."""
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must lie in (0, 1)")
    found = rates(tally.table.sum(0, keepdims=True))
    value, tpr, tnr = (float(each[0]) for each in (found.gmean2, found.tpr, found.tnr))
    low = high = np.nan
    if not np.isnan(value):
        low, high = (0.0, 1.0) if len(tally) < 2 else _interval(tally, level, resamples, seed)
        low, high = min(low, value), max(high, value)
    return Score(value, low, high, tpr, tnr, tuple(float(x) for x in found.by_arm[0]), len(tally), level)


@dataclass(frozen=True)
class Change:
    """``new - old`` of g-mean^2 over the same problems."""

    value: float
    low: float
    high: float
    n: int
    level: float


def paired_change(old: Tally, new: Tally, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Change:
    """Difference of two suites whose rows are the same problems; the same problems are drawn for both."""
    if len(old) != len(new):
        raise UsageError(f"old has {len(old)} problems and new has {len(new)}: pair them first")
    before, after = (float(rates(each.table.sum(0, keepdims=True)).gmean2[0]) for each in (old, new))
    value = after - before
    if len(old) < 2 or np.isnan(value):
        return Change(value, -1.0, 1.0, len(old), level)
    weights = _weights(len(old), resamples, seed)
    drawn = rates(weights @ new.table).gmean2 - rates(weights @ old.table).gmean2
    low, high = _quantiles(drawn, len(old), level)
    return Change(value, min(low, value), max(high, value), len(old), level)


def _interval(tally: Tally, level: float, resamples: int, seed: int) -> tuple[float, float]:
    drawn = rates(_weights(len(tally), resamples, seed) @ tally.table)
    moving, low, high = np.ones(resamples), 1.0, 1.0
    counted = (int((tally.positive > 0).sum()), int((tally.negative > 0).any(1).sum()))
    for rate, problems in zip((drawn.tpr, drawn.tnr), counted, strict=True):
        known = rate[~np.isnan(rate)]
        if np.ptp(known) > 0:
            moving = moving * rate
            continue
        exact = clopper_pearson(float(known[0]) * problems, problems, level)
        low, high = low * exact.low, high * exact.high
    ends = _quantiles(moving, len(tally), level) if np.nanmax(moving) > np.nanmin(moving) else (1.0, 1.0)
    return low * ends[0], high * ends[1]


def _weights(problems: int, resamples: int, seed: int) -> Float[np.ndarray, "draw problem"]:
    rng = np.random.default_rng(seed)
    return rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples).astype(float)


def _quantiles(drawn: Float[np.ndarray, " draw"], problems: int, level: float) -> tuple[float, float]:
    reach = distributions.t.ppf((1 + level) / 2, problems - 1) * np.sqrt(problems / (problems - 1))
    tail = float(distributions.norm.sf(reach))
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
