"""Circuits in the JSON of the MIB benchmark (and of EAP-IG, from which it comes).

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"input" | "a0.h1" | "m3" | "logits": {"in_graph": bool}},
     "edges": {"input->a0.h1<q>" | "a0.h1->m3" | ...: {"score": float, "in_graph": bool}}}

Its heads always read query, key and value apart, one reader for each query head. A reader of ours that stands for
several of those (a shared key or value, a head as a whole) gives each an equal part of its score, and is kept where
any of them is; reading adds the parts up again. So what was written comes back the same, in any grouping.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.select import prune
from cutaway.circuits.wiring import Grouping, Wiring
from cutaway.errors import CutawayError, UsageError, nearest

_EDGE = re.compile(r"([^>\s]+)->([^<\s]+?)(<[qkv]>)?")


def write_mib(graph: CircuitGraph, path: str | Path, *, d_model: int) -> None:
    """Write ``graph`` as MIB reads it; UsageError for scores by position, which the format has no place for.

    d_model: the model's width, which the format wants in its header.
    """
    if graph.header.positions:
        raise UsageError("MIB circuits have no positions: sum the scores over them first")
    wiring = graph.wiring
    alive = _nodes_alive(graph)
    edges = {}
    for reader in range(len(wiring.readers)):
        names = _reader_names(wiring, reader)
        for writer in range(wiring.written_before(reader)):
            score, kept = float(graph.scores[writer, reader]) / len(names), bool(graph.mask[writer, reader])
            for name in names:
                edges[f"{_writer_name(wiring.writers[writer])}->{name}"] = {"score": score, "in_graph": kept}
    cfg = {
        "n_layers": wiring.n_layers,
        "n_heads": wiring.n_heads,
        "parallel_attn_mlp": wiring.parallel,
        "d_model": d_model,
    }
    nodes = {name: {"in_graph": kept} for name, kept in alive.items()}
    Path(path).write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}), encoding="utf-8")


def read_mib(
    path: str | Path, *, model: str = "unknown", n_kv_heads: int | None = None, grouping: Grouping | str = "expanded"
) -> CircuitGraph:
    """Read a circuit; edges that the file leaves out score 0 and are not kept.

    n_kv_heads: of the model, which the format does not say; None means as many as heads.
    CutawayError for a file of another form, and for nodes and edges that the model of its header does not have.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        cfg, nodes, edges = data["cfg"], data["nodes"], data["edges"]
        n_layers, n_heads = int(cfg["n_layers"]), int(cfg["n_heads"])
        parallel = bool(cfg.get("parallel_attn_mlp", False))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise CutawayError(f"{path} is no MIB circuit: {error!r}") from error
    wiring = Wiring(n_layers, n_heads, n_kv_heads or n_heads, grouping, parallel)
    readers = {name: at for at in range(len(wiring.readers)) for name in _reader_names(wiring, at)}
    writers = {_writer_name(name): place for place, name in enumerate(wiring.writers)}
    _known(nodes, (*writers, "logits"), path)
    scores = np.zeros(wiring.legal.shape)
    mask = np.zeros(wiring.legal.shape, dtype=bool)
    for writer, reader, score, kept in _parsed(edges, writers, readers, path):
        if not wiring.legal[writer, reader]:
            raise CutawayError(f"{path}: {wiring.writers[writer]} writes after {wiring.readers[reader]} has read")
        scores[writer, reader] += score
        mask[writer, reader] |= kept
    header = Header(model, "unknown", wiring, "mib", settings={"file": Path(path).name})
    return CircuitGraph(header, scores.astype(np.float32), mask)


def _parsed(
    edges: Mapping[str, Any], writers: Mapping[str, int], readers: Mapping[str, int], path: str | Path
) -> Iterator[tuple[int, int, float, bool]]:
    for name, entry in edges.items():
        found = _EDGE.fullmatch(name)
        if found is None:
            raise CutawayError(f"{path}: edge {name!r} is not of the form a0.h1->a3.h2<q>")
        writer, reader = found[1], found[2] + (found[3] or "")
        _known((writer,), tuple(writers), path)
        _known((reader,), tuple(readers), path)
        try:
            yield writers[writer], readers[reader], float(entry["score"]), bool(entry["in_graph"])
        except (KeyError, TypeError, ValueError) as error:
            raise CutawayError(f"{path}: edge {name!r} needs score and in_graph") from error


def _known(names: Any, allowed: tuple[str, ...], path: str | Path) -> None:
    for name in names:
        if name not in allowed:
            raise CutawayError(f"{path}: no node {name!r} in the model of its header{nearest(name, allowed)}")


def _nodes_alive(graph: CircuitGraph) -> dict[str, bool]:
    used: list[bool] = np.any(prune(graph.wiring, graph.mask), axis=1).tolist()
    alive = {_writer_name(name): at for name, at in zip(graph.wiring.writers, used, strict=True)}
    return alive | {"input": True, "logits": True}


def _writer_name(name: str) -> str:
    kind, *place = name.split(".")
    return {"embed": "input", "z": "a{}.h{}", "mlp_out": "m{}"}[kind].format(*place)


def _reader_names(wiring: Wiring, reader: int) -> tuple[str, ...]:
    kind, *place = wiring.readers[reader].split(".")
    if kind == "logits":
        return ("logits",)
    if kind == "mlp_in":
        return (f"m{place[0]}",)
    heads = [_writer_name(wiring.writers[writer]) for writer in wiring.outputs_of(reader)]
    return tuple(f"{head}<{part}>" for head in heads for part in ("qkv" if kind == "head_in" else kind))
