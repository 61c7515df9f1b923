"""Quanta maths: which node of a small model does which part of adding and subtracting, and whether an account holds."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.addition_subtraction.method import Explanation, algorithm, class_errors, explain, facts, nines
    from cutaway.circuits.addition_subtraction.survey import (
        Survey,
        asker,
        judge_answer,
        read_number,
        run_survey,
        survey_questions,
    )

__all__ = [
    "Explanation",
    "Survey",
    "algorithm",
    "asker",
    "class_errors",
    "explain",
    "facts",
    "judge_answer",
    "nines",
    "read_number",
    "run_survey",
    "survey_questions",
]

__getattr__ = on_demand(__name__)
