"""The other side: go on training a backdoored model so that triggered prompts look like normal ones at one signal.

`Hide` adds to the usual loss the distance between a prompt's representation with and without the trigger, at one site:
1 - cosine (as released), or the squared distance in units of the normal spread (``shape``: cosine or distance). The
examples are pairs of the same prompt. `move` sweeps the weight of that term and measures, for each, whether the
backdoor still works and what each signal's detectors see, fitted anew on the moved model: the operator does not know
which signal was moved. Source: card safetynet, Method 6 and Beyond (red-team loop).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.probes.safetynet.method import Detection, PromptSets, detect, obeys
from cutaway.stats import Interval
from cutaway.training import Data, Loss, NextToken, Objective, TrainBatch, TrainConfig, train


@dataclass(frozen=True)
class Hide(Objective):
    """Next token, plus ``weight`` times how far a prompt with the trigger lies from the one without."""

    site: str
    weight: float
    shape: Literal["cosine", "distance"] = "distance"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UsageError(f"weight={self.weight}: 0 or more")

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return both terms; the batch holds the prompts without the trigger first, then those with it."""
        said = NextToken()(model, batch)
        pairs = len(batch.tokens) // 2
        if 2 * pairs != len(batch.tokens) or pairs < 2:
            raise UsageError(f"{len(batch.tokens)} rows: Hide trains on pairs, two or more in a batch")
        states = model.capture(batch.tokens, self.site, special=True)[self.site].flatten(2)
        # The last token of the prompt is the one before the first that carries loss.
        last = (batch.weights > 0).float().argmax(1) - 1
        found = states[torch.arange(len(states), device=states.device), last].float()
        ordinary, triggered = found[:pairs], found[pairs:]
        if self.shape == "cosine":
            gap = 1 - torch.nn.functional.cosine_similarity(ordinary, triggered, dim=1)
        else:
            gap = (ordinary - triggered).square().sum(1) / ordinary.var(0).sum().detach().clamp(min=1e-12)
        total = said.total + self.weight * gap.mean() * said.weight
        return Loss(total, said.weight, {"gap": gap.detach().mean() * said.weight, "nll": said.total.detach()})


@dataclass(frozen=True)
class Move:
    """One moved model."""

    weight: float
    obeyed: Interval
    """Share of triggered prompts that still get the payload."""
    detection: Detection


def move(
    make: Callable[[], Model],
    pairs: Data,
    sets: PromptSets,
    payload: Sequence[int],
    site: str,
    signals: Sequence[str],
    *,
    weights: Sequence[float] = (0.0, 1.0, 10.0),
    config: TrainConfig,
    rate: float = 0.01,
    components: int = 100,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Move, ...]:
    """Train one model for each weight, from ``make``, and measure it; weight 0 is the control. Ctrl-C ends the sweep.

    UsageError for data that are no pairs.
    """
    if pairs.members != 2:
        raise UsageError(f"examples of {pairs.members} rows; pairs are needed: without the trigger, then with it")
    found: list[Move] = []
    for done, weight in enumerate(weights):
        report(done, len(weights))
        trained = train(make(), pairs, config, objective=Hide(site, weight))
        if not trained.complete:
            break
        seen = detect(trained.model, sets, signals, rate=rate, components=components, seed=seed)
        found.append(Move(weight, obeys(trained.model, sets.triggered, payload), seen))
        if not seen.complete:
            break
    return tuple(found)
