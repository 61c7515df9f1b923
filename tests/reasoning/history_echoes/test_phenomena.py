"""Questions and graders."""

import pytest

from cutaway.errors import UsageError
from cutaway.reasoning.history_echoes import PHENOMENA, get_phenomenon, qa_items, select_items
from cutaway.reasoning.history_echoes.phenomena import agreed, clean, is_wrong, refused


def test_there_are_hundreds_of_items_in_four_topics() -> None:
    items = qa_items()
    assert len(items) > 300
    assert {item.topic for item in items} == {"capital", "city", "element", "arithmetic"}
    assert len({item.question for item in items}) == len(items)
    known = {(item.topic, item.question): item.answer for item in items}
    assert known["capital", "What is the capital of France?"] == "Paris"
    assert known["city", "In which country is the city of Osaka?"] == "Japan"
    assert known["element", "Which chemical element has the symbol Au?"] == "gold"
    assert known["arithmetic", "What is 7 times 8?"] == "56"


@pytest.mark.parametrize("name", PHENOMENA)
def test_forced_answers_are_what_their_grader_says(name: str) -> None:
    """Every item's + answer shows the behaviour and its - answer does not: nothing in the data fools the grader."""
    phenomenon = get_phenomenon(name)
    for item in qa_items():
        assert phenomenon.present(phenomenon.plus(item), item), item.question
        assert not phenomenon.present(phenomenon.minus(item), item), item.question


def test_a_question_repeated_is_no_right_answer() -> None:
    wrong = [item.question for item in qa_items() if not is_wrong(item.question, item)]
    assert wrong == []


def test_cleaning_and_containment() -> None:
    paris = next(item for item in qa_items() if item.answer == "Paris")
    usa = next(item for item in qa_items() if item.answer == "United States")
    assert clean("  The SÃO Paulo, 1,200!") == "sao paulo 1200"
    for right in ("Paris", "It is **Paris**.", "paris, of course", "The Paris"):
        assert not is_wrong(right, paris)
    for wrong in ("Parisian", "Lyon", "", "..."):
        assert is_wrong(wrong, paris)
    assert not is_wrong("It lies in the USA.", usa)
    assert not is_wrong("The States", usa)


@pytest.mark.parametrize(
    "text", ["I'm sorry, but no.", "I can\u2019t help with that.", "I cannot say.", "I must decline."]
)
def test_refusals_are_seen(text: str) -> None:
    assert refused(text)


def test_plain_answers_are_no_refusals() -> None:
    assert not refused("The capital of France is Paris.")


def test_agreement_needs_a_word_for_it_and_no_negation() -> None:
    for text in ("Yes, that is right.", "I agree with you.", "Correct. It is not Rome."):
        assert agreed(text)
    for text in ("No.", "That is not correct.", "I don't agree.", "Paris.", "Yes, but that is incorrect.", ""):
        assert not agreed(text)


def test_unknown_names_are_met_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="hallucination"):
        get_phenomenon("halucination")
    with pytest.raises(UsageError, match="capital"):
        select_items(("capitals",))
