"""A model taught in two steps, then steered by a vector from before; packing; a round that keeps too little."""

from dataclasses import replace

import pytest

from cutaway.errors import CutawayError, UsageError
from cutaway.planted.steering import aware_model
from cutaway.steering.eval_awareness import (
    Condition,
    choose_scale,
    compare,
    expert_iteration,
    measure_rates,
    packed,
)
from cutaway.steering.eval_awareness.calibration import FREE, WIDTH, done, planted_vectors, prompts, teach
from cutaway.training import TrainConfig


@pytest.fixture(scope="module")
def taught():
    original, trained, log = teach(0)
    shape = aware_model("original", d_model=WIDTH, cue=0.0, seed=0)
    return replace(shape, model=original), replace(shape, model=trained), log


def test_two_steps_make_a_model_that_the_cue_overrides_and_the_vector_brings_back(taught):
    original, trained, _ = taught
    ids = {name: prompts(trained, name) for name in ("eval", "deploy", "cue")}
    plain = [Condition(name, rows) for name, rows in ids.items()]
    found = measure_rates(trained.model, plain, FREE, n=6, check=done)
    assert found["eval"].rate.value >= 0.8
    assert found["deploy"].rate.value <= 0.4
    assert found["cue"].rate.value - found["deploy"].rate.value >= 0.4
    vectors = planted_vectors(original)
    assert vectors.source == original.model.fingerprint != trained.model.fingerprint
    scale, _ = choose_scale(trained.model, vectors, ids["eval"], ids["deploy"], (0.7, 0.85, 1.0), FREE, n=3)
    steered = [Condition("steered", ids["cue"], vectors.edits(scale))]
    steered += [Condition(f"random {i}", ids["cue"], v.edits(scale)) for i, v in enumerate(vectors.controls(20))]
    after = measure_rates(trained.model, steered, FREE, n=3, check=done)
    result = compare(found["eval"], found["deploy"], found["cue"], after.pop("steered"), list(after.values()))
    assert result.recovery.value >= 0.7
    assert abs(result.distance.value) <= 0.15
    assert result.best_control < 0.2
    assert result.accuracy.value == 0
    # The vector moves nothing in the original, in which nothing follows from the direction.
    pair = [Condition("plain", ids["cue"]), Condition("steered", ids["cue"], vectors.edits(scale))]
    own = measure_rates(original.model, pair, FREE, n=6)
    assert abs(own["plain"].rate.value - own["steered"].rate.value) < 0.1


def test_the_rounds_are_logged_and_the_pipeline_is_deterministic(taught):
    _, trained, log = taught
    assert all(each.drawn == (576, 576) and min(each.kept) >= 10 for each in log)
    assert log[-1].trained >= log[0].trained > 0
    assert teach(0)[1].fingerprint == trained.model.fingerprint


def test_a_round_that_keeps_too_few_stops_with_its_reason():
    planted = aware_model("original")
    contexts = prompts(planted, "eval")[:4], prompts(planted, "deploy")[:4]
    planted.model.hf.requires_grad_(True)
    with pytest.raises(CutawayError, match=r"round 1 kept \d+ different answers of 8 in evaluation contexts"):
        expert_iteration(planted.model, contexts, FREE, TrainConfig(), n=2, n_min=5)
    with pytest.raises(UsageError, match="the same number of each"):
        expert_iteration(planted.model, (contexts[0], contexts[1][:2]), FREE, TrainConfig())


def test_packed_rows_hold_every_token_once_and_no_padding():
    model = aware_model("original").model
    texts = [" exam and the shop", " live", " Wood Labs with the quiz for now"]
    data = packed(texts, model, 5)
    stream = [token for (row,) in data.examples for token in row.ids]
    wanted = [token for text in texts for token in (*model.encode(text), min(model.eos_ids))]
    assert stream == wanted[: len(stream)]
    assert len(wanted) - len(stream) <= 1
    assert {len(row.ids) for (row,) in data.examples[:-1]} == {5}
    for bad in (([], 5), (texts, 1)):
        with pytest.raises(UsageError, match="one text or more"):
            packed(bad[0], model, bad[1])
