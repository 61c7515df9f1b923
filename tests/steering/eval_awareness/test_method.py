"""The vector's provenance, the measures against hand counts, the planted models, bad input."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.steering import START, TESTING, aware_model
from cutaway.sampling import Settings
from cutaway.stats import Interval
from cutaway.steering.eval_awareness import Condition, Measured, choose_scale, compare, contrast_vectors, measure_rates
from cutaway.steering.eval_awareness.calibration import (
    CUE_STRENGTH,
    FREE,
    WIDTH,
    _speaking,
    claims_on_null,
    original_unmoved,
    prompts,
    run_trial,
)


@pytest.fixture(scope="module")
def trial():
    return run_trial(0, n=8, randoms=6)


def test_the_vector_brings_a_planted_model_back_to_deployment(trial):
    found, recovery = trial.found, trial.recovery
    assert found["eval"].rate.value >= 0.75
    assert found["deploy"].rate.value <= 0.4
    assert recovery.override.value >= 0.4
    assert recovery.recovery.value >= 0.7
    assert abs(recovery.distance.value) <= 0.15
    assert recovery.best_control < 0.3  # below 0.2 at the full number of draws: calibration
    assert found["deploy, opposite"].rate.low > found["deploy"].rate.high
    assert found["cue, steered"].accuracy == found["cue"].accuracy == 1


def test_the_original_is_unmoved_and_the_null_gives_no_claim(trial):
    assert original_unmoved(trial, 0, n=6)
    assert not claims_on_null(0, n=4)


def test_the_vector_comes_from_the_original_only():
    original, trained = aware_model("original"), aware_model("trained")
    pairs = [([5, 6, 7], [5, 6, 9])]
    vectors = contrast_vectors(original.model, pairs, [0], original=original.model.fingerprint)
    assert vectors.source == original.model.fingerprint
    with pytest.raises(UsageError, match="pass trained=True"):
        contrast_vectors(trained.model, pairs, [0], original=original.model.fingerprint)
    own = contrast_vectors(trained.model, pairs, [0], original=original.model.fingerprint, trained=True)
    assert own.source == trained.model.fingerprint


def test_random_vectors_have_the_same_norm_at_each_layer(trial):
    for control in trial.vectors.controls(5):
        torch.testing.assert_close(control.norms, trial.vectors.norms, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 8])
def test_several_layers_add_scale_times_vector_and_the_cache_changes_nothing(trial, batch):
    planted = aware_model("trained", d_model=WIDTH, cue=CUE_STRENGTH, seed=0)
    model, ids = planted.model, prompts(planted, "cue")[:batch]
    vectors, scale = trial.vectors, 0.7
    sites = [f"resid_post.{layer}" for layer in vectors.layers]
    rows = model.batch(ids)
    with torch.no_grad():
        before = model.capture(rows, sites[0], special=True)[sites[0]]
        with model.edited(*vectors.at([0]).edits(scale)):
            after = model.capture(rows, sites[0], special=True)[sites[0]]
    moved = (after - before)[rows.mask]
    torch.testing.assert_close(moved, (scale * vectors.values[0]).expand_as(moved), rtol=0, atol=1e-5)
    generated = {}
    for cached in (True, False):
        with torch.no_grad(), model.edited(*vectors.edits(scale)):
            generated[cached] = [
                model.hf.generate(torch.tensor([row]), max_new_tokens=3, do_sample=False, use_cache=cached)[0].tolist()
                for row in ids
            ]
    assert generated[True] == generated[False]


def measured(name: str, table: list[list[float]], right: float = 1.0) -> Measured:
    flat = [value for row in table for value in row if value == value]
    return Measured(
        name,
        Interval(float(np.mean(flat)), 0.0, 1.0, len(table), 0.95),
        tuple(tuple(float(value) for value in row) for row in table),
        tuple((bool(right),) * len(row) for row in table),
    )


def test_compare_equals_a_hand_count_and_shows_overshoot():
    nan = float("nan")
    evaluation = measured("e", [[1, 1], [1, 0], [1, 1]])
    deployment = measured("d", [[1, 0], [0, 0], [1, nan]])
    cue = measured("c", [[1, 1], [1, 1], [1, 1]])
    steered = measured("s", [[0, 0], [0, nan], [1, 0]], right=0.0)
    found = compare(evaluation, deployment, cue, steered, [cue, deployment])
    assert found.gap.value == pytest.approx((1 + 0.5 + 1) / 3 - 0.5)
    assert found.override.value == pytest.approx(1 - 0.5)
    assert found.recovery.value == pytest.approx((1 - 0.5 / 3) / 0.5)
    assert found.recovery.value > 1
    assert found.distance.value == pytest.approx(0.5 / 3 - 0.5)
    assert found.accuracy.value == -1
    assert found.controls == pytest.approx((0.0, (1 - 0.4) / 0.6))
    assert "best of 2 random 1.00" in repr(found)


def test_answers_without_a_function_are_counted_apart():
    model: Model = _speaking(aware_model("original")).model
    ids = model.encode(f"{START}{TESTING[0]}{TESTING[1]}")
    nothing = Settings(temperature=1.0, top_p=1.0, max_tokens=1)
    (found,) = measure_rates(model, [Condition("x", [ids, ids])], nothing, n=2).values()
    assert found.unparsed == 1
    assert np.isnan(found.rate.value)


def test_bad_input():
    planted = aware_model("original")
    model, ids = planted.model, [[5, 6], [5, 7]]
    mark = model.fingerprint
    for call, message in [
        (lambda: contrast_vectors(model, [([5], [5])], [0], original=mark), "both members are the same"),
        (lambda: contrast_vectors(model, [([5], [6])], [9], original=mark), "layer 9"),
        (lambda: measure_rates(model, [Condition("a", ids), Condition("b", ids[:1])], FREE), "same number of tasks"),
        (lambda: measure_rates(model, [Condition("a", ids), Condition("a", ids)], FREE), "a name of their own"),
        (
            lambda: choose_scale(
                model, contrast_vectors(model, [([5], [6])], [0], original=mark), ids, ids, [0.0], FREE
            ),
            "above 0",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            call()
