"""A small real sampler for tests of the tree: a fixed Markov chain, tokens a function of key and seed alone.

Run as a program it samples into a tree until it is done or killed: ``python chain_engine.py FOLDER DELAY``.
"""

import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cutaway.sampling.tree import BranchTree, sample
from cutaway.sampling.types import Cost, Request, Rollout, Settings

VOCAB = 50


class ChainEngine:
    identity = "chain"

    def __init__(self, delay: float = 0.0) -> None:
        self.cost = Cost()
        self.delay = delay

    def stream(self, requests: Sequence[Request], edits: Sequence[Any] = ()) -> Iterator[tuple[int, Rollout]]:
        for index, request in enumerate(requests):
            for seed in request.seeds:
                time.sleep(self.delay)
                yield index, self.draw(request, seed)

    def draw(self, request: Request, seed: int) -> Rollout:
        rng = random.Random(repr((replace(request, seeds=()), seed)))
        ids = [rng.randrange(VOCAB) for _ in range(rng.randint(1, request.settings.max_tokens))]
        self.cost += Cost(decoded=len(ids))
        logprobs = tuple(-rng.random() * 9 for _ in ids)
        full = len(ids) == request.settings.max_tokens
        return Rollout(seed, tuple(ids), logprobs, "length" if full else "stop")

    def token_probs(self, prefix: object, continuation: object, settings: Settings) -> None:
        return None


def requests() -> list[Request]:
    """Four requests over two prefixes that share their beginning, 240 rollouts in all."""
    settings = Settings(max_tokens=40, stop=("\n",))
    text = tuple(range(1, 30))
    return [Request(text[:length], tuple(range(60)), settings, ban) for length in (10, 29) for ban in (None, 3)]


def main() -> None:
    with BranchTree.open(sys.argv[1], "chain") as tree:
        for _ in sample(tree, ChainEngine(float(sys.argv[2])), requests()):
            pass


if __name__ == "__main__":
    main()
