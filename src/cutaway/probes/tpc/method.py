"""Train a polynomial monitor on activations: cheap as a linear probe, stronger with each order that is paid for.

1. `fit_linear`: standardise by the training rows; logistic regression for a few strengths, the best by validation
   F1. It is order 1 and is never changed again.
2. `fit_polynomial`, mode ``strict``: for n = 2, 3, ... draw the new term and train it alone on the loss of the
   truncation Pn. Everything below is a constant (computed once per order, not once per step), so a longer polynomial
   has its shorter ones inside, bit for bit.
3. Mode ``joint``: all terms at once on the sum of the losses of P2 ... PN. More accurate at full order at times, and
   the price is that a truncation is no longer what it would be alone; `drops` measures it.
4. `search` tries learning rates, weight decays and dropouts by validation F1.

While order n is trained each earlier partial sum is dropped for a row with probability p. AdamW, gradients clipped at
1, learning rate halved on a plateau of the validation loss; rate and plateau start afresh at every order.

Source: Oldfield et al. 2025 (2509.26238), card tpc. The released code freezes nothing but the linear part (trap 1 of
the card), keeps the plateau's memory over orders (trap 2); published curves may come from that.
Limits: powers are not normalised, so a rate that is too large diverges at high orders: that is an error here.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cutaway.errors import CutawayError, UsageError
from cutaway.probes.tpc.polynomial import Polynomial, Term, check_finite, power

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation of the logistic regression, weakest fit first."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Activations with a label each. UsageError for nan, for lengths that differ, for no rows."""

    x: Float[Tensor, "row d"]
    y: Bool[Tensor, " label"]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise UsageError(f"{len(self.x)} rows and {len(self.y)} labels: give as many of each, at least one")
        check_finite(self.x)

    def __repr__(self) -> str:
        return f"Labelled({len(self.x)} rows of {self.x.shape[1]}, {int(self.y.sum())} positive)"

    @property
    def labels(self) -> Bool[np.ndarray, " row"]:
        return self.y.numpy()


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the released ones where the card gives one."""

    order: int = 5
    rank: int = 64
    epochs: int = 50
    """Of each order above 1."""
    batch: int = 1024
    rate: float = 1e-3
    decay: float = 0.1
    dropout: float = 0.2
    mode: Literal["strict", "joint"] = "strict"
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"order": self.order, "rank": self.rank, "epochs": self.epochs, "batch": self.batch}
        if low := [name for name, number in whole.items() if number < 1]:
            raise UsageError(f"{low[0]}={whole[low[0]]}: 1 or more")
        if not self.rate > 0 or self.decay < 0 or not 0 <= self.dropout < 1:
            raise UsageError(f"rate={self.rate}, decay={self.decay}, dropout={self.dropout}: > 0, >= 0, in [0, 1)")
        if self.mode not in {"strict", "joint"}:
            raise UsageError(f"mode={self.mode!r}: strict or joint")


def f1(labels: np.ndarray, flagged: np.ndarray) -> float:
    """F1 of the positive class; nan where there is neither a positive nor a flag."""
    hits, either = float((labels & flagged).sum()), float(labels.sum() + flagged.sum())
    return 2 * hits / either if either else float("nan")


def fit_linear(train: Labelled, validation: Labelled) -> Polynomial:
    """Return order 1: the logistic regression with the best validation F1 (the strongest penalty among equals).

    UsageError for one class only, other features in the two sets, or a feature that never changes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _check(train, validation)
    x = train.x.double()
    centre, scale = x.mean(0), x.std(0, correction=0)
    flat = (scale <= 1e-12 * (1 + centre.abs())).nonzero()
    if len(flat):
        raise UsageError(
            f"feature {int(flat[0])} is constant over the training rows ({len(flat)} such); drop it from all sets"
        )
    z, held = ((each.x.double() - centre) / scale for each in (train, validation))
    best, kept = -1.0, None
    model = LogisticRegression(max_iter=500, warm_start=True)
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            # 500 iterations are the recipe's budget; a weak penalty on separable rows never converges.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(z.numpy(), train.labels)
        reached = float(np.nan_to_num(f1(validation.labels, model.predict(held.numpy()))))
        if reached > best:
            best, kept = reached, (model.coef_[0].copy(), float(model.intercept_[0]))
    assert kept is not None
    weight = torch.from_numpy(kept[0]).float()
    return Polynomial(centre.float(), scale.float(), weight, kept[1], ())


def fit_polynomial(
    train: Labelled, validation: Labelled, recipe: Recipe | None = None, *, linear: Polynomial | None = None
) -> Polynomial:
    """Return the polynomial of ``recipe.order``; ``linear`` saves fitting order 1 again."""
    recipe = recipe or Recipe()
    start = fit_linear(train, validation) if linear is None else linear.truncated(1)
    _check(train, validation)
    if recipe.order == 1:
        return replace(start, mode=recipe.mode)
    grow = _strict if recipe.mode == "strict" else _joint
    found = replace(start, terms=tuple(grow(start, train, validation, recipe)), mode=recipe.mode)
    if not bool(torch.isfinite(found.logits(train.x)).all()):
        raise CutawayError(f"training diverged at rate={recipe.rate:g}, order={recipe.order}; lower one of them")
    return found


