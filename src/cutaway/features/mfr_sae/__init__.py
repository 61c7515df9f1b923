"""MFR: sparse autoencoders trained side by side, and which of their latents come back in every one."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

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

__getattr__ = on_demand(__name__)
