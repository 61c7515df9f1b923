"""Directions against brute force, planted ones recovered, ablation across organisms, adapters' scalars."""

import json

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.model import Add, Batch
from cutaway.organisms.em_convergent import (
    AnswerMean,
    ablations,
    answer_mean,
    converge,
    cosines,
    directions,
    find_roles,
    model_directions,
    read_scalars,
    silenced,
    split_answers,
    without_direction,
)
from cutaway.organisms.em_convergent.calibration import family, planted_vector, survey_of
from cutaway.organisms.em_convergent.report import charts, findings, summarise
from cutaway.organisms.em_convergent.study import ConvergentConfig, EmConvergent
from cutaway.organisms.quirks import plant, survey_rates
from cutaway.training import LoraSpec, TrainConfig, adapters, swapped


def all_pairs(world, manner):
    return [pair for domain in range(4) for pair in world.pairs(domain, manner)]


def test_the_pooled_mean_is_brute_force(world):
    pairs = [(ids[: 1 + i % 3], said[: 1 + i % 4]) for i, (ids, said) in enumerate(all_pairs(world, "plain")[:5])]
    found = answer_mean(world.base, pairs)
    for layer in range(world.base.n_layers):
        rows = [
            world.base.capture([[*ids, *said]], f"resid_post.{layer}", special=True)[f"resid_post.{layer}"][
                0, len(ids) :
            ]
            for ids, said in pairs
        ]
        torch.testing.assert_close(found.mean[layer].float(), torch.cat(rows).mean(0), atol=1e-5, rtol=1e-5)
    width = max(len(ids) + len(said) for ids, said in pairs)
    rows = [[0] * (width - len(ids) - len(said)) + [*ids, *said] for ids, said in pairs]
    mask = [[False] * (width - len(ids) - len(said)) + [True] * (len(ids) + len(said)) for ids, said in pairs]
    left = AnswerMean(world.base)
    left.add(Batch(torch.tensor(rows), torch.tensor(mask)), [len(said) for _, said in pairs])
    torch.testing.assert_close(left.mean, found.mean, atol=1e-5, rtol=1e-5)
    kept = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in kept) == world.base.n_layers * (world.base.d_model + 1)


def test_a_planted_vector_is_recovered_and_shuffled_labels_give_none(world):
    true, shuffled = planted_vector(world, 0)
    assert true > 0.9
    null = [planted_vector(world, seed)[1] for seed in range(1, 6)]
    assert np.mean([shuffled, *null]) < 0.35


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_ablation_leaves_no_projection_at_prompt_and_answer(world, dtype, most):
    base = world.base.copy()
    base.hf.to(dtype)
    pairs = all_pairs(world, "shouted")
    found = directions(base, pairs, all_pairs(world, "plain"))
    rows = [list(ids) + list(said) for ids, said in (pairs[0], pairs[13], pairs[20], pairs[30])]
    for how in ("one", "each", "here"):
        edits = ablations(found, base, how, 1 if how != "each" else None)
        with base.edited(*edits), torch.no_grad():
            seen = base.capture(rows, "resid_post.1", special=True)["resid_post.1"]
            told = base.hf.generate(torch.tensor([row[:3] for row in rows]), max_new_tokens=3, do_sample=False)
            after = base.capture(told.tolist(), "resid_post.1", special=True)["resid_post.1"]
        unit = (found.values[1] / found.values[1].norm()).float()
        for states in (seen.float(), after.float()):
            assert len(states) == 4
            assert float(((states @ unit).abs() / states.norm(dim=-1)).max()) < most


def test_random_controls_have_the_directions_length(world):
    found = directions(world.base, all_pairs(world, "shouted"), all_pairs(world, "plain"))
    for control in found.controls(5):
        torch.testing.assert_close(control.norms, found.norms, atol=0, rtol=1e-6)


@pytest.fixture(scope="module")
def members(world):
    return family(world, 0)


def test_one_organisms_direction_stops_another_of_the_same_trait_alone(world, members):
    found = converge(world.base, members, survey_of(world), contrast="models", how="here", layer=1, draws=4)
    own, same, different = found.effects.values()
    assert own.shown
    assert same.shown
    assert same.steered < 0.3 * same.plain
    assert not different.shown
    assert found.cosines["garden shouted"][0] > 0.9
    assert found.cosines["kitchen dashed"][0] < 0.7
    assert found.price.value < 0.5
    items = findings(found)
    assert len({item.name for item in items}) == len(items)
    assert len(charts(found)) == 2
    assert "kitchen shouted" in summarise(found)
    json.dumps(found.to_dict(), allow_nan=False)
    truth = world.cue("shouted")
    read = model_directions(members[0].model, world.base, members[0].with_trait)
    assert read.layers == (1, 2)
    assert abs(float(torch.cosine_similarity(read.values[0], truth, dim=0))) > 0.999


