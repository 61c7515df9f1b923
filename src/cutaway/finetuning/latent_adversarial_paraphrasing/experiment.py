"""Arms of the method, each from the same weights on the same rows: plain, random shift, found shift, real phrasings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cutaway.errors import UsageError
from cutaway.finetuning.arms import Arms, gather
from cutaway.finetuning.exact import Item, item_data, score
from cutaway.finetuning.latent_adversarial_paraphrasing.method import Climb, Paraphrase
from cutaway.finetuning.latent_adversarial_paraphrasing.worst import Consistency
from cutaway.model import Model
from cutaway.training import LoraSpec, NextToken, Objective, TrainConfig, add_lora, train

PLAIN, RANDOM, FOUND, PHRASED = "plain", "random shift", "found shift", "real phrasings"


@dataclass(frozen=True)
class Wordings:
    """Queries in several wordings each, as prompts with reference answers."""

    train: tuple[Item, ...]
    """In the wordings for training."""
    augmented: tuple[Item, ...]
    """The same queries in more wordings, as many rows: the upper bound."""
    test: tuple[tuple[Item, ...], ...]
    """Other queries, each in its held-out wordings, the original first."""


@dataclass(frozen=True)
class Comparison:
    """All arms."""

    arms: Arms
    """Measures: exact answers (original, average, worst, best) and log-probabilities (average and worst)."""
    climbs: tuple[Climb, ...]
    """Inner loops of all repeats."""
    curves: tuple[Mapping[str, tuple[float, ...]], ...]
    scores: tuple[Mapping[str, np.ndarray], ...]
    """Exact answers [query wording] by arm, one a repeat."""

    def __repr__(self) -> str:
        if not self.arms.arms:
            return "Comparison(no whole repeat)"
        return f"Comparison(worst wording, found shift - plain {self.gain()!r})"

    def gain(self, arm: str = FOUND, over: str = PLAIN, measure: str = "worst") -> Any:
        """Return the paired difference over queries, repeats of a query in one cluster."""
        from cutaway.stats import share_difference

        a, b = (np.concatenate([Consistency(run[name]).each(measure) for run in self.scores]) for name in (arm, over))
        return share_difference(a, b, clusters=np.tile(np.arange(len(a) // len(self.scores)), len(self.scores)))

    def climb_gain(self) -> Any:
        """Return how much more the found shift raises the loss than a random one of its size, over batches."""
        from cutaway.stats import mean_interval

        return mean_interval([each.end - each.start for each in self.climbs])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        scores = [{name: value.tolist() for name, value in run.items()} for run in self.scores]
        climbs = [vars(each) for each in self.climbs]
        return {**self.arms.to_dict(), "climbs": climbs, "curves": [dict(c) for c in self.curves], "scores": scores}


def compare(
    make: Callable[[int], Model],
    wordings: Wordings,
    config: TrainConfig,
    paraphrase: Paraphrase,
    *,
    repeats: int = 3,
    lora: LoraSpec | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Comparison:
    """Train every arm ``repeats`` times, each on a fresh model of ``make(repeat)``; Ctrl-C keeps whole repeats."""
    if repeats < 1:
        raise UsageError(f"repeats={repeats}: 1 or more")
    runs, curves, scores, climbs = [], [], [], list[Climb]()
    complete = True
    try:
        for repeat in range(repeats):
            seeded = replace(config, seed=config.seed + repeat)
            found: dict[str, dict[str, float]] = {"before": {}}
            curve: dict[str, tuple[float, ...]] = {}
            told: dict[str, np.ndarray] = {}
            start = make(repeat)
            found["before"], told["before"] = measured(start, wordings.test)
            inner = replace(paraphrase, log=[])
            plan: dict[str, tuple[Objective, Sequence[Item]]] = {
                PLAIN: (NextToken(), wordings.train),
                RANDOM: (replace(paraphrase, steps=0, log=[]), wordings.train),
                FOUND: (inner, wordings.train),
                PHRASED: (NextToken(), wordings.augmented),
            }
            for name, (objective, items) in plan.items():
                report(repeat, repeats, name)
                model = _opened(make(repeat), lora)
                trained = train(model, item_data(items, model.n_ctx), seeded, objective=objective)
                if not trained.complete:
                    raise KeyboardInterrupt
                found[name], told[name] = measured(trained.model, wordings.test)
                curve[name] = tuple(step.terms.get("plain", step.loss) for step in trained.history)
            runs.append(found)
            curves.append(curve)
            scores.append(told)
            climbs += inner.log
    except KeyboardInterrupt:
        complete = False
    shares = dict.fromkeys(("original", "average", "worst", "best"), len(wordings.test))
    return Comparison(
        Arms(gather(runs, (PLAIN, RANDOM)), shares, complete), tuple(climbs), tuple(curves), tuple(scores)
    )


def measured(model: Model, test: Sequence[Sequence[Item]]) -> tuple[dict[str, float], np.ndarray]:
    """Return the measures of a model, and its exact answers [query wording]."""
    width = len(test[0])
    if any(len(query) != width for query in test):
        raise UsageError("every query needs as many wordings as the others")
    found = score(model, [item for query in test for item in query])
    exact = Consistency(found.exact.reshape(-1, width).astype(float))
    logp = Consistency(found.logp.reshape(-1, width))
    values = {which: float(exact.each(which).mean()) for which in ("worst", "average", "original", "best", "spread")}
    values |= {f"log-probability, {which}": float(logp.each(which).mean()) for which in ("worst", "average")}
    return values, exact.scores


def _opened(model: Model, lora: LoraSpec | None) -> Model:
    if lora is not None:
        return add_lora(model, lora)
    model.hf.requires_grad_(True)
    return model
