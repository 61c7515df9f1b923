"""Rates of refusal: failures left out, clusters, agreement."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.grading.refusal import OUTCOMES, Outcome, cohen_kappa
from cutaway.reasoning.cot_hijacking.rates import clustered_mean, kappa, refusal_rate, success_rate


@given(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=40))
def test_failures_are_neither_refusals_nor_successes(outcomes: list[Outcome]) -> None:
    said = [o for o in outcomes if o in ("refuse", "comply")]
    rate, success = refusal_rate(outcomes), success_rate(outcomes)
    assert rate.n == len(said)
    assert math.isnan(rate.value) if not said else rate.value == said.count("refuse") / len(said)
    assert success.value == outcomes.count("comply") / len(outcomes)


def test_clusters_widen_the_interval_and_never_pretend_certainty() -> None:
    outcomes: list[Outcome] = ["refuse"] * 20 + ["comply"] * 20
    clusters = np.repeat(np.arange(4), 10)
    plain, clustered = refusal_rate(outcomes), refusal_rate(outcomes, clusters)
    assert clustered.value == plain.value == 0.5
    assert clustered.high - clustered.low > 1.5 * (plain.high - plain.low)
    certain = refusal_rate(["refuse"] * 40, clusters)
    assert (certain.value, certain.high, certain.n) == (1.0, 1.0, 4)
    assert certain.low == pytest.approx(0.025 ** (1 / 4))
    with pytest.raises(UsageError, match="one label per outcome"):
        refusal_rate(outcomes, clusters[:3])


def test_clustered_means_by_hand() -> None:
    values, clusters = [1.0, 0.0, 1.0, 0.5], ["a", "a", "b", "c"]
    found = clustered_mean(values, clusters, seed=1)
    picks = np.random.default_rng(1).integers(0, 3, (2000, 3))
    pooled = [[1.0, 0.0], [1.0], [0.5]]
    drawn = [np.mean([v for c in row for v in pooled[c]]) for row in picks]
    assert (found.value, found.n) == (0.625, 3)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert math.isnan(clustered_mean([0.5, 0.5], [0, 1]).low)
    with pytest.raises(UsageError, match="one label per value"):
        clustered_mean([1.0], [])


def test_kappa_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    first = [OUTCOMES[i] for i in rng.integers(0, 3, 60)]
    second = [a if rng.random() < 0.7 else "comply" for a in first]
    found = kappa(first, second)
    assert found.value == cohen_kappa(first, second)
    assert found.low < found.value < found.high
    assert kappa(first, first).value == 1
    assert math.isnan(kappa(["comply"] * 5, ["comply"] * 5).value)


def test_bad_input() -> None:
    with pytest.raises((UsageError, TypeError), match="refused"):
        refusal_rate(["refused"])  # type: ignore[list-item]
