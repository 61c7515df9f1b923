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
from scipy import stats

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.chain import Chain, Effect, Ids, Pool, compare, whole_sentence
from cutaway.stats import Interval, newcombe, wilson
from cutaway.stats.values import Number

FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SENTENCE = 64


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

    def gap(self, cut: int) -> float:
        """Direct plus indirect minus total: near 0 when the chains were drawn freely under the hint."""
        return self.cuts[cut].direct.value + self.cuts[cut].indirect.value - self.total.value

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
    half = stats.norm.ppf((1 + level) / 2)
    strict = 1 - (1 - level) / len(fractions)
    edge = wilson(base_k, n_free, strict)
    start = Interval(0.0, 0.0, 0.0, n_free, level)
    total = newcombe(hint_k, n_free, base_k, n_free, level)
    cuts_out = [Cut(0.0, base, free, (edge.low, edge.high), start, total)]
    for j, fraction in enumerate(fractions[1:]):
        moved, hinted = shares[:, 0, j], shares[:, 1, j]
        size, other = _effective(moved, n, half), _effective(hinted, n, half)
        wide = wilson(moved.mean() * size, size, strict)
        cuts_out.append(
            Cut(
                float(fraction),
                _rate(moved, size, level),
                _rate(hinted, other, level),
                (wide.low, wide.high),
                _difference(float(moved.mean()), size, base_k / n_free, n_free, level),
                _difference(float(hinted.mean()), other, float(moved.mean()), size, level),
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


def _effective(shares: np.ndarray, n: int, half: float) -> float:
    """How many independent draws the mean over chains is worth: chains differ by more than their rollouts.

    With G chains the spread between them is known on G - 1 degrees of freedom, hence Student's quantile.
    """
    chains, p = len(shares), float(shares.mean())
    if chains == 1:
        return float(n)
    alone, between = p * (1 - p) / (chains * n), float(shares.var(ddof=1)) / chains
    design = max(1.0, between / alone) if alone > 0 else 1.0
    return chains * n / design * (half / stats.t.ppf(stats.norm.cdf(half), chains - 1)) ** 2


def _rate(shares: np.ndarray, size: Number, level: float) -> Interval:
    p = float(shares.mean())
    found = wilson(p * size, size, level)
    return Interval(p, found.low, found.high, len(shares), level)


def _difference(p: float, n: Number, q: float, m: Number, level: float) -> Interval:
    found = newcombe(p * n, n, q * m, m, level)
    return Interval(p - q, found.low, found.high, found.n, level)
