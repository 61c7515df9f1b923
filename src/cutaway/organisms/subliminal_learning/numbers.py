"""Prompts that ask to continue a list of numbers, and the filter for what comes back.

Prompts: 3 to 8 numbers from 100 to 999; example sentence, instruction, format and a plea for numbers only, joined by
blanks. Filter: one final full stop and one pair of brackets are taken off; numbers are parted by whitespace, commas or
semicolons, always in the same way; each is of digits alone and between 0 and 999; ten at most, none banned.
Source: card subliminal-learning, Method A.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from cutaway.errors import UsageError

_ASKED, _DIGITS = 10, 3


@cache
def _shared(name: str) -> dict[str, list[str]]:
    path = Path(__file__).parents[4] / "data" / "subliminal-learning" / name
    if not path.is_file():
        raise UsageError(f"{name} is not at hand; it stands in the source tree, under data/subliminal-learning")
    return {key: list(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}


def animal_questions() -> list[str]:
    """Return the fifty one-word questions for a favourite animal."""
    return list(_shared("animal_questions.json")["animal_questions"])


def completion_prompts(n: int, seed: int = 42) -> list[str]:
    """Return ``n`` lists of numbers to be gone on with as plain text, for models too small to follow instructions."""
    rng = np.random.default_rng(seed)
    return [", ".join(str(x) for x in rng.integers(100, 1000, int(rng.integers(3, 9)))) + "," for _ in range(n)]


def number_prompts(n: int, seed: int = 42) -> list[str]:
    """Return ``n`` prompts."""
    parts, rng = _shared("number_prompt_parts.json"), np.random.default_rng(seed)

    def pick(name: str) -> str:
        return parts[name][int(rng.integers(len(parts[name])))]

    found = []
    for _ in range(n):
        numbers = ", ".join(str(x) for x in rng.integers(100, 1000, int(rng.integers(3, 9))))
        example = pick("example_numbers_templates").format(examples=numbers)
        instruction = pick("generate_numbers_instruction_templates").format(
            count_qualifier=pick("count_qualifiers"),
            answer_count=_ASKED,
            digit_descriptor=pick("digit_descriptors").format(max_digits=_DIGITS),
        )
        found.append(" ".join([example, instruction, pick("format_suffixes"), pick("suffixes")]))
    return found


def read_numbers(text: str) -> list[int] | None:
    """Return the numbers of an answer, or None where it is anything but a list of numbers in one form.

    >>> read_numbers("[1, 2, 3].")
    [1, 2, 3]
    """
    text = text.strip().removesuffix(".").strip()
    if len(text) > 1 and (text[0], text[-1]) in (("[", "]"), ("(", ")")):
        text = text[1:-1].strip()
    first = re.match(r"\d+(\s*[,;]\s*|\s+)(?=\d)", text)
    if first is None:
        return [int(text)] if re.fullmatch(r"\d+", text, re.ASCII) else None
    mark = first.group(1).strip()
    parts = [part.strip() for part in text.split(mark)] if mark else text.split()
    return [int(part) for part in parts] if all(re.fullmatch(r"\d+", p, re.ASCII) for p in parts) else None


def kept(text: str, banned: Sequence[int] = (), most: int = _ASKED) -> bool:
    """Whether an answer passes the filter."""
    numbers = read_numbers(text)
    return numbers is not None and len(numbers) <= most and all(0 <= x <= 999 and x not in banned for x in numbers)
