"""Where things are inside a Hugging Face decoder, read from the shape of its modules, not from class names.

A block belongs to a shape when it holds the attention and MLP attributes of one line of `SHAPES`. The layout
keeps attribute paths and looks modules up at use, so an adapter wrapped around a projection later is seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cutaway.errors import UsageError

HEAD_KINDS = frozenset({"q", "k", "v", "z", "pattern"})


@dataclass(frozen=True)
class Shape:
    """Attribute names of one way to build a block."""

    name: str
    attn: str
    mlp: str
    o: str
    """Output projection, inside the attention."""
    down: str
    """Down projection, inside the MLP."""
    qkv: str = ""
    """Fused projection, or empty where q_proj, k_proj and v_proj are apart."""
    interleaved: bool = False
    """Fused values are ordered head by head (q k v, q k v, ...) and not q, then k, then v."""


SHAPES = (
    Shape("llama", attn="self_attn", mlp="mlp", o="o_proj", down="down_proj"),
    Shape("phi3", attn="self_attn", mlp="mlp", o="o_proj", down="down_proj", qkv="qkv_proj"),
    Shape("gpt2", attn="attn", mlp="mlp", o="c_proj", down="c_proj", qkv="c_attn"),
    Shape(
        "gpt_neox",
        attn="attention",
        mlp="mlp",
        o="dense",
        down="dense_4h_to_h",
        qkv="query_key_value",
        interleaved=True,
    ),
)

_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""Norms applied to what attention and MLP add; the second name gives such a block away."""
_MID_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
_FIRST_NORMS = ("input_layernorm", "ln_1")
_HEAD_NORMS = {"q": ("q_norm", "q_layernorm"), "k": ("k_norm", "k_layernorm"), "v": ("v_norm",)}


@dataclass(frozen=True)
class Port:
    """How a site's value is read from, and written back into, what enters or leaves a module."""

    module: nn.Module
    side: Literal["in", "out"]
    read: Callable[[Tensor, Tensor], Tensor]
    """``(the module's tensor, its input)`` to the site's value."""
    write: Callable[[Tensor, Tensor, Tensor], Tensor]
    """``(the module's tensor, its input, new value)`` to the module's new tensor."""


