"""Thought anchors: which sentences of a chain of thought decided its answer (Bogdan et al. 2025, arXiv 2506.19143).

`find_anchors` takes a trace and an outcome function and returns an `AnchorMap`: the distribution of answers at
every sentence boundary with a simultaneous band, the sentences that certifiably moved it, what the model would
have said instead, and what it cost.

Estimator ``deviation`` (the card's "Beyond the paper"):
 1. One forward pass gives the probability of every token of the trace, hence the chance that a rollout repeats a
    sentence, and where a rollout that leaves a sentence leaves it (`strata`).
 2. Thin pass: a few rollouts forced to leave in each sentence. Sentences that are all but certain cost nothing.
 3. Rounds: further rollouts where a decoded token promises most, for the curve and for undecided sentences
    (`allocate`), until the budget is spent or every sentence is decided and the band is narrow.
 4. Curve: the mixture of step 1, smoothed along the trace by a change-point prior fitted to the run itself and
    kept inside the band. Band: melded confidence distributions of the strata, no smoothness assumed.
 5. Certify: e-processes with false-discovery control; confidence sequences for "no effect" (`certify`).

Estimator ``uniform`` (the paper, section 3): 100 free rollouts from every boundary, raw frequencies. Differences from
the published code: prefixes are token ids (never re-joined text), and rollouts without an answer are a visible
label instead of being dropped.

Limits: the e-processes share one budget, so whether a test gets more draws depends a little on its neighbours;
`self_comparison` runs beside every result as the control. P(answer) is that of the sampling settings in use.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.embedding import Embed
from cutaway.reasoning.rollouts import Report, first_sentence
from cutaway.reasoning.source import Asked, ask
from cutaway.reasoning.thought_anchors.allocate import allocate
from cutaway.reasoning.thought_anchors.alternatives import group_alternatives
from cutaway.reasoning.thought_anchors.certify import Verdicts, judge, self_comparison
from cutaway.reasoning.thought_anchors.result import NO_ANSWER, OTHER, AnchorMap
from cutaway.reasoning.thought_anchors.strata import Strata, build_strata
from cutaway.sampling import (
    BranchTree,
    Cost,
    Engine,
    LocalEngine,
    Request,
    Rollout,
    Settings,
    Trace,
    sample,
)
from cutaway.stats import difference_interval, mixture_band, smooth_martingale

Decode = Callable[[Sequence[int]], str]
THIN = 6
ROUND, ROUNDS = 128, 2
"""Rollouts of a round at least, and into how many what is left is parted."""
UNIFORM = 100
SHOWN_ANSWERS = 6


@dataclass
class _Evidence:
    """Everything drawn so far; a stratum's lists are in the order of its draw numbers."""

    n: int
    answers: list[list[str]] = field(init=False)
    texts: list[list[str]] = field(init=False)
    lengths: list[list[int]] = field(init=False)
    truncated: int = 0

    def __post_init__(self) -> None:
        self.answers = [[] for _ in range(self.n)]
        self.texts = [[] for _ in range(self.n)]
        self.lengths = [[] for _ in range(self.n)]

    @property
    def draws(self) -> Int[np.ndarray, " sentence"]:
        return np.array([len(found) for found in self.answers])

    @property
    def spent(self) -> int:
        return sum(map(sum, self.lengths))

    def hits(self, answer: str) -> list[list[bool]]:
        return [[each == answer for each in found] for found in self.answers]


def explain_answer(
    model: Model,
    prompt: str,
    outcome: str | Callable[[str], str | None] = "auto",
    *,
    settings: Settings | None = None,
    raw: bool = False,
    seed: int = 0,
    **options: Any,
) -> AnchorMap:
    """Sample one trace of ``model`` and find its anchors; ``options`` are those of `find_anchors`.

    ``outcome`` is a spec (`cutaway.grading`) or any function from the trace's text to an answer or None;
    ``raw`` leaves the chat template out.
    """
    engine, settings = LocalEngine(model), settings if settings is not None else Settings()
    asked = ask(engine, prompt, outcome, settings=settings, raw=raw, seed=seed, tree=options.get("tree"))
    return asked_anchors(engine, prompt, asked, seed=seed, **options)


