"""What every sampling engine takes and gives: token ids in, token ids out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from cutaway.errors import UsageError

if TYPE_CHECKING:
    from cutaway.model import Edit

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn. Defaults are those of the thought-anchors card."""

    temperature: float = 0.6
    """Logits are divided by this; 0 means greedy."""
    top_p: float = 0.95
    """Smallest set of most likely tokens whose mass reaches this is kept; 1 keeps all."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    max_tokens: int = 256
    """A row that reaches this many new tokens ends with finish 'length'."""
    stop: tuple[str, ...] = ()
    """A row ends as soon as its own new text contains one of these strings; what began in the prefix does not count."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature={self.temperature}: must be 0 (greedy) or a larger number")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p}: must lie in (0, 1]")
        if self.top_k < 0:
            raise UsageError(f"top_k={self.top_k}: must be 0 (off) or larger")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens={self.max_tokens}: must be at least 1")


@dataclass(frozen=True)
class Request:
    """Continue ``prefix`` once for each seed."""

    prefix: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: Settings
    ban_first: int | None = None
    """Token that must not come first: a draw conditional on leaving a known text at this point."""

    @property
    def n(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Rollout:
    """One continuation: the new tokens only."""

    seed: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the model at temperature 1, in nats."""
    finish: Finish


@dataclass(frozen=True)
class Cost:
    """Tokens spent. ``reused`` counts prefix tokens whose keys and values, or whose whole rollout, came from store."""

    decoded: int = 0
    prefilled: int = 0
    reused: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.decoded + other.decoded, self.prefilled + other.prefilled, self.reused + other.reused)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.decoded - other.decoded, self.prefilled - other.prefilled, self.reused - other.reused)


@runtime_checkable
class Engine(Protocol):
    """Local and remote engines alike; one conformance suite runs over all of them."""

    @property
    def identity(self) -> str:
        """What is sampled: the weights' fingerprint, or the server's model name. Part of every stored rollout's key."""
        ...

    @property
    def cost(self) -> Cost:
        """Everything spent by this engine so far."""
        ...

    def stream(self, requests: Sequence[Request], edits: "Sequence[Edit]" = ()) -> Iterator[tuple[int, Rollout]]:
        """Yield ``(index of the request, rollout)`` as rows finish, in any order."""
        ...

    def token_probs(
        self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings
    ) -> "list[float] | None":
        """Probability that sampling with ``settings`` draws each continuation token; None where it cannot be known."""
        ...
