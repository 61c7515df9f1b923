"""Detectors side by side, one alarm, a false-alarm rate that is kept.

1. Normal rows are dealt into three parts: to fit, to rank, to set the threshold.
2. A detector's score becomes its rank among the second part (1 for stranger than all; beyond that it grows slowly, so
   that the strangest are still told apart). Ranks of different detectors can be compared.
3. The combined score is the largest rank. Its threshold at rate a is the k-th largest of the third part's n combined
   scores, k = floor(a (n + 1)): whatever the detectors are and however they agree, a new normal row is flagged with
   probability at most a (conformal; exact on average over draws of the third part).

`published_alarms` is the released rule (any of: mean + 0.5 spreads, both sides at 2 spreads for networks), for
comparison: its false-alarm rate is nowhere stated and near one half. Source: card safetynet, trap 2 and Beyond.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats as scipy_stats
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.probes.safetynet.detectors import COMPONENTS, NAMES, Detector, fit_detectors
from cutaway.probes.scoring import alarm_threshold

SHARES = (0.5, 0.25, 0.25)
"""Of the normal rows: to fit, to rank, to set the threshold."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Fitted detectors with the normal scores that say how strange a score is."""

    detectors: tuple[Detector, ...]
    reference: Float[np.ndarray, "detector ranked"] = field(repr=False)
    """Scores of the ranking part, sorted."""
    held: Float[np.ndarray, " held"] = field(repr=False)
    """Combined scores of the threshold part."""
    own: Float[np.ndarray, "detector held"] = field(repr=False)
    """Scores of the threshold part, by detector."""

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(each.name for each in self.detectors)}; {len(self.held)} rows set the threshold)"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.detectors)

    def scores(self, x: Float[Tensor, "row d"]) -> Float[np.ndarray, "detector row"]:
        """Return each detector's own score."""
        return np.stack([each.scores(x).double().numpy() for each in self.detectors])

    def combined(self, x: Float[Tensor, "row d"]) -> Float[np.ndarray, " row"]:
        """Return the largest rank over detectors."""
        return _ranks(self.scores(x), self.reference).max(0)

    def p_values(self, x: Float[Tensor, "row d"]) -> Float[np.ndarray, " row"]:
        """Return the conformal p-value of each row: at most a with probability at most a where the row is normal."""
        n = len(self.held)
        above = n - np.searchsorted(np.sort(self.held), self.combined(x), side="left")
        return np.asarray((above + 1) / (n + 1), dtype=float)

    def alarms(self, x: Float[Tensor, "row d"], rate: float) -> Bool[np.ndarray, " row"]:
        """Return which rows are flagged at this false-alarm rate; UsageError where the normal rows are too few."""
        return self.combined(x) > threshold(self.held, rate)


def fit_ensemble(
    normal: Float[Tensor, "row d"],
    names: Sequence[str] = NAMES,
    *,
    shares: tuple[float, float, float] = SHARES,
    components: int = COMPONENTS,
    seed: int = 0,
) -> Ensemble:
    """Fit and calibrate on normal rows, dealt by ``seed``. UsageError where a part has fewer than 10 rows."""
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"shares={shares}: three shares above 0 that make 1")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(normal)))
    first = round(shares[0] * len(normal))
    second = first + round(shares[1] * len(normal))
    if min(first, second - first, len(normal) - second) < 10:
        raise UsageError(f"{len(normal)} normal rows in parts of {shares}: each part needs 10 or more")
    detectors = fit_detectors(normal[order[:first]], names, seed=seed, components=components)
    empty = np.zeros((len(detectors), 0))
    made = Ensemble(detectors, empty, empty[0], empty)
    made = replace(made, reference=np.sort(made.scores(normal[order[first:second]]), axis=1))
    rest = normal[order[second:]]
    return replace(made, held=made.combined(rest), own=made.scores(rest))


def threshold(held: Float[np.ndarray, " row"], rate: float) -> float:
    """Return the score that a new normal row passes with probability at most ``rate``; UsageError for too few rows."""
    found = alarm_threshold(held, rate)
    if found is None:
        raise UsageError(f"{len(held)} normal rows cannot set a threshold at rate {rate:g}; {round(1 / rate) - 1} can")
    return found


def false_alarm_band(rows: int, rate: float, held: int | None = None, level: float = 0.95) -> tuple[float, float]:
    """Return the shares of ``rows`` new normal rows that may be flagged: binomial, or with ``held`` rows at the
    threshold beta-binomial, which counts that the threshold itself was drawn.
    """
    tails = ((1 - level) / 2, (1 + level) / 2)
    if held is None:
        law = scipy_stats.binom(rows, rate)
    else:
        k = int(np.floor(rate * (held + 1) + 1e-9))
        law = scipy_stats.betabinom(rows, k, held + 1 - k)
    return float(law.ppf(tails[0])) / rows, float(law.ppf(tails[1])) / rows


def published_alarms(
    normal: Float[np.ndarray, "detector row"], scores: Float[np.ndarray, "detector item"], names: Sequence[str]
) -> Bool[np.ndarray, " item"]:
    """Return which items the released rule flags: any detector beyond its own bound, two-sided for networks."""
    flagged = np.zeros(scores.shape[1], dtype=bool)
    for name, ordinary, given in zip(names, normal, scores, strict=True):
        centre, spread = ordinary.mean(), ordinary.std()
        if name in ("autoencoder", "vae"):
            flagged |= np.abs(given - centre) > 2 * spread
        else:
            flagged |= given > centre + 0.5 * spread
    return flagged


def _ranks(
    scores: Float[np.ndarray, "detector row"], reference: Float[np.ndarray, "detector held"]
) -> Float[np.ndarray, "detector row"]:
    found = []
    for given, ordinary in zip(scores, reference, strict=True):
        n = len(ordinary)
        # Interpolated, so that rows between two reference rows are not tied at the threshold.
        rank = np.interp(given, ordinary, np.arange(1, n + 1) / (n + 1))
        width = max(float(ordinary[-1] - np.median(ordinary)), 1e-12)
        beyond = np.log1p(np.maximum(0.0, given - ordinary[-1]) / width)
        found.append(rank + beyond / (n + 1))
    return np.stack(found)
