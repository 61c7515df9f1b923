"""Transitions: counted right, intervals that cover, and never called causal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cutaway.errors import UsageError
from cutaway.planted.echo import simulate_chain, simulate_items
from cutaway.reasoning.history_echoes.calibration import CARRY, forced_effect, naive_reading
from cutaway.reasoning.history_echoes.markov import (
    context_counts,
    measure_stickiness,
    pair_counts,
    permuted_traces,
    trace_of,
)

outcomes = arrays.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(2, 8)), elements=st.integers(-1, 1))


def test_there_is_no_pair_from_the_last_turn_to_the_first() -> None:
    assert pair_counts(np.array([[0, 0, 0, 1]]))[0].tolist() == [[2, 1], [0, 0]]


@given(outcomes)
def test_pairs_equal_a_naive_loop(y: np.ndarray) -> None:
    counts = np.zeros((2, 2), dtype=int)
    for row in y:
        for t in range(len(row) - 1):
            if row[t] >= 0 and row[t + 1] >= 0:
                counts[row[t], row[t + 1]] += 1
    assert pair_counts(y).sum(0).tolist() == counts.tolist()


@given(outcomes, st.integers(1, 3))
def test_contexts_equal_a_naive_loop(y: np.ndarray, k: int) -> None:
    counts = np.zeros((2, 2), dtype=int)
    for row in y:
        for t in range(k, len(row)):
            before = row[t - k : t].tolist()
            for first in (0, 1):
                if before == [first] + [1] * (k - 1) and row[t] >= 0:
                    counts[first] += [1, row[t]]
    assert context_counts(y, k).sum(0).tolist() == counts.tolist()


@given(outcomes)
def test_what_cannot_be_known_is_undefined_and_never_nan(y: np.ndarray) -> None:
    found = measure_stickiness(y, strata=np.zeros_like(y), history_free=y, permutations=5, resamples=20)
    for each in (found.trace, found.lambda2, found.base_rate, *found.deltas, found.permuted, found.excess):
        assert (each.value is None) == bool(each.undefined)
    assert "nan" not in str(found.to_dict())


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (np.ones((5, 6), dtype=int), "'-' never occurs"),
        (np.zeros((5, 6), dtype=int), "'\\+' never occurs"),
        (np.array([[0, 1, 1, 0, 0]]), "at least 2"),
        (np.full((5, 6), -1), "no two consecutive answers are known"),
    ],
)
def test_degenerate_outcomes_give_a_reason(y: np.ndarray, reason: str) -> None:
    found = measure_stickiness(y)
    assert found.trace.value is None
    assert __import__("re").search(reason, found.trace.undefined)
    assert "undefined" in found.reading


def test_contexts_with_few_cases_are_undefined() -> None:
    found = measure_stickiness(simulate_chain(0.9, 0.2, 8, 8, seed=0))
    assert found.deltas[2].value is None
    assert "fewer than 20 cases" in found.deltas[2].undefined


def test_delta_one_is_lambda_two() -> None:
    y = simulate_chain(0.6, 0.8, 100, 19, seed=3)
    found = measure_stickiness(y, history_free=y)
    assert (found.base_rate.n, found.trace.n, found.excess.n, found.deltas[0].n) == (1900, 1800, 1800, 1800)
    assert found.excess.value == 0
    assert found.deltas[0].value == pytest.approx(found.lambda2.value)
    assert found.deltas[2].value == pytest.approx(0.0, abs=0.1)


def test_permutation_keeps_each_stratum_and_the_unknown() -> None:
    y = np.array([[0, 1, -1, 1], [1, 0, 0, -1]])
    alone = np.arange(8).reshape(2, 4)
    assert permuted_traces(y, alone, 3) == pytest.approx([trace_of(y)] * 3)


def test_other_shapes_and_values_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 for unknown"):
        measure_stickiness(np.array([[0, 2]]))
    with pytest.raises(UsageError, match="one label a turn"):
        measure_stickiness(np.array([[0, 1], [1, 0]]), strata=np.zeros((1, 2), dtype=int))
    with pytest.raises(UsageError, match="history_free has 1"):
        measure_stickiness(np.array([[0, 1], [1, 0]]), history_free=np.zeros((1, 2), dtype=int))


def test_items_alone_look_sticky_and_are_not_called_causal() -> None:
    naive = naive_reading(simulate_items(100, 19, correlation=0.9, seed=1))
    assert naive.trace.value == pytest.approx(1.26, abs=0.06)
    assert naive.trace.low is not None
    assert naive.trace.low > 1.1
    assert "not causal" in naive.reading
    assert "not causal" in repr(naive)
    assert naive.permuted_p is not None
    assert naive.permuted_p > 0.025
    assert naive.excess.low is not None
    assert naive.excess.high is not None
    assert naive.excess.low <= 0 <= naive.excess.high
    # Without controls the warning stays.
    bare = measure_stickiness(simulate_items(100, 19, correlation=0.9, seed=1).outcomes)
    assert "not causal" in bare.reading
    assert "nothing known about the items" in bare.reading


def test_real_carry_over_exceeds_what_difficulty_gives() -> None:
    naive = naive_reading(simulate_items(100, 19, carry=1.0, seed=1))
    assert naive.permuted_p is not None
    assert naive.permuted_p < 0.01


@pytest.mark.slow
def test_acceptance_numbers_of_the_chain_over_many_runs() -> None:
    """Slow: 1,000 bootstraps."""
    found = [measure_stickiness(simulate_chain(0.6, 0.8, 100, 19, seed=s), seed=s).trace for s in range(1000)]
    values = np.array([each.value for each in found], dtype=float)
    assert values[:200].mean() == pytest.approx(1.4, abs=0.01)
    covered = np.mean([(each.low or 0) <= 1.4 <= (each.high or 9) for each in found])
    assert 0.92 <= covered <= 0.97


@pytest.mark.slow
def test_acceptance_numbers_of_forced_histories_over_many_runs() -> None:
    """Slow: 2 x 1,000 simulated data sets of 1,800 pairs."""
    false = missed = 0
    errors = []
    for seed in range(1000):
        null = forced_effect(simulate_items(100, 18, correlation=0.9, seed=seed)).difference
        assert null.low is not None
        assert null.high is not None
        false += not null.low <= 0 <= null.high
        real = simulate_items(100, 18, correlation=0.9, carry=CARRY, seed=seed)
        found = forced_effect(real).difference
        assert found.low is not None
        assert found.value is not None
        missed += found.low <= 0
        errors.append(found.value - real.risk_difference)
    assert false / 1000 <= 0.07
    assert missed / 1000 <= 0.05
    assert np.mean(errors) == pytest.approx(0.0, abs=0.005)
