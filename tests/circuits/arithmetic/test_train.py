"""The trainer: repeatable, resumable, exact about what it counts, and refusing what cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.circuits.arithmetic import (
    BIN,
    PUBLISHED,
    Format,
    Recipe,
    Trained,
    build,
    learning_rate,
    load,
    recipe,
    score,
    train,
    uniform,
)
from cutaway.errors import CutawayError, UsageError
from cutaway.model import load_model

SMALL = Recipe("small", 2, signed=False, d_model=24, steps=60, lr=3e-3, seed=5)


def test_the_same_seed_gives_the_same_losses() -> None:
    one, two = train(SMALL), train(SMALL)
    assert one.curves.loss.tolist() == two.curves.loss.tolist()
    assert one.model.fingerprint == two.model.fingerprint
    other = train(Recipe("small", 2, signed=False, d_model=24, steps=60, lr=3e-3, seed=6))
    assert other.curves.loss[0] != one.curves.loss[0]
    assert one.curves.loss[-10:].mean() < one.curves.loss[:10].mean()


@pytest.mark.parametrize("grokfast", [False, True])
def test_a_stopped_run_continues_where_it_was(tmp_path: Path, grokfast: bool) -> None:
    plan = Recipe("small", 2, operation="mix", d_model=24, steps=60, grokfast=grokfast)
    whole = train(plan)

    def stop(done: int, total: int, loss: float) -> None:
        if done == BIN:
            raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    part = train(plan, checkpoint=file, report=stop)
    assert (part.complete, len(part.curves.loss)) == (False, BIN)
    rest = train(plan, checkpoint=file)
    assert rest.complete
    assert rest.curves.loss.tolist() == whole.curves.loss.tolist()
    np.testing.assert_array_equal(rest.curves.count, whole.curves.count)
    assert rest.model.fingerprint == whole.model.fingerprint


def test_the_three_sets_count_every_cell_once() -> None:
    curves = train(SMALL).curves
    assert curves.count.sum(axis=1).tolist() == [[BIN * SMALL.batch] * 2, [10 * SMALL.batch] * 2]
    assert np.isnan(curves.mean[:, 1:, 0]).all()  # nothing arrives in the units


def test_the_split_losses_add_up_to_the_loss() -> None:
    plan = Recipe("small", 2, signed=False, d_model=24, steps=1, warmup=0)
    curves = train(plan).curves
    model = build(plan)
    from cutaway.circuits.arithmetic.training import batch_of

    scores = score(model, batch_of(plan, 0))
    assert curves.loss[0] == pytest.approx(scores.loss.mean(), rel=1e-6)
    np.testing.assert_allclose(curves.total[0].sum(axis=0), scores.loss[:, ::-1][:, :2].sum(axis=0), rtol=1e-6)


def test_a_trained_model_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    trained = train(SMALL)
    trained.save(tmp_path / "model")
    model = load(tmp_path / "model", SMALL.format)
    questions = uniform(SMALL.format, 50, 0)
    np.testing.assert_array_equal(score(model, questions).predicted, score(trained.model, questions).predicted)
    house = load_model(tmp_path / "model", dtype="float32")
    text = questions.texts()[0]
    assert house.encode(text) == questions.tokens[0].tolist()
    assert house.decode(house.encode(text)) == text
    assert house.capture([house.encode(text)], "z.0.1")["z.0.1"].shape == (1, 9, 8)
    with pytest.raises(UsageError, match="writes with"):
        load(tmp_path / "model", Format(2, signed=True))
    with pytest.raises(UsageError, match="sees 9 tokens"):
        score(model, uniform(Format(3), 5, 0))


def test_insertion_copies_the_parent() -> None:
    base = Recipe("base", 2, layers=1, d_model=24, steps=5, warmup=0)
    parent = train(base).model
    child = Recipe("child", 2, operation="mix", layers=2, d_model=24, steps=1, warmup=0, insert=1, lr=0.0)
    model = train(child, parent=parent).model
    own, other = model.hf.state_dict(), parent.hf.state_dict()
    assert all(torch.equal(own[name], value) for name, value in other.items())
    assert not torch.equal(own["transformer.h.1.attn.c_attn.weight"], own["transformer.h.0.attn.c_attn.weight"])
    again = Recipe("child", 2, operation="mix", layers=2, d_model=24, steps=3, warmup=0, insert=4)
    kept = train(again, parent=parent).model.hf.state_dict()
    assert torch.equal(kept["transformer.h.0.mlp.c_fc.weight"], other["transformer.h.0.mlp.c_fc.weight"])
    assert not torch.equal(kept["lm_head.weight"], other["lm_head.weight"])


def test_schedules() -> None:
    plan = recipe("add_d6_l2_h3_t15K_s372001")
    assert learning_rate(plan, 2999) == pytest.approx(8e-5)
    assert learning_rate(plan, 0) < 0.011 * 8e-5
    assert learning_rate(plan, 9000) == pytest.approx(4e-5)
    assert learning_rate(recipe("paper"), 4999) == 8e-5


def test_every_published_name_is_a_recipe() -> None:
    assert len(set(PUBLISHED)) == 53
    for name in PUBLISHED:
        found = recipe(name)
        assert found.name == name
        assert found.parent is None or found.parent.d_model == found.d_model
    main = recipe("ins1_mix_d6_l3_h4_t40K_s372001")
    assert (main.insert, main.operation, main.digits, main.layers, main.heads) == (1, "mix", 6, 3, 4)
    assert (main.steps, main.seed, main.subtractions, main.format.n_ctx) == (40_000, 372001, 0.8, 22)
    assert recipe("add_d10_l2_h3_t40K_gf_s572091").grokfast
    assert recipe("paper").d_model == 510


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe("add_d6"), "no preset, and not of the form"),
        (lambda: recipe("tinny"), "did you mean 'tiny'"),
        (lambda: recipe("tiny", stepz=3), "did you mean 'steps'"),
        (lambda: recipe("tiny", d_model=100), "not divisible by heads=3"),
        (lambda: recipe("tiny", steps=0), "steps=0"),
        (lambda: recipe("tiny", digits=0), "digits=0"),
        (lambda: recipe("tiny", operation="sub"), "needs signed=True"),
        (lambda: recipe("tiny", insert=7), "insert=7"),
        (lambda: train(recipe("ins1_mix_d6_l3_h4_t40K_s372001")), "needs parent"),
    ],
)
def test_bad_recipes_are_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(SMALL, checkpoint=file)
    with pytest.raises(CutawayError, match="another recipe"):
        train(Recipe("small", 2, signed=False, d_model=24, steps=70, lr=3e-3, seed=5), checkpoint=file)
    file.write_bytes(b"nonsense" * 10)
    with pytest.raises(CutawayError, match="damaged"):
        train(SMALL, checkpoint=file)


def test_trained_says_how_far_it_came() -> None:
    assert repr(train(SMALL)).startswith("Trained('small', 60 of 60 steps")
    assert isinstance(train(SMALL).to_dict()["recipe_sha256"], str)
    assert isinstance(train(SMALL), Trained)
