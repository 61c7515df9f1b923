"""Where does a hidden hint act? Chains written under it, pasted where it is absent (card, section 4).

With chains M that were written under the hint, and their first part M_i up to a cut:

    base      P(X | no hint)                       free rollouts of the plain prompt
    hinted    P(X | hint, M_i)                     the chain goes on under the hint
    moved     P(X | no hint, M_i)                  the transplant curve
    indirect  moved - base                         what the written part carries by itself (natural indirect effect)
    direct    hinted - moved                       what the hint still does once M_i is written (natural direct effect)
    total     P(X | hint) - base                   measured apart, from free rollouts of both prompts

Over chains drawn freely under the hint, total = direct + indirect at every cut; `Mediation.gap` is the measured
difference. Over *selected* chains (such as those that end on X) it is not, and the gap then shows the selection.

The converse (`sandwich`): at each place of a hint-free chain draw one sentence under the hint, put it into the
hint-free text and go on without the hint; against going on with a hint-free sentence this is the direct effect of
one sentence. Every drawn sentence keeps its own continuation, also when two are the same words.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.chain import Chain, Effect, Ids, Pool, compare, whole_sentence
from cutaway.stats import Interval, newcombe, wilson

FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SENTENCE = 64
UNSEEN = 2
"""Chains added to the spread between chains; with 2 the intervals of a few skewed chains still cover as they say."""


@dataclass(frozen=True)
class Cut:
    """Rates of the hinted answer with the first part of each chain in place."""

    fraction: float
    """Share of a chain's sentences before the cut; the sentence that states the answer is never pasted."""
    moved: Interval
    hinted: Interval
    band: tuple[float, float]
    """Interval of `moved` that holds for all cuts together."""
    indirect: Interval
    direct: Interval


@dataclass(frozen=True, repr=False)
class Mediation:
    """A transplant curve with the effects it splits into."""

    answer: str
    cuts: tuple[Cut, ...]
    base: Interval
    total: Interval
    chains: int
    n: int
    """Rollouts for each chain, cut and prompt."""
    per_chain: tuple[tuple[float, ...], ...] = field(default=())
    """`Cut.moved` of each chain."""

    def gap(self, cut: int) -> Interval:
        """Direct plus indirect minus total: around 0 when the chains were drawn freely under the hint.

        The hint-free rates cancel: left is the rate under the hint after the cut, minus that of its bare prompt.
        """
        return _difference(self.cuts[cut].hinted, self.cuts[0].hinted)

    def __repr__(self) -> str:
        last = self.cuts[-1]
        return (
            f"Mediation({self.chains} chains, total {self.total!r}, through the whole chain {last.indirect!r}, "
            f"besides it {last.direct!r})"
        )


@dataclass(frozen=True)
class Swap:
    """One place of a hint-free chain with sentences drawn under the hint."""

    place: int
    sentences: tuple[str, ...]
    outcomes: tuple[str, ...]
    """Answer of the continuation of each sentence, in the same order."""
    failed: int
    """Draws without a whole sentence; left out."""
    effect: Effect
    """Hinted sentence against hint-free continuation."""


def transplant(
    pool: Pool,
    chains: Sequence[Chain],
    prompt: Ids,
    answer: str,
    *,
    n: int = 50,
    n_free: int | None = None,
    fractions: Sequence[float] = FIFTHS,
    level: float = 0.95,
) -> Mediation:
    """Paste hinted ``chains`` (their trace's prompt has the hint) under the hint-free ``prompt``, ``n`` times a cut.

    ``n_free`` rollouts of both bare prompts (default: ``n`` for each chain). The first fraction must be 0.
    """
    _check(chains, prompt, fractions)
    hint, used = chains[0].trace.prompt, Counter[Ids]()
    n_free = n_free or n * len(chains)
    base_k = _count(pool, chains[0], prompt, (), answer, n_free)
    hint_k = _count(pool, chains[0], hint, (), answer, n_free)
    shares = np.stack([_shares(pool, chains, f, before, prompt, answer, n, used) for before, f in pairwise(fractions)])
    shares = shares.transpose(1, 2, 0)  # [chain, (moved, hinted), cut]
    base, free = wilson(base_k, n_free, level), wilson(hint_k, n_free, level)
    together = 1 - (1 - level) / len(fractions)
    edge = wilson(base_k, n_free, together)
    start = Interval(0.0, 0.0, 0.0, n_free, level)
    total = newcombe(hint_k, n_free, base_k, n_free, level)
    cuts_out = [Cut(0.0, base, free, (edge.low, edge.high), start, total)]
    for j, fraction in enumerate(fractions[1:]):
        moved, hinted = shares[:, 0, j], shares[:, 1, j]
        rate, other, wide = _rate(moved, n, level), _rate(hinted, n, level), _rate(moved, n, together)
        alike = _correlation(moved, hinted)
        cuts_out.append(
            Cut(
                float(fraction),
                rate,
                other,
                (wide.low, wide.high),
                _difference(rate, base),
                _difference(other, rate, alike),
            )
        )
    curves = tuple((base.value, *map(float, row[0])) for row in shares)
    return Mediation(answer, tuple(cuts_out), base, total, len(chains), n, curves)


