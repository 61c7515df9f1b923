"""Few-shot prompts whose every token has a role, from tasks that are lists of pairs.

    Follow the pattern:
    x -> y
    x -> y
    x ->

Roles: ``input`` (last token of x), ``arrow``, ``output`` (last token of y), ``newline``, ``inside`` (earlier tokens of
a word of several), and ``prompt.4``, ``prompt.5``, ... for the opening's tokens from the fifth on. The first four have
no role: the first token of a text gathers attention, and to change it is to break the model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model import Batch, Model

HEADER = "Follow the pattern:\n"
ARROW = " ->"
ROLES = ("input", "arrow", "output", "newline", "inside")
FIRST_FIXED = 4
Pair = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """A mapping, given by its pairs."""

    name: str
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        inputs = [x for x, _ in self.pairs]
        if len(set(inputs)) < len(inputs):
            twice = next(x for x in inputs if inputs.count(x) > 1)
            raise UsageError(f"task {self.name!r}: {twice!r} is asked twice; a task gives each input one answer")

    @property
    def digest(self) -> str:
        """SHA-256 of the pairs."""
        return hashlib.sha256(json.dumps(self.pairs).encode()).hexdigest()


@dataclass(frozen=True)
class Checked:
    """A task's pairs whose answer is one token, and those left out."""

    task: Task
    dropped: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task.name, "kept": len(self.task.pairs), "dropped": [list(pair) for pair in self.dropped]}


def single_token(model: "Model", task: Task) -> Checked:
    """Keep the pairs whose answer, after a space, is one token."""
    ids = model.tokenizer([f" {y}" for _, y in task.pairs], add_special_tokens=False)["input_ids"]
    kept = tuple(pair for pair, found in zip(task.pairs, ids, strict=True) if len(found) == 1)
    return Checked(Task(task.name, kept), tuple(pair for pair in task.pairs if pair not in set(kept)))


@dataclass(frozen=True)
class Split:
    """A task's pairs by use. No input of ``held`` is ever shown before the final evaluation."""

    task: str
    shots: tuple[Pair, ...]
    """Examples in prompts."""
    fit: tuple[Pair, ...]
    """Queries that vectors are cleaned on."""
    held: tuple[Pair, ...]
    """Queries that they are evaluated on."""

    def __post_init__(self) -> None:
        seen = {x for x, _ in (*self.shots, *self.fit)}
        both = sorted(seen & {x for x, _ in self.held})
        if both:
            raise UsageError(f"task {self.task!r}: {both[0]!r} is used both for fitting and for evaluation")


