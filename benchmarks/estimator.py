"""How well a fifth of the tokens does: the deviation estimator against 100 free rollouts a boundary.

Traces of the planted reasoner, whose exact answer curve is known. On each trace the uniform estimator runs once and
the deviation estimator at 5, 10 and 20% of the tokens that uniform decoded there. The root mean squared error is
over all boundaries of all traces; the interval of its ratio is a bootstrap over traces.

    python benchmarks/estimator.py [--quick] [--out FILE.json]
"""

import numpy as np
from timing import Claim, options, report

from cutaway.planted import reasoner
from cutaway.reasoning.thought_anchors.calibration import planted_run

SHARES = (0.05, 0.1, 0.2)
PLANTED = "ffpfsfsfa"


def errors(traces: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error [trace way] over the boundaries and decoded tokens [trace way]; way 0 is uniform."""
    planted = reasoner(PLANTED)
    error, tokens = np.zeros((traces, 1 + len(SHARES))), np.zeros((traces, 1 + len(SHARES)))
    for trace in range(traces):
        budget = None
        for way, share in enumerate((None, *SHARES)):
            if share is None:
                found, truth = planted_run(planted, trace, estimator="uniform")
                budget = found.decoded
            else:
                found, truth = planted_run(planted, trace, budget=int(share * budget))
            # The last boundary is the trace's own answer, known without a rollout.
            error[trace, way] = np.mean((found.curve[:-1, 0] - truth[:-1]) ** 2)
            tokens[trace, way] = found.decoded
    return error, tokens


def main() -> None:
    given = options(__doc__)
    error, tokens = errors(4 if given.quick else 40)
    rng, n = np.random.default_rng(0), len(error)
    picks = rng.integers(0, n, (4000, n))
    claims = []
    for way, share in enumerate(SHARES, start=1):
        ratio = float(np.sqrt(error[:, way].mean() / error[:, 0].mean()))
        spread = np.sqrt(error[picks, way].mean(1) / error[picks, 0].mean(1))
        low, high = np.quantile(spread, [0.025, 0.975])
        spent = tokens[:, way].sum() / tokens[:, 0].sum()
        what = f"RMSE of the curve at a budget of {share:.0%} (spent {spent:.1%})"
        bar = 1.0 if share == 0.2 else None
        claims.append(Claim(what, "uniform, 100 rollouts a boundary", ratio, float(low), float(high), bar))
    rmse = np.sqrt(error.mean(0)).tolist()
    ways = ["uniform", *(f"deviation {share:.0%}" for share in SHARES)]
    details = {"rmse": dict(zip(ways, rmse, strict=True)), "tokens": dict(zip(ways, tokens.mean(0), strict=True))}
    report(given, claims, planted=PLANTED, traces=n, interval="bootstrap over traces, 95%", **details)


if __name__ == "__main__":
    main()
