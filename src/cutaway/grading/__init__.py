"""From text to answers: extraction (`outcomes`) and equivalence (`normalise`)."""

from cutaway.grading.normalise import as_fraction, cluster_answers, normalise, same_answer
from cutaway.grading.outcomes import Outcome, auto_outcome, from_callable, parse_outcome

__all__ = [
    "Outcome",
    "as_fraction",
    "auto_outcome",
    "cluster_answers",
    "from_callable",
    "normalise",
    "parse_outcome",
    "same_answer",
]
