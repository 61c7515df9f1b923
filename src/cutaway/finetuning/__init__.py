"""Fine-tuning with something held fixed: concept ablation, averaged weights, latent paraphrasing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.finetuning.arms import Arm, Arms, gather
    from cutaway.finetuning.choice import Choice, accuracy, choice_data, make_choice, margins
    from cutaway.finetuning.exact import Item, Scores, item_data, score

_PLACES = {
    "arms": ("Arm", "Arms", "gather"),
    "choice": ("Choice", "accuracy", "choice_data", "make_choice", "margins"),
    "exact": ("Item", "Scores", "item_data", "score"),
}
"""Module to its public names, imported when first asked for: studies are listed without torch."""

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


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _PLACES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
