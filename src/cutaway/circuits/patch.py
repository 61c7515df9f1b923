"""Run circuits: many sets of kept edges through one forward, on the model's own modules.

What reader r receives in a circuit is the stream as it stands, plus, for each writer u whose edge to r is cut, the
difference between what u writes in the reference run and what it writes now:

    x_r = sum_u current_u + sum_u (1 - mask[u, r]) (reference_u - current_u)

1. The reference run is recorded once: head outputs z and MLP outputs, never each head's share of the stream.
2. The K circuits are rows of one batch. At each layer the differences of all earlier writers, a [writer, pos d_model]
   matrix for each row, are multiplied by the cut edges of the layer's readers.
3. Each reader's input goes through the model's norm and that reader's slice of the projection; rotary angles, masks,
   attention and MLP are the model's own.
4. Circuits that cut nothing below layer l start at layer l from the clean run (`Model.started`).
5. Tokens before the first that differs between the runs are read once (`record.beginning`): nothing there can differ.

All edges kept gives the clean logits; none gives the reference's. "Now" is the run at hand, not the clean run.
Sources: query circuits (card, Method), EAP-IG. Needs no hooks on, and no change of, the attention implementation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.circuits.grouping import ungrouped
from cutaway.circuits.memory import plan
from cutaway.circuits.parts import Anatomy
from cutaway.circuits.record import Beginning, Record, beginning, record
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model.families import module_input, with_input


def run(
    body: Anatomy,
    wiring: Wiring,
    ids: Int[Tensor, "pair pos"],
    masks: Bool[Tensor, "circuit *pos writer reader"] | Float[Tensor, "circuit *pos writer reader"],
    instead: Record,
    *,
    memory: int | None = None,
) -> Float[Tensor, "circuit pair vocab"]:
    """Return the logits after the last token of each pair, for each circuit.

    masks: 1 where an edge is kept, 0 where it is cut (values in between mix); with a pos axis where circuits differ
        by the reader's position. Entries that are no edge are ignored. Differentiable in grad mode.
    instead: the record of what cut edges carry, for the same pairs; where it starts late, so does the run.
    memory: bytes that the run may use for its own; None takes a share of what is free.
    """
    _check(wiring, masks, ids)
    cut = ~masks if masks.dtype == torch.bool else 1 - masks
    cut = cut.to(body.model.device) * torch.from_numpy(wiring.legal).to(body.model.device)
    first = _first_layers(wiring, cut)
    clean, before = record(body, ids, instead.start), beginning(body, wiring, ids, instead.start)
    ids = ids[:, instead.start :]
    cut = cut[:, instead.start :] if cut.ndim == 4 else cut
    order = sorted(range(len(cut)), key=lambda circuit: int(first[circuit]))
    chunk = plan(bytes_per_circuit(body, wiring, ids.shape), len(cut), body.model.device, memory).at_once
    parts = []
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        parts.append(_run_rows(body, wiring, ids, cut[rows], clean, instead, before, int(first[rows[0]])))
    inverse = torch.empty(len(order), dtype=torch.long, device=cut.device)
    inverse[torch.tensor(order, device=cut.device)] = torch.arange(len(order), device=cut.device)
    return torch.cat(parts)[inverse]


def bytes_per_circuit(body: Anatomy, wiring: Wiring, shape: torch.Size | tuple[int, ...]) -> int:
    """Estimate what one circuit of these prompts needs: differences, reader inputs, the forward's own tensors."""
    model = body.model
    width = int(np.prod(shape)) * model.d_model * model.dtype.itemsize
    neurons = model.layout.dims("neurons")[0] // model.d_model + 1
    return width * (len(wiring.writers) + 4 * wiring.readers_per_layer + 6 + 4 * neurons)


def _check(wiring: Wiring, masks: Tensor, ids: Tensor) -> None:
    shape = (len(wiring.writers), len(wiring.readers))
    if tuple(masks.shape[-2:]) != shape:
        raise UsageError(f"masks end in {list(masks.shape[-2:])}; this wiring has {list(shape)} writers and readers")
    if masks.ndim == 4 and masks.shape[1] != ids.shape[1]:
        raise UsageError(f"masks for {masks.shape[1]} positions; the prompts have {ids.shape[1]}")


