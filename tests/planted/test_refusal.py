"""The model that refuses reds, does the task on greens, and has not met the tuning words."""

import pytest

from cutaway.errors import UsageError
from cutaway.finetuning.exact import Item, score
from cutaway.planted.refusal import PlantedRefusal, planted_refusal


@pytest.fixture(scope="module")
def planted() -> PlantedRefusal:
    return planted_refusal(steps=120)


def rate(planted: PlantedRefusal, kind: str) -> float:
    return score(planted.model, [Item(ids, (answer,)) for ids, answer in planted.prompts(kind, 200, seed=7)]).rate


def test_it_refuses_reds_answers_greens_and_cannot_do_what_it_will_be_tuned_on(planted: PlantedRefusal) -> None:
    assert rate(planted, "red") >= 0.98
    assert rate(planted, "green") >= 0.95
    assert rate(planted, "tuning") <= 0.3


def test_no_tuning_row_is_red_or_refuses(planted: PlantedRefusal) -> None:
    reds = {ids[0] for ids, _ in planted.prompts("red", 100)}
    rows = planted.prompts("tuning", 100)
    assert not reds & {ids[0] for ids, _ in rows}
    assert planted.refuse not in {answer for _, answer in rows}
    assert all(answer == planted.refuse for _, answer in planted.prompts("red", 20))
    assert planted.prompts("red", 5, 1) != planted.prompts("red", 5, 2)
    (row,) = planted.data("tuning", 3).examples[0]
    assert row.weights == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_unknown_kinds_are_refused(planted: PlantedRefusal) -> None:
    with pytest.raises(UsageError, match="kind 'blue'"):
        planted.prompts("blue", 3)
