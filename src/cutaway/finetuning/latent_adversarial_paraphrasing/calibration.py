"""The method where one known direction of the embedding makes a model brittle.

Null: a model whose answers no style changes, so that no shift along the direction can be found.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from cutaway.finetuning.exact import Item
from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import Comparison, Wordings, compare
from cutaway.finetuning.latent_adversarial_paraphrasing.method import Paraphrase, batch_of
from cutaway.finetuning.latent_adversarial_paraphrasing.worst import naive_worst, split_worst
from cutaway.planted.phrasing import PlantedPhrasing, planted_phrasing
from cutaway.stats import mean_interval
from cutaway.study import Rate
from cutaway.training import TrainConfig

RHO, INNER, RATE, STEPS = 0.3, 3, 1e-3, 60


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, each trial with models of its own."""
    found = raised = better = silent = inside = batches = 0
    for trial in range(trials):
        report(trial, trials)
        planted = planted_phrasing(seed=trial)
        found += alignment(planted) >= 0.6
        run = small_trial(planted, trial)
        raised += run.climb_gain().low > 0
        better += run.gain().low > 0 and run.gain().value >= 0.05
        inside += sum(climb.size <= 1.1 * RHO for climb in run.climbs)
        batches += len(run.climbs)
        silent += alignment(planted_phrasing(seed=trial, brittle=False)) < 0.4
    unbiased, biased, n = noise_trials(20 * trials)
    return (
        Rate("direction found", found, trials, at_least=0.9, what="cosine 0.6 or more between shift and direction"),
        Rate("direction claimed on the null", trials - silent, trials, at_most=0.1, what="cosine 0.4 or more"),
        Rate("shift raises the loss", raised, trials, at_least=0.9, what="more than a random one of its size"),
        Rate("constraint held", inside, batches, at_least=0.9, what="mean size at most 1.1 rho after the inner loop"),
        Rate(
            "worst wording improves", better, trials, at_least=0.75, what="5 points over plain tuning, interval above 0"
        ),
        Rate("split estimate covers zero gap", unbiased, n, at_least=0.88, what="equal true scores"),
        Rate("naive estimate covers zero gap", biased, n, at_most=0.2, what="the same scores; it should not"),
    )


def small_wordings(planted: PlantedPhrasing, train: int = 300, test: int = 100) -> Wordings:
    """Return wordings on a planted model: a few styles to tune on, eleven others to test with."""
    rng = np.random.default_rng(0)
    held = planted.queries(test, 2)
    rows = planted.queries(train, 1)

    def item(query: tuple[int, int], style: int) -> Item:
        return Item(*planted.item(query, style))

    return Wordings(
        train=tuple(item(query, planted.tuning[i % len(planted.tuning)]) for i, query in enumerate(rows)),
        augmented=tuple(item(query, int(rng.integers(len(planted.places)))) for query in rows),
        test=tuple(tuple(item(query, style) for style in planted.held_out) for query in held),
    )


def small_trial(planted: PlantedPhrasing, seed: int, repeats: int = 1) -> Comparison:
    """Train every arm on a planted model."""
    config = TrainConfig(
        rate=RATE, batch=32, steps=STEPS, schedule="constant", bucket=1, precision="float32", seed=seed
    )
    paraphrase = Paraphrase(0, RHO, steps=INNER)
    return compare(lambda repeat: planted.model.copy(), small_wordings(planted), config, paraphrase, repeats=repeats)


def alignment(planted: PlantedPhrasing, rows: int = 64) -> float:
    """Return the mean cosine, at the style's position, of the shift found on the untuned model with the direction."""
    items = [planted.item(query, planted.tuning[0]) for query in planted.queries(rows, 3)]
    tokens = planted.model.batch([(*ids, *answer) for ids, answer in items])
    weights = torch.zeros(tokens.ids.shape)
    weights[:, -1] = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shift = Paraphrase(0, RHO, steps=5).shift(planted.model, batch_of(tokens, weights))
    return float(functional.cosine_similarity(shift[:, 0], planted.direction[None], dim=-1).mean())


def noise_trials(trials: int, seed: int = 0) -> tuple[int, int, int]:
    """Return how often the split and the naive gap (worst - average) has an interval over 0, for equal true scores."""
    rng = np.random.default_rng(seed)
    covered = [0, 0]
    for _ in range(trials):
        samples = rng.binomial(1, 0.6, (100, 11, 10)).astype(float)
        average = samples.mean((1, 2))
        for place, worst in enumerate((split_worst(samples), naive_worst(samples))):
            gap = mean_interval(worst - average)
            covered[place] += gap.low <= 0 <= gap.high
    return covered[0], covered[1], trials
