"""Two sets of answers compared: the number, how it spreads, and what shuffled labels give.

Counts are aligned on one list of answers, the right one first and "no answer" last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import rel_entr

from cutaway.errors import UsageError
from cutaway.stats import Interval, newcombe, wilson

FLOOR = 1e-9
IDENTIFIED = 0.1
"""Least share of different rollouts at which the identity is read."""
DIVERGENCES = ("KL published", "KL", "JS")

Rows = Float[np.ndarray, " row"]
Counts = Float[np.ndarray, "row answer"]
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Sets:
    """Counts around one sentence."""

    before: Float[np.ndarray, "two answer"]
    """Rollouts that start before it, those similar to it first."""
    after: Float[np.ndarray, " answer"]
    known: bool = False
    """Whether ``after`` is the trace's own end, of which there is no doubt."""


@dataclass(frozen=True)
class Spec:
    """How one number is made from the sets around a sentence."""

    name: str
    what: str
    pair: Callable[[np.ndarray, np.ndarray], Pair]
    """The two sets that are compared, [row, answer] each, from before [row, two, answer] and after [row, answer]."""
    number: Callable[[Counts, Counts, Rows], Rows]
    """The number, from the two sets and the share d of different rollouts."""
    sign: int
    """1 for first minus second set, -1 for second minus first, 0 for a divergence."""
    answered: bool = False
    """Whether unanswered rollouts are left out, whatever the convention."""


@dataclass(frozen=True)
class Row:
    """One number of one sentence; see `importance.Measure`."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    control: float | None = None
    p: float | None = None
    undefined: str = ""


@dataclass(frozen=True)
class How:
    """Conventions of a table."""

    published: bool
    level: float
    resamples: int
    rng: np.random.Generator


def divergence(name: str, p: Counts, q: Counts) -> Rows:
    """Divergence of ``p`` from ``q``, counts row by row, in nats; nan where a side is empty."""
    if name not in DIVERGENCES:
        raise UsageError(f"divergence {name!r}: choose one of {', '.join(DIVERGENCES)}")
    a, b = shares(p), shares(q)
    if name == "KL":
        found = rel_entr(shares(p + 0.5), shares(q + 0.5)).sum(1)
    elif name == "JS":
        found = (rel_entr(a, (a + b) / 2) + rel_entr(b, (a + b) / 2)).sum(1) / 2
    else:
        found = np.maximum(rel_entr(shares(a + FLOOR), shares(b + FLOOR)).sum(1), 0.0)
    return np.where((p.sum(1) == 0) | (q.sum(1) == 0), np.nan, found)


def shares(counts: Counts) -> Counts:
    """Counts over their row's sum; zeros where a row is empty."""
    total = counts.sum(1, keepdims=True)
    return counts / np.where(total > 0, total, 1.0)


def contrast(specs: Sequence[Spec], sets: Sequence[Sets | str], how: How) -> list[list[Row]]:
    """Every spec's rows, one a sentence; a text in ``sets`` says why a sentence has no counts."""
    rows: list[list[Row]] = [[] for _ in specs]
    for each in sets:
        if isinstance(each, str):
            for found in rows:
                found.append(Row(undefined=each))
            continue
        n, n_after = int(each.before.sum()), int(each.after.sum())
        before = how.rng.multinomial(n, each.before.reshape(-1) / n, how.resamples).astype(float)
        after = how.rng.multinomial(n_after, each.after / max(n_after, 1), how.resamples).astype(float)
        resampled = before.reshape(-1, *each.before.shape), after
        for spec, found in zip(specs, rows, strict=True):
            found.append(_row(spec, each, resampled, how))
    return rows


