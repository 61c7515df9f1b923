"""Fine-tuning with something held fixed: concept ablation, averaged weights, latent paraphrasing."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.finetuning.arms import Arm, Arms, gather
    from cutaway.finetuning.choice import Choice, accuracy, choice_data, make_choice, margins
    from cutaway.finetuning.exact import Item, Scores, item_data, score

__all__ = [
    "Arm",
    "Arms",
    "Choice",
    "Item",
    "Scores",
    "accuracy",
    "choice_data",
    "gather",
    "item_data",
    "make_choice",
    "margins",
    "score",
]

__getattr__ = on_demand(__name__)
