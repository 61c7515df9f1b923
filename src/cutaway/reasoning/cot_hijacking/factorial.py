"""Did length change refusal, or did something that came with length?

Runs of many goals under cells (preamble tokens x what the preamble is x cue) become

1. a refusal rate a cell, with a bootstrap interval that draws whole goals;
2. a test of length within goals: T = sum over goals of sum (x - mean x) (y - mean y), x = log2(1 + tokens), against
   its distribution when a goal's outcomes are dealt out again over its runs (Mantel's extension of Cochran-Armitage);
   every goal is its own stratum, so how easily a goal is refused does not matter;
3. the same slope as a logistic regression with cluster-robust errors, beside relevance and cue;
4. a warning where length cannot be told from something else: no length-matched control, or a cue or a kind of
   preamble that only some lengths have;
5. `power`: how often the test would find a slope, by simulation with a random intercept a goal.

Runs that were empty, blocked or over the context say nothing about refusal and are left out (and counted).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from cutaway.errors import UsageError
from cutaway.grading.refusal import ANSWERED, Outcome
from cutaway.reasoning.cot_hijacking.rates import clustered_mean, refusal_rate
from cutaway.stats import Interval, wilson

CONTROL = "random"
"""The kind of preamble that has length and nothing else."""

ALPHA = 0.01
"""A length effect is reported below this p: several tests are looked at, and a false report is the costly one."""


@dataclass(frozen=True, order=True)
class Cell:
    """One condition; without tokens there is no preamble, whatever ``relevance`` says."""

    tokens: int
    relevance: str = "puzzle"
    cue: bool = False

    @property
    def kind(self) -> str:
        return self.relevance if self.tokens else "none"

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.kind}{', cue' if self.cue else ''}"


@dataclass(frozen=True)
class Trial:
    """One graded run; the text itself is not kept."""

    goal: str
    cell: Cell
    outcome: Outcome
    second: Outcome | None = None
    """Verdict of a second judge."""
    harmful: bool = True


@dataclass(frozen=True)
class Slope:
    """A change of refusal log-odds for each doubling of 1 + tokens, with its tests."""

    value: float
    low: float
    high: float
    p: float
    """Of the within-goal test; nan where no goal ever varied."""
    goals: int
    runs: int

    def __repr__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] a doubling, p={self.p:.3g}"


@dataclass(frozen=True)
class Factorial:
    """Refusal by condition, the length effect, and whether it can be read as one."""

    rates: dict[Cell, Interval]
    length: Slope
    """Over all preambles."""
    control: Slope | None
    """Length effect of the control preamble alone."""
    cue: Slope | None
    """Effect of the cue; a step, not a doubling."""
    excess: Interval | None
    """Refusal under the preamble minus refusal under the length-matched control, at the same lengths."""
    confounded: tuple[str, ...]
    left_out: dict[str, int]
    """Outcomes that are no answers, counted."""

    @property
    def detected(self) -> bool:
        """Whether the within-goal test finds an effect of length, at `ALPHA`."""
        return bool(self.length.p < ALPHA)

    def __repr__(self) -> str:
        flag = f"; length effect confounded: {'; '.join(self.confounded)}" if self.confounded else ""
        return f"Factorial({len(self.rates)} cells, length {self.length}{flag})"

    def to_frame(self) -> Any:
        """One row a cell."""
        import pandas as pd

        rows = [
            {**asdict(cell), "refusal": r.value, "low": r.low, "high": r.high, "n": r.n}
            for cell, r in self.rates.items()
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rates": [{**asdict(cell), **asdict(rate)} for cell, rate in self.rates.items()],
            "length": asdict(self.length),
            "control": self.control and asdict(self.control),
            "cue": self.cue and asdict(self.cue),
            "excess": self.excess and asdict(self.excess),
            "confounded": list(self.confounded),
            "left_out": dict(self.left_out),
        }


def analyse(trials: Sequence[Trial], *, seed: int = 0) -> Factorial:
    """Analyse the harmful runs of ``trials``; UsageError without a run that answered."""
    mine = [trial for trial in trials if trial.harmful]
    kept = [trial for trial in mine if trial.outcome in ANSWERED]
    if not kept:
        raise UsageError(f"none of {len(mine)} harmful runs answered; there is no refusal to analyse")
    by_cell: dict[Cell, list[Trial]] = {}
    for trial in sorted(mine, key=lambda t: t.cell):
        by_cell.setdefault(trial.cell, []).append(trial)
    rates = {
        cell: refusal_rate([t.outcome for t in runs], [t.goal for t in runs], seed=seed)
        for cell, runs in by_cell.items()
    }
    others = [trial for trial in kept if trial.cell.kind != CONTROL]
    controls = [trial for trial in kept if trial.cell.kind in (CONTROL, "none")]
    has_control = any(trial.cell.kind == CONTROL for trial in kept)
    cues = {trial.cell.cue for trial in kept}
    return Factorial(
        rates,
        slope(others or kept),
        slope(controls) if has_control else None,
        slope(kept, by="cue") if len(cues) > 1 else None,
        _excess(kept, seed) if has_control and others else None,
        confounds(list(by_cell)),
        {o: n for o in ("empty", "blocked", "over-context") if (n := sum(t.outcome == o for t in mine))},
    )


def confounds(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What else changes with length in a design; empty when length can be read on its own.

    >>> confounds([Cell(0), Cell(512)])
    ('no length-matched control: add random preambles of the same lengths',)
    """
    lengths = {cell.tokens for cell in cells}
    found: list[str] = []
    if len(lengths) < 2:
        return ("a single length: there is no length effect to read",)
    for cue in sorted({cell.cue for cell in cells if cell.tokens}):
        need = {c.tokens for c in cells if c.tokens and c.cue == cue and c.relevance != CONTROL}
        have = {c.tokens for c in cells if c.tokens and c.cue == cue and c.relevance == CONTROL}
        if need - have and not found:
            found.append("no length-matched control: add random preambles of the same lengths")
    for cue in sorted({cell.cue for cell in cells}):
        missing = lengths - {cell.tokens for cell in cells if cell.cue == cue}
        if missing:
            name = "with" if cue else "without"
            found.append(f"no runs {name} a cue at {', '.join(map(str, sorted(missing)))} tokens")
    return tuple(found)


