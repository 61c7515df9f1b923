"""Executors and detectors: which features do the task at the arrow, and which notice that it has just been done.

An **executor** is a feature of the stream at arrows whose effect is positive and which, added alone to prompts without
examples, lowers their loss. A **detector** is an earlier feature at output tokens with a positive effect that fires
there more often in prompts of its task than in prompts of other tasks. The link between them is causal: with detectors
removed at output tokens, executors fall at arrows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.data import Prompts
from cutaway.circuits.icl_feature_circuits.feature_graph import NodeEffects, Place
from cutaway.circuits.icl_feature_circuits.steering import unit_atom
from cutaway.circuits.icl_feature_circuits.task_vectors import Bench
from cutaway.model import Add, Model
from cutaway.stats import Interval, newcombe, paired_difference


@dataclass(frozen=True)
class Executor:
    """A feature at arrows that lowers the loss of prompts without examples."""

    latent: int
    effect: float
    """First-order effect at arrows of few-shot prompts, nats."""
    gain: Interval
    """Fall of the zero-shot loss when it is added alone, on held-out queries."""


@dataclass(frozen=True)
class Detector:
    """A feature at output tokens that fires where its task has just been completed."""

    latent: int
    effect: float
    rate: float
    """Share of output tokens of its task where it fires."""
    elsewhere: float
    """The same share in prompts of other tasks."""
    difference: Interval
    """Their difference, with tokens taken as independent (Newcombe)."""


@dataclass(frozen=True)
class Link:
    """What becomes of executors when detectors are removed at output tokens."""

    executors: tuple[int, ...]
    detectors: tuple[int, ...]
    before: Interval
    """Mean summed value of the executors at arrows, over prompts."""
    fall: Interval
    """Relative fall of it without the detectors, over prompts."""
    random: Interval
    """Relative fall without as many random features that fire at output tokens."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def executors(
    effects: NodeEffects, bench: Bench, place: Place, *, scale: float, candidates: int = 10, least: float = 0.01
) -> tuple[Executor, ...]:
    """Features among the ``candidates`` of largest effect at arrows whose gain alone is above ``least`` nats.

    The lower end of the gain's interval has to be.
    """
    with torch.no_grad():
        base = bench.losses().double().cpu().numpy()
        found = []
        for _, latent, effect in effects.top(candidates, "arrow"):
            losses = bench.losses(scale * unit_atom(place.dictionary, latent)).double().cpu().numpy()
            found.append(Executor(latent, effect, paired_difference(base, losses)))
    return tuple(each for each in found if each.gain.low > least)


def detectors(
    model: Model,
    effects: NodeEffects,
    place: Place,
    own: Prompts,
    others: Sequence[Prompts],
    *,
    candidates: int = 10,
) -> tuple[Detector, ...]:
    """Features among the ``candidates`` at output tokens that fire more often than in the prompts of other tasks."""
    here = _firing(model, place, own)
    there = torch.cat([_firing(model, place, each) for each in others]) if others else here[:0]
    found = []
    for _, latent, effect in effects.top(candidates, "output"):
        k, n, k2, n2 = int(here[:, latent].sum()), len(here), int(there[:, latent].sum()), len(there)
        difference = newcombe(k, n, k2, n2)
        found.append(Detector(latent, effect, k / n, k2 / n2 if n2 else float("nan"), difference))
    return tuple(each for each in found if each.difference.low > 0)


def link(
    model: Model,
    prompts: Prompts,
    early: Place,
    late: Place,
    found: Sequence[int],
    executing: Sequence[int],
    *,
    seed: int = 0,
) -> Link:
    """Remove detectors ``found`` at output tokens of ``early``; read the executors at arrows of ``late``.

    Arrows before any complete example are left out.
    """
    with torch.no_grad():
        x = model.capture(prompts.batch, early.reads, special=True)[early.reads]
        codes = early.encode(x).dense()
        where = prompts.having("output").flatten()
        active = (codes[where] != 0).any(0).nonzero()[:, 0].cpu().numpy()
        among = np.setdiff1d(active, list(found))
        drawn = np.random.default_rng([seed, 31]).permutation(among)[: len(found)].tolist()
        before = _values(model, prompts, late, executing)
        without = [_removed(model, prompts, early, late, codes, part, executing) for part in (found, drawn)]
    falls = [_relative(before, after) for after in without]
    return Link(tuple(executing), tuple(found), paired_difference(before, np.zeros_like(before)), falls[0], falls[1])


def _removed(
    model: Model,
    prompts: Prompts,
    early: Place,
    late: Place,
    codes: Float[Tensor, "row latent"],
    latents: Sequence[int],
    executing: Sequence[int],
) -> np.ndarray:
    if not len(latents):
        return _values(model, prompts, late, executing)
    taken = codes[:, list(latents)] @ early.dictionary.atoms[list(latents)]
    taken = taken.view(*prompts.role.shape, -1) * prompts.having("output")[..., None]
    if not bool(taken.any()):
        return _values(model, prompts, late, executing)
    with model.edited(Add(early.site, -taken)):
        return _values(model, prompts, late, executing)


def _values(model: Model, prompts: Prompts, place: Place, latents: Sequence[int]) -> Float[np.ndarray, " batch"]:
    """Mean over each prompt's target arrows of the latents' summed value."""
    x = model.capture(prompts.batch, place.reads, special=True)[place.reads]
    dense = place.encode(x).dense()[:, list(latents)].sum(-1).view(prompts.role.shape)
    real = prompts.real.to(dense)
    found: np.ndarray = ((dense.gather(1, prompts.at) * real).sum(-1) / real.sum(-1)).double().cpu().numpy()
    return found


def _relative(before: np.ndarray, after: np.ndarray) -> Interval:
    """Fall of the mean relative to the mean before, linearised over prompts."""
    base = before.mean()
    if base == 0:
        return Interval(float("nan"), float("nan"), float("nan"), len(before), 0.95)
    ratio = 1 - after.mean() / base
    return paired_difference(ratio + (before - after - ratio * before) / base, np.zeros_like(before))


def _firing(model: Model, place: Place, prompts: Prompts) -> Tensor:
    """[token latent]: where latents are active at output tokens."""
    with torch.no_grad():
        x = model.capture(prompts.batch, place.reads, special=True)[place.reads]
        return place.encode(x).dense()[prompts.having("output").flatten()] != 0


def class_dict(found: Mapping[str, Sequence[Executor | Detector]]) -> dict[str, Any]:
    """JSON-able form by task."""
    return {task: [asdict(each) for each in rows] for task, rows in found.items()}
