"""Who writes to the residual stream, who reads from it, and which connections (edges) that makes.

Writers, in the order in which they write: ``embed``, then for each layer its heads ``z.L.H`` and its MLP
``mlp_out.L``. Readers: for each layer the query, key and value inputs of its heads ``q.L.H`` ``k.L.H`` ``v.L.H``
and the input of its MLP ``mlp_in.L``; last ``logits``. The residual stream is a sum, so what a reader receives
from one writer can be exchanged without touching what others receive.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Bool

from cutaway.errors import UsageError, nearest

if TYPE_CHECKING:
    from cutaway.model import Model

Grouping = Literal["shared", "expanded", "whole"]
"""How heads read. ``shared``: a key and a value reader for each key-value head. ``expanded``: for each query head.
``whole``: one reader for each query head, its query, key and value together (named ``head_in.L.H``)."""


@dataclass(frozen=True)
class Wiring:
    """The writers, readers and legal edges of one model; everything follows from these few numbers.

    >>> Wiring(n_layers=12, n_heads=12, n_kv_heads=12).n_edges  # GPT-2 Small
    32491
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    grouping: Grouping | str = "shared"
    parallel: bool = False
    """Attention and MLP of a layer read the same stream, so its heads do not write to its MLP."""

    def __post_init__(self) -> None:
        if self.grouping not in get_args(Grouping):
            raise UsageError(f"grouping={self.grouping!r}{nearest(self.grouping, get_args(Grouping))}")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(f"{self.n_heads} heads cannot share {self.n_kv_heads} key-value heads evenly")

    @classmethod
    def of(cls, model: "Model", grouping: Grouping | str = "shared") -> "Wiring":
        """Return the wiring of ``model``; UsageError for blocks of unknown shape."""
        block: Any = model.layout.blocks[0]
        parallel = bool(getattr(block, "use_parallel_residual", False))
        return cls(model.n_layers, model.n_heads, model.n_kv_heads, grouping, parallel)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [f"z.{layer}.{head}" for head in range(self.n_heads)] + [f"mlp_out.{layer}"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        kv = self.n_heads if self.grouping == "expanded" else self.n_kv_heads
        sizes = {"q": self.n_heads, "k": kv, "v": kv} if self.grouping != "whole" else {"head_in": self.n_heads}
        names = []
        for layer in range(self.n_layers):
            names += [f"{kind}.{layer}.{head}" for kind, size in sizes.items() for head in range(size)]
            names.append(f"mlp_in.{layer}")
        return (*names, "logits")

    @property
    def readers_per_layer(self) -> int:
        return (len(self.readers) - 1) // self.n_layers

    def written_before(self, reader: int) -> int:
        """Return how many writers, counted from the first, a reader can read from."""
        layer, place = divmod(reader, self.readers_per_layer)
        if layer == self.n_layers:
            return len(self.writers)
        mlp = place == self.readers_per_layer - 1
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if mlp and not self.parallel else 0)

    @cached_property
    def legal(self) -> Bool[np.ndarray, "writer reader"]:
        """True where an edge exists."""
        before = np.array([self.written_before(reader) for reader in range(len(self.readers))])
        return np.arange(len(self.writers))[:, None] < before[None]

    @property
    def n_edges(self) -> int:
        return int(self.legal.sum())

    def writer(self, name: str) -> int:
        """Return a writer's index; UsageError with the nearest name when there is none."""
        return _index(name, self.writers, "writer")

    def reader(self, name: str) -> int:
        """Return a reader's index; UsageError with the nearest name when there is none."""
        return _index(name, self.readers, "reader")

    def outputs_of(self, reader: int) -> tuple[int, ...]:
        """Return the writers whose output depends on this reader directly: its own head, heads or MLP."""
        layer, place = divmod(reader, self.readers_per_layer)
        if layer == self.n_layers:
            return ()
        first = 1 + layer * (self.n_heads + 1)
        if place == self.readers_per_layer - 1:
            return (first + self.n_heads,)
        if place < self.n_heads or self.grouping != "shared":
            return (first + place % self.n_heads,)
        group = self.n_heads // self.n_kv_heads
        head = (place - self.n_heads) % self.n_kv_heads * group
        return tuple(range(first + head, first + head + group))

    def to_dict(self) -> dict[str, Any]:
        names = ("n_layers", "n_heads", "n_kv_heads", "grouping", "parallel")
        return {name: getattr(self, name) for name in names}


def _index(name: str, names: tuple[str, ...], what: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise UsageError(f"no {what} {name!r}{nearest(name, names)}") from None
