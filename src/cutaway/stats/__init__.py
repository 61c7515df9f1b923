"""Intervals, bands, confidence sequences, e-processes, false-discovery control, divergences, smoothing."""

from cutaway.stats.bands import Band, difference_interval, mixture_band
from cutaway.stats.divergence import jensen_shannon, kl, total_variation
from cutaway.stats.fdr import Discoveries, benjamini_hochberg, e_benjamini_hochberg
from cutaway.stats.intervals import (
    Interval,
    bootstrap,
    clopper_pearson,
    covering,
    mcnemar,
    mean_interval,
    newcombe,
    paired_difference,
    share_difference,
    share_interval,
    wilson,
)
from cutaway.stats.sequential import beta_binomial_cs, bounded_mean_cs, two_sample_log_e
from cutaway.stats.smoothing import Smoothed, smooth_martingale

__all__ = [
    "Band",
    "Discoveries",
    "Interval",
    "Smoothed",
    "benjamini_hochberg",
    "beta_binomial_cs",
    "bootstrap",
    "bounded_mean_cs",
    "clopper_pearson",
    "covering",
    "difference_interval",
    "e_benjamini_hochberg",
    "jensen_shannon",
    "kl",
    "mcnemar",
    "mean_interval",
    "mixture_band",
    "newcombe",
    "paired_difference",
    "share_difference",
    "share_interval",
    "smooth_martingale",
    "total_variation",
    "two_sample_log_e",
    "wilson",
]
