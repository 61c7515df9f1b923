"""Counterfactual importance of sentences for a decision (card, section 1).

At each boundary ``n`` rollouts. Those from before sentence S whose first sentence does not say the same are the
"changed" side, rollouts from after S the "kept" side; the two never share a rollout. Where another sentence is all
but never drawn (share at or below 0.05) the whole boundary before S stands in: plain resampling, and the result says
so.
"""

from dataclasses import dataclass

from cutaway.reasoning.thought_branches.chain import Chain, Effect, Pool, compare, constant, plain
from cutaway.sampling import split_text
from cutaway.stats import Interval, wilson

FEW = 0.05


@dataclass(frozen=True)
class Importance:
    """What one sentence does to the outcome, kept against changed."""

    sentence: int
    text: str
    differ: Interval
    """Share of draws that say something else instead."""
    resampled: bool
    """True: too few say something else, so the sentence is compared with plain resampling."""
    effect: Effect
    before: Interval
    after: Interval
    """Rate of the target answer before and after the sentence."""


def boundaries(pool: Pool, chain: Chain, n: int) -> list[list[str]]:
    """Answers of ``n`` rollouts at the boundary before each examined sentence, and after the last of them."""
    out = []
    for i in range(chain.body + 1):
        if i:
            pool.inherit(chain.trace.prefix(i - 1), chain.said(i - 1))
        out.append(chain.answers(i, pool.first(chain.trace.prefix(i), n)))
    return out


def importance(pool: Pool, chain: Chain, *, n: int = 100, level: float = 0.95) -> tuple[Importance, ...]:
    """Importance of every examined sentence of the chain, from ``n`` rollouts a boundary."""
    answers = boundaries(pool, chain, n)
    nothing = constant(answers)
    out = []
    for i in range(chain.body):
        texts = [_first(chain, rollout.ids) for rollout in pool.first(chain.trace.prefix(i), n)]
        differs = chain.similarity(texts, chain.sentences[i]) < chain.threshold
        resampled = differs.mean() <= FEW
        changed = [a for a, other in zip(answers[i], differs, strict=True) if other or resampled]
        effect = compare(answers[i + 1], changed, chain.target, level=level, seed=i)
        if nothing:
            effect = Effect(None, None, None, effect.n_with, effect.n_without, nothing)
        out.append(
            Importance(
                sentence=i,
                text=chain.sentences[i],
                differ=wilson(int(differs.sum()), n, level),
                resampled=bool(resampled),
                effect=effect,
                before=wilson(answers[i].count(chain.target), n, level),
                after=wilson(answers[i + 1].count(chain.target), n, level),
            )
        )
    return tuple(out)


def _first(chain: Chain, ids: tuple[int, ...]) -> str:
    text = chain.decode(ids)
    spans = split_text(text)
    return plain(text[slice(*spans[0])]) if spans else ""
