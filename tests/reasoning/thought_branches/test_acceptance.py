"""The card's acceptance numbers over 50 runs; minutes of sampling, so in the slow tier."""

import numpy as np
import pytest
from planted_branches import QUICK, chain_with, planted, pool_of

from cutaway.reasoning.thought_branches.calibration import CLOSE, STEPS, inside, mediation, removals
from cutaway.reasoning.thought_branches.resilience import resilience

RUNS = 50


@pytest.mark.slow
def test_importance_plus_plus_of_driver_excuse_and_idea():
    """50 runs of 60 removals of three sentences: about four minutes."""
    source = planted("drsa")
    close, covers, quiet = np.zeros(3), 0, 0
    for seed in range(RUNS):
        chain, found = removals(source, seed)
        for i, each in enumerate(found):
            exact = source.exact(chain.trace.ids, i)
            close[i] += abs(each.plus.rate.value - (exact.kept - exact.gone)) <= CLOSE
        covers += found[1].plus.rate.low <= 0 <= found[1].plus.rate.high
        quiet += found[1].mean.value < 0.5
    assert (close >= 0.9 * RUNS).all()
    assert covers >= 0.93 * RUNS
    assert quiet == RUNS


@pytest.mark.slow
def test_resilience_of_the_stubborn_idea_is_four():
    """50 runs of 200 removals that return four times each: about three minutes."""
    source = planted("sa", stubborn=QUICK, idea=4.0)
    chain = chain_with(source, " Idea")
    means = [
        resilience(pool_of(source, seed=seed), chain, 0, runs=200, n=20, cap=40, tries=60).mean.value
        for seed in range(RUNS)
    ]
    near = np.mean(np.abs(np.array(means) - 4) <= 0.6)
    assert near >= 0.9


@pytest.mark.slow
def test_the_excuse_goes_with_the_action_in_sampled_chains():
    """600 chains of the model itself."""
    source = planted("drsa")
    texts = [source.model.decode(r.ids) for r in pool_of(source).first(source.prompt_ids, 600)]
    pairs = np.array([[" red" in text, "is 1." in text] for text in texts], dtype=float)
    assert np.corrcoef(pairs.T)[0, 1] > 0.8


@pytest.mark.slow
def test_transplants_lie_in_their_band_and_effects_add_up():
    """50 runs of 16 chains, twice: about two minutes."""
    source = planted(STEPS, driver=0.0, cue=1.5, step=0.8)
    flat = planted(STEPS, driver=0.0, cue=0.0, step=0.8)
    total = source.p_one(source.hinted_ids) - source.p_one(source.prompt_ids)
    held = covered = false = 0
    gaps = []
    for seed in range(RUNS):
        found, null = mediation(source, seed), mediation(flat, seed)
        held += inside(found, source)
        covered += found.total.low <= total <= found.total.high
        gaps.append([found.gap(k).value for k in range(len(found.cuts))])
        last = null.cuts[-1]
        false += not (last.indirect.low <= 0 <= last.indirect.high)
    error = np.std(gaps, axis=0) / np.sqrt(RUNS)
    assert held >= 0.9 * RUNS
    assert covered >= 0.9 * RUNS
    assert false <= 0.1 * RUNS
    assert (np.abs(np.mean(gaps, axis=0)) <= 4 * error + 1e-12).all()
