"""Success, interference, the search for a strength and the arms: by hand, planted, and with nothing to find."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.steering import RING_LABELS, ring_points, xor_points
from cutaway.sampling import Settings
from cutaway.steering.k_steering import (
    Arm,
    Classifier,
    Recipe,
    find_strength,
    fit_classifier,
    interference,
    measure_arms,
    random_pushes,
    steered_states,
    success,
)
from cutaway.steering.k_steering.calibration import all_rates, claims_on_coins, climb, reach, through_a_model
from cutaway.steering.k_steering.measures import MEASURES


def logits_as(rows: Tensor) -> Classifier:
    """A classifier whose logits are its input."""
    return Classifier(("a", "b", "c"), "resid_post.0", (torch.eye(3), torch.zeros(3)), 1.0)


def test_success_by_hand() -> None:
    plain = torch.tensor([[0.0, 0.0, 0.0]] * 4)
    steered = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 0.5, -1.0], [2.0, 3.0, -1.0]])
    held = logits_as(plain)
    assert success(held, plain, steered, ["a"]).tolist() == [True, False, True, False]
    assert success(held, plain, steered, ["a", "b"]).tolist() == [False, True, True, True]
    assert success(held, plain, steered, ["a"], ["c"]).tolist() == [False, False, True, False]
    assert success(held, plain, steered, ["a", "b"], ["c"]).tolist() == [False, False, True, True]
    assert success(held, plain, steered, ["a", "b", "c"]).all()


def planted(n: int = 60) -> tuple[Tensor, Classifier]:
    """Three labels along three axes: additive steering raises exactly what it is pointed at."""
    rng = torch.Generator().manual_seed(0)
    weights = (4 * torch.eye(3), -2 * torch.ones(3))
    return 0.3 * torch.randn(n, 3, generator=rng), Classifier(("a", "b", "c"), "s", weights, 1.0)


def test_interference_of_independent_labels() -> None:
    plain, held = planted()

    def steer(targets: tuple[str, ...]) -> Tensor:
        return plain + torch.tensor([float(name in targets) for name in "abc"])

    found = interference(held, plain, steer, clusters=[i // 3 for i in range(60)])
    for i, row in enumerate(found.singles):
        for j, change in enumerate(row):
            assert (change.low > 0.3) if i == j else (change.low == change.high == 0)
    assert len(found.pairs) == 3
    assert all(pair.both_rise and pair.p < 0.01 and pair.success.value > 0.9 for pair in found.pairs)
    assert "3 of 3" in repr(found)
    assert found.to_dict()["labels"] == ("a", "b", "c")


def test_interference_of_rivals_and_of_nothing() -> None:
    plain, held = planted()

    def rivals(targets: tuple[str, ...]) -> Tensor:
        push = torch.tensor([float("a" in targets), -float("a" in targets) + 0.2 * float("b" in targets), 0.0])
        return plain + push

    found = interference(held, plain, rivals)
    assert not found.pairs[0].both_rise
    assert found.pairs[0].p > 0.5
    noise = torch.Generator().manual_seed(1)
    silent = interference(held, plain, lambda targets: plain + 0.1 * torch.randn(plain.shape, generator=noise))
    assert not any(pair.p < 0.05 for pair in silent.pairs)


@pytest.mark.parametrize(("edge", "wanted"), [(0.13, 0.13), (5.0, 1.0)])
def test_strength_is_the_largest_within_the_limit(edge: float, wanted: float) -> None:
    found = find_strength(lambda strength: strength / edge, 1.0)
    assert found.value is not None
    assert wanted / 1.06 <= found.value <= wanted
    assert all(price == strength / edge for strength, price in found.tried)
    assert len(found.tried) <= 10


def test_no_strength_where_the_weakest_costs_too_much() -> None:
    found = find_strength(lambda strength: 9.0, 1.0)
    assert found.value is None
    assert len(found.tried) == 1
    assert "costs too much" in repr(found)
    assert find_strength(lambda strength: float("nan"), 1.0).value is None
    with pytest.raises(UsageError, match="low=2"):
        find_strength(lambda strength: 0.0, 1.0, low=2.0)


class _Words:
    """Decodes a token to a word."""

    all_special_ids = (0, 1, 2)
    eos_token_id = 2
    pad_token_id = 0

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(f"w{token}" for token in ids)


def test_arms_are_paired_and_controls_have_their_turn(llama: Model, texts: list[list[int]], tmp_path: Path) -> None:
    model = Model(llama.hf, _Words(), name="tiny")
    settings, notes = Settings(0.0, 1.0, max_tokens=8), list[str]()
    pushes = random_pushes("resid_post.1", 32, 2.0, 3)
    assert all(float((each.vector * each.scale).norm()) == pytest.approx(2.0, rel=1e-6) for (each,) in pushes)
    arms = [Arm("push", texts, pushes[0]), Arm("other texts", texts[::-1])]
    found = measure_arms(
        model,
        texts,
        arms,
        settings,
        controls={"push": pushes},
        control_prompts=5,
        folder=tmp_path,
        report=lambda done, total, note: notes.append(note),
    )
    assert found.complete
    assert [each.arm for each in found.outcomes] == ["push", "other texts"]
    first = found.outcomes[0].effects["words"]
    assert len(first.controls) == 3
    assert first.over_controls is not None
    assert first.over_controls.n == 12
    assert found.outcomes[1].effects["words"].controls == ()
    same = measure_arms(model, texts, [Arm("plain", texts)], settings)
    assert same.outcomes[0].words.value == 0
    assert same.outcomes[0].perplexity.value == 0
    assert {"plain answers", "answers, push", "answers, random directions"} <= set(notes)


def test_ctrl_c_keeps_the_arms_that_are_finished(llama: Model, texts: list[list[int]]) -> None:
    model = Model(llama.hf, _Words(), name="tiny")

    def stop(done: int, total: int, note: str) -> None:
        if note == "answers, second":
            raise KeyboardInterrupt

    arms = [Arm("first", texts, random_pushes("resid_post.1", 32, 2.0, 1)[0]), Arm("second", texts)]
    found = measure_arms(model, texts, arms, Settings(0.0, 1.0, max_tokens=3), report=stop)
    assert not found.complete
    assert [each.arm for each in found.outcomes] == ["first"]


def test_states_are_those_under_the_edit(llama: Model, texts: list[list[int]]) -> None:
    (push,) = random_pushes("resid_post.0", 32, 1.0, 1)
    found = steered_states(llama, texts, "resid_post.2", push, rows=5)
    for text, row in zip(texts, found, strict=True):
        with llama.edited(*push):
            alone = llama.capture([text], "resid_post.2")["resid_post.2"][0, -1]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


def test_planted_clouds() -> None:
    for cloud in (xor_points(n=2400, seed=3), ring_points(n=3600, seed=3)):
        found = reach(cloud)
        assert found.climbed >= 0.95 * found.points
        assert found.added <= 0.6 * found.points


def test_two_targets_at_once_on_held_out_probabilities() -> None:
    """Rings: two classifiers of different rows; steering to a pair raises both by the one that did not steer."""
    cloud = ring_points(seed=5)
    x, y = torch.from_numpy(cloud.x), torch.from_numpy(cloud.y)
    recipe = Recipe(epochs=10, batch=64, rate=3e-3)
    mine = fit_classifier(x[:2000], y[:2000], RING_LABELS, "resid_post.0", recipe)
    held = fit_classifier(x[2000:4000], y[2000:4000], RING_LABELS, "resid_post.0", recipe)
    plain = x[4000:4300][torch.from_numpy(cloud.y[4000:4300, 2])]

    def steer(targets: tuple[str, ...]) -> Tensor:
        (edit,) = mine.edits(targets, strength=0.02, steps=40)
        return edit.stepped(plain)  # type: ignore[attr-defined,no-any-return]

    found = interference(held, plain, steer)
    pair = next(each for each in found.pairs if each.targets == ("inner", "middle"))
    assert pair.both_rise
    assert climb(mine, "inner").site == mine.site


def test_answers_turn_and_coins_are_silent() -> None:
    hits, n = through_a_model(0)
    assert hits >= 0.85 * n
    assert sum(claims_on_coins(seed) for seed in range(3)) <= 1


def test_measures() -> None:
    text = "Well, it's simple! Don't worry."
    found = {name: measure(text) for name, measure in MEASURES.items()}
    assert found["words"] == 5
    assert found["contractions"] == 40
    assert found["exclamations"] == 20
    assert found["word length"] == pytest.approx(np.mean([4, 2, 1, 6, 3, 1, 5]))
    assert all(np.isfinite(measure("")) for measure in MEASURES.values())


@pytest.mark.slow
def test_calibration_holds() -> None:
    """Ten draws of everything take two minutes."""
    assert all(rate.passed for rate in all_rates(10))
