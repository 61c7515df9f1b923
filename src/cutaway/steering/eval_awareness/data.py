"""The world a real model is taught: contexts, pairs, tasks, documents, and which of them train and which measure.

The first half of the contexts and tasks trains, the second half measures; the pairs of the vector are in neither.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.steering.eval_awareness.hints import outcome, parse_functions

_KEYS = ("task", "cue", "claim", "nudge", "testing", "deployed", "pairs", "tasks", "genres", "facts")
_VALUES = ((3.0, 5.0), (0.0, -2.0))


@dataclass(frozen=True)
class Task:
    """A function to write."""

    arguments: str
    words: str
    expression: str

    def solved(self, text: str) -> bool:
        """Whether the first function of ``text`` computes what is asked for."""
        functions = parse_functions(text)
        (wanted,) = parse_functions(f"def f({self.arguments}):\n    return {self.expression}")
        size = len(wanted.args.args)
        return bool(functions) and all(outcome(functions[0], v[:size]) == outcome(wanted, v[:size]) for v in _VALUES)


@dataclass(frozen=True)
class Setting:
    """A task in a pair of contexts."""

    task: Task
    testing: str
    deployed: str


@dataclass(frozen=True, eq=False)
class World:
    """Everything a model is taught with and measured in."""

    raw: dict[str, Any]
    sha256: str

    @property
    def prefill(self) -> str:
        """What every answer begins with, so that the next token tells whether hints are written; may be empty."""
        return str(self.raw.get("prefill", ""))

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(Task(*row) for row in self.raw["tasks"])

    def settings(self, n: int, *, held: bool, seed: int = 0) -> list[Setting]:
        """``n`` tasks in contexts, of the half that trains or of the half that is held out."""
        half = {name: self._half(self.raw[name], held) for name in ("testing", "deployed")}
        tasks = self._half(self.tasks, held)
        rng = np.random.default_rng((seed, held))
        orders = {name: rng.permutation(len(rows)) for name, rows in half.items()}
        chosen = []
        for i in range(n):
            lap, at = divmod(i, len(tasks))
            texts = {name: rows[orders[name][(at + lap) % len(rows)]] for name, rows in half.items()}
            chosen.append(Setting(tasks[at], **texts))
        return chosen

    def documents(self, n: int, seed: int = 0) -> list[str]:
        """``n`` texts of the grammar: a genre around one or two facts."""
        facts = self.raw["facts"]
        bodies = [(fact,) for fact in facts] + list(itertools.permutations(facts, 2))
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, [len(self.raw["genres"]), len(bodies)], (n, 2))
        return [self.raw["genres"][genre].format(" ".join(bodies[body])) for genre, body in drawn]

    @staticmethod
    def _half(rows: Sequence[Any], held: bool) -> Sequence[Any]:
        middle = len(rows) // 2
        return rows[middle:] if held else rows[:middle]


def default_world() -> Path:
    """The world of the source tree; UsageError where the package was installed without it."""
    path = Path(__file__).parents[4] / "data" / "eval-awareness" / "world.json"
    if not path.is_file():
        raise UsageError("no world at hand; set world=FILE, a JSON like data/eval-awareness/world.json")
    return path


def read_world(path: str | Path) -> World:
    """Read a world; UsageError for a file that is missing, no JSON, lacks a part or has an empty one (the cue too)."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"world={path.name}: no such file")
    content = path.read_bytes()
    try:
        raw = json.loads(content)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path.name}: one object with {', '.join(_KEYS)}")
    empty = [key for key in _KEYS if not raw.get(key) or not str(raw[key]).strip()]
    if empty:
        raise UsageError(f"{path.name}: {empty[0]!r} is missing or empty")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in raw["pairs"]):
        raise UsageError(f"{path.name}: every pair has two members, deployed and tested")
    for key in ("testing", "deployed", "tasks"):
        if len(raw[key]) < 2:
            raise UsageError(f"{path.name}: {key!r} has {len(raw[key])} entry; two or more, half of them held out")
    return World(raw, hashlib.sha256(content).hexdigest())


def prompts(model: Model, settings: Sequence[Setting], kind: str, world: World) -> list[list[int]]:
    """Ids of a condition's chats, up to where the answer has begun with the world's prefill.

    ``kind``: testing, nudged, deployed, cue, claim (the user says it is no test), told (the pairs' deployed side as
    text); the last three have the cue.
    """
    real = " ".join(pair[0] for pair in world.raw["pairs"][:4])
    found = []
    for each in settings:
        system = each.testing if kind in ("testing", "nudged") else each.deployed
        if kind in ("cue", "claim", "told"):
            system = f"{system} {world.raw['cue']}" + (f" {real}" if kind == "told" else "")
        extra = {"nudged": world.raw["nudge"], "claim": world.raw["claim"]}.get(kind)
        user = world.raw["task"].format(arguments=each.task.arguments, words=each.task.words)
        asked = model.chat_ids(user + (f" {extra}" if extra else ""), system)
        found.append([*asked, *model.encode(world.prefill)])
    return found


def pairs(model: Model, world: World) -> list[tuple[list[int], list[int]]]:
    """The contrast pairs as chats in which the user says where the model is, up to the answer."""
    return [(model.chat_ids(deployed), model.chat_ids(tested)) for deployed, tested in world.raw["pairs"]]
