"""An index as Neuronpedia's JSON and back: what one index writes, an empty one reads to the same pages.

Written for other tools are tokens with values, tokens raised and lowered, density, histogram, explanations; what
they have no field for (graph, provenance, which texts are random) goes under ``cutaway``. Fields of other tools, of
features and of examples, are kept as they came and written again. Read back, a token is a text and no id.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UsageError
from cutaway.features.index import view
from cutaway.features.index.collect import BARS, EDGES
from cutaway.features.index.notes import pack
from cutaway.features.index.store import FeatureIndex, Source, Text, make_postings, write_index
from cutaway.features.index.tensors import offsets
from cutaway.features.index.vocabulary import vocabulary_of
from cutaway.features.neuronpedia import Example, FeatureRecord, read_neuronpedia, write_neuronpedia

OWN = "cutaway"


def export_neuronpedia(
    index: FeatureIndex, source: str, folder: str | Path, *, units: Sequence[int] | None = None
) -> None:
    """Write a source's units (None: all) as ``batch-N.json`` into ``folder``."""
    found = index.source(source)
    chosen = range(found.units) if units is None else units
    records = [record_of_unit(index, index.number(source, unit)) for unit in chosen]
    write_neuronpedia(records, folder, settings=view.provenance(index))


def record_of_unit(index: FeatureIndex, number: int) -> FeatureRecord:
    """Return a unit as other tools store it."""
    source, unit = index.place(number)
    noted = index.note(number, "extra") or {"record": {}, "examples": {}, "fields": {}}
    texts = [(text, random) for random in (False, True) for text in index.texts(number, samples=random)]
    examples = (_example(index, *each, noted["examples"].get(str(i))) for i, each in enumerate(texts))
    bars = view.histogram(index, number) or {"values": [], "heights": []}
    effects = view.logits(index, number) or {"promoted": [], "suppressed": []}
    explanations = index.note(number, "explanations") or []
    alone = len(explanations) == 1 and set(explanations[0]) == {"description"}
    extra = dict(noted["record"])
    if explanations and not alone:
        extra["explanations"] = explanations
    if source.kind != "imported":
        own = {"kind": source.kind, "site": source.site, "graph": index.note(number, "graph")}
        extra[OWN] = {**view.provenance(index), **own}
    fields = {
        "prompts": index.about["texts"],
        "prompt_tokens": index.parts["units"]["values"].shape[2],
        "dataset": index.about["corpus"]["name"],
        **noted["fields"],
    }
    return FeatureRecord(
        index.model,
        source.name,
        unit,
        examples=tuple(examples),
        density=index.density(number),
        histogram_values=tuple(bars["values"]),
        histogram_heights=tuple(bars["heights"]),
        positive=tuple(each["token"] for each in effects["promoted"]),
        positive_values=tuple(each["value"] for each in effects["promoted"]),
        negative=tuple(each["token"] for each in effects["suppressed"]),
        negative_values=tuple(each["value"] for each in effects["suppressed"]),
        description=explanations[0]["description"] if alone else "",
        extra=extra,
        **fields,
    )


def _example(index: FeatureIndex, text: Text, random: bool, noted: Mapping[str, Any] | None) -> Example:
    tokens = tuple(index.vocabulary.text(token) for token in text.ids)
    values = tuple(0.0 if value is None else value for value in text.values)
    if noted is not None:
        return Example(tokens, values, noted)
    masked = [i for i, value in enumerate(text.values) if value is None]
    place = {"document": text.document, "offset": text.offset}
    return Example(tokens, values, {OWN: {**place, "random": random, "masked": masked}})


