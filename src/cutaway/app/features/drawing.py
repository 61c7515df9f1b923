"""The parts of a feature page that are drawn: tokens shaded by value, and a histogram."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from cutaway.explain.page import number
from cutaway.features.index.vocabulary import visible

STEPS = 8
"""Shades of each sign; `features.css` has as many classes."""


def shade(value: float | None, strongest: float) -> str:
    """Return the class of a token: ``h1`` to ``h8`` above zero, ``l1`` to ``l8`` below, none near it."""
    if value is None or strongest <= 0:
        return ""
    size = min(STEPS, round(abs(value) / strongest * STEPS))
    return f"{'h' if value > 0 else 'l'}{size}" if size else ""


def heat(tokens: Sequence[str], values: Sequence[float | None], strongest: float, peak: int | None = None) -> Markup:
    """Return a text as one element that is read token by token with the arrow keys."""
    parts = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        kinds = f"{shade(value, strongest)}{' peak' if i == peak else ''}".strip()
        shown = "special token, not counted" if value is None else number(value)
        named = f' class="{kinds}"' if kinds else ""
        parts.append(f'<span{named} data-v="{shown}">{_written(token)}</span>')
    return Markup(f'<p class="heat" dir="auto">{"".join(parts)}</p>')


@lru_cache(1 << 16)
def _written(token: str) -> str:
    return str(escape(visible(token)))


def bars(histogram: dict[str, Any]) -> Markup:
    """Return a histogram as SVG, heights on a logarithmic scale."""
    values, heights = histogram["values"], histogram["heights"]
    most = max(heights, default=0)
    if most <= 0:
        return Markup("")
    width, high, floor = 320, 96, 114
    step = width / len(values)
    parts = []
    for i, (value, count) in enumerate(zip(values, heights, strict=False)):
        size = high * math.log1p(count) / math.log1p(most)
        sign = "zero" if value == 0 else "below" if value < 0 else "above"
        title = f"{_span(values, i)}: {number(float(count))}"
        parts.append(
            f'<rect class="{sign}" x="{i * step:.1f}" y="{floor - size - 10:.1f}" width="{max(1, step - 1):.1f}"'
            f' height="{size:.1f}"><title>{escape(title)}</title></rect>'
        )
    for i in sorted({0, len(values) // 2, len(values) - 1}):
        anchor = "start" if i == 0 else "end" if i == len(values) - 1 else "middle"
        x = 0 if i == 0 else width if i == len(values) - 1 else (i + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{floor + 6}" text-anchor="{anchor}">{number(values[i])}</text>')
    words = f"Histogram of {len(values)} bars from {number(values[0])} to {number(values[-1])}"
    box = f'viewBox="0 0 {width} {floor + 10}"'
    return Markup(f'<svg class="bars" {box} role="img" aria-label="{words}">{"".join(parts)}</svg>')


def _span(values: Sequence[float], i: int) -> str:
    value = values[i]
    if value == 0:
        return "near zero"
    return f"from {number(value)} {'up' if value > 0 else 'down'}"
