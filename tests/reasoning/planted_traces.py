"""Traces of planted reasoners, and exact answers about them that do not use the method under test."""

import functools
from collections.abc import Sequence

import numpy as np

from cutaway.planted import EXACT, Reasoner, reasoner
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.sampling import Settings, Trace, split_tokens

COSTS = ("seconds", "decoded", "prefilled", "reused")


@functools.cache
def planted(layout: str = "pfsa", low: float = 0.2, high: float = 0.9, no_effect: bool = False) -> Reasoner:
    return reasoner(layout, p_one=(low, high), filler=(0.5, 0.3, 0.2), no_effect=no_effect)


def trace_of(source: Reasoner, seed: int, room: int = 8) -> Trace:
    """A trace drawn from the process; rollouts may be ``room`` tokens longer than it."""
    ids = source.sample_trace(seed)
    settings = Settings(EXACT.temperature, EXACT.top_p, EXACT.top_k, len(ids) + room)
    return Trace(source.prompt_ids, ids, (), tuple(split_tokens(ids, source.model.decode)), settings)


def own_answer(source: Reasoner, trace: Trace) -> str:
    return str(source.outcome(source.model.decode(trace.ids)))


def exact_probs(source: Reasoner, trace: Trace) -> list[float]:
    """Probability of each token of the trace, from the process."""
    text = (*trace.prompt, *trace.ids)
    return [float(source.token_probs(text[:t])[text[t]]) for t in range(len(trace.prompt), len(text))]


def exact_curve(source: Reasoner, trace: Trace) -> np.ndarray:
    """Probability of the trace's own answer at every boundary, from the process."""
    own = own_answer(source, trace)
    return np.array([source.outcome_probs(trace.prefix(i))[own] for i in range(trace.n_sentences + 1)])


def exact_leaving(source: Reasoner, trace: Trace) -> np.ndarray:
    """P(own answer | a rollout leaves inside the sentence), by walking every other token at every place."""
    own, out = own_answer(source, trace), []
    for start, end in trace.spans:
        reach, mass, hits = 1.0, 0.0, 0.0
        for at in range(start, end):
            prefix = (*trace.prompt, *trace.ids[:at])
            probs = source.token_probs(prefix)
            for token in np.flatnonzero(probs):
                if token != trace.ids[at]:
                    mass += reach * probs[token]
                    hits += reach * probs[token] * source.outcome_probs((*prefix, int(token)))[own]
            reach *= probs[trace.ids[at]]
        out.append(hits / mass if mass else 0.0)
    return np.array(out)


def result_of(found: AnchorMap, without: Sequence[str] = COSTS) -> dict[str, object]:
    """Everything a map says but what it cost."""
    return {k: v for k, v in found.to_dict().items() if k not in without}
