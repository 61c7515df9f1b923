"""A comparison as findings, charts and a line to quote."""

import math
from collections.abc import Mapping
from functools import partial

from cutaway.charts import Chart, Heat, Series
from cutaway.probes.tpc.comparison import Comparison, Point
from cutaway.stats import Interval
from cutaway.study import Finding

_finding = partial(Finding.of, undefined="test rows of one class")


def findings(found: Comparison, shortcuts: Mapping[str, Interval], false_alarms: float) -> tuple[Finding, ...]:
    """F1, gains, recall against price, the cascade, joint training and what shortcuts reach."""
    items = []
    orders = [point for point in found.points if point.kind == "order"]
    for n, point in enumerate(orders):
        control = found.control[n] if found.control else None
        items.append(_finding(f"F1, {point.monitor}", point.f1, control=_shuffled(control)))
    for n, gain in enumerate(found.gains):
        control = found.control_gains[n] if found.control_gains else None
        items.append(_finding(f"F1 gained by order {n + 2} over order 1", gain, control=_shuffled(control)))
    items += [_finding(f"AUROC, {point.monitor}", point.auroc) for point in orders]
    for n, gain in enumerate(found.areas):
        control = found.control_areas[n] if found.control_areas else None
        items.append(_finding(f"AUROC gained by order {n + 2} over order 1", gain, control=_shuffled(control)))
    for point in found.points:
        if point.kind != "cascade" or point.monitor == "cascade":
            items.append(_recall(point, found, false_alarms))
            if point.recall_here is not None:
                name = f"recall at {100 * false_alarms:g}% false alarms on test rows, {point.monitor}"
                items.append(Finding(name, point.recall_here, n=found.n))
    if found.share is not None:
        point = found.point("cascade")
        items.append(_finding("F1, cascade", point.f1))
        items.append(Finding("multiplies of the cascade, share of full order", found.share, n=found.n))
    for n, (joint, strict) in enumerate(zip(found.joint, found.runs[0] if found.runs else (), strict=False), 1):
        items.append(_number(f"F1 lost by joint training, order {n}", strict - joint, found.n))
    items += [_finding(f"AUROC, {name}", interval) for name, interval in shortcuts.items()]
    return tuple(items)


def summarise(found: Comparison) -> str:
    """One line."""
    orders = [point for point in found.points if point.kind == "order"]
    if not orders or not found.gains:
        return "stopped before the first monitor was trained"
    best = max(range(len(found.areas)), key=lambda n: found.areas[n].value)
    gain = found.areas[best]
    verdict = "linear is enough here" if found.linear_is_enough else "higher orders help"
    if all(point.auroc.low <= 0.5 for point in orders):
        verdict = "no order is better than chance on the test rows"
    text = (
        f"{verdict}: AUROC {orders[0].auroc} at order 1, best gain {gain.value:+.2f} [{gain.low:.2f}, {gain.high:.2f}]"
    )
    text += f" at order {best + 2}, n={found.n}"
    return text if found.share is None else f"{text}; cascade spends {100 * found.share:.2g}% of the multiplies"


def charts(found: Comparison) -> tuple[Chart | Heat, ...]:
    """F1 and recall against multiplies, each kind of monitor a chart's line; F1 by order with the control."""
    out: list[Chart | Heat] = []
    for key, label in (("f1", "F1"), ("recall", "recall at the validation threshold")):
        points = [each for each in found.points if getattr(each, key) is not None]
        if points:
            out.append(_cost_chart(points, key, label))
    orders = [point for point in found.points if point.kind == "order"]
    if orders:
        x = tuple(float(n) for n in range(1, len(orders) + 1))
        series = [_series("trained on the labels", [point.f1 for point in orders])]
        if found.joint:
            series.append(Series("joint training", found.joint))
        if found.control:
            series.append(_series("shuffled labels", list(found.control), control=True))
        out.append(Chart("F1 by order", x, tuple(series), "order", "F1"))
    return tuple(out)


def _cost_chart(points: list[Point], key: str, label: str) -> Chart:
    prices = tuple(sorted({point.multiplies for point in points}))
    series = []
    for kind in dict.fromkeys(point.kind for point in points):
        by_price = {point.multiplies: getattr(point, key) for point in points if point.kind == kind}
        series.append(_series(kind, [by_price.get(price) for price in prices]))
    return Chart(f"{label} against multiplies", prices, tuple(series), "multiplies of a row, mean", label, log_x=True)


def _series(name: str, values: "list[Interval | None] | list[Interval]", control: bool = False) -> Series:
    value, low, high = (
        tuple(None if each is None else float(getattr(each, end)) for each in values)
        for end in ("value", "low", "high")
    )
    return Series(name, value, low, high, control)


def _shuffled(control: Interval | None) -> Finding | None:
    return None if control is None else _finding("shuffled labels", control)


def _recall(point: Point, found: Comparison, rate: float) -> Finding:
    # Sources may shift: the rate that validation rows set is not the rate on test rows, which stands beside it.
    name = f"recall at the threshold for {100 * rate:g}% validation false alarms, {point.monitor}"
    if point.recall is None or point.alarms is None:
        return Finding(name, None, undefined=found.why_no_recall or "no threshold")
    return _finding(name, point.recall, control=_finding("false alarms on test rows", point.alarms))


def _number(name: str, value: float, n: int) -> Finding:
    if not math.isfinite(value):
        return Finding(name, None, undefined="no positive was there or flagged")
    return Finding(name, value, n=n)
