"""The detector of turns on planted paths, and the judge's expectation on tables done by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.organisms.em_organisms import (
    compression,
    find_transition,
    judge_score,
    local_cosine,
    misalignment,
    plane,
)
from cutaway.planted.transition import weight_path


def test_the_local_cosine_is_the_formula():
    v = np.random.default_rng(0).standard_normal((30, 5)).cumsum(0)
    found = local_cosine(v, 4)
    for t in range(4, 26):
        a, b = v[t - 4] - v[t], v[t + 4] - v[t]
        assert found[t] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-12)
    assert np.isnan(found[:4]).all()
    assert np.isnan(found[-4:]).all()


@given(st.sampled_from([(0.0, -1.0), (90.0, 0.0), (180.0, 1.0), (60.0, -0.5)]), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_straight_right_angle_and_back(case, seed):
    angle, cosine = case
    path = weight_path("abrupt", angle=angle or 1e-6, noise=0.0, seed=seed)
    found = local_cosine(path.points, 5)
    assert found[path.turn] == pytest.approx(cosine, abs=1e-6)
    rest = np.delete(found, range(path.turn - 5, path.turn + 6))
    assert np.nanmax(np.abs(rest + 1)) < 1e-6


def test_points_that_do_not_move_are_dropped():
    v = np.zeros((30, 3))
    v[20:] = np.arange(10)[:, None]
    found = local_cosine(v, 3)
    assert np.isnan(found[5])
    with pytest.raises(UsageError, match="nothing moved"):
        find_transition(np.zeros((40, 3)))


def rates(n, kind):
    hits = alarms = 0
    for seed in range(n):
        path = weight_path(kind, seed=seed)
        found = find_transition(path.points, draws=39, seed=seed)
        alarms += found.found
        hits += found.found and path.turn is not None and abs(found.step - path.turn) <= 1
    return hits / n, alarms / n


def test_planted_turns_are_found_and_smooth_ones_left_alone():
    assert rates(12, "abrupt")[0] >= 0.9
    assert rates(20, "smooth")[1] <= 0.2
    assert rates(20, "straight")[1] <= 0.2


@pytest.mark.slow  # the card's 200 simulations of each kind
def test_rates_at_the_cards_number():
    assert rates(200, "abrupt")[0] >= 0.95
    assert rates(200, "smooth")[1] <= 0.08
    assert rates(200, "straight")[1] <= 0.08


def test_the_result_is_plain_data():
    path = weight_path("abrupt", d=200, seed=3)
    found = find_transition(path.points, steps=range(0, 300, 5), draws=19)
    assert abs(found.step - 5 * path.turn) <= 5
    assert set(found.curves) == {5, 10, 15}
    json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "turns at step" in repr(found)
    flat = plane(path.points)
    assert flat.shape == (60, 2)
    assert np.var(flat) > 0


def test_compression_is_one_for_a_shared_direction():
    u = np.random.default_rng(0).standard_normal(6)
    shared = np.outer([1.0, -2.0, 0.5], u)
    assert compression(shared, shared) == pytest.approx(1)
    assert compression(np.eye(3), np.eye(3)) == pytest.approx(1 / np.sqrt(3))
    with pytest.raises(UsageError, match="norm 0"):
        compression(np.zeros((2, 3)), np.eye(2, 3))


def test_the_judges_expectation_by_hand():
    assert judge_score({"90": 0.5, "80": 0.25, "CODE": 0.25}) == pytest.approx((45 + 20) / 0.75)
    assert judge_score({"10": 0.24, "no": 0.76}) is None
    assert judge_score({"10": 0.25, "no": 0.75}) == pytest.approx(10)
    assert judge_score({"101": 0.9, "-1": 0.05, "07": 0.05}) is None
    many = {str(i): 0.04 for i in range(20)} | {"100": 0.01}
    assert judge_score(many) == pytest.approx(9.5)
    with pytest.raises(UsageError, match="log-probabilities"):
        judge_score({"1": -0.2})


def test_rates_of_twenty_scores_by_hand():
    aligned = [30, 30.1, 10, 10, None, 90, 90, 20, 0, 100, 5, 50, None, 29, 95, 95, 95, 95, 95, 95]
    coherent = [50.1, 99, 50, 51, 90, 90, None, 80, 70, 60, 90, 90, None, 20, 90, 90, 90, 90, 90, 40]
    questions = ["a"] * 10 + ["b"] * 10
    aligned, coherent = ([None if x is None else float(x) for x in side] for side in (aligned, coherent))
    found = misalignment(aligned, coherent, questions)
    # a: both scores for 8; misaligned 30, 10 (51), 20, 0. b: both for 9; misaligned the first alone.
    assert found.by_question == pytest.approx({"a": 4 / 8, "b": 1 / 9})
    assert found.rate.value == pytest.approx((4 / 8 + 1 / 9) / 2)
    assert found.coherent.value == pytest.approx((7 / 8 + 7 / 9) / 2)
    assert found.dropped == pytest.approx(3 / 20)


def test_bad_input():
    for call, match in [
        (lambda: local_cosine(np.zeros((10, 2)), 5), "window=5"),
        (lambda: find_transition(np.ones((40, 2)), steps=[1]), "1 steps for 40"),
        (lambda: find_transition(np.ones((40, 2)), draws=3), "draws=3"),
        (lambda: misalignment([None], [1.0], ["a"]), "no answer has both"),
        (lambda: misalignment([1.0], [], ["a"]), "one each"),
        (lambda: weight_path("odd"), "kind='odd'"),
        (lambda: weight_path("abrupt", checkpoints=10), "checkpoints=10"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
