"""Trajectories of a weight vector whose turning is known: abrupt at one checkpoint, smooth all along, or none.

Each step goes forward by about one unit along a direction, with noise. *abrupt*: the direction turns by ``angle`` once,
after checkpoint ``turn``. *smooth*: it turns by the same angle in equal parts over all steps. *straight*: never.
Source: card em-organisms, At small scale.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError, nearest

Turning = Literal["abrupt", "smooth", "straight"]


@dataclass(frozen=True)
class Path:
    """A trajectory with its truth."""

    points: Float[np.ndarray, "checkpoint d"]
    turn: int | None
    """Checkpoint at which it turns; None where it does not at any one."""


def weight_path(
    kind: Turning | str,
    *,
    checkpoints: int = 60,
    d: int = 64,
    angle: float = 90.0,
    noise: float = 0.5,
    seed: int = 0,
) -> Path:
    """Return a trajectory; ``angle`` in degrees, ``noise`` the length of each step's random part (a step is 1)."""
    if kind not in get_args(Turning):
        raise UsageError(f"kind={kind!r}{nearest(kind, get_args(Turning))}")
    if checkpoints < 40 or d < 2 or not 0 < angle <= 180 or noise < 0:
        raise UsageError(
            f"checkpoints={checkpoints}, d={d}, angle={angle}, noise={noise}: 40 or more, 2 or more, in (0, 180], 0 or"
            " more"
        )
    rng = np.random.default_rng((seed, get_args(Turning).index(kind)))
    first, second = np.linalg.qr(rng.standard_normal((d, 2)))[0].T
    steps = checkpoints - 1
    turn = int(rng.integers(20, checkpoints - 20)) if kind == "abrupt" else None
    along = np.arange(steps) / (steps - 1)
    share = (np.arange(steps) >= turn).astype(float) if turn is not None else along * (kind == "smooth")
    theta = np.deg2rad(angle) * share[:, None]
    moves = np.cos(theta) * first + np.sin(theta) * second
    moves = moves + noise * rng.standard_normal((steps, d)) / np.sqrt(d)
    return Path(np.concatenate([np.zeros((1, d)), np.cumsum(moves, 0)]), turn)
