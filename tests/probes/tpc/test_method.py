"""The polynomial against explicit tensors, its nesting, planted truths, and what it refuses."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from cutaway.errors import CutawayError, UsageError
from cutaway.planted.polynomial import CUBIC, MIXED, XOR, polynomial_data
from cutaway.probes.tpc import (
    Labelled,
    Polynomial,
    Recipe,
    Term,
    drops,
    fit_linear,
    fit_polynomial,
    load_polynomial,
    search,
)
from cutaway.probes.tpc.calibration import Split, from_data, planted_recipe, reached

SMALL = Recipe(order=4, rank=4, epochs=3, batch=64, rate=1e-2, dropout=0.3)


def random_monitor(d: int, rank: int, order: int, seed: int) -> Polynomial:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    terms = tuple(Term(draw(rank, d) / d**0.5, draw(rank)) for _ in range(order - 1))
    return Polynomial(draw(d), 0.5 + draw(d).abs(), draw(d), float(draw(1)), terms)


@pytest.fixture(scope="module")
def small() -> Split:
    return from_data(polynomial_data(MIXED, n=600, d=6, seed=0), (300, 150, 150))


@given(st.integers(0, 10**6))
@budget(max_examples=4, deadline=None)
def test_factors_equal_explicit_symmetric_tensors(seed):
    monitor = random_monitor(4, 4, 4, seed)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed + 1))
    z = monitor.standardised(x)
    for order in (2, 3, 4):
        tensor, factors, weights = monitor.tensor(order), *vars(monitor.terms[order - 2]).values()
        for row, got in zip(z.double(), monitor.term(order, z), strict=True):
            total = 0.0
            for places in itertools.product(range(4), repeat=order):
                entry = sum(
                    float(w) * float(torch.stack([u[i] for i in places]).double().prod())
                    for u, w in zip(factors, weights, strict=True)
                )
                assert tensor[places] == pytest.approx(entry, abs=1e-9)
                total += entry * float(torch.stack([row[i] for i in places]).prod())
            assert float(got) == pytest.approx(total, abs=1e-5, rel=1e-5)


def test_attribution_sums_to_the_order_two_term():
    monitor = random_monitor(9, 5, 3, 0)
    x = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    shares = monitor.attribution(x)
    torch.testing.assert_close(shares, shares.transpose(1, 2))
    torch.testing.assert_close(shares.sum((1, 2)).float(), monitor.term(2, monitor.standardised(x)), atol=1e-4, rtol=0)
    (i, j), value = monitor.strongest(2, 1)[0]
    assert value == pytest.approx(2 * float(monitor.tensor(2)[i, j]))


def test_zero_weights_leave_the_logistic_regression(small):
    linear = fit_linear(small.train, small.validation)
    zero = replace(linear, terms=tuple(Term(torch.randn(3, 6), torch.zeros(3)) for _ in range(3)))
    scores = zero.logits(small.test.x)
    assert all(torch.equal(row, scores[0]) for row in scores)
    z = linear.standardised(small.train.x).double().numpy()
    fits = [LogisticRegression(C=c, max_iter=500).fit(z, small.train.labels) for c in (0.001, 0.01, 0.1, 1, 10, 100)]
    gaps = [np.abs(fit.coef_[0] - linear.weight.numpy()).max() for fit in fits]
    assert min(gaps) < 1e-3


def test_strict_orders_are_bit_identical_to_shorter_trainings(small):
    full = fit_polynomial(small.train, small.validation, SMALL)
    scores = full.logits(small.test.x)
    assert torch.equal(scores[0], fit_linear(small.train, small.validation).logits(small.test.x)[0])
    for order in (2, 3):
        short = fit_polynomial(small.train, small.validation, replace(SMALL, order=order))
        assert torch.equal(short.logits(small.test.x), scores[:order])
        assert torch.equal(full.truncated(order).logits(small.test.x), scores[:order])


def test_joint_training_reports_what_each_truncation_loses(small):
    strict, joint = (fit_polynomial(small.train, small.validation, replace(SMALL, mode=m)) for m in ("strict", "joint"))
    ours, other = drops(strict, joint, small.test)
    assert ours[0] == other[0]
    for n, values in ((1, ours), (1, other)):
        assert 0 <= values[n] <= 1
    np.testing.assert_allclose(other, reached(joint, small))
    assert joint.mode == "joint"
    assert not torch.equal(joint.terms[0].factors, strict.terms[0].factors)


@pytest.mark.parametrize(("terms", "rate", "degree"), [(XOR, 1e-2, 2), (CUBIC, 1e-2, 3)])
def test_the_gain_appears_at_the_planted_order(terms, rate, degree):
    split = from_data(polynomial_data(terms, n=7600, seed=0))
    monitor = fit_polynomial(split.train, split.validation, replace(planted_recipe(rate, 0), order=degree))
    scores = reached(monitor, split)
    assert scores[degree - 1] >= 0.85
    assert scores[degree - 1] - scores[degree - 2] >= 0.25
    assert scores[0] <= 0.6 or terms != XOR
    assert monitor.strongest(degree, 1)[0][0] == terms[0][1]


def test_search_takes_the_better_setting(small):
    found = search(small.train, small.validation, replace(SMALL, order=2, epochs=20), (1e-9, 1e-2), (0.1,), (0.0,))
    assert found.rate == 1e-2


def test_saving_round_trip(small, tmp_path):
    monitor = fit_polynomial(small.train, small.validation, SMALL)
    monitor.save(tmp_path / "m.safetensors")
    again = load_polynomial(tmp_path / "m.safetensors")
    assert torch.equal(again.logits(small.test.x), monitor.logits(small.test.x))
    assert (again.mode, again.order) == (monitor.mode, 4)


def test_bad_rows_are_refused(small):
    x, y = small.train.x, small.train.y
    broken = x.clone()
    broken[3, 5] = torch.nan
    with pytest.raises(UsageError, match="row 3, feature 5 is nan"):
        Labelled(broken, y)
    with pytest.raises(UsageError, match="labels"):
        Labelled(x, y[:-1])
    with pytest.raises(UsageError, match="one class"):
        fit_linear(Labelled(x, torch.ones_like(y)), small.validation)
    with pytest.raises(UsageError, match="one class"):
        fit_linear(small.train, Labelled(small.validation.x, torch.zeros_like(small.validation.y)))
    flat = x.clone()
    flat[:, 2] = 7.3
    with pytest.raises(UsageError, match="feature 2 is constant"):
        fit_linear(Labelled(flat, y), small.validation)
    with pytest.raises(UsageError, match="features"):
        fit_linear(Labelled(x[:, :4], y), small.validation)


def test_bad_requests_are_refused(small):
    monitor = random_monitor(6, 2, 3, 0)
    for order in (0, 4):
        with pytest.raises(UsageError, match="1 to 3"):
            monitor.term(order, small.test.x)
        with pytest.raises(UsageError, match="1 to 3"):
            monitor.truncated(order)
    with pytest.raises(UsageError, match="trained on 6"):
        monitor.logits(small.test.x[:, :5])
    with pytest.raises(UsageError, match="inf"):
        monitor.logits(small.test.x / 0)
    with pytest.raises(UsageError, match="too large"):
        random_monitor(600, 1, 3, 0).tensor(3)
    for wrong in ({"order": 0}, {"rank": 0}, {"rate": 0.0}, {"dropout": 1.0}, {"mode": "loose"}):
        with pytest.raises((UsageError, TypeError), match=next(iter(wrong))):
            Recipe(**wrong)
    with pytest.raises(CutawayError, match="diverged"):
        fit_polynomial(small.train, small.validation, replace(SMALL, rate=1e9, order=5, decay=0.0))
