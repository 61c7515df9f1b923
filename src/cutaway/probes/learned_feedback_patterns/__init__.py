"""The reward a model was tuned on, read back from its activations (Marks et al. 2024, 2310.08164)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.probes.learned_feedback_patterns.judge import JudgeGate, gate, likelihood_judge, read_choices
    from cutaway.probes.learned_feedback_patterns.lexicon import (
        Lexicon,
        lexicon_reward,
        misaligned,
        read_lexicon,
        tau,
        tau_gain,
    )
    from cutaway.probes.learned_feedback_patterns.method import (
        Ablation,
        FeedbackReport,
        ReadOut,
        ablate,
        compare,
        implicit_reward,
        read_out,
        reward_latents,
        self_referential,
        without,
        word_features,
    )

__all__ = [
    "Ablation",
    "FeedbackReport",
    "JudgeGate",
    "Lexicon",
    "ReadOut",
    "ablate",
    "compare",
    "gate",
    "implicit_reward",
    "lexicon_reward",
    "likelihood_judge",
    "misaligned",
    "read_choices",
    "read_lexicon",
    "read_out",
    "reward_latents",
    "self_referential",
    "tau",
    "tau_gain",
    "without",
    "word_features",
]

__getattr__ = on_demand(__name__)
