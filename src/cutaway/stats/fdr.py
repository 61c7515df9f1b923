"""False-discovery control over a list of tests: from p-values, and from e-values under any dependence."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cutaway.errors import UsageError
from cutaway.stats.values import Values


@dataclass(frozen=True)
class Discoveries:
    """Which tests are rejected when at most a share ``q`` of rejections may be false, in the order given."""

    rejected: Bool[np.ndarray, " test"]
    adjusted: Float[np.ndarray, " test"]
    """Smallest q at which a test would be rejected; 1 when never."""
    q: float

    def __repr__(self) -> str:
        return f"{int(self.rejected.sum())} of {self.rejected.size} rejected at false-discovery rate {self.q:g}"


def benjamini_hochberg(p: Values, q: float = 0.05) -> Discoveries:
    """Step-up on p-values (Benjamini, Hochberg 1995); needs independent or positively dependent tests."""
    values = np.asarray(p, dtype=float).reshape(-1)
    if not np.all((values >= 0) & (values <= 1)):
        raise UsageError("every p-value must be a number in [0, 1]; drop tests that are undefined first")
    return _step_up(values, q)


def e_benjamini_hochberg(log_e: Values, q: float = 0.05) -> Discoveries:
    """Step-up on e-values given as logs (Wang, Ramdas 2022); valid under arbitrary dependence and stopping.

    The k tests with the largest e are rejected for the largest k with ``e_(k) >= m / (k q)``: the step-up of
    Benjamini and Hochberg applied to 1 / e. ``-inf`` is a legal log e (no evidence at all).
    """
    values = np.asarray(log_e, dtype=float).reshape(-1)
    if np.isnan(values).any():
        raise UsageError("a log e-value is nan: drop tests that are undefined first")
    return _step_up(np.exp(np.minimum(-values, 700.0)), q)


def _step_up(p: np.ndarray, q: float) -> Discoveries:
    if not 0 < q < 1:
        raise UsageError(f"q={q}: the false-discovery rate must lie strictly between 0 and 1, such as 0.05")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * p.size / np.arange(1, p.size + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return Discoveries(adjusted <= q, adjusted, q)
