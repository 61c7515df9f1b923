"""Queries: twins of equal length, answers that are right, wordings that say no more, refusals that show why."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.circuits.query_circuits import (
    Question,
    arithmetic,
    choice_pair,
    first_token,
    indirect_objects,
    leaks,
    multiple_choice,
    read_questions,
    rewordings,
)
from cutaway.circuits.query_circuits.choices import NEUTRAL, default_folder
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.induction import induction

QUESTION = Question("In which year, roughly, was tea first sold?", ("a", "b", "c", "d"), "C")


def test_indirect_objects(speaker: Model) -> None:
    queries = indirect_objects(speaker, 20, wordings=3)
    assert len({query.name for query in queries.items}) == 20
    assert len({query.group for query in queries.items}) == 16
    for query in queries.items:
        clean, corrupted = (speaker.decode(ids) for ids in (query.pair.clean, query.pair.corrupted))
        (right,), (wrong,) = query.pair.right, query.pair.wrong
        receiver, giver = speaker.decode([right]), speaker.decode([wrong])
        assert (clean.count(receiver), clean.count(giver)) == (1, 2)
        assert corrupted.count(giver) == 1
        held = dict(query.held_out)
        assert list(held) == ["another corruption", "answer turned round", "another wording"]
        assert held["another corruption"].clean == held["answer turned round"].clean == query.pair.clean
        assert held["another corruption"].corrupted != query.pair.corrupted
        assert speaker.decode(held["answer turned round"].corrupted).count(receiver) == 2
        assert len({query.pair.clean, held["another wording"].clean, *(w.clean for w in query.wordings)}) == 5
        order = [speaker.decode([pair.right[0]]) for pair in query.wordings]
        texts = [speaker.decode(pair.clean) for pair in query.wordings]
        first = [
            text.index(name) < text.index(speaker.decode([pair.wrong[0]]))
            for name, text, pair in zip(order, texts, query.wordings, strict=True)
        ]
        assert set(first) == {query.group.endswith("ABB")}


@pytest.mark.parametrize(("operation", "operands"), [("sum", 2), ("sum", 5), ("product", 2), ("product", 3)])
def test_arithmetic(speaker: Model, operation: str, operands: int) -> None:
    for query in arithmetic(speaker, 4, operation, operands=operands, wordings=5).items:
        pairs = [query.pair, *query.wordings, *(pair for _, pair in query.held_out)]
        for pair in pairs:
            result, other = (_solve(speaker.decode(ids)) for ids in (pair.clean, pair.corrupted))
            assert 100 <= result <= 999
            assert speaker.decode(list(pair.right)) == str(result)[0] != speaker.decode(list(pair.wrong))
            assert speaker.decode(list(pair.wrong)) == str(other)[0]
            assert len(pair.clean) == len(pair.corrupted)
        assert len({_solve(speaker.decode(pair.clean)) for pair in pairs}) == 1
        assert len({pair.clean for pair in pairs}) == 7  # the other corruption has the query's own words


def _solve(text: str) -> int:
    expression = text.rstrip("=").split(": ")[-1].split(" is ")[-1]
    assert set(expression) <= set("0123456789+*")
    return int(eval(expression))


def test_choices(speaker: Model) -> None:
    pair, again = (choice_pair(speaker, QUESTION, QUESTION.stem, text) for text in NEUTRAL)
    clean, corrupted = speaker.decode(pair.clean), speaker.decode(pair.corrupted)
    assert clean == f"{QUESTION.stem}\n(A) a\n(B) b\n(C) c\n(D) d\nAnswer: ("
    assert corrupted.split("\n")[1:] == clean.split("\n")[1:]
    assert "tea" not in corrupted
    assert len(pair.clean) == len(pair.corrupted)
    assert again.corrupted != pair.corrupted
    assert (speaker.decode(pair.right), speaker.decode(pair.wrong)) == ("C", "ABD")
    queries = multiple_choice(speaker, [QUESTION] * 2, 1, wordings=2, longest=300)
    assert len(queries.items[0].wordings) == 2


def test_a_stem_longer_than_every_neutral_one_is_refused_with_both_tokenisations(speaker: Model) -> None:
    stem = "tea " * 300
    with pytest.raises(UsageError, match="nothing is padded") as caught:
        choice_pair(speaker, QUESTION, stem)
    assert "clean:     't' 'e' 'a' ' tea' ' tea'" in str(caught.value)
    assert "corrupted: " in str(caught.value)
    with pytest.raises(UsageError, match="none of 1 questions can be used with speaker: 1 no neutral stem"):
        multiple_choice(speaker, [Question(stem, QUESTION.options, "A")], 1, longest=10_000)


def test_the_source_tree_has_questions(tmp_path: Path) -> None:
    counts = {path.stem: len(read_questions(path)) for path in default_folder().glob("*.jsonl")}
    assert sum(counts.values()) == 234 + 272 + 152 + 144 + 100 + 306 + 103
    assert read_questions("astronomy")[0].answer == "A"
    with pytest.raises(UsageError, match="did you mean 'astronomy'"):
        read_questions("astronomi")
    with pytest.raises(UsageError, match="no such file"):
        read_questions(tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    row = '{"question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "%s"}\n'
    for text, why in (
        ("{", "line 1: not JSON"),
        (row % "E", "answer 'E' is none"),
        ('{"question": 1}', "'A' is missing"),
    ):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=why):
            read_questions(bad)


@given(st.text(st.sampled_from("abc ,?XY"), min_size=3, max_size=40), st.lists(st.sampled_from(["x", "one", "quiz"])))
def test_wordings_say_no_more_about_the_options(stem: str, options: list[str]) -> None:
    for wording in rewordings(stem, options):
        assert not leaks(wording, stem, options)
        assert wording != stem


def test_a_wording_that_names_an_option_is_dropped() -> None:
    stem = "Which of the following is right?"
    assert leaks("Which one of these is right?", stem, ["one", "two"]) == {"one"}
    assert "Which one of these is right?" in rewordings(stem, ["3", "4"])
    assert "Which one of these is right?" not in rewordings(stem, ["one", "two"])
    assert rewordings("In 1900, what was sold?", ["tea"])[0] == "What was sold, in 1900?"


def test_bad_input(speaker: Model) -> None:
    with pytest.raises(UsageError, match="n=0"):
        indirect_objects(speaker, 0)
    with pytest.raises(UsageError, match="wordings=-1"):
        arithmetic(speaker, 1, wordings=-1)
    with pytest.raises(UsageError, match="did you mean 'sum'"):
        arithmetic(speaker, 1, "sums")
    with pytest.raises(UsageError, match="operands=6"):
        arithmetic(speaker, 1, operands=6)
    with pytest.raises(UsageError, match=r"only 0 of \d+ names are one token"):
        indirect_objects(induction(4).model, 1)
    with pytest.raises(UsageError, match="share a token"):
        first_token(speaker, "They met at the park th", "e end")
    with pytest.raises(UsageError, match="n=0"):
        multiple_choice(speaker, [QUESTION], 0)
