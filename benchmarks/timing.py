"""Timing A against B in one process, and the form in which every benchmark reports."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = (
    "Should Maria take the train or the bus to visit her grandmother? Think step by step and finish with "
    "'So Maria takes the train.' or 'So Maria takes the bus.'"
)


@dataclass(frozen=True)
class Claim:
    """One measured figure: its median with the smallest and largest repeat, and the bar it has to pass."""

    what: str
    baseline: str
    measured: float
    low: float
    high: float
    bar: float | None = None
    at_least: bool = False
    """The bar is a floor; otherwise it is a ceiling. Without a bar the figure is for the record."""
    unit: str = "x"
    note: str = ""

    @property
    def requirement(self) -> str:
        return "-" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g} {self.unit}"

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return "-"
        return "met" if (self.measured >= self.bar if self.at_least else self.measured <= self.bar) else "missed"

    def __str__(self) -> str:
        figure = f"{self.measured:.4g} {self.unit} [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.verdict:6} {self.requirement:>12}  {figure:32} {self.what} (against: {self.baseline})"


def claim(what: str, baseline: str, values: Any, **rest: Any) -> Claim:
    """A claim whose figure is the median of ``values``, one value a repeat."""
    return Claim(what, baseline, float(np.median(values)), float(np.min(values)), float(np.max(values)), **rest)


def interleaved(repeats: int, **sides: Callable[[int], Any]) -> dict[str, list[tuple[float, Any]]]:
    """``(seconds, what it returned)`` of each side in each repeat, after one warm-up of each.

    The order turns round in every repeat, so a drift of the machine's speed favours nobody.
    """
    for side in sides.values():
        side(-1)
    found: dict[str, list[tuple[float, Any]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in list(sides.items())[:: 1 if repeat % 2 == 0 else -1]:
            started = time.perf_counter()
            value = side(repeat)
            found[name].append((time.perf_counter() - started, value))
    return found


def ratios(found: dict[str, list[tuple[float, Any]]], ours: str, baseline: str) -> list[float]:
    """Seconds of ``ours`` over seconds of ``baseline``, repeat by repeat."""
    return [a[0] / b[0] for a, b in zip(found[ours], found[baseline], strict=True)]


def options(text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 repeats instead of 5 or more; for development")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def report(given: argparse.Namespace, claims: list[Claim], **details: Any) -> None:
    """Print the claims and write them, with the machine they were measured on, where asked to."""
    print(*claims, sep="\n")
    rows = [{**asdict(each), "requirement": each.requirement, "verdict": each.verdict} for each in claims]
    versions = {
        name: sys.modules[name].__version__ for name in ("numpy", "torch", "transformers") if name in sys.modules
    }
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version(), **versions}
    if given.out:
        body = {"claims": rows, "details": details, "machine": machine, "quick": given.quick}
        given.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
