"""Pruning, recovery, takeover and priming: planted networks, nulls, and a small tagger."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from cutaway.editing.relearn_concepts import concept_neurons, measure, primed, random_neurons, relearn, tally
from cutaway.editing.relearn_concepts.data import LABELS, sentences, tagged
from cutaway.editing.relearn_concepts.method import Checkpoint, Relearnt, errors, f1
from cutaway.editing.relearn_concepts.study import Relearn, RelearnConfig, planted_trial
from cutaway.errors import UsageError
from cutaway.stats import Interval
from cutaway.study import Lab
from cutaway.training import TrainConfig

CONFIG = TrainConfig(rate=3e-3, batch=32, steps=24, schedule="constant", bucket=1, precision="float32", probe_every=8)


@pytest.fixture(scope="module")
def neurons(tagger, data):
    return concept_neurons(tally(tagger.model, data, LABELS), "CITY", 80)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_pruned_neurons_are_zero_and_stay_so_only_in_hard_mode(tagger, data, test, neurons, mode):
    found = relearn(tagger, data, test, "CITY", neurons, CONFIG, mode=mode)
    assert [point.step for point in found.curve] == [0, 8, 16, 24]
    for layer, chosen in neurons.items():
        assert (found.curve[0].saliency[layer, list(chosen)] == 0).all()
    end = np.concatenate([found.curve[-1].saliency[layer, list(chosen)] for layer, chosen in neurons.items()])
    if mode == "hard":
        assert (end == 0).all()
    else:
        assert (end > 0).mean() > 0.9  # the gradient reaches them: they move again
    assert found.mode == mode
    assert json.loads(json.dumps(found.to_dict()))["curve"][0]["step"] == 0
    assert len(found.to_frame()) == 4
    assert "CITY" in repr(found)


def test_the_tagger_itself_is_left_alone(tagger, data, test, neurons):
    before = tagger.model.fingerprint
    relearn(tagger, data, test, "CITY", neurons, TrainConfig(rate=1e-3, batch=8, steps=1))
    assert tagger.model.fingerprint == before


def test_counts_and_f1_equal_a_loop(tagger, test):
    counts = errors(tagger, test)
    loop = np.zeros_like(counts)
    for i, (row,) in enumerate(test.examples):
        states = tagger.model.capture([list(row.ids)], tagger.site, special=True)[tagger.site][0]
        guesses = (states @ tagger.head.T).argmax(-1).tolist()
        for truth, guess in zip(row.labels, guesses, strict=True):
            if truth >= 0:
                loop[i, truth, 0] += truth == guess
                loop[i, guess, 1] += truth != guess
                loop[i, truth, 2] += truth != guess
    assert np.array_equal(counts, loop)
    right, wrong, missed = loop.sum(0)[1]
    assert f1(counts, [1]).value == pytest.approx(2 * right / (2 * right + wrong + missed))


def test_random_neurons_match_layer_by_layer():
    own = {0: (1, 2, 3), 2: tuple(range(9))}
    found = random_neurons(own, 10, seed=1)
    assert {layer: len(chosen) for layer, chosen in found.items()} == {0: 3, 2: 9}
    assert not set(found[0]) & set(own[0])
    assert all(len(set(chosen)) == len(chosen) for chosen in found.values())
    assert found == random_neurons(own, 10, seed=1) != random_neurons(own, 10, seed=2)


def test_planted_takeover_is_named_and_the_null_stays_silent():
    assert set(planted_trial(0).values()) == {1}


@pytest.mark.slow  # the card's full count: 20 networks
def test_planted_takeover_twenty_times():
    assert Relearn().calibrate(Lab(), 20).passed


def curve(*f1s: float, saliency=None) -> Relearnt:
    def point(step, value):
        return Checkpoint(step, Interval(value, value, value, 1, 0.95), Interval(1.0, 1.0, 1.0, 1, 0.95), flat)

    flat = np.ones((3, 4)) if saliency is None else saliency
    points = [point(10 * i, value) for i, value in enumerate(f1s[1:])]
    return Relearnt("X", "soft", {0: (0,)}, point(0, f1s[0]), tuple(points))


def test_half_life_is_read_between_checkpoints():
    found = curve(0.9, 0.1, 0.3, 0.7, 0.9)
    assert found.drop == pytest.approx(0.8)
    assert found.half_life == pytest.approx(15.0)  # F1 0.5 lies half way between steps 10 and 20
    assert found.steps_to(0.9) == pytest.approx(26.0)
    assert found.recovered == pytest.approx(1.0)
    assert np.isnan(curve(0.9, 0.1, 0.2).half_life)
    assert np.isnan(curve(0.5, 0.5, 0.6).recovered)


def test_centre_of_mass_and_takeover_by_hand():
    late = np.zeros((3, 4))
    late[2] = 1.0
    found = curve(0.9, 0.1, 0.9, saliency=late)
    assert found.before.centre == 1.0
    assert found.before.profile.tolist() == [0, 0, 1]
    early = Checkpoint(10, found.before.f1, found.before.f1, np.flipud(late).copy())
    moved = Relearnt("X", "soft", {0: (0,)}, found.before, (found.curve[0], early))
    assert moved.shift == -1.0
    assert moved.takeover() == ((0, 1, 1.0), (0, 2, 1.0), (0, 3, 1.0))  # not the pruned one


def test_priming_equals_spearman_in_one_layer_and_is_calibrated_under_the_null():
    rng = np.random.default_rng(0)
    x, y, z, w = rng.normal(size=(4, 1, 60))
    found = primed(x, y, z, w, {}, permutations=99)
    assert found.rho == pytest.approx(spearmanr(x[0], y[0]).statistic)
    low = 0
    for seed in range(60):
        layers = rng.normal(size=(3, 1))  # layers differ in level: no priming within any of them
        draws = [rng.normal(size=(3, 30)) + layers for _ in range(4)]
        low += primed(*draws, {}, permutations=99, seed=seed).p <= 0.05
    assert low <= 8  # 60 draws at 5%: more than 8 has probability below 1%
    strong = primed(x, x + 0.1 * y, z, w, {}, permutations=199)
    assert strong.p == pytest.approx(1 / 200)
    assert strong.auc > 0.9


def test_partial_correlation_takes_a_common_cause_off():
    rng = np.random.default_rng(1)
    cause = rng.normal(size=(2, 200))
    x, y = cause + 0.3 * rng.normal(size=(2, 2, 200))
    found = primed(x, y, cause, rng.normal(size=(2, 200)), {}, permutations=199)
    assert found.p < 0.01
    assert abs(found.partial) < 0.2


def test_the_small_tagger_forgets_and_relearns(tagger, data, test):
    found = tally(tagger.model, data, LABELS)
    own = concept_neurons(found, "CITY", found.saliency("CITY").numel() // 2)
    one = relearn(tagger, data, test, "CITY", own, CONFIG)
    assert one.drop > 0.15
    assert one.recovered > 0.5


@pytest.mark.slow  # five taggers trained from nothing, two arms each: minutes
def test_acceptance_of_the_small_tagger():
    sizes = {"sentences": 2000, "test": 150, "teach": 300, "retrain": 100, "every": 10, "batch": 32, "last": 0}
    config = RelearnConfig(model="tiny", rate=3e-3, repeats=5, **sizes)
    names = {item.name: item for item in Relearn().run(config, Lab()).items}
    assert names["F1 lost by pruning"].value >= 30
    assert names["share of the loss recovered"].value >= 0.8
    assert names["half-life"].value is not None
    assert names["shift of the centre of saliency"].low is not None


def test_study_runs_on_a_tiny_model():
    config = RelearnConfig(model="tiny", sentences=32, test=12, teach=2, retrain=1, every=1, rate=3e-3)
    found = Relearn().run(config, Lab())
    assert found.complete
    names = {item.name: item for item in found.items}
    shift = names["shift of the centre of saliency"]
    assert shift.control is not None
    assert shift.n == 2
    assert {chart.title for chart in found.charts} == {"Recovery", "Where the concept sits", "Mean saliency by layer"}


def test_bad_input(tagger, data, test, neurons):
    with pytest.raises(UsageError, match="mode"):
        relearn(tagger, data, test, "CITY", neurons, CONFIG, mode="firm")
    with pytest.raises(UsageError, match="neuron 500"):
        relearn(tagger, data, test, "CITY", {0: (500,)}, CONFIG)
    with pytest.raises(UsageError, match="layer 9"):
        relearn(tagger, data, test, "CITY", {9: (0,)}, CONFIG)
    with pytest.raises(UsageError, match="no neuron"):
        relearn(tagger, data, test, "CITY", {}, CONFIG)
    without = tagged(tagger.model, sentences(20, "test", without="CITY"))
    with pytest.raises(UsageError, match="no token"):
        measure(tagger, without, "CITY")
    with pytest.raises(UsageError, match="no token"):
        f1(np.zeros((3, 6, 3)), [1])
