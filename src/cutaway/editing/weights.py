"""The weights around an MLP neuron, whatever the family: what makes it fire, and what it writes.

A neuron is one entry of the site ``neurons.L``, the value that enters the MLP's down projection. Zeroing what drives it
makes it exactly 0 everywhere and leaves it trainable. In a gated MLP (``act(gate) * up``) only ``up`` is zeroed: with
both at 0 no gradient would ever reach the neuron again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Mask, Model

Neurons = Mapping[int, Sequence[int]]
"""Neurons by layer."""
_INTO = ("up_proj", "c_fc", "dense_h_to_4h")


def written(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """Return what each neuron writes at value 1: a view, so that writing into it edits the model.

    UsageError for a layer the model does not have, one under adapters, or one with a norm behind its MLP.
    """
    _check_layer(model, layer)
    if model.layout.post_norm(layer, "mlp") is not None:
        raise UsageError(f"model {model.name!r} has a norm behind its MLP, so its rows are not what the stream gets")
    module = _plain(model, model.layout.port("neurons", layer).module)
    weight: Tensor = module.weight.detach()
    return weight if type(module).__name__ == "Conv1D" else weight.T


def driving(model: Model, layer: int) -> list[Tensor]:
    """Return views [d_mlp ...] of the weights (and bias) without which a neuron is exactly 0."""
    _check_layer(model, layer)
    mlp: Any = model.layout.blocks[layer].get_submodule(model.layout.shape.mlp)
    name = next((name for name in _INTO if hasattr(mlp, name)), None)
    if name is None:
        raise UsageError(f"model {model.name!r}: its MLP has none of {', '.join(_INTO)}")
    module = _plain(model, getattr(mlp, name))
    weight = module.weight.detach()
    views = [weight.T if type(module).__name__ == "Conv1D" else weight]
    return views if module.bias is None else [*views, module.bias.detach()]


@torch.no_grad()
def prune(model: Model, neurons: Neurons) -> None:
    """Zero what drives ``neurons``, in place. They stay trainable; `masks` keeps them at 0 for good.

    UsageError for neurons the model does not have, or none at all.
    """
    _check(model, neurons)
    for layer, chosen in neurons.items():
        for view in driving(model, layer):
            view[list(chosen)] = 0.0


def masks(neurons: Neurons, kind: str = "neurons") -> tuple[Mask, ...]:
    """Return the edits that hold ``neurons`` (entries of any site ``kind``) at 0 in every forward."""
    return tuple(Mask(f"{kind}.{layer}", tuple(chosen)) for layer, chosen in neurons.items() if len(chosen))


def _check(model: Model, neurons: Neurons) -> None:
    if not any(len(chosen) for chosen in neurons.values()):
        raise UsageError("no neuron given; name at least one")
    width = model.layout.dims("neurons")[0]
    for layer, chosen in neurons.items():
        _check_layer(model, layer)
        bad = next((index for index in chosen if not 0 <= index < width), None)
        if bad is not None:
            raise UsageError(f"neuron {bad}: layer {layer} has 0..{width - 1}")


def _check_layer(model: Model, layer: int) -> None:
    if not 0 <= layer < model.n_layers:
        raise UsageError(f"layer {layer}: the model has 0..{model.n_layers - 1}")


def _plain(model: Model, module: Any) -> Any:
    if hasattr(module, "base_layer"):
        raise UsageError(f"model {model.name!r} carries adapters there; merge them first (merge_and_unload)")
    return module
