"""What every analysis of this paper shares: one chain of thought, one pool of rollouts, one way to compare outcomes."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy import stats

from cutaway.errors import UsageError
from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.rollouts import Report, rollout_seeds
from cutaway.sampling import (
    BranchTree,
    Engine,
    Request,
    Rollout,
    Settings,
    Trace,
    sample,
    split_text,
    split_tokens,
    without_end_mark,
)
from cutaway.stats import Interval, difference_interval, kl

NO_ANSWER = "(none)"
Ids = tuple[int, ...]
Decode = Callable[[Sequence[int]], str]


class Pool:
    """Free rollouts by prefix, each drawn once and kept in draw order; analyses on one pool share them.

    The draws are those of `draw_rollouts` (same seeds, same settings), so other methods on the same tree share them
    too. A rollout that begins with the chain's next sentence, token for token, is also a draw from the boundary
    after it (`inherit`); ``reuse=False`` draws every boundary by itself, as published.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        seed: int = 0,
        tree: BranchTree | None = None,
        reuse: bool = True,
        report: Report = lambda done, planned, note: None,
    ) -> None:
        if settings.temperature == 0:
            raise UsageError("temperature=0 leaves nothing to resample; use a temperature above 0")
        self.engine, self.settings, self.seed = engine, settings, seed
        self.tree, self.reuse, self.report = tree, reuse, report
        self._known: dict[Ids, list[Rollout]] = {}
        self._fresh: Counter[Ids] = Counter()
        self._short: dict[int, Pool] = {}

    def first(self, prefix: Ids, n: int) -> list[Rollout]:
        """The first ``n`` rollouts of ``prefix``."""
        return self.many([(prefix, k) for k in range(n)])

    def many(self, wanted: Sequence[tuple[Ids, int]]) -> list[Rollout]:
        """The rollouts with these draw numbers; what is missing is drawn in one stream."""
        need: dict[Ids, int] = {}
        for prefix, index in wanted:
            need[prefix] = max(need.get(prefix, 0), index + 1)
        self._draw({prefix: count - len(self._known.get(prefix, ())) for prefix, count in need.items()})
        return [self._known[prefix][index] for prefix, index in wanted]

    def next(self, prefixes: Sequence[Ids], used: Counter[Ids]) -> list[Rollout]:
        """One rollout for each prefix, none of which ``used`` has counted: equal prefixes get different ones."""
        wanted = []
        for prefix in prefixes:
            wanted.append((prefix, used[prefix]))
            used[prefix] += 1
        return self.many(wanted)

    def inherit(self, prefix: Ids, said: Ids) -> None:
        """Let the boundary after ``said`` begin with the known rollouts of ``prefix`` that say exactly this.

        Nothing is inherited where one of them was cut at max_tokens: the others would be the shorter ones.
        """
        after, known = (*prefix, *said), self._known.get(prefix, [])
        if not self.reuse or after in self._known:
            return
        same = [each for each in known if each.ids[: len(said)] == said and len(each.ids) > len(said)]
        if same and all(each.finish == "stop" for each in same):
            cut = len(said)
            self._known[after] = [replace(each, ids=each.ids[cut:], logprobs=each.logprobs[cut:]) for each in same]

    def shortened(self, max_tokens: int) -> "Pool":
        """The pool of rollouts that end after ``max_tokens``, on the same tree."""
        if max_tokens not in self._short:
            settings = replace(self.settings, max_tokens=max_tokens)
            self._short[max_tokens] = Pool(
                self.engine, settings, seed=self.seed, tree=self.tree, reuse=self.reuse, report=self.report
            )
        return self._short[max_tokens]

    def _draw(self, missing: Mapping[Ids, int]) -> None:
        requests = [
            Request(prefix, rollout_seeds(prefix, self._fresh[prefix] + n, self.seed)[-n:], self.settings)
            for prefix, n in missing.items()
            if n > 0
        ]
        if not requests:
            return
        planned, found = sum(request.n for request in requests), {}
        stream = sample(self.tree, self.engine, requests) if self.tree is not None else self.engine.stream(requests)
        for done, (index, rollout) in enumerate(stream, 1):
            found[index, rollout.seed] = rollout
            self.report(done, planned, "rollouts")
        for index, request in enumerate(requests):
            self._fresh[request.prefix] += request.n
            self._known.setdefault(request.prefix, []).extend(found[index, s] for s in request.seeds)


