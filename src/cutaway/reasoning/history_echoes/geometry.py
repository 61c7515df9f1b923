"""The same stickiness seen as an angle between hidden states, with floors under every angle.

1. On one half of the dialogues: class means m- and m+ of the states at the answers' first content token;
   ``b1 = m- / |m-|``, b2 the normalised rest of m+; theta_ref is the angle between m- and m+.
2. On the other half states are projected onto (b1, b2). For each kind of transition (--, -+, +-, ++) the best plane
   rotation from the states at t to those at t + 1 is ``atan2(sum x1 y2 - y1 x2, sum x1 x2 + y1 y2)``; a crossing's
   rotation over theta_ref is how complete the switch is.
3. Both are averaged over three random halvings (seeds 42, 7, 21).

Floors: two equal means differ by about ``r sqrt(1/n1 + 1/n0)`` radians when a state's noise has r times the mean's
norm; and theta_ref with labels permuted *within* each dialogue gives a null and a p-value. Angles between raw means
are ruled by what all states share, so two more numbers do not depend on it: the area under the curve and d' of the
mean-difference direction, fitted on the first half of the dialogues and measured on the second.

``centred`` subtracts the mean state of the *other* half first. (Centred on its own mean, any two class means lie at
180 degrees, which says nothing.) Then equal classes give about 90 degrees and separate ones go to 180.

Source: arXiv 2603.03308, section 5. All angles are in degrees and invariant to rotation and scale of the states.
"""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cutaway.errors import UsageError
from cutaway.reasoning.history_echoes.separation import (
    SEEDS,
    Labels,
    States,
    checked_states,
    consecutive,
    first_half,
    separation,
    why_undefined,
)
from cutaway.stats import Interval
from cutaway.study import Finding

KINDS = ("--", "-+", "+-", "++")
Views = list[tuple[np.ndarray, States]]
"""For each halving the first half, and all states as seen from it."""


@dataclass(frozen=True, repr=False)
class Geometry:
    """The plane of one behaviour at one site."""

    theta: Finding
    """Angle between the class means, degrees; jackknife interval over dialogues. Its control is the null."""
    null_high: float | None
    """95% quantile of theta under permuted labels."""
    p: float | None
    """Share of permutations with an angle at least as large."""
    noise_floor: float | None
    """Expected angle between two equal means, from the states' own scatter; degrees."""
    rotations: dict[str, float | None]
    """Degrees, by kind of transition; None where it never happened."""
    completeness: dict[str, float | None]
    """Rotation of -+ and +- over theta (minus it for +-)."""
    auc: Finding
    d_prime: Finding
    centred: bool

    def __repr__(self) -> str:
        p = "" if self.p is None else f", p={self.p:.3g}"
        return f"Geometry({self.theta}{p}, noise floor {self.noise_floor})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_geometry(
    states: States,
    labels: Labels,
    dialogue: Labels,
    turn: Labels,
    *,
    centred: bool = False,
    permutations: int = 200,
    seed: int = 0,
) -> Geometry:
    """Measure one site. ``labels`` are 0 or 1, ``dialogue`` and ``turn`` say where each state stands.

    What cannot be known (one class only, fewer than 2 dialogues, a half without a class) is undefined with its reason.
    """
    x = checked_states(states, labels, dialogue, turn)
    halves = [first_half(dialogue, s) for s in SEEDS]
    why = why_undefined(labels, dialogue, halves)
    if why:
        return _undefined(why, centred)
    views = [(half, x - x[~half].mean(0) if centred else x) for half in halves]
    angles = [float(_angles(y[half], labels[None, half])[0]) for half, y in views]
    if not np.isfinite(angles).all():
        return _undefined("a class mean is zero: no angle", centred)
    theta = float(np.mean(angles))
    reach = 1.96 * _jackknife_error(views, labels, dialogue)  # nan leaves the interval open
    interval = Interval(theta, theta - reach, theta + reach, len(labels), 0.95)
    control, null_high, p = _null(views, labels, dialogue, theta, permutations, seed)
    moves = [_rotations(y, labels, dialogue, turn, half) for half, y in views]
    rotations = {kind: _mean([found[kind] for found in moves]) for kind in KINDS}
    auc, d_prime = separation(x, labels, dialogue, halves[0])
    return Geometry(
        theta=Finding.of("theta", interval, unit="degrees", control=control),
        null_high=null_high,
        p=p,
        noise_floor=_floor_of(x, labels, halves),
        rotations=rotations,
        completeness={
            kind: None if turned is None or theta < 1e-9 else sign * turned / theta
            for kind, sign, turned in (("-+", 1, rotations["-+"]), ("+-", -1, rotations["+-"]))
        },
        auc=auc,
        d_prime=d_prime,
        centred=centred,
    )


def plane(
    minus: Float[np.ndarray, " d_model"], plus: Float[np.ndarray, " d_model"]
) -> tuple[Float[np.ndarray, "2 d_model"], float]:
    """Orthonormal (b1, b2) of two class means, and the angle between them in degrees (nan for a zero mean)."""
    lengths = np.linalg.norm(minus), np.linalg.norm(plus)
    if min(lengths) == 0:
        return np.zeros((2, len(minus))), np.nan
    first = minus / lengths[0]
    rest = plus - (plus @ first) * first
    size = np.linalg.norm(rest)
    second = rest / size if size > 1e-12 * lengths[1] else np.zeros_like(first)
    return np.stack([first, second]), float(np.degrees(np.arctan2(size, plus @ first)))


