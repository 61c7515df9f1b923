"""Where rollouts leave a trace, and how the answer curve mixes what they find there.

Let q_t be the probability that sampling draws the trace's own token t. A rollout from boundary i repeats sentence
i with probability stay_i = prod q_t (known exactly from one forward pass), else it leaves the trace inside that
sentence, with a known distribution over the token where it does. Let W_i be the answer distribution of rollouts
that leave in sentence i. Then

    V_i = stay_i V_{i+1} + (1 - stay_i) W_i,      V_n = the trace's own answer,

so every V_i is a known mixture of the W_j, j >= i. Each W_j is estimated from draws that are *forced* to leave in
sentence j: they decode nothing that the trace already holds, they are independent across sentences, and each
serves every earlier boundary. This is the card's "exact reuse" with the membership of every rollout averaged out.

Without token probabilities (a remote engine, or reuse switched off) the same arithmetic runs with stay_i = 0 and
draws that start freely at the boundary: then W_i is V_i itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cutaway.sampling import Request, Settings


@dataclass(frozen=True)
class Strata:
    """One stratum a sentence: the rollouts that leave the trace inside it."""

    ids: tuple[int, ...]
    """The trace's tokens."""
    spans: tuple[tuple[int, int], ...]
    stay: Float[np.ndarray, " sentence"]
    exits: tuple[Float[np.ndarray, " _"], ...] | None
    """For each sentence, cumulative probability of the token at which a leaving rollout leaves; None: free draws."""
    weights: Float[np.ndarray, "boundary sentence"]
    """V[i] = weights[i] @ W + terminal[i] * (the trace's own answer)."""
    terminal: Float[np.ndarray, " boundary"]

    @property
    def n(self) -> int:
        return len(self.spans)

    def request(self, prompt: Sequence[int], sentence: int, draw: int, seed: int, settings: Settings) -> Request:
        """The request of the ``draw``-th rollout of a sentence's stratum: a pure function of its arguments."""
        start = self.spans[sentence][0]
        banned = None
        if self.exits is not None:
            uniform = np.random.Generator(np.random.Philox(key=_seed(seed, sentence, draw, "exit"))).random()
            edges = self.exits[sentence]
            start += int(np.searchsorted(edges, uniform * edges[-1], side="right"))
            banned = self.ids[start]
        # The whole text keeps the length limit that the trace itself was sampled under.
        room = max(1, settings.max_tokens - start)
        limits = Settings(settings.temperature, settings.top_p, settings.top_k, room, settings.stop)
        prefix = (*prompt, *self.ids[:start])
        return Request(prefix, (_seed(seed, sentence, draw, "roll"),), limits, banned)


def build_strata(ids: Sequence[int], spans: Sequence[tuple[int, int]], probs: Sequence[float] | None) -> Strata:
    """Strata of a trace from the probabilities of its tokens; ``probs=None`` gives free draws at each boundary."""
    n = len(spans)
    weights, terminal = np.zeros((n + 1, n)), np.zeros(n + 1)
    terminal[n] = 1.0
    stay, exits = np.zeros(n), []
    for i in range(n - 1, -1, -1):
        if probs is not None:
            q = np.asarray(probs[slice(*spans[i])], dtype=float)
            reach = np.concatenate([[1.0], np.cumprod(q)])
            stay[i] = reach[-1]
            exits.append(np.cumsum(reach[:-1] * (1 - q)))
        weights[i] = stay[i] * weights[i + 1]
        weights[i, i] = 1 - stay[i]
        terminal[i] = stay[i] * terminal[i + 1]
    frozen_exits = tuple(reversed(exits)) if probs is not None else None
    return Strata(tuple(ids), tuple(spans), stay, frozen_exits, weights, terminal)


def _seed(*parts: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
