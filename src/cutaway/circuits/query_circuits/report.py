"""Findings, charts and files of a search: each effect with its control, the held-out figures first."""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cutaway.charts import Chart, Heat, Series
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.query_circuits.data import Queries, Query
from cutaway.circuits.query_circuits.result import CHOSEN, QueryCircuits, Searched, areas, halfway
from cutaway.circuits.view import CircuitView, SizeCurve, circuit_view, gaps
from cutaway.model import Model
from cutaway.stats import Interval, paired_difference
from cutaway.study import Finding

_finding = partial(Finding.of, undefined="no query has an NDF here")

TARGETS = (0.6, 0.8)
TOP_EDGES = 40
_ROWS = 40


def findings(found: QueryCircuits, queries: Queries, wrong: int) -> tuple[Finding, ...]:
    """Return areas, gains, shares reached, what is left without the circuit, and counts of what was left out."""
    n, main = len(found.queries), found.main
    items = [_area(found, main, where) for where in (*found.places[1:], CHOSEN)]
    if main != "single":
        items += [_area_gain(found, main, where) for where in (*found.places[1:], CHOSEN)]
        for where in (*found.places[1:2], CHOSEN):
            items += [
                _finding(f"gain over the single query at {size} edges, {where}", gain, unit="NDF")
                for size, gain in zip(found.sizes, found.gain(main, where=where), strict=True)
            ]
    where = found.places[1] if len(found.places) > 1 else CHOSEN
    for target in TARGETS:
        control = _finding(f"the same at random, {where}", found.reached("random", target, where))
        name = f"share of queries that reach NDF {target:g}, {where}"
        items.append(_finding(name, found.reached(main, target, where), control=control))
        items.append(_typical(found, main, target, where))
    worst = max(found.curve("random"), key=lambda each: each.value)
    items.append(_finding("largest mean NDF of random search at any size", worst))
    items.append(_area(found, "nested", where))
    if found.between:
        at, size = len(found.between) // 2, found.between[len(found.between) // 2]
        control = _finding("single query", halfway(found, "single")[at])
        for way in ("nested", "neighbours"):
            name = f"NDF of {way} circuits at {size} edges, between sizes searched"
            items.append(_finding(name, halfway(found, way)[at], control=control))
    left = found.complement()[-1]
    items.append(_finding(f"share of the answer left without the circuit of {found.sizes[-1]} edges", left))
    items.append(Finding("queries without NDF: clean and corrupted values agree", float(found.undefined), n=n))
    items.append(Finding("queries left out: the model answers them wrongly", float(wrong), n=n + wrong))
    items += [Finding(f"queries left out: {why}", float(count)) for why, count in queries.left_out]
    return tuple(items)


def _area(found: QueryCircuits, way: str, where: str) -> Finding:
    control = _finding(f"random search, {where}", found.area("random", where))
    return _finding(f"mean NDF over sizes, {way}, {where}", found.area(way, where), control=control)


def _area_gain(found: QueryCircuits, way: str, where: str) -> Finding:
    both = [areas(found.sizes, found.values(each, where)) for each in (way, "single")]
    kept = ~np.isnan(both).any(0)
    groups = np.array([query.group or str(at) for at, query in enumerate(found.queries)])[kept]
    gain = paired_difference(both[0][kept], both[1][kept], clusters=groups)
    return _finding(f"gain over the single query, over sizes, {where}", gain, unit="NDF")


def _typical(found: QueryCircuits, way: str, target: float, where: str) -> Finding:
    name = f"median smallest size with NDF {target:g}, {where}"
    sizes = [np.inf if size is None else size for size in found.smallest(way, target, where)]
    middle = float(np.median(sizes)) if sizes else np.inf
    if not np.isfinite(middle):
        return Finding(name, None, n=len(sizes), undefined="half of the queries or more do not reach it")
    return Finding(name, middle, n=len(sizes), unit="edges")


def summarise(found: QueryCircuits) -> str:
    """One line: how good circuits are where they were not chosen, beside the control."""
    where = found.places[1] if len(found.places) > 1 else CHOSEN
    at = len(found.sizes) - 1
    best, single = (found.curve(way, where)[at] for way in (found.main, "single"))
    random = found.curve("random", where)[at]
    partial = "" if found.complete else " (stopped early)"
    return (
        f"{len(found.queries)} queries: circuits of {found.sizes[at]} edges reach NDF {best!r} on {where}"
        f" (single query {single.value:.2f}, random {random.value:.2f}){partial}"
    )


def charts(found: QueryCircuits) -> tuple[Chart | Heat, ...]:
    """Return NDF by edges, gains by place, edges kept, what is left without the circuit, and each query's NDF."""
    drawn: list[Chart | Heat] = [ndf_chart(found)]
    if found.main != "single":
        drawn.append(_gain_chart(found))
    drawn.append(_kept_chart(found))
    left = found.complement()
    drawn.append(
        Chart(
            "What is left without the circuit",
            _x(found.sizes),
            (_series("everything but the circuit", left),),
            x_label="edges",
            y_label="share of the answer",
            note="Only the circuit's edges are cut. 1: nothing is lost; 0: the corrupted answer; below 0: past it.",
            log_x=True,
        )
    )
    return (*drawn, _query_heat(found))


