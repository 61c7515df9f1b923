"""Survival with censoring: how long until it ends, when some were still going when watching stopped.

Kaplan and Meier 1958, by `scipy.stats.ecdf`; this module adds the median with its interval and the restricted mean.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from cutaway.errors import UsageError
from cutaway.stats.intervals import Interval
from cutaway.stats.values import Number, Values, check_level


@dataclass(frozen=True, repr=False)
class Survival:
    """P(still going after each time), with its interval.

    The interval is log-log (Greenwood). Where that formula has no answer, because none or all of those at risk ended,
    the exact binomial bound of such a sample stands in.
    """

    times: Float[np.ndarray, " time"]
    """The distinct times at which something ended or was censored, rising."""
    survival: Float[np.ndarray, " time"]
    """P(T > time)."""
    low: Float[np.ndarray, " time"]
    high: Float[np.ndarray, " time"]
    at_risk: Int[np.ndarray, " time"]
    """How many were still watched just before the time."""
    ended: Int[np.ndarray, " time"]
    n: int
    censored: int
    level: float

    def __repr__(self) -> str:
        return f"Survival(median {self.median()!r}, n={self.n}, {self.censored} censored)"

    def at(self, time: Number) -> float:
        """P(T > time); the last known value beyond the last time."""
        return float(self.survival[np.searchsorted(self.times, time, side="right") - 1]) if self._begun(time) else 1.0

    def median(self) -> Interval:
        """Smallest time with P(T > time) <= 1/2, with the times at which the band crosses 1/2.

        nan where the curve never falls that far; an end of the interval is infinite where its band never does.
        """
        value = self._crossing(self.survival)
        low, high = self._crossing(self.low), self._crossing(self.high)
        return Interval(value if np.isfinite(value) else np.nan, low, high, self.n, self.level)

    def restricted_mean(self, horizon: Number) -> Interval:
        """Mean of min(T, horizon): the area under the curve up to ``horizon``, with Greenwood's variance.

        Nothing is assumed about what happens later. Where nothing varies the interval is the area under the curve's
        own band. UsageError when the last one was censored before ``horizon``: the curve is unknown up to there.
        """
        if horizon <= 0:
            raise UsageError(f"horizon={horizon}: must lie above 0")
        if self.survival[-1] > 0 and self.times[-1] < horizon:
            raise UsageError(f"horizon={horizon}: nothing was watched beyond {self.times[-1]:g}; lower the horizon")
        later = np.cumsum(self._pieces(self.survival, horizon)[::-1])[::-1]
        survivors = np.maximum(self.at_risk - self.ended, 1)
        spread = np.sum(later[1:] ** 2 * self.ended / (self.at_risk * survivors))
        value = float(later[0])
        if spread == 0:
            ends = [float(self._pieces(curve, horizon).sum()) for curve in (self.low, self.high)]
            return Interval(value, ends[0], ends[1], self.n, self.level)
        half = float(stats.norm.ppf((1 + self.level) / 2) * np.sqrt(spread))
        return Interval(value, max(0.0, value - half), min(float(horizon), value + half), self.n, self.level)

    def _pieces(self, curve: Float[np.ndarray, " time"], horizon: Number) -> Float[np.ndarray, " piece"]:
        edges = np.concatenate([[0.0], np.minimum(self.times, horizon), [horizon]])
        return np.diff(edges) * np.concatenate([[1.0], curve])

    def _begun(self, time: Number) -> bool:
        return bool(time >= self.times[0])

    def _crossing(self, curve: np.ndarray) -> float:
        below = np.flatnonzero(curve <= 0.5)
        return float(self.times[below[0]]) if below.size else np.inf


def kaplan_meier(times: Values, ended: Values, level: float = 0.95) -> Survival:
    """Survival curve of ``times``; ``ended[i]`` is False where watching stopped before the end (censored there).

    What ends and what is censored at the same time is taken in this order. UsageError without any observation,
    or for a negative time.

    >>> kaplan_meier([1, 2, 2, 3], [True, True, False, True]).survival.round(3)
    array([0.75, 0.5 , 0.  ])
    """
    check_level(level)
    at, done = np.asarray(times, dtype=float), np.asarray(ended, dtype=bool)
    if at.ndim != 1 or at.shape != done.shape or not at.size:
        raise UsageError(f"times has {at.size} entries and ended {done.size}: give one of each, at least one")
    if not np.all(at >= 0):
        raise UsageError("times must be numbers, none negative or nan")
    sample = stats.CensoredData(uncensored=at[done], right=at[~done])
    curve = stats.ecdf(sample).sf
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The confidence interval is undefined")
        band = curve.confidence_interval(confidence_level=level, method="log-log")
    points = curve.quantiles
    at_risk = np.array([(at >= t).sum() for t in points], dtype=np.int64)
    low, high = _filled(curve.probabilities, band.low.probabilities, band.high.probabilities, at_risk, (1 - level) / 2)
    return Survival(
        times=points,
        survival=curve.probabilities,
        low=low,
        high=high,
        at_risk=at_risk,
        ended=np.array([((at == t) & done).sum() for t in points], dtype=np.int64),
        n=int(at.size),
        censored=int((~done).sum()),
        level=level,
    )


def _filled(
    curve: np.ndarray, low: np.ndarray, high: np.ndarray, at_risk: np.ndarray, tail: Number
) -> tuple[np.ndarray, np.ndarray]:
    """The band with exact binomial bounds where the curve is 1 (none of n ended) or 0 (all n ended)."""
    low, high = low.copy(), high.copy()
    for i, value in enumerate(curve):
        bound = tail ** (1 / at_risk[i])
        if value == 1:
            low[i], high[i] = bound, 1.0
        elif value == 0:
            low[i], high[i] = 0.0, (high[i - 1] if i else 1.0) * (1 - bound)
    return low, high
