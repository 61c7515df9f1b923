"""The feature index on disk: a folder that is opened in no time and answers about any unit.

``index.json`` names the other files by the hash of their content and is written last, at once. Whoever is stopped in
between leaves the old index, or none: a folder without ``index.json`` is half-written and says so. Every file is
mapped into memory, so opening reads nothing and a page reads its own rows.

units       for each unit its top texts, then its random ones: peak, context, position, window; density; histogram
contexts    token ids of the texts, end to end
vocabulary  bytes of every token
effects     tokens that each unit raises and lowers
postings    the inverted index, see `cutaway.features.index.postings`
notes       graphs, explanations and foreign fields
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.index import postings
from cutaway.features.index.notes import Kind, Notes, note, pack, unpack
from cutaway.features.index.tensors import Arrays, map_arrays, write_arrays
from cutaway.features.index.vocabulary import Vocabulary

SCHEMA = 1
HEADER = "index.json"
FILLING = "filling.safetensors"
PARTS = ("units", "contexts", "vocabulary", "effects", "postings", "notes")
Order = Literal["strength", "density", "number"]


@dataclass(frozen=True)
class Source:
    """Units that are read at one place: the neurons of a layer, or the latents of a dictionary."""

    name: str
    """A layer's number, or the dictionary's name."""
    kind: Literal["neurons", "dictionary", "imported"]
    site: str
    units: int
    first: int = 0
    """Number of its first unit among all units of the index."""

    @property
    def title(self) -> str:
        """What a person calls it."""
        if self.kind == "neurons":
            return f"Neurons of layer {self.name}"
        return f"{self.name}, {self.units:,} latents at {self.site}" if self.kind == "dictionary" else self.name


@dataclass(frozen=True)
class Text:
    """The part of a text around a unit's peak."""

    ids: tuple[int, ...]
    values: tuple[float | None, ...]
    """The unit at each token; None at special tokens."""
    at: int
    """Which of the tokens is the peak."""
    peak: float
    context: int
    """Number of the text in the index."""
    start: int
    """Of the first token shown, counted in the text's ids."""
    document: int
    """Which of the corpus it comes from."""
    offset: int
    """Of the first token shown, counted in the document's tokens."""


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """Everything known about the units of one model."""

    folder: Path
    about: Mapping[str, Any]
    sources: tuple[Source, ...]
    parts: Mapping[str, Arrays]

    def __repr__(self) -> str:
        state = "" if self.about["complete"] else ", partial"
        return f"FeatureIndex({self.model!r}, {self.n_units:,} units, {self.about['tokens']:,} tokens{state})"

    @property
    def model(self) -> str:
        """Name of the model, as addresses spell it."""
        return str(self.about["model"]["name"])

    @property
    def n_units(self) -> int:
        return len(self.parts["units"]["density"])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return Vocabulary(**self.parts["vocabulary"])

    def source(self, name: str) -> Source:
        """Return a source by name; UsageError names the nearest one."""
        for each in self.sources:
            if each.name == name:
                return each
        layers = [int(each.name) for each in self.sources if each.kind == "neurons"]
        if layers and name.lstrip("-").isdecimal():
            raise UsageError(f"layer {name}: this index has layers {min(layers)} to {max(layers)}")
        raise UsageError(f"no layer or dictionary {name!r}{nearest(name, [each.name for each in self.sources])}")

    def number(self, source: str, unit: int) -> int:
        """Return a unit's number among all; UsageError for a source or unit that is not there."""
        found = self.source(source)
        if not 0 <= unit < found.units:
            raise UsageError(f"unit {unit}: {found.title} has 0 to {found.units - 1}")
        return found.first + unit

    def place(self, number: int) -> tuple[Source, int]:
        """Return the source of a unit and its index there."""
        starts = [each.first for each in self.sources]
        source = self.sources[int(np.searchsorted(starts, number, side="right")) - 1]
        return source, number - source.first

    def texts(self, number: int, *, samples: bool = False) -> list[Text]:
        """Return a unit's top texts, strongest first, or the random ones among those where it is above zero."""
        units, k = self.parts["units"], self.about["top"]
        found = []
        for slot in range(k, units["context"].shape[1]) if samples else range(k):
            if units["context"][number, slot] >= 0:
                found.append(self._text(units, number, slot))
        return found

    def _text(self, units: Arrays, number: int, slot: int) -> Text:
        contexts = self.parts["contexts"]
        context, start = int(units["context"][number, slot]), int(units["start"][number, slot])
        low, high = (int(contexts["offset"][context + i]) for i in (0, 1))
        values = units["values"][number, slot].tolist()
        ids = contexts["ids"][low + start : min(high, low + start + len(values))].tolist()
        return Text(
            ids=tuple(ids),
            values=tuple(None if isnan(value) else value for value in values[: len(ids)]),
            at=int(units["position"][number, slot]) - start,
            peak=float(units["peak"][number, slot]),
            context=context,
            start=start,
            document=int(contexts["document"][context]),
            offset=int(contexts["first"][context]) + start - self.about["begin"],
        )

    def context(self, number: int) -> list[int]:
        """Return the token ids of a whole text, its start tokens included."""
        contexts = self.parts["contexts"]
        if not 0 <= number < len(contexts["document"]):
            raise UsageError(f"text {number}: this index has 0 to {len(contexts['document']) - 1}")
        ids: list[int] = contexts["ids"][contexts["offset"][number] : contexts["offset"][number + 1]].tolist()
        return ids

    def strongest(self, number: int) -> float:
        """Return the largest value of a unit over the corpus; 0 where it never was above zero."""
        return float(max(self.parts["units"]["peak"][number, 0], 0.0))

    def density(self, number: int) -> float:
        """Return the share of tokens where a unit is above zero."""
        return float(self.parts["units"]["density"][number])

    def note(self, number: int, kind: Kind) -> Any:
        """Return what is attached to a unit; None where nothing is."""
        return note(self.parts["notes"], number, kind)

    def listing(self, source: str, order: Order = "strength", offset: int = 0, limit: int = 50) -> list[int]:
        """Return units of a source: the strongest or the most often active first, or by number."""
        found = self.source(source)
        return self._order(found.name, order)[offset : offset + limit].tolist()

    def _order(self, name: str, order: Order) -> np.ndarray:
        found = self.source(name)
        numbers = np.arange(found.first, found.first + found.units)
        if order == "number":
            return numbers
        key = (name, order)
        if key not in self._orders:
            units = self.parts["units"]
            column = units["peak"][:, 0] if order == "strength" else units["density"]
            self._orders[key] = numbers[np.argsort(-column[numbers], kind="stable")]
        return self._orders[key]

    @cached_property
    def _orders(self) -> dict[tuple[str, str], np.ndarray]:
        return {}


