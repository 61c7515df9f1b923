"""How well a circuit stands in for its model: numbers in, numbers with intervals out.

With m(C) the measure of a circuit, m(full) the model's and m(none) that of the empty circuit (the corrupted run, where
cut edges carry it):

    faithfulness  (mean m(C) - mean m(none)) / (mean m(full) - mean m(none)): a ratio of means over items
    NFS           the same ratio for one item; unbounded, and overshooting the model counts as better
    NDF           1 - min(|m(full) - m(C)| / |m(full) - m(none)|, 1) for one item: in [0, 1], overshoot counts against
    CPR           area under faithfulness over the share of edges kept, edges by signed score; more is better
    CMD           area of |1 - faithfulness|, edges by absolute score; less is better

An item whose m(full) and m(none) (nearly) agree has no ratio: NaN, left out of means and counted. Sources: query
circuits (card, NDF), MIB (peers page section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from scipy.integrate import trapezoid

from cutaway.errors import UsageError, nearest
from cutaway.stats import Interval, bootstrap, mean_interval
from cutaway.stats.values import Values

Scale = Literal["linear", "log"]

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the edges: where MIB measures its areas."""
LEAST = 1e-3
"""Items whose clean and corrupted values differ by less, in units of the measure, have no ratio."""
_RESAMPLES = 1000


@dataclass(frozen=True, repr=False)
class PerItem:
    """One number for each item, NaN where it is undefined."""

    values: Float[np.ndarray, "*runs item"]
    undefined: Bool[np.ndarray, " item"]
    reason: str
    """Why items are undefined; empty where none is."""
    bounds: tuple[float, float] = (-np.inf, np.inf)
    """What a value, and so an interval's end, can be."""

    def __repr__(self) -> str:
        return f"PerItem(mean {self.mean()!r}, {self.n_undefined} of {len(self.undefined)} undefined)"

    @property
    def n_undefined(self) -> int:
        return int(self.undefined.sum())

    def mean(self, clusters: Values | None = None, level: float = 0.95) -> Interval:
        """Return the mean over defined items of one run, with a t interval over items or clusters of them."""
        if self.values.ndim != 1:
            raise UsageError(f"values of shape {list(self.values.shape)}: take the mean of one run at a time")
        labels = np.arange(len(self.values)) if clusters is None else np.asarray(clusters)
        kept = ~self.undefined
        found = mean_interval(self.values[kept], level, labels[kept])
        low, high = np.clip([found.low, found.high], *self.bounds)
        return replace(found, low=float(low), high=float(high))

    def __getitem__(self, run: int) -> "PerItem":
        return replace(self, values=self.values[run])


def nfs(
    values: Float[np.ndarray, "*runs item"],
    full: Float[np.ndarray, " item"],
    none: Float[np.ndarray, " item"],
    *,
    least: float = LEAST,
) -> PerItem:
    """Return (m(C) - m(none)) / (m(full) - m(none)) of each item.

    >>> nfs(np.array([3.0, 1.0]), full=np.array([2.0, 1.0]), none=np.array([0.0, 1.0])).values
    array([1.5, nan])
    """
    return _per_item(values, full, none, least, lambda span: (values - none) / span)


def ndf(
    values: Float[np.ndarray, "*runs item"],
    full: Float[np.ndarray, " item"],
    none: Float[np.ndarray, " item"],
    *,
    least: float = LEAST,
) -> PerItem:
    """Return 1 - min(|m(full) - m(C)| / |m(full) - m(none)|, 1) of each item.

    >>> ndf(np.array([3.0, 1.0]), full=np.array([2.0, 1.0]), none=np.array([0.0, 1.0])).values
    array([0.5, nan])
    """
    found = _per_item(values, full, none, least, lambda span: 1 - np.minimum(np.abs(full - values) / np.abs(span), 1))
    return replace(found, bounds=(0.0, 1.0))


def _per_item(values: Any, full: Any, none: Any, least: float, ratio: Any) -> PerItem:
    _check(values, full, none)
    span = full - none
    undefined = np.abs(span) < least
    found = np.where(undefined, np.nan, ratio(np.where(undefined, 1.0, span)))
    reason = f"clean and corrupted differ by less than {least:g}" if undefined.any() else ""
    return PerItem(found, undefined, reason)


