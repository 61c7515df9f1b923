"""MFR: sparse autoencoders trained side by side, and which of their latents come back in every one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.features.mfr_sae.experiment import Comparison, compare
    from cutaway.features.mfr_sae.method import MfrConfig, Peers, PeersStep, PeerTrainer, train_peers, unevenness
    from cutaway.features.mfr_sae.similarity import (
        Recovery,
        consensus,
        duplicates,
        effective_rank,
        functional,
        likeness,
        pairs,
        recovery,
        reproducibility,
    )

__all__ = [
    "Comparison",
    "MfrConfig",
    "PeerTrainer",
    "Peers",
    "PeersStep",
    "Recovery",
    "compare",
    "consensus",
    "duplicates",
    "effective_rank",
    "functional",
    "likeness",
    "pairs",
    "recovery",
    "reproducibility",
    "train_peers",
    "unevenness",
]

_PLACES = {
    "Comparison": ("experiment", "Comparison"),
    "compare": ("experiment", "compare"),
    "MfrConfig": ("method", "MfrConfig"),
    "PeerTrainer": ("method", "PeerTrainer"),
    "Peers": ("method", "Peers"),
    "PeersStep": ("method", "PeersStep"),
    "train_peers": ("method", "train_peers"),
    "unevenness": ("method", "unevenness"),
    "Recovery": ("similarity", "Recovery"),
    "consensus": ("similarity", "consensus"),
    "duplicates": ("similarity", "duplicates"),
    "effective_rank": ("similarity", "effective_rank"),
    "functional": ("similarity", "functional"),
    "likeness": ("similarity", "likeness"),
    "pairs": ("similarity", "pairs"),
    "recovery": ("similarity", "recovery"),
    "reproducibility": ("similarity", "reproducibility"),
}
"""Public name to the module and the name it has there: studies are listed without what the methods import."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inside = _PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), inside)
