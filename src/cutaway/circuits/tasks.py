"""Tasks that circuits are looked for on, as pairs for any tokenizer: rows that do not fit are dropped and counted.

    ioi           "... Aaron and Amber ... Aaron gave a drink to" > Amber, not Aaron
    greater_than  "The war lasted from the year 1732 to the year 17" > a later year. Tokenizers with one token for each
                  two-digit number are asked for the number, others for its first digit
    capitals      "The capital of France is" > Paris, corrupted by another country
    from_rows     your own prompts: clean, corrupted, right and wrong answers

Groups of pairs are templates (ioi), nouns (greater_than) or countries (capitals): a split keeps them apart.
The rows come from ``data/circuits`` of a source checkout (see its SOURCE.md); another folder may be given.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cutaway.circuits.pairs import Pair, Pairs, by_length, pair
from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.model import Model

Corruption = Literal["third", "flip"]
"""``third``: a third name in place of the repeated one. ``flip``: the other name is repeated, so the answer flips."""

_DATA = Path(__file__).parents[3] / "data" / "circuits"


@dataclass(frozen=True, repr=False)
class Task:
    """Pairs that a tokenizer allows, how they are measured, and how many rows it does not allow, by reason."""

    name: str
    pairs: tuple[Pair, ...]
    measure: str
    dropped: Mapping[str, int]

    def __repr__(self) -> str:
        lost = "".join(f", {n} dropped ({reason})" for reason, n in self.dropped.items())
        return f"Task({self.name}, {len(self.pairs)} pairs{lost})"

    def by_length(self) -> list[Pairs]:
        """Return the pairs by token length, the largest group first."""
        return by_length(self.pairs, self.measure)


def ioi(
    model: Model, n: int | None = None, *, corruption: Corruption | str = "third", folder: Path | None = None
) -> Task:
    """Return indirect-object prompts, the first ``n`` that fit (None: all); by logit difference."""
    if corruption not in get_args(Corruption):
        raise UsageError(f"corruption={corruption!r}{nearest(corruption, get_args(Corruption))}")
    column = "corrupted" if corruption == "third" else "corrupted_hard"
    rows = (
        {
            "clean": row["clean"],
            "corrupted": row[column],
            "right": row["answer"],
            "wrong": row["distractor"],
            "group": _template(row["clean"], row["answer"], row["distractor"]),
        }
        for row in _read("ioi", folder)
    )
    return from_rows(model, rows, n, name="ioi")


def greater_than(model: Model, n: int | None = None, *, folder: Path | None = None) -> Task:
    """Return year prompts, the first ``n`` that fit (None: all); by probability difference.

    Right are all numbers after the start year, wrong those up to it. By first digit, the start year's own first digit
    is neither, and start years whose first digit leaves no right or no wrong one are dropped.
    """
    numbers = [model.encode(f"{number:02d}") for number in range(100)]
    whole = all(len(ids) == 1 for ids in numbers) and len({ids[0] for ids in numbers}) == 100
    rows = (_year_row(row, whole) for row in _read("greater_than", folder))
    name = "greater_than" if whole else "greater_than by first digit"
    return from_rows(model, rows, n, name=name, measure="prob_diff")


def _year_row(row: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    year = int(row["start_year_suffix"])
    words = [f"{number:02d}" for number in range(100)] if whole else [str(digit) for digit in range(10)]
    at = year if whole else year // 10
    right, wrong = words[at + 1 :], words[: at + 1] if whole else words[:at]
    return {
        "clean": row["clean"],
        "corrupted": row["corrupted"],
        "right": right,
        "wrong": wrong,
        "group": row["clean"].split()[1],
    }


def capitals(model: Model, n: int | None = None, *, seed: int = 0, folder: Path | None = None) -> Task:
    """Return countries with another country of equal token length as corruption; by logit difference.

    seed: of who corrupts whom; every country corrupts at most one other. Countries without a partner are dropped.
    """
    rows, dropped = list(_read("capitals", folder)), Counter[str]()
    sizes = [len(model.encode(_capital_prompt(row), special=True)) for row in rows]
    rng, chosen = np.random.default_rng(seed), []
    for size in sorted(set(sizes)):
        same = [row for row, length in zip(rows, sizes, strict=True) if length == size]
        if len(same) == 1:
            dropped["no other country of its token length"] += 1
            continue
        order = rng.permutation(len(same))
        chosen += [(same[one], same[other]) for one, other in zip(order, np.roll(order, 1), strict=True)]
    filled = (
        {
            "clean": _capital_prompt(row),
            "corrupted": _capital_prompt(other),
            "right": f" {row['capital']}",
            "wrong": f" {other['capital']}",
            "group": row["country"],
        }
        for row, other in chosen
    )
    task = from_rows(model, filled, n, name="capitals")
    return Task(task.name, task.pairs, task.measure, dict(dropped + Counter(task.dropped)))


def _capital_prompt(row: Mapping[str, Any]) -> str:
    return f"The capital of {row['country']} is"


def from_rows(
    model: Model,
    rows: Iterable[Mapping[str, Any]],
    n: int | None = None,
    *,
    name: str = "task",
    measure: str = "logit_diff",
) -> Task:
    """Return the first ``n`` rows that fit (None: all): mappings with clean, corrupted, right, wrong, perhaps group.

    Dropped and counted: prompts of unequal token length, answers of several tokens, nothing right or wrong, answers
    that share a token, prompts that do not differ. CutawayError where no row is left.
    """
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        if n is not None and len(kept) == n:
            break
        reason = _misfit(model, row)
        if reason:
            dropped[reason] += 1
            continue
        kept.append(
            pair(model, row["clean"], row["corrupted"], row["right"], row["wrong"], group=str(row.get("group", "")))
        )
    if not kept:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in dropped.items()) or "there are none"
        raise CutawayError(f"{name}: no row fits this tokenizer ({reasons})")
    return Task(name, tuple(kept), measure, dict(dropped))


def _misfit(model: Model, row: Mapping[str, Any]) -> str:
    """Return why a row makes no pair; empty when it does."""
    clean, corrupted = (model.encode(row[which], special=True) for which in ("clean", "corrupted"))
    right, wrong = ([model.encode(text) for text in _texts(row[which])] for which in ("right", "wrong"))
    if len(clean) != len(corrupted):
        return "clean and corrupted differ in token length"
    if clean == corrupted:
        return "clean and corrupted are the same"
    if not right or not wrong:
        return "nothing is right, or nothing is wrong"
    if any(len(ids) != 1 for ids in right + wrong):
        return "an answer is several tokens"
    if {ids[0] for ids in right} & {ids[0] for ids in wrong}:
        return "right and wrong share a token"
    return ""


def _texts(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _template(prompt: str, *names: str) -> str:
    """Return the prompt without names, things and places."""
    for name in names:
        prompt = prompt.replace(name.strip(), "_")
    return re.sub(r"\b(the|a) \w+", r"\1 _", prompt)


def _read(name: str, folder: Path | None) -> list[dict[str, Any]]:
    path = (folder or _DATA) / f"{name}.jsonl"
    if not path.exists():
        raise CutawayError(f"no {path.name} in {path.parent}; give the folder data/circuits of a source checkout")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
