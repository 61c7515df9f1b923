"""Planted activations with their null, for the score of reproducibility and for the verdict."""

from collections.abc import Callable

import numpy as np

from cutaway.features.mfr_sae.experiment import RIVALS, judge
from cutaway.features.mfr_sae.method import MfrConfig, train_peers
from cutaway.features.mfr_sae.similarity import cosines, reproducibility
from cutaway.planted.superposition import superposition
from cutaway.stats import paired_difference
from cutaway.study import Rate

LIKE = 0.9
"""Cosine above which an atom counts as found, or as found again."""


def planted_trial(seed: int, steps: int = 250) -> dict[str, int]:
    """Train two peers without a penalty on planted rows and on their null; count latents that come back."""
    counts = {}
    for name, null in (("true", False), ("null", True)):
        planted = superposition(32, 40, 3.0, groups=4, together=0.3, null=null, seed=seed)
        config = MfrConfig(peers=2, n_latents=64, k=3, weight=0.0, batch=256, rate=1e-2, steps=steps, seed=seed)
        rows = (planted.rows(256, seed=1 + seed * steps + i) for i in range(steps))
        made = train_peers(rows, config).dictionaries
        again = [score > LIKE for score in reproducibility(made)]
        counts[f"{name} latents"] = sum(len(each) for each in again)
        counts[f"{name} again"] = sum(int(each.sum()) for each in again)
        if not null:
            real = [cosines(each.atoms, planted.truth.atoms).amax(1) > LIKE for each in made]
            counts["real"] = sum(int(each.sum()) for each in real)
            counts["both"] = sum(int((a & b).sum()) for a, b in zip(real, again, strict=True))
    return counts


def verdicts(trials: int, gain: float, seeds: int = 5, seed: int = 0) -> int:
    """Count verdicts *supported* on drawn recoveries: every arm has the same spread, mfr ``gain`` spreads more."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(trials):
        shared = rng.normal(0, 1, seeds)
        values = {arm: shared + rng.normal(0, 1, seeds) for arm in ("mfr", *RIVALS)}
        gains = {rival: paired_difference(values["mfr"] + gain, values[rival]) for rival in RIVALS}
        hits += judge(gains, margin=0.5) == "supported"
    return hits


def rates(trials: int, tick: Callable[[float, float], None]) -> tuple[Rate, ...]:
    """Measure every rate over ``trials`` planted dictionaries and 100 times as many drawn verdicts."""
    total: dict[str, int] = {}
    for seed in range(trials):
        tick(float(seed), float(trials))
        for name, count in planted_trial(seed).items():
            total[name] = total.get(name, 0) + count
    draws = 100 * trials
    return (
        Rate("recall", total["both"], max(1, total["real"]), at_least=0.95, what="true latents that the peer has, too"),
        Rate(
            "precision",
            total["both"],
            max(1, total["true again"]),
            at_least=0.9,
            what="latents that the peer has, too, which are true atoms (cosine > .9)",
        ),
        Rate(
            "false latents",
            total["null again"],
            total["null latents"],
            at_most=0.05,
            what="latents on rows without features that the peer has, too",
        ),
        Rate("false verdicts", verdicts(draws, 0.0), draws, at_most=0.05, what="'supported' where no arm is better"),
        Rate("verdicts", verdicts(draws, 6.0), draws, at_least=0.9, what="'supported' where mfr is six spreads better"),
    )
