"""What every reader received in a forward pass, and the answer's gradient there, from the fused forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.circuits.grouping import ungrouped
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import Anatomy, Block
from cutaway.circuits.record import Beginning, Record
from cutaway.circuits.wiring import Wiring
from cutaway.model.families import module_input, with_input


@dataclass
class Seen:
    """What one layer's readers received and what came back: rows are [point pair]."""

    x: Tensor
    """Stream in front of attention."""
    qkv: tuple[Tensor, Tensor, Tensor]
    middle: Tensor
    """Stream in front of the MLP."""
    mlp_in: Tensor


def gradients(
    body: Anatomy,
    wiring: Wiring,
    pairs: Pairs,
    clean: Record,
    instead: Record,
    before: Beginning,
    points: list[float],
    *,
    frozen: bool = False,
) -> tuple[list[Seen], list[tuple[Tensor, ...]], Tensor]:
    """Run forward and backward at ``points`` between reference (0) and clean (1), all in one batch.

    Returns what each layer's readers saw, the gradients of its q, k, v and MLP input, and the gradient of what the
    logits read. Rows are [point pair]. ``frozen`` holds every norm's scale constant in the backward pass.
    """
    at = torch.tensor(points, device=clean.embed.device, dtype=clean.embed.dtype)[:, None, None, None]
    embed = (instead.embed + at * (clean.embed - instead.embed)).flatten(0, 1).requires_grad_()
    batch = body.model.batch(pairs.clean[:, clean.start :].tolist() * len(points))
    given = batch.forward_kwargs() | before.forward_kwargs(len(points))
    with torch.enable_grad(), _watched(body, wiring) as (seen, last), ungrouped(body, wiring):
        with _frozen(body) if frozen else nullcontext(), body.model.started(0, embed):
            logits = body.model.hf(**given, logits_to_keep=1).logits
        answer = pairs.value(logits[:, -1].unflatten(0, (len(points), -1))).sum()
        wanted = [tensor for layer in seen for tensor in (*layer.qkv, layer.mlp_in)] + last
        got = torch.autograd.grad(answer, wanted, materialize_grads=True)
    layers = [tuple(got[4 * layer : 4 * layer + 4]) for layer in range(len(seen))]
    return seen, layers, got[-1]


@contextmanager
def _watched(body: Anatomy, wiring: Wiring) -> Iterator[tuple[list[Seen], list[Tensor]]]:
    """Collect, in the next forward, what each reader receives; the tensors stay in the graph."""
    seen: list[Seen] = []
    last: list[Tensor] = []
    handles: list[Any] = []
    for layer, block in enumerate(body.blocks):
        handles += _watch_layer(body, wiring, layer, block, seen)
    final = body.final.module
    assert final is not None
    handles.append(final.register_forward_pre_hook(lambda _module, args: last.append(args[0])))
    try:
        yield seen, last
    finally:
        for handle in handles:
            handle.remove()


def _watch_layer(body: Anatomy, wiring: Wiring, layer: int, block: Block, seen: list[Seen]) -> list[Any]:
    x: list[Tensor] = []
    outputs: list[Tensor] = []
    qkv: list[tuple[Tensor, Tensor, Tensor]] = []
    middle: list[Tensor] = []
    repeats = wiring.n_heads // wiring.n_kv_heads if wiring.grouping != "shared" else 1

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x.append(module_input(args, kwargs))

    def before_middle(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        middle.append(module_input(args, kwargs))

    def before_mlp(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A copy: where no norm stands in front, the stream itself also goes around the MLP.
        given = module_input(args, kwargs)
        given = given.clone() if block.middle.gain is None else given
        seen.append(Seen(x[0], qkv[0], middle[0], given))
        return with_input(args, kwargs, given)

    def place(index: int) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            part = output.unflatten(-1, (-1, block.w_q.shape[1]))
            if index > 0 and repeats > 1:
                part = part.repeat_interleave(repeats, -2)
            outputs.append(part)
            if index == 2:
                qkv.append((outputs[0], outputs[1], outputs[2]))
            return part.flatten(-2)

        return hook

    def fused(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        qkv.append(block.split([output]))
        return block.join(*qkv[0])[0]

    hooks = [fused] if len(block.projections) == 1 else [place(index) for index in range(3)]
    return [
        body.model.layout.blocks[layer].register_forward_pre_hook(enter, with_kwargs=True),
        *(module.register_forward_hook(hook) for module, hook in zip(block.projections, hooks, strict=True)),
        block.middle_module.register_forward_pre_hook(before_middle, with_kwargs=True),
        block.mlp.register_forward_pre_hook(before_mlp, with_kwargs=True),
    ]


@contextmanager
def _frozen(body: Anatomy) -> Iterator[None]:
    norms = [body.final]
    for block in body.blocks:
        norms += [block.entry, block.middle, block.after_attn, block.after_mlp]
    used = [norm for norm in norms if norm.gain is not None]
    try:
        for norm in used:
            assert norm.module is not None
            norm.module.forward = norm.frozen
        yield
    finally:
        for norm in used:
            vars(norm.module).pop("forward", None)
