"""Probes for "the passage answers the question", at home and away (Heindrich et al. 2025, 2502.19964)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.probes.sae_answerability.data import Item, celebrity_items, equation_items, qnli_items, render
    from cutaway.probes.sae_answerability.method import Answerability, SiteReport, measure, plain_scores

__all__ = [
    "Answerability",
    "Item",
    "SiteReport",
    "celebrity_items",
    "equation_items",
    "measure",
    "plain_scores",
    "qnli_items",
    "render",
]

__getattr__ = on_demand(__name__)