@dataclass(frozen=True)
class Chain:
    """A chain of thought and what it takes to read its branches."""

    trace: Trace
    outcome: Callable[[str], str | None]
    """Answer of a chain's text; None when it has none, or the judge failed."""
    decode: Decode
    embed: Embed
    target: str
    """The answer whose rate is reported."""
    threshold: float = 0.6
    """Sentences at or above this cosine say the same."""
    end_mark: str = ""
    """Text that ends the reasoning, such as ``</think>``; what comes after it is not examined."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UsageError(f"threshold={self.threshold}: a cosine in (0, 1]")
        if self.end_mark and self.end_mark not in self.decode(self.trace.ids):
            raise UsageError(f"the chain has no end marker {self.end_mark!r}: it was cut; raise max_tokens")

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """Text of every sentence, trimmed, without an end-of-text mark."""
        return tuple(plain(text) for text in self.trace.texts(self.decode))

    @cached_property
    def body(self) -> int:
        """Sentences that can be examined: all before the end marker, and never the last, which states the answer."""
        last = self.trace.n_sentences - 1
        if not self.end_mark:
            return last
        texts = self.trace.texts(self.decode)
        marked = next((i for i in range(len(texts)) if self.end_mark in "".join(texts[: i + 1])), last)
        return min(last, marked)

    def said(self, sentence: int) -> Ids:
        """Token ids of a sentence."""
        return tuple(self.trace.ids[slice(*self.trace.spans[sentence])])

    def answer(self, kept: Sequence[int], rollout: Rollout) -> str:
        """Answer of the chain ``kept`` (tokens after the prompt) continued by ``rollout``."""
        return self.outcome(self.decode((*kept, *rollout.ids))) or NO_ANSWER

    def kept(self, sentence: int) -> Ids:
        """The chain's tokens before a sentence, without the prompt."""
        return self.trace.prefix(sentence)[len(self.trace.prompt) :]

    def similarity(self, texts: Sequence[str], original: str) -> Float[np.ndarray, " text"]:
        """Cosine of each text with ``original``."""
        if not texts:
            return np.zeros(0)
        return cosine(self.embed(list(texts)), self.embed([original]))[:, 0]

    def answers(self, sentence: int, rollouts: Sequence[Rollout]) -> list[str]:
        """Answers of rollouts that start at the boundary before ``sentence``."""
        kept = self.kept(sentence)
        return [self.answer(kept, rollout) for rollout in rollouts]


def plain(text: str) -> str:
    """A sentence trimmed, without an end-of-text mark behind it."""
    return without_end_mark(text.strip()).strip()


def texts_of(ids: Sequence[int], decode: Decode) -> list[str]:
    """Sentences of a continuation, trimmed."""
    text = decode(ids)
    return [plain(text[a:b]) for a, b in split_text(text)]


def start_of(ids: Sequence[int], sentence: int, decode: Decode) -> int:
    """Token at which a sentence of `texts_of` begins; a token that straddles belongs to the sentence before."""
    char = split_text(decode(ids))[sentence][0]

    def reach(tokens: int) -> int:
        return len(decode(ids[:tokens]).rstrip("\ufffd"))  # the last token may hold part of a character

    return bisect_left(range(len(ids)), char, key=reach)


