"""Where the next rollouts go: most expected gain for a decoded token."""

import numpy as np
from jaxtyping import Float, Int

from cutaway.reasoning.thought_anchors.strata import Strata


def allocate(
    strata: Strata,
    hits: Int[np.ndarray, " sentence"],
    draws: Int[np.ndarray, " sentence"],
    price: Float[np.ndarray, " sentence"],
    interest: Float[np.ndarray, " sentence"],
    batch: int,
) -> Int[np.ndarray, " sentence"]:
    """Number of new draws for each stratum, ``batch`` in total, chosen greedily.

    A draw in stratum j lowers the variance of the curve by sum_i weights[i, j]^2 var_j / (n_j (n_j + 1)) and the
    variance of an effect by its contrast squared; effects count by ``interest`` (the probability that a sentence
    still undecided is an anchor). ``price`` is the expected number of tokens of one rollout.
    """
    n = strata.n
    rate = (hits + 1.0) / (draws + 2.0)
    spread = rate * (1 - rate)
    leave = 1 - strata.stay
    contrast = leave[:, None] * (strata.weights[1:] - np.eye(n))
    importance = (strata.weights**2).mean(0) + interest @ contrast**2
    worth = importance * spread / np.maximum(price, 1.0)
    total = draws.astype(float)
    extra = np.zeros(n, dtype=np.int64)
    for _ in range(batch):
        gain = worth / np.maximum(total * (total + 1), 0.5)
        best = int(gain.argmax())
        extra[best] += 1
        total[best] += 1
    return extra
