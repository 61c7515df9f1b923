"""Comparators by closed form, matching with planted layers and with none, ties, bad input."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features.dictionary import Provenance
from cutaway.features.itda import Atom, AtomDictionary, cka, jaccard, match_layers, relative, svcca
from cutaway.features.itda.similarity import match_activations, match_dictionaries


def rows(seed: int, n: int = 400, d: int = 12) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def with_labels(labels: list[int]) -> AtomDictionary:
    names = tuple(Atom(str(i), 0, i, "", "x") for i in labels)
    return AtomDictionary(torch.zeros(len(labels), 4), names, 4, 0.9, "words", Provenance(data="d"))


def test_comparators_see_through_a_rotation() -> None:
    x = rows(0)
    turn = torch.linalg.qr(rows(1, 12))[0]
    for way in (cka, svcca, relative):
        assert way(x, x) == pytest.approx(1.0)
        assert way(x, rows(2)) < 0.5
    assert svcca(x, x @ turn) == pytest.approx(1.0)
    assert relative(x, x @ turn * 3) == pytest.approx(1.0)
    a, b = (each - each.mean(0) for each in (x, rows(3)))
    a, b = a / a.norm(dim=0), b / b.norm(dim=0)
    kernel = [(each @ each.T) for each in (a, b)]
    by_kernels = (kernel[0] * kernel[1]).sum() / (kernel[0].norm() * kernel[1].norm())
    assert cka(x, rows(3)) == pytest.approx(float(by_kernels))


def test_jaccard_by_hand() -> None:
    assert jaccard(with_labels([1, 2, 3]), with_labels([2, 3, 4, 5])) == pytest.approx(2 / 5)
    assert jaccard(with_labels([]), with_labels([])) == 1.0


def test_planted_layers_are_matched_and_random_labels_are_not() -> None:
    rng = np.random.default_rng(0)
    # Layer l of every model picks from its own hundred labels and from a hundred that all share.
    models = [
        [
            with_labels(sorted({*(rng.choice(100, 60) + 100 * layer).tolist(), *(rng.choice(100, 60) + 900).tolist()}))
            for layer in range(4)
        ]
        for _ in range(5)
    ]
    found, control = match_dictionaries(models)
    assert found.accuracy.value == 1.0
    assert (found.distance, found.chance) == (0.0, 0.25)
    assert control.accuracy.value < 0.5
    assert control.with_self > control.accuracy.value  # a model with itself is always right
    assert control.with_self == pytest.approx((5 + 20 * control.accuracy.value) / 25)


def test_activations_are_matched_by_every_comparator() -> None:
    layers = [rows(layer) for layer in range(3)]
    turned = [[layer @ torch.linalg.qr(rows(50 + model, 12))[0] for layer in layers] for model in range(3)]
    for found in match_activations(turned):
        assert found.accuracy.value == 1.0, found.name


def test_ties_share_the_hit() -> None:
    found = match_layers("nothing", lambda i, a, j, b: 0.0, 3, 4)
    assert found.accuracy.value == found.with_self == 0.25
    with pytest.raises(UsageError, match="two or more of each"):
        match_layers("one", lambda i, a, j, b: 0.0, 1, 4)
