"""The survey reads the last number and nothing else, and runs on any local causal LM."""

import csv
from pathlib import Path

import pytest

from cutaway.circuits.addition_subtraction import asker, judge_answer, read_number, run_survey, survey_questions
from cutaway.errors import UsageError
from cutaway.model import catalogue, load_model
from cutaway.planted.adder import adder
from cutaway.planted.direction import linear_direction

DATA = Path(__file__).parents[3] / "data" / "addition-subtraction" / "llm_survey_questions.csv"


def test_the_questions_are_those_of_the_data_folder() -> None:
    with DATA.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = survey_questions()
    assert [(q.operation, str(q.score), q.expression, str(q.answer)) for q in own] == [tuple(r.values()) for r in rows]
    for question in own:
        a, b = (int(part) for part in question.expression.replace("-", "+").split("+"))
        assert question.answer == (a + b if question.operation == "addition" else a - b)


@pytest.mark.parametrize(
    ("text", "truth", "outcome"),
    [
        ("1003", 1003, "right"),
        ("774+229=1003", 1003, "right"),
        ("The answer is **1,003**.", 1003, "right"),
        (r"\boxed{1{,}003}", 1003, "right"),
        (r"\boxed{−24}", -24, "right"),
        ("23 - 47 = –24", -24, "right"),
        ("-24.0", -24, "right"),
        ("10031", 1003, "wrong"),
        ("21003", 1003, "wrong"),
        ("1003 or 1004", 1003, "wrong"),
        ("1003 5", 1003, "wrong"),
        ("24", -24, "wrong"),
        ("23-47", -24, "wrong"),
        ("1003.5", 1003, "wrong"),
        ("1,00,3", 1003, "wrong"),
        ("I do not know", 5, "no number"),
        ("", 5, "empty"),
        ("  \n ", 5, "empty"),
    ],
)
def test_answers_are_read_strictly(text: str, truth: int, outcome: str) -> None:
    assert judge_answer(text, truth)[0] == outcome


def test_no_number_is_none() -> None:
    assert read_number("none") is None


def test_the_score_counts_from_the_first_to_the_first_failure() -> None:
    truths = {q.expression: q.answer for q in survey_questions()}

    def ask(prompt: str) -> str:
        expression = prompt.removeprefix("Answer concisely: ").removesuffix("=")
        if expression == "6587+3416":
            return "999"
        if expression == "23-47":
            raise UsageError("no room")
        return str(truths[expression])

    found = run_survey(ask)
    assert (found.score("addition"), found.score("subtraction")) == (3, 0)
    assert [a.outcome for a in found.answers].count("right") == 28
    assert next(a for a in found.answers if a.outcome == "error").read == "no room"


@pytest.mark.parametrize("model", ["direction", "adder"])
def test_any_local_model_can_be_asked(model: str) -> None:
    """One model writes no numbers and ends at once; another has too little room for a question."""
    if model == "direction":
        outcomes = {a.outcome for a in run_survey(asker(linear_direction().model, 4)).answers}
        assert outcomes <= {"no number", "wrong", "empty"}
    else:
        small = adder(3).model
        short = [q for q in survey_questions() if q.score == 1][:1]

        def ask(prompt: str) -> str:
            return asker(small, 4)(prompt.removeprefix("Answer concisely: "))

        assert run_survey(ask, short).answers[0].outcome in {"right", "wrong"}
        with pytest.raises(UsageError, match="tokens"):
            ask("123456+654321=")


@pytest.mark.slow
def test_smollm2_takes_the_survey() -> None:
    """Slow: a real model."""
    name = "smollm2-135m-instruct"
    if not next(each for each in catalogue() if each.name == name).installed:
        pytest.skip("smollm2-135m-instruct is not installed")
    found = run_survey(asker(load_model(name, dtype="float32"), 48))
    assert len(found.answers) == 30
    assert not any(a.outcome == "error" for a in found.answers)
    assert 0 <= found.score("addition") <= 15
