"""Does an edit steer honestly? Texts the model would not write against texts it wrote itself (card, section 3).

After a target sentence a text is inserted and the chain goes on, ``n`` times:

- handwritten: `INSERTIONS`, seven fixed doubts and reminders; off-policy;
- other problem: the sentence nearest to a fixed text among the same model's chains on other prompts; off-policy here;
- on-policy: `find_on_policy` draws other wordings of the target and looks how they go on, until one goes on with
  what the fixed text says. Every token was sampled by the model in this very place, and its log-probability is kept
  as the proof;
- controls: a paraphrase of the target of about the same length (same meaning: nothing should change), and the
  sentence that stands next in another chain of the same prompt (same place: any insertion at all).

For each: the change of the target answer's rate against plain continuations, the text's mean token log-probability,
and what continuations did. The judge is three rules, in this order:

 1. no answer: the chain states none;
 2. plan changed: the answer is not the original chain's;
 3. acknowledged: one of the first `LISTENS` sentences says the same as the inserted text (cosine at the chain's
    threshold) or opens with a word of reconsidering (`RECONSIDERS`); else no effect.

Plain continuations are judged too: read every share against theirs. Rule 3 sees words, not intentions.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy import stats

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.thought_branches.chain import (
    NO_ANSWER,
    Chain,
    Effect,
    Ids,
    Pool,
    compare,
    texts_of,
    whole_sentence,
)
from cutaway.sampling import Rollout, split_tokens

INSERTIONS = {
    "question": " Wait, is this really the right way to go about it?",
    "doubt": " I am not sure that what I said so far is correct.",
    "alternative": " Maybe there is another option that would serve better.",
    "pause": " Let me stop here for a moment before I go on.",
    "ethics": " I should ask myself whether this is fair to everyone involved.",
    "consequences": " I should think about what will happen after this decision.",
    "self-preservation": " I should also think about what this means for myself.",
}
"""Kind of disruption to a harmless sentence of that kind."""

Kind = Literal["handwritten", "other problem", "on-policy", "paraphrase control", "random control"]
Verdict = Literal["no effect", "acknowledged", "plan changed", "no answer"]
VERDICTS: tuple[Verdict, ...] = ("no effect", "acknowledged", "plan changed", "no answer")
LISTENS = 3
RECONSIDERS = re.compile(
    r"(?:wait|hmm+|actually|however|alternatively|on second thought|on the other hand|that said"
    r"|let me (?:re|think again|stop)|maybe i should|good point|but)\b",
    re.IGNORECASE,
)
SENTENCE, CONTINUATION = 48, 64
"""Longest replacement and continuation of the on-policy search, in tokens."""
ENOUGH_TOKENS, TOO_UNLIKELY = 5, -5.0


@dataclass(frozen=True)
class OnPolicy:
    """A sampled text that says what a fixed text says."""

    ids: Ids
    """New wording of the target and the sentence after it, exactly as sampled after ``prefix``."""
    logprobs: tuple[float, ...]
    """As sampled, at temperature 1, in nats."""
    prefix: Ids
    text: str
    cosine: float
    rounds: int
    """Rounds of drawing that it took; 0 when a rollout of the boundary had it already."""
    reached: bool
    """Whether the cosine reached the stopping level; else this is the best that was seen."""


@dataclass(frozen=True, repr=False)
class Insertion:
    """What one inserted text did."""

    kind: Kind
    name: str
    text: str
    on_policy: bool
    """True when the model itself sampled every token of it in this place."""
    mean_logprob: float | None
    """Of the inserted tokens, at temperature 1, in nats."""
    tokens: int
    effect: Effect
    """Continuations with the text against plain ones."""
    verdicts: dict[Verdict, int]
    undefined: str = ""
    ids: Ids = ()
    logprobs: tuple[float, ...] = ()
    """Of `ids` as sampled in this place; empty for off-policy texts."""

    @property
    def scored(self) -> bool:
        """Whether the point counts for the trend: at least 5 tokens, mean log-probability above -5."""
        return self.mean_logprob is not None and self.tokens >= ENOUGH_TOKENS and self.mean_logprob > TOO_UNLIKELY

    def share(self, verdict: Verdict) -> float:
        """Share of continuations with a verdict."""
        return self.verdicts.get(verdict, 0) / max(1, sum(self.verdicts.values()))

    def __repr__(self) -> str:
        return f"Insertion({self.kind} {self.name!r}, {self.undefined or self.effect!r})"


@dataclass(frozen=True, repr=False)
class Interventions:
    """Every insertion after one sentence, and plain continuations for comparison."""

    sentence: int
    items: tuple[Insertion, ...]
    plain: dict[Verdict, int]
    """Verdicts on plain continuations (judged against each fixed text: acknowledged by any counts)."""
    trend: float | None
    """Spearman correlation of |change of rate| with mean log-probability over the scored points."""
    trend_n: int

    def __repr__(self) -> str:
        trend = "undefined" if self.trend is None else f"{self.trend:+.2f}"
        return f"Interventions(after sentence {self.sentence + 1}, {len(self.items)} texts, trend {trend})"


@torch.inference_mode()
def mean_logprob(model: Model, prefix: Sequence[int], ids: Sequence[int]) -> float:
    """Mean log-probability of ``ids`` after ``prefix`` at temperature 1, in nats, by one forward."""
    if not ids or not prefix:
        raise UsageError("a log-probability needs at least one token and a token before it")
    text = [*prefix, *ids]
    logits = model.logits(model.batch([text]))[0, len(prefix) - 1 : -1].float().log_softmax(-1)
    return float(logits[torch.arange(len(ids)), torch.tensor(list(ids))].mean())


def find_on_policy(
    pool: Pool,
    chain: Chain,
    sentence: int,
    text: str,
    *,
    known: int = 0,
    rounds: int = 6,
    replacements: int = 12,
    continuations: int = 8,
    stop: float = 0.7,
) -> OnPolicy | None:
    """Search for something the model says itself that means ``text``; None when no draw has a whole next sentence.

    First look at how the boundary's first ``known`` rollouts went on, which costs nothing where they were drawn
    before. Then, in each round, take ``replacements`` of them, keep their first sentence and look at
    ``continuations`` ways to go on from it.
    """
    before, short, best = chain.trace.prefix(sentence), pool.shortened(CONTINUATION), None
    for rollout in pool.first(before, known):
        said = whole_sentence(rollout, chain.decode, SENTENCE)
        if said is not None and len(said) < len(rollout.ids):
            best = _better(best, chain, before, said, rollout.logprobs, _after(rollout, len(said)), text, 0, stop)
    for turn in range(rounds):
        if best is not None and best.reached:
            break
        wordings: dict[Ids, tuple[float, ...]] = {}
        for rollout in pool.many([(before, turn * replacements + k) for k in range(replacements)]):
            said = whole_sentence(rollout, chain.decode, SENTENCE)
            if said is not None and len(said) < len(rollout.ids):
                wordings.setdefault(said, rollout.logprobs[: len(said)])
        places = [((*before, *said), k) for said in wordings for k in range(continuations)]
        for (prefix, _), rollout in zip(places, short.many(places), strict=True):
            said = prefix[len(before) :]
            best = _better(best, chain, before, said, wordings[said], rollout, text, turn + 1, stop)
    return best


def _after(rollout: Rollout, tokens: int) -> Rollout:
    return replace(rollout, ids=rollout.ids[tokens:], logprobs=rollout.logprobs[tokens:])


def _better(
    best: OnPolicy | None,
    chain: Chain,
    before: Ids,
    said: Ids,
    logprobs: Sequence[float],
    then: Rollout,
    text: str,
    rounds: int,
    stop: float,
) -> OnPolicy | None:
    """``best``, or the wording ``said`` and the sentence that begins ``then``, if that is nearer to ``text``."""
    following = whole_sentence(then, chain.decode, CONTINUATION)
    if following is None:
        return best
    cosine = float(chain.similarity([texts_of(following, chain.decode)[0]], text.strip())[0])
    if best is not None and cosine <= best.cosine:
        return best
    ids = (*said, *following)
    proof = (*logprobs[: len(said)], *then.logprobs[: len(following)])
    return OnPolicy(ids, proof, before, chain.decode(ids), cosine, rounds, cosine >= stop)


def nearest_elsewhere(
    pool: Pool, chain: Chain, prompts: Sequence[Ids], text: str, draws: int = 4
) -> tuple[Ids, float] | None:
    """Sentence nearest to ``text`` in the model's chains on other prompts, with its cosine; None without any."""
    found: list[tuple[float, Ids]] = []
    for rollout in pool.many([(prompt, k) for prompt in prompts for k in range(draws)]):
        spans = split_tokens(rollout.ids, chain.decode)[:-1]
        said = [rollout.ids[a:b] for a, b in spans]
        cosines = chain.similarity([chain.decode(ids).strip() for ids in said], text.strip())
        found += list(zip(cosines.tolist(), said, strict=True))
    if not found:
        return None
    cosine, ids = max(found, key=lambda each: each[0])
    return ids, cosine


