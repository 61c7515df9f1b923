"""Attention-MLP look-ups: next-token neurons, the heads that switch them on, and in which contexts."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.features.attention_mlp.decision import Decision, balanced_accuracy, decide
    from cutaway.features.attention_mlp.effects import Distance, Drops, ablate, compare
    from cutaway.features.attention_mlp.method import (
        Attribution,
        NextToken,
        active,
        attribute,
        congruence,
        contextual,
        shorten,
        word_like,
    )
    from cutaway.features.attention_mlp.reading import Norm, Reader, norm_of, reader
    from cutaway.features.attention_mlp.surveys import HeadFinding, NeuronFinding, firing_prompts, survey

__all__ = [
    "Attribution",
    "Decision",
    "Distance",
    "Drops",
    "HeadFinding",
    "NeuronFinding",
    "NextToken",
    "Norm",
    "Reader",
    "ablate",
    "active",
    "attribute",
    "balanced_accuracy",
    "compare",
    "congruence",
    "contextual",
    "decide",
    "firing_prompts",
    "norm_of",
    "reader",
    "shorten",
    "survey",
    "word_like",
]

__getattr__ = on_demand(__name__)
