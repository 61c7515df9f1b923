"""Scores on tables worked by hand, ratios of means, clusters, and what has no value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.circuits.score import SHARES, cmd, cpr, faithfulness, ndf, nfs
from cutaway.errors import UsageError

FULL, NONE = np.array([4.0, 4.0, 4.0, -2.0, 1.0]), np.array([0.0, 0.0, 0.0, 2.0, 1.0])
VALUES = np.array([3.0, 5.0, 9.0, -1.0, 7.0])


def test_ratios_of_items_by_hand() -> None:
    """Short of the model, over it, over by more than the span, a span below zero, no span."""
    ratio, distance = nfs(VALUES, FULL, NONE), ndf(VALUES, FULL, NONE)
    assert np.allclose(ratio.values, [0.75, 1.25, 2.25, 0.75, np.nan], equal_nan=True)
    assert np.allclose(distance.values, [0.75, 0.75, 0.0, 0.75, np.nan], equal_nan=True)
    for each in (ratio, distance):
        assert each.n_undefined == 1
        assert each.reason == "clean and corrupted differ by less than 0.001"
        assert "1 of 5 undefined" in repr(each)
    assert distance.mean().value == pytest.approx(0.5625)
    assert distance.mean().n == 4
    assert ratio.mean(clusters=["a", "a", "b", "b", "b"]).n == 2


def test_several_runs_at_once() -> None:
    both = ndf(np.stack([VALUES, FULL]), FULL, NONE)
    assert np.allclose(both[1].values[:4], 1.0)
    assert np.allclose(both[0].values, ndf(VALUES, FULL, NONE).values, equal_nan=True)
    with pytest.raises(UsageError, match="one run at a time"):
        both.mean()


@given(st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=1, max_size=8))
def test_ndf_stays_between_0_and_1_and_falls_on_both_sides(rows: list[tuple[float, float, float]]) -> None:
    values, full, none = np.array(rows).T
    distance, ratio = ndf(values, full, none), nfs(values, full, none)
    kept = ~distance.undefined
    assert ((distance.values[kept] >= 0) & (distance.values[kept] <= 1)).all()
    assert np.allclose(distance.values[kept], 1 - np.minimum(np.abs(1 - ratio.values[kept]), 1), atol=1e-6)
    mirrored = ndf(2 * full - values, full, none)
    assert np.allclose(mirrored.values[kept], distance.values[kept], atol=1e-9)


def test_the_interval_of_a_mean_ndf_stays_where_ndf_can_be() -> None:
    full, none = np.full(2, 2.0), np.zeros(2)
    found = ndf(np.array([0.2, 1.9]), full, none).mean()
    assert (found.low, found.high) == (0.0, 1.0)
    assert nfs(np.array([0.2, 1.9]), full, none).mean().low < 0


def test_faithfulness_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    full, none, values = np.array([10.0, 1.0]), np.array([0.0, 0.0]), np.array([5.0, 1.0])
    assert faithfulness(values, full, none).value == pytest.approx(6 / 11)
    assert nfs(values, full, none).mean().value == pytest.approx(0.75)


def test_the_interval_covers_and_widens_with_clusters() -> None:
    rng, inside, wider = np.random.default_rng(0), 0, 0
    for trial in range(24):
        cluster = np.repeat(np.arange(12), 5)
        full = 4 + rng.normal(size=60)
        none = rng.normal(size=60) * 0.5
        values = none + 0.6 * (full - none) + rng.normal(size=12)[cluster]
        clustered = faithfulness(values, full, none, clusters=cluster, seed=trial).interval
        plain = faithfulness(values, full, none, seed=trial).interval
        inside += clustered.low <= 0.6 <= clustered.high
        wider += clustered.high - clustered.low > plain.high - plain.low
        assert clustered.n == 12
    assert inside >= 18  # fewer of 24 have probability 0.0003 at a true coverage of 0.95
    assert wider >= 21


def test_what_has_no_value_says_why() -> None:
    same = faithfulness(np.array([1.0, 2.0]), np.array([3.0, 1.0]), np.array([1.0, 3.0]))
    assert np.isnan(same.value)
    assert "differ by 0.0e+00, less than 0.001" in same.undefined
    unclear = faithfulness(np.array([1.0, 2.0, 3.0]), np.array([5.0, -4.0, 1.0]), np.array([0.0, 0.0, 0.0]))
    assert unclear.value == pytest.approx(3.0)
    assert np.isnan(unclear.interval.low)
    assert "not distinguished from zero" in unclear.undefined
    one = faithfulness(np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([0.0, 0.0]), clusters=["a", "a"])
    assert one.undefined == "one cluster has no interval"
    assert one.value == pytest.approx(0.5)
    assert np.isnan(faithfulness(np.zeros(0), np.zeros(0), np.zeros(0)).value)


def test_areas_by_hand() -> None:
    ones = np.ones(len(SHARES))
    assert cpr(SHARES, ones) == pytest.approx(0.999)
    assert cpr(SHARES, ones, x="log") == pytest.approx(1.0)
    assert cmd(SHARES, ones) == 0
    assert cmd(SHARES, 2 - ones) == 0
    assert cpr([0.1, 0.5, 1.0], [0.0, 1.0, 1.0]) == pytest.approx(0.2 + 0.5)
    assert cmd([0.1, 0.5, 1.0], [0.0, 1.5, 1.0]) == pytest.approx(0.4 * 0.75 + 0.5 * 0.25)
    assert cpr([0.01, 0.1, 1.0], [0.0, 1.0, 1.0], x="log") == pytest.approx(0.75)
    assert np.isnan(cpr([0.1, 1.0], [np.nan, 1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ndf(VALUES * np.nan, FULL, NONE), "NaN or infinity"),
        (lambda: cpr([0.5, 0.1], [1.0, 1.0]), "rising"),
        (lambda: cpr([0.1, 0.5], [1.0]), "one value for each"),
        (lambda: cmd([0.1, 0.5], [1.0, 1.0], x="logs"), "x='logs'"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match=message):
        call()
