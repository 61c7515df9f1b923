"""The two-step problems are what they claim, and every study that can ask them does."""

import re

import pytest

from cutaway.reasoning.cot_hijacking.puzzles import puzzle
from cutaway.reasoning.cot_monitorability.data import letter_questions
from cutaway.reasoning.history_echoes import select_items
from cutaway.reasoning.history_echoes.phenomena import PHENOMENA
from cutaway.reasoning.word_problems import TWO_STEPS, data_digest, two_step_problems


def test_two_different_steps_lead_to_the_answer() -> None:
    problems = two_step_problems()
    assert len(problems) == len({each.question for each in problems}) == 200
    for each in problems:
        assert len(each.steps) == 2
        assert each.between != each.answer
        for step, result in zip(each.steps, (each.between, each.answer), strict=True):
            assert result in [number.replace(",", "") for number in re.findall(r"\d[\d,]*", step)]
        assert "<<" not in "".join(each.steps)


def test_letter_questions_offer_the_result_of_the_first_step() -> None:
    known = {each.question: each for each in two_step_problems()}
    questions = letter_questions(40, seed=3, source=TWO_STEPS)
    assert questions == letter_questions(40, seed=3, source=TWO_STEPS)
    assert len({question.text for question in questions}) == 40
    for question in questions:
        asked, listed = question.text.split("\n")
        options = dict(re.findall(r"([A-D])\) (\S+)", listed))
        assert len(set(options.values())) == 4
        assert options[question.correct] == known[asked].answer
        assert known[asked].between in options.values()
        assert question.hinted != question.correct


def test_echoes_ask_them_only_when_told_to() -> None:
    assert not any(item.topic == TWO_STEPS for item in select_items())
    items = select_items((TWO_STEPS,))
    assert len(items) == 200
    phenomenon = PHENOMENA["hallucination"]
    for item in items:
        assert not phenomenon.present(phenomenon.minus(item), item)
        assert phenomenon.present(phenomenon.plus(item), item)
    assert [items[0].ease, items[-1].ease] == [1.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_preambles_are_whole_problems(seed: int) -> None:
    drawn = puzzle(TWO_STEPS, seed)
    (source,) = [each for each in two_step_problems() if each.question == drawn.statement]
    assert [step.rstrip(".") for step in drawn.steps] == [step.rstrip(".") for step in source.steps]
    assert drawn.text.endswith(f"The answer is {source.answer}.")


def test_a_study_names_the_file_only_where_it_asks_for_it() -> None:
    assert data_digest(False) == {}
    assert re.fullmatch(r"[0-9a-f]{64}", data_digest(True)["data:two_steps.json"])
