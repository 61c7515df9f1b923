"""Units read on a text of the user's own, by running the model."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.features.dictionary import Dictionary
from cutaway.features.index.readers import Reader, readers_of
from cutaway.features.index.store import FeatureIndex
from cutaway.model import Model
from cutaway.model.capture import Activations

MAX_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Live:
    """The model an index was filled from, ready to read texts. One text at a time: hooks are the model's own."""

    index: FeatureIndex
    model: Model
    lock: AbstractContextManager[Any] = field(default_factory=threading.Lock)

    @cached_property
    def same_weights(self) -> bool:
        """Whether this is bit for bit the model the index was filled from (another precision is not)."""
        return self.model.fingerprint == self.index.about["model"]["fingerprint"]

    @cached_property
    def readers(self) -> Mapping[str, Reader]:
        """How each source is read; UsageError where the model is of another shape."""
        about = self.index.about["model"]
        if (self.model.n_layers, self.model.d_model) != (about.get("layers"), about.get("d_model")):
            raise UsageError(f"{self.model!r} is not the model this index was filled from, {about['name']!r}")
        stored = self.index.folder / "dictionaries"
        found = {
            each.name: open_dictionary(stored / each.name)
            for each in self.index.sources
            if (stored / each.name / "dictionary.json").exists()
        }
        return {each.source.name: each for each in readers_of(self.model, self.index.sources, found)}

    @torch.no_grad()
    def read(self, number: int, text: str) -> dict[str, Any]:
        """Return the text's tokens and the unit's value at each (None at start and special tokens).

        UsageError for a text that is empty or too long, or a source whose dictionary is not stored.
        """
        source, unit = self.index.place(number)
        reader = self.readers.get(source.name)
        if reader is None:
            raise UsageError(f"{source.title}: its dictionary is not stored with the index, so it cannot be run")
        ids = self._ids(text)
        found = self._run(ids, [source.site])
        values = reader.values(found)[0, :, unit].cpu()
        real = found.mask[0].tolist()
        shown = [float(value) if inside else None for value, inside in zip(values, real, strict=True)]
        return {
            "tokens": [self.index.vocabulary.text(token) for token in ids],
            "values": shown,
            "strongest": self.index.strongest(number),
            "same_weights": self.same_weights,
        }

    @torch.no_grad()
    def fires(self, text: str, limit: int = 20) -> dict[str, Any]:
        """Return the units that come closest to their largest value in the corpus, or pass it, and on which token.

        Units that were never above zero in the corpus are left out.
        """
        ids = self._ids(text)
        found = self._run(ids, list(dict.fromkeys(each.source.site for each in self.readers.values())))
        shares, peaks, places = [], [], []
        inside = found.mask[0]
        for reader in self.readers.values():
            source = reader.source
            values = reader.values(found)[0].masked_fill(~inside[:, None], -torch.inf).cpu()
            column = self.index.parts["units"]["peak"][source.first : source.first + source.units, 0]
            largest = torch.from_numpy(column.astype("float32"))
            peak = values.amax(0)
            shares.append(torch.where((largest > 0) & (peak > 0), peak / largest, 0.0))
            peaks.append(peak)
            places.append((values == peak).int().argmax(0))
        share, peak, place = map(torch.cat, (shares, peaks, places))
        numbers = torch.cat([_numbers(each) for each in self.readers.values()])
        best = share.argsort(descending=True, stable=True)[:limit]
        units = [
            self._found(int(numbers[i]), float(peak[i]), float(share[i]), int(place[i])) for i in best if share[i] > 0
        ]
        tokens = [self.index.vocabulary.text(token) for token in ids]
        return {"tokens": tokens, "units": units, "same_weights": self.same_weights}

    def _found(self, number: int, value: float, share: float, at: int) -> dict[str, Any]:
        source, unit = self.index.place(number)
        return {"source": source.name, "unit": unit, "value": value, "share": share, "at": at}

    def _ids(self, text: str) -> list[int]:
        if not text.strip():
            raise UsageError("an empty text; write some words")
        ids = self.model.encode(text, special=True)
        most = min(MAX_TOKENS, self.model.n_ctx)
        if len(ids) > most:
            raise UsageError(f"a text of {len(ids)} tokens; at most {most}")
        return ids

    def _run(self, ids: list[int], sites: list[str]) -> Activations:
        with self.lock:
            found = self.model.capture(self.model.batch([ids]), sites)
        if not bool(found.mask.any()):
            raise UsageError("no token of text; special tokens are not counted")
        return found


def open_dictionary(folder: Path) -> Dictionary:
    """Read a dictionary of any kind that is stored in ``folder``; CutawayError where it is damaged."""
    import json

    from cutaway.features.itda import load_atoms
    from cutaway.features.sparse import load_dictionary

    try:
        kind = json.loads((folder / "dictionary.json").read_text(encoding="utf-8")).get("kind")
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise CutawayError(f"{folder} holds no dictionary: {error}") from error
    return cast(Dictionary, load_atoms(folder) if kind == "atoms" else load_dictionary(folder))


def _numbers(reader: Reader) -> Tensor:
    return torch.arange(reader.source.first, reader.source.first + reader.source.units)
