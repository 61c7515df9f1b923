"""A neuron as a small graph of tokens: it is read by people, predicts activations on new text, and is plain data.

The graph is a set of trees. An activating token is a root; a child is the token before it, or IGNORE for any token;
an END says which value the pattern so far stands for. Prediction walks backwards from each token of a text.

- ``matching="greedy"`` (the papers): take the child of exactly this token, else the IGNORE child; the value is that
  of the longest END on the way. One step a level, but an exact child hides what lies behind its IGNORE sibling.
- ``matching="all"``: follow both. An END counts unless a longer END continues it, or one of the same length is more
  specific (a token where it has IGNORE); the largest value that counts is predicted. Steps are remembered, so each
  again costs one look-up a level.

Where nothing matches the prediction is 0. Values are in units of the neuron's largest known activation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.features.neuron2graph.tokens import Spell, normalise

Role = Literal["activating", "context", "ignore", "end"]
Matching = Literal["all", "greedy"]
Path = tuple[str | None, ...]
"""Tokens backwards from the activating one; None is IGNORE."""
_State = tuple[tuple[int, ...], tuple[int, ...], float | None]
"""Nodes reached, ENDs that a longer one may still continue, and the largest value of ENDs that count for certain."""


@dataclass(frozen=True)
class Node:
    """One token of a pattern, or its END."""

    id: int
    parent: int
    """-1 at activating tokens."""
    token: str | None
    """None at IGNORE and END."""
    role: Role
    importance: float = 0.0
    """Share of the activation lost when the token is masked; mean over the samples."""
    activation: float = 0.0
    """At an END the value predicted; elsewhere the largest value below."""
    count: int = 0
    """Samples that end here."""
    sd: float = 0.0
    """Between those samples' values."""


@dataclass(frozen=True)
class Ending:
    """A whole pattern and what it predicts."""

    path: Path
    activation: float
    count: int
    sd: float
    importance: tuple[float, ...]


