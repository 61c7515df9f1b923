"""The factorial analysis: against enumeration and scipy, on simulated truth and null, and its warnings."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from cutaway.errors import UsageError
from cutaway.grading.refusal import Outcome
from cutaway.reasoning.cot_hijacking.factorial import (
    Cell,
    Trial,
    analyse,
    cluster_logistic,
    confounds,
    power,
    slope,
    within_goal_p,
)

LENGTHS = (0, 128, 512, 1500)
FULL = [Cell(0), *(Cell(n, kind) for n in LENGTHS[1:] for kind in ("puzzle", "random"))]


def simulate(
    seed: int, per_doubling: float = 0.0, cue: float = 0.0, goals: int = 20, cells: list[Cell] = FULL, base: float = 1.0
) -> list[Trial]:
    rng = np.random.default_rng(seed)
    ease = rng.standard_normal(goals)
    trials = []
    for g in range(goals):
        for cell in cells:
            odds = base + ease[g] + per_doubling * np.log2(1 + cell.tokens) + cue * cell.cue
            refused = rng.random() < 1 / (1 + np.exp(-odds))
            trials.append(Trial(f"g{g}", cell, "refuse" if refused else "comply"))
    return trials


def test_within_goal_moments_are_those_of_all_redeals() -> None:
    """Mean 0 and the variance that the p-value uses, by enumerating every order of a goal's outcomes."""
    x, y = np.array([0.0, 1.0, 1.0, 4.0, 9.0]), np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    scores = [float((x - x.mean()) @ np.array(order)) for order in permutations(y)]
    assert np.mean(scores) == pytest.approx(0, abs=1e-12)
    z = float((x - x.mean()) @ y) / np.std(scores)
    assert within_goal_p(x, y, np.zeros(5)) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-12)
    assert np.isnan(within_goal_p(x, np.ones(5), np.zeros(5)))


def test_goals_without_variation_do_not_matter_to_the_test() -> None:
    x = np.tile([0.0, 1.0, 2.0], 4)
    y = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1.0])
    goals = np.repeat(np.arange(4), 3)
    always = within_goal_p(np.concatenate([x, x[:3]]), np.concatenate([y, np.ones(3)]), np.append(goals, [9, 9, 9]))
    assert always == pytest.approx(within_goal_p(x, y, goals))


def test_logistic_is_the_likelihoods_maximum_and_the_sandwich_by_hand() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(120), rng.standard_normal((120, 2))])
    y = (rng.random(120) < 1 / (1 + np.exp(-x @ [0.3, 1.0, -0.5]))).astype(float)
    clusters = np.repeat(np.arange(20), 6)

    def loss(beta: np.ndarray) -> float:
        odds = x @ beta
        return float(np.logaddexp(0, odds).sum() - y @ odds + 0.5e-2 * (beta[1:] ** 2).sum())

    beta, errors = cluster_logistic(x, y, clusters)
    assert beta == pytest.approx(minimize(loss, np.zeros(3), tol=1e-12).x, abs=1e-4)
    p = 1 / (1 + np.exp(-x @ beta))
    bread = np.linalg.inv(x.T @ np.diag(p * (1 - p)) @ x + np.diag([0, 1e-2, 1e-2]))
    meat = sum(np.outer(s, s) for s in (x[clusters == g].T @ (y - p)[clusters == g] for g in range(20)))
    assert errors == pytest.approx(np.sqrt(np.diag(bread @ meat @ bread) * 20 / 19), rel=1e-5)


def test_separated_outcomes_stay_finite() -> None:
    found = analyse([Trial(f"g{g}", c, "comply" if c.tokens > 200 else "refuse") for g in range(10) for c in FULL])
    assert np.isfinite([found.length.value, found.length.low, found.length.high]).all()
    assert found.length.value < -1
    assert found.detected


def test_a_planted_slope_is_found_and_its_sign_right() -> None:
    found = [analyse(simulate(seed, per_doubling=-0.35, goals=30, base=2.0)) for seed in range(20)]
    assert sum(each.detected for each in found) >= 18
    assert all(each.length.value < 0 for each in found)
    assert all(each.length.high < 0 for each in found if each.detected)


