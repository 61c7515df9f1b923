import itertools

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.stats import smoothing
from cutaway.stats.smoothing import smooth_martingale


def enumerate_posterior(k, n, stay, end, grid, delta):
    """Sum over every curve on the grid, for every prior model: the definition, without forward-backward."""
    points, steps = np.linspace(0, 1, grid), smoothing._steps(grid)
    cell, total, weighted, square = 1 / (grid - 1), 0.0, 0.0, 0.0
    jump = np.zeros(len(k))
    for step in steps:
        for path in itertools.product(range(grid), repeat=len(k) + 1):
            if end is not None and points[path[-1]] != end:
                continue
            weight = 1 / grid
            for i in range(len(k)):
                v, after = points[path[i]], points[path[i + 1]]
                inner = (v - stay[i] * after) / (1 - stay[i])
                slack = 0.5 * cell * (1 + stay[i]) / (1 - stay[i]) if stay[i] else 1e-9
                if not -slack <= inner <= 1 + slack:
                    weight = 0.0
                    break
                inner = min(max(inner, 0.1 * cell), 1 - 0.1 * cell)
                weight *= step[path[i], path[i + 1]] * inner ** k[i] * (1 - inner) ** (n[i] - k[i])
            if weight:
                curve = points[list(path)]
                total += weight
                weighted = weighted + weight * curve
                square = square + weight * curve**2
                jump += weight * (np.abs(np.diff(curve)) > delta + 1e-12)
    mean = weighted / total
    return mean, np.sqrt(square / total - mean**2), jump / total, np.log(total / len(steps))


@pytest.mark.parametrize("end", [None, 1.0])
@pytest.mark.parametrize("stay", [(0.0, 0.0), (0.4, 0.0), (0.3, 0.9)])
def test_equals_the_sum_over_all_curves(stay, end):
    k, n = (3, 1), (4, 6)
    found = smooth_martingale(k, n, stay, end=end, delta=0.25, grid=11)
    mean, sd, jump, log_evidence = enumerate_posterior(k, n, stay, end, 11, 0.25)
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.sd, sd, atol=1e-3)
    np.testing.assert_allclose(found.jump, jump, atol=1e-3)
    assert found.log_evidence == pytest.approx(log_evidence, abs=1e-9)


def test_a_planted_jump_is_found_and_the_curve_is_better_than_the_raw_shares():
    rng = np.random.default_rng(0)
    truth = np.r_[np.full(30, 0.35), np.full(30, 0.9)]
    n = np.full(60, 6)
    raw, smooth, first = 0.0, 0.0, 0
    for _ in range(20):
        k = rng.binomial(n, truth)
        found = smooth_martingale(k, n, np.zeros(60))
        raw += np.mean((k / n - truth) ** 2)
        smooth += np.mean((found.mean[:-1] - truth) ** 2)
        first += abs(int(np.argmax(found.jump[:-1])) - 29) <= 3
    assert smooth < raw / 5
    assert first >= 17


def test_a_flat_curve_shows_no_jump():
    rng = np.random.default_rng(1)
    for p in (0.1, 0.5, 1.0):
        k = rng.binomial(10, np.full(50, p))
        found = smooth_martingale(k, np.full(50, 10), np.zeros(50), delta=0.2)
        assert found.jump.max() < 0.2
        np.testing.assert_allclose(found.mean, p, atol=0.1)


def test_known_stays_turn_left_draws_into_the_curve():
    rng = np.random.default_rng(2)
    stay = np.full(40, 0.8)
    left = np.r_[np.full(20, 0.2), np.full(20, 0.6)]
    truth = np.ones(41)
    for i in range(39, -1, -1):
        truth[i] = stay[i] * truth[i + 1] + (1 - stay[i]) * left[i]
    found = smooth_martingale(rng.binomial(30, left), np.full(40, 30), stay, end=1.0)
    assert found.mean[-1] == pytest.approx(1.0)
    assert np.abs(found.mean - truth).max() < 0.1


def test_a_sentence_nothing_can_leave_moves_nothing():
    found = smooth_martingale([2, 0, 9], [10, 0, 10], [0.0, 1.0, 0.0])
    assert found.mean[1] == pytest.approx(found.mean[2])
    assert found.jump[1] == 0.0


def test_no_draws_leave_the_prior_and_stay_finite():
    found = smooth_martingale([0] * 5, [0] * 5, [0.0] * 5)
    np.testing.assert_allclose(found.mean, 0.5, atol=1e-6)
    assert np.isfinite(found.log_evidence)
    assert "over 5 sentences" in repr(found)


def test_contradicting_certainties_do_not_break_it():
    found = smooth_martingale([0, 200], [200, 200], [0.99, 0.99], end=0.0)
    assert np.all(np.isfinite(found.mean))


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="one per sentence"):
        smooth_martingale([1], [2, 3], [0.0])
    with pytest.raises(UsageError, match="0 <= counts <= n"):
        smooth_martingale([3], [2], [0.0])
    with pytest.raises(UsageError, match="probabilities"):
        smooth_martingale([1], [2], [1.5])
    with pytest.raises(UsageError, match="end=2"):
        smooth_martingale([1], [2], [0.5], end=2)
    with pytest.raises(UsageError, match="grid=5"):
        smooth_martingale([1], [2], [0.5], grid=5)
