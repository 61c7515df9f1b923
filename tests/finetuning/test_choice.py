"""Choices and exact answers against one forward a prompt; generation as the oracle of exact answers."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.finetuning import Choice, Item, accuracy, choice_data, item_data, make_choice, margins, score
from cutaway.model import Model

PROMPTS = (" w1 w2", " w3", " w4 w5 w6", " w7 w8", " w9 w10 w11 w12")


def alone(model: Model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([ids])).logits[0].double()


def test_margins_are_those_of_one_prompt_at_a_time(model: Model) -> None:
    choices = [make_choice(model, prompt, " yes", " no") for prompt in PROMPTS]
    wanted = []
    for each in choices:
        last = alone(model, list(each.ids))[-1]
        wanted.append(float(last[each.right] - last[each.wrong]))
    assert margins(model, choices, batch=2) == pytest.approx(wanted, abs=1e-5)
    assert accuracy(model, choices) == np.mean([gap > 0 for gap in wanted])


def test_a_tie_counts_half(model: Model) -> None:
    head = model.hf.get_output_embeddings().weight
    right, wrong = model.encode(" yes")[0], model.encode(" no")[0]
    with torch.no_grad():
        head[right] = head[wrong]
    assert accuracy(model, [make_choice(model, prompt, " yes", " no") for prompt in PROMPTS]) == 0.5


def test_only_the_right_token_carries_loss(model: Model) -> None:
    data = choice_data([make_choice(model, " w1 w2", " yes", " no")], 64)
    (row,) = data.examples[0]
    assert row.ids[-1] == model.encode(" yes")[0]
    assert row.weights == (0.0, 0.0, 1.0)


def test_exact_is_what_greedy_decoding_writes_and_logp_its_sum(model: Model) -> None:
    rng = np.random.default_rng(0)
    items, greedy = [], []
    for place, prompt in enumerate(PROMPTS * 2):
        ids = model.encode(prompt)
        written: list[int] = []
        for _ in range(1 + place % 3):
            written.append(int(alone(model, ids + written)[-1].argmax()))
        if place % 2:
            written[int(rng.integers(len(written)))] = model.encode(" yes")[0]
        items.append(Item(tuple(ids), tuple(written)))
        again: list[int] = []
        for _ in written:
            again.append(int(alone(model, ids + again)[-1].argmax()))
        greedy.append(again == written)
    assert True in greedy
    assert False in greedy
    found = score(model, items, batch=3)
    assert found.exact.tolist() == greedy
    assert found.rate == np.mean(greedy)
    for item, logp in zip(items, found.logp, strict=True):
        steps = alone(model, [*item.ids, *item.answer]).log_softmax(-1)
        first = len(item.ids) - 1
        assert logp == pytest.approx(sum(float(steps[first + i, t]) for i, t in enumerate(item.answer)), abs=1e-4)
    assert item_data(items[:1], 64).examples[0][0].weights[: len(items[0].ids)] == (0.0,) * len(items[0].ids)


def test_bad_input(model: Model) -> None:
    with pytest.raises(UsageError, match="must differ"):
        Choice((1, 2), 3, 3)
    with pytest.raises(UsageError, match="2 tokens"):
        make_choice(model, " w1", " yes no", " no")
    with pytest.raises(UsageError, match="no choices"):
        margins(model, [])
    with pytest.raises(UsageError, match="no items"):
        score(model, [])
    with pytest.raises(UsageError, match="a token in its prompt"):
        Item((), (1,))
