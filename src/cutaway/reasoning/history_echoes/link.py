"""Does the angle go with the stickiness over models and data sets? A rank correlation with two null hypotheses.

Over all cells the correlation can come from the phenomena alone (refusal has large angles and a large Tr); permuting
within each phenomenon asks whether anything is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from cutaway.errors import UsageError


@dataclass(frozen=True)
class Link:
    """Spearman's rho of angle and Tr over cells."""

    rho: float
    p_all: float
    """Two-sided, cells permuted freely."""
    p_within: float
    """Two-sided, cells permuted within each phenomenon."""
    cells: int


def angle_link(
    theta: Sequence[float],
    trace: Sequence[float],
    phenomenon: Sequence[str],
    *,
    permutations: int = 5000,
    seed: int = 0,
) -> Link:
    """Correlate two numbers a cell (model x data set). UsageError for fewer than 3 cells or a constant."""
    a, b = rankdata(theta), rankdata(trace)
    groups = np.unique(np.asarray(phenomenon), return_inverse=True)[1]
    if not len(a) == len(b) == len(groups) or len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        raise UsageError(f"{len(a)} angles, {len(b)} traces, {len(groups)} labels: at least 3 cells that differ")
    rng = np.random.default_rng(seed)
    rho = float(np.corrcoef(a, b)[0, 1])
    tails = []
    for labels in (np.zeros_like(groups), groups):
        home = np.argsort(labels, kind="stable")
        drawn = np.empty((permutations, len(b)))
        for row in drawn:
            row[home] = b[np.lexsort((rng.random(len(b)), labels))]
        rhos = (drawn - b.mean()) @ (a - a.mean()) / (len(a) * a.std() * b.std())
        # Within phenomena the null is centred on what the phenomena alone give, not on 0.
        tails.append((1 + (np.abs(rhos - rhos.mean()) >= abs(rho - rhos.mean()) - 1e-12).sum()) / (1 + permutations))
    return Link(rho, float(tails[0]), float(tails[1]), len(a))
