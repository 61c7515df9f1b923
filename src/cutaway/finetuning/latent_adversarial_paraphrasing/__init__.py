"""Latent adversarial paraphrasing: train on the hidden shift that acts like the worst wording (2503.01345)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import Comparison, Wordings, compare
    from cutaway.finetuning.latent_adversarial_paraphrasing.method import Climb, Paraphrase, nearest_tokens, shift_limit
    from cutaway.finetuning.latent_adversarial_paraphrasing.worst import (
        Consistency,
        naive_worst,
        read_phrasings,
        split_worst,
    )

__all__ = [
    "Climb",
    "Comparison",
    "Consistency",
    "Paraphrase",
    "Wordings",
    "compare",
    "naive_worst",
    "nearest_tokens",
    "read_phrasings",
    "shift_limit",
    "split_worst",
]

__getattr__ = on_demand(__name__)
