"""Sentences of a trace as token spans, without losing a character.

Rule of the thought-anchors card: cut after ``.``, ``?`` or ``!`` followed by white space, and at a blank line; a
fragment under ten characters joins the next one (the last joins the one before). Unlike the published code nothing
is trimmed or dropped: white space stays with the sentence it follows, text after the last terminator is a sentence
of its own, and a token that straddles a cut belongs to the earlier sentence. Joining the spans gives back the ids.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

SHORTEST = 10
# White space in front of the next word belongs to that word's token in most vocabularies, so the cut falls before
# the last blank; line breaks stay with the sentence they end.
_CUT = re.compile(r"(?<=[.?!])(?=[ \t])|(?<=[.?!])\n+|\n\s*\n+")
_END_MARKS = re.compile(r"(?:<[^<>\s]{1,20}>\s*)+$")


def without_end_mark(text: str) -> str:
    """``text`` for a reader: the marks with which a model ended its turn (``<|im_end|>``, ``</s>``) are left out.

    >>> without_end_mark("The answer is 7.<|im_end|>")
    'The answer is 7.'
    """
    return _END_MARKS.sub("", text)


def split_text(text: str, shortest: int = SHORTEST) -> list[tuple[int, int]]:
    """Character spans of the sentences of ``text``; together they cover it exactly.

    >>> [t[a:b] for t in ["Plan it first. Then do it."] for a, b in split_text(t)]
    ['Plan it first.', ' Then do it.']
    """
    cuts = [match.end() for match in _CUT.finditer(text) if 0 < match.end() < len(text)]
    edges = [0]
    for cut in cuts:
        if len(text[edges[-1] : cut].strip()) >= shortest:
            edges.append(cut)
    if len(edges) > 1 and len(text[edges[-1] :].strip()) < shortest:
        edges.pop()
    edges.append(len(text))
    return [(a, b) for a, b in pairwise(edges) if b > a]


def token_ends(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Character offset in the decoded text at which each token's text is complete.

    Tokens that hold part of a character end where the character ends, so no offset falls inside one.
    """
    ends: list[int] = []
    done, anchor, read = (
        0,
        0,
        0,
    )  # characters finished; first token of the decoding window; first unread token
    for i in range(len(ids)):
        known = decode(ids[anchor:read])
        grown = decode(ids[anchor : i + 1])
        if grown.endswith("�"):
            continue
        done += len(grown) - len(known)
        ends += [done] * (i + 1 - read)
        # Keep the newest token as context: some tokenizers drop the blank in front of the first token they decode.
        anchor, read = i, i + 1
    return ends + [len(decode(ids))] * (len(ids) - len(ends))


def split_tokens(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], shortest: int = SHORTEST
) -> list[tuple[int, int]]:
    """Token spans [start, end) of the sentences of ``ids``; together they cover all tokens, in order."""
    if not ids:
        return []
    text, ends = decode(ids), token_ends(ids, decode)
    spans, start = [], 0
    for _, stop in split_text(text, shortest):
        end = next((i + 1 for i, reach in enumerate(ends) if reach >= stop), len(ids))
        if end > start:
            spans.append((start, end))
            start = end
    if start < len(ids):  # tokens without text, such as an end-of-turn mark
        spans[-1:] = [(spans[-1][0], len(ids))] if spans else [(0, len(ids))]
    return spans
