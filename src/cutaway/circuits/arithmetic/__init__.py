"""Small models that add and subtract: questions, training, ablation, interchange, roles, clauses."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.arithmetic.classes import (
        ADD_CLASSES,
        CLASSES,
        NEG_CLASSES,
        SUB_CLASSES,
        class_names,
        class_probabilities,
        classify,
        of_class,
        per_class,
    )
    from cutaway.circuits.arithmetic.format import Format
    from cutaway.circuits.arithmetic.models import Scores, build, load, save, score
    from cutaway.circuits.arithmetic.questions import (
        SETS,
        Columns,
        Questions,
        answer_digits,
        answer_tokens,
        chain,
        from_text,
        join,
        training_batch,
        uniform,
    )
    from cutaway.circuits.arithmetic.recipes import PRESETS, PUBLISHED, Recipe, recipe
    from cutaway.circuits.arithmetic.training import BIN, Curves, Trained, learning_rate, train

__all__ = [
    "ADD_CLASSES",
    "BIN",
    "CLASSES",
    "NEG_CLASSES",
    "PRESETS",
    "PUBLISHED",
    "SETS",
    "SUB_CLASSES",
    "Columns",
    "Curves",
    "Format",
    "Questions",
    "Recipe",
    "Scores",
    "Trained",
    "answer_digits",
    "answer_tokens",
    "build",
    "chain",
    "class_names",
    "class_probabilities",
    "classify",
    "from_text",
    "join",
    "learning_rate",
    "load",
    "of_class",
    "per_class",
    "recipe",
    "save",
    "score",
    "train",
    "training_batch",
    "uniform",
]

__getattr__ = on_demand(__name__)
