"""A unit's values on variants of a text, without computing again what comes before the first change.

1. Each text is read once, and the keys and values of its tokens are kept up to the layer that the unit needs.
2. Variants are grouped by the block of positions in which their first change lies. A group runs as one batch from the
   start of its block, on the keys and values of the text before it; groups of several texts share a batch.
3. Values before the block are those of the text itself.

Only units that read a causal model have such a past; others are read whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from cutaway.errors import UsageError
from cutaway.features.unit import ModelUnit, Unit, checked, padded, read_rows
from cutaway.model import Batch

BLOCK = 4
"""Positions whose variants run together; smaller saves tokens, larger saves passes."""
PADDING = 24
"""Padded tokens that a processor reads in the time of one more pass."""


@dataclass(frozen=True)
class Continued(Batch):
    """Rows that continue texts whose keys and values are in ``cache``, ``before`` tokens each."""

    cache: Any
    before: int

    def forward_kwargs(self) -> dict[str, Tensor]:
        """Return the arguments of a forward that goes on from the cache, and fills it."""
        rows, width = self.ids.shape
        past = self.mask.new_ones(rows, self.before)
        positions = torch.arange(self.before, self.before + width, device=self.ids.device)
        return {
            "input_ids": self.ids,
            "attention_mask": torch.cat([past, self.mask], 1).long(),
            "position_ids": positions.expand(rows, -1),
            "past_key_values": self.cache,
        }


@dataclass(frozen=True)
class Variants:
    """Values on texts and on their variants, in the order given."""

    texts: list[Float[Tensor, " _"]]
    variants: list[Float[Tensor, " _"]]


def vary(
    unit: Unit,
    texts: Sequence[Sequence[int]],
    variants: Sequence[tuple[int, Sequence[int]]],
    *,
    reuse: bool = True,
    tokens: int = 4096,
) -> Variants:
    """Read ``unit`` on ``texts`` and on ``variants``, each ``(index of its text, ids of the same length)``.

    ``reuse=False`` reads every row whole; the values agree to rounding. ``tokens`` bounds a forward pass.
    """
    for index, ids in variants:
        if len(ids) != len(texts[index]):
            raise UsageError(f"variant of text {index} has {len(ids)} tokens, the text {len(texts[index])}")
    if not texts:
        return Variants([], [])
    if not isinstance(unit, ModelUnit) or not reuse:
        rows = [*texts, *(ids for _, ids in variants)]
        found = {i: values[:, 0] for i, values in read_rows([unit], rows, tokens=tokens)}
        whole = [found[i] for i in range(len(rows))]
        return Variants(whole[: len(texts)], whole[len(texts) :])
    bases: list[Tensor] = [torch.empty(0)] * len(texts)
    out: list[Tensor] = [torch.empty(0)] * len(variants)
    firsts = [_first_change(texts[index], ids) for index, ids in variants]
    lengths = [len(ids) for _, ids in variants]
    padding = PADDING if unit.model.device.type == "cpu" else tokens
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    start = 0
    while start < len(order):
        chosen = order[start : start + max(1, tokens // len(texts[order[start]]))]
        start += len(chosen)
        values, cache = _read(unit, [texts[i] for i in chosen], DynamicCache(), 0)
        if not cache.layers:  # a site below the first attention has no past to share
            return vary(unit, texts, variants, reuse=False, tokens=tokens)
        for i, row in zip(chosen, values, strict=True):
            bases[i] = row
        slot = {text: row for row, text in enumerate(chosen)}
        own = [v for v, (index, _) in enumerate(variants) if index in slot]
        for batch, block in _batches(own, firsts, lengths, tokens, padding):
            suffixes = [variants[v][1][block:] for v in batch]
            past = _cropped(cache, [slot[variants[v][0]] for v in batch], block)
            read, _ = _read(unit, suffixes, past, block)
            for v, suffix in zip(batch, read, strict=True):
                out[v] = torch.cat([bases[variants[v][0]][:block], suffix])
    return Variants(bases, out)


def _first_change(text: Sequence[int], ids: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(text, ids, strict=True)) if a != b), len(text) - 1)


def _batches(
    own: Sequence[int], firsts: Sequence[int], lengths: Sequence[int], tokens: int, padding: int
) -> Iterator[tuple[list[int], int]]:
    """Yield variants that start in the same block, longest first, and the block's first position."""
    for block in sorted({firsts[v] // BLOCK * BLOCK for v in own}):
        batch: list[int] = []
        padded = 0
        for v in sorted((v for v in own if firsts[v] // BLOCK * BLOCK == block), key=lambda v: -lengths[v]):
            width = lengths[batch[0]] if batch else lengths[v]
            padded += width - lengths[v]
            if batch and ((len(batch) + 1) * (width - block) > tokens or padded > padding):
                yield batch, block
                batch, padded = [], 0
            batch.append(v)
        yield batch, block


@torch.no_grad()
def _read(
    unit: ModelUnit, rows: Sequence[Sequence[int]], cache: DynamicCache, before: int
) -> tuple[list[Tensor], DynamicCache]:
    ids, mask = (each.to(unit.model.device) for each in padded(rows))
    held = unit.model.capture(Continued(ids, mask, cache, before), unit.site)[unit.site]
    values = checked(unit, unit.read(held, mask), mask).cpu()
    return [row[: len(ids)] for row, ids in zip(values, rows, strict=True)], cache


def _cropped(cache: DynamicCache, rows: Sequence[int], before: int) -> DynamicCache:
    """Return the first ``before`` tokens of some of the cache's rows; of layers that were computed."""
    new = DynamicCache()
    layers: Any = cache.layers
    if before:
        for number, layer in enumerate(layers):
            new.update(layer.keys[rows, :, :before], layer.values[rows, :, :before], number)
    return new
