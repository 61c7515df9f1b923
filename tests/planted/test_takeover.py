"""The network of the relearning tracker: the carriers carry the tag, and only the idle neuron can bring it back."""

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.model import Mask, Model
from cutaway.planted.takeover import Takeover, takeover
from cutaway.training import Tagging, TrainConfig, collate, train


@pytest.fixture(scope="module")
def planted() -> Takeover:
    return takeover(seed=3)


def accuracy(planted: Takeover, model: Model) -> float:
    data = planted.data(40, seed=9)
    loss = Tagging(planted.head, f"resid_post.{model.n_layers - 1}")(model, collate(data, range(40), model))
    return float(loss.terms["accuracy"] / loss.weight)


def pruned(planted: Takeover) -> tuple[Mask, ...]:
    return tuple(Mask(f"neurons.{layer}", carriers) for layer, carriers in planted.truth.carriers.items())


def test_the_carriers_carry_the_tag(planted: Takeover) -> None:
    with torch.no_grad():
        assert accuracy(planted, planted.model) == 1.0
        with planted.model.edited(*pruned(planted)):
            assert accuracy(planted, planted.model) < 0.85


def test_only_the_idle_neuron_moves_in_training_and_it_moves_towards_the_concept(planted: Takeover) -> None:
    model = planted.model.copy()
    planted.free_idle(model)
    objective = Tagging(planted.head, f"resid_post.{model.n_layers - 1}")
    config = TrainConfig(rate=0.05, batch=32, steps=20, bucket=1, precision="float32")
    train(model, planted.data(64), config, objective=objective, edits=pruned(planted))
    for layer, idle in planted.truth.idle.items():
        for name, axis in (("up_proj", 1), ("down_proj", 0)):
            before, after = (m.layout.blocks[layer].mlp.get_submodule(name).weight for m in (planted.model, model))
            changed = (after - before).abs().sum(axis).nonzero().flatten().tolist()
            assert changed == [idle], (layer, name)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="layers=0"):
        takeover(layers=0)
    with pytest.raises(UsageError, match="neurons=3"):
        takeover(neurons=3)