def _first_layers(wiring: Wiring, cut: Tensor) -> Int[Tensor, " circuit"]:
    """Return the first layer in which a circuit cuts an edge; the last layer where only the logits lose one."""
    touched = _touched(cut).flatten(1, -2).any(1)  # circuit, reader
    layers = torch.arange(touched.shape[1], device=cut.device) // wiring.readers_per_layer
    layers = layers.clamp(max=wiring.n_layers - 1)
    return torch.where(touched, layers, wiring.n_layers - 1).amin(-1)


def _touched(cut: Tensor) -> Bool[Tensor, "*masks"]:
    """Return where an edge is cut; everywhere while gradients of the masks are wanted."""
    return torch.ones_like(cut, dtype=torch.bool) if cut.requires_grad else cut != 0


def _run_rows(
    body: Anatomy,
    wiring: Wiring,
    ids: Tensor,
    cut: Tensor,
    clean: Record,
    instead: Record,
    before: Beginning,
    layer: int,
) -> Float[Tensor, "circuit pair vocab"]:
    circuits = len(cut)
    running = _Running(body, wiring, cut, instead, layer)
    running.prefill(clean, layer)
    resid = clean.resid[layer].repeat(circuits, 1, 1)
    batch = body.model.batch(ids.tolist() * circuits)
    given = batch.forward_kwargs() | before.forward_kwargs(circuits)
    with running.hooked(), body.model.started(layer, resid):
        logits: Tensor = body.model.hf(**given, logits_to_keep=1).logits
    return logits[:, -1].unflatten(0, (circuits, -1))