def write_index(
    folder: Path, about: Mapping[str, Any], sources: Sequence[Source], parts: Mapping[str, Arrays]
) -> FeatureIndex:
    """Write the parts, then the header; files that the header before named and this one does not are removed."""
    if missing := set(PARTS) - set(parts):
        raise UsageError(f"an index needs {', '.join(sorted(missing))}")
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: write_arrays(folder, name, parts[name]) for name in PARTS}
    header = {"schema": SCHEMA, **about, "sources": [asdict(each) for each in sources], "files": files}
    draft = folder / f"{HEADER}.draft"
    draft.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / HEADER)
    named = {file["name"] for file in files.values()}
    for name in PARTS:
        for path in folder.glob(f"{name}-*.safetensors"):
            if path.name not in named:
                path.unlink()
    return open_index(folder)


def open_index(folder: str | Path) -> FeatureIndex:
    """Open an index; CutawayError where there is none, it is half-written or damaged."""
    folder = Path(folder)
    try:
        about = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if about["schema"] != SCHEMA:
            raise CutawayError(f"{folder} was written with schema {about['schema']}; this version reads {SCHEMA}")
        paths = {name: folder / about["files"][name]["name"] for name in PARTS}
        for name, path in paths.items():
            size, written = path.stat().st_size, about["files"][name]["bytes"]
            if size != written:
                raise CutawayError(f"{path} has {size} bytes, not the {written} that were written")
        sources = tuple(Source(**each) for each in about["sources"])
    except FileNotFoundError as error:
        if (folder / FILLING).exists() and not (folder / HEADER).exists():
            raise CutawayError(f"{folder} is half-written: its filling was stopped; call it again to go on") from error
        raise CutawayError(f"{folder} holds no feature index: {error}") from error
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CutawayError(f"{folder} holds no feature index: {error!r}") from error
    return FeatureIndex(folder, about, sources, {name: map_arrays(path) for name, path in paths.items()})


def check_index(index: FeatureIndex) -> None:
    """Compare every file with its hash; CutawayError names the first that differs. Reads everything once."""
    import hashlib

    for file in index.about["files"].values():
        with (index.folder / file["name"]).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
                raise CutawayError(f"{index.folder / file['name']} is damaged: its content is not what was written")


def add_notes(index: FeatureIndex, notes: Notes) -> FeatureIndex:
    """Attach graphs, explanations or fields to units, in place of what was there, and index the graphs' tokens."""
    if bad := next((unit for unit, _ in notes if not 0 <= unit < index.n_units), None):
        raise UsageError(f"unit number {bad}: this index has 0 to {index.n_units - 1}")
    packed = pack({**dict(unpack(index.parts["notes"])), **notes})
    parts = {**index.parts, "notes": packed}
    parts["postings"] = make_postings(parts, index.about["top"])
    about = {key: value for key, value in index.about.items() if key not in ("schema", "sources", "files")}
    return write_index(index.folder, about, index.sources, parts)


def make_postings(parts: Mapping[str, Arrays], top: int) -> dict[str, np.ndarray]:
    """Return the inverted index over texts and graphs."""
    vocabulary = Vocabulary(**parts["vocabulary"])
    pairs = postings.text_pairs(parts["units"], parts["contexts"], top)
    graphs = {unit: graph for (unit, _), graph in unpack(parts["notes"], "graph")}
    pairs = postings.graph_pairs(pairs, graphs, vocabulary)
    return postings.postings(pairs, len(parts["units"]["density"]), len(vocabulary))
