"""Findings as rows of a table: the number in words, and a small plot of it with its interval and control."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup

from cutaway.explain.page import number
from cutaway.explain.svg import element
from cutaway.study import Finding

WIDTH, HEIGHT, EDGE = 220.0, 24.0, 8.0
APART = 200.0
"""Numbers of one unit whose sizes differ by more than this are drawn each on its own scale."""


class Scale(NamedTuple):
    """Ends of a plot's axis."""

    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """A finding in words."""

    value: str
    interval: str
    n: str
    undefined: str


@dataclass(frozen=True)
class FindingRow:
    """One finding as the table shows it."""

    name: str
    unit: str
    measured: Measured
    control_name: str
    control: Measured | None
    plot: Markup | None
    """None where there is no number to draw."""


def finding_rows(findings: Sequence[Finding]) -> list[FindingRow]:
    """Rows in the order given; findings of one unit share a scale, so that their plots can be compared."""
    scales = _scales(findings)
    return [
        FindingRow(
            name=each.name,
            unit=each.unit,
            measured=_measured(each),
            control_name="" if each.control is None else each.control.name,
            control=None if each.control is None else _measured(each.control),
            plot=dot_plot(each, scales[i]) if _reach(each) else None,
        )
        for i, each in enumerate(findings)
    ]


def dot_plot(finding: Finding, scale: Scale, limits: Sequence[float] = ()) -> Markup:
    """A dot with its interval; the control hollow below it; ``limits`` as upright marks.

    An open end of an interval runs to the edge of the plot.
    """
    parts = [
        element("path", {"class": "axis", "d": f"M{EDGE},{HEIGHT / 2}H{WIDTH - EDGE}"}),
        element("path", {"class": "zero", "d": f"M{_x(0.0, scale)},3V{HEIGHT - 3}"}),
        *(element("path", {"class": "limit", "d": f"M{_x(x, scale)},1V{HEIGHT - 1}"}) for x in limits),
    ]
    both = finding.control is not None and finding.control.value is not None
    if finding.control is not None and both:
        parts += _mark(finding.control, scale, HEIGHT - 6, "control")
    parts += _mark(finding, scale, 8.0 if both else HEIGHT / 2, "own")
    words = f"{finding}" if finding.control is None else f"{finding}; control: {finding.control}"
    ends = f"Scale from {number(scale.low)} to {number(scale.high)}."
    picture = element(
        "svg",
        {"class": "dots", "viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}", "width": WIDTH, "height": HEIGHT, "role": "img"},
        element("title", {}, text=f"{words}. {ends}"),
        *parts,
    )
    return Markup(tostring(picture, encoding="unicode"))


def _mark(finding: Finding, scale: Scale, y: float, kind: str) -> list[Element]:
    if finding.value is None:
        return []
    shown = []
    if finding.low is not None or finding.high is not None:
        low = scale.low if finding.low is None else finding.low
        high = scale.high if finding.high is None else finding.high
        ends = "".join(f"M{_x(end, scale):.1f},{y - 3:.1f}v6" for end in (finding.low, finding.high) if end is not None)
        whisker = f"M{_x(low, scale):.1f},{y:.1f}H{_x(high, scale):.1f}{ends}"
        shown.append(element("path", {"class": f"whisker {kind}", "d": whisker}))
    radius = 4.0 if kind == "own" else 3.2
    shown.append(element("circle", {"class": f"dot-{kind}", "cx": _x(finding.value, scale), "cy": y, "r": radius}))
    return shown


def _x(value: float, scale: Scale) -> float:
    share = (value - scale.low) / (scale.high - scale.low)
    return round(EDGE + (WIDTH - 2 * EDGE) * min(1.0, max(0.0, share)), 1)


def _scales(findings: Sequence[Finding]) -> list[Scale]:
    groups: dict[str, list[float]] = {}
    keys = [_group(each) for each in findings]
    for key, each in zip(keys, findings, strict=True):
        groups.setdefault(key, []).extend(_reach(each))
    scales = []
    for key, each in zip(keys, findings, strict=True):
        own = max(map(abs, _reach(each)), default=0.0)
        apart = own > 0 and max(map(abs, groups[key])) > APART * own
        scales.append(_scale(_reach(each) if apart else groups[key]))
    return scales


def _group(finding: Finding) -> str:
    if finding.unit:
        return f"unit:{finding.unit}"
    ends = _reach(finding)
    return "share" if ends and max(map(abs, ends)) <= 1 else f"alone:{finding.name}"


def _scale(values: Sequence[float]) -> Scale:
    low, high = min([0.0, *values]), max([0.0, *values])
    if low >= 0 and 0.3 < high <= 1:
        return Scale(0.0, 1.0)
    return Scale(low, high) if high > low else Scale(0.0, 1.0)


def _reach(finding: Finding) -> list[float]:
    control = [] if finding.control is None else _reach(finding.control)
    return [
        x for x in (finding.value, finding.low, finding.high) if x is not None and finding.value is not None
    ] + control


def _measured(finding: Finding) -> Measured:
    if finding.value is None:
        return Measured("", "", "", finding.undefined)
    interval = ""
    if finding.low is not None or finding.high is not None:
        low, high = ("open" if end is None else number(end) for end in (finding.low, finding.high))
        interval = f"{low} to {high}" + ("" if finding.level == 0.95 else f" at {finding.level:g}")
    return Measured(number(finding.value), interval, "" if finding.n is None else f"{finding.n:,}", "")
