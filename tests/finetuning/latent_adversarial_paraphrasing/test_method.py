"""The inner loop: what it moves and leaves alone, its constraint, the direction it finds where one is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.finetuning.exact import Item, item_data
from cutaway.finetuning.latent_adversarial_paraphrasing.calibration import RHO, alignment
from cutaway.finetuning.latent_adversarial_paraphrasing.method import (
    Paraphrase,
    followed,
    frozen,
    nearest_tokens,
    prompt_positions,
    row_losses,
    shift_limit,
    sized,
)
from cutaway.model import Add, Model
from cutaway.planted.phrasing import PlantedPhrasing, planted_phrasing
from cutaway.training import NextToken, TrainBatch, TrainConfig, collate, predictions, train

Make = Callable[..., Model]
ITEMS = (Item((5, 6, 7), (9, 10)), Item((11, 12), (13,)), Item((14, 15, 16, 17), (18,)))


@pytest.fixture
def open_model(make_llama: Make) -> Model:
    model = make_llama(layers=3)
    model.hf.requires_grad_(True)
    return model


def batch_on(model: Model) -> TrainBatch:
    return collate(item_data(ITEMS, 64), [0, 1, 2], model)


def relative(shift: torch.Tensor, model: Model, batch: TrainBatch, layer: int) -> torch.Tensor:
    states = model.capture(batch.tokens, f"resid_pre.{layer}", special=True)[f"resid_pre.{layer}"].detach()
    return shift.flatten(1).norm(dim=1) / (states * prompt_positions(batch)[..., None]).flatten(1).norm(dim=1)


def test_the_inner_loop_leaves_weights_gradients_and_hooks_as_they_were(open_model: Model) -> None:
    before = {name: weight.detach().clone() for name, weight in open_model.hf.named_parameters()}
    Paraphrase(1, 0.5, steps=3).shift(open_model, batch_on(open_model))
    for name, weight in open_model.hf.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad
        assert weight.grad is None
    with pytest.raises(KeyError), frozen(open_model):
        {}["gone"]
    assert all(weight.requires_grad for weight in open_model.hf.parameters())
    with pytest.raises(UsageError):
        Paraphrase(9, 0.5, steps=1).shift(open_model, batch_on(open_model))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in open_model.hf.modules())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("layer", [0, 2])
def test_only_prompt_tokens_are_shifted(open_model: Model, layer: int, steps: int) -> None:
    batch = batch_on(open_model)
    shift = Paraphrase(layer, 0.5, steps=steps).shift(open_model, batch)
    where = prompt_positions(batch)
    assert where.sum(1).tolist() == [3, 2, 4]
    assert not shift[~where].any()
    assert (shift[where].norm(dim=-1) > 0).all()
    site = f"resid_pre.{layer}"
    plain = open_model.capture(batch.tokens, site, special=True)[site].detach()
    with open_model.edited(Add(site, shift)):
        shifted = open_model.capture(batch.tokens, site, special=True)[site].detach()
    assert torch.equal(shifted[~where], plain[~where])
    assert torch.allclose(shifted[where] - plain[where], shift[where], atol=1e-5)


def test_the_shift_keeps_its_size(open_model: Model) -> None:
    batch = batch_on(open_model)
    random = Paraphrase(1, 0.4, steps=0).shift(open_model, batch)
    assert relative(random, open_model, batch, 1).tolist() == pytest.approx([0.4] * 3, abs=1e-5)
    for pace in (1.0, 5.0):
        inner = Paraphrase(1, 0.4, steps=4, pace=pace)
        assert (relative(inner.shift(open_model, batch), open_model, batch, 1) <= 0.4 + 1e-5).all()
        inner(open_model, batch)
        assert (inner.log[0].size > 0.44) == (pace == 5.0)
        assert (inner.log[0].lagrange > 0) == (pace == 5.0)


def test_without_size_it_is_plain_training_and_otherwise_the_mix(open_model: Model) -> None:
    batch = batch_on(open_model)
    plain = NextToken()(open_model, batch)
    assert float(Paraphrase(1, 0.0)(open_model, batch).total.detach()) == float(plain.total.detach())
    torch.manual_seed(3)
    mixed = Paraphrase(1, 0.5, steps=0, weight=2.0)(open_model, batch)
    torch.manual_seed(3)
    with open_model.edited(Add("resid_pre.1", Paraphrase(1, 0.5, steps=0).shift(open_model, batch))):
        shifted = NextToken()(open_model, batch)
    wanted = (float(plain.total.detach()) + 2 * float(shifted.total.detach())) / 3
    assert float(mixed.total.detach()) == pytest.approx(wanted, rel=1e-6)
    assert float(mixed.weight) == float(plain.weight)
    assert not mixed.terms["shifted"].requires_grad


def test_plain_training_with_rho_0_is_bit_for_bit_the_same(make_llama: Make) -> None:
    weights = []
    for objective in (NextToken(), Paraphrase(1, 0.0)):
        model = make_llama()
        model.hf.requires_grad_(True)
        train(model, item_data(ITEMS, 64), TrainConfig(rate=1e-2, steps=3, batch=2), objective=objective)
        weights.append([weight.detach() for weight in model.hf.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_starting_at_the_layer_changes_nothing_but_the_work(open_model: Model) -> None:
    batch = batch_on(open_model)
    shifts = []
    for cached in (True, False):
        torch.manual_seed(5)
        shifts.append(Paraphrase(2, 0.5, steps=3, cached=cached).shift(open_model, batch))
    assert torch.allclose(shifts[0], shifts[1], atol=1e-5)


def test_row_losses_are_means_by_row(open_model: Model) -> None:
    batch = batch_on(open_model)
    found = row_losses(predictions(open_model, batch), batch).detach()
    for row, item in enumerate(ITEMS):
        ids = torch.tensor([[*item.ids, *item.answer]])
        logp = open_model.hf(ids).logits[0].log_softmax(-1).detach()
        first = len(item.ids) - 1
        wanted = -np.mean([float(logp[first + i, token]) for i, token in enumerate(item.answer)])
        assert float(found[row]) == pytest.approx(wanted, abs=1e-5)


def test_lambda_settles_where_the_constraint_binds() -> None:
    # Largest g.d - |d|^2 / 8 with |d| <= rho: d lies on the ball, along g, and lambda is what then pulls outward.
    gradient, rho = torch.tensor([[3.0, 4.0]]), 2.0
    d, multiplier = torch.zeros(1, 2), torch.zeros(1)
    sizes, path = [], []
    for _ in range(1500):
        size = d.norm(dim=1)
        pull = torch.where(size > rho, multiplier, torch.zeros(1)) * d / size.clamp_min(1e-9)
        d = d + 0.01 * (gradient - d / 4 - pull)
        multiplier = followed(multiplier, d.norm(dim=1), rho, 0.02)
        sizes.append(float(d.norm()))
        path.append(float(multiplier))
    assert max(path[:3]) == 0.0
    assert max(path) > 1.0
    assert np.mean(sizes[-500:]) <= 1.1 * rho
    assert np.mean(sizes[-500:]) >= 0.9 * rho
    assert torch.nn.functional.cosine_similarity(d, gradient).item() > 0.999
    fallen = followed(torch.tensor([0.1]), torch.tensor([0.5]), rho, 1.0)
    assert fallen.tolist() == [0.0]


def test_the_shift_finds_the_direction_that_changes_the_answer(phrased: PlantedPhrasing) -> None:
    assert alignment(phrased) >= 0.6
    assert abs(alignment(planted_phrasing(brittle=False, steps=60))) < 0.3


def test_the_found_shift_raises_the_loss_more_than_a_random_one(phrased: PlantedPhrasing) -> None:
    rows = [Item(*phrased.item(query, phrased.tuning[0])) for query in phrased.queries(32, 4)]
    inner = Paraphrase(0, RHO, steps=3)
    inner(phrased.model, collate(item_data(rows, 128), range(32), phrased.model))
    (climb,) = inner.log
    assert climb.end > climb.start + 1.0
    assert climb.end > climb.loss + 1.0
    assert climb.inside == 1.0


def test_rho_is_how_far_phrasings_lie_apart(model: Model) -> None:
    queries = [[[5, 6, 7], [5, 6], [8, 9, 10, 11]], [[12, 13], [14]]]
    gaps = []
    for phrasings in queries:
        means = [
            model.capture([ids], "resid_pre.1", special=True)["resid_pre.1"][0].mean(0).detach() for ids in phrasings
        ]
        gaps += [float((mean - means[0]).norm() / means[0].norm()) for mean in means[1:]]
    assert shift_limit(model, queries, 1) == pytest.approx(float(np.median(gaps)), rel=1e-4)
    with pytest.raises(UsageError, match="two phrasings"):
        shift_limit(model, [[[5, 6]]], 0)


def test_a_shift_says_the_token_it_points_to(model: Model) -> None:
    embed = model.hf.get_input_embeddings().weight.detach()
    (first, *rest) = nearest_tokens(model, 0.1 * embed[17], 3)
    assert first == (17, pytest.approx(1.0, abs=1e-5))
    assert len(rest) == 2


def test_sized_noise_has_the_size_in_every_row() -> None:
    draw = torch.Generator().manual_seed(0)
    noise, states = (torch.randn(4, 5, 8, generator=draw) for _ in range(2))
    where = torch.arange(5)[None] < torch.tensor([5, 3, 2, 1])[:, None]
    found = sized(noise * where[..., None], states, where, 0.7)
    ratio = found.flatten(1).norm(dim=1) / (states * where[..., None]).flatten(1).norm(dim=1)
    assert ratio.tolist() == pytest.approx([0.7] * 4, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"layer": -1, "rho": 0.1}, "layer=-1"),
        ({"layer": 0, "rho": -0.1}, "rho"),
        ({"layer": 0, "rho": 0.1, "steps": -1}, "steps 0 or more"),
        ({"layer": 0, "rho": 0.1, "weight": 0.0}, "weight above 0"),
    ],
)
def test_bad_settings(settings: dict[str, float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Paraphrase(**settings)  # type: ignore[arg-type]
