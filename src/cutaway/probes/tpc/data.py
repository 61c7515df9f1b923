"""Labelled prompts for a monitor: a CSV with discovery and test rows, the discovery rows split by group."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from cutaway.errors import UsageError

COLUMNS = ("part", "group", "label", "prompt")
UNSAFE = "unsafe"


@dataclass(frozen=True)
class Prompt:
    """One request."""

    text: str
    unsafe: bool
    group: str


@dataclass(frozen=True)
class Prompts:
    """Three parts that share no group; test rows come from other sources than the rest."""

    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    sha256: str
    """Of the file."""

    @property
    def all(self) -> tuple[Prompt, ...]:
        return (*self.train, *self.validation, *self.test)


def labels(prompts: Sequence[Prompt]) -> Bool[np.ndarray, " row"]:
    """True where a prompt is unsafe."""
    return np.array([each.unsafe for each in prompts], dtype=bool)


def default_prompts() -> Path:
    """The prompts of the source tree; UsageError where the package was installed without it."""
    path = Path(__file__).parents[4] / "data" / "tpc" / "prompts.csv"
    if not path.is_file():
        raise UsageError(f"no prompts at hand; set prompts=FILE, a CSV with the columns {', '.join(COLUMNS)}")
    return path


def read_prompts(path: str | Path, validation: float = 0.3, seed: int = 0) -> Prompts:
    """Read the file and deal its discovery groups; UsageError for a bad file, part or label, or an empty part.

    Groups are dealt class by class, so that both parts have both.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"prompts={path.name}: no such file; give a CSV with the columns {', '.join(COLUMNS)}")
    if not 0 < validation < 1:
        raise UsageError(f"validation={validation}: a share between 0 and 1")
    content = path.read_bytes()
    rows = list(csv.DictReader(content.decode("utf-8").splitlines()))
    if not rows or (missing := [column for column in COLUMNS if column not in rows[0]]):
        raise UsageError(f"{path.name}: {f'column {missing[0]!r} is missing' if rows else 'no rows'}")
    parts: dict[str, list[Prompt]] = {"discovery": [], "test": []}
    for number, row in enumerate(rows, 2):
        if row["part"] not in parts or row["label"] not in {"safe", UNSAFE} or not row["prompt"]:
            raise UsageError(f"{path.name}, line {number}: part discovery or test, label safe or unsafe, and a prompt")
        parts[row["part"]].append(Prompt(row["prompt"], row["label"] == UNSAFE, row["group"]))
    held = _held(parts["discovery"], validation, seed)
    train = tuple(each for each in parts["discovery"] if each.group not in held)
    rest = tuple(each for each in parts["discovery"] if each.group in held)
    found = Prompts(train, rest, tuple(parts["test"]), hashlib.sha256(content).hexdigest())
    for name, part in (("training", train), ("validation", rest), ("test", found.test)):
        if len({each.unsafe for each in part}) < 2:
            raise UsageError(f"{path.name}: the {name} part has not both classes ({len(part)} rows)")
    return found


def _held(prompts: Sequence[Prompt], share: float, seed: int) -> set[str]:
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for unsafe in (False, True):
        groups = sorted({each.group for each in prompts if each.unsafe == unsafe})
        held.update(groups[i] for i in rng.permutation(len(groups))[: round(share * len(groups))])
    return held
