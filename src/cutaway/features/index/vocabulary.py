"""The tokens of a model as bytes: a token may be half a character, and then no string says what it is.

Three ways to write tokens are told apart by the tokenizer itself: byte-level (every byte has a letter of its own),
blanks as U+2581 with ``<0xF0>`` for single bytes, and plain text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cutaway.features.index.tensors import Arrays, offsets

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Bytes of every token id."""

    data: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} tokens)"

    def raw(self, token: int) -> bytes:
        """Return a token's bytes; empty for an id that no text gives."""
        return bytes(self.data[self.offsets[token] : self.offsets[token + 1]])

    def text(self, token: int) -> str:
        r"""Return a token as text; bytes that are no character of their own as ``\xf0``."""
        return self.raw(token).decode("utf-8", "backslashreplace") or f"[{token}]"

    def shown(self, token: int) -> str:
        """Return a token for the eye: line breaks and signs that would move text about are written out."""
        return visible(self.text(token))

    def find(self, token: str | bytes, *, ci: bool = False, trim: bool = False) -> list[int]:
        """Return the ids of a token, in order; ``ci`` ignores case, ``trim`` blanks at its ends.

        A string may carry single bytes as surrogate escapes, as a percent-encoded query does.
        """
        key = token if isinstance(token, bytes) else token.encode("utf-8", "surrogateescape")
        return self._tables[ci, trim].get(_folded(key, ci, trim), [])

    @cached_property
    def _tables(self) -> dict[tuple[bool, bool], dict[bytes, list[int]]]:
        made: dict[tuple[bool, bool], dict[bytes, list[int]]] = {}
        raw = [self.raw(token) for token in range(len(self))]
        for how in ((False, False), (True, False), (False, True), (True, True)):
            table = made[how] = {}
            for token, content in enumerate(raw):
                if content:
                    table.setdefault(_folded(content, *how), []).append(token)
        return made

    def spelled(self, form: str) -> list[int]:
        """Return the ids of the tokens that a neuron's graph writes as ``form``."""
        return self._spellings.get(form, [])

    @cached_property
    def _spellings(self) -> dict[str, list[int]]:
        from cutaway.features.neuron2graph.tokens import normalise

        table: dict[str, list[int]] = {}
        for token in range(len(self)):
            table.setdefault(normalise(self.text(token)), []).append(token)
        return table

    def arrays(self) -> Arrays:
        """Return what `Vocabulary` is made of, to be stored."""
        return {"data": self.data, "offsets": self.offsets}


def visible(text: str) -> str:
    r"""Return text with line breaks and unprintable signs written out.

    >>> visible("a\n\u202eb")
    'a↵\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(
        _SIGNS.get(sign, sign if sign.isprintable() else sign.encode("unicode_escape").decode()) for sign in text
    )


def vocabulary_of(tokens: Iterable[bytes]) -> Vocabulary:
    """Return the vocabulary whose token ``i`` has the ``i``-th bytes."""
    listed = list(tokens)
    return Vocabulary(np.frombuffer(b"".join(listed), np.uint8), offsets([len(token) for token in listed]))


def token_bytes(tokenizer: Any, size: int | None = None) -> list[bytes]:
    """Return the bytes of every token id below ``size`` (None: the tokenizer's own number)."""
    count = len(tokenizer)
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    names: Sequence[str | None] = tokenizer.convert_ids_to_tokens(list(range(count)))
    convert = _reader(tokenizer)
    found = [
        special[i].encode() if i in special else b"" if name is None else convert(name) for i, name in enumerate(names)
    ]
    return (found + [b""] * ((size or count) - count))[: size or count]


def _reader(tokenizer: Any) -> Any:
    rules = tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else ""
    if '"ByteLevel"' in rules:
        letters = _byte_letters()
        return lambda name: b"".join(letters.get(sign, sign.encode()) for sign in name)
    if '"byte_fallback":true' in rules or '"Metaspace"' in rules or "▁" in rules:
        return lambda name: (
            bytes([int(match[1], 16)]) if (match := _BYTE.fullmatch(name)) else name.replace("▁", " ").encode()
        )
    return lambda name: name.encode("utf-8", "surrogatepass")


def _byte_letters() -> dict[str, bytes]:
    """Return the letter that a byte-level tokenizer writes for each byte: printable ones stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): bytes([byte]) for byte in own} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(rest)}


def _folded(token: bytes, ci: bool, trim: bool) -> bytes:
    if not ci and not trim:
        return token
    text = token.decode("utf-8", "surrogateescape")
    text = text.casefold() if ci else text
    # A token of nothing but blanks is kept: it would else equal the empty text.
    text = (text.strip() or text) if trim else text
    return text.encode("utf-8", "surrogateescape")