def import_neuronpedia(sources: str | Path | Sequence[str | Path], folder: str | Path) -> FeatureIndex:
    """Read folders of ``batch-N.json``, one for each source, into a new index at ``folder``.

    UsageError where records are of several models or a folder holds several sources; CutawayError for damaged files.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    read = [read_neuronpedia(each) for each in given]
    if len({record.model for records in read for record in records}) != 1:
        raise UsageError("features of several models; import each into its own index")
    return index_of_records(read, folder)


def index_of_records(groups: Sequence[Sequence[FeatureRecord]], folder: str | Path) -> FeatureIndex:
    """Write records, one group for each source, as an index. A unit's number is its record's index."""
    if not groups or not all(groups):
        raise UsageError("no feature to import")
    made = _Import()
    sources: list[Source] = []
    for records in groups:
        if len({record.source for record in records}) > 1:
            raise UsageError("a folder with features of several sources; import each from its own folder")
        own = records[0].extra.get(OWN, {})
        first = sources[-1].first + sources[-1].units if sources else 0
        count = max(record.index for record in records) + 1
        name = _name(records[0].source) or "features"
        sources.append(Source(name, own.get("kind", "imported"), own.get("site", ""), count, first))
        for record in records:
            made.add(first + record.index, record, own=bool(own))
    if len({each.name for each in sources}) < len(sources):
        raise UsageError("two sources of one name; import them into two indexes")
    n = sources[-1].first + sources[-1].units
    own = groups[0][0].extra.get(OWN, {})
    about = {
        "model": {"name": _name(groups[0][0].model) or "unknown", "fingerprint": own.get("fingerprint", "")},
        "corpus": {"name": own.get("corpus", groups[0][0].dataset), "digest": own.get("corpus_digest", "")},
        "tokens": own.get("tokens", 0),
        "texts": own.get("texts", 0),
        "begin": 0,
        "edges": list(EDGES),
        "complete": own.get("complete", True),
    }
    parts, top = made.parts(n)
    return write_index(Path(folder), {**about, "top": top}, sources, {**parts, "postings": make_postings(parts, top)})


class _Import:
    """Records taken apart: texts and tokens are numbered as they come."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.units: dict[int, FeatureRecord] = {}
        self.notes: dict[tuple[int, Any], Any] = {}

    def add(self, number: int, record: FeatureRecord, *, own: bool) -> None:
        if number in self.units:
            raise UsageError(f"feature {record.index} of {record.source} is there twice")
        extra = dict(record.extra)
        ours = extra.pop(OWN, None) or {}
        if ours.get("graph"):
            self.notes[number, "graph"] = ours["graph"]
        described = [{"description": record.description}] if record.description else None
        if explanations := extra.pop("explanations", None) or described:
            self.notes[number, "explanations"] = explanations
        bars = {"values": list(record.histogram_values), "heights": list(record.histogram_heights)}
        if any(bars.values()):
            self.notes[number, "histogram"] = bars
        if not own:
            fields = {name: getattr(record, name) for name in ("prompts", "prompt_tokens", "dataset")}
            examples = {str(i): dict(each.extra) for i, each in enumerate(record.examples)}
            self.notes[number, "extra"] = {"record": extra, "examples": examples, "fields": fields}
        elif extra:
            self.notes[number, "extra"] = {"record": extra, "examples": {}, "fields": {}}
        self.units[number] = record

    def parts(self, n: int) -> tuple[dict[str, Any], int]:
        """Return the parts of an index of ``n`` units, and how many of its columns are top texts."""
        split = {number: _split(record.examples) for number, record in self.units.items()}
        top = max((len(best) for best, _ in split.values()), default=0) or 1
        some = max((len(random) for _, random in split.values()), default=0)
        width = max((len(each.tokens) for record in self.units.values() for each in record.examples), default=1)
        ints = {name: np.full((n, top + some), -1, np.int32) for name in ("context", "position", "start")}
        peak, values = np.zeros((n, top + some)), np.full((n, top + some, width), np.nan)
        density = np.zeros(n)
        texts: list[tuple[list[int], int, int]] = []
        for number, (best, random) in split.items():
            density[number] = self.units[number].density
            for slot, example in [*enumerate(best), *((top + i, each) for i, each in enumerate(random))]:
                own = example.extra.get(OWN, {})
                ints["context"][number, slot], ints["start"][number, slot] = len(texts), 0
                row = np.array(example.values)
                ints["position"][number, slot], peak[number, slot] = int(row.argmax()), row.max()
                row[own.get("masked", [])] = np.nan
                values[number, slot, : len(row)] = row
                ids = [self._id(token) for token in example.tokens]
                texts.append((ids, own.get("document", len(texts)), own.get("offset", 0)))
        effects = self._effects(n)
        bars = np.zeros((n, BARS), np.uint32)
        return {
            "units": {**ints, "peak": peak, "values": values, "density": density, "bars": bars},
            "contexts": {
                "ids": np.array([token for ids, _, _ in texts for token in ids], np.int32),
                "offset": offsets([len(ids) for ids, _, _ in texts]),
                "document": np.array([document for _, document, _ in texts], np.int64),
                "first": np.array([first for _, _, first in texts], np.int64),
            },
            "effects": effects,
            "vocabulary": vocabulary_of(token.encode("utf-8", "surrogatepass") for token in self.ids).arrays(),
            "notes": pack(self.notes),
        }, top

    def _effects(self, n: int) -> dict[str, np.ndarray]:
        sides = {"up": ("positive", "positive_values"), "down": ("negative", "negative_values")}
        lengths = [len(getattr(each, name)) for each in self.units.values() for name, _ in sides.values()]
        width = max(lengths, default=0) or 1
        made: dict[str, np.ndarray] = {}
        for side, (names, values) in sides.items():
            token, value = np.full((n, width), -1, np.int32), np.full((n, width), np.nan)
            for number, record in self.units.items():
                listed = list(zip(getattr(record, names), getattr(record, values), strict=False))
                for slot, (text, size) in enumerate(listed):
                    token[number, slot], value[number, slot] = self._id(str(text)), size
            made |= {f"{side}.token": token, f"{side}.value": value}
        return made

    def _id(self, token: str) -> int:
        return self.ids.setdefault(token, len(self.ids))


def _split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Return the top texts and the random ones."""
    random = [each for each in examples if (each.extra.get(OWN) or {}).get("random")]
    return [each for each in examples if each not in random], random


def _name(text: str) -> str:
    """Return a name that fits into an address."""
    return text.replace("/", "--")
