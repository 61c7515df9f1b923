"""Finished queries on disk, so that a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.query_circuits.candidates import Search
from cutaway.circuits.query_circuits.data import Query
from cutaway.circuits.query_circuits.result import Searched
from cutaway.circuits.wiring import Wiring
from cutaway.ledger.provenance import code_hash


def place_of(folder: Path, fingerprint: str, wiring: Wiring, query: Query, search: Search) -> Path:
    """Return where a query's circuits are kept: its name stands for all that they depend on, these sources too."""
    given = [code_hash(), fingerprint, wiring.to_dict(), asdict(query), asdict(search)]
    return folder / f"{hashlib.sha256(json.dumps(given).encode()).hexdigest()[:24]}.safetensors"


def keep(path: Path, found: Searched) -> None:
    """Write one query's circuits; whole or not at all."""
    whole = {each.name: getattr(found, each.name) for each in fields(found)}
    arrays = dict(_flat({**whole, "scores": found.graph.scores, "masks": np.packbits(found.masks)}))
    about = {"name": found.name, "group": found.group, "full": found.full, "none": found.none}
    about |= {"header": found.graph.header.to_dict(), "masks": found.masks.shape}
    new = path.with_suffix(".new")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, new, {"query": json.dumps(about)})
    new.replace(path)


def kept(path: Path) -> Searched | None:
    """Return what `keep` wrote; None where there is nothing, or a file that is not whole."""
    if not path.is_file():
        return None
    nested: dict[str, Any] = {"held_out": {}}
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["query"])
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                *branches, leaf = json.loads(name)
                inner = nested
                for branch in branches:
                    inner = inner.setdefault(branch, {})
                inner[leaf] = file.get_tensor(name)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return None
    masks = np.unpackbits(nested.pop("masks"), count=int(np.prod(about["masks"]))).astype(bool)
    graph = CircuitGraph.whole(Header.from_dict(about.pop("header")), nested.pop("scores"))
    return Searched(**{**about, "masks": masks.reshape(about["masks"])}, **nested, graph=graph)


def _flat(nested: Mapping[str, Any], *above: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays in ``nested``, each called by the JSON list of the keys that lead to it."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, *above, name)
        elif isinstance(value, np.ndarray):
            yield json.dumps([*above, name]), value