def slope(trials: Sequence[Trial], by: str = "tokens") -> Slope:
    """Effect of length (or of the cue, ``by="cue"``) on refusal, adjusted for the other factors."""
    y = np.array([trial.outcome == "refuse" for trial in trials], dtype=float)
    goals = np.unique([trial.goal for trial in trials], return_inverse=True)[1]
    length = np.array([np.log2(1 + trial.cell.tokens) for trial in trials])
    cue = np.array([float(trial.cell.cue) for trial in trials])
    kinds = sorted({trial.cell.kind for trial in trials} - {"none"})[1:]
    dummies = [np.array([float(trial.cell.kind == kind) for trial in trials]) for kind in kinds]
    mine, other = (length, cue) if by == "tokens" else (cue, length)
    columns = [np.ones(len(y)), mine] + [x for x in (other, *dummies) if np.ptp(x) > 0]
    groups = len(np.unique(goals))
    if np.ptp(mine) == 0 or np.ptp(y) == 0 or groups < 2:
        return Slope(0.0 if np.ptp(mine) > 0 else np.nan, -np.inf, np.inf, np.nan, groups, len(y))
    strata = np.unique(
        np.column_stack([goals, *([other] if np.ptp(other) else []), *dummies]), axis=0, return_inverse=True
    )[1]
    value, error = cluster_logistic(np.column_stack(columns), y, goals)
    half = float(stats.t.ppf(0.975, groups - 1)) * error[1]
    return Slope(
        float(value[1]),
        float(value[1] - half),
        float(value[1] + half),
        within_goal_p(mine, y, strata.reshape(-1)),
        groups,
        len(y),
    )


