"""Resilience and importance++ on planted chains: exact values, censoring, rejection, what is undefined."""

from dataclasses import replace

import numpy as np
import pytest
from planted_branches import QUICK, chain_with, planted, pool_of
from scipy import stats

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.resilience import _mean, resilience
from cutaway.sampling import Settings
from cutaway.stats.survival import kaplan_meier


@pytest.fixture(scope="module")
def stubborn():
    source = planted("dsa", stubborn=QUICK, idea=8.0, driver=4.0)
    return source, chain_with(source, " beta", " Idea")


def test_a_stubborn_idea_returns_and_is_gone_in_the_end(stubborn):
    source, chain = stubborn
    found = resilience(pool_of(source), chain, 1, runs=40, n=100, tries=60, level=0.999)
    exact = source.exact(chain.trace.ids, 1)
    assert exact.resilience(20) == pytest.approx(3.95, abs=0.02)
    assert found.mean.low <= exact.resilience(20) <= found.mean.high
    assert found.mean.value == pytest.approx(exact.resilience(20), abs=1.8)
    assert found.plus.rate.low <= exact.kept - exact.gone <= found.plus.rate.high
    assert found.plus.rate.value == pytest.approx(exact.kept - exact.gone, abs=0.12)
    assert found.conditional.rate.low <= exact.kept - exact.conditional <= found.conditional.rate.high
    assert found.acceptance.low <= exact.differ <= found.acceptance.high
    by_hand = np.array([run.returns for run in found.runs])
    for k in range(5):
        assert found.curve.at(k) == pytest.approx((by_hand > k).mean(), abs=1e-9)


def test_driver_and_excuse_never_return():
    source = planted("drsa", stubborn=QUICK)
    chain, pool = chain_with(source, " beta", " red", " Idea"), pool_of(source)
    driver = resilience(pool, chain, 0, runs=30, n=120, tries=60, level=0.999)
    excuse = resilience(pool, chain, 1, runs=30, n=120, tries=60, level=0.999)
    assert driver.mean.value == excuse.mean.value == 0
    assert 0 < excuse.mean.high < 5
    exact = source.exact(chain.trace.ids, 0)
    assert driver.plus.rate.low <= exact.kept - exact.gone <= driver.plus.rate.high
    assert driver.plus.rate.low > 0.5
    assert excuse.plus.rate.low <= 0 <= excuse.plus.rate.high
    assert excuse.acceptance.value == pytest.approx(0.1, abs=0.06)


def test_a_replacement_that_says_the_same_is_no_return(stubborn):
    source, chain = stubborn
    found = resilience(pool_of(source), chain, 0, runs=25, n=25, tries=60)
    assert sum(run.rejected for run in found.runs) > 5
    assert all(run.returns == 0 and run.status == "gone" for run in found.runs)
    assert sum(run.draws for run in found.runs) == 25 + sum(run.rejected for run in found.runs)


def test_capped_runs_are_censored_and_left_out(stubborn):
    source, chain = stubborn
    pool = pool_of(source)
    long, short = (resilience(pool, chain, 1, runs=24, n=60, cap=cap, tries=60, level=0.999) for cap in (60, 1))
    assert long.count("capped") == 0
    assert short.count("capped") > 12
    assert all(run.outcome is None for run in short.runs if run.status == "capped")
    assert short.mean.value == pytest.approx(long.curve.at(0), abs=1e-9)
    assert short.curve.censored == short.count("capped")
    assert short.plus.n_without == short.count("gone") < long.plus.n_without == 24
    exact = source.exact(chain.trace.ids, 1)
    for each in (long, short):
        assert each.plus.rate.low <= exact.kept - exact.gone <= each.plus.rate.high


def test_the_mean_s_interval_is_on_the_log_scale():
    returns = np.array([0, 0, 1, 1, 2, 7])
    found = _mean(kaplan_meier(returns, np.ones(6, dtype=bool)), 20)
    error = returns.std() / np.sqrt(6)
    factor = np.exp(stats.t.ppf(0.975, 5) * error / returns.mean())
    assert found.value == pytest.approx(returns.mean())
    assert (found.low, found.high) == pytest.approx((returns.mean() / factor, returns.mean() * factor))
    never = _mean(kaplan_meier(np.zeros(6), np.ones(6, dtype=bool)), 20)
    assert (never.value, never.low) == (0, 0)
    assert never.high > 0


def test_when_every_run_is_capped_importance_is_undefined():
    source = planted("sa", stubborn=(0.5, 0.4999, 0.0001), idea=5.0)
    chain = chain_with(source, " Idea")
    found = resilience(pool_of(source), chain, 0, runs=6, n=20, cap=3, tries=60)
    assert found.plus.rate is None
    assert "none of 6 runs got rid of it (6 still there at the cap)" in found.plus.undefined
    assert found.mean.value == 3
    assert np.isnan(found.curve.median().value)


def test_without_another_sentence_the_run_is_undefined():
    source = planted("dra", reason=(0.02, 1.0))
    chain = chain_with(source, " beta")
    found = resilience(pool_of(source), chain, 1, runs=5, n=20, tries=4)
    assert found.count("undefined") == 5
    assert found.curve is None
    assert found.mean is None
    assert all(run.draws == run.rejected == 4 and run.outcome is None for run in found.runs)
    assert "5 no other sentence drawn" in found.plus.undefined
    assert "none of 20 free rollouts" in found.conditional.undefined
    assert "undefined" in repr(found)


def test_chains_cut_at_max_tokens_are_censored(stubborn):
    source, chain = stubborn
    pool = pool_of(source, settings=Settings(1.0, 1.0, 0, 14))
    found = resilience(pool, chain, 1, runs=25, n=20, tries=60)
    assert found.count("cut") > 0
    assert all(run.outcome is None for run in found.runs if run.status == "cut")
    assert found.plus.n_without == found.count("gone")


def test_a_looser_threshold_takes_in_more(stubborn):
    source, chain = stubborn
    tight = resilience(pool_of(source), replace(chain, threshold=1.0), 0, runs=5, n=60, sweep=(0.1, 0.5, 1.0))
    shares = [each.acceptance.value for each in tight.sweep]
    assert shares == sorted(shares)
    assert tight.sweep[-1].effect == tight.conditional


def test_what_is_passed_over_is_found_later():
    """The most similar sentence goes first, and a less similar one before it is not forgotten."""
    source = planted("wla", p_doubt=0.5)
    chain = chain_with(source, " doubtfully", " left1")
    axes = {"Pause doubtfully now.": (1.0, 0.0), "Pause calmly now.": (0.0, 1.0), "Step1 left1 next.": (0.8, 0.6)}

    def embed(texts):
        return np.array([axes.get(text.strip(), (0.0, 0.0)) for text in texts])

    found = resilience(pool_of(source), replace(chain, embed=embed, threshold=0.7), 0, runs=25, n=20)
    assert {run.returns for run in found.runs} == {0, 1}
    assert all(run.status == "gone" for run in found.runs)


@pytest.mark.parametrize(
    ("options", "complaint"), [({"runs": 0}, "runs=0"), ({"cap": 0}, "cap=0"), ({"tries": 0}, "tries=0")]
)
def test_bad_counts(stubborn, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        resilience(pool_of(stubborn[0]), stubborn[1], 1, **options)


def test_the_sentence_that_answers_cannot_be_removed(stubborn):
    with pytest.raises(UsageError, match=r"sentences 0..1"):
        resilience(pool_of(stubborn[0]), stubborn[1], 2)
