"""Free rollouts that every method of this room shares.

A rollout's seed is a function of its prefix, its draw number and the run's seed alone. Two methods that ask for
rollouts of the same prefix under the same settings therefore ask for the same ones, and a branch tree draws them once.
"""

import hashlib
from collections.abc import Callable, Sequence

from cutaway.errors import UsageError
from cutaway.sampling import BranchTree, Engine, Request, Rollout, Settings, sample, split_text

Report = Callable[[int, int, str], None]
"""Called with (done, planned, what is counted)."""


def rollout_seeds(prefix: Sequence[int], n: int, seed: int = 0) -> tuple[int, ...]:
    """The seeds of the first ``n`` free rollouts of ``prefix``."""
    digest = hashlib.blake2b(repr((seed, tuple(prefix))).encode(), digest_size=8).digest()
    first = int.from_bytes(digest) >> 1
    return tuple(first + k for k in range(n))


def draw_rollouts(
    engine: Engine,
    prefixes: Sequence[Sequence[int]],
    n: int | Sequence[int],
    settings: Settings,
    *,
    seed: int = 0,
    tree: BranchTree | None = None,
    report: Report = lambda done, planned, note: None,
) -> list[list[Rollout]]:
    """Draw ``n`` rollouts (or ``n[i]``) of each prefix, in draw order; a ``tree`` supplies those it holds.

    The same prefix given twice gets the same rollouts twice. Raises UsageError for greedy settings with n > 1.
    """
    counts = [n] * len(prefixes) if isinstance(n, int) else list(n)
    if settings.temperature == 0 and any(count > 1 for count in counts):
        raise UsageError("temperature=0 leaves nothing to resample; use a temperature above 0 or n=1")
    requests = [
        Request(tuple(prefix), rollout_seeds(prefix, count, seed), settings)
        for prefix, count in zip(prefixes, counts, strict=True)
    ]
    asked = [(i, request) for i, request in enumerate(requests) if request.seeds]
    found: list[dict[int, Rollout]] = [{} for _ in requests]
    given = [request for _, request in asked]
    stream = sample(tree, engine, given) if tree is not None else engine.stream(given)
    for done, (index, rollout) in enumerate(stream, 1):
        found[asked[index][0]][rollout.seed] = rollout
        report(done, sum(counts), "rollouts")
    return [[rollouts[s] for s in request.seeds] for rollouts, request in zip(found, requests, strict=True)]


def first_sentence(text: str) -> str:
    """The first sentence of ``text``, trimmed; empty when there is none."""
    spans = split_text(text)
    return text[slice(*spans[0])].strip() if spans else ""
