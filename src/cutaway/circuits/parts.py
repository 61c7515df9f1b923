"""The weights and modules of a model that the circuit engine works with, in one form for every family.

Norms in front of readers are root-mean-square norms, layer norms or absent; in all three
``norm(x) = gain * scale(x) * centred(x) + bias`` with one number ``scale`` for a position. Norms behind attention or
MLP (Gemma, OLMo) mix the heads; what a head adds to the stream is counted with the norm's scale held at its value in
the run at hand, which makes the sum of all heads exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.model.families import Layout

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_PROBE_SEED = 0


@dataclass(frozen=True)
class Norm:
    """A norm as numbers. ``gain`` is None where there is no norm; the module may then be missing or an identity."""

    module: nn.Module | None
    gain: Float[Tensor, " d_model"] | None = None
    bias: Float[Tensor, " d_model"] | None = None
    eps: float = 0.0
    centres: bool = False

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Return the norm of ``x`` by the model's own module, without its hooks."""
        return x if self.module is None else type(self.module).forward(self.module, x)

    def frozen(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Return the same values, with the scale a constant to the backward pass."""
        if self.gain is None:
            return x
        normed = self.centred(x.float()) * self.scale(x).detach() * self.gain
        return (normed if self.bias is None else normed + self.bias).to(x.dtype)

    def centred(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """Return what the norm multiplies the centred ``x`` by, in fp32."""
        if self.gain is None:
            return torch.ones_like(x[..., :1], dtype=torch.float32)
        return (self.centred(x.float()).square().mean(-1, keepdim=True) + self.eps).rsqrt()


@dataclass(frozen=True)
class Block:
    """One layer: its norms, its projections by head, and the modules to hook."""

    entry: Norm
    middle: Norm
    """In front of the MLP."""
    middle_module: nn.Module
    """The module whose input is the stream that the MLP reads: its norm, or the MLP itself."""
    mlp: nn.Module
    projections: tuple[nn.Module, ...]
    """Query, key and value projections, or the one that is all three."""
    interleaved: bool
    o: nn.Module
    after_attn: Norm
    after_mlp: Norm
    w_q: Float[Tensor, "head d_head d_model"]
    w_k: Float[Tensor, "kv_head d_head d_model"]
    w_v: Float[Tensor, "kv_head d_head d_model"]
    b_q: Float[Tensor, "head d_head"] | None
    b_k: Float[Tensor, "kv_head d_head"] | None
    b_v: Float[Tensor, "kv_head d_head"] | None
    w_o: Float[Tensor, "head d_head d_model"]
    b_o: Float[Tensor, " d_model"] | None

    def split(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v [... head d_head] out of what the projections gave."""
        d_head = self.w_q.shape[1]
        if len(outputs) == 3:
            q, k, v = (output.unflatten(-1, (-1, d_head)) for output in outputs)
        elif self.interleaved:
            q, k, v = outputs[0].unflatten(-1, (-1, 3, d_head)).unbind(-2)
        else:
            q, k, v = outputs[0].unflatten(-1, (-1, d_head)).split([len(w) for w in (self.w_q, self.w_k, self.w_v)], -2)
        return q, k, v

    def join(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Return what the projections would have given for q, k, v [... head d_head]."""
        if len(self.projections) == 3:
            return q.flatten(-2), k.flatten(-2), v.flatten(-2)
        if self.interleaved:
            return (torch.stack([q, k, v], -2).flatten(-3),)
        return (torch.cat([q, k, v], -2).flatten(-2),)

    def head_scale(self, z: Float[Tensor, "*rows head d_head"]) -> Float[Tensor, "*rows 1"]:
        """Return what the norm behind attention multiplies by (1 where there is none), given all heads' outputs."""
        if self.after_attn.gain is None:
            return torch.ones_like(z[..., 0, :1], dtype=torch.float32)
        total = torch.einsum("...he,hed->...d", z, self.w_o)
        return self.after_attn.scale(total if self.b_o is None else total + self.b_o)

    def write(self, z: Float[Tensor, "*rows head d_head"]) -> Float[Tensor, "head *rows d_model"]:
        """Return what scaled head outputs add to the stream; a bias belongs to no head."""
        gain = self.after_attn.gain
        added = torch.einsum("...he,hed->h...d", z, self.w_o)
        return added if gain is None else added * gain.to(added)


@dataclass(frozen=True)
class Anatomy:
    """All layers and the final norm of a model."""

    model: Model
    blocks: tuple[Block, ...]
    final: Norm

    @property
    def d_model(self) -> int:
        return self.model.d_model


def anatomy(model: Model) -> Anatomy:
    """Take ``model`` apart; UsageError where a part has a form that the circuit engine cannot linearise."""
    layout = model.layout
    blocks = tuple(_block(layout, layer) for layer in range(layout.n_layers))
    decoder: Any = layout.decoder
    final = next((getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)), None)
    if final is None:
        raise UsageError(f"{type(decoder).__name__} has no final norm of a known name ({', '.join(_FINAL_NORMS)})")
    return Anatomy(model, blocks, _norm(final))


def _block(layout: Layout, layer: int) -> Block:
    block: Any = layout.blocks[layer]
    attn: Any = layout.attn(layer)
    shape, d_head = layout.shape, layout.d_head
    mlp = block.get_submodule(shape.mlp)
    middle = layout.middle(layer)
    if hasattr(attn, "sinks"):
        raise UsageError("circuits: attention with sinks writes what no token sent; this family is not supported")
    names = [shape.qkv] if shape.qkv else ["q_proj", "k_proj", "v_proj"]
    projections = tuple(attn.get_submodule(name) for name in names)
    sizes = (layout.n_heads, layout.n_kv_heads, layout.n_kv_heads)
    weights = [_rows(module, "weight") for module in projections]
    biases = [None if getattr(module, "bias", None) is None else _rows(module, "bias") for module in projections]
    w_q, w_k, w_v = _by_head(weights, sizes, d_head, shape.interleaved)
    b_q, b_k, b_v = _by_head(biases, sizes, d_head, shape.interleaved) if biases[0] is not None else (None,) * 3
    o = attn.get_submodule(shape.o)
    entry = layout.entry(layer)
    return Block(
        entry=_norm(None if entry is attn else entry),
        middle=_norm(None if middle is mlp else middle),
        middle_module=middle,
        mlp=mlp,
        projections=projections,
        interleaved=shape.interleaved,
        o=o,
        after_attn=_norm(layout.post_norm(layer, "attn")),
        after_mlp=_norm(layout.post_norm(layer, "mlp")),
        w_q=w_q,
        w_k=w_k,
        w_v=w_v,
        b_q=b_q,
        b_k=b_k,
        b_v=b_v,
        w_o=_rows(o, "weight").T.unflatten(0, (-1, d_head)),
        b_o=getattr(o, "bias", None),
    )


def _rows(module: nn.Module, name: str) -> Tensor:
    """Return a projection's weight as [out in], or its bias; no copy."""
    tensor = getattr(module, name, None)
    plain = type(module).__name__ in ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")
    if not isinstance(tensor, Tensor) or not plain or not tensor.is_floating_point():
        raise UsageError(
            f"circuits read a projection's weight, and {type(module).__name__} is no plain layer;"
            " merge the adapter (peft: merge_and_unload) or load the model unquantised"
        )
    return tensor.T if type(module).__name__ == "Conv1D" and name == "weight" else tensor


def _by_head(parts: Sequence[Any], sizes: tuple[int, int, int], d_head: int, interleaved: bool) -> tuple[Tensor, ...]:
    if len(parts) == 3:
        return tuple(part.unflatten(0, (-1, d_head)) for part in parts)
    if interleaved:
        return tuple(parts[0].unflatten(0, (-1, 3, d_head)).unbind(1))
    return tuple(parts[0].unflatten(0, (-1, d_head)).split(list(sizes), 0))


def _norm(module: Any) -> Norm:
    """Return a norm as numbers, checked against the module itself on random input."""
    if module is None or isinstance(module, nn.Identity):
        return Norm(module)
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
    centres = isinstance(module, nn.LayerNorm)
    weight = module.weight
    if weight is None:
        raise UsageError(f"{type(module).__name__}: a norm without weights is not supported by circuits")
    gain = weight.detach().float()
    if not centres:
        # Gemma multiplies by 1 + weight; what the module does to ones says which.
        ones = torch.ones_like(weight)
        gain = type(module).forward(module, ones).detach().float() * (1 + eps) ** 0.5
    bias = module.bias.detach().float() if centres and module.bias is not None else None
    norm = Norm(module, gain, bias, eps, centres)
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    probe = torch.randn(4, weight.numel(), generator=generator).to(weight)
    ours = norm.centred(probe.float()) * norm.scale(probe) * gain + (0.0 if bias is None else bias)
    theirs = norm(probe).float()
    if not torch.allclose(ours, theirs, rtol=2e-2 if weight.dtype != torch.float32 else 1e-4, atol=1e-3):
        raise UsageError(f"{type(module).__name__}: this norm is neither a root-mean-square nor a layer norm")
    return norm