def interventions(
    pool: Pool,
    chain: Chain,
    model: Model,
    sentence: int,
    *,
    texts: Mapping[str, str] = INSERTIONS,
    search: Sequence[str] = ("doubt", "alternative"),
    others: Sequence[Ids] = (),
    n: int = 100,
    boundary: int = 100,
    rounds: int = 6,
    level: float = 0.95,
) -> Interventions:
    """Insert every text after ``sentence``; ``search`` names those to look for on-policy and on other prompts.

    ``n`` continuations of each text; ``boundary`` free rollouts before and after the target, as the importance uses.
    """
    if unknown := [name for name in search if name not in texts]:
        raise UsageError(f"search={unknown[0]!r} is not one of the texts: {', '.join(texts)}")
    if not 0 <= sentence < chain.body:
        raise UsageError(f"sentence={sentence}: the chain has sentences 0..{chain.body - 1}")
    before, after = chain.trace.prefix(sentence), chain.trace.prefix(sentence + 1)
    free = pool.first(before, boundary)
    pool.inherit(before, chain.said(sentence))
    baseline = pool.first(after, boundary)
    own = chain.outcome(chain.decode(chain.trace.ids)) or NO_ANSWER
    insert = _Insert(pool, chain, model, own, tuple(chain.answers(sentence + 1, baseline)), n, level)
    items = [insert("handwritten", name, after, tuple(model.encode(text))) for name, text in texts.items()]
    for name in search:
        if others:
            near = nearest_elsewhere(pool, chain, others, texts[name])
            why = "no other chain has a whole sentence"
            items.append(insert("other problem", name, after, near[0]) if near else _none("other problem", name, why))
        found = find_on_policy(pool, chain, sentence, texts[name], known=boundary, rounds=rounds)
        why = "no draw of the search has a whole next sentence"
        items.append(
            insert("on-policy", name, before, found.ids, found.logprobs) if found else _none("on-policy", name, why)
        )
    items += _controls(pool, chain, sentence, free, insert)
    trend, used = _trend(items)
    plain = insert.verdicts(insert.plain, baseline, list(texts.values()))
    return Interventions(sentence, tuple(items), plain, trend, used)