def asked_anchors(engine: LocalEngine, prompt: str, asked: Asked, **options: Any) -> AnchorMap:
    """The anchors of a question's trace; the map names the question, and its cost includes the trace."""
    spent = engine.cost
    found = find_anchors(engine, asked.trace, asked.outcome, engine.model.decode, **options)
    return replace(
        found,
        prompt=prompt,  # what was asked, without the chat template around it
        decoded=found.decoded + spent.decoded,
        prefilled=found.prefilled + spent.prefilled,
        reused=found.reused + spent.reused,
    )


def find_anchors(
    engine: Engine,
    trace: Trace,
    outcome: Callable[[str], str | None],
    decode: Decode,
    *,
    budget: int | None = None,
    estimator: Literal["deviation", "uniform"] = "deviation",
    reuse: bool = True,
    delta: float = 0.2,
    fdr: float = 0.05,
    level: float = 0.95,
    seed: int = 0,
    tree: BranchTree | None = None,
    embed: Embed | None = None,
    report: Report = lambda spent, planned, note: None,
    deadline: float | None = None,
) -> AnchorMap:
    """Estimate the answer curve of ``trace`` and certify its anchors.

    ``budget`` is in decoded tokens (rollouts found in ``tree`` count as if decoded, so a rerun takes the same
    path); None means a fifth of what the uniform estimator is expected to cost, less once rollouts prove shorter.
    ``deadline`` (`time.monotonic`) ends the run early. Ctrl-C does too: the result then says ``complete=False``. With
    ``reuse=False`` every rollout starts freely at its boundary. Raises UsageError for a trace without an answer or
    sampling that cannot vary.
    """
    started, before = time.monotonic(), engine.cost
    own = outcome(decode(trace.ids))
    if own is None:
        raise UsageError("the trace itself has no answer; choose another outcome or trace")
    if trace.settings.temperature == 0:
        raise UsageError("temperature=0 leaves nothing to resample; use a temperature above 0")
    probs = None
    if reuse and estimator == "deviation":
        probs = engine.token_probs(trace.prompt, trace.ids, trace.settings)
    strata = build_strata(trace.ids, trace.spans, probs)
    evidence = _Evidence(strata.n)
    run = _Run(engine, trace, outcome, decode, strata, evidence, seed, tree, own, report, deadline)
    try:
        if estimator == "uniform":
            finished = run.uniformly(budget)
            verdicts = judge(strata, evidence.hits(own), seed, delta, fdr, level)
        else:
            verdicts, finished = run.adaptively(budget, delta, fdr, level)
    except KeyboardInterrupt:
        finished = False
        verdicts = judge(strata, evidence.hits(own), seed, delta, fdr, level)
    return run.result(verdicts, finished, estimator, level, fdr, embed, engine.cost - before, started)


def _a_fifth(price: Float[np.ndarray, " sentence"]) -> int:
    """Tokens of a fifth of what the uniform estimator costs at ``price`` tokens a rollout."""
    return max(2000, int(price.sum() * UNIFORM / 5))


