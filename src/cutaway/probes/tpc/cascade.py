"""Leave early where the answer is clear: thresholds by order, tuned on validation rows, and what they save.

At order n a row has the calibrated logit slope_n * P_n + offset_n. It stays while low_n <= logit < high_n, else it
leaves with that score; at the last order all leave. Only rows that stay have the next term computed, and no term is
computed twice.

Tuning (the paper's is not released): for an allowance of net harm (rows that the whole monitor gets right and an
early leave gets wrong, less the reverse) each order in turn takes the widest exits within its part. Among several
allowances and divisions of them, the cheapest is chosen whose validation F1 is within ``tolerance`` of the whole
monitor's.

Source: card tpc (2509.26238), Cascade, and Beyond the paper (incremental evaluation, calibration, cost by example).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.probes.tpc.method import f1
from cutaway.probes.tpc.polynomial import Polynomial

ALLOWANCES = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1)
"""Shares of rows that may be harmed in all."""
LEANS = (0.5, 1.0, 2.0)
"""Part of an allowance that an order gets, relative to the order before."""


@dataclass(frozen=True)
class Bands:
    """Who stays at each order; the last order's ends are not used. All in logits, except `uniform`'s arguments."""

    slope: tuple[float, ...]
    offset: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(each) for each in (self.slope, self.offset, self.low, self.high)}
        if len(sizes) != 1 or sizes == {0}:
            raise UsageError("slope, offset, low and high: one of each for every order")
        if bad := [n for n, (a, b) in enumerate(zip(self.low, self.high, strict=True), 1) if not a <= b]:
            raise UsageError(f"order {bad[0]}: low {self.low[bad[0] - 1]} is above high {self.high[bad[0] - 1]}")

    @property
    def order(self) -> int:
        return len(self.slope)

    def calibrated(self, logits: Float[np.ndarray, "order row"]) -> Float[np.ndarray, "order row"]:
        """Scores that are comparable between orders."""
        if len(logits) != self.order:
            raise UsageError(f"{len(logits)} orders of scores and {self.order} bands: give one band for each")
        return np.array(self.slope)[:, None] * logits + np.array(self.offset)[:, None]


@dataclass(frozen=True, eq=False)
class Exits:
    """What a cascade did with each row."""

    score: Float[np.ndarray, " row"]
    """Calibrated logit at the order where it left."""
    order: Int[np.ndarray, " row"]
    """Where it left, from 1."""
    multiplies: Int[np.ndarray, " row"]
    """Spent on it."""

    @property
    def flagged(self) -> Bool[np.ndarray, " row"]:
        return self.score > 0

    def __repr__(self) -> str:
        return f"Exits({len(self.order)} rows, {self.multiplies.mean():.0f} multiplies a row)"


def uniform(order: int, low: float = 0.0, high: float = 1.0) -> Bands:
    """Return the same band of probabilities at every order, without calibration."""
    if order < 1 or not 0 <= low <= high <= 1:
        raise UsageError(f"order={order}, low={low}, high={high}: an order from 1, and 0 <= low <= high <= 1")
    with np.errstate(divide="ignore"):
        ends = [float(np.log(p) - np.log1p(-p)) for p in (low, high)]
    return Bands((1.0,) * order, (0.0,) * order, (ends[0],) * order, (ends[1],) * order)


@torch.no_grad()
def run_cascade(monitor: Polynomial, x: Float[Tensor, "row d"], bands: Bands) -> Exits:
    """Score ``x`` term by term, going on only with the rows that stay."""
    if bands.order != monitor.order:
        raise UsageError(f"bands for {bands.order} orders and a monitor of {monitor.order}")
    z = monitor.standardised(x)
    alive, partial = torch.arange(len(z)), torch.zeros(len(z))
    score, order, spent = (np.zeros(len(z)), np.zeros(len(z), dtype=np.int64), np.zeros(len(z), dtype=np.int64))
    for n, price in enumerate(monitor.multiplies, 1):
        partial = partial + monitor.term(n, z[alive])
        rows = alive.numpy()
        score[rows] = bands.slope[n - 1] * partial.double().numpy() + bands.offset[n - 1]
        order[rows], spent[rows] = n, spent[rows] + price
        stays = _stays(score[rows], bands, n)
        if n == monitor.order or not stays.any():
            break
        kept = torch.from_numpy(stays)
        alive, partial = alive[kept], partial[kept]
    return Exits(score, order, spent)


def replay(logits: Float[np.ndarray, "order row"], bands: Bands, multiplies: Sequence[int]) -> Exits:
    """Return what a cascade would do, from the scores of all orders: for tuning and for other monitors."""
    scores = bands.calibrated(logits.astype(float))
    order = np.full(logits.shape[1], bands.order)
    for n in range(bands.order - 1, 0, -1):
        order[~_stays(scores[n - 1], bands, n)] = n
    score = scores[order - 1, np.arange(len(order))]
    return Exits(score, order, np.cumsum(np.asarray(multiplies, dtype=np.int64))[order - 1])


def tune(
    logits: Float[np.ndarray, "order row"],
    labels: Bool[np.ndarray, " row"],
    multiplies: Sequence[int],
    tolerance: float = 0.001,
) -> Bands:
    """Return the cheapest bands whose F1 on these validation rows is within ``tolerance`` of the last order's."""
    if tolerance < 0:
        raise UsageError(f"tolerance={tolerance}: 0 or more")
    needed = f1(labels, logits[-1] > 0) - tolerance
    # Without any exit the cascade is the whole monitor: always good enough, never cheap.
    best = uniform(len(logits))
    price = float(sum(multiplies))
    for bands in ladder(logits, labels):
        exits = replay(logits, bands, multiplies)
        if f1(labels, exits.flagged) >= needed and exits.multiplies.mean() < price:
            best, price = bands, float(exits.multiplies.mean())
    return best