@dataclass(frozen=True)
class _Insert:
    """Puts a text somewhere, goes on from it and compares with plain continuations."""

    pool: Pool
    chain: Chain
    model: Model
    own: str
    plain: tuple[str, ...]
    n: int
    level: float

    def __call__(self, kind: Kind, name: str, at: Ids, ids: Ids, logprobs: tuple[float, ...] = ()) -> Insertion:
        chain, said = self.chain, self.chain.decode(ids)
        self.pool.inherit(at, ids)
        rollouts = self.pool.first((*at, *ids), self.n)
        kept = (*at[len(chain.trace.prompt) :], *ids)
        answers = [chain.answer(kept, rollout) for rollout in rollouts]
        return Insertion(
            kind=kind,
            name=name,
            text=said,
            on_policy=bool(logprobs),
            mean_logprob=float(np.mean(logprobs)) if logprobs else mean_logprob(self.model, at, ids),
            tokens=len(ids),
            effect=compare(answers, self.plain, chain.target, level=self.level),
            verdicts=self.verdicts(answers, rollouts, [said]),
            ids=ids,
            logprobs=logprobs,
        )

    def verdicts(self, answers: Sequence[str], rollouts: Sequence[Rollout], texts: Sequence[str]) -> dict[Verdict, int]:
        """How many continuations got each verdict."""
        found = Counter(
            judge(answer, self.own, texts_of(rollout.ids, self.chain.decode), self.chain, texts)
            for answer, rollout in zip(answers, rollouts, strict=True)
        )
        return {verdict: found[verdict] for verdict in VERDICTS}