class _Running:
    """One batched run: follows the forward through its hooks and changes what each reader receives."""

    def __init__(self, body: Anatomy, wiring: Wiring, cut: Tensor, instead: Record, layer: int) -> None:
        self.body, self.wiring, self.instead, self.first = body, wiring, instead, layer
        self.cut = cut.to(body.model.dtype)
        self.touched = _touched(cut).flatten(0, -2).any(0).tolist()
        self.differences = _Differences(len(cut), wiring, instead)

    def prefill(self, clean: Record, layer: int) -> None:
        """Take the differences of all writers below ``layer`` from the clean run."""
        self.differences.add((self.instead.embed - clean.embed)[None])
        for below in range(layer):
            self.differences.add(self.body.blocks[below].write(self.instead.z[below] - clean.z[below]))
            self.differences.add((self.instead.mlp[below] - clean.mlp[below])[None])

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles: list[Any] = []
        replaced: list[nn.Module] = []
        try:
            for layer in range(self.first, self.wiring.n_layers):
                self._hook_layer(layer, handles, replaced)
            logits = len(self.wiring.readers) - 1
            if self.touched[logits] and self.body.final.module is not None:
                handles.append(_before(self.body.final.module, lambda x: x + self._missing(logits, x)))
            with ungrouped(self.body, self.wiring):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for module in replaced:
                vars(module).pop("forward", None)

    def _hook_layer(self, layer: int, handles: list[Any], replaced: list[nn.Module]) -> None:
        block, per_layer = self.body.blocks[layer], self.wiring.readers_per_layer
        first, last = layer * per_layer, (layer + 1) * per_layer - 1
        if any(self.touched[first:last]) or self.wiring.grouping != "shared":
            outputs: list[Tensor] = []

            def read(x: Tensor) -> Tensor:
                outputs[:] = self._project(layer, x)
                return x

            handles.append(_before(self.body.model.layout.blocks[layer], read))
            for place, module in enumerate(block.projections):
                module.forward = lambda *_, place=place: outputs[place]
                replaced.append(module)
        handles.append(_before(block.o, lambda z: self._heads_wrote(layer, z)))
        if self.touched[last]:
            handles.append(_before(block.middle_module, lambda x: x + self._missing(last, x)))
        handles.append(self._after_mlp(layer))

    def _project(self, layer: int, x: Float[Tensor, "row pos d_model"]) -> tuple[Tensor, ...]:
        """Return the outputs of the layer's projections, each head's made from what its reader receives."""
        block, wiring = self.body.blocks[layer], self.wiring
        first = layer * wiring.readers_per_layer
        readers = range(first, first + wiring.readers_per_layer - 1)
        received = block.entry(self._split(x)[:, None] + self._missing_all(readers, x))
        q, k, v = _select(wiring, received)
        rows = [
            _by_reader(part, weight, bias, wiring)
            for part, weight, bias in ((q, block.w_q, block.b_q), (k, block.w_k, block.b_k), (v, block.w_v, block.b_v))
        ]
        return block.join(*(row.flatten(0, 1) for row in rows))

    def _heads_wrote(self, layer: int, z: Float[Tensor, "row pos width"]) -> Tensor:
        block = self.body.blocks[layer]
        heads = z.unflatten(-1, (self.wiring.n_heads, -1))
        now = self._split(heads * block.head_scale(heads).to(z.dtype)[..., None])
        self.differences.add(block.write(self.instead.z[layer] - now))
        return z

    def _after_mlp(self, layer: int) -> Any:
        port = self.body.model.layout.port("mlp_out", layer)

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            now = output[0] if isinstance(output, tuple) else output
            self.differences.add((self.instead.mlp[layer] - self._split(now))[None])

        return port.module.register_forward_hook(after)

    def _missing(self, reader: int, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        return self._missing_all(range(reader, reader + 1), x).flatten(0, 2).view_as(x)

    def _missing_all(self, readers: range, x: Tensor) -> Float[Tensor, "circuit reader pair pos d_model"]:
        """Return, for readers of one layer, the differences of the writers cut off from each."""
        before = self.wiring.written_before(readers[0])
        written = self.differences.upto(before)
        cut = self.cut[..., :before, readers.start : readers.stop]
        if cut.ndim == 3:
            return torch.einsum("kwr,kwbpd->krbpd", cut, written)
        return torch.einsum("kpwr,kwbpd->krbpd", cut, written)

    def _split(self, rows: Float[Tensor, "row ..."]) -> Float[Tensor, "circuit pair ..."]:
        return rows.unflatten(0, (len(self.cut), -1))


class _Differences:
    """What each writer would have added to the stream instead, minus what it added: [circuit writer pair pos d_model].

    One buffer; while gradients are kept the parts stay apart, for autograd allows no writing in place.
    """

    def __init__(self, circuits: int, wiring: Wiring, instead: Record) -> None:
        self._parts: list[Tensor] = []
        self._filled = 0
        self._buffer: Tensor | None = None
        if not torch.is_grad_enabled():
            self._buffer = instead.embed.new_empty((circuits, len(wiring.writers), *instead.embed.shape))
        self._circuits = circuits

    def add(self, part: Tensor) -> None:
        """Add writers, in their order: [writer pair pos d_model] for all circuits or [writer circuit pair ...]."""
        rows = part.transpose(0, 1) if part.ndim == 5 else part[None].expand(self._circuits, *part.shape)
        stop = self._filled + rows.shape[1]
        if self._buffer is None:
            self._parts.append(rows)
        else:
            self._buffer[:, self._filled : stop] = rows
        self._filled = stop

    def upto(self, writers: int) -> Float[Tensor, "circuit writer pair pos d_model"]:
        if self._buffer is None:
            return torch.cat(self._parts, 1)[:, :writers]
        return self._buffer[:, :writers]


def _select(wiring: Wiring, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what query, key and value readers receive."""
    if wiring.grouping == "whole":
        return received, received, received
    heads = wiring.n_heads
    kv = (received.shape[1] - heads) // 2
    q, k, v = received.split([heads, kv, kv], 1)
    return q, k, v


def _by_reader(
    received: Float[Tensor, "circuit reader pair pos d_model"],
    weight: Float[Tensor, "group d_head d_model"],
    bias: Float[Tensor, "group d_head"] | None,
    wiring: Wiring,
) -> Float[Tensor, "circuit pair pos reader d_head"]:
    """Return each reader's projection; heads that share a weight repeat it."""
    repeats = received.shape[1] // len(weight)
    if repeats > 1:
        weight = weight.repeat_interleave(repeats, 0)
        bias = None if bias is None else bias.repeat_interleave(repeats, 0)
    projected = torch.einsum("krbpd,red->kbpre", received, weight)
    return projected if bias is None else projected + bias


def _before(module: nn.Module, change: Any) -> Any:
    """Hook ``change`` on what a module is called with."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = change(module_input(args, kwargs))
        return with_input(args, kwargs, new)

    return module.register_forward_pre_hook(hook, with_kwargs=True)