@dataclass
class _Run:
    engine: Engine
    trace: Trace
    outcome: Callable[[str], str | None]
    decode: Decode
    strata: Strata
    evidence: _Evidence
    seed: int
    tree: BranchTree | None
    own: str
    report: Report
    deadline: float | None

    def adaptively(self, budget: int | None, delta: float, fdr: float, level: float) -> tuple[Verdicts, bool]:
        """Thin pass and rounds; returns the verdicts and whether they took their course, budget included."""
        strata, evidence = self.strata, self.evidence
        price = np.array([len(self.trace.ids) - start for start, _ in strata.spans], dtype=float)
        planned = _a_fifth(price) if budget is None else budget
        uncertain = 1 - strata.stay > 0.01
        pairs = (int(np.clip(planned / 2 / max(1.0, price[uncertain].sum()), 2, THIN)) + 1) // 2
        for n in (1, pairs - 1):  # two rollouts early, so that an interrupt finds something everywhere
            self.draw(np.where(uncertain, 2 * n, 0), planned)
        while True:
            hits = evidence.hits(self.own)
            verdicts = judge(strata, hits, self.seed, delta, fdr, level)
            undecided = np.array([status == "undecided" for status in verdicts.status])
            for i in range(strata.n):
                price[i] = np.mean([price[i], *evidence.lengths[i]])
            planned = min(planned, _a_fifth(price)) if budget is None else budget
            left = planned - evidence.spent
            late = self.deadline is not None and time.monotonic() > self.deadline
            if left <= 0 or (not undecided.any() and self._band_width(level) < delta):
                return verdicts, True
            if late:
                return verdicts, False
            wins = np.array([sum(found) for found in hits])
            pooled = smooth_martingale(wins, evidence.draws, strata.stay, end=1.0, delta=delta)
            interest = np.where(undecided, pooled.jump, 0.0)
            # The longest rollouts of a round decode alone at its end: few rounds, and no small last one.
            rest = int(left / price.mean())
            size = max(ROUND, rest // ROUNDS) if rest > 2 * ROUND else rest + 1
            extra = allocate(
                strata, wins, evidence.draws, pooled, price=price, interest=interest, batch=size, tokens=float(left)
            )
            for each in np.flatnonzero(interest > 0.05):
                needed = verdicts.wanted[each]
                extra[needed] = max(1, extra[needed])
            self.draw(extra, planned)

    def uniformly(self, budget: int | None) -> bool:
        """`UNIFORM` rollouts of every stratum; returns whether the budget allowed them all."""
        for _ in range(UNIFORM // 10):
            if budget is not None and self.evidence.spent >= budget:
                return False
            self.draw(np.full(self.strata.n, 10), budget)
        return True

    def draw(self, extra: Int[np.ndarray, " sentence"], planned: int | None) -> None:
        """Sample ``extra[i]`` more rollouts of each stratum and file them, in draw order, whatever ends first."""
        evidence, trace = self.evidence, self.trace
        have = evidence.draws
        places = [(i, int(have[i]) + k) for i in range(self.strata.n) for k in range(int(extra[i]))]
        requests = [self.strata.request(trace.prompt, i, k, self.seed, trace.settings) for i, k in places]
        stream = sample(self.tree, self.engine, requests) if self.tree is not None else self.engine.stream(requests)
        found: dict[int, Rollout] = {}
        tokens = evidence.spent
        goal = planned or sum(len(trace.ids) + len(trace.prompt) - len(r.prefix) for r in requests)
        for index, rollout in stream:
            found[index] = rollout
            tokens += len(rollout.ids)
            self.report(min(tokens, goal), goal, f"{len(places)} rollouts")
        # Filed only once all have ended: a round cut short holds more short rollouts than it should.
        for index, (i, _) in enumerate(places):
            self._file(i, requests[index], found[index])

    def _file(self, sentence: int, request: Request, rollout: Rollout) -> None:
        start = self.strata.spans[sentence][0]
        at = len(request.prefix) - len(self.trace.prompt)
        kept = self.trace.ids[:at]
        whole = self.decode((*kept, *rollout.ids))
        answer = self.outcome(whole)
        self.evidence.answers[sentence].append(NO_ANSWER if answer is None else answer)
        said = whole[len(self.decode(self.trace.ids[:start])) :]
        self.evidence.texts[sentence].append(first_sentence(said))
        self.evidence.lengths[sentence].append(len(rollout.ids))
        self.evidence.truncated += rollout.finish == "length"

    def _counts(self) -> tuple[tuple[str, ...], Int[np.ndarray, "sentence answer"]]:
        seen = Counter(answer for found in self.evidence.answers for answer in found)
        seen.pop(self.own, None)
        common = [answer for answer, _ in seen.most_common()]
        labels = [self.own, *common[: SHOWN_ANSWERS - 1]]
        if len(common) >= SHOWN_ANSWERS:
            labels[-1] = OTHER
        place = {
            answer: labels.index(answer) if answer in labels else len(labels) - 1 for answer in (*common, self.own)
        }
        counts = np.zeros((self.strata.n, len(labels)), dtype=np.int64)
        for i, found in enumerate(self.evidence.answers):
            for answer in found:
                counts[i, place[answer]] += 1
        return tuple(labels), counts

    def _terminal(self, n_answers: int) -> Float[np.ndarray, "boundary answer"]:
        constant = np.zeros((self.strata.n + 1, n_answers))
        constant[:, 0] = self.strata.terminal
        return constant

    def _band_width(self, level: float) -> float:
        _, counts = self._counts()
        own = np.stack([counts[:, 0], counts[:, 1:].sum(1)], axis=1)
        band = mixture_band(own, self.strata.weights, self._terminal(2), level, draws=1000)
        return float((band.high - band.low)[:, 0].max())

    def result(
        self,
        verdicts: Verdicts,
        finished: bool,
        estimator: Literal["deviation", "uniform"],
        level: float,
        fdr: float,
        embed: Embed | None,
        cost: Cost,
        started: float,
    ) -> AnchorMap:
        """Put the evidence together."""
        strata, evidence = self.strata, self.evidence
        labels, counts = self._counts()
        constant = self._terminal(len(labels))
        band = mixture_band(counts, strata.weights, constant, level)
        if estimator == "uniform":
            share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            curve = strata.weights @ share + constant
        else:
            curve = np.stack(
                [
                    smooth_martingale(counts[:, a], counts.sum(1), strata.stay, end=float(a == 0)).mean
                    for a in range(len(labels))
                ],
                axis=1,
            )
            curve = np.clip(curve / curve.sum(1, keepdims=True), band.low, band.high)
        low, high = self._effect_intervals(counts, verdicts, level, fdr)
        leave = 1 - strata.stay
        answers = evidence.answers
        total = max(1, int(counts.sum()))
        reused = self.tree.cost.reused if self.tree is not None else 0
        return AnchorMap(
            prompt=self.decode(self.trace.prompt),
            sentences=self.trace.texts(self.decode),
            spans=self.trace.spans,
            answers=labels,
            curve=curve,
            low=band.low,
            high=band.high,
            effect=np.diff(curve[:, 0]).round(12),  # a change of 1e-16 is none
            effect_low=low,
            effect_high=high,
            log_e=verdicts.log_e,
            status=verdicts.status,
            stay=strata.stay,
            draws=evidence.draws,
            alternatives=tuple(
                group_alternatives(evidence.texts[i], answers[i], float(leave[i]), embed) for i in range(strata.n)
            ),
            control=self_comparison(strata, evidence.hits(self.own), fdr),
            truncated=evidence.truncated / total,
            unanswered=sum(found.count(NO_ANSWER) for found in answers) / total,
            decoded=cost.decoded,
            prefilled=cost.prefilled,
            reused=cost.reused + reused,
            seconds=time.monotonic() - started,
            estimator=estimator,
            level=level,
            fdr=fdr,
            complete=finished,
        )

    def _effect_intervals(
        self, counts: Int[np.ndarray, "sentence answer"], verdicts: Verdicts, level: float, fdr: float
    ) -> tuple[Float[np.ndarray, " sentence"], Float[np.ndarray, " sentence"]]:
        """Melded intervals of each effect; certified ones at the level that allows for their selection."""
        strata = self.strata
        own = np.stack([counts[:, 0], counts[:, 1:].sum(1)], axis=1)
        found = verdicts.status.count("anchor")
        ends = []
        for i, status in enumerate(verdicts.status):
            leave = 1 - strata.stay[i]
            contrast = leave * (strata.weights[i + 1] - np.eye(strata.n)[i])
            # Benjamini and Yekutieli 2005: intervals of selected effects keep their false-coverage rate.
            own_level = 1 - min(fdr, 1 - level) * found / strata.n if status == "anchor" else level
            interval = difference_interval(own, contrast, own_level, draws=8000)
            shift = leave * strata.terminal[i + 1]
            ends.append((interval.low[0] + shift, interval.high[0] + shift))
        return np.array([e[0] for e in ends]), np.array([e[1] for e in ends])
