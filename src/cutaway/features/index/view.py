"""Everything known about a unit, as plain data: what the pages show and the API answers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UsageError, nearest
from cutaway.features.index.postings import SHARE, Term, alike, matching
from cutaway.features.index.store import FeatureIndex, Text

Data = dict[str, Any]
TOP_TOKENS = 12
_NEAR = 8


def unit_view(index: FeatureIndex, number: int, services: Sequence[str] | None = None) -> tuple[Data, list[str]]:
    """Return the data of each service (None: all of `SERVICES`), and the names of those the unit has no data for."""
    data, missing = {}, []
    for name in SERVICES if services is None else services:
        found = SERVICES[name](index, number)
        if found is None:
            missing.append(name)
        else:
            data[name] = found
    return data, missing


def brief(index: FeatureIndex, number: int) -> Data:
    """Return one line about a unit: where it is, its largest value and density, the tokens it is strongest on."""
    source, unit = index.place(number)
    return {
        "source": source.name,
        "unit": unit,
        "strongest": index.strongest(number),
        "density": index.density(number),
        "tokens": [each["token"] for each in (_tokens(index, number) or [])[:4]],
    }


def search(
    index: FeatureIndex,
    terms: Sequence[Term],
    *,
    ci: bool = False,
    trim: bool = False,
    source: str | None = None,
    offset: int = 0,
    limit: int = 50,
) -> Data:
    """Return the units that satisfy every term, in order of their numbers, and how many there are in all.

    For a token that the vocabulary does not have as it was written, ``near`` lists tokens that differ in case and
    blanks alone. UsageError for an unknown source or no term.
    """
    found = matching(index.parts["postings"], index.vocabulary, terms, index.n_units, ci=ci, trim=trim)
    if source is not None:
        place = index.source(source)
        found = found[(found >= place.first) & (found < place.first + place.units)]
    near = []
    for term in terms:
        if not index.vocabulary.find(term.token, ci=ci, trim=trim):
            ids = index.vocabulary.find(term.token, ci=True, trim=True)[:_NEAR]
            near += [{"token": index.vocabulary.text(token), "id": token} for token in ids]
    return {
        "total": len(found),
        "offset": offset,
        "units": [brief(index, int(number)) for number in found[offset : offset + limit]],
        "near": near,
    }


def source_summary(index: FeatureIndex, name: str) -> Data:
    """Return what the overview says of a source."""
    source = index.source(name)
    density = index.parts["units"]["density"][source.first : source.first + source.units]
    return {
        "source": name,
        "title": source.title,
        "kind": source.kind,
        "site": source.site,
        "units": source.units,
        "silent": int((density == 0).sum()),
        "median_density": float(np.median(density)),
    }


def provenance(index: FeatureIndex) -> Data:
    """Return what every number of the index rests on."""
    about = index.about
    return {
        "model": about["model"]["name"],
        "fingerprint": about["model"]["fingerprint"],
        "corpus": about["corpus"]["name"],
        "corpus_digest": about["corpus"]["digest"],
        "tokens": about["tokens"],
        "texts": about["texts"],
        "complete": about["complete"],
    }


def text_view(index: FeatureIndex, text: Text) -> Data:
    """Return a text with its tokens spelled."""
    spell = index.vocabulary.text
    return {
        "tokens": [spell(token) for token in text.ids],
        "values": list(text.values),
        "at": text.at,
        "peak": text.peak,
        "document": text.document,
        "offset": text.offset,
    }


def histogram(index: FeatureIndex, number: int) -> Data | None:
    """Return lower ends (nearer to zero) and heights of the bars between the first and the last that is not empty."""
    noted: Data | None = index.note(number, "histogram")
    if noted is not None:
        return noted
    counts = index.parts["units"]["bars"][number]
    used = np.flatnonzero(counts)
    if not len(used):
        return None
    edges = index.about["edges"]
    values = [*(-edge for edge in reversed(edges)), 0.0, *edges]
    chosen = slice(int(used[0]), int(used[-1]) + 1)
    return {"values": values[chosen], "heights": counts[chosen].astype(float).tolist()}


def logits(index: FeatureIndex, number: int) -> Data | None:
    """Return the tokens a unit raises and lowers most, with their effects."""
    effects = index.parts["effects"]
    made = {}
    for name, side in (("promoted", "up"), ("suppressed", "down")):
        tokens, values = (effects[f"{side}.{part}"][number].tolist() for part in ("token", "value"))
        made[name] = [
            {"token": index.vocabulary.text(token), "value": value}
            for token, value in zip(tokens, values, strict=True)
            if token >= 0
        ]
    return made if any(made.values()) else None


def _metadata(index: FeatureIndex, number: int) -> Data:
    source, unit = index.place(number)
    return {
        "source": source.name,
        "unit": unit,
        "title": source.title,
        "kind": source.kind,
        "site": source.site,
        "strongest": index.strongest(number),
        "density": index.density(number),
    }


def _tokens(index: FeatureIndex, number: int) -> list[Data] | None:
    """The tokens where a unit is at half its largest value or more in its top texts, by their largest value."""
    best: dict[int, float] = {}
    count: dict[int, int] = defaultdict(int)
    units, contexts = index.parts["units"], index.parts["contexts"]
    values = units["values"][number, : index.about["top"]]
    text, at = ((values > 0) & (values >= index.strongest(number) * SHARE)).nonzero()
    where = contexts["offset"][units["context"][number, text]] + units["start"][number, text] + at
    for token, value in zip(contexts["ids"][where].tolist(), values[text, at].tolist(), strict=True):
        best[token] = max(best.get(token, 0.0), value)
        count[token] += 1
    order = sorted(best, key=lambda token: (-best[token], token))[:TOP_TOKENS]
    return [{"token": index.vocabulary.text(t), "value": best[t], "count": count[t]} for t in order]


def _similar(index: FeatureIndex, number: int) -> list[Data]:
    found = []
    for each in alike(index.parts["postings"], number):
        source, unit = index.place(each.unit)
        shares = {"similarity": each.similarity, "inside": each.inside, "holds": each.holds, "shared": each.shared}
        found.append({"source": source.name, "unit": unit, **shares})
    return found


def _samples(index: FeatureIndex, number: int) -> list[Data] | None:
    if index.parts["units"]["context"].shape[1] == index.about["top"]:
        return None
    return [text_view(index, text) for text in index.texts(number, samples=True)]


def _extra(index: FeatureIndex, number: int) -> Data | None:
    noted = index.note(number, "extra")
    return None if noted is None else noted["record"] or None


SERVICES: dict[str, Callable[[FeatureIndex, int], Any]] = {
    "metadata": _metadata,
    "texts": lambda index, number: [text_view(index, text) for text in index.texts(number)],
    "samples": _samples,
    "tokens": _tokens,
    "histogram": histogram,
    "logits": logits,
    "graph": lambda index, number: index.note(number, "graph"),
    "similar": _similar,
    "explanations": lambda index, number: index.note(number, "explanations"),
    "extra": _extra,
}
"""What can be asked of a unit. None means that the index has no such data for it."""


def check_service(name: str) -> None:
    """UsageError for a service that does not exist, naming the nearest."""
    if name not in SERVICES:
        raise UsageError(f"no service {name!r}{nearest(name, [*SERVICES, 'all'])}")
