"""What the study says: findings with their controls, charts, one line."""

from collections.abc import Sequence

from cutaway.charts import Chart, Heat, Series
from cutaway.circuits.sequence_continuation.data import Checked
from cutaway.circuits.sequence_continuation.result import Cell, SequenceStudy
from cutaway.study import Finding

ENOUGH = 100
"""Prompts a task should keep, by the card; with fewer the finding says so."""


def findings(found: SequenceStudy, checked: Sequence[Checked], verb: str, held: str) -> tuple[Finding, ...]:
    """The numbers a ledger keeps."""
    items = [_kept(each) for each in checked]
    items += [
        Finding(f"{each.task}: circuit", None, undefined=f"left out: {each!r}")
        for each in checked
        if each.task not in found.circuits
    ]
    for task, circuit in found.circuits.items():
        items += [
            Finding(f"{task}: nodes in the circuit", float(len(circuit.nodes)), n=len(circuit.steps), unit="nodes"),
            Finding(
                f"{task}: circuit on its own prompts ('{verb}')",
                circuit.score.value,
                circuit.score.low,
                circuit.score.high,
                n=circuit.score.n,
                unit="% of the full model",
                control=Finding("no node at all", circuit.empty, unit="% of the full model"),
            ),
        ]
        if task in found.edges:
            edges = found.edges[task]
            items.append(Finding(f"{task}: connections kept", float(len(edges.kept)), n=len(edges.tested)))
        if roles := found.roles.get(task):
            best = max(roles, key=lambda role: role.next.value)
            copy = Finding("copies of the member itself", best.copy.value, best.copy.low, best.copy.high)
            score = best.next
            name = f"{task}: best next score ({best.head})"
            items.append(Finding.of(name, score, unit="of members", control=copy))
    items += [_cell(cell, held) for cell in found.transfer.cells]
    items += [
        Finding(
            f"overlap of {each.first} and {each.second}",
            each.jaccard,
            n=len(each.shared),
            unit=f"Jaccard; heads p={each.p:.2g}",
        )
        for each in found.transfer.overlaps
    ]
    for each in found.effects:
        name = f"'{each.task}' without the heads of {each.circuit}"
        if each.untouched.value < 0.1:
            items.append(Finding(name, None, undefined=f"the untouched model is right in {each.untouched!r} only"))
            continue
        control = Finding("without random heads", sum(each.random) / len(each.random), n=len(each.random))
        left, unit = each.removed, f"exact match; untouched {each.untouched.value:.2f}, p={each.p:.2g}"
        items.append(Finding.of(name, left, unit=unit, control=control))
    items += [
        Finding(
            f"{each.circuits[0].task}: stability over {each.what}", each.jaccard, n=len(each.circuits), unit="Jaccard"
        )
        for each in found.stability
        if len(each.circuits) > 1
    ]
    return tuple(items)


def charts(found: SequenceStudy) -> tuple[Chart | Heat, ...]:
    """Transfer matrix, where the circuits lie, what each node is worth, where the answer appears."""
    names, tasks = tuple(found.circuits), tuple(dict.fromkeys(cell.task for cell in found.transfer.cells))
    score = {(cell.circuit, cell.task): cell for cell in found.transfer.cells}
    drawn: list[Chart | Heat] = []
    if score:
        values = tuple(tuple(score[a, b].score.value if (a, b) in score else None for b in tasks) for a in names)
        random = tuple(tuple(score[a, b].random_band[0] if (a, b) in score else None for b in tasks) for a in names)
        unit = "% of the full model"
        note = "Rows: circuit; columns: task, on a template that no circuit was found on."
        drawn.append(Heat("Each circuit on each task", names, tasks, values, unit, note))
        drawn.append(Heat("Random circuits of the same sizes", names, tasks, random, unit, "Mean of the control sets."))
    layers = 1 + max((int(node.split(".")[1]) for c in found.circuits.values() for node in c.nodes), default=0)
    counts = tuple(
        tuple(float(sum(int(node.split(".")[1]) == i for node in c.nodes)) for i in range(layers))
        for c in found.circuits.values()
    )
    columns = tuple(str(i) for i in range(layers))
    drawn.append(Heat("Kept nodes by layer", names, columns, counts, "nodes", "Columns: layer."))
    for task, falls in found.importance.items():
        top = dict(list(falls.items())[:15])
        bars = Series("fall of the score", tuple(top.values()))
        title = f"{task}: what the circuit loses without a node"
        drawn.append(Chart(title, tuple(top), (bars,), "node", "percentage points", "The 15 largest."))
    if found.lens:
        depth = max(len(lens.right) for lens in found.lens.values())
        lines = tuple(Series(task, tuple(map(float, lens.right))) for task, lens in found.lens.items())
        x = tuple(float(i) for i in range(depth))
        drawn.append(Chart("Answer on top, by layer (logit lens)", x, lines, "layer", "share of prompts"))
    return tuple(drawn)


def summary(found: SequenceStudy, complete: bool) -> str:
    """One line: sizes, held-out scores and the strongest transfer between tasks."""
    partial = "" if complete else " (not complete)"
    parts = []
    for task, circuit in found.circuits.items():
        own = [cell for cell in found.transfer.cells if cell.circuit == cell.task == task]
        held = f", {own[0].score.value:.0f}% held out (random {own[0].random_band[0]:.0f}%)" if own else ""
        parts.append(f"{task} {len(circuit.heads)} heads + {len(circuit.mlps)} MLPs{held}")
    across = [cell for cell in found.transfer.cells if cell.circuit != cell.task]
    best = max(across, key=lambda cell: cell.score.value, default=None)
    moved = f"; the circuit of {best.circuit} keeps {best.score.value:.0f}% of {best.task}" if best else ""
    return f"{'; '.join(parts)}{moved}{partial}"


def _kept(each: Checked) -> Finding:
    why = "; ".join(f"{n}: {reason}" for reason, n in each.dropped.items() if n)
    few = f"fewer than {ENOUGH}; " if each.kept < ENOUGH else ""
    split = f"; not one token: {', '.join(each.split)}" if each.split else ""
    unit = f"prompts; {few}dropped {why or 'none'}{split}"
    return Finding(f"{each.task}: prompts kept", float(each.kept), n=each.given, unit=unit)


def _cell(cell: Cell, held: str) -> Finding:
    mean, low, high = cell.random_band
    control = Finding("random circuits", mean, low, high, level=0.9, n=len(cell.random), unit="% of the full model")
    name = f"circuit of {cell.circuit} on {cell.task} ('{held}', held out)"
    unit = f"% of the full model, p={cell.p:.2g}"
    return Finding.of(name, cell.score, unit=unit, control=control)