@dataclass(frozen=True)
class NeuronGraph:
    """What makes a neuron fire, as patterns of tokens."""

    name: str
    nodes: tuple[Node, ...]
    matching: Matching = "all"
    spell: Spell | None = field(default=None, compare=False, repr=False)
    """Token id to text; needed to predict on ids."""

    def __repr__(self) -> str:
        return f"NeuronGraph({self.name!r}, {len(self.endings)} patterns on {len(self.roots)} tokens)"

    @cached_property
    def roots(self) -> dict[str, int]:
        """Activating tokens and their nodes."""
        return {node.token: node.id for node in self.nodes if node.parent < 0 and node.token is not None}

    @cached_property
    def endings(self) -> tuple[Ending, ...]:
        """Every pattern, in the order of its END."""
        found = []
        for end in self.nodes:
            if end.role == "end":
                way = self.way(end.parent)
                tokens, weights = tuple(node.token for node in way), tuple(node.importance for node in way)
                found.append(Ending(tokens, end.activation, end.count, end.sd, weights))
        return tuple(found)

    @property
    def paths(self) -> frozenset[Path]:
        """Patterns that predict firing, at half of the largest activation."""
        return frozenset(each.path for each in self.endings if each.activation >= 0.5)

    def tokens(self, role: Role) -> frozenset[str]:
        """Return all tokens of a role, "activating" or "context"."""
        return frozenset(node.token for node in self.nodes if node.role == role and node.token is not None)

    def predict(self, ids: Sequence[int]) -> Float[Tensor, " pos"]:
        """Return the predicted value at each token; UsageError where the graph does not know how ids are spelled."""
        if self.spell is None:
            raise UsageError(f"graph {self.name!r} has no spelling of token ids; pass spell= to from_dict")
        return self.predict_tokens([self.spell(token) for token in ids])

    def predict_tokens(self, tokens: Sequence[str]) -> Float[Tensor, " pos"]:
        """Return the predicted value at each token, tokens given as text."""
        plain = [normalise(token) for token in tokens]
        walk = self._greedy if self.matching == "greedy" else self._all
        return torch.tensor([walk(plain, at) for at in range(len(plain))])

    def counting(self, tokens: Sequence[str], at: int) -> tuple[Ending, ...]:
        """Return the patterns that count at ``tokens[at]`` where all ways are followed, the predicted value first."""
        plain = [normalise(token) for token in reversed(tokens[: at + 1])]
        fits = [each for each in self.endings if _fits(each.path, plain)]
        held = [
            each
            for each in fits
            if not any(_continues(other.path, each.path) or _narrower(other.path, each.path) for other in fits)
        ]
        return tuple(sorted(held, key=lambda each: -each.activation))

    def to_dict(self) -> dict[str, Any]:
        """Return nodes and edges as JSON-able data."""
        nodes = [
            {
                "id": node.id,
                "tokens": [] if node.token is None else [node.token],
                "role": node.role,
                "importance": node.importance,
                "activation": node.activation,
                "count": node.count,
                "sd": node.sd,
            }
            for node in self.nodes
        ]
        edges = [[node.parent, node.id] for node in self.nodes if node.parent >= 0]
        return {"name": self.name, "matching": self.matching, "nodes": nodes, "edges": edges}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], spell: Spell | None = None) -> "NeuronGraph":
        """Read back what `to_dict` wrote; CutawayError for data that is no such graph."""
        try:
            parents = {int(b): int(a) for a, b in data.get("edges", ())}
            nodes = tuple(
                Node(
                    id=int(each["id"]),
                    parent=parents.get(int(each["id"]), -1),
                    token=each["tokens"][0] if each["tokens"] else None,
                    role=each["role"],
                    importance=float(each["importance"]),
                    activation=float(each["activation"]),
                    count=int(each.get("count", 0)),
                    sd=float(each.get("sd", 0.0)),
                )
                for each in data["nodes"]
            )
            if [node.id for node in nodes] != list(range(len(nodes))) or any(n.parent >= n.id for n in nodes):
                raise ValueError("nodes must be numbered from 0, parents first")
            return cls(str(data.get("name", "")), nodes, data.get("matching", "all"), spell)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CutawayError(f"not a neuron's graph: {error!r}") from error

    def way(self, node: int) -> list[Node]:
        """Return the nodes from an activating token to ``node``."""
        way: list[Node] = []
        while node >= 0:
            way.append(self.nodes[node])
            node = self.nodes[node].parent
        return way[::-1]

    @cached_property
    def _children(self) -> list[dict[str | None, int]]:
        children: list[dict[str | None, int]] = [{} for _ in self.nodes]
        for node in self.nodes:
            if node.parent >= 0 and node.role != "end":
                children[node.parent][node.token] = node.id
        return children

    @cached_property
    def _ends(self) -> dict[int, float]:
        return {node.parent: node.activation for node in self.nodes if node.role == "end"}

    @cached_property
    def _anchors(self) -> list[int]:
        """For each node the nearest one that ends a pattern, itself included; -1 where there is none."""
        anchors: list[int] = []
        for node in self.nodes:
            above = anchors[node.parent] if node.parent >= 0 else -1
            anchors.append(node.id if node.id in self._ends else above)
        return anchors

    @cached_property
    def _known(self) -> dict[tuple[_State, str], _State]:
        return {}

    def _greedy(self, tokens: Sequence[str], at: int) -> float:
        node, value = self.roots.get(tokens[at]), 0.0
        while node is not None:
            value = self._ends.get(node, value)
            at -= 1
            if at < 0:
                break
            children = self._children[node]
            node = children.get(tokens[at], children.get(None))
        return value

    def _all(self, tokens: Sequence[str], at: int) -> float:
        root = self.roots.get(tokens[at])
        if root is None:
            return 0.0
        state: _State = ((root,), (root,) if root in self._ends else (), None)
        while state[0] and at > 0:
            at -= 1
            key = (state, tokens[at])
            if key not in self._known:
                self._known[key] = self._step(*key)
            state = self._known[key]
        return _largest([state[2], *(self._ends[node] for node in state[1])]) or 0.0

    def _step(self, state: _State, token: str) -> _State:
        """Move every way one token back, and settle which ENDs count."""
        reached = [self._children[n][key] for n in state[0] for key in (token, None) if key in self._children[n]]
        ends = [node for node in reached if node in self._ends]
        continued = {self._anchors[self.nodes[node].parent] for node in ends if self.nodes[node].parent >= 0}
        specific = [node for node in ends if not any(self._specific(other, node) for other in ends)]
        open_ = [*(node for node in state[1] if node not in continued), *specific]
        alive = {self._anchors[node] for node in reached}
        sure = _largest([state[2], *(self._ends[node] for node in open_ if node not in alive)])
        return tuple(reached), tuple(node for node in open_ if node in alive), sure

    def _specific(self, a: int, b: int) -> bool:
        return _narrower(*(tuple(node.token for node in self.way(each)) for each in (a, b)))


