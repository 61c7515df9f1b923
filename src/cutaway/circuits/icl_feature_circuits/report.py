"""What the study says: findings with their controls, charts, one line."""

from collections.abc import Sequence

from cutaway.charts import Chart, Heat, Series
from cutaway.circuits.icl_feature_circuits.data import Checked
from cutaway.circuits.icl_feature_circuits.result import FeatureCircuits, Row, TaskGraph, TaskResult
from cutaway.circuits.icl_feature_circuits.task_vectors import Score
from cutaway.stats import Interval
from cutaway.study import Finding

ENOUGH = 100
"""Pairs a task should have, by the card."""


def findings(found: FeatureCircuits, checked: Sequence[Checked], refused: dict[str, str]) -> tuple[Finding, ...]:
    """The numbers a ledger keeps."""
    items = [_pairs(pairs) for pairs in checked]
    items += [Finding(f"{task}: task vector", None, undefined=why) for task, why in refused.items()]
    for task, score in found.few.items():
        items.append(_score(f"{task}: accuracy with examples", score))
    for each in found.tasks.values():
        items += _task(each)
    if found.steering is not None:
        steering = found.steering
        for i, task in enumerate(steering.tasks):
            name = f"{task}: one feature ({steering.features[i]}) steers its own task more than others"
            special = steering.specificity(i)
            control = Finding.of("gain of random atoms on this task", steering.random[i], unit="nats")
            items.append(Finding.of(name, special, unit="nats", control=control))
        unit = f"features; p={steering.p:.3g} over assignments"
        items.append(
            Finding(
                "features that help their own task most", float(steering.dominant), n=len(steering.tasks), unit=unit
            )
        )
    for graph in found.graphs.values():
        items += _graph(graph)
    items += [
        Finding(f"variance that the dictionary at {site} misses", value, unit="of the variance, at few-shot prompts")
        for site, value in found.unexplained.items()
    ]
    return tuple(items)


def charts(found: FeatureCircuits) -> tuple[Chart | Heat, ...]:
    """Layers, Pareto fronts of atoms against loss, the steering matrix, faithfulness by number of nodes."""
    drawn: list[Chart | Heat] = []
    if found.layers:
        x = tuple(float(layer) for layer in found.layers)
        line = (Series("raw task vector", tuple(found.layers.values())),)
        drawn.append(Chart("Where a task vector works", x, line, "layer", "zero-shot loss, nats", "Mean over tasks."))
    drawn += [_pareto(task) for task in found.tasks.values()]
    if found.steering is not None:
        steering = found.steering
        rows = tuple(f"{task} ({latent})" for task, latent in zip(steering.tasks, steering.features, strict=True))
        gain = tuple(tuple(cell.value for cell in row) for row in steering.gain)
        note = "Rows: the feature that is added; columns: the task whose zero-shot loss falls."
        drawn.append(Heat("Steering by one feature", rows, steering.tasks, gain, "nats gained", note))
        if steering.damage:
            damage = tuple(tuple(cell.value for cell in row) for row in steering.damage)
            note = "Subtracted at all arrows of few-shot prompts."
            drawn.append(Heat("Damage by one feature", rows, steering.tasks, damage, "nats lost", note))
    drawn += [_curve(graph) for graph in found.graphs.values() if graph.curve is not None]
    return tuple(drawn)


def summary(found: FeatureCircuits) -> str:
    """One line: atoms and loss by task, specificity, faithfulness."""
    parts = [
        f"{task.task} {task.best.l0} atoms, loss {task.best_row.score.loss.value:.2f}"
        f" (raw {task.row('task vector').score.loss.value:.2f}, none {task.row('no vector').score.loss.value:.2f})"
        for task in found.tasks.values()
    ]
    text = f"layer {found.layer}: " + ("; ".join(parts) or "no task was cleaned")
    if found.steering is not None:
        steering = found.steering
        text += (
            f"; {steering.dominant} of {len(steering.tasks)} features are their own task's best (p={steering.p:.2g})"
        )
    return text + ("" if found.complete else " (not complete)")


def _task(task: TaskResult) -> list[Finding]:
    raw, none, random = (task.row(name) for name in ("task vector", "no vector", "random atoms"))
    items = []
    for row in task.rows:
        control = None
        if row is task.best_row:
            control = _loss("as many random atoms", random)
        elif row is not none:
            control = _loss("no vector", none)
        atoms = "" if row.l0 is None else f", {row.l0} atoms"
        items.append(
            Finding.of(f"{task.task}: loss with {row.name}", row.score.loss, unit=f"nats{atoms}", control=control)
        )
        items.append(_score(f"{task.task}: accuracy with {row.name}", row.score))
    same = Finding.of("reconstruction against raw vector", task.row("reconstruction").against_raw, unit="nats")
    items.append(
        Finding.of(f"{task.task}: cleaned against raw vector", task.best_row.against_raw, unit="nats", control=same)
    )
    if task.l0_fraction is None:
        why = "the reconstruction has no active atom"
        items.append(Finding(f"{task.task}: L0 fraction", None, undefined=why))
    else:
        pursued = task.row(f"pursuit {max(1, task.best.l0)}")
        control = _loss("gradient pursuit with as many atoms (loss)", pursued)
        unit = f"of the reconstruction's atoms; lambda {task.best.penalty:g}"
        items.append(
            Finding(f"{task.task}: L0 fraction", task.l0_fraction, n=raw.score.loss.n, unit=unit, control=control)
        )
    items.append(
        Finding(f"{task.task}: TV loss delta", task.loss_delta, n=raw.score.loss.n, unit="of the zero-shot loss")
    )
    return items


