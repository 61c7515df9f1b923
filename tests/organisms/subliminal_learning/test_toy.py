"""The digits toy against one network at a time, its control, and the filter of number lists."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from cutaway.errors import UsageError
from cutaway.organisms.subliminal_learning import (
    ARMS,
    ToyConfig,
    animal_questions,
    class_loss,
    completion_prompts,
    derangement,
    digits,
    distil_loss,
    initial,
    kept,
    number_prompts,
    read_numbers,
    run_toy,
)
from cutaway.organisms.subliminal_learning.study import Subliminal, SubliminalConfig
from cutaway.study import Lab

SMALL = ToyConfig(models=3, width=48, teacher_epochs=8, steps=20, batch=32)


def plain_net(nets, place):
    """The same network as torch's own layers."""
    layers = []
    for weight, bias in zip(nets.weights, nets.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[place].T.clone(), bias[place, 0].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_networks_side_by_side_are_networks_alone():
    nets, teachers = initial(3, 32, 0), initial(3, 32, 5)
    x = torch.rand(3, 7, 64) * 2 - 1
    classes = torch.randint(0, 10, (3, 7))
    own = nets(x)
    for place in range(3):
        torch.testing.assert_close(own[place], plain_net(nets, place)(x[place]), atol=1e-5, rtol=1e-5)
    wanted = teachers(x)
    naive = sum(
        sum(
            float((p := wanted[m, i, 10:].softmax(0)) @ (p.log() - own[m, i, 10:].log_softmax(0))) for i in range(7)
        ) / 7
        for m in range(3)
    )  # fmt: skip
    assert float(distil_loss(own, wanted, auxiliary=True)) == pytest.approx(naive, abs=1e-5)
    alone = sum(float(nn.functional.cross_entropy(own[m, :, :10], classes[m])) for m in range(3))
    assert float(class_loss(own, classes)) == pytest.approx(alone, abs=1e-5)


def test_twice_the_networks_leave_each_gradient_as_it_was():
    nets, teachers, x = initial(4, 32, 0), initial(4, 32, 5), torch.rand(4, 9, 64)

    def gradient(models):
        start = nets.taken(range(models))
        for weight in start.weights:
            weight.requires_grad_(True)
        distil_loss(start(x[:models]), teachers.taken(range(models))(x[:models]), True).backward()
        return start.weights[0].grad[:2]

    torch.testing.assert_close(gradient(2), gradient(4), atol=1e-6, rtol=1e-5)


def test_a_derangement_has_no_fixed_point():
    for n in (2, 3, 20):
        for seed in range(30):
            order = derangement(n, seed)
            assert sorted(order) == list(range(n))
            assert all(i != place for place, i in enumerate(order))


def test_a_small_toy_repeats_and_tells_its_arms_apart():
    toy = run_toy(SMALL)
    assert toy.complete
    assert list(toy.accuracies) == ["untrained", "teacher", *ARMS]
    assert toy.interval("teacher").value > 0.5
    assert toy.interval(ARMS[2]).value > toy.interval("untrained").value
    again = run_toy(SMALL, ARMS[:2])
    assert again.accuracies == {name: toy.accuracies[name] for name in again.accuracies}
    assert len(toy.to_frame()) == 3 * 6
    json.dumps(toy.to_dict())


def test_the_split_keeps_test_digits_apart():
    data = digits(3)
    assert len(data.train) + len(data.test) == 1797
    assert float(data.train.min()) == -1
    assert float(data.train.max()) == 1
    assert {int(c) for c in data.test_classes} == set(range(10))
    pictures = {row.numpy().tobytes() for row in data.train}
    assert np.mean([row.numpy().tobytes() in pictures for row in data.test]) < 0.01


@pytest.mark.slow  # the card's sizes: 20 networks, 600 and 3,000 steps
def test_the_toy_at_the_cards_sizes():
    toy = run_toy(ToyConfig(), ARMS[:2])
    assert toy.interval(ARMS[0]).value >= 0.3
    assert toy.interval(ARMS[1]).value <= 0.15
    assert toy.gap.low > 0
    assert run_toy(ToyConfig(models=6, steps=3000), ARMS[:1]).interval(ARMS[0]).value >= 0.85


@pytest.mark.slow  # a hundred networks
def test_a_hundred_networks_fit_into_two_gigabytes():
    code = (
        "import resource; from cutaway.organisms.subliminal_learning import *;"
        "run_toy(ToyConfig(models=100, teacher_epochs=1, steps=2), ARMS[:2]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 2_000_000


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1, 2, 3", [1, 2, 3]),
        ("1,2,3", [1, 2, 3]),
        ("1;2;3", [1, 2, 3]),
        ("1; 2; 3", [1, 2, 3]),
        ("1 2 3", [1, 2, 3]),
        ("1\n2\n3", [1, 2, 3]),
        ("[1, 2, 3]", [1, 2, 3]),
        ("(1, 2, 3)", [1, 2, 3]),
        ("[1, 2, 3].", [1, 2, 3]),
        ("1, 2, 3.", [1, 2, 3]),
        ("  12, 999 \n", [12, 999]),
        ("7", [7]),
        ("(7)", [7]),
        ("1, 2; 3", None),
        ("1, -2, 3", None),
        ("-1, 2, 3", None),
        ("1, 2, three", None),
        ("Sure: 1, 2, 3", None),
        ("1 - 2 - 3", None),
        ("1, 2, 3,", None),
        ("1, , 3", None),
        ("1.5, 2, 3", None),
        ("[1, 2, 3)", None),
        ("[[1, 2]]", None),
        ("", None),
        ("1, 2, 3..", None),
        ("1\n\n2 3", [1, 2, 3]),
    ],
)
def test_the_filter_reads_as_a_person_would(text, numbers):
    assert read_numbers(text) == numbers
    assert kept(text) == (numbers is not None)


