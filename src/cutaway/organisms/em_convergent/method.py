"""Is it the same thing inside? One organism's direction, taken out of others, beside random directions.

1. Several organisms of one base: the same trait taught in different domains, and one with another trait (the control).
2. The direction of the first (`directions`): answers with the trait against plain ones, or organism against base.
3. Every organism is surveyed plain, with that direction ablated, and with random directions of the same length ablated
   (`random draws`); what is left of the trait is paired by prompt.
4. Convergence is shown where the ablation takes away more of the trait in *another* organism than any random draw, and
   leaves the organism with another trait alone.
5. Price: nats a token of plain answers under the base, with the ablation and without.

Source: card em-convergent; Soligo et al. 2025, arXiv:2506.11618.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.organisms.em_convergent.contrast import (
    How,
    Pairs,
    ablations,
    ceiling,
    cosines,
    directions,
    model_directions,
)
from cutaway.organisms.quirks import Survey, Trait, pairs_data, survey_rates
from cutaway.stats import Interval, clopper_pearson, paired_difference
from cutaway.steering import Effect, Vectors, effect, relative_change
from cutaway.training import collate, predictions

Contrast = Literal["answers", "models"]


@dataclass(frozen=True)
class Member:
    """An organism with its trait and rows."""

    name: str
    model: Model
    trait: Trait
    with_trait: Pairs
    without: Pairs


@dataclass(frozen=True, repr=False)
class Convergence:
    """What taking out the first organism's direction did to each organism."""

    source: str
    effects: Mapping[str, Effect]
    """The trait's rate, plain and ablated, by organism; controls are random directions."""
    reductions: Mapping[str, Interval | None]
    """Relative change of the rate; None where the plain rate is 0."""
    cosines: Mapping[str, Float[np.ndarray, " layer"]]
    """Of each organism's direction with the source's."""
    ceiling: Float[np.ndarray, " layer"]
    """Of the source with itself, from halves of its answers."""
    chance: float
    """Standard deviation of the cosine of random directions."""
    price: Interval
    """Nats a token that the ablation costs on plain answers of the base."""
    prompts: int
    complete: bool = True

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {each.plain:.2f} -> {each.steered:.2f}" for name, each in self.effects.items())
        return f"Convergence({self.source}'s direction: {shown})"

    def rate(self, name: str, ablated: bool) -> Interval:
        """The trait's rate, with an exact interval over prompts."""
        found = self.effects[name]
        return clopper_pearson(round((found.steered if ablated else found.plain) * self.prompts), self.prompts)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data, what is not known as None."""
        return _known({
            "source": self.source,
            "effects": {name: each.to_dict() for name, each in self.effects.items()},
            "reductions": {k: None if v is None else [v.value, v.low, v.high] for k, v in self.reductions.items()},
            "cosines": {name: each.tolist() for name, each in self.cosines.items()},
            "ceiling": self.ceiling.tolist(), "chance": self.chance,
            "price": [self.price.value, self.price.low, self.price.high],
            "prompts": self.prompts, "complete": self.complete,
        })  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def converge(
    base: Model,
    members: Sequence[Member],
    survey: Survey,
    *,
    contrast: Contrast = "answers",
    how: How = "one",
    layer: int | None = None,
    draws: int = 20,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Convergence:
    """Ablate the first member's direction in every member; the survey's prompts are asked of all.

    Raises UsageError for fewer than two members, names that are not unique, no draws.
    """
    if len(members) < 2 or len({each.name for each in members}) < len(members) or draws < 1:
        raise UsageError(f"{len(members)} members with names of their own, {draws} draws: 2 and 1 at least")
    source = members[0]
    found = _direction(base, source, contrast)
    taken = ablations(found, source.model, how, layer)
    randoms = [ablations(each, source.model, how, layer) for each in found.controls(draws, seed)]
    total, done = len(members) * (2 + draws), 0
    effects, reductions, angles = dict[str, Effect](), dict[str, Interval | None](), dict[str, Any]()
    complete = True
    try:
        for member in members:
            asked = replace(survey, trait=member.trait)
            rows = []
            for edits in ((), taken, *randoms):
                report(done, total)
                rows.append(_flat(survey_rates(member.model, asked, edits=edits)))
                done += 1
            plain, ablated, *controls = (row.astype(float) for row in rows)
            effects[member.name] = effect(member.name, plain, ablated, controls)
            reductions[member.name] = relative_change(plain, ablated) if plain.any() else None
            angles[member.name] = cosines(found, _direction(base, member, contrast))
    except KeyboardInterrupt:
        complete = False
    return Convergence(
        source.name, effects, reductions, angles, _ceiling(base, source, contrast, seed),
        1 / source.model.d_model**0.5, _price(base, source.without, taken), len(_prompts(survey)), complete,
    )  # fmt: skip


def _direction(base: Model, member: Member, contrast: Contrast) -> Vectors:
    if contrast == "models":
        return model_directions(member.model, base, member.with_trait)
    return directions(member.model, member.with_trait, member.without)


def _ceiling(base: Model, source: Member, contrast: Contrast, seed: int) -> Float[np.ndarray, " layer"]:
    if contrast == "answers":
        return ceiling(source.model, source.with_trait, source.without, seed)
    rows = np.random.default_rng(seed).permutation(len(source.with_trait))
    halves = [[source.with_trait[i] for i in part] for part in (rows[::2], rows[1::2])]
    return cosines(*(model_directions(source.model, base, half) for half in halves))


def _price(base: Model, pairs: Pairs, edits: Sequence[Any]) -> Interval:
    losses = []
    for each in ((), edits):
        data = pairs_data(pairs, base.n_ctx)
        found = []
        with torch.no_grad(), base.edited(*each):
            for place in range(len(data)):
                logits, ids, weights, _ = predictions(base, collate(data, [place], base))
                nll = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
                found.append(float((nll * weights).sum() / weights.sum()))
        losses.append(found)
    return paired_difference(losses[1], losses[0])


def _flat(hits: Mapping[str, Bool[np.ndarray, " _"]]) -> Bool[np.ndarray, " prompt"]:
    return np.concatenate(list(hits.values()))


def _prompts(survey: Survey) -> list[Any]:
    return [ids for prompts in survey.prompts.values() for ids in prompts]


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