def whole_sentence(rollout: Rollout, decode: Decode, longest: int) -> Ids | None:
    """The first sentence of a rollout, if it ended and has at most ``longest`` tokens."""
    spans = split_tokens(rollout.ids, decode)
    if not spans or (len(spans) == 1 and rollout.finish == "length") or spans[0][1] > longest:
        return None
    return rollout.ids[: spans[0][1]]


@dataclass(frozen=True)
class Effect:
    """How outcomes with something differ from outcomes without it; numbers are with minus without."""

    rate: Interval | None
    """Difference of the target answer's rate (melded exact binomial ends: covers with at least its level)."""
    log_odds: Interval | None
    """Difference of its log-odds (half added to each count); None where an answer's rate is 0 or 1 on both sides."""
    kl: Interval | None
    """KL[without || with] over all answers, jackknifed; basic bootstrap interval, cut at 0."""
    n_with: int
    n_without: int
    undefined: str = ""

    def __repr__(self) -> str:
        return f"Effect(undefined: {self.undefined})" if self.rate is None else f"Effect(rate {self.rate!r})"


def compare(
    having: Sequence[str], lacking: Sequence[str], target: str, *, level: float = 0.95, seed: int = 0, why: str = ""
) -> Effect:
    """Effect on the outcome; undefined, with ``why``, when a side is empty or no chain has an answer."""
    n, m = len(having), len(lacking)
    if not n or not m:
        return Effect(None, None, None, n, m, why or ("no rollout without it" if n else "no rollout with it"))
    if set(having) | set(lacking) == {NO_ANSWER}:
        return Effect(None, None, None, n, m, "no chain has an answer: the outcome or its judge failed on all")
    a, b = having.count(target), lacking.count(target)
    return Effect(
        _difference(a, n, b, m, level), _log_odds(a, n, b, m, level), _divergence(having, lacking, level, seed), n, m
    )


def constant(answers: Sequence[Sequence[str]]) -> str:
    """Why nothing can be attributed, if every rollout of a chain gave one answer; else empty."""
    seen = Counter(answer for each in answers for answer in each)
    return f"all {seen.total()} rollouts answered {next(iter(seen))!r}: nothing to explain" if len(seen) == 1 else ""


def _difference(a: int, n: int, b: int, m: int, level: float) -> Interval:
    band = difference_interval(np.array([[a, n - a], [b, m - b]]), np.array([1.0, -1.0]), level)
    return Interval(a / n - b / m, float(band.low[0]), float(band.high[0]), min(n, m), level)


def _log_odds(a: int, n: int, b: int, m: int, level: float) -> Interval | None:
    if (a in (0, n)) and (b in (0, m)):
        return None
    cells = np.array([a, n - a, b, m - b]) + 0.5
    value = float(np.log(cells[0] / cells[1]) - np.log(cells[2] / cells[3]))
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(np.sum(1 / cells)))
    return Interval(value, value - half, value + half, min(n, m), level)


def _divergence(having: Sequence[str], lacking: Sequence[str], level: float, seed: int) -> Interval:
    labels = sorted(set(having) | set(lacking))
    p, q = (np.array([side.count(label) for label in labels]) for side in (lacking, having))
    if p.sum() < 2 or q.sum() < 2:
        return Interval(kl(p, q), float("nan"), float("nan"), int(min(p.sum(), q.sum())), level)
    rng = np.random.default_rng(seed)
    draws = [rng.multinomial(side.sum(), side / side.sum(), size=1000) + 0.5 for side in (p, q)]
    shares = [each / each.sum(1, keepdims=True) for each in draws]
    spread = np.sum(shares[0] * np.log(shares[0] / shares[1]), axis=1)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    plug = kl(p, q)
    ends = sorted(max(0.0, 2 * plug - end) for end in (high, low))
    value = float(np.clip(kl(p, q, jackknife=True), *ends))
    return Interval(value, float(ends[0]), float(ends[1]), int(min(p.sum(), q.sum())), level)
