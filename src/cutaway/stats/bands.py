"""Simultaneous bands for known linear mixtures of independent categorical strata.

What is banded: ``V[b, a] = constant[b, a] + sum_s weights[b, s] * W[s, a]``, where row ``W[s]`` is an
unknown distribution over answers, seen only through ``counts[s]`` independent draws. The curve along a
reasoning trace has this form, with strata "rollouts that leave the base text at sentence s".

1. **Confidence distributions.** One draw per stratum, D ~ Dirichlet(k_1, .., k_A, 1), where a zero parameter
   means a zero coordinate. ``L_a = D_a`` follows Beta(k_a, n - k_a + 1) and ``U_a = D_a + D_last`` follows
   Beta(k_a + 1, n - k_a): the two Clopper-Pearson confidence distributions of every answer at once, coupled
   so that complementary answers give complementary ends (L of one is 1 - U of the other). n = 0 gives [0, 1].
2. **Melding** (Fay, Proschan, Brittain 2015): push L (where a weight is negative, U) through the mixture for
   lower draws, and the reverse for upper draws.
3. **Simultaneity.** Each (cell, side) gets the tail probability of its own draws under a Beta law on the
   cell's range with the draws' exact mean and variance (for one stratum that *is* the Clopper-Pearson law).
   The tail level t is the largest at which a share ``level`` of joint draws stays inside every cell on both
   sides, and at most (1 - level) / 2, so that lower and upper ends are each one-sided statements: a cell
   whose other end is stuck at 0 or 1 gains nothing from it. Both ends are that law's quantiles at t.

With one stratum and two answers the band equals the Clopper-Pearson interval. Coverage is a simulation result
(tests), not a theorem: melding is conservative in every case studied. The weights are taken as known.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betainc, betaincc, betaincinv

from cutaway.errors import UsageError
from cutaway.stats.values import check_level

_CHUNK = 2_000_000
"""Numbers held at once while drawing; keeps a 250-sentence trace under 100 MB."""


@dataclass(frozen=True)
class Band:
    """Lower and upper ends, same shape; ``level`` is the probability of covering every cell together."""

    low: Float[np.ndarray, "*cell"]
    high: Float[np.ndarray, "*cell"]
    level: float

    def __repr__(self) -> str:
        width = float(np.mean(self.high - self.low)) if self.low.size else float("nan")
        return f"Band(level={self.level:g}, cells={self.low.size}, mean width={width:.3f})"


def mixture_band(
    counts: Int[np.ndarray, "stratum answer"],
    weights: Float[np.ndarray, "boundary stratum"],
    constant: Float[np.ndarray, "boundary answer"],
    level: float = 0.95,
    *,
    draws: int = 4000,
    seed: int = 0,
) -> Band:
    """Band that covers every ``V[boundary, answer]`` at once with probability ``level``, inside [0, 1]."""
    _check(counts, weights, level, draws)
    if constant.shape != (weights.shape[0], counts.shape[1]):
        raise UsageError(f"constant has shape {constant.shape}: must be {(weights.shape[0], counts.shape[1])}")
    up, down = np.maximum(weights, 0.0), np.minimum(weights, 0.0)
    lower, upper = _laws(counts, up, down, constant)
    cap = (1 - level) / 2
    alarm_low, alarm_high = lower.quantile(cap), upper.quantile(1 - cap)
    smallest_tail = np.ones(draws)
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(1, constant.size + counts.size))
    for start in range(0, draws, size):
        stop = min(draws, start + size)
        low, high = _confidence_draws(counts, stop - start, rng)
        low_v = constant + up @ low + down @ high
        high_v = constant + up @ high + down @ low
        tails = smallest_tail[start:stop]
        row, boundary, answer = np.nonzero(low_v < alarm_low)
        np.minimum.at(tails, row, lower.cdf(low_v[row, boundary, answer], boundary, answer))
        row, boundary, answer = np.nonzero(high_v > alarm_high)
        np.minimum.at(tails, row, upper.sf(high_v[row, boundary, answer], boundary, answer))
    tail = min(cap, float(np.quantile(smallest_tail, 1 - level, method="lower")))
    return Band(np.clip(lower.quantile(tail), 0.0, 1.0), np.clip(upper.upper_quantile(tail), 0.0, 1.0), level)


def difference_interval(
    counts: Int[np.ndarray, "stratum answer"],
    contrast: Float[np.ndarray, " stratum"],
    level: float = 0.95,
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> Band:
    """Melded interval for ``sum_s contrast[s] * W[s, a]``, for each answer a by itself (not simultaneous).

    A negative entry uses the stratum's opposite end, so ``contrast = [1, -1]`` is the difference of two
    proportions. Ends are quantiles of ``draws`` melded draws; ``low`` and ``high`` have shape [answer].
    """
    _check(counts, contrast[None, :], level, draws)
    up, down = np.maximum(contrast, 0.0), np.minimum(contrast, 0.0)
    low, high = _confidence_draws(counts, draws, np.random.default_rng(seed))
    tail = (1 - level) / 2
    return Band(
        np.quantile(up @ low + down @ high, tail, axis=0, method="lower"),
        np.quantile(up @ high + down @ low, 1 - tail, axis=0, method="higher"),
        level,
    )


@dataclass(frozen=True)
class _Law:
    """A Beta law stretched to ``[start, start + span]`` in every cell; a point where ``a`` is nan."""

    start: np.ndarray
    span: np.ndarray
    a: np.ndarray
    b: np.ndarray
    mean: np.ndarray

    def cdf(self, value: np.ndarray, *cell: np.ndarray) -> np.ndarray:
        return _or_one(betainc(self.a[cell], self.b[cell], self._unit(value, cell)))

    def sf(self, value: np.ndarray, *cell: np.ndarray) -> np.ndarray:
        return _or_one(betaincc(self.a[cell], self.b[cell], self._unit(value, cell)))

    def quantile(self, tail: float) -> np.ndarray:
        inside = self.start + self.span * betaincinv(self.a, self.b, tail)
        return np.where(np.isnan(self.a), self.mean, inside)

    def upper_quantile(self, tail: float) -> np.ndarray:
        inside = self.start + self.span * (1 - betaincinv(self.b, self.a, tail))
        return np.where(np.isnan(self.a), self.mean, inside)

    def _unit(self, value: np.ndarray, cell: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.clip((value - self.start[cell]) / self.span[cell], 0.0, 1.0)


def _or_one(tail: np.ndarray) -> np.ndarray:
    # A draw that rounding put beside a cell's only possible value is no surprise.
    return np.where(np.isnan(tail), 1.0, tail)


def _laws(counts: np.ndarray, up: np.ndarray, down: np.ndarray, constant: np.ndarray) -> tuple[_Law, _Law]:
    """Laws of the lower and of the upper draws of every cell."""
    total = counts.sum(axis=1, keepdims=True)
    spread = (total + 1.0) ** 2 * (total + 2.0)
    low_mean, low_var = counts / (total + 1.0), counts * (total + 1.0 - counts) / spread
    high_mean, high_var = (counts + 1.0) / (total + 1.0), (counts + 1.0) * (total - counts) / spread
    start = constant + down.sum(axis=1, keepdims=True)
    span = np.broadcast_to((up - down).sum(axis=1, keepdims=True), constant.shape)
    return (
        _fit(start, span, constant + up @ low_mean + down @ high_mean, up**2 @ low_var + down**2 @ high_var),
        _fit(start, span, constant + up @ high_mean + down @ low_mean, up**2 @ high_var + down**2 @ low_var),
    )


def _fit(start: np.ndarray, span: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> _Law:
    point = variance <= 1e-15
    safe = np.where(point, 1.0, span)
    centre = np.where(point, np.nan, (mean - start) / safe)
    size = centre * (1 - centre) * safe**2 / np.where(point, 1.0, variance) - 1
    return _Law(start, safe, centre * size, (1 - centre) * size, mean)


def _confidence_draws(counts: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Joint draws (L, U) of the Clopper-Pearson confidence distributions, each [draw, stratum, answer]."""
    mass = rng.standard_gamma(counts, size=(draws, *counts.shape))
    extra = rng.standard_exponential((draws, counts.shape[0], 1))
    total = mass.sum(axis=2, keepdims=True) + extra
    return mass / total, (mass + extra) / total


def _check(counts: np.ndarray, weights: np.ndarray, level: float, draws: int) -> None:
    check_level(level)
    if draws < 100:
        raise UsageError(f"draws={draws}: at least 100 are needed to place a tail")
    if counts.ndim != 2 or counts.shape[1] < 1 or np.any(counts < 0):
        raise UsageError("counts must be a table [stratum, answer] of numbers of draws, none negative")
    if weights.ndim != 2 or weights.shape[1] != counts.shape[0]:
        raise UsageError(f"weights has shape {weights.shape}: one column per stratum ({counts.shape[0]}) is needed")
