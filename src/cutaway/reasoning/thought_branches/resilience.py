"""Does removing an idea stick? Resilience and importance++ of a sentence (card, section 2).

For one sentence, independent runs, each:
 1. Cut the chain before the current target and draw a continuation. Its first sentence must not say the same as
    the original: a draw that does has removed nothing, so it is thrown away and drawn again; it never counts as
    a return. After ``tries`` such draws the run is undefined: the original is never put back in silence.
 2. Among all sentences from the original's place on, find the one most similar to the *original*. At or above the
    threshold the content has come back: one return, and that sentence is the next target.
 3. Otherwise it is gone, and the chain's outcome counts. A run with ``cap`` returns is censored there; so is one whose
    chain was cut at max_tokens, because what would have followed is unknown.

Resilience is the number of returns: a survival curve with its median and its mean up to the cap (Kaplan, Meier).
Importance++ compares the outcome where the sentence was kept with the outcome of runs where the content is gone.

The same question by rejection: of the free rollouts from the boundary, take those that never say it. They follow the
exact conditional distribution (runs of step 1 draw each removed sentence again where it stood, which weighs the
paths differently), but may be few: ``acceptance`` says how few. Repeating this at other thresholds shows how much
hangs on what "the same" means.

Limit: resilience under a weak embedder is a lower bound, since a rewording that it misses counts as gone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.chain import Chain, Effect, Ids, Pool, compare, start_of, texts_of
from cutaway.sampling import Rollout
from cutaway.stats import Interval, wilson
from cutaway.stats.survival import Survival, kaplan_meier

Status = Literal["gone", "capped", "cut", "undefined"]
AHEAD = 3
"""Up to 2 to this many draws at once for a run that keeps refusing, where others can use what it leaves."""
SWEEP = (0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Run:
    """One attempt to take a sentence away for good."""

    status: Status
    returns: int
    """How often the content came back."""
    outcome: str | None
    """Answer of the chain without the content; None unless gone."""
    draws: int
    """Continuations looked at."""
    rejected: int
    """Those whose first sentence said the same."""


@dataclass(frozen=True)
class Threshold:
    """Importance by rejection when "the same" begins at another cosine."""

    threshold: float
    acceptance: Interval
    """Share of free rollouts that never say it."""
    effect: Effect


@dataclass(frozen=True, repr=False)
class Resilience:
    """What happens when one sentence is taken away again and again."""

    sentence: int
    text: str
    runs: tuple[Run, ...]
    cap: int
    curve: Survival | None
    """P(more than k returns); None when every run is undefined."""
    mean: Interval | None
    """Mean number of returns, counted up to `cap`; its interval is on the log scale, since few runs return often."""
    acceptance: Interval
    """Share of draws that replaced the target by something else."""
    plus: Effect
    """Importance++: kept against gone after repeated removal."""
    conditional: Effect
    """Importance++ by rejection: kept against free rollouts that never say it."""
    sweep: tuple[Threshold, ...]

    def count(self, status: Status) -> int:
        """Number of runs with a status."""
        return sum(run.status == status for run in self.runs)

    def __repr__(self) -> str:
        returns = "undefined" if self.mean is None else f"{self.mean!r} returns"
        return f"Resilience(sentence {self.sentence + 1}, {returns}, importance++ {self.plus!r})"


@dataclass
class _Walk:
    """A run under way."""

    kept: Ids
    """Tokens after the prompt, up to the target."""
    told: list[tuple[int, str]]
    """(first token after the prompt, text) of sentences from the original's place up to the target."""
    returns: int = 0
    tries: int = 0
    draws: int = 0
    rejected: int = 0
    outcome: str | None = None
    status: Status | None = None


def resilience(
    pool: Pool,
    chain: Chain,
    sentence: int,
    *,
    runs: int = 30,
    n: int = 100,
    cap: int = 20,
    tries: int = 20,
    sweep: Sequence[float] = SWEEP,
    level: float = 0.95,
) -> Resilience:
    """Take one sentence away until it stays away; ``n`` free rollouts give the kept side and the rejection side.

    ``runs`` runs of at most ``cap`` returns; ``tries`` draws at most for each replacement.
    """
    if runs < 1 or cap < 1 or tries < 1:
        raise UsageError(f"runs={runs}, cap={cap}, tries={tries}: each at least 1")
    if not 0 <= sentence < chain.body:
        raise UsageError(f"sentence={sentence}: the chain has sentences 0..{chain.body - 1} that can be taken away")
    before = chain.trace.prefix(sentence)
    free = pool.first(before, n)
    pool.inherit(before, chain.said(sentence))
    kept = chain.answers(sentence + 1, pool.first(chain.trace.prefix(sentence + 1), n))
    done = _walk(pool, chain, sentence, runs, cap, tries)
    gone = [run.outcome for run in done if run.status == "gone" and run.outcome is not None]
    watched = [run for run in done if run.status != "undefined"]
    curve = (
        kaplan_meier([r.returns for r in watched], [r.status == "gone" for r in watched], level) if watched else None
    )
    draws = sum(run.draws for run in done)
    missing = f"none of {runs} runs got rid of it ({_tally(done)})"
    swept = [_rejected(chain, sentence, free, kept, t, level) for t in (*sweep, chain.threshold)]
    return Resilience(
        sentence=sentence,
        text=chain.sentences[sentence],
        runs=done,
        cap=cap,
        curve=curve,
        mean=None if curve is None else _mean(curve, _horizon(watched, cap)),
        acceptance=wilson(draws - sum(run.rejected for run in done), draws, level),
        plus=compare(kept, gone, chain.target, level=level, why=missing),
        conditional=swept[-1].effect,
        sweep=tuple(swept[:-1]),
    )


