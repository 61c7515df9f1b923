"""Windows of text to find examples of units in and to judge by, and the tokens put in front of each.

Windows of one document stay on one side: documents with even numbers are for building, odd ones for judging.
"""

from dataclasses import dataclass

from cutaway.errors import UsageError
from cutaway.features.corpus import Corpus
from cutaway.model import Model

Row = tuple[int, ...]
"""Tokens of a text."""


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, without start tokens."""

    build: tuple[Row, ...]
    judge: tuple[Row, ...]
    """Of other documents."""


def windows(model: Model, corpus: Corpus, *, n: int, length: int = 64, judge: int | None = None) -> Texts:
    """Cut documents into windows of ``length`` tokens until there are ``n`` to build on and ``judge`` (n) to judge by.

    UsageError where the corpus has fewer than two documents, or one side gets no window.
    """
    sides: tuple[list[Row], list[Row]] = ([], [])
    wanted = (n, n if judge is None else judge)
    for number, text in enumerate(corpus):
        side = sides[number % 2]
        if len(side) < wanted[number % 2]:
            # Titles and rules of wikis make poor windows; a quarter of the length is the least that counts.
            ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            cut = (tuple(ids[start : start + length]) for start in range(0, len(ids), length))
            side += [row for row in cut if len(row) >= length // 4]
        if all(len(each) >= want for each, want in zip(sides, wanted, strict=True)):
            break
    if not all(sides):
        raise UsageError(f"corpus {corpus.name!r}: two documents of {length // 4} tokens or more are needed")
    return Texts(tuple(sides[0][: wanted[0]]), tuple(sides[1][: wanted[1]]))


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
