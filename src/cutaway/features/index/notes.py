"""What is attached to single units as JSON: graphs, explanations, fields of other tools. Found without reading all."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np

from cutaway.errors import UsageError
from cutaway.features.index.tensors import Arrays, offsets

Kind = Literal["graph", "explanations", "histogram", "extra"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Notes = Mapping[tuple[int, Kind], Any]
"""Unit's number and kind to anything JSON can hold."""


def pack(notes: Notes) -> dict[str, np.ndarray]:
    """Return notes as arrays: sorted keys, and the JSON of all of them end to end."""
    order = sorted(notes, key=lambda key: (key[0], KINDS.index(key[1])))
    try:
        texts = [json.dumps(notes[key], ensure_ascii=True, allow_nan=False).encode() for key in order]
    except ValueError as error:
        raise UsageError(f"a note holds NaN or infinity, which JSON cannot: {error}") from error
    keys = np.array([unit * len(KINDS) + KINDS.index(kind) for unit, kind in order], np.int64)
    data = np.frombuffer(b"".join(texts), np.uint8)
    return {"key": keys, "offset": offsets([len(text) for text in texts]), "data": data}


def note(packed: Arrays, unit: int, kind: Kind) -> Any:
    """Return what is attached to a unit under ``kind``; None where nothing is."""
    key = unit * len(KINDS) + KINDS.index(kind)
    at = int(np.searchsorted(packed["key"], key))
    if at == len(packed["key"]) or packed["key"][at] != key:
        return None
    return _read(packed, at)


def unpack(packed: Arrays, kind: Kind | None = None) -> Iterator[tuple[tuple[int, Kind], Any]]:
    """Yield every note, or those of one kind, in order of units."""
    for at, key in enumerate(packed["key"].tolist()):
        found = KINDS[key % len(KINDS)]
        if kind in (None, found):
            yield (key // len(KINDS), found), _read(packed, at)


def _read(packed: Arrays, at: int) -> Any:
    return json.loads(bytes(packed["data"][packed["offset"][at] : packed["offset"][at + 1]]))
