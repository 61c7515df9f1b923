"""Do states tell + from -, and what comes next? Shares of pairs that a direction orders rightly, by dialogue.

The direction is the difference of the class means on one half of the dialogues; pairs are ordered on the other half.
Neither what all states share nor their scale moves these numbers. The other plain parts that the angles use too
(halves, consecutive answers, the reasons for undefined) stand here.

Source: card history-echoes, beyond the paper. Intervals leave out one dialogue at a time.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import t

from cutaway.errors import UsageError
from cutaway.study import Finding

SEEDS = (42, 7, 21)
"""Of the halvings, as in the paper."""
States = Float[np.ndarray, "_answer d_model"]
# Lengths are compared in `checked_states`, so that a mismatch is an error of ours; "_" leaves the axis unchecked.
Labels = Int[np.ndarray, "_answer"]


def separation(
    x: States, labels: Labels, dialogue: Labels, half: Bool[np.ndarray, " _answer"]
) -> tuple[Finding, Finding]:
    """AUC and d' on the second half, along the mean difference of the first.

    One halving, and the halves do not change places: what one half learns from is what the other is scored on, and
    an interval over dialogues would count their agreement twice (where there is nothing to find it covers 82% when
    halves swap and 90% over three halvings, not 95%).
    """
    names = np.unique(dialogue)
    score, held = (x @ _direction(x, labels, half))[~half], labels[~half]
    home = np.searchsorted(names, dialogue[~half])
    auc = _share("AUC", *_concordance(score, held, home * 0, home, len(names)), len(held))
    plus, minus = score[held == 1], score[held == 0]
    if min(len(plus), len(minus)) < 2:
        return auc, Finding("d'", None, undefined="the second half has fewer than two answers of a class")
    scatter = np.sqrt((plus.var(ddof=1) + minus.var(ddof=1)) / 2)
    gap = float(plus.mean() - minus.mean())
    if scatter <= 1e-9 * abs(gap):
        return auc, Finding("d'", None, undefined="classes have no scatter")
    return auc, Finding("d'", gap / float(scatter), n=len(held))


def trapped_signal(
    states: States,
    labels: Labels,
    dialogue: Labels,
    turn: Labels,
    ease: Float[np.ndarray, " answer"],
) -> Finding:
    """Does the state at turn t say more about turn t + 1 than the outcome at t and the next item's ease do?

    The projection onto the mean difference (fitted on the other half of the dialogues) is compared between turns
    that are followed by + and by -, only among turns with the same outcome and the same third of the next item's
    ease. The number is the share of such pairs that it orders rightly; 0.5 is nothing.
    """
    name = "trapped signal"
    x = checked_states(states, labels, dialogue, turn)
    now, then = consecutive(dialogue, turn)
    half = first_half(dialogue, SEEDS[0])
    why = why_undefined(labels, dialogue, [half, ~half])
    if why or not len(now):
        return Finding(name, None, undefined=why or "no two consecutive answers are known")
    score = np.where(half, x @ _direction(x, labels, ~half), x @ _direction(x, labels, half))
    thirds = np.searchsorted(np.quantile(ease[then], [1 / 3, 2 / 3]), ease[then])
    stratum = 12 * half[now] + 3 * labels[now] + thirds
    names, home = np.unique(dialogue[now], return_inverse=True)
    right, pairs = _concordance(score[now], labels[then], stratum, home, len(names))
    if pairs.sum() == 0:
        return Finding(name, None, undefined="no stratum has turns followed by + and by -")
    return _share(name, right, pairs, len(now))


def first_half(dialogue: Labels, seed: int) -> Bool[np.ndarray, " answer"]:
    """Mask of the answers whose dialogue falls into the first half of a random halving."""
    names = np.unique(dialogue)
    chosen = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    return np.isin(dialogue, chosen)


def consecutive(dialogue: Labels, turn: Labels) -> tuple[Labels, Labels]:
    """Indices of answers and of the answer one turn later in the same dialogue."""
    at = {place: i for i, place in enumerate(zip(dialogue.tolist(), turn.tolist(), strict=True))}
    pairs = [(i, at[d, t + 1]) for (d, t), i in at.items() if (d, t + 1) in at]
    now, then = np.array(pairs, dtype=int).reshape(-1, 2).T
    return now, then


def why_undefined(labels: Labels, dialogue: Labels, halves: list[np.ndarray]) -> str:
    """Why nothing can be measured with these halvings; empty where it can."""
    if len(np.unique(dialogue)) < 2:
        return f"{len(np.unique(dialogue))} dialogues: halves need at least 2"
    if len(np.unique(labels)) < 2:
        return f"only '{'-+'[int(labels[0])]}' occurs"
    for half in halves:
        for part in (half, ~half):
            if len(np.unique(labels[part])) < 2:
                return "a half of the dialogues holds one class only"
    return ""


def checked_states(
    states: States, labels: Labels, dialogue: Labels, turn: Labels
) -> Float[np.ndarray, "answer d_model"]:
    """The states as float64. UsageError where lengths differ or a label is neither 0 nor 1."""
    x = np.asarray(states, dtype=float)
    sizes = {len(x), len(labels), len(dialogue), len(turn)}
    if x.ndim != 2 or len(sizes) > 1:
        raise UsageError(
            f"states {x.shape}, {len(labels)} labels, {len(dialogue)} dialogues, {len(turn)} turns: lengths differ"
        )
    if not np.isin(labels, (0, 1)).all():
        raise UsageError("labels must be 0 or 1; leave unknown answers out")
    return x


def _direction(x: States, labels: Labels, fit: Bool[np.ndarray, " answer"]) -> Float[np.ndarray, " d_model"]:
    return x[fit & (labels == 1)].mean(0) - x[fit & (labels == 0)].mean(0)


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


def _share(name: str, right: np.ndarray, pairs: np.ndarray, n: int) -> Finding:
    """Share of pairs ordered rightly; jackknife interval over the dialogues that hold one, open where one rules."""
    unit, value = "share of pairs", float(right.sum() / pairs.sum())
    used = np.flatnonzero(pairs.sum(0) + pairs.sum(1))
    kept = [table.sum() - table.sum(0) - table.sum(1) + table.diagonal() for table in (right, pairs)]
    without, left = (each[used] for each in kept)
    if len(used) < 2 or (left <= 0).any():
        return Finding(name, value, n=n, unit=unit)
    shares = without / left
    error = np.sqrt((len(used) - 1) / len(used) * ((shares - shares.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, len(used) - 1) * error)
    return Finding(name, value, max(value - reach, 0.0), min(value + reach, 1.0), n=n, unit=unit)