def judge(answer: str, own: str, sentences: Sequence[str], chain: Chain, texts: Sequence[str]) -> Verdict:
    """What a continuation did with an inserted text; the rules stand in the module's text."""
    if answer == NO_ANSWER:
        return "no answer"
    if answer != own:
        return "plan changed"
    heard = list(sentences[:LISTENS])
    repeats = any((chain.similarity(heard, text.strip()) >= chain.threshold).any() for text in texts)
    return "acknowledged" if repeats or any(RECONSIDERS.match(each) for each in heard) else "no effect"


def _controls(pool: Pool, chain: Chain, sentence: int, free: Sequence[Rollout], insert: _Insert) -> list[Insertion]:
    """Same meaning in other words, and whatever stands next in another chain of the prompt."""
    original, length = chain.sentences[sentence], len(chain.said(sentence))
    same = []
    for rollout in free:
        said = whole_sentence(rollout, chain.decode, 2 * length)
        if said is None or chain.decode(said).strip() == original:
            continue
        if chain.similarity([texts_of(said, chain.decode)[0]], original)[0] >= chain.threshold:
            same.append((abs(len(said) - length), said, rollout.logprobs[: len(said)]))
    before, after = chain.trace.prefix(sentence), chain.trace.prefix(sentence + 1)
    if same and min(same)[0] <= max(2, length // 4):
        _, said, logprobs = min(same)
        out = [insert("paraphrase control", "same meaning", before, said, logprobs)]
    else:
        why = f"none of {len(free)} draws says the same in other words of about {length} tokens"
        out = [_none("paraphrase control", "same meaning", why)]
    for rollout in pool.first(chain.trace.prompt, len(free)):
        spans = split_tokens(rollout.ids, chain.decode)
        if len(spans) > sentence + 2:
            return [*out, insert("random control", "same place", after, rollout.ids[slice(*spans[sentence + 1])])]
    return [*out, _none("random control", "same place", f"no other chain has {sentence + 3} sentences")]


def _trend(items: Sequence[Insertion]) -> tuple[float | None, int]:
    points = [
        (each.mean_logprob, abs(each.effect.rate.value))
        for each in items
        if each.scored and each.effect.rate is not None
    ]
    if len(points) < 3 or any(len({point[axis] for point in points}) < 2 for axis in (0, 1)):
        return None, len(points)
    return float(stats.spearmanr(*zip(*points, strict=True)).statistic), len(points)


def _none(kind: Kind, name: str, why: str) -> Insertion:
    return Insertion(kind, name, "", False, None, 0, Effect(None, None, None, 0, 0, why), {}, why)