def _fits(path: Path, backwards: Sequence[str]) -> bool:
    return len(path) <= len(backwards) and all(a in (None, b) for a, b in zip(path, backwards, strict=False))


def _continues(longer: Path, path: Path) -> bool:
    return len(longer) > len(path) and longer[: len(path)] == path


def _narrower(a: Path, b: Path) -> bool:
    """Say whether ``a`` has a token wherever ``b``, of the same length, has one, and more of them."""
    return len(a) == len(b) and a != b and all(y is None or x == y for x, y in zip(a, b, strict=True))


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def gap_summary(graph: NeuronGraph) -> list[str]:
    """Return the patterns in words, those that differ in their gaps alone on one line, strongest first.

    "bread <- apple within 1 to 5" stands for five patterns.
    """
    groups: dict[tuple[str, ...], list[tuple[tuple[int, ...], float]]] = {}
    for each in graph.endings:
        places = [i for i, token in enumerate(each.path) if token is not None]
        tokens = tuple(str(each.path[i]) for i in places)
        gaps = tuple(b - a for a, b in pairwise(places))
        groups.setdefault((*tokens, "" if each.activation >= 0.5 else "not"), []).append((gaps, each.activation))
    lines = []
    for key, found in groups.items():
        text, sign = key[0], key[-1]
        for step, token in enumerate(key[1:-1]):
            near, far = (f(gaps[step] for gaps, _ in found) for f in (min, max))
            text += f" <- {token}" + (f" {near} to {far} back" if far > near else f" {near} back" if near > 1 else "")
        value = sum(each for _, each in found) / len(found)
        lines.append((value, f"{'' if not sign else 'not: '}{text} ({value:.2f})"))
    return [line for _, line in sorted(lines, reverse=True)]


