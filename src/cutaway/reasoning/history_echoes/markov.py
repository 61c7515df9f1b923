"""Stickiness: how a behaviour at one turn goes with the behaviour at the next, and why that alone proves nothing.

1. Pairs ``(y_t, y_{t+1})`` inside a dialogue are counted; there is no pair from the last turn to the first.
2. Row-normalised they give the 2x2 matrix T; ``Tr = P(-|-) + P(+|+) = 1 + lambda_2``. Tr above 1 looks sticky.
3. ``Delta_k = P(+ | +^k) - P(+ | - +^(k-1))`` looks k turns back; undefined under 20 cases in either context.
4. Intervals resample whole dialogues.
5. The same Tr is computed where nothing can carry over: outcomes permuted among turns of like difficulty, and the
   same questions in the same order asked without any history. Neighbouring questions that are alike, and dialogues
   that are harder than others, give Tr above 1 there too. So Tr is never called an effect; `forced` measures one.

Source: arXiv 2603.03308, section 4, with the wrap-around pair of its public script removed. An outcome is 1 (the
behaviour is present), 0 (absent) or -1 (unknown: the pairs around it are left out).
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cutaway.errors import UsageError
from cutaway.study import Finding

# Shapes are compared by hand, so that a mismatch is an error of ours; "_" leaves the axes unchecked.
Outcomes = Int[np.ndarray, "_dialogue _turn"]
MIN_CASES = 20
RESAMPLES = 2000
NOT_CAUSAL = (
    "not causal: neighbouring questions of like difficulty, and dialogues of unlike difficulty, give Tr above 1 "
    "without any carry-over"
)


@dataclass(frozen=True, repr=False)
class Stickiness:
    """Transitions of one behaviour over many dialogues."""

    counts: tuple[tuple[int, int], tuple[int, int]]
    """``counts[a][b]``: turns with outcome a followed by outcome b."""
    trace: Finding
    """Tr(T); its control is the same Tr where nothing can carry over."""
    lambda2: Finding
    base_rate: Finding
    deltas: tuple[Finding, ...]
    """Delta_1 to Delta_3."""
    permuted: Finding
    """Tr with outcomes permuted among turns of like difficulty: mean, and the range of 95% of permutations."""
    permuted_p: float | None
    """Share of permutations with a Tr at least as large."""
    history_free: Finding
    """Tr of the same questions in the same order, each asked without history."""
    excess: Finding
    """Tr minus `history_free`."""
    dialogues: int

    @property
    def matrix(self) -> tuple[tuple[float | None, float | None], ...]:
        """Rows P(next | now), minus first; None where a state never occurred before another turn."""
        return tuple(tuple(n / sum(row) if sum(row) else None for n in row) for row in self.counts)  # type: ignore[misc]

    @property
    def reading(self) -> str:
        """One sentence: what Tr may be taken for, with what items alone give."""
        if self.trace.value is None:
            return f"Tr undefined: {self.trace.undefined}"
        beside = [
            f"{each.name} {each.value:.2f}" for each in (self.permuted, self.history_free) if each.value is not None
        ]
        return f"Tr {self.trace.value:.2f} is {NOT_CAUSAL}; {', '.join(beside) or 'nothing known about the items'}"

    def __repr__(self) -> str:
        return f"Stickiness({self.trace}; {self.dialogues} dialogues; not causal)"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"matrix": self.matrix, "reading": self.reading}


def measure_stickiness(
    outcomes: Outcomes,
    *,
    strata: Outcomes | None = None,
    history_free: Outcomes | None = None,
    permutations: int = 1000,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Stickiness:
    """Measure transitions with dialogue-bootstrap intervals and the two controls.

    ``strata`` labels each turn's difficulty; ``history_free`` holds each question's outcome without history. Both
    have the shape of ``outcomes``. Raises UsageError for values other than -1, 0, 1 and for other shapes.
    """
    y = _check(outcomes, "outcomes")
    cells = pair_counts(y)
    weights = _weights(len(y), resamples, seed)
    trace = _estimate("Tr", cells, _trace, _why_no_trace(cells), weights, level)
    free, excess = _against_free(y, cells, history_free, weights, level)
    permuted, p = _permuted(y, strata, trace, permutations, level, seed)
    known = np.stack([(y == 1).sum(1), (y >= 0).sum(1)], axis=1)
    control = free if free.value is not None else permuted
    deltas = tuple(_delta(y, k, weights, level) for k in (1, 2, 3))
    total = cells.sum(0)
    return Stickiness(
        counts=((int(total[0, 0]), int(total[0, 1])), (int(total[1, 0]), int(total[1, 1]))),
        trace=replace(trace, control=control),
        lambda2=_estimate("lambda_2", cells, lambda c: _trace(c) - 1, _why_no_trace(cells), weights, level),
        base_rate=_estimate(
            "P(+)",
            known,
            lambda c: _ratio(c[..., 0], c[..., 1]),
            _why_none(known),
            weights,
            level,
            n=int((y >= 0).sum()),
        ),
        deltas=deltas,
        permuted=permuted,
        permuted_p=p,
        history_free=free,
        excess=excess,
        dialogues=len(y),
    )


def pair_counts(outcomes: Outcomes) -> Int[np.ndarray, "dialogue 2 2"]:
    """Pairs of consecutive known outcomes in each dialogue.

    >>> pair_counts(np.array([[0, 0, 0, 1]]))[0].tolist()
    [[2, 1], [0, 0]]
    """
    now, then = outcomes[:, :-1], outcomes[:, 1:]
    counts = [[((now == a) & (then == b)).sum(1) for b in (0, 1)] for a in (0, 1)]
    return np.array(counts).transpose(2, 0, 1)


def context_counts(outcomes: Outcomes, k: int) -> Int[np.ndarray, "dialogue 2 2"]:
    """``[d, first, 0 or 1]``: cases and ``+`` cases after ``first +^(k-1)``, first being ``-`` (0) or ``+`` (1)."""
    turns = outcomes.shape[1]
    if turns <= k:
        return np.zeros((len(outcomes), 2, 2), dtype=int)
    windows = np.lib.stride_tricks.sliding_window_view(outcomes, k + 1, axis=1)
    rest = (windows[..., 1:k] == 1).all(-1)
    found = []
    for first in (0, 1):
        here = rest & (windows[..., 0] == first) & (windows[..., k] >= 0)
        found.append([here.sum(1), (here & (windows[..., k] == 1)).sum(1)])
    return np.array(found).transpose(2, 0, 1)


def trace_of(outcomes: Outcomes) -> float:
    """Tr pooled over dialogues; nan where a state never occurs before another turn."""
    return float(_trace(pair_counts(outcomes).sum(0)))


def permuted_traces(
    outcomes: Outcomes, strata: Outcomes, permutations: int = 1000, seed: int = 0
) -> Float[np.ndarray, " permutation"]:
    """Tr after outcomes are permuted among all known turns of the same stratum, whatever their dialogue."""
    if strata.shape != outcomes.shape:
        raise UsageError(f"strata has shape {strata.shape}, outcomes {outcomes.shape}: one label a turn")
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(outcomes.ravel() >= 0)
    labels = strata.ravel()[known]
    home = known[np.argsort(labels, kind="stable")]
    values = outcomes.ravel()[home]
    sorted_labels = np.sort(labels, kind="stable")
    traces = np.empty(permutations)
    for i in range(permutations):
        shuffled = outcomes.copy().ravel()
        shuffled[home] = values[np.lexsort((rng.random(len(home)), sorted_labels))]
        traces[i] = trace_of(shuffled.reshape(outcomes.shape))
    return traces


def _against_free(
    y: Outcomes, cells: np.ndarray, history_free: Outcomes | None, weights: np.ndarray, level: float
) -> tuple[Finding, Finding]:
    names = "Tr without history", "Tr minus Tr without history"
    if history_free is None:
        missing = "the questions were not asked without history"
        return Finding(names[0], None, undefined=missing), Finding(names[1], None, undefined=missing)
    other = pair_counts(_check(history_free, "history_free"))
    if len(other) != len(cells):
        raise UsageError(f"history_free has {len(other)} dialogues, outcomes {len(cells)}")
    free = _estimate(names[0], other, _trace, _why_no_trace(other), weights, level)
    both = np.stack([cells, other], axis=1)
    why = _why_no_trace(cells) or _why_no_trace(other)
    return free, _estimate(
        names[1],
        both,
        lambda c: _trace(c[..., 0, :, :]) - _trace(c[..., 1, :, :]),
        why,
        weights,
        level,
        n=int(cells.sum()),
    )


def _permuted(
    y: Outcomes, strata: Outcomes | None, trace: Finding, permutations: int, level: float, seed: int
) -> tuple[Finding, float | None]:
    name = "Tr from difficulty alone"
    if strata is None or trace.value is None:
        reason = trace.undefined or "no difficulty was given"
        return Finding(name, None, undefined=reason), None
    traces = permuted_traces(y, strata, permutations, seed)
    traces = traces[np.isfinite(traces)]
    if not len(traces):
        return Finding(name, None, undefined="every permutation left a state without a next turn"), None
    low, high = np.quantile(traces, [(1 - level) / 2, (1 + level) / 2])
    p = (1 + (traces >= trace.value - 1e-12).sum()) / (1 + len(traces))
    return Finding(name, float(traces.mean()), float(low), float(high), level, n=len(traces)), float(p)


def _delta(y: Outcomes, k: int, weights: np.ndarray, level: float) -> Finding:
    cells = context_counts(y, k)
    cases = cells.sum(0)[:, 0]
    short = [f"{'-+'[i]}{'+' * (k - 1)}: {cases[i]}" for i in (0, 1) if cases[i] < MIN_CASES]
    why = f"fewer than {MIN_CASES} cases after {' and '.join(short)}" if short else ""

    def delta(c: np.ndarray) -> Any:
        rates = _ratio(c[..., 1], c[..., 0])
        return rates[..., 1] - rates[..., 0]

    return _estimate(f"Delta_{k}", cells, delta, why, weights, level, n=int(cases.sum()))


def _estimate(
    name: str, cells: np.ndarray, statistic: Any, why: str, weights: np.ndarray, level: float, n: int | None = None
) -> Finding:
    """``statistic`` of the summed cells, with the percentile interval over resampled dialogues."""
    if not why and len(cells) < 2:
        why = f"{len(cells)} dialogue: an interval over dialogues needs at least 2"
    if why:
        return Finding(name, None, undefined=why, level=level)
    value = float(statistic(cells.sum(0)))
    drawn = np.tensordot(weights, cells, axes=1)
    replicates = np.asarray(statistic(drawn))
    replicates = replicates[np.isfinite(replicates)]
    n = int(cells.sum()) if n is None else n
    # Without spread the resamples know no interval: open ends, not a width of zero.
    if len(replicates) < 0.5 * len(weights) or np.ptp(replicates) == 0:
        return Finding(name, value, level=level, n=n)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Finding(name, value, float(min(low, value)), float(max(high, value)), level, n=n)


def _weights(dialogues: int, resamples: int, seed: int) -> Float[np.ndarray, "resample dialogue"]:
    rng = np.random.default_rng(seed)
    return rng.multinomial(dialogues, np.full(dialogues, 1 / max(dialogues, 1)), size=resamples).astype(float)


def _trace(cells: np.ndarray) -> Any:
    stay = np.stack([cells[..., 0, 0], cells[..., 1, 1]], axis=-1)
    return _ratio(stay, cells.sum(-1)).sum(-1)


def _ratio(part: Any, whole: Any) -> Any:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _why_no_trace(cells: np.ndarray) -> str:
    rows = cells.sum((0, 2))
    if not rows.any():
        return "no two consecutive answers are known"
    absent = [sign for sign, count in zip("-+", rows, strict=True) if not count]
    return f"'{absent[0]}' never occurs before another turn" if absent else ""


def _why_none(known: np.ndarray) -> str:
    return "" if known.sum() else "no outcome is known"


def _check(outcomes: Outcomes, name: str) -> Outcomes:
    y = np.asarray(outcomes)
    if y.ndim != 2 or not np.isin(y, (-1, 0, 1)).all():
        raise UsageError(f"{name} of shape {y.shape}: give [dialogue, turn] with 1, 0, or -1 for unknown")
    if not y.size:
        raise UsageError(f"{name} of shape {y.shape}: no turn at all")
    return y.astype(int)
