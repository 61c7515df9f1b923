"""Angles, rotations and their floors, on states built to order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from cutaway.errors import UsageError
from cutaway.planted.echo import SimulatedStates, simulate_states
from cutaway.reasoning.history_echoes.geometry import (
    Geometry,
    measure_geometry,
    noise_floor,
    plane,
    rotation,
)
from cutaway.reasoning.history_echoes.link import angle_link
from cutaway.reasoning.history_echoes.separation import SEEDS, first_half, trapped_signal


def measured(planted: SimulatedStates, **options: object) -> Geometry:
    return measure_geometry(planted.states, planted.labels, planted.dialogue, planted.turn, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", [10.0, 30.0, 60.0, 90.0, 120.0])
def test_the_planted_angle_is_found(angle: float) -> None:
    found = measured(simulate_states(angle, 100, 20, seed=int(angle)), permutations=50)
    assert found.theta.value == pytest.approx(angle, abs=1.0)
    assert found.p is not None
    assert found.p < 0.05
    for stay in ("--", "++"):
        assert found.rotations[stay] == pytest.approx(0.0, abs=2.0)
    assert found.completeness["-+"] == pytest.approx(1.0, abs=0.2)
    assert found.completeness["+-"] == pytest.approx(1.0, abs=0.2)


@given(st.floats(-175, 175), st.integers(0, 1000))
def test_procrustes_returns_the_planted_rotation(angle: float, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(40, 2))
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    assert rotation(points, points @ np.array([[c, s], [-s, c]])) == pytest.approx(angle, abs=0.1)


@given(st.integers(0, 1000))
def test_procrustes_is_the_best_of_all_rotations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 12, 2))
    grid = np.radians(np.arange(-180, 180, 0.5))
    loss = [((a @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) - b) ** 2).sum() for t in grid]
    best = np.degrees(grid[int(np.argmin(loss))])
    assert abs((rotation(a, b) - best + 180) % 360 - 180) <= 0.5


def test_angles_do_not_change_when_states_turn_or_grow() -> None:
    planted = simulate_states(35.0, 30, 8, d_model=16, seed=2)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    moved = SimulatedStates(7.5 * planted.states @ turn, planted.labels, planted.dialogue, planted.turn, 35.0)
    one, other = measured(planted, permutations=20), measured(moved, permutations=20)
    assert other.theta.value == pytest.approx(one.theta.value, abs=1e-6)
    assert other.null_high == pytest.approx(one.null_high, abs=1e-6)
    assert other.noise_floor == pytest.approx(one.noise_floor, abs=1e-6)
    assert other.rotations == pytest.approx(one.rotations, abs=1e-6)
    assert other.auc.value == pytest.approx(one.auc.value)
    assert other.p == one.p


def test_the_plane_equals_arithmetic_by_hand() -> None:
    basis, angle = plane(np.array([2.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))
    assert angle == pytest.approx(45.0)
    assert basis.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert np.isnan(plane(np.zeros(3), np.ones(3))[1])


def test_equal_classes_lie_at_the_noise_floor() -> None:
    assert noise_floor(1.0, 50, 900) == pytest.approx(8.3, abs=0.05)
    found = [measured(simulate_states(0.0, 60, 20, d_model=256, noise=1.0, seed=s), permutations=20) for s in range(8)]
    angles = [each.theta.value for each in found]
    floors = [each.noise_floor for each in found]
    assert np.mean(angles) == pytest.approx(np.mean(floors), rel=0.15)  # type: ignore[arg-type]


def test_permutation_p_is_uniform_for_labels_without_meaning() -> None:
    p = []
    for seed in range(150):
        planted = simulate_states(0.0, 12, 8, d_model=8, seed=seed)
        found = measured(planted, permutations=49, seed=seed).p
        assert found is not None
        p.append(found)
    # p has steps of 1/50; spread each over its step.
    rng = np.random.default_rng(0)
    assert kstest(np.array(p) - rng.random(len(p)) / 50, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.06) <= 0.12


def test_dialogues_that_differ_do_not_fool_the_null() -> None:
    rng = np.random.default_rng(1)
    p = []
    for seed in range(40):
        planted = simulate_states(0.0, 20, 8, d_model=8, seed=seed)
        offset, base = rng.normal(size=(20, 8)), rng.random(20)
        labels = (rng.random(160) < base[planted.dialogue]).astype(int)
        states = planted.states + offset[planted.dialogue]
        found = measure_geometry(states, labels, planted.dialogue, planted.turn, permutations=39, seed=seed)
        p.append(1.0 if found.p is None else found.p)
    assert np.mean(np.array(p) <= 0.05) <= 0.15


def test_centred_angles_know_nothing_of_what_all_states_share() -> None:
    planted = simulate_states(8.0, 100, 20, seed=0)
    shared = SimulatedStates(planted.states + 50.0, planted.labels, planted.dialogue, planted.turn, 8.0)
    assert (measured(shared, permutations=5).theta.value or 0.0) < 1.0
    centred = measured(shared, centred=True, permutations=20)
    assert (centred.theta.value or 0.0) > 130
    assert centred.p is not None
    assert centred.p < 0.06
    null = measured(simulate_states(0.0, 100, 20, seed=0), centred=True, permutations=20)
    assert 40 < (null.theta.value or 0.0) < 150


def test_intervals_of_angle_and_area_cover_the_truth() -> None:
    angles = areas = 0
    for seed in range(40):
        theta = measured(simulate_states(40.0, 60, 10, seed=seed), permutations=1).theta
        area = measured(simulate_states(0.0, 60, 10, seed=seed), permutations=1).auc
        assert theta.low is not None
        assert theta.high is not None
        assert area.low is not None
        assert area.high is not None
        angles += theta.low <= 40 <= theta.high
        areas += area.low <= 0.5 <= area.high
    assert angles >= 34
    assert areas >= 34


def test_area_under_curve_equals_counting_pairs() -> None:
    planted = simulate_states(20.0, 12, 6, d_model=5, seed=4)
    x, y = planted.states, planted.labels
    half = first_half(planted.dialogue, SEEDS[0])
    score = x @ (x[half & (y == 1)].mean(0) - x[half & (y == 0)].mean(0))
    plus, minus = score[~half & (y == 1)], score[~half & (y == 0)]
    wins = np.mean((plus[:, None] > minus) + 0.5 * (plus[:, None] == minus))
    assert measured(planted, permutations=1).auc.value == pytest.approx(wins)


@pytest.mark.parametrize(
    ("labels", "dialogue", "reason"),
    [
        ([0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], "only '-' occurs"),
        ([0, 1] * 4, [3] * 8, "1 dialogues"),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1], "one class only"),
    ],
)
def test_degenerate_labels_give_a_reason(labels: list[int], dialogue: list[int], reason: str) -> None:
    states = np.random.default_rng(0).normal(size=(8, 5))
    place = np.array(dialogue), np.arange(8) % 4
    found = measure_geometry(states, np.array(labels), *place)
    assert found.theta.value is None
    assert reason in found.theta.undefined
    assert reason in trapped_signal(states, np.array(labels), *place, np.zeros(8)).undefined
    assert "nan" not in str(found.to_dict())


def test_a_class_that_rests_on_one_dialogue_leaves_the_interval_open() -> None:
    x = np.random.default_rng(0).normal(size=(16, 4)) + 1
    dialogue, turn = np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)
    labels = np.where(dialogue == 3, 0, turn % 2)  # where 3 is in a half, its fellow alone has both classes
    assert any(first_half(dialogue, seed)[-1] for seed in SEEDS)
    theta = measure_geometry(x, labels, dialogue, turn).theta
    assert theta.value is not None
    assert (theta.low, theta.high) == (None, None)


def test_lengths_and_labels_are_checked() -> None:
    with pytest.raises(UsageError, match="lengths differ"):
        measure_geometry(np.zeros((3, 2)), np.zeros(2, dtype=int), np.zeros(3, dtype=int), np.zeros(3, dtype=int))
    with pytest.raises(UsageError, match="0 or 1"):
        measure_geometry(np.zeros((2, 2)), np.array([0, 2]), np.zeros(2, dtype=int), np.zeros(2, dtype=int))


def test_the_trapped_signal_sees_what_outcomes_do_not_say() -> None:
    """A hidden drift moves the state and the next outcome; the outcome itself is a noisy sign of it."""
    rng = np.random.default_rng(0)
    drift = np.cumsum(rng.normal(size=(40, 20)), axis=1)
    labels = (drift + rng.normal(size=drift.shape) > 0).astype(int).ravel()
    states = np.stack([drift.ravel(), rng.normal(size=800)], axis=1)
    dialogue, turn = (each.ravel() for each in np.indices(drift.shape))
    found = trapped_signal(states, labels, dialogue, turn, rng.random(800))
    assert found.low is not None
    assert found.low > 0.6
    nothing = trapped_signal(rng.normal(size=(800, 2)), labels, dialogue, turn, rng.random(800))
    assert nothing.low is not None
    assert nothing.high is not None
    assert nothing.low <= 0.5 <= nothing.high


def test_published_angles_go_with_phenomena_and_hardly_within_them() -> None:
    """The card's table: Tr is known as a mean over models only, so ties stand in for 18 cells."""
    trace = {"NQ": 1.13, "TQA": 1.12, "SORRY": 1.57, "DNA": 1.59, "S-pos": 1.33, "S-neg": 1.14}
    theta = {
        "NQ": (11.3, 11.7, 9.6),
        "TQA": (13.1, 6.4, 13.9),
        "SORRY": (66.5, 46.4, 42.7),
        "DNA": (54.3, 38.6, 34.0),
        "S-pos": (14.6, 22.5, 27.8),
        "S-neg": (28.2, 22.6, 23.6),
    }
    group = {"NQ": "h", "TQA": "h", "SORRY": "r", "DNA": "r", "S-pos": "s", "S-neg": "s"}
    cells = [(angle, trace[name], group[name]) for name, angles in theta.items() for angle in angles]
    link = angle_link(*zip(*cells, strict=True))  # type: ignore[arg-type]
    assert link.cells == 18
    assert link.rho == pytest.approx(0.78, abs=0.1)
    assert link.p_all < 0.01
    assert link.p_within > 0.05
    with pytest.raises(UsageError, match="at least 3"):
        angle_link([1.0, 2.0], [1.0, 2.0], ["a", "b"])
