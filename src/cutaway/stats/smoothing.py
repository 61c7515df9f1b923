"""Bayesian smoothing of a success probability along a trace: draws are pooled where nothing jumps.

Boundaries 0 .. N cut a trace into N sentences; V_i is the probability that a rollout from boundary i
succeeds. Sentence i was kept with known probability ``stay[i]`` (the chance that a rollout reproduces it
token for token) and ``n[i]`` rollouts left it, of which ``counts[i]`` succeeded. So ``V_i = stay_i V_{i+1} +
(1 - stay_i) W_i`` and ``counts_i ~ Binomial(n_i, W_i)``; with ``stay = 0`` the draws are plain rollouts from
boundary i.

1. V lives on an even grid over [0, 1]. W_i of a pair (V_i, V_{i+1}) follows from the identity; pairs that put
   W outside [0, 1] by more than half a cell are impossible.
2. Prior step V_i -> V_{i+1}. Along text that a model samples itself, V is a martingale. So a step stays
   exactly, or follows Beta(c V_i, c (1 - V_i)), which has mean V_i, for a concentration c from small steps to
   leaps, or (rarely) goes anywhere, which keeps a text that the model did not write possible.
3. How often a step moves, and whether moves are mostly small or mostly large, is unknown: exact
   forward-backward runs for each pair from a small grid, and the posteriors are averaged by marginal
   likelihood. Nothing is tuned per trace.

Limits. Small true jumps are shrunk towards zero, and the posterior spread is no frequentist interval: bands
and tests of the same curve come from `cutaway.stats.bands` and `cutaway.stats.sequential`. Measured on
published traces by ``benchmarks/replay_published.py``.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.special import betainc, xlog1py, xlogy

from cutaway.errors import UsageError
from cutaway.stats.values import Number, Values

CONCENTRATIONS = (400.0, 100.0, 30.0, 10.0, 3.0)
"""A step from V has standard deviation sqrt(V (1 - V) / (c + 1)): 0.025 to 0.25 from the middle."""
MOVE_RATES = (0.02, 0.1, 0.3, 0.6)
"""Share of steps that move at all."""
DECAYS = (0.5, 1.0, 2.0)
"""Each larger size of move is this times as frequent as the one before."""
ANYWHERE = 0.01
"""Share of moves that go to any value alike."""


@dataclass(frozen=True)
class Smoothed:
    """Posterior of the curve at N + 1 boundaries and of its N steps."""

    mean: Float[np.ndarray, " boundary"]
    sd: Float[np.ndarray, " boundary"]
    jump: Float[np.ndarray, " sentence"]
    """Posterior probability that ``|V_{i+1} - V_i|`` exceeds ``delta``."""
    delta: float
    log_evidence: float
    """Log likelihood of the order-free counts, averaged over curves and over the grid of step 3."""

    def __repr__(self) -> str:
        return (
            f"Smoothed({self.mean[0]:.2f} -> {self.mean[-1]:.2f} over {len(self.jump)} sentences, "
            f"{self.jump.sum():.1f} jumps above {self.delta:g} expected)"
        )


def smooth_martingale(
    counts: Values,
    n: Values,
    stay: Values,
    *,
    end: Number | None = None,
    delta: float = 0.1,
    grid: int = 81,
) -> Smoothed:
    """Posterior curve from ``counts[i]`` successes in ``n[i]`` draws that left sentence i.

    ``stay[i]`` is the known probability of keeping sentence i, ``end`` the known V_N (1 or 0 where the text
    ends in an answer) or None. ``n[i] = 0`` is allowed anywhere. 150 sentences take about 0.1 s.
    """
    k, total, kept = (np.asarray(x, dtype=float).reshape(-1) for x in (counts, n, stay))
    _check(k, total, kept, end, grid)
    points = np.linspace(0.0, 1.0, grid)
    last = np.ones(grid)
    if end is not None:
        last = np.zeros(grid)
        last[round(float(end) * (grid - 1))] = 1.0
    steps, (pairs, peak) = _steps(grid), _pair_likelihoods(k, total, kept, points)
    forward, log_evidence = _forward(pairs, steps, last)
    model = np.exp(log_evidence - log_evidence.max())
    scale = peak + log_evidence.max() + np.log(model.mean())
    model /= model.sum()
    likely = model > 1e-4
    model = model[likely] / model[likely].sum()
    curve, jump = _backward(pairs, steps[likely], last, forward[:, likely], model, delta=delta)
    mean = curve @ points
    sd = np.sqrt(np.maximum(curve @ points**2 - mean**2, 0.0))
    return Smoothed(mean, sd, jump, delta, float(scale))


def _pair_likelihoods(
    k: np.ndarray, n: np.ndarray, stay: np.ndarray, points: np.ndarray
) -> tuple[Float[np.ndarray, "sentence cell next_cell"], float]:
    """Likelihood of each stratum for each (V_i, V_{i+1}), scaled to a maximum of 1; the scales' summed log.

    W keeps a tenth of a cell away from 0 and 1, since a curve on the grid's ends stands for one close to
    them. Where nothing can leave (stay = 1) the two ends of the sentence are equal.
    """
    cell = points[1] - points[0]
    k, n, stay = k[:, None, None], n[:, None, None], stay[:, None, None]
    leave = np.maximum(1.0 - stay, 1e-9)
    inner = (points[:, None] - stay * points[None, :]) / leave
    slack = np.where(stay > 0, 0.5 * cell * (1 + stay) / leave, 1e-9)
    clear = np.clip(inner, 0.1 * cell, 1 - 0.1 * cell)
    log = xlogy(k, clear) + xlog1py(n - k, -clear)
    possible = (inner >= -slack) & (inner <= 1 + slack)
    log = np.where(possible, log, -np.inf)
    log = np.where(stay > 1 - 1e-9, np.where(np.eye(len(points)) > 0, 0.0, -np.inf), log)
    peak = log.max(axis=(1, 2), keepdims=True)
    return np.exp(log - peak), float(peak.sum())


def _forward(
    pairs: np.ndarray, steps: np.ndarray, last: np.ndarray
) -> tuple[Float[np.ndarray, "boundary model cell"], Float[np.ndarray, " model"]]:
    """Filtered curve given earlier strata, and each model's log marginal likelihood."""
    models, grid, _ = steps.shape
    alpha = np.full((len(pairs) + 1, models, grid), 1.0 / grid)
    log_evidence = np.zeros(models)
    for i, pair in enumerate(pairs):
        alpha[i + 1] = np.matmul(alpha[i][:, None, :], steps * pair)[:, 0]
        mass = alpha[i + 1].sum(axis=1, keepdims=True)
        alpha[i + 1] /= mass
        log_evidence += np.log(mass[:, 0])
    return alpha, log_evidence + np.log(alpha[-1] @ last)


