"""What a polynomial monitor has to beat: networks of the same size.

`fit_mlp`: one hidden ReLU layer, as wide as makes its parameters those of a truncation. `fit_early_exit`: a ReLU
network with a linear head on the input and after every layer, widths so that head n comes after as many parameters
as order n, trained on the mean loss of all heads. What needs no activations: `cutaway.probes.shortcuts`. Source: card
tpc, Baselines and Beyond the paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cutaway.errors import UsageError
from cutaway.probes.tpc.method import Labelled, Recipe, optimise
from cutaway.probes.tpc.polynomial import Polynomial


@dataclass(frozen=True, eq=False)
class Network:
    """Layers and heads over standardised activations; scores of all heads are logits."""

    linear: Polynomial = field(repr=False)
    """Holds centre and scale; its score is no part of the network."""
    layers: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    """Weights [out in] and biases [out]."""
    heads: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    """Weights [width] and bias; on the input first where there are more heads than layers."""

    @property
    def multiplies(self) -> tuple[int, ...]:
        """That each head adds, with the layer before it."""
        layers = [weight.numel() for weight, _ in self.layers]
        heads = [len(weight) for weight, _ in self.heads]
        return tuple(a + b for a, b in zip([0] * (len(heads) - len(layers)) + layers, heads, strict=True))

    @property
    def parameters(self) -> int:
        return sum(a.numel() + b.numel() for a, b in (*self.layers, *self.heads))

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "head row"]:
        return _scores(self.linear.standardised(x), self.layers, self.heads)


def fit_mlp(train: Labelled, validation: Labelled, linear: Polynomial, parameters: int, recipe: Recipe) -> Network:
    """Train one hidden layer with about ``parameters`` in all."""
    width = max(1, round((parameters - 1) / (linear.d + 2)))
    epochs = recipe.epochs * max(1, recipe.order - 1)
    return _fit(train, validation, linear, [width], False, recipe, epochs)


def fit_early_exit(
    train: Labelled, validation: Labelled, linear: Polynomial, parameters: Sequence[int], recipe: Recipe
) -> Network:
    """Train a network whose head n adds about ``parameters[n]``; the first is the one on the input."""
    widths, before = [], linear.d
    for size in parameters[1:]:
        before = max(1, round((size - 1) / (before + 2)))
        widths.append(before)
    epochs = recipe.epochs * max(1, recipe.order - 1)
    return _fit(train, validation, linear, widths, True, recipe, epochs)


def _fit(
    train: Labelled,
    validation: Labelled,
    linear: Polynomial,
    widths: Sequence[int],
    all_heads: bool,
    recipe: Recipe,
    epochs: int,
) -> Network:
    if not widths:
        raise UsageError("a network needs at least one hidden layer")
    generator = torch.Generator().manual_seed(recipe.seed)
    z, held = linear.standardised(train.x), linear.standardised(validation.x)
    y, held_y = train.y.float(), validation.y.float()
    sizes = [linear.d, *widths]
    layers = [
        (_uniform((out, into), into, generator), _uniform((out,), into, generator)) for into, out in pairwise(sizes)
    ]
    heads = [
        (_uniform((size,), size, generator), _uniform((), size, generator))
        for size in (sizes if all_heads else sizes[-1:])
    ]

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        scores = _scores(rows, layers, heads)
        return binary_cross_entropy_with_logits(scores, labels.expand_as(scores))

    optimise(
        [each for pair in (*layers, *heads) for each in pair],
        lambda rows: loss(z[rows], y[rows]),
        lambda: loss(held, held_y),
        len(z),
        recipe,
        epochs,
        generator,
    )
    freeze: Callable[[Tensor], Tensor] = lambda tensor: tensor.detach()  # noqa: E731
    return Network(
        linear,
        tuple((freeze(a), freeze(b)) for a, b in layers),
        tuple((freeze(a), freeze(b)) for a, b in heads),
    )


def _scores(
    z: Float[Tensor, "row d"], layers: Sequence[tuple[Tensor, Tensor]], heads: Sequence[tuple[Tensor, Tensor]]
) -> Float[Tensor, "head row"]:
    states = list(accumulate(layers, lambda x, layer: torch.relu(x @ layer[0].T + layer[1]), initial=z))
    return torch.stack([x @ w + b for x, (w, b) in zip(states[-len(heads) :], heads, strict=True)])


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    return ((2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5).requires_grad_()
