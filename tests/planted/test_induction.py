"""The induction model does its task by the heads that its truth names, and by no others."""

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted import Induction, induction


def right(planted: Induction, rows: list[list[int]]) -> torch.Tensor:
    """Probability of each true next token [row, pos]."""
    batch = planted.model.batch(rows)
    with torch.no_grad():
        probs = planted.model.logits(batch).softmax(-1)
    return probs[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"n_symbols": 2}, {"n_symbols": 44, "n_heads": 6, "previous": 5, "head": 0}, {"noise": 0.0}],
)
def test_second_half_is_certain_and_first_half_is_chance(kwargs):
    planted = induction(**kwargs)
    length = min(12, kwargs.get("n_symbols", 24))
    p = right(planted, planted.repeated(20, length))
    assert p[:, length + 1 :].numel() == 0 or p[:, length + 1 :].min() > 0.99
    assert p[:, :length].mean() == pytest.approx(planted.truth.chance, rel=0.1)


def test_without_noise_chance_is_exact():
    planted = induction(noise=0.0)
    assert right(planted, planted.unrepeated(10, 24)).sub(1 / 24).abs().max() < 1e-6


@pytest.mark.parametrize(("previous", "head"), [(0, 0), (1, 2), (3, 1)])
def test_heads_attend_as_named_over_the_whole_context(previous, head):
    planted = induction(previous=previous, head=head, noise=0.05)
    assert planted.truth.heads == ((0, previous, "previous token"), (1, head, "induction"))
    row = planted.unrepeated(1, 24)[0]
    ids = torch.tensor([row[:1] + row[1:] * 20])
    planted.model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = planted.model.hf(ids, output_attentions=True).attentions
    assert patterns[0][0, previous].diagonal(-1).min() > 1 - 1e-6
    # Query at position 1 + t looks at what followed the same symbol in earlier rounds.
    at = patterns[1][0, head, 1 + 24 * 19]
    assert at[torch.arange(1, 19) * 24 - 22].sum() > 0.9
    assert at[2::24].sum() > 1 - 1e-4


def test_only_the_named_heads_matter():
    planted = induction()
    rows = planted.repeated(10, 12)
    everything = [(layer, h) for layer, h, _ in planted.truth.heads] + list(planted.truth.distractors)
    assert len(everything) == 8
    for layer, head in everything:
        ablated = induction()
        with torch.no_grad():
            ablated.model.hf.model.layers[layer].self_attn.o_proj.weight[:, head * 64 : (head + 1) * 64] = 0
        p = right(ablated, rows)[:, 13:]
        assert (p.max() < 0.2) if (layer, head) not in planted.truth.distractors else (p.min() > 0.99)


@pytest.mark.parametrize(
    "kwargs", [{"n_symbols": 1}, {"n_symbols": 45}, {"previous": 4}, {"head": -1}, {"noise": -0.1}]
)
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(UsageError):
        induction(**kwargs)


def test_too_long_rows_are_refused():
    with pytest.raises(UsageError, match="length=25"):
        induction().repeated(1, 25)
