"""Vectors: means by hand, what is added where, controls of equal length, provenance, files, bad input."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model
from cutaway.planted import linear_direction
from cutaway.sampling import Settings
from cutaway.steering import Vectors, difference_of_means, draw_answers, load_vectors, states

GREEDY = Settings(temperature=0.0, top_p=1.0, max_tokens=6)


def found(model: Model, texts: list[list[int]], layers: tuple[int, ...] = (0, 2)) -> Vectors:
    return difference_of_means(model, texts[:6], texts[6:], layers)


def test_difference_of_means_by_hand(model: Model, texts: list[list[int]]) -> None:
    vectors = found(model, texts)
    for row, layer in enumerate((0, 2)):
        rows = [model.capture([text], f"resid_post.{layer}")[f"resid_post.{layer}"][0, -1] for text in texts]
        wanted = torch.stack(rows[:6]).mean(0) - torch.stack(rows[6:]).mean(0)
        torch.testing.assert_close(vectors.values[row], wanted, atol=1e-5, rtol=1e-5)
        lengths = sorted(float(each.norm()) for each in rows)
        assert float(vectors.stream[row]) == pytest.approx(lengths[5], rel=1e-4)
    second = difference_of_means(model, texts[:6], texts[6:], (1,), position=0)
    assert not torch.allclose(second.values, difference_of_means(model, texts[:6], texts[6:], (1,)).values)


def test_padding_and_batch_do_not_change_states(llama: Model, texts: list[list[int]]) -> None:
    together = states(llama, texts * 3, (1,))
    alone = torch.cat([states(llama, [text], (1,)) for text in texts * 3], 1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


class _Tuple(nn.Module):
    """A block that hands its hidden states on in a tuple, as older families do."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
        return (self.block(*args, **kwargs),)


def test_steering_adds_exactly_at_every_layer_and_position(model: Model, texts: list[list[int]]) -> None:
    """One layer: the stream moves by scale * v at all positions; several: greedy tokens as with a naive loop."""
    one = found(model, texts, (1,))
    batch = model.batch(texts[:5])
    before = model.capture(batch, "resid_post.1")["resid_post.1"]
    with model.edited(*one.edits(0.6)):
        after = model.capture(batch, "resid_post.1")["resid_post.1"]
    assert torch.equal(after, before + 0.6 * one.values[0])
    several = found(model, texts, (0, 1, 2))
    naive = []
    for text in texts[:8]:
        ids = list(text)
        with model.edited(*several.edits(0.6)):
            for _ in range(6):
                ids.append(int(model.logits(model.batch([ids]))[0, -1].argmax()))
                if ids[-1] == 2:
                    break
        naive.append(tuple(ids[len(text) :]))
    for size in (1, 8):
        drawn = draw_answers(model, texts[:8], GREEDY, edits=several.edits(0.6), batch_size=size)
        assert [answer.ids for (answer,) in drawn] == naive


def test_blocks_that_return_tuples(texts: list[list[int]]) -> None:
    """The same hook on a block that returns a tuple and on one that returns a tensor."""
    from cutaway.model.apply import _hook

    block = nn.Linear(4, 4)
    value, push = torch.randn(2, 3, 4), torch.ones(4)
    handles = [_hook(block, "out", [lambda tensor, given: tensor + 0.6 * push])]
    wrapped = _Tuple(nn.Linear(4, 4))
    wrapped.block.load_state_dict(block.state_dict())
    handles.append(_hook(wrapped, "out", [lambda tensor, given: tensor + 0.6 * push]))
    assert torch.equal(block(value), wrapped(value)[0])
    for handle in handles:
        handle.remove()


def test_zero_scale_is_no_edit_and_plain_generation_bit_for_bit(llama: Model, texts: list[list[int]]) -> None:
    vectors = found(llama, texts)
    assert vectors.edits(0.0) == ()
    plain = draw_answers(llama, texts[:4], GREEDY)
    assert draw_answers(llama, texts[:4], GREEDY, edits=vectors.edits(0.0)) == plain


def test_controls_have_the_same_length_at_every_layer(llama: Model, texts: list[list[int]]) -> None:
    vectors = found(llama, texts)
    controls = vectors.controls(20, seed=1)
    assert len(controls) == 20
    for control in controls:
        torch.testing.assert_close(control.norms, vectors.norms, atol=0, rtol=1e-6)
    directions = torch.stack([control.unit.values[0] for control in controls])
    cosines = directions @ directions.T - torch.eye(20)
    assert float(cosines.abs().max()) < 0.8
    again, other = vectors.controls(2, seed=1)[0], vectors.controls(2, seed=2)[0]
    assert torch.equal(again.values, controls[0].values)
    assert not torch.equal(other.values, again.values)


def test_norm_conventions(llama: Model, texts: list[list[int]]) -> None:
    vectors = found(llama, texts)
    torch.testing.assert_close(vectors.unit.norms, torch.ones(2))
    torch.testing.assert_close(vectors.in_stream.norms, vectors.stream)
    assert vectors.at((2,)).layers == (2,)
    assert torch.equal(vectors.at((2,)).values[0], vectors.values[1])
    assert "resid_post" not in repr(vectors)
    assert "n=6" in repr(vectors)


def test_files_and_provenance(llama: Model, texts: list[list[int]], tmp_path: Path) -> None:
    vectors = found(llama, texts)
    assert vectors.source == llama.fingerprint
    vectors.save(tmp_path / "v.safetensors")
    back = load_vectors(tmp_path / "v.safetensors")
    assert torch.equal(back.values, vectors.values)
    assert (back.layers, back.source, back.n, back.position) == ((0, 2), llama.fingerprint, 6, "-1")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad.safetensors", "missing.safetensors"):
        with pytest.raises(CutawayError, match="holds no vectors"):
            load_vectors(tmp_path / name)


def test_planted_direction_is_found_and_the_null_differs() -> None:
    planted = linear_direction()
    model, truth = planted.model, planted.truth
    sides = [[model.encode(text) for text in planted.texts(40, concept=concept)] for concept in (True, False)]
    vectors = difference_of_means(model, sides[0], sides[1], (1,))
    direction = torch.from_numpy(truth.direction).float()
    assert float(vectors.unit.values[0] @ direction) > 0.99
    others = [model.encode(text) for text in planted.texts(40, concept=False, seed=1)]
    with pytest.raises(UsageError, match="zero vector"):
        difference_of_means(model, sides[1], others, (1,))


def test_bad_input(llama: Model, texts: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="6 first members and 5 second"):
        difference_of_means(llama, texts[:6], texts[6:11], (0,), paired=True)
    with pytest.raises(UsageError, match="pair 1: both members"):
        difference_of_means(llama, texts[:2], [texts[5], texts[1]], (0,), paired=True)
    with pytest.raises(UsageError, match="zero vector"):
        difference_of_means(llama, texts[:2], texts[1::-1], (0,))
    for layers, message in ((3,), "0..2"), ((-1,), "0..2"), ((), "at least one"), ((1, 1), "each once"):
        with pytest.raises(UsageError, match=message):
            difference_of_means(llama, texts[:2], texts[2:4], layers)
    with pytest.raises(UsageError, match="at least one of each"):
        difference_of_means(llama, [], texts, (0,))
    with pytest.raises(UsageError, match="there are vectors for 0, 2"):
        found(llama, texts).at((1,))
    with pytest.raises(UsageError, match="at least 1 control"):
        found(llama, texts).controls(0)