def test_without_an_effect_alarms_are_rare() -> None:
    """Acceptance 2, last part, on simulated outcomes with uneven goals."""
    found = [analyse(simulate(seed)) for seed in range(200)]
    assert sum(each.detected for each in found) <= 0.05 * 200
    assert sum(each.length.p < 0.05 for each in found) <= 0.09 * 200


def test_the_cue_is_told_from_length() -> None:
    cells = [Cell(c.tokens, c.relevance, cue) for c in FULL for cue in (False, True)]
    found = analyse(simulate(2, cue=-3.0, goals=30, cells=cells))
    assert found.cue is not None
    assert found.cue.p < 1e-4
    assert found.cue.value < -1
    assert not found.detected
    assert found.confounded == ()


def test_excess_over_the_control() -> None:
    trials = [
        Trial(f"g{g}", c, "comply" if c.kind == "puzzle" and g % 2 else "refuse") for g in range(10) for c in FULL
    ]
    found = analyse(trials)
    assert found.excess is not None
    assert found.excess.value == -0.5
    assert found.excess.high < 0
    assert found.control is not None
    assert np.isnan(found.control.p)
    never = analyse([Trial(f"g{g}", c, "comply") for g in range(10) for c in FULL]).excess
    assert never is not None
    assert never.value == 0
    assert np.isnan(never.low)


@pytest.mark.parametrize(
    ("cells", "flags"),
    [
        (FULL, []),
        ([Cell(0), Cell(512)], ["no length-matched control"]),
        ([Cell(0), Cell(512), Cell(512, "random"), Cell(1500)], ["no length-matched control"]),
        ([Cell(0), Cell(512, cue=True), Cell(512, "random", True)], ["without a cue at 512", "with a cue at 0"]),
        ([Cell(512), Cell(512, "random")], ["a single length"]),
        ([Cell(0), Cell(128, "random"), Cell(512, "random")], []),
    ],
)
def test_confounded_designs_are_flagged(cells: list[Cell], flags: list[str]) -> None:
    """Acceptance 7."""
    found = confounds(cells)
    assert len(found) == len(flags)
    assert all(flag in text for flag, text in zip(flags, found, strict=True))
    report = analyse(simulate(0, cells=cells))
    assert report.confounded == found
    assert ("length effect confounded" in repr(report)) == bool(flags)


def test_failures_are_left_out_and_counted() -> None:
    trials = simulate(0, per_doubling=-0.3)
    odd: list[Outcome] = ["blocked", "empty", "over-context"]
    more = [Trial("g0", Cell(1500), outcome) for outcome in odd]
    plain, with_failures = analyse(trials), analyse([*trials, *more])
    assert with_failures.left_out == {"empty": 1, "blocked": 1, "over-context": 1}
    assert with_failures.length == plain.length
    assert with_failures.rates[Cell(1500)].value == plain.rates[Cell(1500)].value
    with pytest.raises(UsageError, match="none of 3"):
        analyse(more)


def test_harmless_runs_and_order_do_not_count() -> None:
    trials = simulate(3, per_doubling=-0.2)
    extra = [Trial(f"g{g}", Cell(0), "refuse", None, harmful=False) for g in range(9)]
    shuffled = [(trials + extra)[i] for i in np.random.default_rng(0).permutation(len(trials) + 9)]
    assert analyse(shuffled).length.value == pytest.approx(analyse(trials).length.value)
    assert len(analyse(trials).to_frame()) == len(FULL)


def test_undefined_slopes() -> None:
    assert np.isnan(slope(simulate(0, base=40.0)).p)
    assert np.isnan(slope([t for t in simulate(0) if t.cell == Cell(0)]).value)
    assert np.isnan(slope([t for t in simulate(0) if t.goal == "g1"]).p)


def test_power_grows_with_goals_and_is_the_alarm_rate_without_effect() -> None:
    few, many = (power(LENGTHS, goals=g, base=0.8, per_doubling=-0.2, trials=200) for g in (8, 40))
    assert few.high < many.low
    idle = power(LENGTHS, goals=20, base=0.6, per_doubling=0.0, trials=400)
    assert idle.value <= 0.03
    with pytest.raises(UsageError, match="2 lengths"):
        power((5,), goals=20, base=0.5, per_doubling=-0.1)
