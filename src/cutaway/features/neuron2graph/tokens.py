"""Tokens as a graph's nodes spell them."""

from collections.abc import Callable

from cutaway.errors import UsageError
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


def start_tokens(model: Model, which: str) -> tuple[int, ...]:
    """Return the tokens put in front of every window: "bos", "eos", "id:<number>" or "none".

    UsageError for a token that the tokenizer does not have, because the choice changes every value near the start.
    """
    if which == "none":
        return ()
    if which.startswith("id:") and which[3:].isdecimal() and int(which[3:]) < model.vocab_size:
        return (int(which[3:]),)
    if which not in ("bos", "eos"):
        raise UsageError(f"start={which!r}: one of bos, eos, none, id:<0 to {model.vocab_size - 1}>")
    token = getattr(model.tokenizer, f"{which}_token_id", None)
    if token is None:
        raise UsageError(f"start={which!r}: the tokenizer of {model.name} has no such token; choose another or none")
    return (int(token),)
