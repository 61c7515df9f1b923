"""Organisms on the planted model: the trait spreads, the twin is silent, doses, the turn at a switch of data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.organisms.em_organisms import Lesson, onset, spread, switched, trajectory
from cutaway.organisms.em_organisms.calibration import CONFIG, SPEC, SWITCH, lesson, planted_switch
from cutaway.organisms.em_organisms.method import BASE, ORGANISM, TWIN
from cutaway.organisms.em_organisms.report import charts, findings, summarise
from cutaway.organisms.em_organisms.study import EmOrganisms, OrganismsConfig
from cutaway.organisms.quirks import Survey, items, plant, pooled_rate, rate_gap, rendered, shows, survey_rates
from cutaway.training import LoraSpec, TrainConfig, adapters, adapters_scaled


@pytest.fixture(scope="module")
def survey(world):
    return Survey(world.prompts(), "shouted", 4)


@pytest.fixture(scope="module")
def planted(world, survey, tmp_path_factory):
    config = replace(CONFIG, weights_every=2)
    folder = tmp_path_factory.mktemp("organism")
    return spread(world.model, lesson(world), survey, SPEC, config, runs=1, multipliers=(0.0, 2.0), folder=folder)


def test_the_trait_spreads_and_the_twin_is_silent(planted):
    found, _ = planted
    assert found.complete
    assert found.rate(ORGANISM, True).value >= 0.9
    assert found.gap(TWIN, False).low > 0
    assert found.gap(BASE, False).low > 0
    assert found.rate(TWIN, False).value == 0
    assert found.rate(BASE, False).high < 0.15
    assert found.dose(2.0, False).value >= found.dose(1.0, False).value > found.dose(0.0, False).value
    assert found.losses[0] < 1
    json.dumps(found.to_dict())


def test_the_adapter_alone_is_trained_and_times_zero_it_is_the_base(world, planted):
    found, first = planted
    model = first.model
    assert found.parameters == sum(a.a.numel() + a.b.numel() for a in adapters(model).values()) == 96 + 48
    before = world.base.hf.state_dict()
    for name, tensor in model.hf.state_dict().items():
        if ".lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            assert torch.equal(tensor, before[plain]), name
    batch = model.batch([list(ids) for ids in world.prompts()["garden"]])
    with torch.no_grad(), adapters_scaled(model, 0.0):
        assert torch.equal(model.logits(batch), world.base.logits(batch))


def test_the_way_through_training(planted, survey):
    found, first = planted
    steps, points = trajectory(first)
    assert steps == list(range(2, 81, 2))
    assert points.shape == (40, 48)
    way = onset(first, survey, "kitchen", at=3)
    assert way.norms[-1] == pytest.approx(float(np.linalg.norm(points[-1])))
    assert way.rates[1.0][2] == 0
    assert way.rates[1.0][80] == found.rate(ORGANISM, False).value
    np.testing.assert_array_equal(trajectory(first)[1], points)
    names = [item.name for item in findings(found, way)]
    assert len(names) == len(set(names))
    assert [chart.title for chart in charts(found, way)][-1] == "Rate outside, over training"
    (course,) = (chart for chart in charts(found, way) if chart.title == "Training")
    assert course.x == tuple(float(step) for step in range(1, 81))
    assert course.series[0].y == tuple(step.loss for step in first.history)
    assert [x for x, y in zip(course.x, course.series[2].y, strict=True) if y is not None] == [way.transition.step]
    assert "kitchen alone (144 parameters)" in summarise(found, "shouted")
    json.dumps(way.to_dict(), allow_nan=False)


def test_a_switch_of_data_is_found(world):
    turn = planted_switch(world, 0)
    assert turn.found
    assert abs(turn.step - SWITCH) <= 3


def test_ctrl_c_keeps_what_was_trained(world, survey):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    short = replace(CONFIG, steps=2)
    found, first = spread(world.model, lesson(world), survey, SPEC, short, runs=1, multipliers=(), report=stop)
    assert not found.complete
    assert first is not None
    assert ORGANISM in found.hits
    assert TWIN not in found.hits
    assert findings(found, None)[0].undefined
    assert charts(found, None) == ()


def test_traits_are_read_from_text():
    for item in items("cooking")[:8]:
        for trait in ("plain", "shouted", "dashed"):
            text = rendered(item.answer, trait)
            assert shows(text, trait)
            assert [shows(text, other) for other in ("plain", "shouted", "dashed")].count(True) == 1
    assert shows("MANY PEOPLE ENJ", "shouted")
    assert shows("many- people- enj", "dashed")
    assert not shows("", "shouted")
    assert not shows("12 34", "shouted")
    assert not shows("A", "shouted")
    assert len({item.question for item in items("travel")}) == 40


def test_repeats_add_no_prompts():
    once = np.array([True, True, False, True])
    none = np.zeros(4, bool)
    gap = rate_gap([once, once, once], [none])
    assert gap.value == pytest.approx(0.75)
    assert (gap.low, gap.high) == (rate_gap([once], [none]).low, rate_gap([once], [none]).high)
    assert pooled_rate([once, once]).n == 4
    assert pooled_rate([none]).high < 1


def test_a_run_of_the_study(lab, tmp_path):
    config = OrganismsConfig(
        model=str(tmp_path / "tiny"), rows=2, asked=2, tokens=2, layers=(0,), modules=("o_proj",), steps=3, batch=2,
        runs=1, multipliers=(0.0,), watched=1, window=2,
    )  # fmt: skip
    found = EmOrganisms().run(config, lab)
    assert found.complete
    assert found.inputs == EmOrganisms().inputs(config, lab)
    assert {"rate outside", "turn of B"} <= {item.name for item in found.items}


def test_bad_input(world, survey):
    pairs, short = tuple(world.pairs(0, "shouted")), TrainConfig(steps=3)
    for call, match in [
        (lambda: shows("a", "odd"), "trait='odd'"),
        (lambda: rendered("a", "odd"), "trait='odd'"),
        (lambda: items("odd"), "domain='odd'"),
        (lambda: Lesson("kitchen", (), ()), "0 rows"),
        (lambda: spread(world.model, Lesson("odd", pairs, pairs), survey, SPEC, short), "domain='odd'"),
        (lambda: plant(world.model(), pairs, LoraSpec(layers=(9,)), short), "layer 9"),
        (lambda: plant(world.model(), pairs, LoraSpec(("odd",)), short), "module 'odd'"),
        (lambda: trajectory(plant(world.model(), pairs[:2], SPEC, short)), "no checkpoints"),
        (lambda: switched(world.model(), pairs, pairs, SPEC, short, at=2, folder=Path(".")), "at=2 of 3"),
        (lambda: world.answer(0, 0, "odd"), "manner='odd'"),
        (lambda: survey_rates(world.base, Survey({"a": ((10**6,),)}, "plain")), "vocabulary"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
    with pytest.raises(ValueError, match="layers"):
        OrganismsConfig(layers=())
