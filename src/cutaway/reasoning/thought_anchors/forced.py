r"""Forced answers: what the model says when a text asks for the answer at once, at every boundary of a trace.

The paper's weak baseline (early stopping): it shows where the answer becomes readable, not where it was decided.
Where the possible answers are listed, their probability is exact and costs one short forward pass each.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.reasoning.rollouts import draw_rollouts
from cutaway.reasoning.thought_anchors.boundaries import GROUP
from cutaway.reasoning.thought_anchors.result import NO_ANSWER
from cutaway.sampling import BranchTree, Engine, Settings, Trace

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Forced:
    """Answers forced before each sentence of a trace."""

    labels: tuple[str, ...]
    """Where sampled, '(none)' is one of them."""
    weights: Float[np.ndarray, "sentence answer"]
    """Probability of each label among the labels; where sampled, how often it was drawn."""
    exact: bool
    listed: Float[np.ndarray, " sentence"]
    """Probability that the forced text goes on with one of the labels; where sampled, the share answered."""

    @property
    def complete(self) -> bool:
        """False when Ctrl-C left boundaries out; their weights are nan."""
        return bool(np.isfinite(self.weights).all())

    def __repr__(self) -> str:
        how = "exact" if self.exact else f"{np.nanmax(self.weights.sum(1)):g} draws each"
        left_out = "" if self.complete else f", {int(np.isnan(self.weights[:, 0]).sum())} not reached"
        return f"Forced({len(self.weights)} boundaries, {len(self.labels)} answers, {how}{left_out})"

    def curve(self, answer: str) -> Float[np.ndarray, " sentence"]:
        """P(answer) before each sentence; nan where the listed answers have no probability, or none was reached."""
        total = self.weights.sum(1)
        column = self.weights[:, self.labels.index(answer)] if answer in self.labels else np.zeros(len(total))
        return np.divide(column, total, out=np.full(len(total), np.nan), where=total > 0)


def choice_ids(
    outcome: Callable[[str], str | None], encode: Callable[[str], list[int]]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Token ids of each answer that a ``letter:`` or ``choice:`` outcome lists, with and without a blank in front.

    UsageError for an outcome that lists no answers: those are sampled.
    """
    kind, _, listed = str(getattr(outcome, "spec", "")).partition(":")
    if kind not in {"letter", "choice"}:
        raise UsageError(f"outcome {kind or outcome!r} does not list its answers; leave choices out to sample them")
    return {
        label: tuple(dict.fromkeys((tuple(encode(label)), tuple(encode(f" {label}"))))) for label in listed.split(",")
    }


def force_answers(
    engine: Engine,
    trace: Trace,
    forcing: Sequence[int],
    *,
    choices: Mapping[str, Sequence[Sequence[int]]] | None = None,
    outcome: Callable[[str], str | None] | None = None,
    decode: Decode | None = None,
    n: int = 100,
    max_tokens: int = 16,
    seed: int = 0,
    tree: BranchTree | None = None,
) -> Forced:
    r"""Distribution of answers when ``forcing`` (ids of such as "The answer is \boxed{") follows each prefix at once.

    With ``choices`` (label to the ways of spelling it in token ids) it is exact, at the trace's temperature and
    without nucleus, so that no answer is cut to 0. Else ``n`` rollouts of at most ``max_tokens`` are sampled, and
    ``outcome`` reads the forcing text with what follows it. Raises UsageError for an empty forcing, for spellings
    that begin with one another, and for an engine that cannot tell probabilities. Boundaries are done from the last
    to the first; Ctrl-C keeps those done.
    """
    if not forcing:
        raise UsageError("forcing is empty: give the token ids of a text that asks for the answer")
    prefixes = [(*trace.prefix(i), *forcing) for i in range(trace.n_sentences)]
    if choices is not None:
        _refuse_nested(choices)
        return _exactly(engine, prefixes, choices, Settings(trace.settings.temperature, 1.0, 0, max_tokens))
    if outcome is None or decode is None:
        raise UsageError("forced answers without choices are sampled: pass outcome= and decode= to read them")
    given = trace.settings
    short = Settings(given.temperature, given.top_p, given.top_k, max_tokens, given.stop)
    read: list[list[str] | None] = [None] * len(prefixes)
    try:
        for stop in range(len(prefixes), 0, -GROUP):
            at = range(max(0, stop - GROUP), stop)
            drawn = draw_rollouts(engine, [prefixes[i] for i in at], n, short, seed=seed, tree=tree)
            for i, rollouts in zip(at, drawn, strict=True):
                read[i] = [outcome(decode((*forcing, *rollout.ids))) or NO_ANSWER for rollout in rollouts]
    except KeyboardInterrupt:
        if not any(read):
            raise
    return _counted(read, n)


def _exactly(
    engine: Engine, prefixes: Sequence[Sequence[int]], choices: Mapping[str, Sequence[Sequence[int]]], plain: Settings
) -> Forced:
    mass = np.full((len(prefixes), len(choices)), np.nan)
    try:
        # The last prefix comes first: the others are crops of it.
        for i in reversed(range(len(prefixes))):
            mass[i] = [_mass(engine, prefixes[i], ways, plain) for ways in choices.values()]
    except KeyboardInterrupt:
        if not np.isfinite(mass).any():
            raise
    total = mass.sum(1, keepdims=True)
    shares = np.divide(mass, total, out=np.zeros_like(mass), where=total != 0)
    return Forced(tuple(choices), shares, True, total[:, 0])


def _counted(read: Sequence[Sequence[str] | None], n: int) -> Forced:
    seen = Counter(answer for found in read for answer in found or () if answer != NO_ANSWER)
    labels = (*(answer for answer, _ in seen.most_common()), NO_ANSWER)
    missing = [float("nan")] * len(labels)
    counts = np.array([missing if found is None else [float(found.count(each)) for each in labels] for found in read])
    return Forced(labels, counts, False, 1 - counts[:, -1] / n)


def _mass(engine: Engine, prefix: Sequence[int], ways: Sequence[Sequence[int]], settings: Settings) -> float:
    """Probability that ``prefix`` goes on with one of ``ways``."""
    total = 0.0
    for way in ways:
        probs = engine.token_probs(prefix, way, settings)
        if probs is None:
            raise UsageError(
                f"{engine.identity} does not tell token probabilities; leave choices out to sample answers"
            )
        total += float(np.prod(probs))
    return total


def _refuse_nested(choices: Mapping[str, Sequence[Sequence[int]]]) -> None:
    ways = [(label, tuple(way)) for label, spelled in choices.items() for way in spelled]
    for label, way in ways:
        if not way:
            raise UsageError(f"choice {label!r} has an empty spelling; give its token ids")
        for other, longer in ways:
            if (label, way) != (other, longer) and longer[: len(way)] == way:
                raise UsageError(f"choices {label!r} and {other!r}: one begins with the other in tokens; reword one")
