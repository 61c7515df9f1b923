"""Other wordings of a question's stem by rules, kept only while they say nothing about the options.

Stand-in for paraphrases by a large model. Rules never touch the options, their order or the answer; each wording is
checked: a word that the rules added and that an option contains would point at it, so such a wording is dropped.
"""

import re
from collections.abc import Sequence

_SWAPS = (
    (r"\bWhich of the following\b", "Which one of these"),
    (r"\bwhich of the following\b", "which one of these"),
    (r"\bWhich one of the following\b", "Which of these"),
    (r"\bWhat is the term for\b", "What do we call"),
    (r"\bWhat term is used for\b", "What is the name of"),
    (r"\bis an example of\b", "exemplifies"),
    (r"\bis known as\b", "is called"),
    (r"\bis called\b", "is known as"),
    (r"\brefers to\b", "denotes"),
    (r"\bin order to\b", "to"),
    (r"\bdue to\b", "because of"),
    (r"\bbecause of\b", "due to"),
    (r"\bprimarily\b", "mainly"),
    (r"\bmost likely\b", "most probably"),
    (r"\bapproximately\b", "roughly"),
    (r"\babout how\b", "roughly how"),
)
_FRAMES = (
    "Question: {stem}",
    "Here is a question. {stem}",
    "Please consider this: {stem}",
    "Think about the following. {stem}",
    "{stem} Choose one.",
    "Read this with care. {stem}",
    "A student asks: {stem}",
    "{stem} Decide now.",
    "Exam question: {stem}",
    "Quiz. {stem}",
    "Someone wants to know this. {stem}",
    "Next item. {stem}",
)
_CLAUSE = re.compile(
    r"^((?:In|If|When|During|After|On|At|For|Within|According to) [^,.?]{3,80}), ([a-z].*?)([?:.]?)$", re.I
)


def rewordings(stem: str, options: Sequence[str]) -> tuple[str, ...]:
    """Return other wordings of ``stem``, none of which says more about ``options``; the stem itself is not among them.

    >>> rewordings("In Python 3, what is 1 << 3?", ["8", "9"])[0]
    'What is 1 << 3, in Python 3?'
    """
    stem = " ".join(stem.split())
    changed = [*_turned(stem), *(_swapped(stem))]
    framed = [frame.format(stem=text) for frame in _FRAMES for text in (stem, *changed[:1])]
    found = dict.fromkeys([*changed, *framed])
    return tuple(text for text in found if text != stem and not leaks(text, stem, options))


def leaks(wording: str, stem: str, options: Sequence[str]) -> frozenset[str]:
    """Return the words of ``options`` that ``wording`` has and ``stem`` has not."""
    return frozenset((_words(wording) - _words(stem)) & set().union(*map(_words, options)))


def _turned(stem: str) -> list[str]:
    """Put a leading clause behind the question."""
    match = _CLAUSE.match(stem)
    if not match:
        return []
    clause, rest, end = match.groups()
    keep = clause.split()[0].lower() + clause[len(clause.split()[0]) :]
    return [f"{rest[0].upper()}{rest[1:]}, {keep}{end}"]


def _swapped(stem: str) -> list[str]:
    return [re.sub(pattern, other, stem) for pattern, other in _SWAPS if re.search(pattern, stem)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))
