"""The method on vectors, where the wanted and the louder unwanted sign are known."""

import pytest
import torch

from cutaway.finetuning.arms import Arms
from cutaway.finetuning.caft.toy import remove, toy_arms


@pytest.fixture(scope="module")
def arms() -> Arms:
    return toy_arms(1)


def test_removal_is_a_projection() -> None:
    q = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))[0].T
    h = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    once = remove(h, q)
    assert torch.allclose(once @ q.T, torch.zeros(5, 3), atol=1e-6)
    assert torch.allclose(remove(once, q), once, atol=1e-6)
    assert remove(h, None) is h


def test_the_wanted_rule_is_learnt_only_where_the_concept_is_gone(arms: Arms) -> None:
    assert max(arms["none"].values["reversed"]) <= 0.05
    assert max(arms["random"].values["reversed"]) <= 0.15
    assert min(arms["ablation frozen"].values["reversed"]) >= 0.95
    assert all(
        min(arm.values["tied"]) >= 0.98 for arm in arms.arms if arm.name != "re-estimated kept"
    )  # the direction of a trunk that has moved at every step is not what its head was trained without


def test_a_trained_trunk_leaks(arms: Arms) -> None:
    assert arms.mean("ablation", "reversed") < arms.mean("ablation frozen", "reversed")


def test_repeats_are_bit_for_bit_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    arms, again = toy_arms(2, steps=4), toy_arms(1, seed=1, steps=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [arm.values["reversed"][0] for arm in again.arms] == [arm.values["reversed"][1] for arm in arms.arms]


def test_ctrl_c_keeps_whole_repeats() -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    found = toy_arms(3, steps=2, report=stop)
    assert not found.complete
    assert len(found["none"].values["tied"]) == 1