@dataclass(frozen=True, repr=False)
class Faithfulness:
    """A ratio of means over items, with its bootstrap interval over clusters of items."""

    interval: Interval
    """``n`` counts clusters. Without ends where there is one cluster, or where all resamples agree."""
    n_items: int
    undefined: str = ""
    """Why there is no value, or no interval."""

    def __repr__(self) -> str:
        note = f", {self.undefined}" if self.undefined else ""
        return f"Faithfulness({self.interval!r}, {self.n_items} items{note})"

    @property
    def value(self) -> float:
        return self.interval.value


def faithfulness(
    values: Float[np.ndarray, " item"],
    full: Float[np.ndarray, " item"],
    none: Float[np.ndarray, " item"],
    *,
    clusters: Values | None = None,
    least: float = LEAST,
    level: float = 0.95,
    seed: int = 0,
) -> Faithfulness:
    """Return the ratio of means, with a bootstrap interval that draws whole ``clusters`` (a label for each item).

    Undefined where mean clean and corrupted values differ by less than ``least``; without interval where that of
    the difference holds zero, for then the ratio has no bounded interval.
    """
    _check(values, full, none)
    rows = np.stack([values, full, none], -1)
    n_items, span = len(rows), float(np.mean(full - none)) if len(rows) else 0.0
    if abs(span) < least:
        reason = f"mean clean and corrupted values differ by {abs(span):.1e}, less than {least:g}"
        return Faithfulness(Interval(np.nan, np.nan, np.nan, n_items, level), n_items, reason)
    labels = np.arange(n_items) if clusters is None else np.asarray(clusters)
    _, member = np.unique(labels, return_inverse=True)
    sums = np.stack([np.bincount(member, weights=column) for column in rows.T], -1)
    if len(sums) == 1:
        reason = "one cluster has no interval"
        return Faithfulness(Interval(_ratio(sums), np.nan, np.nan, 1, level), n_items, reason)
    # Sums of clusters stand for their items: the ratio of means is the ratio of sums.
    spans = bootstrap(
        sums, lambda drawn: float((drawn[:, 1] - drawn[:, 2]).sum()), n=_RESAMPLES, seed=seed, level=level
    )
    if spans.low <= 0 <= spans.high:
        reason = "the difference of clean and corrupted values is not distinguished from zero"
        return Faithfulness(Interval(_ratio(sums), np.nan, np.nan, len(sums), level), n_items, reason)
    interval = bootstrap(sums, _ratio, n=_RESAMPLES, seed=seed, level=level)
    return Faithfulness(interval, n_items, "all resamples agree: no interval" if np.isnan(interval.low) else "")


def _ratio(rows: np.ndarray) -> float:
    circuit, full, none = rows.sum(0)
    return float((circuit - none) / (full - none)) if full != none else float("nan")


def cpr(shares: Sequence[float], values: Sequence[float] | np.ndarray, *, x: Scale | str = "linear") -> float:
    """Return the area under faithfulness ``values`` at ``shares`` of the edges, by the trapezoid rule.

    x: ``linear`` as MIB has it (flat 1 gives the range of shares, .999); ``log`` weighs every power of ten alike and
    divides by the range (flat 1 gives 1). NaN where a value is.
    """
    return _area(shares, np.asarray(values, dtype=float), x)


def cmd(shares: Sequence[float], values: Sequence[float] | np.ndarray, *, x: Scale | str = "linear") -> float:
    """Return the area of |1 - faithfulness|, as `cpr`; 0 is best."""
    return _area(shares, np.abs(1 - np.asarray(values, dtype=float)), x)


def _area(shares: Sequence[float], y: np.ndarray, x: Scale | str) -> float:
    if x not in get_args(Scale):
        raise UsageError(f"x={x!r}{nearest(x, get_args(Scale))}")
    at = np.asarray(shares, dtype=float)
    if at.shape != y.shape or len(at) < 2 or (np.diff(at) <= 0).any() or at[0] <= 0:
        raise UsageError(f"shares={list(shares)}: two or more, rising, above 0, one value for each")
    if x == "linear":
        return float(trapezoid(y, at))
    logs = np.log(at)
    return float(trapezoid(y, logs) / (logs[-1] - logs[0]))


def _check(values: np.ndarray, full: np.ndarray, none: np.ndarray) -> None:
    if full.shape != none.shape or values.shape[-1:] != full.shape:
        raise UsageError(
            f"values {list(values.shape)}, full {list(full.shape)}, none {list(none.shape)}: one entry for each item"
        )
    if not (np.isfinite(values).all() and np.isfinite(full).all() and np.isfinite(none).all()):
        raise UsageError("values contain NaN or infinity; the model's outputs overflowed")