def sandwich(pool: Pool, chain: Chain, hint: Ids, *, n: int = 30, level: float = 0.95) -> tuple[Swap, ...]:
    """At each place of a hint-free ``chain`` put in ``n`` sentences drawn after the ``hint`` prompt, one at a time."""
    short, prompt, used, out = pool.shortened(SENTENCE), chain.trace.prompt, Counter[Ids](), []
    for i in range(chain.body):
        kept = chain.kept(i)
        drawn = [whole_sentence(r, chain.decode, SENTENCE) for r in short.first((*hint, *kept), n)]
        said = [each for each in drawn if each is not None]
        rollouts = pool.next([(*prompt, *kept, *each) for each in said], used)
        outcomes = [chain.answer((*kept, *each), r) for each, r in zip(said, rollouts, strict=True)]
        plain = chain.answers(i, pool.first(chain.trace.prefix(i), n))
        why = f"none of {n} draws under the hint is a whole sentence"
        effect = compare(outcomes, plain, chain.target, level=level, seed=i, why=why)
        texts = tuple(chain.decode(each).strip() for each in said)
        out.append(Swap(i, texts, tuple(outcomes), n - len(said), effect))
    return tuple(out)


def _check(chains: Sequence[Chain], prompt: Ids, fractions: Sequence[float]) -> None:
    if not chains:
        raise UsageError("chains is empty: give at least one chain that was written under the hint")
    hint = chains[0].trace.prompt
    if any(chain.trace.prompt != hint for chain in chains):
        raise UsageError("the chains have different prompts; give chains of one hinted prompt")
    if hint == prompt:
        raise UsageError("the chains' prompt and the hint-free prompt are the same; there is no hint to mediate")
    if not fractions or fractions[0] != 0 or sorted(set(fractions)) != list(fractions) or fractions[-1] > 1:
        raise UsageError(f"fractions={tuple(fractions)}: rising from 0, at most 1")
    if short := [chain for chain in chains if chain.body < 1]:
        raise UsageError(f"{len(short)} chain(s) have no sentence before the one that states the answer")


def _shares(
    pool: Pool,
    chains: Sequence[Chain],
    fraction: float,
    before: float,
    prompt: Ids,
    answer: str,
    n: int,
    used: Counter[Ids],
) -> Float[np.ndarray, "chain 2"]:
    """Share of the answer after one cut of every chain, without and with the hint.

    Chains that begin alike share a prefix, and each still gets draws of its own.
    """
    asked = []
    for chain in chains:
        start, end = (chain.kept(round(f * chain.body)) for f in (before, fraction))
        for given in (prompt, chain.trace.prompt):
            if len(end) > len(start):
                pool.inherit((*given, *start), end[len(start) :])
            asked += [(chain, given, end)] * n
    drawn = pool.next([(*given, *kept) for _, given, kept in asked], used)
    hits = [chain.answer(kept, rollout) == answer for (chain, _, kept), rollout in zip(asked, drawn, strict=True)]
    return np.array(hits, dtype=float).reshape(len(chains), 2, n).mean(2)


def _count(pool: Pool, chain: Chain, prompt: Ids, kept: Ids, answer: str, n: int) -> int:
    return sum(chain.answer(kept, rollout) == answer for rollout in pool.first((*prompt, *kept), n))


def _rate(shares: Float[np.ndarray, " chain"], n: int, level: float) -> Interval:
    """Mean of the chains' shares, ``n`` draws each, with Wilson's interval at as many draws as the mean is worth.

    The spread between the chains is taken with `UNSEEN` more of them, each all 0 or all 1: chains that are alike do
    not show that every chain is. One chain shows no spread; what is said of it holds for that chain alone.
    """
    chains, p = len(shares), float(shares.mean())
    alone = p * (1 - p)
    spread = (float(np.sum((shares - p) ** 2)) / alone if alone > 0 else 0.0) + UNSEEN
    worth = chains * n / (max(1.0, n * spread / chains) if chains > 1 else 1.0)
    found = wilson(p * worth, worth, level)
    return Interval(p, found.low, found.high, chains, level)


def _difference(a: Interval, b: Interval, correlation: float = 0.0) -> Interval:
    """``a`` minus ``b``, estimates that vary together, from their own intervals (Zou 2007; Newcombe's when 0)."""

    def reach(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x**2 + y**2 - 2 * correlation * x * y)))

    value = a.value - b.value
    low, high = reach(a.value - a.low, b.high - b.value), reach(a.high - a.value, b.value - b.low)
    return Interval(value, value - low, value + high, a.n, a.level)


def _correlation(a: Float[np.ndarray, " chain"], b: Float[np.ndarray, " chain"]) -> float:
    """How far the means vary together, being of the same chains: never below 0, and shrunk when the chains are few."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return max(0.0, float(np.corrcoef(a, b)[0, 1])) * (1 - 2 / len(a))
