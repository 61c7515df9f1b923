"""Harmless reasoning of any length: puzzles with worked solutions, made and solved by program, and real ones.

Each family draws a puzzle from a seed and writes its solution step by step; every step is what the solver really
derived, so the text is sound reasoning about nothing that matters. `sentences` strings puzzles together for ever.

    sudoku       4x4, solved by cells with one candidate
    skyscrapers  4x4 with clues at the edges; the 576 Latin squares are narrowed clue by clue
    grid         who keeps which animal and likes which colour; 576 arrangements are narrowed hint by hint
    ledger       a shop's day of purchases and sales, with a running balance
    two-steps    real word problems with the solutions that people wrote to them
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, permutations, product

import numpy as np

from cutaway.errors import UsageError, nearest
from cutaway.reasoning.word_problems import TWO_STEPS, two_step_problems

NAMES = ("Ana", "Ben", "Cleo", "Dov")
ANIMALS = ("cat", "dog", "hen", "goat")
COLOURS = ("red", "blue", "green", "white")
GOODS = ("cups", "pens", "lamps", "books", "bowls", "rugs")


@dataclass(frozen=True)
class Puzzle:
    """One puzzle with its worked solution."""

    family: str
    statement: str
    steps: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        return " ".join((self.statement, *self.steps, self.answer))


def puzzle(family: str, seed: int) -> Puzzle:
    """Draw one puzzle of ``family`` and solve it.

    >>> puzzle("ledger", 0).answer.startswith("The balance at closing time is")
    True
    """
    if family not in FAMILIES:
        raise UsageError(f"family={family!r}{nearest(family, FAMILIES)}; choose {', '.join(FAMILIES)}")
    return FAMILIES[family](np.random.default_rng((seed, list(FAMILIES).index(family))))


def sentences(family: str, seed: int) -> Iterator[str]:
    """Sentences of numbered puzzles without end."""
    for number in count(1):
        drawn = puzzle(family, seed * 100_003 + number)
        yield f"Puzzle {number}. {drawn.statement}"
        yield from drawn.steps
        yield drawn.answer


@lru_cache(maxsize=1)
def latin_squares() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All 576 Latin squares of order 4."""
    rows = list(permutations((1, 2, 3, 4)))
    found: list[tuple[tuple[int, ...], ...]] = [()]
    for _ in range(4):
        found = [(*s, r) for s in found for r in rows if all(r[j] != q[j] for q in s for j in range(4))]
    return tuple(found)


def visible(line: tuple[int, ...]) -> int:
    """How many buildings of a row are seen from its start."""
    return sum(height == max(line[: i + 1]) for i, height in enumerate(line))


def candidates(grid: np.ndarray, row: int, column: int) -> set[int]:
    """What a cell of a 4x4 sudoku may still hold."""
    top, left = row - row % 2, column - column % 2
    seen = {*grid[row], *grid[:, column], *grid[top : top + 2, left : left + 2].flat}
    return {1, 2, 3, 4} - {int(value) for value in seen}


def _sudoku(rng: np.random.Generator) -> Puzzle:
    squares = [s for s in latin_squares() if all(len({s[i][j], s[i][j + 1], s[i + 1][j], s[i + 1][j + 1]}) == 4
                                                 for i in (0, 2) for j in (0, 2))]  # fmt: skip
    full = np.array(squares[rng.integers(len(squares))])
    given = full.copy()
    for place in rng.permutation(16):
        trial = given.copy()
        trial.flat[place] = 0
        if len(_singles(trial)) == int((trial == 0).sum()):
            given = trial
    lines = "; ".join(" ".join(str(v) if v else "_" for v in row) for row in given)
    statement = f"Fill this 4x4 sudoku, each of 1 to 4 once in every row, column and 2x2 box: {lines}."
    steps = [
        f"Row {row + 1}, column {column + 1}: its row, column and box leave only {value}, so it is {value}."
        for row, column, value in _singles(given)
    ]
    rows = "; ".join(" ".join(map(str, row)) for row in full)
    return Puzzle("sudoku", statement, tuple(steps), f"The full grid is {rows}.")


def _singles(given: np.ndarray) -> list[tuple[int, int, int]]:
    """Cells in the order in which they have one candidate left: (row, column, value)."""
    grid, out, found = given.copy(), [], True
    while found:
        found = False
        for row, column in product(range(4), range(4)):
            left = candidates(grid, row, column)
            if grid[row, column] == 0 and len(left) == 1:
                grid[row, column] = left.pop()
                out.append((row, column, int(grid[row, column])))
                found = True
    return out


