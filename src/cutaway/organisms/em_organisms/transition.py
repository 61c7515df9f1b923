"""When a trained vector turns: the local cosine over checkpoints, and whether a smooth path would show the same.

1. For checkpoint t and window k, c_k(t) = cos(v(t-k) - v(t), v(t+k) - v(t)): -1 on a straight path, 0 at a right-angle
   turn, +1 where it goes back. Points where both steps are shorter than ``least`` are dropped.
2. The candidate is the peak of c_k; its height is what it stands above the median of the curve.
3. Null: the steps between checkpoints are fitted by a quadratic in time (a path that is straight, speeds up or turns
   smoothly), and what is left over is dealt to random steps. The p-value is the share of such paths, the observed one
   counted, whose peak stands as high.

Trap: on a smooth rotation c_k is above -1 everywhere, so a threshold on c_k itself would call it a transition.
Source: card em-organisms, Method 6; Turner et al. 2025, arXiv:2506.11613. The null is ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError

Points = Float[np.ndarray, "checkpoint d"]


@dataclass(frozen=True, repr=False)
class Transition:
    """The sharpest turn of a trajectory."""

    step: int
    """Training step of the checkpoint at the peak."""
    cosine: float
    height: float
    """Peak above the curve's median."""
    p: float
    """Against smooth paths with the same noise."""
    steps: tuple[int, ...]
    """Of every checkpoint."""
    curves: Mapping[int, tuple[float, ...]]
    """Local cosine by window, NaN where it is not defined."""
    window: int
    alpha: float = 0.05

    def __repr__(self) -> str:
        seen = "turns" if self.found else "no turn shown"
        return f"Transition({seen} at step {self.step}, cosine {self.cosine:.2f}, p {self.p:.3f})"

    @property
    def found(self) -> bool:
        """Whether a smooth path is unlikely to show such a peak."""
        return self.p <= self.alpha

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data, undefined points as None."""
        curves = {str(k): [None if np.isnan(x) else x for x in curve] for k, curve in self.curves.items()}
        return {**asdict(self), "curves": curves, "found": self.found}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def local_cosine(points: Points, window: int, least: float = 0.002) -> Float[np.ndarray, " checkpoint"]:
    """Return c_k at every checkpoint; NaN near the ends and where nothing moves."""
    if not window >= 1 or 2 * window >= len(points):
        raise UsageError(f"window={window}: at least 1, and {len(points)} checkpoints have room for less than half")
    found = np.full(len(points), np.nan)
    back, ahead = points[: -2 * window] - points[window:-window], points[2 * window :] - points[window:-window]
    lengths = np.linalg.norm(back, axis=1), np.linalg.norm(ahead, axis=1)
    moves = ~((lengths[0] < least) & (lengths[1] < least)) & (lengths[0] > 0) & (lengths[1] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (back * ahead).sum(1) / (lengths[0] * lengths[1])
    found[window:-window] = np.where(moves, cosine, np.nan)
    return found


def find_transition(
    points: Points,
    steps: Sequence[int] | None = None,
    *,
    window: int = 10,
    also: Sequence[int] = (5, 15),
    draws: int = 99,
    seed: int = 0,
    least: float = 0.002,
) -> Transition:
    """Return the sharpest turn of ``points`` with its p-value; ``also`` are further windows to report.

    Raises UsageError for too few checkpoints, and where nothing moved.
    """
    if points.ndim != 2 or draws < 19:
        raise UsageError(f"points of shape {list(points.shape)}, draws={draws}: [checkpoint d], and 19 draws or more")
    taken = list(range(len(points))) if steps is None else list(steps)
    if len(taken) != len(points):
        raise UsageError(f"{len(taken)} steps for {len(points)} checkpoints; one each")
    flat = _shrunk(np.asarray(points, float))
    curve = local_cosine(flat, window, least)
    if np.isnan(curve).all():
        raise UsageError(f"nothing moved by {least} in {window} checkpoints; there is no path to look at")
    place = int(np.nanargmax(curve))
    height = _height(curve)
    rng = np.random.default_rng(seed)
    moves = np.diff(flat, axis=0)
    time = np.linspace(-1, 1, len(moves))
    basis = np.stack([np.ones_like(time), time, time**2], 1)
    smooth = basis @ np.linalg.lstsq(basis, moves, rcond=None)[0]
    rest = moves - smooth
    as_high = 0
    for _ in range(draws):
        path = np.cumsum(smooth + rest[rng.permutation(len(rest))], 0)
        as_high += _height(local_cosine(np.concatenate([flat[:1], flat[:1] + path]), window, least)) >= height
    windows = [k for k in (window, *also) if 2 * k < len(flat)]
    curves = {k: tuple(local_cosine(flat, k, least).tolist()) for k in sorted(set(windows))}
    p = (1 + as_high) / (1 + draws)
    return Transition(taken[place], float(curve[place]), height, p, tuple(taken), curves, window)


def compression(now: Float[np.ndarray, "layer d"], last: Float[np.ndarray, "layer d"]) -> float:
    """Return ||now' last||_F / (||now||_F ||last||_F), vectors of all layers as rows: 1 for one shared direction."""
    norms = float(np.linalg.norm(now) * np.linalg.norm(last))
    if norms == 0:
        raise UsageError("a checkpoint of norm 0 has no direction; leave the first one out")
    return float(np.linalg.norm(now.T @ last)) / norms


def plane(points: Points) -> Float[np.ndarray, "checkpoint 2"]:
    """Return the trajectory on its first two principal components."""
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2]


def _height(curve: Float[np.ndarray, " checkpoint"]) -> float:
    return float(np.nanmax(curve) - np.nanmedian(curve)) if not np.isnan(curve).all() else 0.0


def _shrunk(points: Points) -> Float[np.ndarray, "checkpoint rank"]:
    """Turn the points into the space they span: cosines and lengths stay, and draws cost less."""
    if points.shape[1] <= len(points):
        return points
    u, s, _ = np.linalg.svd(points, full_matrices=False)
    return u * s
