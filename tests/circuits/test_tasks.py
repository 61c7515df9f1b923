"""Tasks for tokenizers that split names and numbers differently: what fits is exact, what does not is counted."""

import json
from pathlib import Path

import pytest

from cutaway.circuits.tasks import capitals, from_rows, greater_than, ioi
from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model
from cutaway.planted.build import blank_llama, word_tokenizer

DATA = Path(__file__).parents[2] / "data" / "circuits"
ROWS = [json.loads(line) for line in (DATA / "ioi.jsonl").read_text().splitlines()]


def model_of(*words: str) -> Model:
    """A model whose tokenizer has these words whole, every other text by character."""
    tokenizer = word_tokenizer(tuple(dict.fromkeys(words)))
    return Model(blank_llama(tokenizer, d_model=4, n_layers=1, n_heads=1, d_head=4, n_ctx=512), tokenizer, "words")


@pytest.fixture(scope="module")
def named() -> Model:
    """Every name in the prompts is a token."""
    prompts = [text for row in ROWS for text in (row["clean"], row["corrupted"], row["corrupted_hard"])]
    words = {f" {word.strip('.,')}" for text in prompts for word in text.split() if word[0].isupper()}
    return model_of(*sorted(words))


@pytest.mark.parametrize("corruption", ["third", "flip"])
def test_ioi_asks_for_the_indirect_object(named: Model, corruption: str) -> None:
    task = ioi(named, corruption=corruption)
    assert len(task.pairs) + sum(task.dropped.values()) == len(ROWS)
    assert len(task.pairs) > 300
    texts = {row["clean"]: row for row in ROWS}
    for pair in task.pairs:
        row = texts[pair.name]
        assert named.decode(list(pair.right)) == row["answer"]
        assert named.decode(list(pair.wrong)) == row["distractor"]
        column = "corrupted" if corruption == "third" else "corrupted_hard"
        assert named.decode(list(pair.corrupted)) == row[column]
    assert len({pair.group for pair in task.pairs}) == 7
    assert not any(row["answer"].strip() in pair.group for pair in task.pairs for row in [texts[pair.name]])
    assert sum(len(group) for group in task.by_length()) == len(task.pairs)


def test_names_of_several_tokens_are_dropped_with_the_reason() -> None:
    some = model_of(" Aaron", " Amber", " Tiffany", " Nathan", " Tyler")
    task = ioi(some)
    assert 0 < len(task.pairs) < 20
    assert sum(task.dropped.values()) == len(ROWS) - len(task.pairs)
    assert task.dropped["an answer is several tokens"] > 0
    assert task.dropped["clean and corrupted differ in token length"] > 0
    assert f"{task.dropped['an answer is several tokens']} dropped" in repr(task)
    assert len(ioi(some, 2).pairs) == 2
    with pytest.raises(CutawayError, match="ioi: no row fits this tokenizer"):
        ioi(model_of(" nobody"))


def test_years_by_number_or_by_first_digit() -> None:
    by_number = greater_than(model_of(*(f"{number:02d}" for number in range(100))), 50)
    assert by_number.name == "greater_than"
    assert by_number.measure == "prob_diff"
    digits = model_of()
    by_digit = greater_than(digits)
    assert by_digit.name == "greater_than by first digit"
    for task, width in ((by_number, 2), (by_digit, 1)):
        for pair in task.pairs:
            year = pair.name.split(" the year ")[1].split()[0][2:]
            assert len(pair.right) + len(pair.wrong) == (100 if width == 2 else 9)
            if width == 1:
                assert {digits.decode([token]) for token in pair.right} == {str(d) for d in range(int(year[0]) + 1, 10)}
    assert by_digit.dropped == {"nothing is right, or nothing is wrong": 65 + 68}  # 90s, and 00s
    assert len(by_digit.by_length()) > 1
    with pytest.raises(CutawayError, match=r"no greater_than.jsonl in"):
        greater_than(digits, folder=Path("/nowhere"))


def test_capitals_are_corrupted_by_a_country_of_equal_length() -> None:
    rows = [json.loads(line) for line in (DATA / "capitals.jsonl").read_text().splitlines()]
    known = model_of(*(f" {row['capital']}" for row in rows))
    task = capitals(known)
    assert len(task.pairs) + sum(task.dropped.values()) == len(rows)
    assert len({pair.corrupted for pair in task.pairs}) == len(task.pairs)
    assert {known.decode(list(pair.right)).strip() for pair in task.pairs} <= {row["capital"] for row in rows}
    assert capitals(known, seed=1).pairs != task.pairs
    assert capitals(known).pairs == task.pairs


def test_own_rows() -> None:
    words = model_of(" b", " c")
    row = {"clean": "a b", "corrupted": "a c", "right": " b", "wrong": [" c"]}
    assert len(from_rows(words, [row]).pairs) == 1
    bad = [
        {**row, "corrupted": "a b"},
        {**row, "wrong": " b"},
        {**row, "wrong": []},
        {**row, "right": "long"},
        {**row, "corrupted": "long text"},
    ]
    assert sorted(from_rows(words, [row, *bad]).dropped.values()) == [1] * 5
    with pytest.raises(UsageError, match="corruption='thirds'"):
        ioi(words, corruption="thirds")
