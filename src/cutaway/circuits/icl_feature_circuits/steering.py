"""Does one feature alone steer its own task, and only that?

Each feature's unit atom, times a scale, is added at the arrow of prompts without examples, of every task; and is
subtracted at all arrows of few-shot prompts. A task x feature matrix that is large on its diagonal shows that features
are specific. Whether it could be so by chance is asked by exchanging which feature belongs to which task.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.task_vectors import Bench
from cutaway.errors import UsageError
from cutaway.features import Dictionary
from cutaway.stats import Interval, mean_interval, paired_difference

_EXACT = 8
"""Up to 8 tasks all assignments are counted; beyond, `_DRAWN` random ones."""
_DRAWN = 9999


@dataclass(frozen=True, eq=False)
class Steering:
    """What one feature a task does to every task."""

    tasks: tuple[str, ...]
    features: tuple[int, ...]
    """The feature of each task."""
    scale: float
    """Length of what was added."""
    gain: tuple[tuple[Interval, ...], ...]
    """[feature][task]: fall of the zero-shot loss when the feature is added, nats, paired over prompts."""
    damage: tuple[tuple[Interval, ...], ...]
    """[feature][task]: rise of the few-shot loss when it is subtracted at all arrows; empty where not measured."""
    random: tuple[Interval, ...]
    """[task]: mean fall of the zero-shot loss over random atoms; the interval is over the atoms."""
    p: float
    """Share of assignments of features to tasks with a diagonal at least as large, the true one counted in."""

    def specificity(self, feature: int) -> Interval:
        """A feature's gain on its own task minus its mean gain on the others (standard errors added as independent).

        nan for a single task.
        """
        row = self.gain[feature]
        others = [cell for i, cell in enumerate(row) if i != feature]
        if not others:
            return Interval(math.nan, math.nan, math.nan, 0, 0.95)
        value = row[feature].value - float(np.mean([cell.value for cell in others]))
        half = math.hypot(_half(row[feature]), *(_half(cell) / len(others) for cell in others))
        return Interval(value, value - half, value + half, row[feature].n, 0.95)

    @property
    def dominant(self) -> int:
        """Features whose own task gains more than any other."""
        values = np.array([[cell.value for cell in row] for row in self.gain])
        return int((values.argmax(1) == np.arange(len(values))).sum())

    def __repr__(self) -> str:
        return f"Steering({self.dominant} of {len(self.tasks)} features help their own task most, p={self.p:.3g})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "features": list(self.features),
            "scale": self.scale,
            "gain": [[vars(cell) for cell in row] for row in self.gain],
            "damage": [[vars(cell) for cell in row] for row in self.damage],
            "random": [vars(cell) for cell in self.random],
            "p": self.p,
        }


def steer(
    benches: Mapping[str, Bench],
    dictionary: Dictionary,
    features: Mapping[str, int],
    *,
    scale: float,
    few: Mapping[str, Bench] | None = None,
    controls: int = 10,
    seed: int = 0,
) -> Steering:
    """Steer every task with every task's feature.

    benches: prompts without examples of each task.
    features: the latent that stands for each task.
    scale: length of the vector added; the length of a task vector is a natural one.
    few: few-shot prompts of each task, for the damage; None leaves that out.
    controls: random atoms beside them.
    """
    tasks = tuple(features)
    if not tasks or not set(tasks) <= set(benches):
        raise UsageError(f"features of {', '.join(tasks) or 'no task'}; benches of {', '.join(benches)}")
    if scale <= 0:
        raise UsageError(f"scale={scale}: above 0")
    base = {task: _losses(benches[task], None) for task in tasks}
    added = [scale * unit_atom(dictionary, features[task]) for task in tasks]
    gain = tuple(
        tuple(paired_difference(base[task], _losses(benches[task], vector)) for task in tasks) for vector in added
    )
    damage: tuple[tuple[Interval, ...], ...] = ()
    if few is not None:
        shown = {task: _losses(few[task], None) for task in tasks}
        damage = tuple(
            tuple(paired_difference(_losses(few[task], -vector), shown[task]) for task in tasks) for vector in added
        )
    drawn = np.random.default_rng([seed, 9]).choice(
        np.setdiff1d(np.arange(dictionary.n_latents), list(features.values())), controls
    )
    vectors = [scale * unit_atom(dictionary, int(latent)) for latent in drawn]
    random = tuple(
        mean_interval([float(np.mean(base[task] - _losses(benches[task], vector))) for vector in vectors])
        for task in tasks
    )
    values = np.array([[cell.value for cell in row] for row in gain])
    p = permutation_p(values, seed)
    return Steering(tasks, tuple(features[task] for task in tasks), float(scale), gain, damage, random, p)


def unit_atom(dictionary: Dictionary, latent: int) -> Float[Tensor, " d_model"]:
    """A latent's direction, of length 1."""
    atom = dictionary.atoms[latent].detach()
    return atom / atom.norm().clamp(min=1e-12)


def permutation_p(values: Float[np.ndarray, "feature task"], seed: int = 0) -> float:
    """Share of the assignments of features to tasks whose summed gain is at least the true one's."""
    n = len(values)
    orders: Sequence[Sequence[int]]
    if n <= _EXACT:
        orders = list(itertools.permutations(range(n)))
    else:
        rng = np.random.default_rng([seed, 13])
        orders = [range(n), *(rng.permutation(n).tolist() for _ in range(_DRAWN))]
    sums = values[np.arange(n), np.array(orders)].sum(-1)
    return float((sums >= np.trace(values) - 1e-12).mean())


def _losses(bench: Bench, vector: Tensor | None) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = bench.losses(vector).double().cpu().numpy()
    return found


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2
