"""How the neurons of a layer read the residual stream, as numbers, for every MLP that is plain or gated.

A neuron reads the normed stream along one direction (plain) or two (gate and up). With the norm's gain folded in and
the mean taken out where the norm does so, ``pre = scale(x) * (x . direction) + constant`` exactly, for layer norms and
root-mean-square norms alike, so the stream's parts add up: pre is the sum of what each part gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model import Model

_ACTS = ("act_fn", "act", "activation_fn")
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True, eq=False)
class Norm:
    """``gain * scale(x) * centred(x) + bias``."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    centres: bool

    def centred(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """Return what the norm multiplies the centred stream by."""
        return (self.centred(x).square().mean(-1) + self.eps).rsqrt()


@dataclass(frozen=True, eq=False)
class Reader:
    """All neurons of one layer. ``way`` is 0 for a plain MLP's input or the gate, 1 for the up projection."""

    layer: int
    norm: Norm
    directions: Float[Tensor, "way neuron d_model"]
    """The norm's gain folded in, the mean taken out where the norm centres."""
    constants: Float[Tensor, "way neuron"]
    act: Callable[[Tensor], Tensor]
    w_out: Float[Tensor, "neuron d_model"]
    parallel: bool
    """The MLP reads what the layer's attention reads, so heads of its own layer do not reach it."""

    def value(self, pre: Float[Tensor, " way *rows"]) -> Float[Tensor, "*rows"]:
        """Return activations from pre-activations: act(pre), or act(gate) * up."""
        return self.act(pre[0]) if len(pre) == 1 else self.act(pre[0]) * pre[1]

    def slopes(self, pre: Float[Tensor, " way *rows"]) -> Float[Tensor, " way *rows"]:
        """Return the derivative of the activation by each pre-activation."""
        with torch.enable_grad():
            given = pre.detach().clone().requires_grad_()
            return torch.autograd.grad(self.value(given).sum(), given)[0]

    def pre(self, x: Float[Tensor, "*rows d_model"], neuron: int) -> Float[Tensor, " way *rows"]:
        """Return a neuron's pre-activations for streams ``x``."""
        dots = torch.einsum("...d,wd->w...", x, self.directions[:, neuron])
        shape = (-1, *[1] * (dots.ndim - 1))
        return dots * self.norm.scale(x) + self.constants[:, neuron].view(shape)


def reader(model: Model, layer: int) -> Reader:
    """Return how layer ``layer`` reads; UsageError for a layer or an MLP of a form that this does not cover."""
    layout = model.layout
    if not 0 <= layer < layout.n_layers:
        raise UsageError(f"layer {layer}: {model.name} has 0..{layout.n_layers - 1}")
    block: Any = layout.blocks[layer]
    mlp: Any = block.get_submodule(layout.shape.mlp)
    if layout.post_norm(layer, "mlp") is not None or layout.post_norm(layer, "attn") is not None:
        raise UsageError(f"{model.name} norms what attention or MLP add; parts of its stream do not add up singly")
    act = next((getattr(mlp, name) for name in _ACTS if hasattr(mlp, name)), None)
    if act is None or not hasattr(mlp, layout.shape.down):
        raise UsageError(f"layer {layer} of {model.name}: {type(mlp).__name__} is no plain or gated MLP")
    weights, biases = _inputs(mlp)
    norm = norm_of(layout.middle(layer))
    folded = torch.stack([norm.centred(weight * norm.gain) for weight in weights])
    constants = torch.stack([weight @ norm.bias + bias for weight, bias in zip(weights, biases, strict=True)])
    down = mlp.get_submodule(layout.shape.down)
    parallel = bool(getattr(block, "use_parallel_residual", False))
    return Reader(layer, norm, folded, constants, act, linear(down)[0].T, parallel)


def linear(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    """Return a projection's weight [out in] and bias in fp32; UsageError for a quantised or adapted one."""
    weight = getattr(module, "weight", None)
    if type(module).__name__ not in ("Linear", "Conv1D") or not isinstance(weight, Tensor):
        raise UsageError(f"{type(module).__name__} is no plain projection; merge adapters, load unquantised")
    turned = (weight.T if type(module).__name__ == "Conv1D" else weight).detach().float()
    bias = getattr(module, "bias", None)
    return turned, turned.new_zeros(len(turned)) if bias is None else bias.detach().float()


def norm_of(module: nn.Module) -> Norm:
    """Return a norm as numbers, checked on random input; UsageError where it is of another kind."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise UsageError(f"{type(module).__name__}: a norm without weights is not supported")
    centres = isinstance(module, nn.LayerNorm)
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
    bias = getattr(module, "bias", None)
    shift = torch.zeros_like(weight).float() if bias is None else bias.detach().float()
    norm = Norm(weight.detach().float(), shift, eps, centres)
    probe = torch.randn(4, weight.numel(), generator=torch.Generator().manual_seed(0)).to(weight.device)
    ours = norm.centred(probe) * norm.scale(probe)[:, None] * norm.gain + norm.bias
    with torch.no_grad():
        theirs = module(probe.to(weight.dtype)).float()
    if not torch.allclose(ours, theirs, rtol=2e-2 if weight.dtype != torch.float32 else 1e-4, atol=1e-3):
        raise UsageError(f"{type(module).__name__}: neither a layer norm nor a root-mean-square norm")
    return norm


def final_norm(model: Model) -> Norm:
    """Return the norm in front of the unembedding."""
    decoder: Any = model.layout.decoder
    found = next((getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)), None)
    if found is None:
        raise UsageError(f"{type(decoder).__name__} has no final norm of a known name")
    return norm_of(found)


def _inputs(mlp: Any) -> tuple[list[Tensor], list[Tensor]]:
    if hasattr(mlp, "gate_up_proj"):
        weight, bias = linear(mlp.gate_up_proj)
        return list(weight.chunk(2)), list(bias.chunk(2))
    names = ("gate_proj", "up_proj") if hasattr(mlp, "gate_proj") else ("c_fc", "dense_h_to_4h")
    pairs = [linear(getattr(mlp, name)) for name in names if hasattr(mlp, name)]
    if not pairs:
        raise UsageError(f"{type(mlp).__name__} has no input projection of a known name")
    return [weight for weight, _ in pairs], [bias for _, bias in pairs]