def rotation(source: Float[np.ndarray, "pair 2"], target: Float[np.ndarray, "pair 2"]) -> float:
    """Degrees of the rotation that best takes each source point to its target (2-D Procrustes); nan for no pair."""
    if not len(source):
        return np.nan
    cross = source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]
    return float(np.degrees(np.arctan2(cross.sum(), (source * target).sum())))


def noise_floor(r: float, n1: int, n0: int) -> float:
    """Degrees by which two equal means differ when a state's noise has ``r`` times the mean's norm.

    >>> round(noise_floor(1.0, 50, 900), 1)
    8.3
    """
    if min(n1, n0) < 1 or r < 0:
        raise UsageError(f"r={r}, n1={n1}, n0={n0}: r from 0 on, at least one state a class")
    return float(np.degrees(r * np.sqrt(1 / n1 + 1 / n0)))


def _null(
    views: Views, labels: Labels, dialogue: Labels, theta: float, permutations: int, seed: int
) -> tuple[Finding, float | None, float | None]:
    """Theta under labels permuted within dialogues: mean and range, its 95% quantile, and the p of ``theta``."""
    name = "theta, labels permuted"
    shuffled = _permute_within(labels, dialogue, permutations, seed)
    null = np.mean([_angles(y[half], shuffled[:, half]) for half, y in views], axis=0)
    null = null[np.isfinite(null)]
    if not len(null) or (shuffled == labels).all():
        return Finding(name, None, undefined="no dialogue holds both classes"), None, None
    low, high = np.quantile(null, [0.025, 0.975])
    p = float((1 + (null >= theta - 1e-9).sum()) / (1 + len(null)))
    control = Finding(name, float(null.mean()), float(low), float(high), n=len(null), unit="degrees")
    return control, float(np.quantile(null, 0.95)), p


def _jackknife_error(views: Views, labels: Labels, dialogue: Labels) -> float:
    """Standard error of theta from leaving out one dialogue at a time; nan where that leaves a class out."""
    names, member = np.unique(dialogue, return_inverse=True)
    without = np.zeros(len(names))
    for half, y in views:
        belongs = np.eye(len(names))[member[half]].T
        means = []
        for label in (0, 1):
            chosen = (labels[half] == label).astype(float)
            sums, counts = (belongs * chosen) @ y[half], (belongs * chosen).sum(1)
            left = counts.sum() - counts
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append((sums.sum(0) - sums) / left[:, None])
        without += _between(*means) / len(views)
    return float(np.sqrt((len(names) - 1) / len(names) * ((without - without.mean()) ** 2).sum()))


def _angles(x: States, labels: Int[np.ndarray, "row answer"]) -> Float[np.ndarray, " row"]:
    """Angle between class means for each row of labels; nan where a class is missing or a mean is zero."""
    counts = labels.sum(1, keepdims=True)
    plus = labels @ x
    minus = x.sum(0) - plus
    with np.errstate(invalid="ignore", divide="ignore"):
        return _between(minus / (labels.shape[1] - counts), plus / counts)


def _between(
    minus: Float[np.ndarray, "row d_model"], plus: Float[np.ndarray, "row d_model"]
) -> Float[np.ndarray, " row"]:
    """Degrees between the rows of two arrays; nan for a zero row."""
    with np.errstate(invalid="ignore", divide="ignore"):
        minus = minus / np.linalg.norm(minus, axis=1, keepdims=True)
        plus = plus / np.linalg.norm(plus, axis=1, keepdims=True)
    # Between unit vectors, 2 atan2(|a - b|, |a + b|) keeps its precision where arccos loses it.
    return np.degrees(2 * np.arctan2(np.linalg.norm(minus - plus, axis=1), np.linalg.norm(minus + plus, axis=1)))


def _rotations(
    x: States, labels: Labels, dialogue: Labels, turn: Labels, half: Bool[np.ndarray, " answer"]
) -> dict[str, float]:
    basis, _ = plane(x[half & (labels == 0)].mean(0), x[half & (labels == 1)].mean(0))
    flat = x @ basis.T
    now, then = consecutive(dialogue, turn)
    kept = ~half[now]
    now, then = now[kept], then[kept]
    found = {}
    for kind, (a, b) in zip(KINDS, product((0, 1), repeat=2), strict=True):
        here = (labels[now] == a) & (labels[then] == b)
        found[kind] = rotation(flat[now[here]], flat[then[here]])
    return found


def _floor_of(x: States, labels: Labels, halves: list[np.ndarray]) -> float:
    means = np.stack([x[labels == y].mean(0) for y in (0, 1)])
    scatter = np.sqrt(((x - means[labels]) ** 2).sum(1).mean())
    r = float(scatter / np.linalg.norm(x.mean(0)))
    return float(np.mean([noise_floor(r, int(labels[h].sum()), int((labels[h] == 0).sum())) for h in halves]))


def _permute_within(labels: Labels, dialogue: Labels, n: int, seed: int) -> Int[np.ndarray, "permutation answer"]:
    rng = np.random.default_rng(seed)
    home = np.argsort(dialogue, kind="stable")
    shuffled = np.empty((n, len(labels)), dtype=labels.dtype)
    for i in range(n):
        shuffled[i, home] = labels[np.lexsort((rng.random(len(labels)), dialogue))]
    return shuffled


def _undefined(why: str, centred: bool) -> Geometry:
    theta, auc, gap = (Finding(name, None, undefined=why) for name in ("theta", "AUC", "d'"))
    nothing: dict[str, float | None] = dict.fromkeys(KINDS)
    return Geometry(theta, None, None, None, nothing, {"-+": None, "+-": None}, auc, gap, centred)


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
