"""What a page and a search cost over 100,000 units, against decoding everything at each request.

    python benchmarks/index.py [--quick] [--out FILE.json] [--fill MODEL]

The index is synthetic: 100,000 units with ten texts of 64 tokens, tokens drawn by Zipf's law from 50,000. A page is
the HTML of a unit with everything on it, asked of the app itself (no socket), a search has two terms in two roles of
which one is among the 200 most frequent tokens. The baseline does what the reference did: it holds each unit's
tokens as JSON, and for each search decodes all of it. Its answers are checked against ours. One process, one thread
for the requests. ``--fill`` reads that model instead: units of all MLP neurons filled from wikitext, tokens a second.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi.testclient import TestClient
from timing import Claim, report

from cutaway.app import create_app
from cutaway.features.index import FeatureIndex, Source
from cutaway.features.index.collect import BARS, EDGES
from cutaway.features.index.notes import pack
from cutaway.features.index.postings import members
from cutaway.features.index.store import make_postings, write_index
from cutaway.features.index.vocabulary import vocabulary_of

UNITS, TOP, WINDOW, TOKENS, TEXTS, LENGTH = 100_000, 10, 64, 50_000, 4_000, 128
CHUNK = 10_000
PAGE_MS, SEARCH_MS = 20.0, 50.0


def synthetic(folder: Path, units: int) -> FeatureIndex:
    """Units that fire on a few tokens of each of their texts."""
    rng = np.random.default_rng(0)
    odds = 1 / np.arange(1, TOKENS + 1)
    ids = rng.choice(TOKENS, TEXTS * LENGTH, p=odds / odds.sum()).astype(np.int32)
    values = np.zeros((units, TOP, WINDOW), np.float32)
    for low in range(0, units, CHUNK):
        part = values[low : low + CHUNK]
        part[:] = rng.normal(-1.0, 1.0, part.shape)
        part[..., 47] = 4.0 + rng.random(part.shape[:2])
    values.sort(axis=1)
    values = values[:, ::-1]
    start = rng.integers(0, LENGTH - WINDOW + 1, (units, TOP)).astype(np.int32)
    effect = rng.integers(0, TOKENS, (units, 10)).astype(np.int32)
    parts: dict[str, Any] = {
        "units": {
            "peak": values.max(-1),
            "context": rng.integers(0, TEXTS, (units, TOP)).astype(np.int32),
            "position": start + values.argmax(-1).astype(np.int32),
            "start": start,
            "values": values,
            "density": rng.random(units),
            "bars": rng.integers(0, 99, (units, BARS)).astype(np.uint32),
        },
        "contexts": {
            "ids": ids,
            "offset": np.arange(TEXTS + 1, dtype=np.int64) * LENGTH,
            "document": np.arange(TEXTS, dtype=np.int64),
            "first": np.zeros(TEXTS, np.int64),
        },
        "vocabulary": vocabulary_of(f" token{i}".encode() for i in range(TOKENS)).arrays(),
        "effects": {f"{side}.token": effect for side in ("up", "down")},
        "notes": pack({}),
    }
    parts["effects"] |= {f"{side}.value": effect.astype(np.float32) for side in ("up", "down")}
    parts["postings"] = make_postings(parts, TOP)
    about = {"model": {"name": "synthetic", "fingerprint": ""}, "corpus": {"name": "zipf", "digest": ""}}
    about |= {"tokens": TEXTS * LENGTH, "texts": TEXTS, "top": TOP, "begin": 0, "edges": list(EDGES), "complete": True}  # type: ignore[dict-item]
    return write_index(folder, about, [Source("dictionary", "dictionary", "resid_post.0", units)], parts)


def as_json(index: FeatureIndex) -> list[bytes]:
    """The reference's store: one blob for each unit with its tokens by role."""
    lists, roles = index.parts["postings"], ("activating", "context")
    tokens = ({role: members(lists, f"{role}.of_unit", u).tolist() for role in roles} for u in range(index.n_units))
    return [json.dumps(each).encode() for each in tokens]


def decode_everything(blobs: list[bytes], activating: int, context: int) -> list[int]:
    """Answer a search by decoding every unit, as the reference does at each request."""
    found = []
    for unit, blob in enumerate(blobs):
        decoded = json.loads(blob)
        if activating in decoded["activating"] and context in decoded["context"]:
            found.append(unit)
    return found


def queries(index: FeatureIndex, n: int) -> list[tuple[int, int]]:
    """Pairs of tokens that at least one unit has, the context among the frequent ones."""
    rng = np.random.default_rng(1)
    lists = index.parts["postings"]
    made = []
    while len(made) < n:
        context = int(rng.integers(0, 200))
        units = members(lists, "context.of_token", context)
        if len(units):
            tokens = members(lists, "activating.of_unit", int(rng.choice(units)))
            made.append((int(rng.choice(tokens)), context))
    return made


