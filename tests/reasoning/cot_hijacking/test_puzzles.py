"""Puzzles: what their solutions say is so, step by step."""

import re
from itertools import islice, permutations, product

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.reasoning.cot_hijacking.puzzles import (
    ANIMALS,
    COLOURS,
    FAMILIES,
    NAMES,
    candidates,
    latin_squares,
    puzzle,
    sentences,
    visible,
)

SEEDS = range(12)


def test_there_are_576_latin_squares() -> None:
    squares = latin_squares()
    assert len(set(squares)) == 576
    for square in squares:
        assert all(sorted(line) == [1, 2, 3, 4] for line in (*square, *zip(*square, strict=True)))


@pytest.mark.parametrize("seed", SEEDS)
def test_sudoku_steps_are_forced_and_end_in_a_valid_grid(seed: int) -> None:
    drawn = puzzle("sudoku", seed)
    text = drawn.statement.split(": ")[1].rstrip(".")
    grid = np.array([[0 if c == "_" else int(c) for c in row.split()] for row in text.split("; ")])
    for step in drawn.steps:
        row, column, value = (int(v) for v in re.findall(r"(?:Row|column|only) (\d)", step))
        assert grid[row - 1, column - 1] == 0
        assert candidates(grid, row - 1, column - 1) == {value}
        grid[row - 1, column - 1] = value
    final = np.array([row.split() for row in drawn.answer[len("The full grid is ") : -1].split("; ")], dtype=int)
    assert (grid == final).all()
    boxes = [grid[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2)]
    assert all(sorted(unit) == [1, 2, 3, 4] for unit in (*grid, *grid.T, *boxes))


@pytest.mark.parametrize("seed", SEEDS)
def test_skyscraper_counts_are_those_of_brute_force(seed: int) -> None:
    drawn = puzzle("skyscrapers", seed)
    left = list(latin_squares())
    for step in drawn.steps[1:]:
        clue, side, place, kept, total = re.fullmatch(
            r"The clue (\d) at the (left|right|top|bottom) of (?:row|column) (\d) leaves (\d+) of (\d+) grids.", step
        ).groups()  # type: ignore[union-attr]
        assert len(left) == int(total)
        i = int(place) - 1
        lines = [s[i] if side in ("left", "right") else tuple(row[i] for row in s) for s in left]
        seen = [visible(line[::-1] if side in ("right", "bottom") else line) for line in lines]
        left = [s for s, v in zip(left, seen, strict=True) if v == int(clue)]
        assert len(left) == int(kept)
    assert "; ".join(" ".join(map(str, row)) for row in left[0]) in drawn.answer
    assert len(left) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_grid_counts_are_those_of_brute_force(seed: int) -> None:
    drawn = puzzle("grid", seed)
    left = list(product(permutations(ANIMALS), permutations(COLOURS)))
    for step in drawn.steps[1:]:
        hint, kept, total = re.fullmatch(r"That (.+) leaves (\d+) of (\d+) arrangements.", step).groups()  # type: ignore[union-attr]
        assert len(left) == int(total)
        words, denied = hint.split(), " not " in hint
        which = 0 if words[-1] in ANIMALS else 1
        left = [a for a in left if (a[which][NAMES.index(words[0])] == words[-1]) != denied]
        assert len(left) == int(kept)
    assert len(left) == 1
    assert drawn.answer == f"So {'; '.join(f'{n}: {a}, {c}' for n, a, c in zip(NAMES, *left[0], strict=True))}."


@pytest.mark.parametrize("seed", SEEDS)
def test_ledger_balances(seed: int) -> None:
    drawn = puzzle("ledger", seed)
    balance = int(re.search(r"opens with (\d+)", drawn.statement).group(1))  # type: ignore[union-attr]
    for step in drawn.steps:
        amount, price, total, after = (int(v) for v in re.findall(r"\d+", step.split(": ")[1]))
        assert amount * price == total
        balance += total if "sold" in step else -total
        assert balance == after >= 0
    assert drawn.answer == f"The balance at closing time is {balance} coins."


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds_decide_and_text_never_ends(family: str) -> None:
    assert puzzle(family, 3) == puzzle(family, 3) != puzzle(family, 4)
    stream = list(islice(sentences(family, 0), 60))
    assert stream[0].startswith("Puzzle 1. ")
    assert sum(s.startswith("Puzzle ") for s in stream) > 1
    assert stream == list(islice(sentences(family, 0), 60))


def test_unknown_family() -> None:
    with pytest.raises(UsageError, match="did you mean 'sudoku'"):
        puzzle("sudoko", 0)