def _skyscrapers(rng: np.random.Generator) -> Puzzle:
    squares = latin_squares()
    while True:
        chosen = squares[rng.integers(len(squares))]
        left, steps, clues = list(squares), [], []
        for line in rng.permutation(16):
            side, index = divmod(int(line), 4)
            clue = visible(_line(chosen, side, index))
            kept = [s for s in left if visible(_line(s, side, index)) == clue]
            if len(kept) == len(left):
                continue
            where = f"{('left of row', 'right of row', 'top of column', 'bottom of column')[side]} {index + 1}"
            clues.append(f"{clue} at the {where}")
            steps.append(f"The clue {clue} at the {where} leaves {len(kept)} of {len(left)} grids.")
            left = kept
            if len(left) == 1:
                break
        if len(left) == 1:
            break
    rows = "; ".join(" ".join(map(str, row)) for row in chosen)
    statement = (
        "Place towers of height 1 to 4 in a 4x4 grid, each height once in every row and column, so that the towers "
        f"seen from the edge number {', '.join(clues)}."
    )
    return Puzzle("skyscrapers", statement, ("There are 576 grids to begin with.", *steps), f"The grid is {rows}.")


def _line(square: tuple[tuple[int, ...], ...], side: int, index: int) -> tuple[int, ...]:
    line = square[index] if side < 2 else tuple(row[index] for row in square)
    return line if side % 2 == 0 else line[::-1]


def _grid(rng: np.random.Generator) -> Puzzle:
    left = list(product(permutations(range(4)), permutations(range(4))))
    truth = left[rng.integers(len(left))]
    hints, steps = [], []
    facts = [(kind, who, what) for kind in range(2) for who in range(4) for what in range(4)]
    for place in rng.permutation(len(facts)):
        kind, who, what = facts[place]
        holds = truth[kind][who] == what
        kept = [a for a in left if (a[kind][who] == what) == holds]
        if len(kept) == len(left):
            continue
        verb = ("keeps the", "likes")[kind] if holds else ("does not keep the", "does not like")[kind]
        hint = f"{NAMES[who]} {verb} {(ANIMALS, COLOURS)[kind][what]}"
        hints.append(hint)
        steps.append(f"That {hint} leaves {len(kept)} of {len(left)} arrangements.")
        left = kept
        if len(left) == 1:
            break
    people = f"{', '.join(NAMES[:3])} and {NAMES[3]}"
    statement = (
        f"{people} each keep one animal ({', '.join(ANIMALS)}) and like one colour ({', '.join(COLOURS)}), "
        f"all different. {'. '.join(hints)}. Who keeps and likes what?"
    )
    found = "; ".join(f"{NAMES[i]}: {ANIMALS[truth[0][i]]}, {COLOURS[truth[1][i]]}" for i in range(4))
    return Puzzle("grid", statement, ("There are 576 arrangements to begin with.", *steps), f"So {found}.")


def _ledger(rng: np.random.Generator) -> Puzzle:
    balance = first = int(rng.integers(200, 900))
    steps = []
    for number in range(1, int(rng.integers(8, 14))):
        amount, price = int(rng.integers(2, 15)), int(rng.integers(2, 12))
        sold = balance < amount * price or rng.random() < 0.6
        balance += amount * price if sold else -amount * price
        steps.append(
            f"Entry {number}: {'sold' if sold else 'bought'} {amount} {rng.choice(GOODS)} at {price} coins, "
            f"{'income' if sold else 'cost'} {amount * price}, balance {balance}."
        )
    statement = f"A shop opens with {first} coins; follow its entries and give the balance at closing time."
    return Puzzle("ledger", statement, tuple(steps), f"The balance at closing time is {balance} coins.")


def _two_steps(rng: np.random.Generator) -> Puzzle:
    problems = two_step_problems()
    drawn = problems[rng.integers(len(problems))]
    steps = tuple(step if step.endswith(".") else f"{step}." for step in drawn.steps)
    return Puzzle(TWO_STEPS, drawn.question, steps, f"The answer is {drawn.answer}.")


FAMILIES: dict[str, Callable[[np.random.Generator], Puzzle]] = {
    "sudoku": _sudoku,
    "skyscrapers": _skyscrapers,
    "grid": _grid,
    "ledger": _ledger,
    TWO_STEPS: _two_steps,
}
