"""Readers' gradients added up over points, and their products with what the writers changed."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.gradients import Seen
from cutaway.circuits.parts import Anatomy, Block, Norm
from cutaway.circuits.record import Record
from cutaway.circuits.wiring import Wiring


class Sums:
    """Gradients added up over points, and their products with the writers."""

    def __init__(
        self, body: Anatomy, wiring: Wiring, clean: Record, instead: Record, *, positions: bool, frozen: bool
    ) -> None:
        self.body, self.wiring, self.positions, self.frozen = body, wiring, positions, frozen
        self.change = [now - then for now, then in zip(clean.z, instead.z, strict=True)]
        self.change_mlp = [now - then for now, then in zip(clean.mlp, instead.mlp, strict=True)]
        self.change_embed = clean.embed - instead.embed
        self.heads: list[Tensor | None] = [None] * wiring.n_layers
        """[pair pos reader d_head] of each layer, scaled by the norm."""
        self.direct: list[Tensor | None] = [None] * (wiring.n_layers + 1)
        """[pair pos d_model] at the stream, of each MLP and the logits."""
        shape = (len(clean.embed), *([clean.embed.shape[1]] if positions else []), *wiring.legal.shape)
        self.scores = torch.zeros(shape, device=clean.embed.device)

    def add(self, seen: list[Seen], gradients: list[tuple[Tensor, ...]], logits: Tensor) -> None:
        pairs = len(self.change_embed)
        pulls = []
        with torch.no_grad():
            for layer, (saw, (g_q, g_k, g_v, g_mlp)) in enumerate(zip(seen, gradients, strict=True)):
                block = self.body.blocks[layer]
                scale = block.entry.scale(saw.x)
                scaled = torch.cat([g_q, g_k, g_v], -2).float() * scale[..., None]
                self.heads[layer] = _plus(self.heads[layer], _over_points(scaled, pairs))
                self.direct[layer] = _plus(
                    self.direct[layer], _over_points(_through(block.middle, saw.middle, g_mlp, self.frozen), pairs)
                )
                pulls.append(self._pull(layer, saw, torch.cat([g_q, g_k, g_v], -2), scale))
            self.direct[-1] = _plus(self.direct[-1], _over_points(logits.float(), pairs))
            if not self.frozen:
                self._turn(seen, pulls)

    def _pull(self, layer: int, saw: Seen, gradient: Tensor, scale: Tensor) -> Tensor:
        """Return s^2 / d_model * (q . dL/dq) of each reader: [row pos reader]."""
        block = self.body.blocks[layer]
        constant = _constants(block)
        linear = torch.cat(saw.qkv, -2).float()
        if constant is not None:
            repeats = [part.shape[-2] // len(fixed) for part, fixed in zip(saw.qkv, constant, strict=True)]
            linear = linear - torch.cat(
                [fixed.repeat_interleave(n, 0) for fixed, n in zip(constant, repeats, strict=True)]
            )
        pull = (linear * gradient.float()).sum(-1) * scale.square() / self.body.d_model
        return pull.unflatten(-1, (3, -1)).sum(-2) if self.wiring.grouping == "whole" else pull

    def _turn(self, seen: list[Seen], pulls: list[Tensor]) -> None:
        """Subtract the second term: the stream's product with the writers, one layer of writers at a time."""
        pairs, wiring = len(self.change_embed), self.wiring
        streams = torch.stack([self.body.blocks[n].entry.centred(saw.x.float()) for n, saw in enumerate(seen)])
        streams = streams.unflatten(1, (-1, pairs))  # layer point pair pos d_model
        pull = torch.stack(pulls).unflatten(1, (-1, pairs))  # layer point pair pos reader
        for writers, first, written in self._written():
            # Writers of layer l reach the heads of layer l + 1 and later.
            layers = range(0 if first == 0 else (first - 1) // (wiring.n_heads + 1) + 1, wiring.n_layers)
            if len(layers) == 0:
                continue
            along = torch.einsum("wbpd,lsbpd->lsbpw", written.float(), streams[layers.start :])
            out = "blpwr" if self.positions else "blwr"
            less = torch.einsum(f"lsbpw,lsbpr->{out}", along, pull[layers.start :])
            for place, layer in enumerate(layers):
                if self.body.blocks[layer].entry.gain is not None:
                    columns = self._heads_of(layer)
                    self.scores[..., writers, columns] -= less[:, place]

    def _written(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield ``(which writers, the first one's index, their changes [writer pair pos d_model])``, layer by layer."""
        yield slice(0, 1), 0, self.change_embed[None]
        for layer, block in enumerate(self.body.blocks):
            first = 1 + layer * (self.wiring.n_heads + 1)
            stop = first + self.wiring.n_heads + 1
            yield slice(first, stop), first, torch.cat([block.write(self.change[layer]), self.change_mlp[layer][None]])

    def finish(self, points: int) -> Float[Tensor, "pair *pos writer reader"]:
        """Return the scores: means over ``points``."""
        out = "bpwr" if self.positions else "bwr"
        with torch.no_grad():
            for layer in range(self.wiring.n_layers + 1):
                gradient, columns = self._at_stream(layer)
                for writers, first, written in self._written():
                    if first < self.wiring.written_before(columns.stop - 1):
                        product = torch.einsum(f"wbpd,bprd->{out}", written.float(), gradient)
                        self.scores[..., writers, columns] += product
            self.scores /= points
            return self.scores * torch.from_numpy(self.wiring.legal).to(self.scores)

    def _at_stream(self, layer: int) -> tuple[Float[Tensor, "pair pos reader d_model"], slice]:
        """Return the first-term gradients of a layer's readers (those of the logits for the layer past the last)."""
        direct = self.direct[layer]
        assert direct is not None
        if layer == self.wiring.n_layers:
            return direct[:, :, None], slice(len(self.wiring.readers) - 1, len(self.wiring.readers))
        heads, block = self.heads[layer], self.body.blocks[layer]
        assert heads is not None
        sizes = [self.wiring.n_heads, *[(heads.shape[2] - self.wiring.n_heads) // 2] * 2]
        gradient = torch.cat(
            [_back(part, weight) for part, weight in zip(heads.split(sizes, 2), _weights(block), strict=True)], 2
        )
        if block.entry.gain is not None:
            gradient = block.entry.centred(gradient * block.entry.gain)
        if self.wiring.grouping == "whole":
            gradient = gradient.unflatten(2, (3, -1)).sum(2)
        columns = self._heads_of(layer)
        return torch.cat([gradient, direct[:, :, None]], 2), slice(columns.start, columns.stop + 1)

    def _heads_of(self, layer: int) -> slice:
        first = layer * self.wiring.readers_per_layer
        return slice(first, first + self.wiring.readers_per_layer - 1)


def _through(norm: Norm, x: Tensor, gradient: Tensor, frozen: bool) -> Float[Tensor, "row pos d_model"]:
    """Return the gradient in front of a norm, given the one behind it."""
    gradient = gradient.float()
    if norm.gain is None:
        return gradient
    scale, centred = norm.scale(x), norm.centred(x.float())
    first = scale * norm.centred(gradient * norm.gain)
    if frozen:
        return first
    pull = (centred * norm.gain * gradient).mean(-1, keepdim=True) * scale**3
    return first - pull * centred


def _constants(block: Block) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return what the projections give for a centred stream of zero: [group d_head] for q, k, v."""
    parts = []
    for weight, bias in zip(_weights(block), (block.b_q, block.b_k, block.b_v), strict=True):
        fixed = torch.zeros(weight.shape[:2], device=weight.device)
        if block.entry.bias is not None:
            fixed = fixed + torch.einsum("ged,d->ge", weight.float(), block.entry.bias)
        parts.append(fixed if bias is None else fixed + bias.float())
    return None if not any(bool(part.any()) for part in parts) else (parts[0], parts[1], parts[2])


def _weights(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    return block.w_q, block.w_k, block.w_v


def _back(
    gradient: Float[Tensor, "pair pos reader d_head"], weight: Float[Tensor, "group d_head d_model"]
) -> Float[Tensor, "pair pos reader d_model"]:
    repeats = gradient.shape[2] // len(weight)
    return torch.einsum("bpre,red->bprd", gradient, weight.float().repeat_interleave(repeats, 0))


def _over_points(rows: Float[Tensor, "row ..."], pairs: int) -> Float[Tensor, "pair ..."]:
    return rows.unflatten(0, (-1, pairs)).sum(0)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part
