"""A matrix of numbers as still SVG, in shades that follow the page's light and dark schemes."""

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from cutaway.charts import Heat, Numbers
from cutaway.explain.page import number
from cutaway.explain.svg import LARGEST_TABLE, WIDTH, Figure, element, finish, text_at

LARGEST_HEAT = 1600
"""Cells drawn with a tooltip each; a larger matrix is drawn in shades without them."""
FINEST_HEAT = 120
"""Rows and columns drawn at most; a finer matrix is averaged over blocks."""
SHADES = 12


def heat_figure(heat: Heat, index: int) -> Figure:
    """Draw a matrix; one too fine for the page as means over blocks, and says so."""
    known = [x for row in heat.values for x in row if x is not None]
    unit = f" {heat.unit}" if heat.unit else ""
    reach = f"from {number(min(known))} to {number(max(known))}{unit}" if known else "no values"
    cells = len(heat.rows) * len(heat.columns)
    body = tuple(
        (name, *("–" if x is None else number(x) for x in row))
        for name, row in zip(heat.rows, heat.values, strict=True)
    )
    drawn, blocks = _coarse(heat)
    note = heat.note
    if blocks != (1, 1):
        note = f"{note} Drawn as means over blocks of {blocks[0]} by {blocks[1]} cells.".strip()
    spoken = f"{len(heat.rows)} rows by {len(heat.columns)} columns, {reach}."
    return Figure(
        title=heat.title,
        note=note,
        legend=(),
        svg=finish(_cells(drawn, known), heat.title, spoken, index),
        head=("", *heat.columns),
        rows=body if cells <= LARGEST_TABLE else (),
    )


def _coarse(heat: Heat) -> tuple[Heat, tuple[int, int]]:
    """The matrix as fine as it can be drawn, and how many cells one drawn cell is the mean of."""
    down, across = (math.ceil(len(names) / FINEST_HEAT) or 1 for names in (heat.rows, heat.columns))
    if (down, across) == (1, 1):
        return heat, (1, 1)
    rows, columns = heat.rows[::down], heat.columns[::across]
    values = tuple(
        tuple(_mean(heat.values, i * down, down, j * across, across) for j in range(len(columns)))
        for i in range(len(rows))
    )
    return Heat(heat.title, rows, columns, values, heat.unit, heat.note), (down, across)


def _mean(values: Sequence[Numbers], top: int, down: int, left: int, across: int) -> float | None:
    inside = [x for row in values[top : top + down] for x in row[left : left + across] if x is not None]
    return sum(inside) / len(inside) if inside else None


def _cells(heat: Heat, known: Sequence[float]) -> Element:
    rows, columns = len(heat.rows), len(heat.columns)
    left = min(190.0, 20.0 + 6.6 * max((len(name) for name in heat.rows), default=0))
    wide = (WIDTH - left - 8) / max(1, columns)
    tall = min(30.0, max(3.0, min(wide, 380.0 / max(1, rows))))
    slanted = max((len(name) for name in heat.columns), default=0) * 6.6 > wide
    top = min(104.0, 16.0 + 5.2 * max((len(name) for name in heat.columns), default=0)) if slanted else 24.0
    largest = max(map(abs, known), default=0.0) or 1.0
    parts = []
    every = max(1, math.ceil(13 / tall))
    for i in range(0, rows, every):
        parts.append(text_at("tick name", left - 8, top + tall * (i + 0.5) + 4, _cut(heat.rows[i], left), "end"))
    every = max(1, math.ceil((15 if slanted else 6.6 * max(map(len, heat.columns), default=1) + 8) / wide))
    for j in range(0, columns, every):
        x = round(left + wide * (j + 0.5), 1)
        label = text_at("tick", x, top - 7, _cut(heat.columns[j], 130.0), "start" if slanted else "middle")
        if slanted:
            label.set("transform", f"rotate(-50 {x} {top - 7})")
        parts.append(label)
    written = columns <= 12 and rows <= 24 and wide >= 34 and tall >= 15
    place = (left, top, wide, tall)
    shades = _titled(heat, largest, place) if rows * columns <= LARGEST_HEAT else _shaded(heat, largest, place)
    parts.append(element("g", {"class": "heat"}, *shades))
    if written:
        parts += [
            text_at(
                "tick cell-value",
                left + wide * (j + 0.5),
                top + tall * (i + 0.5) + 4,
                number(float(f"{x:.2g}")),
                "middle",
            )
            for i, row in enumerate(heat.values)
            for j, x in enumerate(row)
            if x is not None
        ]
    size = top + tall * rows
    parts += _heat_scale(known, left, size + 14, heat.unit)
    return element("svg", {"viewBox": f"0 0 {WIDTH:.0f} {size + 44:.0f}"}, *parts)


def _titled(heat: Heat, largest: float, place: tuple[float, float, float, float]) -> Iterator[Element]:
    left, top, wide, tall = place
    for i, row in enumerate(heat.values):
        for j, x in enumerate(row):
            said = f"{heat.rows[i]}, {heat.columns[j]}: {'no value' if x is None else number(x)}"
            box = {"x": round(left + wide * j, 1), "y": round(top + tall * i, 1)}
            box |= {"width": round(max(0.5, wide - 1), 1), "height": round(max(0.5, tall - 1), 1)}
            shade = {"class": "hole"} if x is None else {"class": _side(x), "fill-opacity": _shade(x, largest)}
            yield element("rect", {**box, **shade}, element("title", {}, text=said))


def _shaded(heat: Heat, largest: float, place: tuple[float, float, float, float]) -> Iterator[Element]:
    """One path a shade: a matrix of thousands of cells stays light."""
    left, top, wide, tall = place
    paths: dict[tuple[str, float], list[str]] = {}
    for i, row in enumerate(heat.values):
        for j, x in enumerate(row):
            if x is not None and (shade := math.ceil(SHADES * abs(x) / largest)):
                # Neighbours share their rounded edges, so that no gap shows between them.
                x0, x1 = (f"{left + wide * edge:.1f}" for edge in (j, j + 1))
                y0, y1 = (f"{top + tall * edge:.1f}" for edge in (i, i + 1))
                key = (_side(x), round(shade / SHADES, 3))
                paths.setdefault(key, []).append(f"M{x0},{y0}H{x1}V{y1}H{x0}")
    for (side, opacity), cells in sorted(paths.items()):
        yield element("path", {"class": side, "fill-opacity": opacity, "d": "".join(cells)})


def _heat_scale(known: Sequence[float], left: float, y: float, unit: str) -> Iterator[Element]:
    if not known:
        yield text_at("tick", left, y + 12, "no values", "start")
        return
    low, high = min(0.0, *known), max(0.0, *known)
    largest = max(-low, high) or 1.0
    for i in range(SHADES):
        value = low + (high - low) * (i + 0.5) / SHADES
        box = {"x": left + 14 * i, "y": y, "width": 14, "height": 8}
        yield element("rect", {**box, "class": _side(value), "fill-opacity": _shade(value, largest)})
    yield text_at("tick", left, y + 24, number(low), "start")
    yield text_at("tick", left + 14 * SHADES, y + 24, number(high), "end")
    yield text_at("tick", left + 14 * SHADES + 10, y + 9, unit, "start")


def _side(value: float) -> str:
    return "less" if value < 0 else "more"


def _shade(value: float, largest: float) -> float:
    return round(abs(value) / largest, 3)


def _cut(name: str, width: float) -> str:
    room = int((width - 14) / 6.6)
    return name if len(name) <= room else name[: max(1, room - 1)] + "…"