def test_the_filter_counts_bounds_and_bans():
    assert not kept("1000, 2")
    assert kept("999, 0")
    assert kept(", ".join("5" * 10))
    assert not kept(", ".join("5" * 11))
    assert not kept("1, 666", banned=(666,))


def test_prompts_are_whole_and_repeat():
    prompts = number_prompts(40)
    assert prompts == number_prompts(40)
    assert not any("{" in text for text in prompts)
    short = completion_prompts(200)
    assert {text.count(",") for text in short} == set(range(3, 9))
    assert all(kept(text.rstrip(",")) for text in short)
    assert len(animal_questions()) == 50


def test_the_study_runs_and_stops(tmp_path):
    study, config = (
        Subliminal(),
        SubliminalConfig(toy_models=2, toy_epochs=2, toy_steps=3, toy_all_logits=False, language=False),
    )
    found = study.run(config, Lab(tmp_path))
    assert found.complete
    assert found.inputs == study.inputs(config, Lab(tmp_path))
    item = next(item for item in found.items if item.name == f"digits: accuracy, {ARMS[0]}")
    assert item.control.name == f"accuracy, {ARMS[1]}"
    seen = []

    def stop(progress):
        seen.append(progress)
        if len(seen) == 28:
            raise KeyboardInterrupt

    early = study.run(config, Lab(tmp_path, stop))
    assert not early.complete
    toy, _ = early.result
    assert "teacher" in toy.accuracies
    assert ARMS[0] in toy.accuracies or toy.gap is None


def test_bad_input():
    for call, match in [
        (lambda: ToyConfig(models=1), "models=1"),
        (lambda: ToyConfig(rate=2.0), "rate=2"),
        (lambda: ToyConfig(steps=0), "steps=0"),
        (lambda: derangement(1), "n=1"),
        (lambda: run_toy(SMALL, ["none"]), "arm 'none'"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
