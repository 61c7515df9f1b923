"""Arithmetic with Python's integers and loops, as an independent check."""

import numpy as np

from cutaway.circuits.arithmetic import Questions


def integers(digits: np.ndarray) -> list[int]:
    """Numbers [question digit] (units first) as Python integers."""
    return [int("".join(map(str, row[::-1]))) for row in digits.tolist()]


def longest_run(makes: list[bool], passes: list[bool]) -> int:
    """Columns that the longest carry runs through; -1 when none is made."""
    best = -1
    for start, made in enumerate(makes):
        if made:
            length = 0
            while start + length + 1 < len(passes) and passes[start + length + 1]:
                length += 1
            best = max(best, length)
    return best


def class_by_hand(first: list[int], second: list[int], minus: bool) -> str:
    """Class of one question by walking over its columns (units first)."""
    pairs = list(zip(first, second, strict=True))
    if not minus:
        run = longest_run([a + b >= 10 for a, b in pairs], [a + b == 9 for a, b in pairs])
        return f"S{min(run + 1, 5)}"
    negative = list(reversed(first)) < list(reversed(second))
    while negative and pairs[-1] == (0, 0):
        pairs.pop()
    run = longest_run([a < b for a, b in pairs], [a == b for a, b in pairs])
    return f"{'N' if negative else 'M'}{min(run + 1, 4)}"


def carries_by_hand(questions: Questions) -> np.ndarray:
    """What arrives in each column [question digit], column by column with Python integers."""
    out = np.zeros(questions.first.shape, dtype=bool)
    for row in range(len(questions)):
        a, b = questions.first[row].tolist(), questions.second[row].tolist()
        if questions.negative[row]:
            a, b = b, a
        arrives = 0
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            out[row, i] = bool(arrives)
            arrives = int(x - y - arrives < 0) if questions.minus[row] else int(x + y + arrives >= 10)
    return out
