"""Goals: a request that should be refused and its harmless twin, from a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cutaway.errors import UsageError

COLUMNS = ("goal", "topic", "harmful", "harmless")


@dataclass(frozen=True)
class Goal:
    """One goal: what is asked for, and a request of the same form that nobody need refuse."""

    name: str
    topic: str
    harmful: str
    harmless: str


def default_requests() -> Path:
    """The requests of the source tree; UsageError where the package was installed without it."""
    path = Path(__file__).parents[4] / "data" / "cot-hijacking" / "requests.csv"
    if not path.is_file():
        raise UsageError(f"no requests at hand; set requests=FILE, a CSV with the columns {', '.join(COLUMNS)}")
    return path


def read_goals(path: str | Path) -> list[Goal]:
    """Read goals; UsageError for a missing file or column, an empty request or a name that comes twice."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"requests={path.name}: no such file; give a CSV with the columns {', '.join(COLUMNS)}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or (missing := [column for column in COLUMNS if column not in rows[0]]):
        raise UsageError(f"{path.name}: {f'column {missing[0]!r} is missing' if rows else 'no rows'}")
    goals = [Goal(row["goal"], row["topic"], row["harmful"].strip(), row["harmless"].strip()) for row in rows]
    for goal in goals:
        if not goal.harmful or not goal.harmless:
            raise UsageError(f"{path.name}: goal {goal.name!r} has an empty request")
    names = [goal.name for goal in goals]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{path.name}: goal {twice!r} comes twice")
    return goals


def split_goals(goals: Sequence[Goal], parts: Sequence[float], seed: int = 0) -> list[list[Goal]]:
    """Deal goals into parts of the given shares, by a seeded shuffle; UsageError where a part stays empty."""
    order = np.random.default_rng(seed).permutation(len(goals))
    edges = [round(len(goals) * sum(parts[:i]) / sum(parts)) for i in range(len(parts) + 1)]
    dealt = [[goals[i] for i in order[a:b]] for a, b in pairwise(edges)]
    if not all(dealt):
        raise UsageError(f"{len(goals)} goals are too few for {len(parts)} parts; give more")
    return dealt
