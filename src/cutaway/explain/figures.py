"""Charts and heats as still SVG.

A figure carries its numbers twice: drawn, with a tooltip on every mark, and as a table for those who cannot see
it or want to copy it. Colours are classes of the page's style sheet and follow its light and dark schemes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from xml.etree.ElementTree import Element

from cutaway.charts import Chart, Heat, Series
from cutaway.explain.heats import heat_figure
from cutaway.explain.page import number
from cutaway.explain.svg import LARGEST_TABLE, WIDTH, Figure, element, finish, text_at, ticks

BAR, GAP = 13.0, 12.0
Place = Callable[[float], float]


def figure(chart: Chart | Heat, index: int) -> Figure:
    """Draw a chart; ``index`` tells it from the page's other charts."""
    return heat_figure(chart, index) if isinstance(chart, Heat) else _chart(chart, index)


def _chart(chart: Chart, index: int) -> Figure:
    names = bool(chart.x) and isinstance(chart.x[0], str)
    picture = _bars(chart) if names else _lines(chart)
    classes = [_colour(chart, i) for i in range(len(chart.series))]
    legend = tuple(zip(classes, (_series_name(s) for s in chart.series), strict=True))
    body = tuple(_table_row(chart, i) for i in range(len(chart.x)))
    small = len(body) * (1 + len(chart.series)) <= LARGEST_TABLE
    head = (chart.x_label or "x", *(_series_name(s) for s in chart.series))
    return Figure(
        title=chart.title,
        note=chart.note,
        legend=legend if len(legend) > 1 or any(each.control for each in chart.series) else (),
        svg=finish(picture, chart.title, _spoken(chart), index),
        head=head,
        rows=body if small else (),
    )


def _colour(chart: Chart, i: int) -> str:
    if chart.series[i].control:
        return "c-none"
    return f"c{sum(not s.control for s in chart.series[:i]) % 6}"


def _series_name(series: Series) -> str:
    return f"{series.name} (control)" if series.control else series.name


def _spoken(chart: Chart) -> str:
    """What the chart shows in one sentence, for a reader who hears it."""
    parts = []
    for series in chart.series:
        known = [y for y in series.y if y is not None]
        reach = f"from {number(min(known))} to {number(max(known))}" if known else "has no values"
        parts.append(f"{_series_name(series)} {reach}")
    over = f" over {chart.x_label}" if chart.x_label else ""
    return f"{chart.y_label or 'Values'}{over}: {'; '.join(parts)}."


def _table_row(chart: Chart, i: int) -> tuple[str, ...]:
    x = chart.x[i]
    return (x if isinstance(x, str) else number(x), *(_reading(series, i) for series in chart.series))


def _reading(series: Series, i: int) -> str:
    value = series.y[i]
    if value is None:
        return "–"
    low, high = (None if ends is None else ends[i] for ends in (series.low, series.high))
    if low is None and high is None:
        return number(value)
    return f"{number(value)} ({' to '.join('open' if end is None else number(end) for end in (low, high))})"


def _reach(chart: Chart) -> tuple[float, float]:
    values = [v for s in chart.series for row in (s.y, s.low, s.high) if row is not None for v in row if v is not None]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low >= 0 and low <= 0.5 * high:
        low = 0.0
    if low >= 0 and 0.75 < high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0))


def _lines(chart: Chart) -> Element:
    height, left, right, top, bottom = 300.0, 52.0, 12.0, 26.0, 46.0
    steps = ticks(*_reach(chart))
    floor, ceiling = steps[0], steps[-1]
    xs = [math.log10(float(x)) if chart.log_x else float(x) for x in chart.x]
    first, last = (min(xs), max(xs)) if xs else (0.0, 1.0)
    across = (last - first) or 1.0

    def x_at(x: float) -> float:
        inside = 0.5 if last == first else (x - first) / across
        return round(left + (WIDTH - left - right) * inside, 1)

    def y_at(y: float) -> float:
        return round(top + (height - top - bottom) * (1 - (y - floor) / (ceiling - floor)), 1)

    parts = [element("text", {"class": "label", "x": 2, "y": 12}, text=chart.y_label)]
    for step in steps:
        kind = "base" if step == floor else "grid"
        parts.append(element("path", {"class": kind, "d": f"M{left},{y_at(step)}H{WIDTH - right}"}))
        parts.append(text_at("tick", left - 8, y_at(step) + 4, number(step), "end"))
    for x, name in _x_ticks(chart, first, last):
        # A long number at the right end would be cut by the edge; a digit is about 7 wide.
        inside = min(x_at(x), WIDTH - 3.6 * len(name))
        parts.append(text_at("tick", inside, height - bottom + 18, name, "middle"))
    middle = left + (WIDTH - left - right) / 2
    parts.append(text_at("label", middle, height - 6, chart.x_label, "middle"))
    order = sorted(range(len(chart.series)), key=lambda i: not chart.series[i].control)
    for i in order:
        series = chart.series[i]
        at = [(x_at(x), None if y is None else y_at(y)) for x, y in zip(xs, series.y, strict=True)]
        parts.append(
            element("g", {"class": _colour(chart, i)}, *_band(series, [x for x, _ in at], y_at), *_line(chart, i, at))
        )
    return element("svg", {"viewBox": f"0 0 {WIDTH:.0f} {height:.0f}"}, *parts)


