"""The classifier whose gradient steers, and the linear baseline. Both carry the site they were fitted at.

1. ``g(h)`` in R^k: linear, or d -> hidden -> hidden -> k with ReLU, on activations less their mean, over one common
   scale (no axis is stretched, so the gradient keeps its direction); BCE with logits on the labels, Adam.
2. ``wish(h) = mean of g over targets - mean of g over avoids``; its gradient is closed form (`GradientStep`).
3. Linear ``g``: the gradient is the same everywhere, ``mean w_T - mean w_A``, so the edit is a plain `Add`.
4. Baseline (CAA): mean of a style less mean of neutral texts; targets' sum less avoids' sum, at length 1.

A strength is a share of the stream's own length at the site (median), so it means the same at every layer. With
``unit=False`` the raw gradient is taken, as published. A classifier cannot be applied at another site than its own:
its edits are made from ``site``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.model import Add, Edit, Positions
from cutaway.model.edits import GradientStep


@dataclass(frozen=True)
class Recipe:
    """How a classifier is fitted."""

    hidden: int = 128
    """Width of both hidden layers; 0 for a linear classifier."""
    epochs: int = 10
    batch: int = 32
    rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden < 0 or self.epochs < 1 or self.batch < 1 or not self.rate > 0:
            raise UsageError(f"{self}: hidden from 0; epochs, batch and rate above 0")


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A fitted classifier; ``weights`` read the activation as it is (centre and scale are folded in)."""

    labels: tuple[str, ...]
    site: str
    weights: tuple[Tensor, ...]
    """w, b of each layer: three pairs, or one for a linear classifier."""
    stream: float
    """Median length of the activations it was fitted on."""

    def __repr__(self) -> str:
        kind = "linear" if self.linear else f"{len(self.weights[0])} hidden"
        return f"Classifier({', '.join(self.labels)}; {kind}, at {self.site})"

    @property
    def linear(self) -> bool:
        return len(self.weights) == 2

    def logits(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        """One logit for each label."""
        here = x.to(self.weights[0])
        for at in range(0, len(self.weights), 2):
            here = (here.relu() if at else here) @ self.weights[at].T + self.weights[at + 1]
        return here

    def probabilities(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        """One probability for each label; they need not add to 1."""
        return self.logits(x).sigmoid()

    def edits(
        self,
        targets: Sequence[str],
        avoids: Sequence[str] = (),
        strength: float = 0.1,
        *,
        steps: int = 1,
        decay: float = 1.0,
        unit: bool = True,
        until: float | None = None,
        keep_norm: bool = False,
        positions: Positions = None,
    ) -> tuple[Edit, ...]:
        """Return what pushes towards ``targets`` and away from ``avoids``; nothing for a strength of 0.

        A step is ``strength * stream * decay**s`` long with ``unit``, else ``strength * decay**s`` raw gradients.
        ``until`` ends a position's climb at the probability that the wish, read as a log-odds, stands for.
        Raises UsageError for labels (see `signs`), and for ``until`` or ``keep_norm`` with a linear classifier.
        """
        weight = signs(self.labels, targets, avoids)
        scale = float(strength * (self.stream if unit else 1.0))
        if scale == 0:
            return ()
        if self.linear:
            if until is not None or keep_norm:
                raise UsageError("until, keep_norm: a linear classifier is one vector; fit with hidden > 0")
            vector = weight @ self.weights[0]
            vector = vector / vector.norm() if unit else vector
            return (Add(self.site, vector, scale * sum(decay**step for step in range(steps)), positions),)
        w1, b1, w2, b2, w3, b3 = self.weights
        goal = None if until is None else _log_odds(until) - float(weight @ b3)
        step = GradientStep(
            self.site, w1, b1, w2, b2, weight @ w3, scale, steps, float(decay), unit, goal, keep_norm, positions
        )
        return (step,)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        about = json.dumps({"labels": self.labels, "site": self.site, "stream": self.stream})
        tensors = {f"{place}": weight.contiguous() for place, weight in enumerate(self.weights)}
        save_file(tensors, path, {"classifier": about})


@dataclass(frozen=True, eq=False, repr=False)
class StyleVectors:
    """The linear baseline: one vector a label, at one site."""

    labels: tuple[str, ...]
    site: str
    values: Float[Tensor, "k d"]
    """mean(style) - mean(neutral)."""
    stream: float

    def __repr__(self) -> str:
        return f"StyleVectors({', '.join(self.labels)}; at {self.site})"

    def direction(self, targets: Sequence[str], avoids: Sequence[str] = ()) -> Float[Tensor, " d"]:
        """Sum of the targets' vectors less the avoids', at length 1; UsageError where it is zero."""
        total = signs(self.labels, targets, avoids).sign() @ self.values
        if not float(total.norm()) > 1e-9 * self.stream:
            raise UsageError(f"targets {list(targets)} and avoids {list(avoids)} cancel: there is no direction left")
        return total / total.norm()

    def edits(
        self,
        targets: Sequence[str],
        avoids: Sequence[str] = (),
        strength: float = 0.1,
        *,
        positions: Positions = None,
    ) -> tuple[Edit, ...]:
        """Add the direction at ``strength`` times the stream's length; nothing for a strength of 0."""
        direction = self.direction(targets, avoids)
        return (Add(self.site, direction, float(strength * self.stream), positions),) if strength else ()


def load_classifier(path: str | Path) -> Classifier:
    """Read what `Classifier.save` wrote; CutawayError for a file that is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["classifier"])
            names = sorted(file.keys(), key=int)
            weights = tuple(file.get_tensor(name) for name in names)
        return Classifier(tuple(about["labels"]), about["site"], weights, float(about["stream"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CutawayError(f"{Path(path).name} holds no classifier written by Classifier.save: {error}") from error


def fit_classifier(
    x: Float[Tensor, "n d"],
    y: Bool[Tensor, "n k"],
    labels: Sequence[str],
    site: str,
    recipe: Recipe | None = None,
) -> Classifier:
    """Fit on activations captured at ``site``; rows without a label are neutral. Reproducible by the recipe's seed.

    Raises UsageError for labels that do not fit ``y``, come twice, or have no row or every row.
    """
    recipe = recipe or Recipe()
    _check_rows(x, y, labels)
    mean = x.float().mean(0)
    spread = float((x.float() - mean).square().mean().sqrt())
    if not spread > 0:
        raise UsageError("all activations are the same; there is nothing to tell apart")
    layers = _fitted((x.float() - mean) / spread, y.float(), recipe)
    first, bias = layers[0] / spread, layers[1] - layers[0] @ mean / spread
    stream = float(x.float().norm(dim=-1).median())
    return Classifier(tuple(labels), site, (first, bias, *layers[2:]), stream)


def fit_vectors(x: Float[Tensor, "n d"], y: Bool[Tensor, "n k"], labels: Sequence[str], site: str) -> StyleVectors:
    """Means of each label less the mean of rows without one (of all other rows where every row has one)."""
    _check_rows(x, y, labels)
    neutral = ~y.any(1)
    rows = []
    for label in range(y.shape[1]):
        against = neutral if bool(neutral.any()) else ~y[:, label]
        rows.append(x[y[:, label]].double().mean(0) - x[against].double().mean(0))
    return StyleVectors(tuple(labels), site, torch.stack(rows).float(), float(x.float().norm(dim=-1).median()))


def signs(labels: Sequence[str], targets: Sequence[str], avoids: Sequence[str] = ()) -> Float[Tensor, " k"]:
    """The weight of each label in the wish: 1/|T| for targets, -1/|A| for avoids.

    Raises UsageError for no target, an unknown label, or one that is named twice or on both sides.
    """
    if not targets:
        raise UsageError(f"no target given{nearest('', labels)}")
    for name in (*targets, *avoids):
        if name not in labels:
            raise UsageError(f"no label {name!r}{nearest(name, labels)}")
    if both := sorted(set(targets) & set(avoids)):
        raise UsageError(f"label {both[0]!r} is a target and to be avoided; keep one")
    if len({*targets, *avoids}) < len(targets) + len(avoids):
        raise UsageError(f"targets {list(targets)}, avoids {list(avoids)}: name each label once")
    weight = torch.zeros(len(labels))
    for name in targets:
        weight[labels.index(name)] = 1 / len(targets)
    for name in avoids:
        weight[labels.index(name)] = -1 / len(avoids)
    return weight


def _fitted(z: Tensor, y: Tensor, recipe: Recipe) -> list[Tensor]:
    sizes = [z.shape[1], *([recipe.hidden] * 2 if recipe.hidden else []), y.shape[1]]
    generator = torch.Generator().manual_seed(recipe.seed)
    weights: list[Tensor] = []
    for inside, outside in pairwise(sizes):
        weights.append(torch.randn(outside, inside, generator=generator) * (2 / inside) ** 0.5)
        weights.append(torch.zeros(outside))
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_()
        optimizer = torch.optim.Adam(weights, lr=recipe.rate)
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(z), generator=generator).split(recipe.batch):
                here = z[rows]
                for at in range(0, len(weights), 2):
                    here = (here.relu() if at else here) @ weights[at].T + weights[at + 1]
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(here, y[rows]).backward()
                optimizer.step()
    return [weight.detach() for weight in weights]


def _check_rows(x: Tensor, y: Tensor, labels: Sequence[str]) -> None:
    if len(labels) != y.shape[1] or len(set(labels)) < len(labels):
        raise UsageError(f"{len(labels)} labels for {y.shape[1]} columns; name each column, each by its own name")
    for place, label in enumerate(labels):
        held = int(y[:, place].sum())
        if not 0 < held < len(y):
            raise UsageError(f"label {label!r} is on {held} of {len(y)} rows; there must be some with and some without")


def _log_odds(probability: float) -> float:
    if not 0 < probability < 1:
        raise UsageError(f"until={probability}: a probability between 0 and 1")
    return math.log(probability / (1 - probability))
