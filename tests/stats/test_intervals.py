import numpy as np
import pytest
from scipy import stats

from cutaway.errors import UsageError
from cutaway.stats.intervals import (
    bootstrap,
    clopper_pearson,
    mcnemar,
    mean_interval,
    newcombe,
    paired_difference,
    share_difference,
    share_interval,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (150, 300)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_proportions_equal_scipy(k, n, level):
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        found, known = ours(k, n, level), stats.binomtest(k, n).proportion_ci(level, method)
        np.testing.assert_allclose((found.low, found.high), (known.low, known.high), atol=1e-9)
        assert found.value == k / n


def test_newcombe_gives_the_published_example():
    found = newcombe(56, 70, 48, 80)
    np.testing.assert_allclose((found.value, found.low, found.high), (0.2, 0.0524, 0.3339), atol=1e-4)


def test_nothing_observed_is_nan_and_not_zero():
    for interval in (wilson(0, 0), clopper_pearson(0, 0)):
        assert np.isnan(interval.value)
        assert (interval.low, interval.high) == (0.0, 1.0)
    assert np.isnan(newcombe(0, 0, 1, 2).value)
    assert np.isnan(mean_interval([]).value)
    alone = mean_interval([3.0])
    assert alone.value == 3.0
    assert np.isnan(alone.low)
    assert np.isnan(mean_interval([1.0, 2.0], clusters=["a", "a"]).high)
    assert np.isnan(bootstrap([1.0, 1.0, 1.0], np.mean).low)
    assert mcnemar(0, 0) == 1.0


def test_mean_interval_is_the_t_interval():
    x = np.random.default_rng(0).normal(size=12)
    known = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    found = mean_interval(x, 0.9)
    np.testing.assert_allclose((found.low, found.high), (known.low, known.high))
    each_alone = mean_interval(x, 0.9, clusters=np.arange(12))
    np.testing.assert_allclose((each_alone.low, each_alone.high), (found.low, found.high))


def test_clustered_interval_covers_where_the_plain_one_does_not():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(15), 8)
    plain, robust = 0, 0
    for _ in range(400):
        x = rng.normal(size=15)[clusters] + 0.3 * rng.normal(size=120)
        a, b = mean_interval(x), mean_interval(x, clusters=clusters)
        plain += a.low <= 0 <= a.high
        robust += b.low <= 0 <= b.high
    assert robust / 400 >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 400)
    assert plain / 400 < 0.8


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_agrees_with_scipy(method):
    x = np.random.default_rng(2).exponential(size=40)
    known = stats.bootstrap(
        (x,), np.mean, method=method.replace("bca", "BCa"), n_resamples=4000, rng=np.random.default_rng(3)
    ).confidence_interval
    found = bootstrap(x, np.mean, method=method, n=4000)
    np.testing.assert_allclose((found.low, found.high), (known.low, known.high), atol=0.03)


def test_bootstrap_draws_whole_clusters():
    x, clusters = np.repeat([0.0, 1.0, 4.0, 5.0], 25), np.repeat(np.arange(4), 25)
    by_cluster = bootstrap(x, np.mean, clusters=clusters, method="percentile")
    alone = bootstrap([0.0, 1.0, 4.0, 5.0], np.mean, method="percentile")
    assert (by_cluster.low, by_cluster.high, by_cluster.n) == (alone.low, alone.high, 4)


def test_paired_tests():
    a, b = np.array([3.0, 4.0, 6.0, 8.0]), np.array([1.0, 3.0, 4.0, 8.0])
    known = stats.ttest_rel(a, b).confidence_interval()
    found = paired_difference(a, b)
    np.testing.assert_allclose((found.low, found.high), (known.low, known.high))
    assert mcnemar(1, 9) == pytest.approx(2 * stats.binom.cdf(1, 10, 0.5))


def test_repr_says_the_number_with_its_interval():
    assert repr(wilson(42, 100)) == "0.42 [0.33, 0.52]"


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="0 <= k <= n"):
        wilson(3, 2)
    with pytest.raises(UsageError, match="level"):
        clopper_pearson(1, 2, 95.0)
    with pytest.raises(UsageError, match="one label per value"):
        mean_interval([1.0, 2.0], clusters=[1])
    with pytest.raises(UsageError, match="nan"):
        mean_interval([1.0, np.nan])
    with pytest.raises(UsageError, match="pairs"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(UsageError, match="negative"):
        mcnemar(-1, 2)


def test_shares_that_all_agree_are_no_surer_than_their_number() -> None:
    found = share_interval([1.0] * 6)
    assert (found.value, found.high, found.n) == (1.0, 1.0, 6)
    assert found.low == pytest.approx(wilson(6, 6).low)
    assert share_interval([0.9, 0.8, 1.0, 0.2]).high == 1.0
    clustered = share_interval([1.0, 1.0, 0.0, 0.0], clusters=["a", "a", "b", "b"])
    assert (clustered.low, clustered.high, clustered.n) == (0.0, 1.0, 2)
    with pytest.raises(UsageError, match="between 0 and 1"):
        share_interval([2.0, 3.0])


def test_a_difference_of_shares_is_no_surer_than_newcombe() -> None:
    none = share_difference([0.0] * 6, [0.0] * 6)
    apart = newcombe(0, 6, 0, 6)
    assert (none.value, none.low, none.high) == (0.0, apart.low, apart.high)
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(40)
    wide, plain = share_difference(a, b), paired_difference(a, b)
    assert wide.value == plain.value
    assert wide.low <= plain.low < plain.high <= wide.high