class Trie:
    """Patterns in the making."""

    def __init__(self) -> None:
        self.children: list[dict[str | None, int]] = [{}]
        """Node 0 is the root, which no pattern shows."""
        self.weights: list[list[float]] = [[]]
        self.values: list[list[float]] = [[]]
        """At each node the values of samples that end there."""

    def insert(self, path: Path, value: float, weights: Sequence[float]) -> None:
        """Add one sample: a pattern, its value, and the importance of each of its tokens."""
        if not path or path[0] is None:
            raise UsageError(f"pattern {path}: it starts at the activating token")
        node = 0
        for token, weight in zip(path, weights, strict=True):
            node = self._child(node, token)
            self.weights[node].append(weight)
        self.values[node].append(value)

    def set(self, path: Path, values: Sequence[float]) -> None:
        """Replace the samples of a pattern; none takes its END away."""
        node = 0
        for token in path:
            node = self._child(node, token)
        self.values[node] = list(values)

    def merge(self) -> None:
        """Let what is known behind a token also hold behind its IGNORE sibling (the papers' rule).

        A sibling moves into IGNORE unless it ends a pattern; then it stays, and what follows it is copied.
        """
        queue = [0]
        while queue:
            node = queue.pop(0)
            ignore = self.children[node].get(None)
            for token, child in list(self.children[node].items()):
                if ignore is None or token is None:
                    continue
                for path, weights, values in list(self._below(child)):
                    into = ignore
                    for step, weight in zip(path, weights, strict=True):
                        into = self._child(into, step)
                        self.weights[into].append(weight)
                    self.values[into] += values
                if not self.values[child]:
                    del self.children[node][token]
            queue += self.children[node].values()

    def graph(self, name: str, spell: Spell | None, matching: Matching, first: bool = False) -> NeuronGraph:
        """Return the patterns as a graph; ``first`` takes an END's first value, not the mean."""
        nodes: list[Node] = []

        def add(node: int, parent: int, token: str | None) -> float:
            place = len(nodes)
            role: Role = "ignore" if token is None else "activating" if parent < 0 else "context"
            nodes.append(Node(place, parent, token, role))
            best = 0.0
            if samples := self.values[node]:
                mean = sum(samples) / len(samples)
                sd = (sum((x - mean) ** 2 for x in samples) / len(samples)) ** 0.5
                best = samples[0] if first else mean
                nodes.append(Node(len(nodes), place, None, "end", 0.0, best, len(samples), sd))
            for key, child in self.children[node].items():
                if any(True for _ in self._ends(child)):
                    best = max(best, add(child, place, key))
            weights = self.weights[node]
            importance = sum(weights) / len(weights) if weights else 0.0
            nodes[place] = Node(place, parent, token, role, importance, best)
            return best

        for token, child in self.children[0].items():
            if any(True for _ in self._ends(child)):
                add(child, -1, token)
        return NeuronGraph(name, tuple(nodes), matching, spell)

    def _child(self, node: int, token: str | None) -> int:
        if token not in self.children[node]:
            self.children[node][token] = len(self.children)
            self.children.append({})
            self.weights.append([])
            self.values.append([])
        return self.children[node][token]

    def _ends(self, node: int) -> Iterable[int]:
        if self.values[node]:
            yield node
        for child in self.children[node].values():
            yield from self._ends(child)

    def _below(self, node: int) -> Iterable[tuple[Path, tuple[float, ...], list[float]]]:
        """Yield the patterns behind a node, without the node itself: tokens, importances, values."""
        for token, child in self.children[node].items():
            weights = self.weights[child]
            weight = sum(weights) / len(weights) if weights else 0.0
            if self.values[child]:
                yield (token,), (weight,), list(self.values[child])
            for path, behind, values in self._below(child):
                yield (token, *path), (weight, *behind), values


@dataclass(frozen=True)
class Overlap:
    """Tokens that two graphs share, of each role."""

    activating: float
    """Share of the larger set."""
    context: float
    relation: Literal["similar", "subset", "none"]


def overlap(a: NeuronGraph, b: NeuronGraph, threshold: float = 0.9) -> Overlap:
    """Compare two graphs by their tokens: similar where both roles share ``threshold`` of the larger set.

    With the smaller set in its place it is "subset". Two graphs without context agree in it; an empty graph is like
    none.
    """
    shares: list[tuple[float, float]] = []
    roles: tuple[Role, Role] = ("activating", "context")
    for role in roles:
        x, y = a.tokens(role), b.tokens(role)
        both, sizes = len(x & y), (max(len(x), len(y)), min(len(x), len(y)))
        empty = float(role == "context" and not sizes[0])
        larger, smaller = (both / size if size else empty for size in sizes)
        shares.append((larger, 1.0 if role == "context" and not sizes[1] else smaller))
    relation: Literal["similar", "subset", "none"] = "none"
    if all(share[0] >= threshold for share in shares):
        relation = "similar"
    elif all(share[1] >= threshold for share in shares):
        relation = "subset"
    return Overlap(shares[0][0], shares[1][0], relation)


def path_of(tokens: Sequence[str], at: int, kept: Iterable[int]) -> Path:
    """Return the pattern that ends at ``tokens[at]`` and keeps the tokens at ``kept``, the rest ignored.

    >>> path_of([" the", " Red", " big", " apple"], 3, {1})
    ('apple', None, 'red')
    """
    held = {index for index in kept if index <= at} | {at}
    backwards = takewhile(lambda index: index >= min(held), range(at, -1, -1))
    return tuple(normalise(tokens[index]) if index in held else None for index in backwards)
