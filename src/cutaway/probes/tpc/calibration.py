"""The method on labels that are known polynomials, on a model that carries one, and on coins.

Planted: sign(z0 z1), sign(z0 z1 z2), sign(z0 + 1.5 z1 z2). Degree d must be needed (the order below fails), suffice,
and be seen in the coefficients. The cascade is measured where rows differ: under `LADDER` some rows are clear to a
linear probe, some need the pair, some the triple. (Under a lone triple nobody can leave before order 3.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cutaway.planted.polynomial import (
    CUBIC,
    LADDER,
    MIXED,
    XOR,
    PolynomialData,
    Terms,
    polynomial_data,
    polynomial_model,
)
from cutaway.probes.pooled import activations
from cutaway.probes.scoring import area_gains
from cutaway.probes.tpc.cascade import run_cascade, tune
from cutaway.probes.tpc.method import Labelled, Recipe, f1, fit_polynomial
from cutaway.probes.tpc.polynomial import Polynomial
from cutaway.study import Rate

PLANTED: tuple[tuple[str, Terms, float], ...] = (("pair", XOR, 1e-2), ("triple", CUBIC, 1e-2), ("mixed", MIXED, 1e-3))
"""Name, terms and learning rate."""
ORDER, RANK, EPOCHS = 4, 16, 30
TRAIN, VALIDATION, TEST = 4800, 1200, 1600
_ON_MODEL = 2400
"""Texts read by the planted model in one trial."""


@dataclass(frozen=True)
class Split:
    """One draw, dealt."""

    train: Labelled
    validation: Labelled
    test: Labelled


def dealt(x: torch.Tensor, y: np.ndarray, sizes: tuple[int, int, int] = (TRAIN, VALIDATION, TEST)) -> Split:
    """Return rows in the three parts."""
    parts = zip(x.split(list(sizes)), torch.from_numpy(y).split(list(sizes)), strict=True)
    return Split(*(Labelled(a, b) for a, b in parts))


def from_data(data: PolynomialData, sizes: tuple[int, int, int] = (TRAIN, VALIDATION, TEST)) -> Split:
    """Return planted rows in the three parts."""
    return dealt(torch.from_numpy(data.x), data.y, sizes)


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, over ``trials`` draws of each planted rule."""
    needed = enough = recovered = silent = read = spent = full = wrong = rows = 0
    for trial in range(trials):
        report(trial, trials)
        for _, terms, rate in PLANTED:
            data = polynomial_data(terms, n=TRAIN + VALIDATION + TEST, seed=trial)
            split = from_data(data)
            monitor = fit_polynomial(split.train, split.validation, planted_recipe(rate, trial))
            needed += gap(monitor, split, data.truth.degree) >= (0.25 if len(terms) == 1 else 0.1)
            enough += reached(monitor, split)[data.truth.degree - 1] >= 0.85
            recovered += found_terms(monitor, terms)
        monitor, split = ladder_trial(trial)
        cost, errors = spends(monitor, split)
        spent, full = spent + cost, full + sum(monitor.multiplies) * len(split.test.y)
        wrong, rows = wrong + errors, rows + len(split.test.y)
        silent += not claims_on_null(trial)
        read += reads_model(trial)
    n = len(PLANTED) * trials
    return (
        Rate("degree needed", needed, n, at_least=0.95, what="planted rules whose degree beats the order below"),
        Rate("degree enough", enough, n, at_least=0.95, what="planted rules with F1 0.85 at their degree"),
        Rate("terms recovered", recovered, n, at_least=0.95, what="planted products that are the strongest found"),
        Rate("cascade price", spent, full, at_most=0.4, what="multiplies of the whole monitor spent, over all draws"),
        Rate("cascade harm", max(0, wrong), rows, at_most=0.01, what="net rows that leaving early got wrong"),
        Rate("through a model", read, trials, at_least=0.95, what="pairs found in a model's pooled activations"),
        Rate("silent on coins", silent, trials, at_least=0.9, what="labels without a rule where no order is praised"),
    )


def ladder_trial(seed: int, rows: int = 4000) -> tuple[Polynomial, Split]:
    """A monitor of five orders on rows of mixed difficulty; ``rows`` to tune on and to test on."""
    sizes = (TRAIN, rows, rows)
    split = from_data(polynomial_data(LADDER, n=sum(sizes), d=12, seed=seed), sizes)
    recipe = Recipe(order=5, rank=RANK, epochs=EPOCHS, batch=256, rate=3e-3, dropout=0.0, seed=seed)
    return fit_polynomial(split.train, split.validation, recipe), split


def planted_recipe(rate: float, seed: int) -> Recipe:
    """The card's settings for planted labels."""
    return Recipe(order=ORDER, rank=RANK, epochs=EPOCHS, batch=256, rate=rate, dropout=0.0, seed=seed)


def reached(monitor: Polynomial, split: Split) -> list[float]:
    """F1 of every order on test rows."""
    return [f1(split.test.labels, (row > 0).numpy()) for row in monitor.logits(split.test.x)]


def gap(monitor: Polynomial, split: Split, degree: int) -> float:
    """F1 at ``degree`` less F1 at the order below."""
    scores = reached(monitor, split)
    return scores[degree - 1] - scores[degree - 2]


def found_terms(monitor: Polynomial, terms: Terms) -> bool:
    """Whether each planted product of two or three is the strongest of its order."""
    wanted = [tuple(sorted(coordinates)) for _, coordinates in terms if len(coordinates) > 1]
    return all(monitor.strongest(len(each), 1)[0][0] == each for each in wanted)


def spends(monitor: Polynomial, split: Split) -> tuple[int, int]:
    """Multiplies that the tuned cascade spends on the test rows, and net rows that its early leaves get wrong."""
    held = monitor.logits(split.validation.x).numpy()
    exits = run_cascade(monitor, split.test.x, tune(held, split.validation.labels, monitor.multiplies))
    whole = (monitor.logits(split.test.x)[-1] > 0).numpy()
    wrong = (exits.flagged != split.test.labels).sum() - (whole != split.test.labels).sum()
    return int(exits.multiplies.sum()), int(wrong)


def claims_on_null(seed: int, sizes: tuple[int, int, int] = (TRAIN, VALIDATION, TEST)) -> bool:
    """Whether an order is said to beat order 1 on labels from a coin, by `Comparison`'s own rule."""
    split = from_data(polynomial_data(null=True, n=sum(sizes), seed=seed), sizes)
    monitor = fit_polynomial(split.train, split.validation, planted_recipe(1e-3, seed))
    scores = monitor.logits(split.test.x).double().numpy()
    return any(gain.low > 0 for gain in area_gains(split.test.labels, scores))


def reads_model(seed: int) -> bool:
    """Whether the pair is found in a model's activations, read through its sites and pooled.

    Order 2 has to rank texts better than order 1, by area: order 1 knows nothing here, and the F1 of a monitor that
    knows nothing is anything up to 2/3, as its threshold falls.
    """
    planted = polynomial_model(XOR, seed=seed)
    texts, labels = planted.texts(_ON_MODEL, seed)
    x = activations(planted.model, texts, planted.site)[planted.site, "mean"]
    split = dealt(x, labels, (1600, 400, 400))
    monitor = fit_polynomial(split.train, split.validation, Recipe(2, RANK, 60, 128, 1e-2, dropout=0.0, seed=seed))
    gain = area_gains(split.test.labels, monitor.logits(split.test.x).double().numpy())[0]
    return found_terms(monitor, XOR) and gain.low >= 0.25
