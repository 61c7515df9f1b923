"""Node ablation: which heads and MLPs run as they are, and which give a fixed output instead, many sets per forward.

A node is one head's output ``z.L.H``, as it enters the output projection, or what an MLP adds to the stream,
``mlp_out.L``. A keep-set says which nodes run; the others give their reference at every position: their mean over a
reference set at that position, zero, or what they gave in another run.

1. Sets of one call that agree below layer l share one run of those layers, and start at block l.
2. The residuals of the last line of sets are kept: a set that agrees with them below l starts at block l.
3. A block half whose nodes are all cut in every set of a forward is not computed: its output is known.

So a run costs what its sets differ in, and gives the same numbers as one plain forward for each set. Where a family
has a norm after the MLP (Gemma-3), ``mlp_out`` is what comes out of that norm; where it has one after the attention,
z is replaced before it, and the norm sees the kept heads together with the references of the others.

Not for use inside `Model.edited` with edits of z or mlp_out: what is not computed cannot be edited.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.model.families import Layout, Port, module_input, with_input
from cutaway.model.model import Batch
from cutaway.model.sites import parse

CPU_TOKENS, GPU_TOKENS = 2048, 65536
"""Tokens in one forward; on a CPU more rows at once save no time."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a model in order: layer by layer the heads, then the MLP."""

    n_layers: int
    n_heads: int

    @classmethod
    def of(cls, model: Model) -> "Nodes":
        return cls(model.layout.n_layers, model.layout.n_heads)

    def __len__(self) -> int:
        return self.n_layers * (self.n_heads + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Site names, in order."""
        return tuple(
            f"z.{layer}.{head}" if head < self.n_heads else f"mlp_out.{layer}"
            for layer in range(self.n_layers)
            for head in range(self.n_heads + 1)
        )

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name.startswith("z."))

    @property
    def mlps(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name.startswith("mlp_out."))

    def index(self, name: str) -> int:
        """Place of a node; UsageError for a name that is none."""
        kind, *numbers = name.split(".")
        wanted = {"z": 2, "mlp_out": 1}.get(kind)
        if wanted == len(numbers) and all(number.isdecimal() for number in numbers):
            layer, head = (*map(int, numbers), self.n_heads)[:2]
            if layer < self.n_layers and (kind == "mlp_out" or head < self.n_heads):
                return layer * (self.n_heads + 1) + head
        raise UsageError(
            f"node {name!r}: write z.L.H or mlp_out.L with L in 0..{self.n_layers - 1}, H in 0..{self.n_heads - 1}"
        )

    def layer(self, name: str) -> int:
        return self.index(name) // (self.n_heads + 1)

    def keep(self, names: Iterable[str]) -> Bool[Tensor, " nodes"]:
        """The keep-set of ``names``."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[[self.index(name) for name in names]] = True
        return mask

    def kept(self, mask: Bool[Tensor, " nodes"]) -> tuple[str, ...]:
        """The names in a keep-set, in order."""
        return tuple(name for name, inside in zip(self.names, mask.tolist(), strict=True) if inside)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a cut node gives, by position; ``rows`` is 1 where all rows get the same."""

    z: Float[Tensor, "rows layer pos head d_head"]
    mlp: Float[Tensor, "rows layer pos d_model"]
    kind: Literal["mean", "zero", "resample"]

    def __repr__(self) -> str:
        rows, layers, width = self.z.shape[:3]
        return f"Reference({self.kind}, {layers} layers, {width} positions, {rows} rows)"


@dataclass
class Work:
    """What was computed: tokens that went through attention, through an MLP, and through the unembedding."""

    forwards: int = 0
    attention: int = 0
    mlp: int = 0
    unembed: int = 0

    def operations(self, model: Model) -> int:
        """Multiply-adds of the weight matrices for these tokens (scores and norms not counted)."""
        block, shape = model.layout.blocks[0], model.layout.shape
        attention, mlp = (_weights(block.get_submodule(part)) for part in (shape.attn, shape.mlp))
        head = _weights(model.hf.get_output_embeddings())
        return self.attention * attention + self.mlp * mlp + self.unembed * head


@dataclass(frozen=True, eq=False)
class Overwrite:
    """A value put in after all nodes have theirs: for path patching."""

    site: str
    """``z.L.H``, ``mlp_out.L`` or ``resid_post.L``; the node must be kept in every set."""
    value: Float[Tensor, "sets n pos width"]


def node_means(model: Model, ids: Int[Tensor, "n pos"], *, tokens: int | None = None) -> Reference:
    """Mean output of every node at every position over the rows of ``ids``; each row is run once.

    ``tokens`` bounds one forward, as in `NodeRunner`.
    """
    step = max(1, (tokens or _room(model)) // ids.shape[1])
    total: list[Tensor] = []
    for chunk in ids.split(step):
        z, mlp = (each.sum(0, dtype=torch.float64) for each in _outputs(model, chunk))
        total = [z, mlp] if not total else [total[0] + z, total[1] + mlp]
    z, mlp = ((each / len(ids)).to(model.dtype)[None] for each in total)
    return Reference(z, mlp, "mean")


def node_zeros(model: Model, n_pos: int) -> Reference:
    """Zero for every node."""
    layout = model.layout
    z = torch.zeros(1, layout.n_layers, n_pos, layout.n_heads, layout.d_head)
    mlp = torch.zeros(1, layout.n_layers, n_pos, layout.d_model)
    return Reference(z.to(model.device, model.dtype), mlp.to(model.device, model.dtype), "zero")


def node_resample(model: Model, ids: Int[Tensor, "n pos"]) -> Reference:
    """Row i of a run gets what row i of ``ids`` gave."""
    z, mlp = _outputs(model, ids)
    return Reference(z, mlp, "resample")


def run_nodes(
    model: Model,
    ids: Int[Tensor, "n pos"],
    keep: Bool[Tensor, "sets nodes"],
    reference: Reference,
    *,
    tokens: int | None = None,
) -> Float[Tensor, "sets n vocab"]:
    """Logits at the last position of every row, with the nodes outside each keep-set replaced; see `NodeRunner`."""
    return NodeRunner(model, ids, reference, tokens=tokens).run(keep)


class NodeRunner:
    """Runs keep-sets on the same rows; remembers residuals between calls, which never changes a result.

    ids: rows of equal length, no padding.
    tokens: how many one forward may hold (at least one set is run at once); default by device.
    """

    def __init__(self, model: Model, ids: Int[Tensor, "n pos"], reference: Reference, *, tokens: int | None = None):
        rows, width = reference.z.shape[0], reference.z.shape[2]
        if width != ids.shape[1] or rows not in (1, len(ids)):
            raise UsageError(f"{reference!r} does not fit {len(ids)} rows of {ids.shape[1]} positions")
        self.model = model
        self.ids = ids.to(model.device)
        self.reference = reference
        self.nodes = Nodes.of(model)
        self.work = Work()
        self.room = max(1, (tokens or _room(model)) // ids.numel())
        """Sets in one forward."""
        self._line: list[Tensor] = []
        self._line_keep = torch.zeros(0, dtype=torch.bool)

    @torch.no_grad()
    def run(
        self,
        keep: Bool[Tensor, "sets nodes"],
        read: Callable[[Tensor], Tensor] | None = None,
        overwrite: Overwrite | None = None,
    ) -> Tensor:
        """Logits at the last position, [sets n vocab], or what ``read`` makes of a chunk of them, [sets ...].

        ``overwrite`` puts a value of each set and row at one site, after the nodes have theirs.
        """
        sets = keep.cpu().view(len(keep), self.nodes.n_layers, -1)
        found = []
        for start in range(0, len(sets), self.room):
            part = sets[start : start + self.room]
            change = None if overwrite is None else self._change(overwrite, part, slice(start, start + self.room))
            logits = self._chunk(part, change)
            found.append(logits if read is None else read(logits))
        return torch.cat(found)

    @torch.no_grad()
    def residual(self, keep: Bool[Tensor, " nodes"], layer: int) -> Float[Tensor, "n pos d_model"]:
        """``resid_pre`` of a layer under one keep-set."""
        self._extend(keep.cpu().view(self.nodes.n_layers, -1), layer)
        return self._line[layer]

    def _chunk(self, sets: Tensor, change: "_Change | None") -> Tensor:
        layers, k = self.nodes.n_layers, len(sets)
        if k == 1 and change is None:
            start = self._extend(sets[0], 0)
            logits = self._forward(sets, start, self._line[start], store=True)
        else:
            same = (sets == sets[:1]).all(0).all(-1)
            start = min(_leading(same), layers - 1, layers if change is None else change.layer)
            self._extend(sets[0], start)
            resid = self._line[start].repeat(k, 1, 1)
            logits = self._forward(sets, start, resid, change=change)
        return logits.view(k, len(self.ids), -1)

    def _extend(self, keep: Tensor, layer: int) -> int:
        """Make the line that of ``keep``, with the input of ``layer`` at least; the last block whose input it has."""
        if not self._line:
            whole = Batch(self.ids, torch.ones_like(self.ids, dtype=torch.bool))
            self._line, self._line_keep = [self.model.capture(whole, "resid_pre.0")["resid_pre.0"]], keep
        known = min(_leading((self._line_keep == keep).all(-1)), len(self._line) - 1)
        del self._line[known + 1 :]
        self._line_keep = keep
        if known < layer:
            self._forward(keep[None], known, self._line[known], store=True, stop=layer)
        return max(known, layer)

    def _forward(
        self,
        sets: Tensor,
        start: int,
        resid: Tensor,
        *,
        store: bool = False,
        stop: int | None = None,
        change: "_Change | None" = None,
    ) -> Tensor:
        """One forward of ``sets`` from block ``start``; logits [rows vocab], or nothing when it ``stop``s earlier."""
        end = self.nodes.n_layers if stop is None else stop
        tokens = resid.shape[0] * resid.shape[1]
        self.work.forwards += 1
        with _Hooks(self.model.layout) as hooks, self.model.started(start, resid):
            for layer in range(start, end):
                self.work.attention += tokens * self._cut_heads(hooks, sets[:, layer, :-1], layer)
                self.work.mlp += tokens * self._cut_mlp(hooks, sets[:, layer, -1], layer)
                if store and layer > start:
                    hooks.look(layer, self._line.append)
            if change is not None:
                hooks.rewrite(change.port, change.new)
            if stop is not None:
                hooks.stop(stop, self._line.append)
            try:
                output = self.model.hf(input_ids=self.ids.repeat(len(sets), 1), use_cache=False, logits_to_keep=1)
            except _Reached:
                return resid[:0]
        self.work.unembed += len(resid)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _cut_heads(self, hooks: "_Hooks", keep: Bool[Tensor, "sets head"], layer: int) -> bool:
        """Replace the heads that are not kept; whether the attention has to be computed."""
        if bool(keep.all()):
            return True
        layout, k = self.model.layout, len(keep)
        given = self.reference.z[:, layer]
        if not bool(keep.any()):
            output = layout.attn(layer).get_submodule(layout.shape.o)(given.flatten(-2).contiguous())
            hooks.constant(layout.attn(layer), self._rows(output, k), pair=True)
            return False
        inside = keep.to(self.model.device).repeat_interleave(len(self.ids), 0)[:, None, :, None]
        rows = given if len(given) == 1 else given.repeat(k, 1, 1, 1)
        hooks.rewrite(layout.port("z", layer), lambda z: torch.where(inside, z, rows))
        return True

    def _cut_mlp(self, hooks: "_Hooks", keep: Bool[Tensor, " sets"], layer: int) -> bool:
        if bool(keep.all()):
            return True
        layout, k = self.model.layout, len(keep)
        port, given = layout.port("mlp_out", layer), self.reference.mlp[:, layer]
        if not bool(keep.any()):
            hooks.constant(port.module, self._rows(given, k))
            mlp = layout.blocks[layer].get_submodule(layout.shape.mlp)
            if port.module is not mlp:
                hooks.idle(mlp)
            return False
        inside = keep.to(self.model.device).repeat_interleave(len(self.ids), 0)[:, None, None]
        rows = given if len(given) == 1 else given.repeat(k, 1, 1)
        hooks.rewrite(port, lambda value: torch.where(inside, value, rows))
        return True

    def _rows(self, value: Tensor, k: int) -> Tensor:
        """``value`` [1|n pos d_model] for the rows of k sets."""
        return value.expand(k * len(self.ids), -1, -1) if len(value) == 1 else value.repeat(k, 1, 1)

    def _change(self, overwrite: Overwrite, sets: Tensor, part: slice) -> "_Change":
        (site,) = parse(overwrite.site, self.model.layout)
        if site.kind not in ("z", "mlp_out", "resid_post") or site.layer is None:
            raise UsageError(f"overwrite {overwrite.site!r}: z.L.H, mlp_out.L or resid_post.L")
        head = site.head
        if site.kind == "z" and head is None:
            raise UsageError(f"overwrite {overwrite.site!r}: name one head, z.L.H")
        if site.kind != "resid_post" and not bool(sets[:, site.layer, -1 if head is None else head].all()):
            raise UsageError(f"overwrite {overwrite.site!r}: this node is cut; keep it")
        value = overwrite.value[part].flatten(0, 1)

        def new(old: Tensor) -> Tensor:
            if head is None:
                return value
            changed = old.clone()
            changed[:, :, head] = value
            return changed

        return _Change(site.layer, self.model.layout.port(site.kind, site.layer), new)


@dataclass(frozen=True)
class _Change:
    layer: int
    port: Port
    new: Callable[[Tensor], Tensor]


class _Reached(Exception):  # noqa: N818  it is no error
    """The block where the forward was to stop."""


@dataclass
class _Hooks:
    """Hooks and stand-ins for one forward; all gone afterwards."""

    layout: Layout
    handles: list[Any] = field(default_factory=list)
    replaced: list[nn.Module] = field(default_factory=list)

    def __enter__(self) -> "_Hooks":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        for module in self.replaced:
            vars(module).pop("forward", None)

    def constant(self, module: nn.Module, value: Tensor, pair: bool = False) -> None:
        """Let ``module`` return ``value``; attention returns its weights beside it."""
        self._stand_in(module, lambda *_a, **_k: (value, None) if pair else value)

    def idle(self, module: nn.Module) -> None:
        self._stand_in(module, lambda *args, **kwargs: module_input(args, kwargs))

    def rewrite(self, port: Port, new: Callable[[Tensor], Tensor]) -> None:
        """Put ``new(value)`` in place of a port's value."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tensor = module_input(args, kwargs)
            tensor = port.write(tensor, tensor, new(port.read(tensor, tensor)))
            return with_input(args, kwargs, tensor)

        def after(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            given, tensor = module_input(args, kwargs), output[0] if isinstance(output, tuple) else output
            tensor = port.write(tensor, given, new(port.read(tensor, given)))
            return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

        if port.side == "in":
            self.handles.append(port.module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self.handles.append(port.module.register_forward_hook(after, with_kwargs=True))

    def look(self, layer: int, keep: Callable[[Tensor], None]) -> None:
        """Show ``keep`` what enters a block."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(module_input(args, kwargs))

        self.handles.append(self.layout.blocks[layer].register_forward_pre_hook(before, with_kwargs=True))

    def stop(self, layer: int, keep: Callable[[Tensor], None]) -> None:
        """End the forward where block ``layer`` would begin."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(module_input(args, kwargs))
            raise _Reached

        self.handles.append(self.layout.blocks[layer].register_forward_pre_hook(before, with_kwargs=True))

    def _stand_in(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward
        self.replaced.append(module)


@torch.no_grad()
def read_out(model: Model, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Logits of residual vectors as if the last block had left them: the final norm once, then the unembedding."""
    port, rows = model.layout.port("resid_post", model.layout.n_layers - 1), resid[:, None]
    ids = torch.zeros(len(resid), 1, dtype=torch.long, device=model.device)
    with _Hooks(model.layout) as hooks, model.started(model.layout.n_layers - 1, rows):
        hooks.rewrite(port, lambda _: rows)
        logits: Tensor = model.hf(input_ids=ids, use_cache=False).logits[:, 0]
    return logits


def _outputs(model: Model, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Z [n layer pos head d_head] and mlp_out [n layer pos d_model] of every layer, from one forward."""
    with torch.no_grad():
        found = model.capture(model.batch(ids.tolist()), ["z.*", "mlp_out.*"])
    layers = range(model.layout.n_layers)
    return torch.stack([found[f"z.{i}"] for i in layers], 1), torch.stack([found[f"mlp_out.{i}"] for i in layers], 1)


def _weights(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters() if each.ndim > 1)


def _leading(same: Bool[Tensor, " layer"]) -> int:
    """How many layers from the first agree."""
    return int(same.int().cumprod(0).sum())


def _room(model: Model) -> int:
    return GPU_TOKENS if model.device.type == "cuda" else CPU_TOKENS