def ladder(
    logits: Float[np.ndarray, "order row"],
    labels: Bool[np.ndarray, " row"],
    allowances: Sequence[float] = ALLOWANCES,
    leans: Sequence[float] = LEANS,
) -> list[Bands]:
    """Return bands for each allowance, from careful to cheap, leaning to early exits and to late ones."""
    if logits.shape[1] != len(labels) or len(set(labels.tolist())) < 2:
        raise UsageError(f"{logits.shape[1]} scores, {int(labels.sum())} of {len(labels)} positive: give both classes")
    fits = [_platt(row, labels) for row in logits.astype(float)]
    slope, offset = tuple(a for a, _ in fits), tuple(b for _, b in fits)
    scores = np.array(slope)[:, None] * logits + np.array(offset)[:, None]
    right = (logits[-1] > 0) == labels
    return [Bands(slope, offset, *_ends(scores, labels, right, share, lean)) for share in allowances for lean in leans]


def _ends(
    scores: np.ndarray, labels: np.ndarray, right: np.ndarray, share: float, lean: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Widest exits of each order in turn, low and high side each with its part of the allowance."""
    orders, rows = scores.shape
    alive = np.ones(rows, dtype=bool)
    parts = lean ** np.arange(orders - 1)
    low, high = [], []
    for score, allowed in zip(scores[:-1], share * rows * parts / (2 * parts.sum()), strict=True):
        harm = right.astype(int) - ((score > 0) == labels)
        down, up = alive & (score <= 0), alive & (score > 0)
        low.append(_cut(score[down], harm[down], allowed))
        high.append(-_cut(-score[up], harm[up], allowed))
        alive &= (score >= low[-1]) & (score < high[-1])
    return (*low, 0.0), (*high, 0.0)


def _cut(score: np.ndarray, harm: np.ndarray, allowed: float) -> float:
    """The largest cut, at most 0, below which the rows of ``score`` do net harm within ``allowed``."""
    order = np.argsort(score)
    # No cut can part equal scores.
    apart = np.append(np.diff(score[order]) > 0, True)[: len(score)]
    within = np.flatnonzero((np.cumsum(harm[order]) <= allowed) & apart)
    if not len(within):
        return -np.inf
    last = int(within[-1])
    return 0.0 if last == len(score) - 1 else float(score[order[last]] + score[order[last + 1]]) / 2


def _stays(score: np.ndarray, bands: Bands, order: int) -> Bool[np.ndarray, " row"]:
    return (score >= bands.low[order - 1]) & (score < bands.high[order - 1])


def _platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the likeliest logistic curve; slope 0 where the scores point the wrong way."""
    from sklearn.linear_model import LogisticRegression

    size = float(logits.std()) or 1.0
    fit = LogisticRegression(C=100.0, max_iter=1000).fit(logits[:, None] / size, labels)
    slope = float(fit.coef_[0, 0]) / size
    if slope > 0:
        return slope, float(fit.intercept_[0])
    share = float(np.clip(labels.mean(), 1e-6, 1 - 1e-6))
    return 0.0, float(np.log(share / (1 - share)))
