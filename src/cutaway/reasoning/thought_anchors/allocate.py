"""Where the next rollouts go: most expected gain for a decoded token."""

import numpy as np
from jaxtyping import Float, Int

from cutaway.reasoning.thought_anchors.strata import Strata
from cutaway.stats import Smoothed


def allocate(
    strata: Strata,
    hits: Int[np.ndarray, " sentence"],
    draws: Int[np.ndarray, " sentence"],
    pooled: Smoothed,
    *,
    price: Float[np.ndarray, " sentence"],
    interest: Float[np.ndarray, " sentence"],
    batch: int,
    tokens: float,
) -> Int[np.ndarray, " sentence"]:
    """Number of new draws for each stratum, chosen greedily: at most ``batch``, of ``tokens`` together (at least one).

    One more 0/1 draw of noise r = p (1 - p) lowers a variance v by v^2 / (v + r). The curve counts with the
    variance that the smoother leaves (a stratum whose neighbours tell its story gains little), weighted by how
    much of the curve rests on the stratum. An effect that is still to be certified counts by ``interest`` (the
    probability that it is large) with the variance of the stratum's own draws, because tests pool nothing.
    ``price`` is the expected number of tokens of one rollout.
    """
    leave = np.maximum(1 - strata.stay, 1e-9)
    a, b = hits + 1.0, draws - hits + 1.0
    alone = a * b / ((a + b) ** 2 * (a + b + 1))
    inside = np.clip((pooled.mean[:-1] - strata.stay * pooled.mean[1:]) / leave, 0.0, 1.0)
    spread = (pooled.sd[:-1] ** 2 + (strata.stay * pooled.sd[1:]) ** 2) / leave**2
    shared = np.minimum(alone, spread)
    noise = np.maximum(inside * (1 - inside), 0.01)
    contrast = leave[:, None] * (strata.weights[1:] - np.eye(strata.n))
    on_curve, on_effects = (strata.weights**2).mean(0), interest @ contrast**2
    extra = np.zeros(strata.n, dtype=np.int64)
    for _ in range(batch):
        if tokens < 0:
            break
        gain = on_curve * shared**2 / (shared + noise) + on_effects * alone**2 / (alone + noise)
        best = int((gain / np.maximum(price, 1.0)).argmax())
        extra[best] += 1
        tokens -= price[best]
        for variance in (shared, alone):
            variance[best] *= noise[best] / (variance[best] + noise[best])
    return extra