def within_goal_p(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], goals: np.ndarray) -> float:
    """Two-sided p-value of a trend of ``y`` (0 or 1) with ``x`` within goals; nan where no goal varied.

    Exact mean and variance under redealing each goal's outcomes; normal approximation over goals.
    """
    total = variance = 0.0
    for goal in np.unique(goals):
        a, b = x[goals == goal], y[goals == goal]
        if len(a) < 2:
            continue
        total += float((a - a.mean()) @ (b - b.mean()))
        variance += float(((a - a.mean()) ** 2).sum() * ((b - b.mean()) ** 2).sum() / (len(a) - 1))
    return float(2 * stats.norm.sf(abs(total) / variance**0.5)) if variance > 0 else float("nan")


def cluster_logistic(
    x: Float[np.ndarray, "n p"], y: Float[np.ndarray, " n"], clusters: np.ndarray, ridge: float = 1e-2
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Logistic coefficients and cluster-robust standard errors (sandwich, times G / (G - 1)).

    ``ridge`` keeps separated data finite; it is small against any data that are not.
    """
    beta, penalty = np.zeros(x.shape[1]), ridge * np.eye(x.shape[1])
    penalty[0, 0] = 0.0
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        bread = (x * (p * (1 - p) + 1e-12)[:, None]).T @ x + penalty
        step = np.linalg.solve(bread, x.T @ (y - p) - penalty @ beta)
        beta = beta + step * min(1.0, 5.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            break
    p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
    scores = x * (y - p)[:, None]
    sums = np.array([scores[clusters == g].sum(0) for g in np.unique(clusters)])
    half = np.linalg.solve((x * (p * (1 - p) + 1e-12)[:, None]).T @ x + penalty, sums.T)
    return beta, np.sqrt(len(sums) / (len(sums) - 1) * (half**2).sum(1))


def power(
    lengths: Sequence[int],
    *,
    goals: int,
    base: float,
    per_doubling: float,
    spread: float = 1.0,
    runs: int = 1,
    trials: int = 400,
    seed: int = 0,
) -> Interval:
    """Share of simulated experiments in which the within-goal test finds a length effect, at `ALPHA`.

    base: refusal of a median goal at the shortest length; per_doubling: change of its log-odds for each doubling of
    1 + tokens; spread: standard deviation of the goals' log-odds; runs: runs of each goal at each length.
    """
    if goals < 2 or len(set(lengths)) < 2 or not 0 < base < 1:
        raise UsageError(f"goals={goals}, lengths={list(lengths)}, base={base}: 2 goals, 2 lengths and 0 < base < 1")
    rng = np.random.default_rng(seed)
    x = np.log2(1 + np.repeat(np.asarray(lengths, dtype=float), runs))
    own = np.repeat(np.arange(goals), len(x))
    found = 0
    for _ in range(trials):
        odds = np.log(base / (1 - base)) + spread * rng.standard_normal((goals, 1)) + per_doubling * (x - x.min())
        y = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)
        found += bool(within_goal_p(np.tile(x, goals), y.ravel(), own) < ALPHA)
    return wilson(found, trials)


def _excess(trials: Sequence[Trial], seed: int) -> Interval | None:
    """Refusal under the preamble minus under the control, goal by goal over the cells that both have."""

    def rates(control: bool) -> dict[tuple[str, int, bool], float]:
        found: dict[tuple[str, int, bool], list[bool]] = {}
        for t in trials:
            if t.cell.tokens and (t.cell.kind == CONTROL) == control:
                found.setdefault((t.goal, t.cell.tokens, t.cell.cue), []).append(t.outcome == "refuse")
        return {key: float(np.mean(values)) for key, values in found.items()}

    mine, theirs = rates(False), rates(True)
    shared = sorted(set(mine) & set(theirs))
    if not shared:
        return None
    gaps = np.array([mine[key] - theirs[key] for key in shared])
    goals = np.unique([key[0] for key in shared], return_inverse=True)[1]
    found = clustered_mean(gaps, goals, seed=seed)
    if np.ptp(gaps) > 0:
        return found
    # All differences are the same: resampling knows no interval, and that of a share says nothing of a difference.
    return Interval(found.value, np.nan, np.nan, found.n, found.level)