def _row(spec: Spec, sets: Sets, resampled: Pair, how: How) -> Row:
    # An answer that neither set gave carries no pseudo-count; the first one stays, it is what accuracies count.
    used = (sets.before.sum(0) + sets.after > 0) | (np.arange(len(sets.after)) == 0)
    used[-1] &= not (spec.answered or how.published)
    p, q = spec.pair(sets.before[None][:, :, used], sets.after[None][:, used])
    d = sets.before[1].sum() / sets.before.sum()
    if not p.sum() or not q.sum() or not sets.after[used].sum():
        return Row(0.0, 0.0, 0.0) if how.published else Row(undefined=_why_empty(spec, sets, p))
    if spec.name.endswith("identity") and d < IDENTIFIED:
        return Row(undefined=f"unidentified: only {d:.0%} of the rollouts say something else")
    value = float(spec.number(p, q, np.array([d]))[0])
    low: float | None
    high: float | None
    if spec.name.endswith("accuracy"):
        low, high = _difference_ends(p, q, sets.known, spec.sign, how.level)
    else:
        before, after = resampled
        d_each = before[:, 1].sum(1) / before.sum((1, 2))
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = spec.number(*spec.pair(before[:, :, used], after[:, used]), d_each)
        low, high = _spread(replicates, value, spec.sign, how.level)
    pooled = (p + q)[0].astype(np.int64)
    dealt = how.rng.multivariate_hypergeometric(pooled, int(p.sum()), size=how.resamples).astype(float)
    null = spec.number(dealt, pooled - dealt, np.full(how.resamples, d))
    null = np.abs(null) if spec.sign else null
    reached = int((null >= abs(value) - 1e-12).sum())
    return Row(value, low, high, float(null.mean()), (1 + reached) / (1 + how.resamples))


def _why_empty(spec: Spec, sets: Sets, p: np.ndarray) -> str:
    if spec.pair is not _kept and not sets.before[1].sum():
        return "every rollout repeats the sentence"
    return "no rollout before it gave an answer" if not p.sum() else "no rollout after it gave an answer"


def _difference_ends(p: np.ndarray, q: np.ndarray, known: bool, sign: int, level: float) -> tuple[float, float]:
    """Newcombe ends of a difference of accuracies; Wilson ends where the second is known."""
    (a, n_a), (b, n_b) = [(int(side[0, 0]), int(side.sum())) for side in (p, q)]
    if known:
        one, end = wilson(a, n_a, level), b / n_b
        found = Interval(one.value - end, one.low - end, one.high - end, n_a, level)
    else:
        found = newcombe(a, n_a, b, n_b, level)
    return (found.low, found.high) if sign > 0 else (-found.high, -found.low)


def _spread(replicates: Rows, value: float, sign: int, level: float) -> tuple[float | None, float | None]:
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < len(replicates) / 2:
        return None, None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]) - (finite.mean() - value)
    return min(value, float(low) if sign else max(0.0, float(low))), max(value, float(high))


def _rate(counts: Counts) -> Rows:
    total = counts.sum(1)
    return np.divide(counts[:, 0], total, out=np.full(len(total), np.nan), where=total > 0)


def _kept(before: np.ndarray, after: np.ndarray) -> Pair:
    return before.sum(1), after


def _replaced(before: np.ndarray, after: np.ndarray) -> Pair:
    return before[:, 1], after + before[:, 0]


def _replaced_only(before: np.ndarray, after: np.ndarray) -> Pair:
    return before[:, 1], after


def _divergences(kind: str, pair: Callable[[np.ndarray, np.ndarray], Pair], of: str) -> list[Spec]:
    def number(name: str) -> Callable[[Any, Any, Any], Any]:
        return lambda p, q, d: divergence(name, p, q)

    return [
        Spec(
            f"{kind} importance, {name}",
            f"{name} divergence of the answers {of}; above 0 also without any effect.",
            pair,
            number(name),
            sign=0,
            answered=name == "KL published",
        )
        for name in DIVERGENCES
    ]


def _compared(kind: str, what: str, of: str) -> list[Spec]:
    """Accuracy after minus before, and the divergences of before from after."""
    accuracy = Spec(f"{kind} importance, accuracy", what, _kept, lambda p, q, d: _rate(q) - _rate(p), sign=-1)
    return [accuracy, *_divergences(kind, _kept, of)]


FREE = (
    *_compared(
        "resampling",
        "Change of P(answer) when the sentence is kept: after minus before.",
        "before the sentence from those after it",
    ),
    Spec(
        "counterfactual importance, accuracy",
        "P(answer) when something else is said, minus P(answer) after the sentence: the paper's sign.",
        _replaced_only,
        lambda p, q, d: _rate(p) - _rate(q),
        sign=1,
    ),
    *_divergences("counterfactual", _replaced, "when something else is said from all others"),
    Spec(
        "counterfactual importance, identity",
        "Counterfactual accuracy read off the curve: (before - after) / share of rollouts that say something else.",
        _kept,
        lambda p, q, d: (_rate(p) - _rate(q)) / d,
        sign=1,
    ),
)
"""Numbers from free rollouts."""
FORCED = tuple(
    _compared(
        "forced-answer",
        "Change of P(answer) when the answer is forced at once: after minus before.",
        "forced before the sentence from those forced after it",
    )
)
"""Numbers from forced answers."""
