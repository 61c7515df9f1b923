"""Kaplan-Meier against numbers worked out by hand, and the areas and medians taken from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.stats.survival import kaplan_meier

# Remission times in weeks of the 6-MP arm of Freireich et al. 1963, the textbook example of the estimator.
WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
AT_RELAPSE = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
GREENWOOD = {6: 0.0764, 7: 0.0869, 10: 0.0963, 13: 0.1068, 16: 0.1141, 22: 0.1282, 23: 0.1346}


def by_hand(times, ended, at):
    """Product of (1 - d / n) over the times up to ``at``."""
    out = 1.0
    for t in sorted({t for t, e in zip(times, ended, strict=True) if e and t <= at}):
        d = sum(1 for u, e in zip(times, ended, strict=True) if e and u == t)
        out *= 1 - d / sum(1 for u in times if u >= t)
    return out


def test_the_textbook_curve():
    curve = kaplan_meier(WEEKS, RELAPSED)
    for week, survival in AT_RELAPSE.items():
        assert curve.at(week) == pytest.approx(survival, abs=6e-4)
    assert (curve.n, curve.censored) == (21, 12)
    assert curve.at(5.9) == 1
    assert curve.median().value == 23
    assert curve.median().low == 13
    assert curve.median().high == np.inf


def test_log_log_interval_by_its_formula():
    curve = kaplan_meier(WEEKS, RELAPSED)
    for week, error in GREENWOOD.items():
        i = list(curve.times).index(week)
        s = curve.survival[i]
        width = 1.959964 * error / (s * abs(np.log(s)))
        assert curve.low[i] == pytest.approx(s ** np.exp(width), abs=2e-3)
        assert curve.high[i] == pytest.approx(s ** np.exp(-width), abs=2e-3)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25))
@budget(max_examples=80, deadline=None)
def test_curve_equals_the_product_by_hand(pairs):
    times, ended = zip(*pairs, strict=True)
    curve = kaplan_meier(times, ended)
    for t in range(7):
        assert curve.at(t) == pytest.approx(by_hand(times, ended, t), abs=1e-9)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=40))
@budget(max_examples=60, deadline=None)
def test_without_censoring_mean_and_error_are_the_ordinary_ones(times):
    found = kaplan_meier(times, [True] * len(times)).restricted_mean(31)
    assert found.value == pytest.approx(np.mean(times), abs=1e-9)
    half = 1.959964 * np.std(times) / np.sqrt(len(times))
    if half == 0:  # nothing varies: the area under the band's ends instead
        return
    assert found.high - found.value == pytest.approx(min(half, 31 - found.value), abs=1e-5)


def test_capped_runs_are_not_averaged_as_finished():
    rng = np.random.default_rng(0)
    returns = rng.geometric(0.2, 20_000) - 1  # mean 4
    capped = np.minimum(returns, 3)
    found = kaplan_meier(capped, returns < 3).restricted_mean(3)
    assert found.value == pytest.approx(sum(0.8**k for k in (1, 2, 3)), abs=0.03)
    with pytest.raises(UsageError, match="beyond 3"):
        kaplan_meier(capped, returns < 3).restricted_mean(20)


def test_intervals_of_the_restricted_mean_cover():
    rng, hits = np.random.default_rng(1), 0
    truth = sum(0.8 ** (k + 1) for k in range(6))
    for _ in range(400):
        returns = rng.geometric(0.2, 60) - 1
        found = kaplan_meier(np.minimum(returns, 6), returns < 6).restricted_mean(6)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 400 <= 0.985


@pytest.mark.parametrize(
    ("times", "ended", "complaint"),
    [([], [], "at least one"), ([1], [True, False], "one of each"), ([-1], [True], "negative")],
)
def test_bad_input(times, ended, complaint):
    with pytest.raises(UsageError, match=complaint):
        kaplan_meier(times, ended)


def test_all_ended_at_once_or_none_ended_gives_binomial_bounds():
    found = kaplan_meier([0] * 50, [True] * 50)
    assert found.high[0] == pytest.approx(1 - 0.025 ** (1 / 50))
    assert (found.median().value, found.median().high) == (0, 0)
    mean = found.restricted_mean(10)
    assert (mean.value, mean.low) == (0, 0)
    assert mean.high == pytest.approx(10 * found.high[0])
    assert kaplan_meier([4] * 50, [False] * 50).low[0] == pytest.approx(0.025 ** (1 / 50))


def test_a_curve_that_never_falls_has_no_median():
    found = kaplan_meier([3, 3], [False, False])
    assert np.isnan(found.median().value)
    assert found.restricted_mean(3).value == 3
    with pytest.raises(UsageError, match="horizon=0"):
        found.restricted_mean(0)