def search(
    train: Labelled,
    validation: Labelled,
    recipe: Recipe,
    rates: Sequence[float] = (1e-3, 5e-4, 1e-4),
    decays: Sequence[float] = (1.0, 0.1, 0.01),
    dropouts: Sequence[float] = (0.0, 0.2, 0.5),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Recipe:
    """Return ``recipe`` with the settings whose whole polynomial has the best validation F1; one run each."""
    settings = [(rate, decay, dropout) for rate in rates for decay in decays for dropout in dropouts]
    if len(settings) < 2:
        rate, decay, dropout = settings[0]
        return replace(recipe, rate=rate, decay=decay, dropout=dropout)
    linear, best, chosen = fit_linear(train, validation), -1.0, recipe
    for done, (rate, decay, dropout) in enumerate(settings):
        tried = replace(recipe, rate=rate, decay=decay, dropout=dropout)
        found = fit_polynomial(train, validation, tried, linear=linear)
        reached = f1(validation.labels, (found.logits(validation.x)[-1] > 0).numpy())
        if reached > best:
            best, chosen = reached, tried
        report(done + 1, len(settings))
    return chosen


def drops(
    strict: Polynomial, joint: Polynomial, test: Labelled
) -> tuple[Float[np.ndarray, " order"], Float[np.ndarray, " order"]]:
    """Return the F1 of every truncation under both trainings; their difference is what joint training costs."""
    if strict.order != joint.order:
        raise UsageError(f"orders {strict.order} and {joint.order}: compare equals")
    both = [each.logits(test.x) > 0 for each in (strict, joint)]
    ours, other = (np.array([f1(test.labels, row.numpy()) for row in flags]) for flags in both)
    return ours, other


def optimise(
    parameters: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    validation_loss: Callable[[], Tensor],
    rows: int,
    recipe: Recipe,
    epochs: int,
    generator: torch.Generator,
) -> None:
    """Train ``parameters`` in place on ``loss(rows of a batch)``, the recipe's way."""
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5)
    for _ in range(epochs):
        for batch in torch.randperm(rows, generator=generator).split(recipe.batch):
            optimiser.zero_grad()
            loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
        with torch.no_grad():
            plateau.step(float(validation_loss()))


def _strict(start: Polynomial, train: Labelled, validation: Labelled, recipe: Recipe) -> Iterable[Term]:
    """One new term after the other; the scores below it are constants."""
    generator = torch.Generator().manual_seed(recipe.seed)
    z, held = start.standardised(train.x), start.standardised(validation.x)
    y, held_y = train.y.float(), validation.y.float()
    below, held_below = [start.term(1, z)], start.term(1, held)
    for order in range(2, recipe.order + 1):
        term = _new_term(start.d, recipe.rank, generator)
        parameters, parts = [term.factors, term.weights], torch.stack(below)

        def loss(rows: Tensor, term: Term = term, order: int = order, parts: Tensor = parts) -> Tensor:
            known = _partial(parts[:, rows], recipe.dropout, generator)
            return binary_cross_entropy_with_logits(known + power(z[rows], term.factors, term.weights, order), y[rows])

        def check(term: Term = term, order: int = order, known: Tensor = held_below) -> Tensor:
            return binary_cross_entropy_with_logits(known + power(held, term.factors, term.weights, order), held_y)

        optimise(parameters, loss, check, len(z), recipe, recipe.epochs, generator)
        term = Term(term.factors.detach(), term.weights.detach())
        below.append(power(z, term.factors, term.weights, order))
        held_below = held_below + power(held, term.factors, term.weights, order)
        yield term


def _joint(start: Polynomial, train: Labelled, validation: Labelled, recipe: Recipe) -> Iterable[Term]:
    """All terms at once, on the sum of all truncations' losses; as many epochs as ``strict`` takes in all."""
    generator = torch.Generator().manual_seed(recipe.seed)
    z, held = start.standardised(train.x), start.standardised(validation.x)
    y, held_y, first, held_first = train.y.float(), validation.y.float(), start.term(1, z), start.term(1, held)
    terms = [_new_term(start.d, recipe.rank, generator) for _ in range(2, recipe.order + 1)]

    def total(rows: Tensor, scores: Tensor, labels: Tensor, dropout: float) -> Tensor:
        summed, score = labels.new_zeros(()), scores
        for order, term in enumerate(terms, 2):
            score = _keep(score, dropout, generator) + power(rows, term.factors, term.weights, order)
            summed = summed + binary_cross_entropy_with_logits(score, labels)
        return summed

    parameters = [each for term in terms for each in (term.factors, term.weights)]
    optimise(
        parameters,
        lambda rows: total(z[rows], first[rows], y[rows], recipe.dropout),
        lambda: total(held, held_first, held_y, 0.0),
        len(z),
        recipe,
        recipe.epochs * len(terms),
        generator,
    )
    return [Term(term.factors.detach(), term.weights.detach()) for term in terms]


def _new_term(d: int, rank: int, generator: torch.Generator) -> Term:
    factors = (2 * torch.rand(rank, d, generator=generator) - 1) / d**0.5
    weights = 0.02 * torch.randn(rank, generator=generator)
    return Term(factors.requires_grad_(), weights.requires_grad_())


def _partial(parts: Float[Tensor, "order row"], dropout: float, generator: torch.Generator) -> Float[Tensor, " row"]:
    """Sum the terms below, each partial sum dropped for a row with the given probability."""
    if dropout == 0:
        return parts.sum(0)
    score = torch.zeros_like(parts[0])
    for part in parts:
        score = _keep(score + part, dropout, generator)
    return score


def _keep(score: Float[Tensor, " row"], dropout: float, generator: torch.Generator) -> Float[Tensor, " row"]:
    if dropout == 0:
        return score
    return score * (torch.rand(score.shape, generator=generator) >= dropout)


def _check(train: Labelled, validation: Labelled) -> None:
    if train.x.shape[1] != validation.x.shape[1]:
        raise UsageError(f"training rows have {train.x.shape[1]} features, validation rows {validation.x.shape[1]}")
    for name, each in (("training", train), ("validation", validation)):
        positive = int(each.y.sum())
        if positive in {0, len(each.y)}:
            raise UsageError(f"the {name} rows are of one class ({positive} of {len(each.y)} positive); give both")