def latencies(client: TestClient, addresses: list[str]) -> tuple[list[float], list[float]]:
    """Milliseconds of each request after one for warming up: by the clock, and of the processor."""
    client.get(addresses[0])
    wall, cpu = [], []
    for address in addresses:
        started, busy = time.perf_counter(), time.process_time()
        answer = client.get(address)
        wall.append(1000 * (time.perf_counter() - started))
        cpu.append(1000 * (time.process_time() - busy))
        if answer.status_code != 200:
            sys.exit(f"{address}: {answer.status_code} {answer.text[:200]}")
    return wall, cpu


def p95(what: str, baseline: str, values: list[float], **rest: Any) -> Claim:
    """A claim about the 95th percentile, with the median and the largest beside it."""
    high = float(np.quantile(values, 0.95))
    return Claim(what, baseline, high, float(np.median(values)), float(max(values)), unit="ms", **rest)


def serving(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Pages and searches through the app, and the baseline's search."""
    units = UNITS
    with tempfile.TemporaryDirectory() as folder:
        index = synthetic(Path(folder) / "index", units)
        client = TestClient(create_app(f"sqlite:///{folder}/l.db", index=index.folder), base_url="http://127.0.0.1")
        rng = np.random.default_rng(2)
        pages = [f"/features/synthetic/dictionary/{unit}" for unit in rng.integers(0, units, 100 if quick else 400)]
        asked = queries(index, 100 if quick else 400)
        texts = [(index.vocabulary.text(a), index.vocabulary.text(c)) for a, c in asked]
        searches = [f"/api/features/synthetic/search?activating={quote(a)}&context={quote(c)}" for a, c in texts]
        page, search = latencies(client, pages), latencies(client, searches)
        blobs = as_json(index)
        decoded = []
        for (activating, context), address in list(zip(asked, searches, strict=True))[: 3 if quick else 10]:
            started = time.perf_counter()
            expected = decode_everything(blobs, activating, context)
            decoded.append(1000 * (time.perf_counter() - started))
            if client.get(address).json()["total"] != len(expected):
                sys.exit(f"{address}: the baseline found {len(expected)}")
        files = {name: file["bytes"] for name, file in index.about["files"].items()}
    times = float(np.median(decoded) / np.median(search[0]))
    per_unit = sum(files.values()) / units
    claims = [
        p95("page of a unit, p95 (median, largest)", "-", page[0], bar=PAGE_MS),
        p95("the same, processor time", "-", page[1]),
        p95("search of two terms, p95 (median, largest)", "decoding everything", search[0], bar=SEARCH_MS),
        p95("the same, processor time", "-", search[1]),
        p95("the same search by decoding everything", "-", decoded),
        Claim("search, times faster (medians)", "decoding everything", times, times, times, bar=10.0, at_least=True),
    ]
    return claims, {"units": units, "bytes a unit": per_unit, "bytes": files}


def filling(name: str, tokens: int) -> tuple[list[Claim], dict[str, Any]]:
    """All MLP neurons of a model, top 10: tokens a second of the pass, and the minutes of 200,000."""
    from cutaway.features.corpus import open_corpus
    from cutaway.features.index import FillConfig, fill
    from cutaway.model import load_model

    model, seen = load_model(name), [(time.perf_counter(), 0)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        index = fill(
            model,
            open_corpus("wikitext"),
            folder,
            config=FillConfig(tokens=tokens),
            tick=lambda done: seen.append((time.perf_counter(), done)),
        )
        total = time.perf_counter() - started
    seconds = seen[-1][0] - seen[1][0]
    speed = seen[-1][1] / seconds
    minutes = (total - seconds + 200_000 / speed) / 60
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    claims = [
        Claim("filling, 200,000 tokens", "-", minutes, minutes, minutes, bar=30.0, unit="min"),
        Claim("memory", "-", memory, memory, memory, bar=4.0, unit="GiB"),
    ]
    rest = {"units": index.n_units, "seconds before and after the pass": total - seconds}
    return claims, {"tokens read": seen[-1][1], "tokens a second": speed, **rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests; for development")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--fill", metavar="MODEL", help="measure filling instead")
    parser.add_argument("--tokens", type=int, default=200_000, help="read so many and extrapolate")
    given = parser.parse_args()
    claims, details = filling(given.fill, given.tokens) if given.fill else serving(given.quick)
    report(given, claims, **details)


if __name__ == "__main__":
    main()