@dataclass(frozen=True)
class Layout:
    """The addressable parts of one model."""

    hf: Any
    decoder: nn.Module
    blocks: nn.ModuleList
    prefix: str
    """Path of ``blocks`` in the model, adapter wrappers taken off: ``model.layers``."""
    shape: Shape
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    vocab_size: int

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def attn(self, layer: int) -> nn.Module:
        return self.blocks[layer].get_submodule(self.shape.attn)

    def heads(self, kind: str) -> int:
        return self.n_kv_heads if kind in {"k", "v"} else self.n_heads

    def dims(self, kind: str) -> tuple[int, ...]:
        """Return the size of a site's value at one position."""
        if kind in HEAD_KINDS:
            return (self.heads(kind), self.d_head)
        if kind == "neurons":
            return (_neurons(self, 0).weight.numel() // self.d_model,)
        return (self.vocab_size,) if kind == "logits" else (self.d_model,)

    def port(self, kind: str, layer: int | None) -> Port:
        """Return the port of a site; UsageError with the reason where the model has no such value."""
        if layer is None:
            return _end_port(self, kind)
        block, attn, shape = self.blocks[layer], self.attn(layer), self.shape
        ports: dict[str, Callable[[], Port]] = {
            "resid_pre": lambda: _plain(block, "in"),
            "resid_post": lambda: _plain(block, "out"),
            "resid_mid": lambda: _plain(_mid(self, block), "in"),
            "attn_out": lambda: _plain(_post_norm(block, 0) or attn, "out"),
            "mlp_out": lambda: _plain(_post_norm(block, 1) or block.get_submodule(shape.mlp), "out"),
            "neurons": lambda: _plain(_neurons(self, layer), "in"),
            "z": lambda: _split_heads(attn.get_submodule(shape.o), "in", self.d_head),
        }
        return ports[kind]() if kind in ports else _projection(self, attn, kind)

    def middle(self, layer: int) -> nn.Module:
        """Return the module whose input is the stream that the MLP reads: its norm, or where it has none the MLP."""
        block: Any = self.blocks[layer]
        if getattr(block, "use_parallel_residual", False):
            return block.get_submodule("post_attention_layernorm")
        return _mid(self, block)

    def post_norm(self, layer: int, part: Literal["attn", "mlp"]) -> nn.Module | None:
        """Return the norm applied to what attention or MLP adds to the stream; None in most families."""
        return _post_norm(self.blocks[layer], ("attn", "mlp").index(part))

    def entry(self, layer: int) -> nn.Module:
        """Return the first module of a block: its input is the residual stream that attention adds to."""
        block = self.blocks[layer]
        return next((getattr(block, name) for name in _FIRST_NORMS if hasattr(block, name)), self.attn(layer))

    def outputs(self) -> dict[str, str]:
        """Return ``path inside a block -> kind`` for every module whose output is a site."""
        block, shape = self.blocks[0], self.shape
        paths = {"": "resid_post"}
        for index, (part, last, kind) in enumerate(
            ((shape.attn, shape.o, "attn_out"), (shape.mlp, shape.down, "mlp_out"))
        ):
            norm = _post_norm(block, index)
            names = [part, f"{part}.{last}"]
            if norm is not None:
                names = [name for name, module in block.named_children() if module is norm]
            paths.update(dict.fromkeys(names, kind))
        if not shape.qkv:
            for kind, norms in _HEAD_NORMS.items():
                last = next((norm for norm in norms if hasattr(self.attn(0), norm)), f"{kind}_proj")
                paths[f"{shape.attn}.{last}"] = kind
        return paths


def resolve(hf: Any) -> Layout:
    """Find the decoder inside ``hf``, through adapter wrappers; UsageError where no shape fits its blocks."""
    embed = hf.get_input_embeddings()
    for path, module in hf.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        decoder = hf.get_submodule(path.rpartition(".")[0])
        shape = _shape_of(module)
        if shape is None or all(child is not embed for child in decoder.children()):
            continue
        config = hf.config.get_text_config()
        n_heads = config.num_attention_heads
        return Layout(
            hf=hf,
            decoder=decoder,
            blocks=module,
            prefix=path.removeprefix("base_model.model."),
            shape=shape,
            n_heads=n_heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            d_model=config.hidden_size,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
            vocab_size=config.vocab_size,
        )
    known = ", ".join(shape.name for shape in SHAPES)
    raise UsageError(
        f"{type(hf).__name__} has no blocks of a known shape ({known}); its forward works, its sites have no names"
    )


def module_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the tensor a module was called on, as a forward hook sees its arguments."""
    tensor: Tensor = args[0] if args else kwargs[input_name(kwargs)]
    return tensor


def input_name(kwargs: dict[str, Any]) -> str:
    """Return the keyword of that tensor where it was not given by position."""
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a module's arguments with ``new`` for the tensor it is called on, as a forward pre-hook returns them."""
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, input_name(kwargs): new})


def _shape_of(blocks: nn.ModuleList) -> Shape | None:
    for shape in SHAPES:
        need = [f"{shape.attn}.{shape.o}", shape.mlp]
        need += [f"{shape.attn}.{name}" for name in ([shape.qkv] if shape.qkv else ["q_proj", "k_proj"])]
        scaled = any(hasattr(block, "residual_multiplier") for block in blocks)
        if not scaled and all(_has(block, path) for block in blocks for path in need):
            return shape
    return None


