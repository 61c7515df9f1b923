"""The cascade's limits, its bookkeeping, and what tuning may and may not cost."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.probes.tpc import Polynomial, Term, replay, run_cascade, tune, uniform
from cutaway.probes.tpc.calibration import ladder_trial, reached
from cutaway.probes.tpc.cascade import ladder
from cutaway.probes.tpc.method import f1


def monitor(seed: int = 0) -> Polynomial:
    g = torch.Generator().manual_seed(seed)
    terms = tuple(Term(torch.randn(3, 5, generator=g) / 3, torch.randn(3, generator=g) / 2) for _ in range(3))
    return Polynomial(torch.zeros(5), torch.ones(5), torch.randn(5, generator=g), 0.1, terms)


X = torch.randn(200, 5, generator=torch.Generator().manual_seed(9))


def test_open_band_is_the_whole_monitor_and_closed_band_is_linear():
    probe = monitor()
    logits = probe.logits(X).double().numpy()
    whole, first = (run_cascade(probe, X, uniform(4, low, high)) for low, high in ((0.0, 1.0), (0.5, 0.5)))
    np.testing.assert_array_equal(whole.score, logits[-1])
    assert set(whole.order) == {4}
    assert set(whole.multiplies) == {sum(probe.multiplies)}
    np.testing.assert_array_equal(first.score, logits[0])
    assert set(first.multiplies) == {5}


@given(st.integers(0, 20), st.floats(0, 0.5), st.floats(0, 0.5))
@budget(max_examples=30, deadline=None)
def test_cost_grows_with_the_band(seed, a, b):
    narrow, wide = sorted((a, b))
    spent = [run_cascade(monitor(seed), X, uniform(4, 0.5 - w, 0.5 + w)).multiplies for w in (narrow, wide)]
    assert (spent[0] <= spent[1]).all()


def test_running_equals_replaying_all_scores_and_a_naive_loop():
    probe, bands = monitor(2), uniform(4, 0.3, 0.8)
    logits = probe.logits(X).numpy()
    ran, replayed = run_cascade(probe, X, bands), replay(logits, bands, probe.multiplies)
    np.testing.assert_array_equal(ran.order, replayed.order)
    np.testing.assert_array_equal(ran.multiplies, replayed.multiplies)
    np.testing.assert_allclose(ran.score, replayed.score, atol=1e-5)
    for row in range(len(X)):
        left = next(n for n in range(4) if n == 3 or not 0.3 <= 1 / (1 + np.exp(-logits[n, row])) < 0.8)
        assert ran.order[row] == left + 1


def test_no_term_is_computed_twice(monkeypatch):
    probe, seen = monitor(1), []
    plain = Polynomial.term

    def spied(self, order, z):
        seen.append((order, len(z)))
        return plain(self, order, z)

    monkeypatch.setattr(Polynomial, "term", spied)
    exits = run_cascade(probe, X, uniform(4, 0.2, 0.8))
    assert [order for order, _ in seen] == [1, 2, 3, 4]
    assert [n for _, n in seen] == [int((exits.order >= order).sum()) for order in (1, 2, 3, 4)]


def test_a_tuned_cascade_keeps_the_f1_for_40_percent():
    probe, split = ladder_trial(0)
    assert np.diff(reached(probe, split)[:3]).min() > 0.02, "the rule must need its orders"
    held = probe.logits(split.validation.x).numpy()
    bands = tune(held, split.validation.labels, probe.multiplies)
    exits = run_cascade(probe, split.test.x, bands)
    assert f1(split.test.labels, exits.flagged) >= reached(probe, split)[-1] - 0.01
    assert exits.multiplies.mean() <= 0.4 * sum(probe.multiplies)
    assert len(set(exits.order)) >= 3


def test_tuning_knows_scores_that_point_the_wrong_way():
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.5
    signal = np.where(labels, 2.0, -2.0) + rng.standard_normal(400)
    logits = np.stack([-signal, signal])
    bands = tune(logits, labels, (1, 10))
    exits = replay(logits, bands, (1, 10))
    assert f1(labels, exits.flagged) >= f1(labels, signal > 0) - 0.001
    assert {bands.slope[0] for bands in ladder(logits, labels)} == {0.0}


def test_bad_input():
    with pytest.raises(UsageError, match=r"low=0\.7"):
        uniform(3, 0.7, 0.2)
    with pytest.raises(UsageError, match="2 orders and a monitor of 4"):
        run_cascade(monitor(), X, uniform(2))
    with pytest.raises(UsageError, match="both classes"):
        tune(np.zeros((2, 5)), np.ones(5, dtype=bool), (1, 1))
