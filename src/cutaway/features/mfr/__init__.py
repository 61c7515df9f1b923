"""MFR: sparse autoencoders trained side by side, and which of their latents come back in every one."""

from cutaway.features.mfr.method import MfrConfig, Peers, PeersStep, PeerTrainer, train_peers, unevenness
from cutaway.features.mfr.similarity import (
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
    "MfrConfig",
    "PeerTrainer",
    "Peers",
    "PeersStep",
    "Recovery",
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
