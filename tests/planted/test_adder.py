"""Planted adders answer exactly as their truth says, on every question tried."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.adder import Adder, adder, symbol_tokenizer

VARIANTS = [
    {},
    {"columns": 1},
    {"columns": 2},
    {"columns": 4, "digits": 3},
    {"layers": 2},
    {"layers": 3, "signed": True, "digits": 4},
    {"split": True},
    {"split": True, "layers": 2, "signed": True},
    {"digits": 1, "columns": 2},
    {"digits": 8, "decoys": 3},
]


def hypothesis_digits(first: np.ndarray, second: np.ndarray, columns: int) -> np.ndarray:
    """Answer digits (units first) when only ``columns`` columns are looked at."""
    total, n = first + second, first.shape[1]
    out = []
    for j in range(n + 1):
        seen = [10 ** (columns - 1 - k) * total[:, j - k] for k in range(columns) if 0 <= j - k < n]
        out.append(sum(seen, np.zeros(len(total), dtype=int)) // 10 ** (columns - 1) % 10)
    return np.stack(out, axis=1)


def ask(planted: Adder, first: np.ndarray, second: np.ndarray, signed: bool) -> np.ndarray:
    """Answer digits (units first) that the model writes; the answers before them are the model's own."""
    n = first.shape[1]
    plus, equals = planted.model.encode("+=")
    asked = [first[:, ::-1], np.full((len(first), 1), plus), second[:, ::-1], np.full((len(first), 1), equals)]
    ids = torch.from_numpy(np.concatenate(asked, axis=1).copy())
    for _ in range(n + 1 + signed):
        logits = planted.model.hf(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    answer = ids[:, 2 * n + 2 :].numpy()
    if signed:
        assert (answer[:, 0] == plus).all()
    return answer[:, ::-1][:, : n + 1]


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_answers_follow_the_truth(options: dict, seed: int) -> None:
    planted = adder(seed=seed, **options)
    digits, rng = options.get("digits", 5), np.random.default_rng(seed)
    first, second = rng.integers(0, 10, (2, 400, digits))
    second = np.where(rng.random(second.shape) < 0.4, 9 - first, second)  # many passed carries
    found = ask(planted, first, second, options.get("signed", False))
    np.testing.assert_array_equal(found, hypothesis_digits(first, second, planted.truth.columns))


def test_the_truth_names_every_job_once() -> None:
    truth = adder(5).truth
    assert sorted(truth.roles.values()) == sorted(
        [("SA", i, i) for i in range(5)]
        + [("ST", i, i + 1) for i in range(1, 5)]
        + [("SC", 0, 1)]
        + [("SC", i, i + 2) for i in range(4)]
    )
    assert len(adder(5, split=True).truth.pairs) == 5
    assert all(len(places) == 1 for places in truth.heads)
    assert adder(5, seed=0).truth.heads != adder(5, seed=3).truth.heads


def test_the_null_has_no_job() -> None:
    nothing = adder(5, null=True)
    assert nothing.truth.roles == {}
    assert nothing.truth.heads == ()
    assert float(nothing.model.hf.lm_head.weight.detach().abs().min()) > 0


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    adder(3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"columns": 5}, {"digits": 0}, {"layers": 0}, {"decoys": -1}])
def test_what_cannot_be_built_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        adder(**wrong)


def test_the_tokenizer_has_one_token_a_character() -> None:
    tokenizer = symbol_tokenizer("0123456789+=")
    assert tokenizer("12+90=")["input_ids"] == [1, 2, 10, 9, 0, 11]
    assert tokenizer.decode([1, 2, 10]) == "12+"
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer("1x")
