"""What still figures are made of: a tree of SVG elements, so that every text in them is escaped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup

WIDTH = 560.0
LARGEST_TABLE = 2000
"""Cells of the table beside a figure; a larger one would hide the page behind its numbers."""


@dataclass(frozen=True)
class Figure:
    """A chart ready for the page."""

    title: str
    note: str
    legend: tuple[tuple[str, str], ...]
    """Class and name of each series; empty when there is one."""
    svg: Markup
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The same numbers as text; empty where there are too many."""


def element(tag: str, attributes: Mapping[str, object], *children: Element, text: str = "") -> Element:
    """An SVG element; numbers become attributes, text becomes a text node."""
    made = Element(tag, {key: str(value) for key, value in attributes.items()})
    made.text = text or None
    made.extend(children)
    return made


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``.

    >>> ticks(0.0, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def text_at(kind: str, x: float, y: float, text: str, anchor: str) -> Element:
    """A text of class ``kind``, anchored at its start, middle or end."""
    return element("text", {"class": kind, "x": round(x, 1), "y": round(y, 1), "text-anchor": anchor}, text=text)


def finish(svg: Element, title: str, spoken: str, index: int) -> Markup:
    """The picture as markup, with its name and what it shows for a reader who hears it."""
    svg.set("role", "img")
    svg.set("aria-labelledby", f"chart-{index}-t chart-{index}-d")
    svg.insert(0, element("desc", {"id": f"chart-{index}-d"}, text=spoken))
    svg.insert(0, element("title", {"id": f"chart-{index}-t"}, text=title))
    return Markup(tostring(svg, encoding="unicode"))
