"""Free rollouts at every boundary of a trace: what importance and influence both read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cutaway.errors import UsageError
from cutaway.reasoning.rollouts import Report, draw_rollouts, first_sentence
from cutaway.sampling import BranchTree, Engine, Rollout, Trace

Decode = Callable[[Sequence[int]], str]
GROUP = 8
"""Boundaries drawn together: Ctrl-C loses at most these."""


@dataclass(frozen=True)
class Draws:
    """Free rollouts from one boundary."""

    answers: tuple[str | None, ...]
    """None: the rollout gave no answer."""
    texts: tuple[str, ...]
    """What each rollout wrote after the boundary."""
    truncated: int = 0
    """Rollouts cut at max_tokens."""

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.texts):
            raise UsageError(f"{len(self.answers)} answers for {len(self.texts)} rollouts; give one each")

    @cached_property
    def firsts(self) -> tuple[str, ...]:
        """First new sentence of each rollout."""
        return tuple(first_sentence(text) for text in self.texts)


def read_rollouts(
    trace: Trace, boundary: int, rollouts: Sequence[Rollout], outcome: Callable[[str], str | None], decode: Decode
) -> Draws:
    """File rollouts of one boundary: their answer is read from the trace's kept text and what they added."""
    kept = trace.prefix(boundary)[len(trace.prompt) :]
    before = len(decode(kept))
    wholes = [decode((*kept, *rollout.ids)) for rollout in rollouts]
    cut = sum(rollout.finish == "length" for rollout in rollouts)
    return Draws(tuple(outcome(whole) for whole in wholes), tuple(whole[before:] for whole in wholes), cut)


def draw_boundaries(
    engine: Engine,
    trace: Trace,
    outcome: Callable[[str], str | None],
    decode: Decode,
    n: int = 100,
    *,
    seed: int = 0,
    tree: BranchTree | None = None,
    report: Report = lambda done, planned, note: None,
) -> tuple[Draws | None, ...]:
    """``n`` free rollouts from every boundary before a sentence; None at those that Ctrl-C left out.

    The last boundary is drawn first, so that the trace is prefilled once and earlier prefixes are crops of it.
    Raises UsageError for greedy settings, or where a rollout would not fit the model's context.
    """
    if n < 1:
        raise UsageError(f"n={n}: at least one rollout a boundary")
    found: list[Draws | None] = [None] * trace.n_sentences
    planned = n * trace.n_sentences
    try:
        for stop in range(trace.n_sentences, 0, -GROUP):
            at = range(max(0, stop - GROUP), stop)
            done = n * (trace.n_sentences - stop)
            drawn = draw_rollouts(
                engine,
                [trace.prefix(i) for i in at],
                n,
                trace.settings,
                seed=seed,
                tree=tree,
                report=lambda now, _, note, done=done: report(done + now, planned, note),  # type: ignore[misc]
            )
            for i, rollouts in zip(at, drawn, strict=True):
                found[i] = read_rollouts(trace, i, rollouts, outcome, decode)
    except KeyboardInterrupt:
        return tuple(found)
    return tuple(found)
