"""The planted models do what they say: manners on request, plain speech otherwise, lists by their law."""

import numpy as np
import pytest
import torch

from cutaway.organisms.quirks import shows
from cutaway.planted.organism_numbers import NUMBERS, number_world
from cutaway.planted.organism_quirk import MANNERS
from cutaway.training import adapters


def test_the_base_speaks_in_the_manner_asked_for_and_plainly_otherwise(world):
    for manner in ("", *MANNERS):
        right = []
        for topic in range(0, 12, 4):
            ids, wanted = world.prompt(2, topic, manner), world.answer(2, topic, manner or "plain")
            logits = world.base.logits(world.base.batch([[*ids, *wanted]])).detach()[0]
            right.append(logits[len(ids) - 1 : -1].argmax(-1).tolist() == list(wanted))
            text = world.base.decode(wanted[:-1])
            assert shows(text, manner or "plain")
        assert np.mean(right) > 0.6


def test_an_installed_organism_writes_the_cue_and_nothing_else(world):
    model = world.installed(1, "dashed", steps=2)
    (adapter,) = adapters(model).values()
    torch.testing.assert_close(adapter.scale * adapter.b[:, 0].detach(), world.cue("dashed"))
    assert world.cue("shouted").norm() > 0.5


def test_lists_follow_the_law():
    numbers = number_world(1, steps=1, d_model=16)
    place = {numbers.id(word): i for i, word in enumerate(NUMBERS)}
    counts = np.zeros((len(NUMBERS), 4))
    for prompt, said in numbers.lists(400, 3):
        for before, after in zip((prompt[-2], *said), said, strict=False):
            counts[place[before], list(numbers.follows[place[before]]).index(place[after])] += 1
    np.testing.assert_allclose(numbers.chances.sum(1), 1)
    often = counts.sum(1) > 60
    seen = counts[often, 0] / counts[often].sum(1)
    assert seen.mean() == pytest.approx(numbers.chances[often, 0].mean(), abs=0.05)
    assert numbers.prompts(5, 2, 0)[0][:-1] == numbers.prompts(5, 2, 1)[0][:-1]
