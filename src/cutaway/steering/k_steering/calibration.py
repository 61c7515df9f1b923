"""K-Steering on clouds that no constant push can sort, through a planted model, and on coins."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cutaway.model.edits import GradientStep
from cutaway.planted.steering import XOR_LABELS, Cloud, ring_points, xor_model, xor_points
from cutaway.sampling import Settings
from cutaway.steering.effects import draw_answers, effect
from cutaway.steering.k_steering.classifier import Classifier, Recipe, StyleVectors, fit_classifier, fit_vectors
from cutaway.steering.k_steering.method import random_pushes
from cutaway.study import Rate

SITE = "resid_post.0"
RECIPE = Recipe(epochs=20, batch=64, rate=3e-3)
LENGTHS = np.linspace(0.05, 2.5, 25)
"""Strengths at which the linear baseline is tried; its best one counts."""


@dataclass(frozen=True)
class Reached:
    """Points outside a class, and how many each way brings in; over all labels."""

    points: int
    climbed: int
    """By the classifier's gradient."""
    added: int
    """By the linear baseline at its best strength."""


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, over ``trials`` draws."""
    shapes = {"xor": xor_points, "rings": ring_points}
    totals = {name: np.zeros(3, int) for name in shapes}
    answers, flipped, silent = 0, 0, 0
    for trial in range(trials):
        report(trial, trials)
        for name, make in shapes.items():
            found = reach(make(seed=trial))
            totals[name] += [found.points, found.climbed, found.added]
        hits, n = through_a_model(trial)
        flipped, answers = flipped + hits, answers + n
        silent += not claims_on_coins(trial)
    rates = []
    for name, (points, climbed, added) in totals.items():
        rates.append(Rate(f"{name} reached", int(climbed), int(points), at_least=0.95, what="points brought in"))
        what = "points that the best strength of the linear baseline brings in"
        rates.append(Rate(f"{name}, one direction", int(added), int(points), at_most=0.6, what=what))
    return (
        *rates,
        Rate("answers flipped", flipped, answers, at_least=0.85, what="a planted model's answers, new words"),
        Rate("silent on coins", silent, trials, at_least=0.9, what="classifiers of coin labels that show no effect"),
    )


def reach(cloud: Cloud, held: int = 600) -> Reached:
    """Fit on all but ``held`` points, then push those that lie outside each class."""
    x, y = torch.from_numpy(cloud.x), torch.from_numpy(cloud.y)
    classifier = fit_classifier(x[:-held], y[:-held], cloud.labels, SITE, RECIPE)
    vectors = fit_vectors(x[:-held], y[:-held], cloud.labels, SITE)
    points = climbed = added = 0
    for label in cloud.labels:
        out = cloud.x[-held:][~cloud.truth.member(cloud.x[-held:], label)]
        points += len(out)
        climbed += int(cloud.truth.member(climb(classifier, label).stepped(torch.from_numpy(out)).numpy(), label).sum())
        added += max(int(cloud.truth.member(pushed(vectors, out, label, each), label).sum()) for each in LENGTHS)
    return Reached(points, climbed, added)


def climb(classifier: Classifier, label: str, stride: float = 0.03, steps: int = 60) -> GradientStep:
    """Short steps up to a probability of 0.995."""
    (edit,) = classifier.edits([label], strength=stride, steps=steps, until=0.995)
    assert isinstance(edit, GradientStep)
    return edit


def pushed(vectors: StyleVectors, x: np.ndarray, label: str, strength: float) -> np.ndarray:
    """``x`` with the label's vector added."""
    return x + float(strength) * vectors.stream * vectors.direction([label]).numpy()


def through_a_model(seed: int) -> tuple[int, int]:
    """Answers of the planted model turned over by steering, of those on words never fitted on; both ways."""
    planted = xor_model(seed=seed)
    model, truth = planted.model, planted.truth
    texts = [model.encode(text) for text in planted.texts(range(len(truth.words)), seed)]
    with torch.no_grad():
        x = model.capture(model.batch(texts), truth.site, "last")[truth.site][:, 0]
    y = torch.from_numpy(np.stack([truth.agrees, ~truth.agrees], 1))
    fitted = len(texts) - 120
    recipe = Recipe(epochs=20, batch=32, rate=3e-3, seed=seed)
    classifier = fit_classifier(x[:fitted], y[:fitted], XOR_LABELS, truth.site, recipe)
    hits = n = 0
    for label, wanted in zip(XOR_LABELS, (truth.yes, truth.no), strict=True):
        away = [i for i in range(fitted, len(texts)) if truth.agrees[i] != (label == XOR_LABELS[0])]
        edits = (climb(classifier, label, 0.002, 90),)
        drawn = draw_answers(model, [texts[i] for i in away], Settings(0.0, 1.0, max_tokens=1), edits=edits)
        hits += sum(rollout.ids[0] == wanted for (rollout,) in drawn)
        n += len(away)
    return hits, n


def claims_on_coins(seed: int) -> bool:
    """Whether steering by coin labels is said to work, by `Effect.shown` on a second classifier of other coins."""
    cloud, other = xor_points(n=1200, null=True, seed=seed), xor_points(n=1200, null=True, seed=seed + 10_000)
    x, y = torch.from_numpy(cloud.x), torch.from_numpy(cloud.y)
    turned = torch.from_numpy((other.x @ _basis(other).T @ _basis(cloud)).astype(np.float32))
    recipe = Recipe(epochs=5, batch=64, rate=3e-3)
    classifier = fit_classifier(x[:-300], y[:-300], cloud.labels, SITE, recipe)
    held = fit_classifier(turned, torch.from_numpy(other.y), cloud.labels, SITE, recipe)
    plain, length = x[-300:], 0.5 * classifier.stream
    (edit,) = classifier.edits([cloud.labels[0]], strength=0.5)
    pushes = [each[0].vector * length for each in random_pushes(SITE, plain.shape[1], length, 20, seed)]
    assert isinstance(edit, GradientStep)
    steered = [edit.stepped(plain), *(plain + push for push in pushes)]
    scores = [held.probabilities(each)[:, 0].double().numpy() for each in steered]
    found = effect("probability", held.probabilities(plain)[:, 0].double().numpy(), scores[0], scores[1:])
    return found.shown and found.change.value > 0


def _basis(cloud: Cloud) -> np.ndarray:
    return np.linalg.svd(cloud.truth.plane, full_matrices=True)[2]