def split(task: Task, shots: int, *, queries: int = 24, seed: int = 0) -> Split:
    """Divide a task's pairs at random: ``queries`` to fit, as many held out, the others as examples.

    With fewer than 3 * queries + 1 pairs each part is a third. UsageError where the examples are fewer than shots + 1.
    """
    each = min(queries, len(task.pairs) // 3)
    order = [task.pairs[i] for i in np.random.default_rng([seed, 11]).permutation(len(task.pairs))]
    held, fit, rest = order[:each], order[each : 2 * each], order[2 * each :]
    if each < 2 or len(rest) < shots + 1:
        raise UsageError(
            f"task {task.name!r}: {len(task.pairs)} pairs leave {len(rest)} for examples; prompts of {shots} shots need"
            f" {shots + 1}. Give more pairs, or fewer shots"
        )
    return Split(task.name, tuple(rest), tuple(fit), tuple(held))


@dataclass(frozen=True)
class Prompt:
    """Examples, and the query to answer; without a query every arrow of the examples is one."""

    shots: tuple[Pair, ...]
    query: Pair | None = None


def few_shot(
    pool: Sequence[Pair], shots: int, n: int, *, queries: Sequence[Pair] | None = None, seed: int = 0
) -> list[Prompt]:
    """Draw ``n`` prompts of ``shots`` different examples each; with ``queries``, one query a prompt in turn.

    UsageError where the pool has no more than ``shots`` pairs.
    """
    if len(pool) < shots + 1:
        raise UsageError(f"{len(pool)} pairs for prompts of {shots} shots; give at least {shots + 1}")
    rng = np.random.default_rng([seed, 5])
    drawn = []
    for row in range(n):
        query = queries[row % len(queries)] if queries is not None else None
        others = [pair for pair in pool if query is None or pair[0] != query[0]]
        drawn.append(Prompt(tuple(others[i] for i in rng.permutation(len(others))[:shots]), query))
    return drawn


def zero_shot(queries: Sequence[Pair]) -> list[Prompt]:
    """Prompts that show no example."""
    return [Prompt((), query) for query in queries]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as token ids, with the role of each token and the tokens that have to be predicted."""

    batch: "Batch"
    roles: tuple[str, ...]
    """Names of roles."""
    role: "Tensor"
    """[batch pos]: index into ``roles``; -1 at padding, at answers to the query and at the opening's first tokens."""
    at: "Tensor"
    """[batch target]: columns whose logits are read."""
    target: "Tensor"
    """[batch target]: the ids that should come next."""
    real: "Tensor"
    """[batch target]: False where a row has fewer targets than others."""

    def __len__(self) -> int:
        return len(self.batch)

    def having(self, role: str) -> "Tensor":
        """[batch pos]: where tokens have this role; UsageError for a role that no prompt has."""
        if role not in self.roles:
            raise UsageError(f"role {role!r}: these prompts have {', '.join(self.roles)}")
        return self.role == self.roles.index(role)


def tokens(tokenizer: Any, prompt: Prompt, header: str = HEADER) -> tuple[list[int], list[str], list[int]]:
    """Return a prompt's ids, each one's role ("" for none), and the positions of its arrows.

    Works with any fast tokenizer, by character offsets. UsageError where the arrow or the newline is not one token, or
    where a token reaches over from one part of a line into the next.
    """
    text, parts = _parts(prompt, header)
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    members: list[list[int]] = [[] for _ in parts]
    part = 0
    for index, (begin, end) in enumerate(offsets):
        if begin == end:
            continue
        while end > parts[part][2]:
            part += 1
        if begin < parts[part][1]:
            raise UsageError(
                f"token {text[begin:end]!r} reaches over a boundary of 'x -> y'; this tokenizer cannot type its tokens"
            )
        members[part].append(index)
    roles = [""] * len(ids)
    arrows = []
    for (kind, begin, end), inside in zip(parts, members, strict=True):
        if kind in ("arrow", "newline") and len(inside) != 1:
            raise UsageError(f"{text[begin:end]!r} is {len(inside)} tokens in this tokenizer; the {kind} must be one")
        if not inside:
            raise UsageError(f"{text[begin:end]!r} has no token of its own in this tokenizer")
        if kind == "header":
            for rank, index in enumerate(inside):
                roles[index] = f"prompt.{rank}" if rank >= FIRST_FIXED else ""
        elif kind != "answer":
            for index in inside:
                roles[index] = "inside"
            roles[inside[-1]] = kind
        if kind == "arrow":
            arrows.append(inside[0])
    return ids, roles, arrows


def prepare(model: "Model", rows: Sequence[Prompt], *, n_first: int = 2, after: int = 1) -> Prompts:
    """Tokenise prompts. Targets: the first ``n_first`` tokens of the query's answer; without a query, the token after
    every arrow that has at least ``after`` examples before it.
    """
    import torch

    if not rows:
        raise UsageError("no prompts given")
    if len({row.query is None for row in rows}) > 1:
        raise UsageError("some prompts have a query and some have none; prepare them apart")
    made = [tokens(model.tokenizer, row) for row in rows]
    batch = model.batch([ids for ids, _, _ in made])
    names = tuple(dict.fromkeys([*ROLES, *sorted({name for _, found, _ in made for name in found if name})]))
    role = torch.full(batch.ids.shape, -1)
    places: list[list[int]] = []
    for row, ((ids, found, arrows), prompt) in enumerate(zip(made, rows, strict=True)):
        role[row, : len(found)] = torch.tensor([names.index(name) if name else -1 for name in found])
        last = arrows[-1]
        places.append(
            list(range(last, min(len(ids) - 1, last + n_first))) if prompt.query is not None else arrows[after:]
        )
    if not all(places):
        raise UsageError(f"a prompt has no arrow with {after} examples before it; give more shots")
    width = max(map(len, places))
    real = torch.tensor([[i < len(row) for i in range(width)] for row in places], device=batch.ids.device)
    at = torch.tensor([row + [row[-1]] * (width - len(row)) for row in places], device=batch.ids.device)
    target = batch.ids.gather(1, at + 1)
    return Prompts(batch, names, role.to(batch.ids.device), at, target, real)


def _parts(prompt: Prompt, header: str) -> tuple[str, list[tuple[str, int, int]]]:
    """The text, and its parts as (kind, first character, end)."""
    pieces = [("header", header)]
    for x, y in prompt.shots:
        pieces += [("input", x), ("arrow", ARROW), ("output", f" {y}"), ("newline", "\n")]
    if prompt.query is not None:
        x, y = prompt.query
        pieces += [("input", x), ("arrow", ARROW), ("answer", f" {y}")]
    text, parts = "", []
    for kind, piece in pieces:
        parts.append((kind, len(text), len(text) + len(piece)))
        text += piece
    return text, parts


def pairs_json(splits: Sequence[Split]) -> bytes:
    """The artifact that says which pair was used for what."""
    return (json.dumps([asdict(each) for each in splits], ensure_ascii=False) + "\n").encode()
