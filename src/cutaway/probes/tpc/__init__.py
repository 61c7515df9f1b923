"""Truncated polynomial classifiers: one monitor, a dial for its price (Oldfield et al. 2025, 2509.26238)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.probes.tpc.baselines import Network, fit_early_exit, fit_mlp
    from cutaway.probes.tpc.cascade import Bands, Exits, replay, run_cascade, tune, uniform
    from cutaway.probes.tpc.comparison import Comparison, Point, compare
    from cutaway.probes.tpc.method import Labelled, Recipe, drops, fit_linear, fit_polynomial, search
    from cutaway.probes.tpc.polynomial import Polynomial, Term, load_polynomial

__all__ = [
    "Bands",
    "Comparison",
    "Exits",
    "Labelled",
    "Network",
    "Point",
    "Polynomial",
    "Recipe",
    "Term",
    "compare",
    "drops",
    "fit_early_exit",
    "fit_linear",
    "fit_mlp",
    "fit_polynomial",
    "load_polynomial",
    "replay",
    "run_cascade",
    "search",
    "tune",
    "uniform",
]

__getattr__ = on_demand(__name__)
