"""The planted polynomial: labels follow the rule, in vectors and in a model; the null follows nothing."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.polynomial import CUBIC, LENGTH, MIXED, XOR, polynomial_data, polynomial_model


def by_hand(row: np.ndarray, terms) -> float:
    total = 0.0
    for coefficient, coordinates in terms:
        product = coefficient
        for i in coordinates:
            product *= float(row[i])
        total += product
    return total


@pytest.mark.parametrize("terms", [XOR, CUBIC, MIXED, ((1.0, (0, 0)), (-1.0, (3,)))])
def test_labels_are_the_rule(terms):
    data = polynomial_data(terms, n=300, d=6, seed=2)
    expected = [by_hand(row, terms) > 0 for row in data.x]
    assert data.y.tolist() == expected
    assert data.truth.degree == max(len(c) for _, c in terms)


def test_no_coordinate_of_a_product_knows_the_label():
    data = polynomial_data(CUBIC, n=20_000, d=4, seed=0)
    signs = np.sign(data.x)
    for probe in (signs[:, 0], signs[:, 0] * signs[:, 1], data.x[:, 2]):
        assert abs(np.corrcoef(probe, data.y)[0, 1]) < 0.03
    assert np.corrcoef(signs[:, :3].prod(1), data.y)[0, 1] > 0.999


def test_flips_and_null():
    clean, flipped = (polynomial_data(XOR, n=20_000, flip=flip, seed=1) for flip in (0.0, 0.1))
    assert 0.09 < (clean.y != flipped.y).mean() < 0.11
    null = polynomial_data(XOR, n=20_000, null=True, seed=1)
    assert null.truth.terms == ()
    assert abs(np.corrcoef(null.x[:, 0] * null.x[:, 1], null.y)[0, 1]) < 0.03


def test_the_model_carries_the_rule_in_its_mean_residual():
    planted = polynomial_model(MIXED, seed=5)
    texts, labels = planted.texts(40, seed=1)
    for site in ("resid_pre.0", planted.site):
        with torch.no_grad():
            states = planted.model.capture(texts, site)[site]
        assert states.shape[1] == LENGTH
        rows = states.double().mean(1).numpy() * LENGTH**0.5
        assert [by_hand(row, MIXED) > 0 for row in rows] == labels.tolist()


def test_bad_input():
    for kwargs, match in [
        ({"d": 1}, "coordinate 1"),
        ({"n": 0}, "n=0"),
        ({"flip": 0.5}, "flip"),
        ({"terms": ()}, "terms"),
    ]:
        with pytest.raises(UsageError, match=match):
            polynomial_data(**{"terms": XOR, **kwargs})
    with pytest.raises(UsageError, match="words=1"):
        polynomial_model(words=1)
