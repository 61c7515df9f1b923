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
from scipy.stats import rankdata

from cutaway.errors import UsageError
from cutaway.study import Finding

SEEDS = (42, 7, 21)
KINDS = ("--", "-+", "+-", "++")
States = Float[np.ndarray, "_answer d_model"]
# Lengths are compared in `_check`, so that a mismatch is an error of ours; "_" leaves the axis unchecked.
Labels = Int[np.ndarray, "_answer"]


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
    x = _check(states, labels, dialogue, turn)
    halves = [_first_half(dialogue, s) for s in SEEDS]
    why = _why_undefined(labels, dialogue, halves)
    if why:
        return _undefined(why, centred)
    centres = [x[~half].mean(0) if centred else np.zeros(x.shape[1]) for half in halves]
    angles = [float(_angles(x[h] - c, labels[None, h])[0]) for h, c in zip(halves, centres, strict=True)]
    if not np.isfinite(angles).all():
        return _undefined("a class mean is zero: no angle", centred)
    shuffled = _permute_within(labels, dialogue, permutations, seed)
    null = np.mean([_angles(x[h] - c, shuffled[:, h]) for h, c in zip(halves, centres, strict=True)], axis=0)
    null = null[np.isfinite(null)]
    theta = float(np.mean(angles))
    error = _jackknife_error(x, labels, dialogue, halves, centres)
    moves = [_rotations(x - c, labels, dialogue, turn, h) for h, c in zip(halves, centres, strict=True)]
    rotations = {kind: _mean([found[kind] for found in moves]) for kind in KINDS}
    auc, d_prime = _separation(x, labels, dialogue, halves, seed)
    moved = len(null) and bool((shuffled != labels).any())
    control = Finding("theta, labels permuted", None, undefined="no dialogue holds both classes")
    if moved:
        low, high = np.quantile(null, [0.025, 0.975])
        control = Finding("theta, labels permuted", float(null.mean()), float(low), float(high), n=len(null))
    return Geometry(
        theta=Finding(
            "theta", theta, theta - 1.96 * error, theta + 1.96 * error, n=len(labels), unit="degrees", control=control
        ),
        null_high=float(np.quantile(null, 0.95)) if moved else None,
        p=float((1 + (null >= theta - 1e-9).sum()) / (1 + len(null))) if moved else None,
        noise_floor=_floor_of(x, labels, halves),
        rotations=rotations,
        completeness={
            kind: None if rotations[kind] is None or theta < 1e-9 else sign * float(rotations[kind] or 0.0) / theta
            for kind, sign in (("-+", 1), ("+-", -1))
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


def area_under_curve(scores: Float[np.ndarray, " answer"], labels: Labels) -> float:
    """P(score of a + above score of a -), ties half; nan without both classes."""
    n1, n0 = int((labels == 1).sum()), int((labels == 0).sum())
    if not n1 or not n0:
        return np.nan
    return float((rankdata(scores)[labels == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def trapped_signal(
    states: States,
    labels: Labels,
    dialogue: Labels,
    turn: Labels,
    ease: Float[np.ndarray, " answer"],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Finding:
    """Does the state at turn t say more about turn t + 1 than the outcome at t and the next item's ease do?

    The projection onto the mean difference (fitted on the other half of the dialogues) is compared between turns
    that are followed by + and by -, only among turns with the same outcome and the same third of the next item's
    ease. The number is the share of such pairs that it orders rightly; 0.5 is nothing. Resamples dialogues.
    """
    name = "trapped signal"
    x = _check(states, labels, dialogue, turn)
    now, then = _pairs(dialogue, turn)
    half = _first_half(dialogue, SEEDS[0])
    why = _why_undefined(labels, dialogue, [half, ~half])
    if why or not len(now):
        return Finding(name, None, undefined=why or "no two consecutive answers are known")
    score = np.where(half, x @ _direction(x, labels, ~half), x @ _direction(x, labels, half))
    thirds = np.searchsorted(np.quantile(ease[then], [1 / 3, 2 / 3]), ease[then])
    stratum = 12 * half[now] + 3 * labels[now] + thirds
    names, home = np.unique(dialogue[now], return_inverse=True)
    right, pairs = _concordance(score[now], labels[then], stratum, home, len(names))
    if pairs.sum() == 0:
        return Finding(name, None, undefined="no stratum has turns followed by + and by -")
    return _share(name, right, pairs, len(now), resamples, seed)


def _concordance(
    score: np.ndarray, follow: Labels, stratum: Labels, home: Labels, homes: int
) -> tuple[Float[np.ndarray, "home home"], Float[np.ndarray, "home home"]]:
    """[dialogue of +, dialogue of -] sums over pairs of one stratum: ordered rightly (ties half), and all."""
    belongs = np.eye(homes)[home]
    right, pairs = np.zeros((homes, homes)), np.zeros((homes, homes))
    for each in np.unique(stratum):
        plus, minus = (np.flatnonzero((stratum == each) & (follow == y)) for y in (1, 0))
        wins = (score[plus][:, None] > score[minus]) + 0.5 * (score[plus][:, None] == score[minus])
        right += belongs[plus].T @ wins @ belongs[minus]
        pairs += belongs[plus].T.sum(1, keepdims=True) * belongs[minus].sum(0)
    return right, pairs


def _share(name: str, right: np.ndarray, pairs: np.ndarray, n: int, resamples: int, seed: int) -> Finding:
    """Share of pairs ordered rightly, with the percentile interval over resampled dialogues."""
    value = float(right.sum() / pairs.sum())
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(right), np.full(len(right), 1 / len(right)), size=resamples).astype(float)
    drawn, all_pairs = (((counts @ table) * counts).sum(1) for table in (right, pairs))
    shares = drawn[all_pairs > 0] / all_pairs[all_pairs > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    return Finding(name, value, float(min(low, value)), float(max(high, value)), n=n, unit="share of pairs")


def _jackknife_error(
    x: States, labels: Labels, dialogue: Labels, halves: list[np.ndarray], centres: list[np.ndarray]
) -> float:
    """Standard error of theta from leaving out one dialogue at a time; nan where that leaves a class out."""
    names, member = np.unique(dialogue, return_inverse=True)
    without = np.zeros(len(names))
    for half, centre in zip(halves, centres, strict=True):
        belongs = np.eye(len(names))[member[half]].T
        means = []
        for y in (0, 1):
            chosen = (labels[half] == y).astype(float)
            sums, counts = (belongs * chosen) @ (x[half] - centre), (belongs * chosen).sum(1)
            left = counts.sum() - counts
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append((sums.sum(0) - sums) / left[:, None])
        without += _between(*means) / len(halves)
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
    now, then = _pairs(dialogue, turn)
    kept = ~half[now]
    now, then = now[kept], then[kept]
    found = {}
    for kind, (a, b) in zip(KINDS, product((0, 1), repeat=2), strict=True):
        here = (labels[now] == a) & (labels[then] == b)
        found[kind] = rotation(flat[now[here]], flat[then[here]])
    return found


def _pairs(dialogue: Labels, turn: Labels) -> tuple[Labels, Labels]:
    """Indices of answers and of the answer one turn later in the same dialogue."""
    at = {place: i for i, place in enumerate(zip(dialogue.tolist(), turn.tolist(), strict=True))}
    pairs = [(i, at[d, t + 1]) for (d, t), i in at.items() if (d, t + 1) in at]
    now, then = np.array(pairs, dtype=int).reshape(-1, 2).T
    return now, then


def _separation(
    x: States, labels: Labels, dialogue: Labels, halves: list[np.ndarray], seed: int
) -> tuple[Finding, Finding]:
    """AUC and d' on each second half, along the mean difference of its first half.

    The two halves do not change places: both would then measure the same agreement of their two differences, and an
    interval over dialogues would count it twice (it covers 82% instead of 95% where there is nothing to find).
    """
    names = np.unique(dialogue)
    right, pairs = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    gaps = []
    for half in halves:
        score, held = (x @ _direction(x, labels, half))[~half], labels[~half]
        home = np.searchsorted(names, dialogue[~half])
        found = _concordance(score, held, home * 0, home, len(names))
        right, pairs = right + found[0], pairs + found[1]
        plus, minus = score[held == 1], score[held == 0]
        if min(len(plus), len(minus)) > 1:
            scatter = np.sqrt((plus.var(ddof=1) + minus.var(ddof=1)) / 2)
            gap = plus.mean() - minus.mean()
            gaps.append(gap / scatter if scatter > 1e-9 * abs(gap) else np.inf)
    why = "" if gaps else "no half has two answers of each class"
    why = why or ("" if np.isfinite(gaps).all() else "classes have no scatter")
    d_prime = Finding("d'", None, undefined=why) if why else Finding("d'", float(np.mean(gaps)), n=len(labels))
    return _share("AUC", right, pairs, len(labels), 500, seed), d_prime


def _direction(x: States, labels: Labels, fit: Bool[np.ndarray, " answer"]) -> Float[np.ndarray, " d_model"]:
    return x[fit & (labels == 1)].mean(0) - x[fit & (labels == 0)].mean(0)


def _floor_of(x: States, labels: Labels, halves: list[np.ndarray]) -> float:
    means = np.stack([x[labels == y].mean(0) for y in (0, 1)])
    scatter = np.sqrt(((x - means[labels]) ** 2).sum(1).mean())
    r = float(scatter / np.linalg.norm(x.mean(0)))
    return float(np.mean([noise_floor(r, int(labels[h].sum()), int((labels[h] == 0).sum())) for h in halves]))


def _first_half(dialogue: Labels, seed: int) -> Bool[np.ndarray, " answer"]:
    names = np.unique(dialogue)
    chosen = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    return np.isin(dialogue, chosen)


def _permute_within(labels: Labels, dialogue: Labels, n: int, seed: int) -> Int[np.ndarray, "permutation answer"]:
    rng = np.random.default_rng(seed)
    home = np.argsort(dialogue, kind="stable")
    shuffled = np.empty((n, len(labels)), dtype=labels.dtype)
    for i in range(n):
        shuffled[i, home] = labels[np.lexsort((rng.random(len(labels)), dialogue))]
    return shuffled


def _why_undefined(labels: Labels, dialogue: Labels, halves: list[np.ndarray]) -> str:
    if len(np.unique(dialogue)) < 2:
        return f"{len(np.unique(dialogue))} dialogues: halves need at least 2"
    if len(np.unique(labels)) < 2:
        return f"only '{'-+'[int(labels[0])]}' occurs"
    for half in halves:
        for part in (half, ~half):
            if len(np.unique(labels[part])) < 2:
                return "a half of the dialogues holds one class only"
    return ""


def _undefined(why: str, centred: bool) -> Geometry:
    theta, auc, gap = (Finding(name, None, undefined=why) for name in ("theta", "AUC", "d'"))
    nothing: dict[str, float | None] = dict.fromkeys(KINDS)
    return Geometry(theta, None, None, None, nothing, {"-+": None, "+-": None}, auc, gap, centred)


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _check(states: States, labels: Labels, dialogue: Labels, turn: Labels) -> Float[np.ndarray, "answer d_model"]:
    x = np.asarray(states, dtype=float)
    sizes = {len(x), len(labels), len(dialogue), len(turn)}
    if x.ndim != 2 or len(sizes) > 1:
        raise UsageError(
            f"states {x.shape}, {len(labels)} labels, {len(dialogue)} dialogues, {len(turn)} turns: lengths differ"
        )
    if not np.isin(labels, (0, 1)).all():
        raise UsageError("labels must be 0 or 1; leave unknown answers out")
    return x
