"""Planted circuits: the neuron, its token, both heads and their words; and a neuron that no head drives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from cutaway.features.attention_mlp.effects import compare
from cutaway.features.attention_mlp.method import NextToken, congruence
from cutaway.features.attention_mlp.surveys import NeuronFinding, firing_prompts, survey
from cutaway.planted.rules import ContextNeuron, context_neuron
from cutaway.study import Rate


@dataclass(frozen=True)
class Trial:
    """What one planted model gave."""

    target: NextToken
    """The most congruent neuron."""
    found: NeuronFinding


def planted(each: ContextNeuron, seed: int, rows: int = 60) -> Trial:
    """Run the pipeline on a planted model, from the congruence of all its neurons."""
    model, truth = each.model, each.truth
    target = congruence(model, truth.layer, allowed=_words(model.vocab_size), signs=(1,))[0]
    sides = [
        firing_prompts(model, [target], [tuple(row) for row in each.texts(rows, seed=s)], n=rows)
        for s in (2 * seed, 2 * seed + 1)
    ]
    (found,), _ = survey(model, [target], *sides, seed=seed)
    return Trial(target, found)


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Circuits recovered in full, nothing beside them, and a test that keeps its level."""
    named = heads = extra = rules = drops = silent = 0
    for trial in range(trials):
        report(trial, trials)
        each = context_neuron(trial)
        got = planted(each, trial)
        truth = each.truth
        named += (got.target.neuron, got.target.token) == (truth.neuron, truth.token)
        wanted = {(layer, head): word for layer, head, word in truth.heads}
        for head in got.found.heads:
            word = wanted.get((head.layer, head.head))
            heads += word is not None
            extra += word is None
            rules += word is not None and head.decision.tokens == (word,) and head.score == 1.0
            drops += word is not None and head.drop_active > 0.02 and abs(head.drop_inactive) < 1e-3
        silent += not planted(context_neuron(trial, null=True), trial).found.heads
    below, sims = level(20 * trials)
    return (
        Rate("neuron and token", named, trials, at_least=1.0, what="planted neurons most congruent, with their token"),
        Rate("heads found", heads, 2 * trials, at_least=1.0, what="planted heads found to be active in context"),
        Rate("heads invented", extra, max(1, heads + extra), at_most=0.0, what="found heads that were not planted"),
        Rate(
            "rules", rules, 2 * trials, at_least=1.0, what="heads whose rule is their word, right on all other prompts"
        ),
        Rate("drops", drops, 2 * trials, at_least=1.0, what="heads whose loss lowers P(token) on active prompts only"),
        Rate("silent without heads", silent, trials, at_least=1.0, what="neurons no head drives that get no head"),
        Rate("level of the test", below, sims, at_most=0.12, what="p < .05 on clustered data without an effect"),
    )


def level(sims: int, seed: int = 0, p_values: list[float] | None = None) -> tuple[int, int]:
    """Return how often p < .05 where pairs cluster by neuron and activity means nothing, and of how many tests."""
    rng = np.random.default_rng(seed)
    below = 0
    for sim in range(sims):
        neurons = np.repeat(np.arange(20), 4)
        shared = rng.normal(size=20)[neurons] * (2 * rng.integers(0, 2, 20) - 1)[neurons]
        active = shared + 0.3 * rng.normal(size=80)
        inactive = -shared + 0.3 * rng.normal(size=80)
        p = compare(active.tolist(), inactive.tolist(), neurons.tolist(), n=400, seed=sim).p
        below += p < 0.05
        if p_values is not None:
            p_values.append(p)
    return below, sims


def uniform_p(p_values: list[float]) -> float:
    """Return the p-value of the hypothesis that p-values are uniform."""
    return float(stats.kstest(p_values, "uniform").pvalue)


def _words(size: int) -> torch.Tensor:
    from cutaway.planted.rules import WORDS

    allowed = torch.zeros(size, dtype=torch.bool)
    allowed[3 : 3 + len(WORDS)] = True
    return allowed
