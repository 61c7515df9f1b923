"""All arms where one direction makes a model brittle; the study from configuration to charts; the wordings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.finetuning.arms import Arms
from cutaway.finetuning.latent_adversarial_paraphrasing.calibration import RHO, all_rates, small_wordings
from cutaway.finetuning.latent_adversarial_paraphrasing.data import TRAINING, WORDINGS, phrasings, wordings
from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import FOUND, PLAIN, RANDOM, Comparison, compare
from cutaway.finetuning.latent_adversarial_paraphrasing.method import Paraphrase
from cutaway.model import Model
from cutaway.planted.phrasing import PlantedPhrasing
from cutaway.planted.small import small_llama
from cutaway.study import Lab, get_study, parse_config
from cutaway.training import TrainConfig

CONFIG = TrainConfig(rate=1e-3, batch=32, steps=30, schedule="constant", bucket=1, precision="float32")
FEW = {"model": "tiny", "train": "6", "test": "6", "steps": "2", "batch": "2", "rank": "1", "inner": "1"}


@pytest.fixture(scope="module")
def found(phrased: PlantedPhrasing) -> Comparison:
    words = small_wordings(phrased, train=200, test=40)
    return compare(lambda repeat: phrased.model.copy(), words, CONFIG, Paraphrase(0, RHO, steps=3), repeats=1)


@pytest.fixture(scope="module")
def tiny() -> Model:
    words = sorted({word for texts in WORDINGS.values() for text in texts for word in text.split() if "{" not in word})
    return small_llama([f" {word}" for word in words], "tiny", d_model=16, n_layers=2, n_heads=2)


@pytest.fixture
def lab(tiny: Model, tmp_path: Path) -> Lab:
    made = Lab(home=tmp_path)
    made._models["tiny", "float32"] = tiny
    return made


def test_the_worst_wording_improves_more_than_by_random_shifts(found: Comparison) -> None:
    for over in (PLAIN, RANDOM):
        gain = found.gain(over=over)
        assert gain.value >= 0.05
        assert gain.low > 0
    assert found.climb_gain().low > 0
    assert all(climb.size <= 1.1 * RHO for climb in found.climbs)


def test_the_gain_is_the_difference_over_queries(found: Comparison) -> None:
    (scores,) = found.scores
    by_hand = scores[FOUND].min(1) - scores[PLAIN].min(1)
    assert found.gain().value == pytest.approx(by_hand.mean())
    assert found.gain().n == len(by_hand) == 40
    assert found.arms.mean(PLAIN, "average") == pytest.approx(scores[PLAIN].mean())


def test_six_queries_that_did_not_change_say_little_about_others() -> None:
    same = {name: np.zeros((6, 3)) for name in (PLAIN, FOUND)}
    gain = Comparison(Arms(()), (), (), (same,)).gain()
    assert gain.value == 0
    assert gain.low < -0.3
    assert gain.high > 0.3


def test_run_gives_every_arm_with_its_control_and_charts(lab: Lab) -> None:
    study = get_study("latent-adversarial-paraphrasing")
    made = study.run(parse_config(study, {**FEW, "repeats": "2"}), lab)
    named = {item.name: item for item in made.items}
    assert named["rho"].value is not None
    assert named["rho"].value > 0
    assert named["worst, found shift"].control == named["worst, plain"]
    control = named["worst: found shift - plain"].control
    assert control is not None
    assert control.name == "worst: random shift - plain"
    assert named["worst: found shift - plain"].n == named["worst, plain"].n
    titles = [chart.title for chart in made.charts]
    assert titles == ["Exact answers by wording", "Loss without a shift", "What the inner loop finds"]
    assert made.complete
    assert set(made.artifacts) == {"comparison.json", "charts.json"}


def test_stopped_before_a_repeat_is_whole(lab: Lab) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    lab.progress = stop
    study = get_study("latent-adversarial-paraphrasing")
    made = study.run(parse_config(study, FEW), lab)
    assert not made.complete
    assert next(item for item in made.items if item.name.startswith("worst")).undefined
    assert made.charts == ()


def test_bad_settings(lab: Lab, phrased: PlantedPhrasing) -> None:
    study = get_study("latent-adversarial-paraphrasing")
    with pytest.raises(UsageError, match=r"layer=2: 'tiny' has 0..1"):
        study.run(parse_config(study, {**FEW, "layer": "2"}), lab)
    with pytest.raises(UsageError, match="inner=0"):
        parse_config(study, {"inner": "0"})
    words = small_wordings(phrased, train=4, test=2)
    ragged = replace(words, test=(words.test[0], words.test[1][:3]))
    with pytest.raises(UsageError, match="as many wordings"):
        compare(lambda repeat: phrased.model.copy(), ragged, CONFIG, Paraphrase(0, 0.1), repeats=1)
    with pytest.raises(UsageError, match="repeats=0"):
        compare(lambda repeat: phrased.model.copy(), words, CONFIG, Paraphrase(0, 0.1), repeats=0)


def test_wordings_mean_the_same_and_test_and_training_share_no_query(tiny: Model) -> None:
    assert {len(texts) for texts in WORDINGS.values()} == {11}
    assert all(len(set(texts)) == 11 for texts in WORDINGS.values())
    made = wordings(tiny, train=60, test=30)
    assert len(made.train) == len(made.augmented) == 60
    assert all(a.answer == b.answer for a, b in zip(made.train, made.augmented, strict=True))
    assert all(len(query) == 1 + 11 - TRAINING for query in made.test)
    assert all(len({item.answer for item in query}) == 1 for query in made.test)
    known = {item.ids for item in made.train}
    assert not known & {item.ids for query in made.test for item in query}
    held = {tiny.decode(query[1].ids) for query in made.test}
    assert len(held) == len(made.test)
    told = [query for query in made.test if "plus" in tiny.decode(query[0].ids)]
    numbers = [[int(x) for x in tiny.decode(query[0].ids).rstrip("?").split() if x.isdigit()] for query in told]
    answers = [int(tiny.decode(query[0].answer[:-1])) for query in told]
    assert [sum(pair) for pair in numbers] == answers
    assert {len(query) for query in phrasings(tiny, 4)} == {TRAINING}
    with pytest.raises(UsageError, match="train=0"):
        wordings(tiny, train=0, test=1)


@pytest.mark.slow  # four models, four trainings each
def test_the_calibration_passes() -> None:
    assert [rate for rate in all_rates(4) if not rate.passed] == []
