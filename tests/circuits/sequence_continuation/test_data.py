"""Prompts by position, published rows, and what each filter drops."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.circuits.sequence_continuation.data import (
    FILTERS,
    MEMBERS,
    Prompt,
    Rows,
    generate,
    other_tasks,
    prepare,
    read_prompts,
)
from cutaway.errors import CutawayError, UsageError
from cutaway.planted.sequence import Sequence, sequence

FOLDER = Path(__file__).parents[3] / "data" / "sequence-continuation"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["done", "lost", "born"]))
def test_members_are_consecutive_and_the_corrupted_end_is_not(seed: int, verb: str) -> None:
    made = generate(["numerals", "months"], verb, 4, seed=seed)
    for a, b in zip(*made.values(), strict=True):
        assert a.words == b.words
        for prompt in (a, b):
            members = MEMBERS[prompt.task]
            start = members.index(prompt.members[0])
            assert (*prompt.members, prompt.answer) == members[start : start + 5]
            assert members.index(prompt.corrupted[3]) != members.index(prompt.corrupted[2]) + 1
            assert prompt.text().count(f" {verb} in") == 5
            # Made by position: putting the members back gives the text, whatever words contain them.
            assert prompt.text(prompt.corrupted).replace(".", "").split()[3::4] == list(prompt.corrupted)


def test_published_rows_are_read_as_they_are() -> None:
    for path in sorted(FOLDER.glob("*.jsonl")):
        prompts = read_prompts(path, path.stem.split("_")[0])
        assert len(prompts) == 512
        assert f'"text": "{prompts[7].text()}"' in path.read_text().splitlines()[7]
        assert f'"corrupted": "{prompts[7].text(prompts[7].corrupted)}"' in path.read_text().splitlines()[7]


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "one two", "corrupted": "", "answer": " x"}\n')
    with pytest.raises(CutawayError, match=r"bad.jsonl, line 1"):
        read_prompts(tmp_path / "bad.jsonl", "numerals")


def test_places_and_tokens(planted: Sequence, rows: dict[str, Rows]) -> None:
    for given_rows in rows.values():
        decode = planted.model.decode
        for prompt, ids, other in zip(given_rows.prompts, given_rows.ids, given_rows.corrupted, strict=True):
            assert decode(ids.tolist()) == prompt.text()
            assert [decode([int(ids[i])]).strip() for i in given_rows.places] == list(prompt.members)
            assert [decode([int(other[i])]).strip() for i in given_rows.places] == list(prompt.corrupted)
        assert [decode([int(t)]) for t in given_rows.answer] == [f" {p.answer}" for p in given_rows.prompts]
        assert [decode([int(t)]) for t in given_rows.distractor] == [f" {p.distractor}" for p in given_rows.prompts]
    taken = rows["numerals"].take([2, 2, 0])
    assert taken.prompts[0] == taken.prompts[1] == rows["numerals"].prompts[2]
    assert taken.ids[2].tolist() == rows["numerals"].ids[0].tolist()


def test_each_filter_names_what_it_drops(planted: Sequence) -> None:
    """13 is no token of the planted model; an unknown carrier moves the members; a wrong answer is not the top one."""
    good = generate(planted.tasks, "done", 6, words=planted.words)
    odd = good["numerals"][0]
    numerals = [
        Prompt("numerals", "done", odd.words, ("10", "11", "12", "13"), odd.corrupted, "14"),
        Prompt("numerals", "done", ("Van", "Zebra", "Hat", "Sun", "Map"), odd.members, odd.corrupted, odd.answer),
        Prompt("numerals", "done", odd.words, odd.members, odd.corrupted, odd.members[0]),
        Prompt("numerals", "done", odd.words, odd.members, odd.corrupted, odd.distractor),
        *good["numerals"][4:],
    ]
    found, checked = prepare(planted.model, {"numerals": numerals}, joint=False)
    assert checked[0].split == ("13", "14")
    assert checked[0].dropped == dict(zip(FILTERS, (1, 1, 1, 1, 0, 0), strict=True))
    assert (checked[0].given, checked[0].kept, len(found["numerals"])) == (6, 2, 2)
    assert "not one token: 13, 14" in repr(checked[0])


def test_joint_filtering_and_tasks_left_out(planted: Sequence) -> None:
    prompts = {task: list(each) for task, each in generate(planted.tasks, "done", 6, words=planted.words).items()}
    bad = prompts["numwords"][1]
    prompts["numwords"][1] = Prompt(bad.task, bad.verb, bad.words, bad.members, bad.corrupted, bad.members[0])
    found, checked = prepare(planted.model, prompts)
    assert {task: len(rows) for task, rows in found.items()} == dict.fromkeys(prompts, 5)
    assert [each.dropped[FILTERS[5]] for each in checked] == [1, 0, 1]
    found, _ = prepare(planted.model, prompts, least=6, keep=4)
    assert {task: len(rows) for task, rows in found.items()} == {"numerals": 4, "months backwards": 4}


def test_a_model_that_continues_nothing_is_refused() -> None:
    null = sequence(null=True)
    with pytest.raises(UsageError, match="no prompt of 'numerals' is left"):
        prepare(null.model, generate(null.tasks, "done", 4, words=null.words))


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match="numerals"):
        generate(["numeral"], "done", 4)
    with pytest.raises(UsageError, match="done"):
        generate(["numerals"], "don", 4)
    with pytest.raises(UsageError, match="5 carrier"):
        generate(["numerals"], "done", 4, words=("a", "b"))


def test_other_tasks_are_right() -> None:
    asked = other_tasks()
    assert {"count by 10", "Spanish months", "one-digit sums", "word problems"} < set(asked)
    for prompt, answer in asked["two-digit differences"]:
        a, b = prompt.split(". ")[-1].removesuffix(" =").split(" - ")
        assert int(a) - int(b) == int(answer)
    for prompt, answer in asked["count by 3"]:
        assert int(answer) == int(prompt.split()[-1]) + 3