def _has(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _post_norm(block: nn.Module, which: int) -> nn.Module | None:
    for names in _POST_NORMS:
        if hasattr(block, names[1]):
            return block.get_submodule(names[which])
    return None


def _mid(layout: Layout, block: nn.Module) -> nn.Module:
    """Return the module whose input is the residual stream between attention and MLP."""
    parallel = UsageError(
        f"resid_mid: blocks of this model ({layout.shape.name}) run attention and MLP side by side on the"
        " same input, so there is no stream between them; use resid_pre or resid_post"
    )
    if getattr(block, "use_parallel_residual", False):
        raise parallel
    used = _post_norm(block, 0)
    for name in _MID_NORMS:
        if hasattr(block, name) and getattr(block, name) is not used:
            return block.get_submodule(name)
    if used is None:
        raise parallel
    return block.get_submodule(layout.shape.mlp)


def _neurons(layout: Layout, layer: int) -> Any:
    mlp = layout.blocks[layer].get_submodule(layout.shape.mlp)
    if not hasattr(mlp, layout.shape.down):
        raise UsageError(
            f"neurons: the MLP of layer {layer} has no {layout.shape.down!r} (a mixture of experts?); use mlp_out"
        )
    return mlp.get_submodule(layout.shape.down)


def _plain(module: nn.Module, side: Literal["in", "out"]) -> Port:
    return Port(module, side, lambda tensor, _: tensor, lambda _tensor, _input, new: new)


def _end_port(layout: Layout, kind: str) -> Port:
    if kind == "embed":
        return _plain(layout.hf.get_input_embeddings(), "out")
    if getattr(layout.hf.config.get_text_config(), "final_logit_softcapping", None):
        raise UsageError("logits: this model caps its logits after the last module, so they cannot be edited")
    return _plain(layout.hf.get_output_embeddings(), "out")


def _split_heads(module: nn.Module, side: Literal["in", "out"], d_head: int) -> Port:
    return Port(
        module,
        side,
        lambda tensor, _: tensor.unflatten(-1, (-1, d_head)),
        lambda _tensor, _input, new: new.flatten(-2),
    )


def _projection(layout: Layout, attn: nn.Module, kind: str) -> Port:
    if layout.shape.qkv:
        return _fused(layout, attn.get_submodule(layout.shape.qkv), "qkv".index(kind))
    norm = next((getattr(attn, name) for name in _HEAD_NORMS[kind] if hasattr(attn, name)), None)
    if norm is None:
        return _split_heads(attn.get_submodule(f"{kind}_proj"), "out", layout.d_head)
    heads = layout.heads(kind)

    def read(tensor: Tensor, given: Tensor) -> Tensor:
        if tensor.ndim == 3:
            return tensor.unflatten(-1, (heads, -1))
        return tensor.transpose(1, 2) if _heads_first(given, heads) else tensor

    def write(tensor: Tensor, given: Tensor, new: Tensor) -> Tensor:
        if tensor.ndim == 3:
            return new.flatten(-2)
        return new.transpose(1, 2) if _heads_first(given, heads) else new

    return Port(norm, "out", read, write)


def _heads_first(given: Tensor, heads: int) -> bool:
    """Say whether a norm over heads is given [batch head pos d_head] and not [batch pos head d_head].

    Families differ. Sizes tell them apart except where pos equals head; then the strides of the view do.
    """
    if given.shape[1] != given.shape[2]:
        return given.shape[1] == heads
    return given.stride(1) < given.stride(2)


def _fused(layout: Layout, module: nn.Module, which: int) -> Port:
    d_head, sizes = layout.d_head, (layout.n_heads, layout.n_kv_heads, layout.n_kv_heads)
    if layout.shape.interleaved:

        def read(tensor: Tensor, _: Tensor) -> Tensor:
            return tensor.unflatten(-1, (-1, 3, d_head))[..., which, :]

        def write(tensor: Tensor, _: Tensor, new: Tensor) -> Tensor:
            parts = list(tensor.unflatten(-1, (-1, 3, d_head)).unbind(-2))
            parts[which] = new
            return torch.stack(parts, -2).flatten(-3)

        return Port(module, "out", read, write)
    widths = [size * d_head for size in sizes]

    def read_part(tensor: Tensor, _: Tensor) -> Tensor:
        return tensor.split(widths, -1)[which].unflatten(-1, (-1, d_head))

    def write_part(tensor: Tensor, _: Tensor, new: Tensor) -> Tensor:
        parts = list(tensor.split(widths, -1))
        parts[which] = new.flatten(-2)
        return torch.cat(parts, -1)

    return Port(module, "out", read_part, write_part)