def ndf_chart(found: QueryCircuits) -> Chart:
    """Return mean NDF by edges, with bands: where winners were chosen, held out, and at random."""
    lines = [_series(f"{way}, {CHOSEN}", found.curve(way)) for way in found.ways if way != "random"]
    lines += [_series(f"{found.main}, {where}", found.curve(found.main, where)) for where in found.places[1:]]
    lines.append(_series(f"random, {CHOSEN}", found.curve("random"), control=True))
    return Chart(
        "How well circuits of growing size reproduce the answer",
        _x(found.sizes),
        tuple(lines),
        x_label="edges asked for",
        y_label="mean NDF",
        note="Winners are chosen on the query itself, which flatters them there; held-out lines are what to quote.",
        log_x=True,
    )


def _gain_chart(found: QueryCircuits) -> Chart:
    return Chart(
        "Gain of the best wording over the single query",
        _x(found.sizes),
        tuple(_series(where, found.gain(found.main, where=where)) for where in found.places),
        x_label="edges asked for",
        y_label="difference in NDF, paired",
        note="On the query itself the gain cannot be negative; a gain on held-out pairs is one that is real.",
        log_x=True,
    )


def _kept_chart(found: QueryCircuits) -> Chart:
    share = {
        way: np.mean([query.kept[way] for query in found.queries], 0) / found.sizes
        for way in dict.fromkeys(("single", found.main, "nested", "random"))
    }
    return Chart(
        "Edges that are left after pruning",
        _x(found.sizes),
        tuple(Series(way, tuple(map(float, values)), control=way == "random") for way, values in share.items()),
        x_label="edges asked for",
        y_label="share kept",
        note="Edges from nodes that hear nothing, or to nodes that lead nowhere, carry nothing and are dropped.",
        log_x=True,
    )


def _query_heat(found: QueryCircuits) -> Heat:
    where = found.places[1] if len(found.places) > 1 else CHOSEN
    rows = found.queries[:_ROWS]
    values = [gaps(query.curve(found.main, where)) for query in rows]
    return Heat(
        f"NDF of each query, {where}",
        tuple(f"{at + 1}. {query.name[-48:]}" for at, query in enumerate(rows)),
        tuple(f"{size:,}" for size in found.sizes),
        tuple(values),
        unit="NDF",
        note="" if len(rows) == len(found.queries) else f"The first {_ROWS} of {len(found.queries)} queries.",
    )


def files(found: QueryCircuits, circuits: int) -> dict[str, bytes]:
    """Return the artifacts: all numbers, a table, the top edges, and the first ``circuits`` circuits themselves."""
    out = {
        "query-circuits.json": (json.dumps(found.to_dict(), ensure_ascii=False) + "\n").encode(),
        "ndf.csv": found.to_frame().to_csv(index=False).encode(),
        "edges.csv": edge_table(found),
    }
    for number, query in enumerate(found.queries[:circuits], 1):
        out[f"circuit-{number}.safetensors"] = _saved(shown(found, query)[1])
    return out


def shown(found: QueryCircuits, query: Searched, target: float = TARGETS[0]) -> tuple[int, CircuitGraph]:
    """Return the size and circuit to show: the smallest that reaches ``target`` on the query, else the best."""
    values = query.curve(found.main)
    good = np.flatnonzero(values >= target)
    at = int(good[0]) if len(good) else int(np.nan_to_num(values, nan=-1.0).argmax())
    return found.sizes[at], query.circuit(at)


def drawing(model: Model, found: QueryCircuits, query: Query) -> CircuitView:
    """Return the page's view of the first query's circuits, with its NDF where it was not chosen."""
    first, where = found.queries[0], next(iter(query.held_out), (CHOSEN,))[0]
    value, control = (gaps(first.curve(way, where)) for way in (found.main, "random"))
    with torch.no_grad():
        patterns = model.capture(model.batch([list(query.pair.clean)]), ["pattern.*"], special=True)
    return circuit_view(
        first.graph,
        list(first.masks),
        SizeCurve(f"NDF, {where}", value, control=control),
        title=first.name,
        tokens=[model.decode([token]) for token in query.pair.clean],
        corrupted=[model.decode([token]) for token in query.pair.corrupted],
        asked=found.sizes,
        attention={
            f"z.{name.split('.')[1]}.{head}": pattern.float().cpu().numpy()
            for name, heads in patterns.items()
            for head, pattern in enumerate(heads[0])
        },
    )


def edge_table(found: QueryCircuits) -> bytes:
    """Return a CSV of the largest edges of each query's circuit."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query", "size", "writer", "reader", "score"])
    for query in found.queries:
        size, circuit = shown(found, query)
        for (source, target, score), _ in zip(circuit.edges(), range(TOP_EDGES), strict=False):
            writer.writerow([query.name, size, source, target, f"{score:.6g}"])
    return text.getvalue().encode()


def _saved(circuit: CircuitGraph) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "circuit.safetensors"
        circuit.save(path)
        return path.read_bytes()


def _series(name: str, curve: Sequence[Interval], *, control: bool = False) -> Series:
    value, low, high = (tuple(getattr(each, key) for each in curve) for key in ("value", "low", "high"))
    return Series(name, value, low, high, control)


def _x(sizes: Sequence[int]) -> tuple[float, ...]:
    return tuple(map(float, sizes))
