import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from cutaway.errors import UsageError
from cutaway.stats.bands import difference_interval, mixture_band


def clopper_pearson(k, n, level=0.95):
    tail = (1 - level) / 2
    return (
        beta.ppf(tail, k, n - k + 1) if k else 0.0,
        beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0,
    )


def chain(stay):
    """Weights of V_b = stay_b V_{b+1} + (1 - stay_b) W_b; what is missing to 1 is the constant's weight."""
    n = len(stay)
    weights = np.zeros((n, n))
    for b in range(n - 1, -1, -1):
        if b + 1 < n:
            weights[b] = stay[b] * weights[b + 1]
        weights[b, b] += 1 - stay[b]
    return weights


def coverage(truth, n, stay, runs, seed=0):
    rng = np.random.default_rng(seed)
    weights = chain(np.full(len(truth), stay))
    constant = np.zeros((len(truth), truth.shape[1]))
    constant[:, 0] = 1 - weights.sum(axis=1)
    exact = constant + weights @ truth
    inside = 0
    for run in range(runs):
        counts = np.stack([rng.multinomial(n, row) for row in truth])
        band = mixture_band(counts, weights, constant, draws=400, seed=run)
        inside += bool(np.all((band.low <= exact + 1e-12) & (exact <= band.high + 1e-12)))
    return inside / runs


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 5), (3, 10), (10, 10), (50, 100)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_one_stratum_is_clopper_pearson(k, n, level):
    band = mixture_band(np.array([[k, n - k]]), np.ones((1, 1)), np.zeros((1, 2)), level)
    np.testing.assert_allclose((band.low[0, 0], band.high[0, 0]), clopper_pearson(k, n, level), atol=2e-3)


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("stay", [0.0, 0.6])
@pytest.mark.parametrize("row", [(0.0, 1.0, 0.0), (0.5, 0.3, 0.2), (0.78, 0.22, 0.0), (0.05, 0.9, 0.05)])
def test_simultaneous_coverage_with_few_draws(n, stay, row):
    share = coverage(np.tile(row, (8, 1)), n, stay, runs=150)
    assert share >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 150)


@pytest.mark.parametrize("p", [0.3, 0.55, 0.78, 0.93])
def test_coverage_where_degenerate_counts_could_flatter_the_calibration(p):
    share = coverage(np.tile((p, 1 - p), (40, 1)), 5, 0.0, runs=150)
    assert share >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 150)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 99))
def test_band_is_monotone_in_level_within_the_unit_interval_and_brackets_the_estimate(rows, seed):
    counts = np.array(rows)
    stay = np.random.default_rng(seed).random(len(rows))
    weights = chain(stay)
    constant = np.zeros((len(rows), 3))
    constant[:, 2] = 1 - weights.sum(axis=1)
    narrow, wide = (mixture_band(counts, weights, constant, level, draws=300) for level in (0.6, 0.95))
    assert np.all(wide.low <= narrow.low + 1e-12)
    assert np.all(narrow.high <= wide.high + 1e-12)
    assert np.all((wide.low >= 0) & (wide.high <= 1))
    total = counts.sum(axis=1, keepdims=True)
    if np.all(total > 0):
        estimate = constant + weights @ (counts / total)
        assert np.all((wide.low <= estimate + 1e-9) & (estimate <= wide.high + 1e-9))


def test_a_stratum_without_draws_knows_nothing():
    band = mixture_band(np.zeros((1, 2), dtype=int), np.ones((1, 1)), np.zeros((1, 2)))
    np.testing.assert_array_equal(band.low, 0)
    np.testing.assert_array_equal(band.high, 1)


def test_a_known_cell_is_a_point():
    constant = np.array([[0.0, 1.0]])
    band = mixture_band(np.array([[3, 4]]), np.zeros((1, 1)), constant)
    np.testing.assert_allclose(band.low, constant)
    np.testing.assert_allclose(band.high, constant)


def test_difference_covers_and_matches_one_stratum():
    rng = np.random.default_rng(0)
    for p, q, n in ((0.1, 0.1, 5), (0.5, 0.9, 8), (0.0, 0.4, 4)):
        inside = 0
        for run in range(300):
            a, b = rng.binomial(n, p), rng.binomial(n, q)
            found = difference_interval(np.array([[a, n - a], [b, n - b]]), np.array([1.0, -1.0]), draws=500, seed=run)
            inside += found.low[0] <= p - q <= found.high[0]
        assert inside / 300 >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 300)
    alone = difference_interval(np.array([[2, 8]]), np.array([1.0]), draws=100_000)
    np.testing.assert_allclose((alone.low[0], alone.high[0]), clopper_pearson(2, 10), atol=3e-3)


def test_bad_input_is_refused():
    counts, weights, constant = np.array([[1, 2]]), np.ones((1, 1)), np.zeros((1, 2))
    with pytest.raises(UsageError, match="none negative"):
        mixture_band(-counts, weights, constant)
    with pytest.raises(UsageError, match="level"):
        mixture_band(counts, weights, constant, level=1.0)
    with pytest.raises(UsageError, match="draws"):
        mixture_band(counts, weights, constant, draws=5)
