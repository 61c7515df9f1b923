"""Which units belong to a token: an inverted index, and what it answers.

A token is **activating** for a unit when one of the unit's top texts has it at a value of at least half the unit's
largest, or when the unit's graph has it as an activating token. It is **context** when the unit's graph has it in
front of one; a unit without a graph has as context what stands among the `REACH` tokens before the peak in two or
more of its top texts. Graphs spell tokens without blanks and capitals; every token so spelled is meant.

On disk: for each role the units of every token, sorted, end to end with offsets (and the tokens of every unit, for
similarity). A search marks the units of each term in a row of flags and keeps those marked by all: nothing of the
store but the lists asked for is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from cutaway.errors import UsageError, nearest
from cutaway.features.index.tensors import Arrays, offsets
from cutaway.features.index.vocabulary import Vocabulary

Role = Literal["activating", "context", "any"]
ROLES = ("activating", "context")
SHARE = 0.5
"""Of the unit's largest value."""
REACH = 8
_UNITS = 2048
Pairs = np.ndarray
"""[pair 2]: unit, token; sorted, each once."""


@dataclass(frozen=True)
class Term:
    """One thing asked of a unit: a token in a role."""

    token: str | bytes
    role: Role | str = "any"

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise UsageError(f"role {self.role!r}{nearest(self.role, get_args(Role))}")
        if not self.token:
            raise UsageError("an empty token; write the token as the model has it, blanks included")


@dataclass(frozen=True)
class Alike:
    """How the activating tokens of another unit compare with those of the unit asked about."""

    unit: int
    similarity: float
    """Tokens both have over tokens either has."""
    inside: float
    """Share of the asked unit's tokens that the other has."""
    holds: float
    """Share of the other's tokens that the asked unit has: 1 means the other is a subset."""
    shared: int


def text_pairs(units: Arrays, contexts: Arrays, k: int) -> dict[str, Pairs]:
    """Return the (unit, token) pairs that top texts give, by role; see the module's rules."""
    ids, begins = contexts["ids"], contexts["offset"]
    found: dict[str, list[Pairs]] = {role: [] for role in ROLES}
    for low in range(0, len(units["context"]), _UNITS):
        part = {name: units[name][low : low + _UNITS, :k] for name in ("peak", "context", "start", "position")}
        values = units["values"][low : low + _UNITS, :k]
        least = np.where(part["context"] >= 0, part["peak"], 0.0).max(1, initial=0.0)[:, None, None] * SHARE
        unit, text, at = ((values >= least) & (values > 0)).nonzero()
        where = begins[part["context"][unit, text]] + part["start"][unit, text] + at
        found["activating"].append(_unique(unit + low, ids[where]))
        there = (part["context"] >= 0)[..., None]
        places = part["position"][..., None] - np.arange(1, REACH + 1)
        unit, text, at = (there & (places >= part["start"][..., None])).nonzero()
        tokens = ids[begins[part["context"][unit, text]] + places[unit, text, at]]
        once = np.unique(np.stack([unit + low, tokens.astype(np.int64), text], 1), axis=0)
        pairs, count = np.unique(once[:, :2], axis=0, return_counts=True)
        found["context"].append(pairs[count >= 2])
    return {role: np.concatenate(parts) if parts else np.zeros((0, 2), np.int64) for role, parts in found.items()}


def graph_pairs(
    pairs: Mapping[str, Pairs], graphs: Mapping[int, Mapping[str, Any]], vocabulary: Vocabulary
) -> dict[str, Pairs]:
    """Return pairs with graphs taken in: activating tokens are added, context is replaced."""
    found: dict[str, list[tuple[int, int]]] = {role: [] for role in ROLES}
    for unit, graph in graphs.items():
        for node in graph.get("nodes", ()):
            if (role := node.get("role")) in ROLES:
                found[role] += [(unit, token) for each in node.get("tokens", ()) for token in vocabulary.spelled(each)]
    made = {}
    for role in ROLES:
        kept = pairs[role]
        if role == "context" and graphs:
            kept = kept[~np.isin(kept[:, 0], np.fromiter(graphs, np.int64))]
        both = np.concatenate([kept, np.array(found[role], np.int64).reshape(-1, 2)])
        made[role] = _unique(both[:, 0], both[:, 1])
    return made


def postings(pairs: Mapping[str, Pairs], n_units: int, n_tokens: int) -> dict[str, np.ndarray]:
    """Return the arrays of the inverted index: ``ROLE.of_token``, its offsets, and the same by unit."""
    made: dict[str, np.ndarray] = {}
    for role in ROLES:
        unit, token = pairs[role][:, 0], pairs[role][:, 1]
        for name, key, value, size in (("of_unit", unit, token, n_units), ("of_token", token, unit, n_tokens)):
            order = np.lexsort((value, key))
            made[f"{role}.{name}"] = value[order].astype(np.int32)
            made[f"{role}.{name}.offset"] = offsets(np.bincount(key, minlength=size))
    return made


def matching(
    lists: Arrays, vocabulary: Vocabulary, terms: Sequence[Term], n_units: int, *, ci: bool = False, trim: bool = False
) -> np.ndarray:
    """Return the numbers of the units that satisfy every term, in order. UsageError where no term is given."""
    if not terms:
        raise UsageError("no term; give a token to look for")
    flags = np.ones(n_units, bool)
    for term in terms:
        marked = np.zeros(n_units, bool)
        for token in vocabulary.find(term.token, ci=ci, trim=trim):
            for role in ROLES if term.role == "any" else (term.role,):
                marked[members(lists, f"{role}.of_token", token)] = True
        flags &= marked
    return np.flatnonzero(flags)


def members(lists: Arrays, name: str, key: int) -> np.ndarray:
    """Return one list of the index: the units of a token (``ROLE.of_token``) or the tokens of a unit."""
    offset = lists[f"{name}.offset"]
    found: np.ndarray = lists[name][offset[key] : offset[key + 1]]
    return found


def alike(lists: Arrays, unit: int, n: int = 10) -> list[Alike]:
    """Return the ``n`` units whose activating tokens are most like those of ``unit``; equal ones by number."""
    tokens = members(lists, "activating.of_unit", unit)
    sizes = np.diff(lists["activating.of_unit.offset"])
    if not len(tokens):
        return []
    shared = np.bincount(
        np.concatenate([members(lists, "activating.of_token", token) for token in tokens.tolist()]),
        minlength=len(sizes),
    )
    score = shared / (len(tokens) + sizes - shared)
    score[unit] = 0.0
    n = min(n, int((score > 0).sum()))
    if n == 0:
        return []
    tied = np.flatnonzero(score >= np.partition(score, -n)[-n])
    return [
        Alike(
            int(other),
            float(score[other]),
            float(shared[other] / len(tokens)),
            float(shared[other] / sizes[other]),
            int(shared[other]),
        )
        for other in tied[np.lexsort((tied, -score[tied]))][:n]
    ]


def _unique(unit: np.ndarray, token: np.ndarray) -> Pairs:
    key = np.unique(unit.astype(np.int64) << 32 | token.astype(np.int64))
    return np.stack([key >> 32, key & 0xFFFFFFFF], 1)
