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
from typing import Any, NamedTuple

import numpy as np

PROMPT = "Should Maria take the train or the bus to visit her grandmother? Think step by step and finish with "
PROMPT += "'So Maria takes the train.' or 'So Maria takes the bus.'"


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

    @property
    def requirement(self) -> str:
        return "-" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g} {self.unit}"

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return "-"
        return "met" if (self.measured >= self.bar if self.at_least else self.measured <= self.bar) else "missed"

    def __str__(self) -> str:
        figure = f"{self.verdict:6} {self.measured:.4g} {self.unit} [{self.low:.4g}, {self.high:.4g}]"
        return f"{figure:40} {self.what} (against: {self.baseline}; required: {self.requirement})"


def claim(what: str, baseline: str, values: Any, **rest: Any) -> Claim:
    """A claim whose figure is the median of ``values``, one value a repeat."""
    return Claim(what, baseline, float(np.median(values)), float(np.min(values)), float(np.max(values)), **rest)


class Run(NamedTuple):
    """One timed call. CPU seconds are of all threads; on a busy machine with one thread they are the fairer ones."""

    wall: float
    cpu: float
    value: Any


def interleaved(repeats: int, **sides: Callable[[int], Any]) -> dict[str, list[Run]]:
    """Every side once a repeat, in turning order so that drift favours nobody, after a warm-up (repeat -1) of each."""
    for side in sides.values():
        side(-1)
    found: dict[str, list[Run]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in list(sides.items())[:: 1 if repeat % 2 == 0 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            value = side(repeat)
            found[name].append(Run(time.perf_counter() - wall, time.process_time() - cpu, value))
    return found


def ratios(found: dict[str, list[Run]], ours: str, baseline: str, clock: str = "wall") -> list[float]:
    """Seconds of ``ours`` over seconds of ``baseline``, repeat by repeat, by the ``wall`` or the ``cpu`` clock."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(found[ours], found[baseline], strict=True)]


def options(text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats; for development")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def report(given: argparse.Namespace, claims: list[Claim], **details: Any) -> None:
    """Print the claims and write them, with the machine they were measured on, where asked to."""
    print(*claims, sep="\n")
    rows = [{**asdict(each), "requirement": each.requirement, "verdict": each.verdict} for each in claims]
    used = {name: sys.modules[name] for name in ("numpy", "torch", "transformers") if name in sys.modules}
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    machine |= {"threads": used["torch"].get_num_threads()} if "torch" in used else {}
    machine |= {name: module.__version__ for name, module in used.items()}
    body = {"claims": rows, "details": details, "machine": machine, "quick": given.quick}
    if given.out:
        given.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