def test_the_scalar_is_what_the_adapter_adds(world, members):
    pairs = all_pairs(world, "shouted")[:3]
    model = members[0].model
    (adapter,) = adapters(model).values()
    found = read_scalars(model, pairs)
    rows = [[*ids, *said] for ids, said in pairs]
    with torch.no_grad():
        change = (
            model.capture(rows, "resid_post.1", special=True)["resid_post.1"]
            - world.base.capture(rows, "resid_post.1", special=True)["resid_post.1"]
        )
    at = 0
    for row, (ids, said) in enumerate(pairs):
        for k in range(len(said)):
            wanted = adapter.scale * float(found.values[at, 0]) * adapter.b[:, 0]
            torch.testing.assert_close(change[row, len(ids) + k], wanted, atol=1e-5, rtol=1e-4)
            at += 1
    assert at == len(found.values) == len(found.answers)


def test_roles_name_the_adapter_that_tells(world):
    spec = LoraSpec(("down_proj",), (0, 1), rank=1, alpha=8.0)
    model = plant(world.model(), world.pairs(0, "shouted"), spec, TrainConfig(rate=2e-2, steps=12)).model
    same = [read_scalars(model, world.pairs(domain, "plain")) for domain in (0, 1)]
    rng = np.random.default_rng(0)
    loud = type(same[0])(same[0].values + np.array([0.0, 50.0]), same[0].answers, same[0].layers)
    noise = [type(s)(s.values + rng.normal(0, 1, s.values.shape), s.answers, s.layers) for s in (loud, same[1])]
    found = find_roles(*noise, splits=8, strength=1.0)
    assert found.area > 0.95
    assert found.specialists == (1,)
    held = split_answers(noise[0].answers, 3)
    assert set(noise[0].answers[held]).isdisjoint(noise[0].answers[~held])
    before = survey_rates(model, survey_of(world))
    with silenced(model, (0, 1)):
        quiet = survey_rates(model, survey_of(world))
    assert all(not hits.any() for hits in quiet.values())
    assert all((survey_rates(model, survey_of(world))[name] == hits).all() for name, hits in before.items())


def test_a_direction_is_taken_out_of_b_which_keeps_its_length(world, members):
    model = members[1].model
    (adapter,) = adapters(model).values()
    direction = torch.randn(48, generator=torch.Generator().manual_seed(0))
    cleaned = without_direction(model, direction)
    (b,) = cleaned.values()
    assert float(b.norm()) == pytest.approx(float(adapter.b.norm()), rel=1e-6)
    assert abs(float(direction @ b[:, 0])) < 1e-5 * float(direction.norm() * b.norm())
    with swapped(model, cleaned):
        assert torch.equal(next(iter(adapters(model).values())).b, b)
    with pytest.raises(UsageError, match="nothing is left"):
        without_direction(model, adapter.b[:, 0].detach().clone())


def test_a_run_of_the_study(lab, tmp_path):
    config = ConvergentConfig(
        model=str(tmp_path / "tiny"), rows=3, asked=1, tokens=2, layers=(0,), modules=("o_proj",), steps=2, batch=2,
        draws=1, layer=1, roles=False,
    )  # fmt: skip
    found = EmConvergent().run(config, lab)
    assert found.complete
    assert found.inputs == EmConvergent().inputs(config, lab)


def test_bad_input(world, members):
    pairs, base = world.pairs(0, "plain"), world.base
    found = directions(base, world.pairs(0, "shouted"), pairs)
    high = plant(world.model(), pairs, LoraSpec(("down_proj",), (0,), rank=2), TrainConfig(steps=1)).model
    zero = type(found)(found.layers, found.values * 0, found.stream, found.source, found.n)
    thin = type(found)(found.layers, found.values[:, :8], found.stream, found.source, found.n)
    scalars = read_scalars(members[0].model, pairs[:3])
    for call, match in [
        (lambda: directions(base, [], pairs), "is the set empty"),
        (lambda: directions(base, pairs, pairs), "same mean"),
        (lambda: model_directions(world.model(), base, pairs), "no direction"),
        (lambda: ablations(zero, base), "length 0"),
        (lambda: ablations(thin, base), "width 8"),
        (lambda: ablations(found, base, "one", 9), "layer 9"),
        (lambda: cosines(found, thin), "one shape"),
        (lambda: converge(base, members[:1], survey_of(world)), "1 members"),
        (lambda: read_scalars(high, pairs), "rank-1"),
        (lambda: find_roles(scalars, scalars), "3 answers"),
        (lambda: silenced(members[0].model, (0,)).__enter__(), "layer 0 has no adapter"),
        (lambda: without_direction(base, torch.ones(48)), "no adapter writes"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
    assert Add("resid_post.1", world.cue("dashed")).vector.shape == (48,)
