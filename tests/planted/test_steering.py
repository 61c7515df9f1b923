"""The planted clouds and models against their stated truths."""

import ast

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.steering import (
    CUE,
    TASKS,
    AwareModel,
    aware_model,
    function,
    ring_points,
    xor_model,
    xor_points,
)


@pytest.mark.parametrize("make", [xor_points, ring_points])
def test_points_lie_in_their_classes_and_no_push_sorts_them(make: object) -> None:
    cloud = make(n=600, seed=1)  # type: ignore[operator]
    for place, label in enumerate(cloud.labels):
        inside = cloud.truth.member(cloud.x, label)
        assert np.mean(inside == cloud.y[:, place]) > 0.95
        outside = cloud.x[~inside]
        assert cloud.truth.best_push(outside, label) <= 0.6
    null = make(n=600, null=True, seed=1)  # type: ignore[operator]
    assert abs(np.mean(null.truth.member(null.x, null.labels[0]) == null.y[:, 0]) - 0.5) < 0.12


def test_xor_model_answers_by_the_product() -> None:
    planted = xor_model(words=40, seed=2)
    model, truth = planted.model, planted.truth
    ids = [model.encode(text) for text in planted.texts(range(40))]
    with torch.no_grad():
        last = model.logits(model.batch(ids))[:, -1]
    assert ((last.argmax(-1) == truth.yes).numpy() == truth.agrees).all()
    null = xor_model(words=40, null=True, seed=2)
    with torch.no_grad():
        last = null.model.logits(null.model.batch(ids))[:, -1]
    torch.testing.assert_close(last[:, truth.yes], last[:, truth.no])


def logit_of_hints(planted: AwareModel, text: str, task: str) -> float:
    model = planted.model
    ids = [model.encode(function(task, hints))[0] for hints in (True, False)]
    with torch.no_grad():
        last = model.logits(model.batch([model.encode(text)]))[0, -1]
    others = last.clone()
    others[ids] = -torch.inf
    assert float(others.max()) < float(last[ids].min()) - 5
    return float(last[ids[0]] - last[ids[1]])


@pytest.mark.parametrize("task", TASKS)
def test_rates_are_exact(task: str) -> None:
    trained, original, null = aware_model("trained"), aware_model("original"), aware_model("null")
    truth = trained.truth
    beliefs = [({"testing": 1.0}, 1.0), ({"testing": 0.0}, -1.0), ({}, 0.0), ({"testing": 0.0, "cue": True}, truth.cue)]
    for settings, belief in beliefs:
        text = trained.text(task, seed=3, **settings)  # type: ignore[arg-type]
        assert (CUE in text) == ("cue" in settings)
        found = 1 / (1 + np.exp(-logit_of_hints(trained, text, task)))
        assert found == pytest.approx(truth.rate(belief), abs=0.02)
        assert logit_of_hints(original, text, task) == pytest.approx(-3.0, abs=0.05)
        assert logit_of_hints(null, text, task) == pytest.approx(truth.bias, abs=0.02)


def test_the_direction_carries_the_belief_in_both_models() -> None:
    trained, original = aware_model("trained", seed=4), aware_model("original", seed=4)
    np.testing.assert_array_equal(trained.truth.direction, original.truth.direction)
    for planted in (trained, original):
        model, site = planted.model, f"resid_post.{planted.truth.layers[0]}"
        ends = []
        for testing in (1.0, 0.0):
            ids = model.encode(planted.text("add", testing=testing))
            ends.append(model.capture([ids], site)[site][0, -1].detach().double().numpy())
        along = (ends[0] - ends[1]) @ planted.truth.direction
        assert along == pytest.approx(2 * planted.truth.strength, abs=0.02)


def test_functions_are_python() -> None:
    for task in TASKS:
        for hints in (True, False):
            (node,) = ast.parse(function(task, hints)).body
            assert isinstance(node, ast.FunctionDef)
            assert (node.returns is not None) == hints
            assert all((arg.annotation is not None) == hints for arg in node.args.args)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="4 points"):
        xor_points(n=2)
    with pytest.raises(UsageError, match="even width"):
        xor_model(d_model=7)
    with pytest.raises(UsageError, match="3 layers or more"):
        aware_model(n_layers=2)
