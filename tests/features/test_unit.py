"""Units of every kind against plain captures, padding on both sides, one forward for many, bad input."""

from collections.abc import Sequence

import pytest
import torch

from cutaway.errors import CutawayError, UsageError
from cutaway.features import SparseDictionary
from cutaway.features.unit import FunctionUnit, ModelUnit, Unit, function, head, latent, neuron, read_rows, together
from cutaway.model import Batch, Model

ROWS = ([40, 41, 42, 43, 44], [50, 51], [60, 61, 62])


def right() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[*row, *[1] * (5 - len(row))] for row in ROWS])
    return ids, torch.tensor([[True] * len(row) + [False] * (5 - len(row)) for row in ROWS])


def left() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = right()
    return torch.stack([torch.roll(row, 5 - len(r)) for row, r in zip(ids, ROWS, strict=True)]), mask.flip(1)


def dictionary(d_in: int = 16) -> SparseDictionary:
    made = SparseDictionary(d_in, 24, "topk", k=4, seed=0)
    with torch.no_grad():
        made.b_enc[[2, 5]] = 3.0  # the latents asked for below fire on these rows
    return made


def kinds(model: Model) -> list[Unit]:
    return [
        neuron(model, 1, 7),
        neuron(model, 0, 3, negative=True),
        latent(model, dictionary(), "resid_post.1", 5),
        latent(model, dictionary(8), "z.1.1", 2),
        head(model, 2, 1),
        function("parity", lambda ids: [float(token % 2) for token in ids]),
    ]


def test_every_kind_is_a_unit_with_a_name_of_its_own(model: Model) -> None:
    units = kinds(model)
    assert all(isinstance(unit, Unit) for unit in units)
    assert [unit.name for unit in units] == [
        *("neurons.1.7", "-neurons.0.3", "resid_post.1:5", "z.1.1:2", "z.2.1", "parity")
    ]


def test_values_are_those_of_a_plain_capture(model: Model) -> None:
    ids, mask = right()
    sites = ["neurons.0", "neurons.1", "resid_post.1", "z.1.1", "z.2.1"]
    held = model.capture(Batch(ids, mask), sites, special=True)
    o = model.layout.attn(2).get_submodule("o_proj")
    alone = torch.zeros(*held["z.2.1"].shape[:2], 16)
    alone[..., 8:] = held["z.2.1"]
    expected = [
        held["neurons.1"][..., 7],
        -held["neurons.0"][..., 3],
        dictionary().encode(held["resid_post.1"].flatten(0, 1)).dense()[:, 5].view(3, 5),
        dictionary(8).encode(held["z.1.1"].flatten(0, 1)).dense()[:, 2].view(3, 5),
        o(alone).norm(dim=-1),
        (ids % 2).float(),
    ]
    for unit, values in zip(kinds(model), expected, strict=True):
        found = unit.activations(ids, mask)
        assert torch.allclose(found, values.masked_fill(~mask, 0.0), atol=1e-5), unit.name
        assert found.abs().sum() > 0


def test_padding_on_either_side_and_reading_together_change_nothing(model: Model) -> None:
    units = kinds(model)
    (ids, mask), (other, other_mask) = right(), left()
    a, b = together(units, ids, mask), together(units, other, other_mask)
    for row, length in enumerate(map(len, ROWS)):
        assert torch.allclose(a[row, :length], b[row, 5 - length :], atol=1e-5)
    alone = torch.stack([unit.activations(ids, mask) for unit in units], -1)
    assert torch.allclose(a, alone, atol=1e-6)
    assert a[~mask].eq(0).all()


@pytest.mark.parametrize("tokens", [1, 6, 4096])
def test_rows_are_read_whatever_the_batch(model: Model, tokens: int) -> None:
    units = kinds(model)
    found = dict(read_rows(units, ROWS, tokens=tokens))
    assert sorted(found) == [0, 1, 2]
    for i, row in enumerate(ROWS):
        ids = torch.tensor([row])
        assert torch.allclose(found[i], together(units, ids, torch.ones_like(ids, dtype=torch.bool))[0], atol=1e-5)


def test_one_forward_serves_all_units_of_a_model(model: Model) -> None:
    seen = []
    handle = model.layout.blocks[0].register_forward_pre_hook(lambda *_: seen.append(1))
    together(kinds(model), *right())
    handle.remove()
    assert len(seen) == 1


class Wrong:
    name = "wrong"

    def activations(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(ids), ids.shape[1] + 1)


def test_a_wrong_number_of_values_is_an_error() -> None:
    short = function("short", lambda ids: [1.0] * (len(ids) - 1))
    with pytest.raises(UsageError, match=r"'short' gave 4 values for 5 tokens"):
        short.activations(*right())
    with pytest.raises(UsageError, match=r"'wrong' gave values of shape \[3, 6\] for \[3, 5\]"):
        together([Wrong()], *right())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(bad: float) -> None:
    def fn(ids: Sequence[int]) -> list[float]:
        return [bad for _ in ids]

    with pytest.raises(CutawayError, match="'odd' gave NaN or infinite"):
        together([function("odd", fn)], *right())


def test_bad_input_is_refused_early(model: Model) -> None:
    for make, message in (
        (lambda: neuron(model, 3, 0), "layer '3' must be 0..2"),
        (lambda: neuron(model, 0, 32), "neuron 32: layer 0 has 0..31"),
        (lambda: head(model, 0, 2), "head '2' must be 0..1"),
        (lambda: latent(model, dictionary(), "resid_post.1", 24), "latent 24: the dictionary has 0..23"),
        (lambda: latent(model, dictionary(8), "resid_post.1", 0), "dictionary reads 8 numbers, resid_post.1 holds 16"),
        (lambda: latent(model, dictionary(), "resid_post.*", 0), "name one place"),
        (lambda: together([], *right()), "no unit"),
        (lambda: list(read_rows([FunctionUnit("f", list)], [[1], []])), "a token in every row"),
    ):
        with pytest.raises(UsageError, match=message):
            make()  # type: ignore[no-untyped-call]
    assert repr(neuron(model, 0, 1)) == "ModelUnit('neurons.0.1' of 'reader-0')"
    assert isinstance(neuron(model, 0, 1), ModelUnit)
