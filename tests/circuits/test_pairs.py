"""Prompts that cannot be patched position by position are refused, with what was given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.circuits.pairs import Pair, Pairs, by_length, pair
from cutaway.errors import UsageError
from cutaway.planted import induction


def test_measures_are_means_of_logits_and_sums_of_probabilities() -> None:
    items = (Pair((1, 2), (1, 3), (0,), (1, 2)), Pair((1, 2), (1, 3), (2, 0), (1,)))
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 3.0]])
    assert torch.allclose(Pairs(items).value(logits), torch.tensor([1.0 - 3.0, 1.5 - 1.0]))
    chance = logits.softmax(-1)
    expected = torch.stack([chance[0, 0] - chance[0, 1:].sum(), chance[1, 0] + chance[1, 2] - chance[1, 1]])
    assert torch.allclose(Pairs(items, "prob_diff").value(logits), expected)
    assert Pairs(items).value(logits.expand(4, 2, 3)).shape == (4, 2)


def test_texts_of_unequal_length_show_both_tokenisations() -> None:
    model = induction(8).model
    with pytest.raises(UsageError, match="clean has 2 tokens, corrupted 3") as caught:
        pair(model, " ba da", " ba da fa", " ga", " ka")
    assert "' ba' ' da' ' fa'" in str(caught.value)
    with pytest.raises(UsageError, match="is 3 tokens"):
        pair(model, " ba da", " ba fa", " ga ka la", " ka")
    good = pair(model, " ba da", " ba fa", " ga", [" ka", " la"], group="one")
    assert (len(good.clean), len(good.wrong), good.group) == (2, 2, "one")


def test_what_would_measure_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="equals the clean one"):
        Pair((1, 2), (1, 2), (3,), (4,))
    with pytest.raises(UsageError, match="token 3 is right and wrong"):
        Pair((1, 2), (1, 3), (3,), (4, 3))
    with pytest.raises(UsageError, match="needs tokens, a right"):
        Pair((1, 2), (1, 3), (), (4,))
    with pytest.raises(UsageError, match="2 clean and 1 corrupted"):
        Pair((1, 2), (1,), (3,), (4,))
    with pytest.raises(UsageError, match=r"2 token lengths \(1, 2\)"):
        Pairs((Pair((1, 2), (1, 3), (3,), (4,)), Pair((1,), (2,), (3,), (4,))))
    with pytest.raises(UsageError, match="did you mean 'logit_diff'"):
        Pairs((Pair((1,), (2,), (3,), (4,)),), "logit_dif")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_grouping_by_length_keeps_every_pair(lengths: list[int]) -> None:
    made = [Pair((1,) * n, (2,) * n, (3,), (4,), str(i)) for i, n in enumerate(lengths)]
    groups = by_length(made)
    assert sorted(item.name for group in groups for item in group.items) == sorted(item.name for item in made)
    assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)