def _backward(
    pairs: np.ndarray,
    steps: np.ndarray,
    last: np.ndarray,
    alpha: np.ndarray,
    model: np.ndarray,
    *,
    delta: float,
) -> tuple[Float[np.ndarray, "boundary cell"], Float[np.ndarray, " sentence"]]:
    """Curve given all strata, and the probability of a jump at each sentence, averaged over models."""
    grid, count = len(last), len(pairs)
    cell = np.arange(grid)
    far = (np.abs(cell[:, None] - cell[None, :]) / (grid - 1) > delta + 1e-12).astype(float)
    curve, jump = np.zeros((count + 1, grid)), np.zeros(count)
    beta = np.tile(last / last.sum(), (len(steps), 1))
    curve[-1] = _average(alpha[-1] * beta, model)
    for i in range(count - 1, -1, -1):
        linked = steps * pairs[i]
        after = np.matmul(linked, beta[:, :, None])[:, :, 0]
        leap = np.matmul(linked * far, beta[:, :, None])[:, :, 0]
        jump[i] = model @ ((alpha[i] * leap).sum(axis=1) / (alpha[i] * after).sum(axis=1))
        beta = after / after.sum(axis=1, keepdims=True)
        curve[i] = _average(alpha[i] * beta, model)
    return curve, np.clip(jump, 0.0, 1.0)


def _average(joint: np.ndarray, model: np.ndarray) -> np.ndarray:
    return model @ (joint / joint.sum(axis=1, keepdims=True))


@lru_cache(maxsize=4)
def _steps(grid: int) -> Float[np.ndarray, "model cell next_cell"]:
    """Prior step matrices, one per (move rate, decay)."""
    points = np.linspace(0.0, 1.0, grid)
    edges = np.concatenate([[0.0], (points[1:] + points[:-1]) / 2, [1.0]])
    stays = np.eye(grid)
    kinds = []
    for concentration in CONCENTRATIONS:
        kind = np.eye(grid)
        a, b = concentration * points[1:-1, None], concentration * (1 - points[1:-1, None])
        kind[1:-1] = np.diff(betainc(a, b, edges[None, :]), axis=1)
        kinds.append(kind)
    models = []
    for rate in MOVE_RATES:
        for decay in DECAYS:
            share = decay ** np.arange(len(kinds))
            moves = np.einsum("c,cij->ij", share / share.sum(), np.stack(kinds))
            models.append((1 - rate) * stays + rate * ((1 - ANYWHERE) * moves + ANYWHERE / grid))
    found = np.stack(models)
    found.flags.writeable = False
    return found


def _check(k: np.ndarray, n: np.ndarray, stay: np.ndarray, end: Number | None, grid: int) -> None:
    if not k.shape == n.shape == stay.shape:
        raise UsageError(f"counts, n and stay have {k.size}, {n.size} and {stay.size} entries: one per sentence each")
    if not np.all((k >= 0) & (k <= n)):
        raise UsageError("counts[i] successes in n[i] draws needs 0 <= counts <= n in every place")
    if not np.all((stay >= 0) & (stay <= 1)):
        raise UsageError("stay must hold probabilities in [0, 1]")
    if end is not None and not 0 <= end <= 1:
        raise UsageError(f"end={end}: a probability in [0, 1], or None when it is unknown")
    if grid < 11:
        raise UsageError(f"grid={grid}: at least 11 cells are needed")