def _x_ticks(chart: Chart, first: float, last: float) -> Iterator[tuple[float, str]]:
    if chart.log_x:
        whole = [float(p) for p in range(math.ceil(first), math.floor(last) + 1)]
        places = whole if len(whole) > 1 else sorted({math.log10(float(x)) for x in chart.x})
        yield from ((place, number(10**place)) for place in places)
    elif len(set(chart.x)) <= 8:
        yield from ((x, number(x)) for x in sorted({float(x) for x in chart.x}))
    else:
        inside = [step for step in ticks(first, last, 6) if first <= step <= last]
        yield from ((step, number(step)) for step in inside)


def _runs(present: Sequence[bool]) -> Iterator[range]:
    """Stretches without a gap."""
    start = None
    for i, each in enumerate([*present, False]):
        if each and start is None:
            start = i
        elif not each and start is not None:
            yield range(start, i)
            start = None


def _band(series: Series, xs: Sequence[float], y_at: Place) -> Iterator[Element]:
    if series.low is None or series.high is None:
        return
    low, high = series.low, series.high
    for run in _runs([a is not None and b is not None for a, b in zip(low, high, strict=True)]):
        edge = [(xs[i], y_at(high[i])) for i in run] + [(xs[i], y_at(low[i])) for i in reversed(run)]  # type: ignore[arg-type]
        if len(run) == 1:
            (x, top), (_, bottom) = edge
            yield element("path", {"class": "whisker", "d": f"M{x - 3},{top}h6M{x},{top}V{bottom}M{x - 3},{bottom}h6"})
        else:
            yield element("path", {"class": "band", "d": _joined(edge) + "Z"})


def _line(chart: Chart, i: int, at: Sequence[tuple[float, float | None]]) -> Iterator[Element]:
    series = chart.series[i]
    for run in _runs([y is not None for _, y in at]):
        if len(run) > 1:
            yield element("path", {"class": "curve", "d": _joined([(at[j][0], at[j][1]) for j in run])})
    if len(at) > 80:
        return
    for j, (x, y) in enumerate(at):
        if y is not None:
            said = f"{_series_name(series)}, {number(float(chart.x[j]))}: {_reading(series, j)}"
            yield element("circle", {"class": "point", "cx": x, "cy": y, "r": 3.2}, element("title", {}, text=said))


def _joined(points: Sequence[tuple[float, float | None]]) -> str:
    return "M" + "L".join(f"{x},{y}" for x, y in points)


def _bars(chart: Chart) -> Element:
    names = [str(x) for x in chart.x]
    left = min(210.0, 26.0 + 6.6 * max(map(len, names)))
    group = BAR * max(1, len(chart.series)) + GAP
    top, bottom, right = 8.0, 44.0, 58.0
    height = top + bottom + group * len(names)
    low, high = _reach(chart)
    steps = ticks(min(0.0, low), max(0.0, high))

    def x_at(value: float) -> float:
        return round(left + (WIDTH - left - right) * (value - steps[0]) / (steps[-1] - steps[0]), 1)

    parts = []
    for step in steps:
        kind = "base" if step == 0 else "grid"
        parts.append(element("path", {"class": kind, "d": f"M{x_at(step)},{top}V{height - bottom + 4}"}))
        parts.append(text_at("tick", x_at(step), height - bottom + 20, number(step), "middle"))
    parts.append(text_at("label", left + (WIDTH - left - right) / 2, height - 4, chart.y_label, "middle"))
    room = int((left - 14) / 6.6)
    for j, name in enumerate(names):
        y = top + GAP / 2 + group * j
        shown = name if len(name) <= room else name[: room - 1] + "…"
        label = text_at("tick name", left - 10, y + (group - GAP) / 2 + 4, shown, "end")
        label.append(element("title", {}, text=name))
        parts.append(label)
        parts += [_bar(chart, i, j, y + BAR * i, x_at) for i in range(len(chart.series))]
    return element("svg", {"viewBox": f"0 0 {WIDTH:.0f} {height:.0f}"}, *parts)


def _bar(chart: Chart, i: int, j: int, y: float, x_at: Place) -> Element:
    series = chart.series[i]
    value = series.y[j]
    said = element("title", {}, text=f"{_series_name(series)}, {chart.x[j]}: {_reading(series, j)}")
    if value is None:
        return element("g", {"class": "gap"}, said, text_at("tick", x_at(0.0) + 5, y + 10, "–", "start"))
    start, end = sorted((x_at(0.0), x_at(value)))
    box = {"class": "bar", "x": start, "y": y + 1.5, "width": max(0.8, end - start), "height": BAR - 3, "rx": 1}
    parts = [said, element("rect", box)]
    low, high = (None if ends is None else ends[j] for ends in (series.low, series.high))
    reach = end
    if low is not None and high is not None:
        middle = y + BAR / 2
        ends = f"M{x_at(low)},{middle}H{x_at(high)}M{x_at(low)},{middle - 3}v6M{x_at(high)},{middle - 3}v6"
        parts.append(element("path", {"class": "whisker", "d": ends}))
        reach = max(reach, x_at(high))
    parts.append(text_at("tick value", reach + 6, y + BAR - 2.5, number(value), "start"))
    return element("g", {"class": _colour(chart, i)}, *parts)
