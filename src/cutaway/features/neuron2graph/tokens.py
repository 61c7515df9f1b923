"""Tokens as a graph's nodes spell them."""

from collections.abc import Callable

from cutaway.model import Model

Spell = Callable[[int], str]
"""Token id to its text."""


def speller(model: Model) -> Spell:
    """Return the text of the model's tokens; a token that is part of a character keeps the vocabulary's form."""
    known: dict[int, str] = {}

    def spell(token: int) -> str:
        if token not in known:
            text = model.decode([token])
            known[token] = str(model.tokenizer.convert_ids_to_tokens(token)) if "�" in text else text
        return known[token]

    return spell


def normalise(text: str) -> str:
    """Return a token as nodes hold it: blanks of alphabetic tokens go, and so does a title's capital.

    >>> normalise(" Paris"), normalise(" 7"), normalise("NASA")
    ('paris', ' 7', 'NASA')
    """
    stripped = text.strip()
    if not stripped.isalpha():
        return text
    return stripped.lower() if stripped.istitle() else stripped