def _graph(graph: TaskGraph) -> list[Finding]:
    name, items = graph.task, list[Finding]()
    if graph.curve is None:
        items.append(Finding(f"{name}: faithfulness", None, undefined=graph.why))
    elif graph.curve.circuit is None:
        tried = (
            "no threshold"
            if graph.curve.complete
            else f"none of the {len(graph.curve.points)} thresholds before the stop"
        )
        why = f"{tried} reaches {graph.curve.share:.0%} of the metric's range"
        items.append(Finding(f"{name}: faithfulness", None, undefined=why))
    else:
        point = graph.curve.circuit
        control = Finding.of("random active nodes, equal by place and role", point.random, unit="of the range")
        items.append(
            Finding.of(
                f"{name}: faithfulness of {point.nodes} nodes", point.faithfulness, unit="of the range", control=control
            )
        )
        control = Finding.of("without random active nodes", point.random_necessity, unit="of the range")
        items.append(
            Finding.of(f"{name}: necessity of its helping nodes", point.necessity, unit="of the range", control=control)
        )
    items.append(
        Finding(f"{name}: executors", float(len(graph.executors)), unit="features that lower the zero-shot loss alone")
    )
    items.append(
        Finding(f"{name}: detectors", float(len(graph.detectors)), unit="features that fire where the task was done")
    )
    if graph.link is None:
        why = "no executor" if not graph.executors else "no detector"
        items.append(Finding(f"{name}: executors fall without detectors", None, undefined=f"{why} was found"))
    else:
        control = Finding.of("without as many other features", graph.link.random, unit="of their value")
        items.append(
            Finding.of(
                f"{name}: executors fall without detectors", graph.link.fall, unit="of their value", control=control
            )
        )
    return items


def _pareto(task: TaskResult) -> Chart:
    """Loss by number of atoms; dense vectors as level lines."""
    rows = sorted((row for row in task.rows if row.l0), key=lambda row: row.l0 or 0)
    x = tuple(float(row.l0 or 0) for row in rows)
    kinds = ("cleaned", "pursuit", "reconstruction", "random atoms")

    def values(kind: str, pick: str) -> tuple[float | None, ...]:
        return tuple(getattr(row.score.loss, pick) if row.name.startswith(kind) else None for row in rows)

    series = [
        Series(kind, values(kind, "value"), values(kind, "low"), values(kind, "high"), kind == "random atoms")
        for kind in kinds
    ]
    for name in ("task vector", "no vector"):
        level = task.row(name).score.loss.value
        series.append(Series(name, (level,) * len(x), control=name == "no vector"))
    note = "Held-out queries; lower and further left is better."
    return Chart(f"{task.task}: atoms against loss", x, tuple(series), "active atoms", "loss, nats", note)


def _curve(graph: TaskGraph) -> Chart:
    assert graph.curve is not None
    points = graph.curve.points

    def line(name: str, key: str, control: bool = False) -> Series:
        cells: list[Interval] = [getattr(point, key) for point in points]
        return Series(
            name, tuple(c.value for c in cells), tuple(c.low for c in cells), tuple(c.high for c in cells), control
        )

    series = (
        line("only these nodes", "faithfulness"),
        line("only random nodes", "random", True),
        line("necessity", "necessity"),
        line("necessity of random nodes", "random_necessity", True),
    )
    x = tuple(float(max(1, point.nodes)) for point in points)
    note = "Prompts other than those that nodes were ranked on; errors are kept."
    title = f"{graph.task}: faithfulness"
    return Chart(title, x, series, "nodes", "share of the metric's range", note, log_x=True)


def _pairs(each: Checked) -> Finding:
    few = f"fewer than {ENOUGH}; " if len(each.task.pairs) < ENOUGH else ""
    kept, given = len(each.task.pairs), len(each.task.pairs) + len(each.dropped)
    return Finding(
        f"{each.task.name}: pairs", float(kept), n=given, unit=f"pairs; {few}others have answers of several tokens"
    )


def _score(name: str, score: Score) -> Finding:
    return Finding.of(name, score.accuracy, unit="first token on top")


def _loss(name: str, row: Row) -> Finding:
    return Finding.of(name, row.score.loss, unit="nats")
