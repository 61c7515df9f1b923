import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.stats.sequential import beta_binomial_cs, bounded_mean_cs, two_sample_log_e


def naive_log_e(x, y, n_answers, prior=1.0):
    total, out = 1.0, []
    for t in range(len(x)):
        f_a = [(list(x[:t]).count(a) + prior) / (t + prior * n_answers) for a in range(n_answers)]
        f_b = [(list(y[:t]).count(a) + prior) / (t + prior * n_answers) for a in range(n_answers)]
        mean = [(p + q) / 2 for p, q in zip(f_a, f_b, strict=True)]
        total *= f_a[x[t]] * f_b[y[t]] / (mean[x[t]] * mean[y[t]])
        out.append(np.log(total))
    return np.array(out)


@given(
    st.integers(2, 4).flatmap(
        lambda k: st.tuples(st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), max_size=12))
    )
)
def test_log_e_equals_the_definition(case):
    n_answers, pairs = case
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    np.testing.assert_allclose(two_sample_log_e(x, y, n_answers), naive_log_e(x, y, n_answers), atol=1e-10)


@pytest.mark.parametrize(
    ("null", "blocks"),
    [((0.5, 0.5), 4), ((0.9, 0.1), 4), ((0.02, 0.98), 4), ((0.2, 0.3, 0.5), 3), ((0.98, 0.01, 0.01), 3)],
)
@pytest.mark.parametrize("prior", [0.1, 1.0, 5.0])
def test_expected_e_is_at_most_one_under_the_null_by_enumeration(null, blocks, prior):
    k = len(null)
    total = np.zeros(blocks)
    for draws in itertools.product(range(k), repeat=2 * blocks):
        probability = np.prod([null[d] for d in draws])
        total += probability * np.exp(two_sample_log_e(draws[:blocks], draws[blocks:], k, prior=prior))
    assert np.all(total <= 1 + 1e-12)


def test_a_real_difference_is_found_and_no_difference_is_not():
    rng = np.random.default_rng(0)
    found, false = 0, 0
    for _ in range(300):
        a, b, c = (rng.choice(2, 100, p=p) for p in ((0.5, 0.5), (0.8, 0.2), (0.5, 0.5)))
        found += two_sample_log_e(a, b, 2).max() >= np.log(20)
        false += two_sample_log_e(a, c, 2).max() >= np.log(20)
    assert found / 300 > 0.85
    assert false / 300 <= 0.05


def test_bounded_mean_cs_covers_at_every_time_and_narrows():
    rng = np.random.default_rng(1)
    misses, widths = 0, []
    for _ in range(40):
        low, high = bounded_mean_cs((rng.random(80) < 0.2).astype(float), 0.9)
        known = np.isfinite(low)
        assert np.all(np.diff(low[known]) >= 0)
        assert np.all(np.diff(high[known]) <= 0)
        misses += not np.all((low <= 0.2) & (high >= 0.2))
        widths.append(high[-1] - low[-1])
    assert misses / 40 <= 0.1 + 2 * np.sqrt(0.09 / 40)
    assert np.nanmean(widths) < 0.3


def test_bounded_mean_cs_scales_with_the_range():
    values = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 30)
    low, high = bounded_mean_cs(values, lower=-1.0, upper=1.0)
    unit_low, unit_high = bounded_mean_cs((values + 1) / 2)
    np.testing.assert_allclose(low, 2 * unit_low - 1)
    np.testing.assert_allclose(high, 2 * unit_high - 1)


def test_bounded_mean_cs_says_nan_once_no_constant_mean_is_possible():
    low, high = bounded_mean_cs([0.0] * 60 + [1.0] * 60, 0.95)
    assert np.isnan(low[-1])
    assert np.isnan(high[-1])
    assert np.isfinite(low[59])


def test_beta_binomial_cs_covers_at_every_time():
    rng = np.random.default_rng(3)
    for p in (0.0, 0.03, 0.5, 1.0):
        k = np.cumsum(rng.random((400, 100)) < p, axis=1)
        low, high = beta_binomial_cs(k, np.arange(1, 101), 0.9)
        missed = np.any((low > p + 1e-9) | (high < p - 1e-9), axis=1).mean()
        assert missed <= 0.1
        assert np.all(low <= k / np.arange(1, 101))


def test_beta_binomial_cs_knows_nothing_without_trials():
    low, high = beta_binomial_cs(0, 0)
    assert (float(low), float(high)) == (0.0, 1.0)


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="pair them"):
        two_sample_log_e([0, 1], [0], 2)
    with pytest.raises(UsageError, match="allowed are 0"):
        two_sample_log_e([0, 2], [0, 1], 2)
    with pytest.raises(UsageError, match="prior"):
        two_sample_log_e([0], [1], 2, prior=0.0)
    with pytest.raises(UsageError, match="within"):
        bounded_mean_cs([0.5, 1.5])
    with pytest.raises(UsageError, match="within"):
        bounded_mean_cs([0.5, np.nan])
    with pytest.raises(UsageError, match="level"):
        bounded_mean_cs([0.5], 95.0)
    with pytest.raises(UsageError, match="0 <= k <= n"):
        beta_binomial_cs(3, 2)
