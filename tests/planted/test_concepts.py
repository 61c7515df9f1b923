"""Invented worlds: disjoint, drawn from their seed, learnt by a model that knows no other."""

import pytest

from cutaway.editing.facts import answers, wording
from cutaway.errors import UsageError
from cutaway.planted.concepts import blank_model, fact_rows, general_texts, taught, text_rows, world


def test_worlds_share_sentences_but_neither_names_nor_answers():
    a, b = world("A", 6, 2), world("B", 6, 2)
    assert len(a) == len(b) == 12
    assert not set(a.answers) & set(b.answers)
    assert not {fact.subject for fact in a.facts} & {fact.subject for fact in b.facts}
    assert a.facts[0].prompt.replace("Velda", "Aldo") == b.facts[0].prompt
    assert world("A", 6, 2) == a != world("A", 6, 2, seed=1)


def test_every_word_is_one_token_and_only_answers_carry_loss():
    model = blank_model()
    for fact in (*world("A", 3).facts, *world("B", 3).facts):
        assert all(len(model.encode(choice)) == 1 for choice in fact.choices)
        assert model.tokenizer.decode(model.encode(fact.wordings[1])) == fact.wordings[1]
    rows = fact_rows(model, world("A", 1, 1).facts)
    assert [sum(row.weights) for row in rows] == [1.0, 1.0, 1.0]
    assert text_rows(model, general_texts(1))[0].weights[0] == 1.0


def test_a_model_knows_the_world_it_was_taught_and_guesses_the_other():
    a, b = world("A", 4, 2), world("B", 4, 2)
    model = taught([a], steps=60, general=40)
    assert answers(model, a.facts).accuracy.value > 0.9
    assert answers(model, a.facts, wording(1)).accuracy.value > 0.9
    # never taught: not one of B's answers is what it would say
    assert answers(model, b.facts).known.sum() <= 1


def test_bad_input():
    with pytest.raises(UsageError, match="one of A, B"):
        world("C")
    with pytest.raises(UsageError, match="people=99"):
        world("A", 99)
