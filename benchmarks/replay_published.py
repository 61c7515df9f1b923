"""How few rollouts give the published curve? Replay on the published accuracies of 20 reasoning traces.

Each boundary of a trace has k right of n (about 100) published rollouts. Some of them are drawn without
replacement, the curve is estimated from these, and the estimate is scored against the *other* rollouts of the
same boundary, whose sampling variance is known and subtracted: ``mean (est - q)^2 - q (1 - q) / (r - 1)`` for
a share q of r others. That is unbiased for the squared error against the true curve, with no model of it. The
yardstick is the sampling variance of all n rollouts, the error of the published numbers themselves.

Ways to estimate: `raw` shares; `smooth` (`cutaway.stats.smooth_martingale` with its defaults); `adaptive`,
the same after rollouts were spent in rounds where the posterior variance per cost is largest. A budget is a
share of the cost of all rollouts; a rollout costs 1, or (`tokens`) the number of characters left in the
trace.

    python benchmarks/replay_published.py [--data FOLDER] [--repeats N] [--out FILE.json]
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutaway.reasoning.thought_anchors.published import counts_of
from cutaway.stats import smooth_martingale

SHARES = (0.05, 0.1, 0.2, 0.4)
ROUNDS = 12
HELD_OUT = 30
"""Rollouts of each boundary that are never spent, so that a score exists."""
Draw = Callable[[np.ndarray], np.ndarray]
"""Successes among the first ``m[i]`` rollouts of each boundary."""


@dataclass(frozen=True)
class Boundaries:
    """One trace: successes and rollouts at each boundary, and the characters a rollout would still write."""

    name: str
    k: np.ndarray
    n: np.ndarray
    left: np.ndarray

    @property
    def yardstick(self) -> float:
        share = self.k / self.n
        return float(np.mean(share * (1 - share) / (self.n - 1)))


def load(folder: Path) -> list[Boundaries]:
    """Read ``accuracy.json``."""
    traces = []
    for name, columns in json.loads((folder / "accuracy.json").read_text()).items():
        pairs = np.array([counts_of(share) for share in columns["accuracy"]])
        length = np.array(columns["characters"], dtype=float)
        traces.append(Boundaries(name, pairs[:, 0], pairs[:, 1], length[::-1].cumsum()[::-1]))
    return traces


def raw(trace: Boundaries, draw: Draw, price: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of an equal part of each boundary's rollouts."""
    m = np.maximum(1, np.round(share * trace.n)).astype(int)
    return draw(m) / m, m


def smooth(trace: Boundaries, draw: Draw, price: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean from an equal part of each boundary's rollouts."""
    m = np.maximum(1, np.round(share * trace.n)).astype(int)
    return smooth_martingale(draw(m), m, np.zeros(len(m))).mean[:-1], m


def adaptive(trace: Boundaries, draw: Draw, price: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean after a thin pass (a fifth of the budget) and rounds at the worst-known quarter."""
    budget, most = share * float(price @ trace.n), np.maximum(trace.n - HELD_OUT, 1)
    m = np.minimum(most, np.maximum(1, np.round(0.2 * budget / price.sum()))).astype(int)
    quarter = max(1, len(m) // 4)
    for left in range(ROUNDS, -1, -1):
        found = smooth_martingale(draw(m), m, np.zeros(len(m)))
        if left == 0:
            break
        variance, mean = found.sd[:-1] ** 2, found.mean[:-1]
        gain = np.where(m < most, variance**2 / (variance + mean * (1 - mean) + 1e-9) / price, -1.0)
        chosen = np.argsort(-gain)[:quarter]
        funds = (budget - price @ m) / left
        size = max(1, round(funds / price[chosen].sum()))
        for i in chosen:
            extra = min(size, most[i] - m[i], int((budget - price @ m) // price[i]))
            m[i] += max(0, extra)
    return found.mean[:-1], m


METHODS = {"raw": raw, "smooth": smooth, "adaptive": adaptive}


def replay(trace: Boundaries, method: str, unit: str, share: float, rng: np.random.Generator) -> dict[str, float]:
    """One replay: unbiased squared error and what was spent."""
    order = [rng.permutation(np.arange(n) < k) for k, n in zip(trace.k, trace.n, strict=True)]
    right = [np.concatenate([[0], np.cumsum(row)]) for row in order]

    def draw(m: np.ndarray) -> np.ndarray:
        return np.array([row[i] for row, i in zip(right, m, strict=True)])

    price = np.ones(len(trace.n)) if unit == "rollouts" else trace.left / trace.left.mean()
    estimate, m = METHODS[method](trace, draw, price, share)
    others = trace.n - m
    scored = others > 1
    q = (trace.k - draw(m))[scored] / others[scored]
    error = np.mean((estimate[scored] - q) ** 2 - q * (1 - q) / (others[scored] - 1))
    return {
        "error": float(error),
        "rollouts": float(m.sum() / trace.n.sum()),
        "tokens": float(m @ trace.left / (trace.n @ trace.left)),
    }


def ratio(traces: list[Boundaries], errors: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """RMSE over the yardstick's RMSE, sentences pooled, with a bootstrap interval over problems."""
    weight = np.array([len(t.n) for t in traces])
    yard = weight * np.array([t.yardstick for t in traces])
    problems = np.array([t.name.split("_")[-1] for t in traces])
    members = [np.flatnonzero(problems == p) for p in np.unique(problems)]
    rng = np.random.default_rng(seed)
    picks = [np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))]) for _ in range(2000)]
    ratios = [np.sqrt((weight * errors)[rows].sum() / yard[rows].sum()) for rows in picks]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.sqrt((weight * errors).sum() / yard.sum())), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "data" / "thought-anchors")
    parser.add_argument("--repeats", type=int, default=2, help="replays of each trace and setting")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    traces = load(options.data)
    weight = np.array([len(t.n) for t in traces])
    print(f"{len(traces)} traces, {weight.sum()} boundaries; ratio = RMSE / RMSE of all published rollouts,")
    print("with a bootstrap interval over the 10 problems")
    print(f"{'method':9} {'unit':9} {'budget':>6} {'rollouts':>8} {'tokens':>7} {'rmse':>7}  ratio [95%]")
    rows = []
    settings = [("raw", "rollouts"), ("smooth", "rollouts"), ("adaptive", "rollouts"), ("adaptive", "tokens")]
    for share in SHARES:
        for method, unit in settings:
            rng = np.random.default_rng(0)
            runs = [[replay(trace, method, unit, share, rng) for _ in range(options.repeats)] for trace in traces]
            mean = {key: np.array([np.mean([r[key] for r in run]) for run in runs]) for key in runs[0][0]}
            value, low, high = ratio(traces, mean["error"])
            row = {
                "method": method,
                "unit": unit,
                "budget": share,
                "rollouts": float(np.average(mean["rollouts"], weights=weight)),
                "tokens": float(np.average(mean["tokens"], weights=weight)),
                "rmse": float(np.sqrt(np.average(mean["error"], weights=weight))),
                "ratio": value,
                "low": low,
                "high": high,
            }
            rows.append(row)
            print(
                f"{method:9} {unit:9} {share:6.0%} {row['rollouts']:8.1%} {row['tokens']:7.1%}"
                f" {row['rmse']:7.4f}  {value:.3f} [{low:.3f}, {high:.3f}]"
            )
            sys.stdout.flush()
    if options.out:
        options.out.write_text(json.dumps({"repeats": options.repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
