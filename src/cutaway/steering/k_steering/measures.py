"""Style measured by program, without a judge: each a number of one answer."""

import re
from collections.abc import Callable, Mapping

_CONTRACTION = re.compile(r"\b[A-Za-z]+['’](?:s|t|re|ve|ll|d|m)\b")


def words(text: str) -> float:
    """Words of the answer."""
    return float(len(text.split()))


def contractions(text: str) -> float:
    """Contractions in 100 words."""
    return 100 * len(_CONTRACTION.findall(text)) / max(1, len(text.split()))


def exclamations(text: str) -> float:
    """Exclamation marks in 100 words."""
    return 100 * text.count("!") / max(1, len(text.split()))


def word_length(text: str) -> float:
    """Mean letters of a word; 0 for an empty answer."""
    found = re.findall(r"[A-Za-z]+", text)
    return sum(map(len, found)) / len(found) if found else 0.0


MEASURES: Mapping[str, Callable[[str], float]] = {
    "words": words,
    "contractions": contractions,
    "exclamations": exclamations,
    "word length": word_length,
}
EXPECTED: Mapping[str, str] = {"concise": "words", "casual": "contractions", "expert": "word length"}
"""What shows a tone, where a program can tell."""
