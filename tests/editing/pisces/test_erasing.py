"""The search's rules, marks read off a judge, and world A taken out of a small model that knows two."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.editing.concepts import months, planted
from cutaway.editing.pisces import Judged, find_features, harmonic, read_ratings, scores, search
from cutaway.editing.pisces.planted import erase_world, two_worlds
from cutaway.editing.pisces.report import charts, findings, summarise
from cutaway.editing.pisces.study import Pisces, verdicts
from cutaway.errors import UsageError
from cutaway.planted.concepts import world
from cutaway.study import Lab

GRID = (0.9, 0.5, 0.2), (1.0, 4.0, 16.0)


@pytest.fixture(scope="module")
def worlds():
    return two_worlds(8, 2, d_model=128, steps=110)


@pytest.fixture(scope="module")
def erased(worlds):
    return erase_world(worlds, limits=(0.13, 0.7, 0.9), trained=False)


@given(st.floats(0, 2), st.floats(0, 2), st.integers(0, 99))
def test_the_search_never_judges_what_a_limit_rules_out(weak, strong, seed):
    judged = []

    def judge(tau: float, mu: float) -> Judged:
        power = np.log2(mu) - 4 * tau
        judged.append((tau, mu, power < weak, power > weak + strong))
        return Judged(float(power < weak), 1.0, float(power <= weak + strong), 1.0)

    found = search(judge, *GRID, seed=seed)
    assert len(found.tried) == 9
    assert found.judged == len(judged)
    for i, (tau, mu, too_weak, too_strong) in enumerate(judged):
        for later_tau, later_mu, *_ in judged[i + 1 :]:
            assert not (too_weak and later_tau >= tau and later_mu <= mu)
            assert not (too_strong and later_tau <= tau and later_mu >= mu)
    assert (found.best is None) == all(weak or strong for *_, weak, strong in judged)


def test_no_acceptable_setting_is_said_so():
    found = search(lambda tau, mu: Judged(1.0, 1.0, 1.0, 1.0), *GRID)
    assert found.best is None
    assert "no acceptable setting" in repr(found)
    with pytest.raises(UsageError, match="empty grid"):
        search(lambda tau, mu: Judged(0.0, 1.0, 1.0, 1.0), (), (1.0,))


def test_a_mean_with_a_zero_is_zero_and_a_judge_that_rambles_is_an_error_row():
    assert harmonic([1.0, 0.0, 1.0]) == 0
    assert harmonic([0.5, 1.0]) == pytest.approx(2 / 3)
    assert Judged(1.0, 1.0, 1.0, 1.0).score == 0
    with pytest.raises(UsageError, match="none below 0"):
        harmonic([])
    found = read_ratings(["2", " 0 ", "good", "3", ""])
    assert found.marks == (2.0, 0.0, None, None, None)
    assert found.mean == 1.0
    assert len(found.errors) == 3


def test_facts_to_tune_on_are_not_those_reported():
    for concept in (months(), planted(world("A", 4, 2), world("B", 4, 2))):
        for kind in ("concept", "similar", "general"):
            tune, test = (getattr(part, kind) for part in (concept.tune, concept.test))
            assert tune
            assert test
            assert not {fact.prompt for fact in tune} & {fact.prompt for fact in test}
            assert all(fact.answer in fact.choices for fact in (*tune, *test))
        assert all(fact.answer in concept.words for fact in concept.test.concept)
        assert concept.asked_again
        assert set(concept.lessons) <= set(concept.tune.concept)
        assert not {fact.answer for fact in concept.lessons} & {fact.answer for fact in concept.asked_again}


def test_of_equal_settings_the_one_that_leaves_least_probability_wins():
    logps = {1.0: -3.0, 2.0: -6.0, 4.0: -5.0}
    found = search(lambda tau, mu: Judged(0.0, 1.0, 1.0, 1.0, logps[mu]), (0.5,), tuple(logps))
    assert found.best is not None
    assert found.best.mu == 2.0


def test_the_planted_world_goes_and_the_other_stays(worlds, erased):
    assert erased.edit is not None
    assert erased.arms["before"].concept.mean() > 0.9
    assert erased.arms["edited"].concept.mean() <= 0.125
    others = np.concatenate([erased.arms["edited"].similar, erased.arms["edited"].general])
    assert others.mean() > 0.7
    assert erased.arms["random features"].concept.mean() > erased.arms["edited"].concept.mean() + 0.25
    assert all(each.words for each in erased.features)
    met = verdicts(erased)
    assert met["found"] == met["random features"] == 1
    again = scores(worlds.model, worlds.concept.test, worlds.concept.neutral)
    assert np.array_equal(again.logp, erased.arms["before"].logp)  # the model itself was not touched


def test_the_report_has_every_question_with_n_and_interval(erased):
    names = {item.name: item for item in findings(erased)}
    for start in ("efficacy", "specificity: similar", "specificity: other", "coherence"):
        item = next(item for name, item in names.items() if name.startswith(start))
        assert item.n is not None
        assert item.control is not None
        assert item.low is not None
    assert len(erased.to_dict()["rows"]) == len(erased.edit)
    assert "world A" in summarise(erased)
    assert charts(erased)[0].title == "What is left"


def test_features_that_do_nothing_are_left_out(worlds):
    every = find_features(worlds.model, worlds.dictionaries, worlds.concept, top=10, check=False)
    kept = find_features(worlds.model, worlds.dictionaries, worlds.concept, top=10)
    assert set(kept) < set(every)
    with pytest.raises(UsageError, match="ends='left'"):
        find_features(worlds.model, worlds.dictionaries, worlds.concept, ends="left")


@pytest.mark.slow  # three pairs of worlds, each trained, erased and relearnt: minutes
def test_the_calibration_passes():
    assert all(rate.passed for rate in Pisces().calibrate(Lab(), 3).rates)


@pytest.mark.slow  # trains a model and runs the whole study on it
def test_the_study_runs_on_the_planted_model():
    config = Pisces.Config(model="planted", taus=(0.5, 0.4), mus=(0.75, 1.25), rate=3e-4, last=0)
    found = Pisces().run(config, Lab())
    assert found.complete
    assert {"erased.json", "edit.safetensors", "charts.json"} <= set(found.artifacts)


def test_bad_input():
    with pytest.raises(UsageError, match="four people"):
        planted(world("A", 2), world("B", 2))
    with pytest.raises(ValueError, match="the dictionaries say which"):
        Pisces.Config(dictionaries="folder", layers=(1,))