def _walk(pool: Pool, chain: Chain, sentence: int, runs: int, cap: int, tries: int) -> tuple[Run, ...]:
    """All runs side by side; the more draws runs at one place have refused, the more are drawn there at once."""
    original, prompt, used = chain.sentences[sentence], chain.trace.prompt, Counter[Ids]()
    walks = [_Walk(chain.kept(sentence), []) for _ in range(runs)]
    while active := [walk for walk in walks if walk.status is None]:
        sharing = Counter(walk.kept for walk in active)
        wanted = [2 ** min(walk.tries, AHEAD if sharing[walk.kept] > 1 else 0) for walk in active]
        ahead = Counter[Ids]()
        for walk, n in zip(active, wanted, strict=True):
            ahead[(*prompt, *walk.kept)] += n
        pool.many([(prefix, used[prefix] + n - 1) for prefix, n in ahead.items()])
        for walk, n in zip(active, wanted, strict=True):
            prefix = (*prompt, *walk.kept)
            for _ in range(n):
                _step(chain, walk, pool.next([prefix], used)[0], original, cap, tries)
                if walk.status is not None or walk.tries == 0:
                    break
    return tuple(
        Run(walk.status, walk.returns, walk.outcome, walk.draws, walk.rejected) for walk in walks if walk.status
    )


def _step(chain: Chain, walk: _Walk, rollout: Rollout, original: str, cap: int, tries: int) -> None:
    """Read one continuation; sets the walk's status when it is over."""
    texts = texts_of(rollout.ids, chain.decode)
    alike = chain.similarity(texts, original)
    walk.draws += 1
    if texts and alike[0] >= chain.threshold:
        walk.rejected += 1
        walk.tries += 1
        walk.status = "undefined" if walk.tries >= tries else None
        return
    walk.tries = 0
    # Passed-over sentences are searched too: what was less similar than an earlier target may still be the content.
    earlier = chain.similarity([text for _, text in walk.told], original)
    best_new = int(alike.argmax()) if len(alike) else -1
    best_old = int(earlier.argmax()) if len(earlier) else -1
    new = alike[best_new] if len(alike) else -1.0
    old = earlier[best_old] if len(earlier) else -1.0
    if max(new, old) < chain.threshold:
        walk.status = "cut" if rollout.finish == "length" else "gone"
        walk.outcome = chain.answer(walk.kept, rollout) if walk.status == "gone" else None
        return
    walk.returns += 1
    if walk.returns >= cap:
        walk.status = "capped"
        return
    if old >= new:
        walk.kept, walk.told = walk.kept[: walk.told[best_old][0]], walk.told[:best_old]
        return
    at = len(walk.kept)
    walk.told += [(at + start_of(rollout.ids, k, chain.decode), texts[k]) for k in range(best_new)]
    walk.kept = (*walk.kept, *rollout.ids[: start_of(rollout.ids, best_new, chain.decode)])


def _rejected(
    chain: Chain, sentence: int, free: Sequence[Rollout], kept: Sequence[str], threshold: float, level: float
) -> Threshold:
    original, never = chain.sentences[sentence], []
    for rollout in free:
        alike = chain.similarity(texts_of(rollout.ids, chain.decode), original)
        if (alike < threshold).all() and rollout.finish == "stop":
            never.append(rollout)
    why = f"none of {len(free)} free rollouts is without it"
    effect = compare(kept, chain.answers(sentence, never), chain.target, level=level, why=why)
    return Threshold(threshold, wilson(len(never), len(free), level), effect)


def _horizon(watched: Sequence[Run], cap: int) -> int:
    """How far the curve is known: to the cap, unless the last runs were cut at max_tokens before it."""
    last = max(watched, key=lambda run: (run.returns, run.status != "gone"))
    return cap if last.status == "gone" else max(1, last.returns)


def _mean(curve: Survival, horizon: int) -> Interval:
    """Area under the curve; Student's interval for its logarithm, or the curve's own where all runs were alike."""
    found = curve.restricted_mean(horizon)
    if found.value == 0 or len(curve.times) == 1:
        return found
    tail = (1 + found.level) / 2
    half = max(found.value - found.low, found.high - found.value)
    wider = float(stats.t.ppf(tail, curve.n - 1) / stats.norm.ppf(tail)) if curve.n > 1 else 1.0
    factor = float(np.exp(half * wider / found.value))
    return Interval(found.value, found.value / factor, min(float(horizon), found.value * factor), found.n, found.level)


def _tally(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    words = {"capped": "still there at the cap", "cut": "cut at max_tokens", "undefined": "no other sentence drawn"}
    return ", ".join(f"{counts[status]} {text}" for status, text in words.items() if counts[status])  # type: ignore[index]
