"""How far two samples of answers lie apart, in nats (total variation: a share).

Counts are aligned: entry i of both arrays counts the same answer. A side without draws gives nan: nothing is
known about it. Plug-in divergences of small samples are biased upwards; `kl` offers a jackknife for it.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import rel_entr

from cutaway.errors import UsageError
from cutaway.stats.values import Values

FLOOR = 1e-9
"""Additive mass per answer of the published thought-anchors numbers."""


def kl(
    p_counts: Values,
    q_counts: Values,
    smoothing: Literal["jeffreys", "floor"] = "jeffreys",
    *,
    jackknife: bool = False,
) -> float:
    """KL[p || q] from counts.

    ``jeffreys`` adds 1/2 to every answer on both sides. ``floor`` is the published convention, for parity
    only: 1e-9 per answer on the shares, negative results clipped to 0, and 0 when a side is empty; one answer
    that q never gave then costs about ``20 * p`` nats. ``jackknife`` (with ``jeffreys``) removes the
    first-order bias of both samples by leaving out one draw at a time; the result can be slightly negative
    when p = q.
    """
    p, q = _aligned(p_counts, q_counts)
    if smoothing == "floor":
        if jackknife:
            raise UsageError("jackknife=True goes with smoothing='jeffreys': 'floor' reproduces published numbers")
        return _floor_kl(p, q)
    if smoothing != "jeffreys":
        raise UsageError(f"smoothing={smoothing!r}: choose 'jeffreys' or 'floor'")
    if p.sum() == 0 or q.sum() == 0:
        return float("nan")
    plain = _jeffreys_kl(p, q)
    if not jackknife:
        return plain
    correction = 0.0
    for side, other_first in ((p, False), (q, True)):
        n, left_out = side.sum(), 0.0
        if n < 2:
            return float("nan")
        for answer in np.flatnonzero(side):
            fewer = side.copy()
            fewer[answer] -= 1
            left_out += side[answer] * (_jeffreys_kl(p, fewer) if other_first else _jeffreys_kl(fewer, q))
        correction += (n - 1) * (left_out / n - plain)
    return plain - correction


def jensen_shannon(p_counts: Values, q_counts: Values) -> float:
    """Jensen-Shannon divergence of the two samples' shares, in nats: 0 when equal, log 2 when disjoint."""
    p, q = _shares(*_aligned(p_counts, q_counts))
    middle = (p + q) / 2
    return float(np.sum(rel_entr(p, middle) + rel_entr(q, middle)) / 2)


def total_variation(p_counts: Values, q_counts: Values) -> float:
    """Largest difference in the share of any set of answers: 0 when equal, 1 when disjoint."""
    p, q = _shares(*_aligned(p_counts, q_counts))
    return float(np.abs(p - q).sum() / 2)


def _jeffreys_kl(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p + 0.5, q + 0.5
    return float(np.sum(rel_entr(p / p.sum(), q / q.sum())))


def _floor_kl(p: np.ndarray, q: np.ndarray) -> float:
    if p.sum() == 0 or q.sum() == 0:
        return 0.0
    a, b = p / p.sum() + FLOOR, q / q.sum() + FLOOR
    return max(0.0, float(np.sum(rel_entr(a / a.sum(), b / b.sum()))))


def _shares(p: np.ndarray, q: np.ndarray) -> tuple[Float[np.ndarray, " answer"], Float[np.ndarray, " answer"]]:
    empty = np.full(p.shape, np.nan)
    return (p / p.sum() if p.sum() else empty), (q / q.sum() if q.sum() else empty)


def _aligned(p_counts: Values, q_counts: Values) -> tuple[np.ndarray, np.ndarray]:
    p, q = np.asarray(p_counts, dtype=float), np.asarray(q_counts, dtype=float)
    if p.ndim != 1 or p.shape != q.shape:
        raise UsageError(f"counts have shapes {p.shape} and {q.shape}: align both on one list of answers")
    if not (np.all(p >= 0) and np.all(q >= 0)):
        raise UsageError("counts must be numbers of draws, none negative or nan")
    return p, q
