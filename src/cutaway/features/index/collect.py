"""One pass over text keeps for each unit its strongest texts, some random ones, and counts: never all activations.

For every batch of texts and a source's activations [batch pos unit]:

1. the peak of each text and unit is found; tokens outside the mask (padding, start and special tokens) never count;
2. a text enters a unit's list when its peak beats the last one there. Equal peaks keep the earlier text, and within a
   text the earlier token, so the lists are those of a stable sort of the full matrix;
3. by the same step with a hash of (text, unit) in place of the peak, a random sample of the texts where the unit is
   above zero is kept: a page of nothing but maxima misleads;
4. tokens above zero are counted, and every value falls into a bar of a histogram (`EDGES`).

Only units with a new text are touched after step 1, which gets rare: k (1 + ln(texts / k)) times a unit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LOW, _HIGH = -8, 12
_HALVES = 2 * (_HIGH - _LOW)
_LEAST_BITS = (127 + _LOW) * 2
EDGES = tuple(2.0**_LOW * 2.0 ** (i // 2) * (1.5 if i % 2 else 1.0) for i in range(_HALVES))
"""Lower ends of the bars above zero: each octave is cut in half, which is two bits of the number itself. The bars
below zero mirror them, and one in the middle holds what is closer to zero than the first edge. The last is open."""
BARS = 2 * _HALVES + 1
_AT_ONCE = 1 << 16
"""New texts whose values are copied at once."""


@dataclass
class Best:
    """The ``m`` texts of largest key for each unit, largest first; key 0 and context -1 where there are fewer."""

    key: Float[Tensor, "unit m"]
    peak: Float[Tensor, "unit m"]
    context: Int[Tensor, "unit m"]
    position: Int[Tensor, "unit m"]
    start: Int[Tensor, "unit m"]
    """Of the window shown, in the context's ids."""
    values: Float[Tensor, "unit m window"]
    """NaN outside the text and at special tokens."""

    def offer(self, key: Float[Tensor, "batch unit"], acts: Float[Tensor, "batch pos unit"], rows: "TextRows") -> None:
        """Let a batch of texts compete; ``acts`` is -inf outside the mask."""
        m, window = self.values.shape[1:]
        units = (key > self.key[:, -1]).any(0).nonzero()[:, 0]
        both = torch.cat([self.key[units], key[:, units].T], 1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, :m]
        kept = order.clamp(max=m - 1)
        for held in (self.peak, self.context, self.position, self.start):
            held[units] = held[units].gather(1, kept)
        self.values[units] = self.values[units].gather(1, kept[..., None].expand(-1, -1, window))
        self.key[units] = both.gather(1, order)
        at, slots = (order >= m).nonzero(as_tuple=True)
        for part in torch.arange(len(at), device=at.device).split(_AT_ONCE):
            slot = slots[part]
            self._enter(units[at[part]], slot, order[at[part], slot] - m, acts, rows)

    def _enter(self, unit: Tensor, slot: Tensor, row: Tensor, acts: Tensor, rows: "TextRows") -> None:
        window = self.values.shape[2]
        column = acts[row, :, unit]
        peak = column.amax(1)
        places = torch.arange(column.shape[1], device=column.device)
        position = torch.where(column == peak[:, None], places, column.shape[1]).amin(1)
        first, end = rows.first[row], rows.lengths[row]
        start = torch.maximum(torch.minimum(position - rows.before, end - window), first)
        columns = start[:, None] + torch.arange(window, device=column.device)
        values = column.gather(1, columns.clamp(max=column.shape[1] - 1))
        outside = (columns >= end[:, None]) | values.isinf()
        self.values[unit, slot] = values.masked_fill(outside, torch.nan)
        self.peak[unit, slot] = peak
        self.context[unit, slot] = (rows.number + row).to(self.context.dtype)
        self.position[unit, slot] = position.to(self.position.dtype)
        self.start[unit, slot] = start.to(self.start.dtype)


@dataclass(frozen=True)
class TextRows:
    """What a batch of texts has in common for all units."""

    number: int
    """Of the first text; the others follow."""
    mask: Bool[Tensor, "batch pos"]
    first: Int[Tensor, " batch"]
    """Where each text begins, behind its start tokens."""
    lengths: Int[Tensor, " batch"]
    before: int
    """Tokens shown in front of a peak."""


class Collector:
    """Running lists and counts of one source's units."""

    def __init__(self, units: int, top: int, samples: int, window: int, device: torch.device | str = "cpu") -> None:
        self.top = _empty(units, top, window, device)
        self.some = _empty(units, samples, window, device)
        self.fired = torch.zeros(units, dtype=torch.long, device=device)
        self.bars = torch.zeros(units, BARS, dtype=torch.long, device=device)

    def add(self, acts: Float[Tensor, "batch pos unit"], rows: TextRows) -> bool:
        """Take in a batch; False, and nothing is changed, where a value is not a number."""
        inside = acts[rows.mask]
        acts = acts.masked_fill(~rows.mask[..., None], -torch.inf)
        peaks = acts.amax(1)
        if bool(peaks.isnan().any()) or bool((peaks == torch.inf).any()):
            return False
        self.top.offer(peaks, acts, rows)
        if self.some.key.shape[1]:
            self.some.offer(torch.where(peaks > 0, _dice(peaks, rows.number), 0.0), acts, rows)
        self.fired += (inside > 0).sum(0)
        self.bars += bars(inside)
        return True

    def state(self) -> dict[str, Tensor]:
        """Return everything kept, by name."""
        made = {"fired": self.fired, "bars": self.bars}
        for name, best in (("top", self.top), ("some", self.some)):
            made |= {f"{name}.{field}": value for field, value in vars(best).items()}
        return made

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, value in self.state().items():
            value.copy_(state[name])


def bars(values: Float[Tensor, "row unit"]) -> Int[Tensor, "unit bar"]:
    """Count every unit's values in the bars of `EDGES`."""
    units = values.shape[1]
    size = ((values.abs().float().view(torch.int32) >> 22) - (_LEAST_BITS - 1)).clamp_(0, _HALVES)
    size = torch.where(values < 0, -size, size) + _HALVES
    flat = size + torch.arange(units, dtype=torch.int32, device=values.device) * BARS
    return torch.bincount(flat.flatten(), minlength=units * BARS).view(units, BARS)


def _empty(units: int, m: int, window: int, device: torch.device | str) -> Best:
    zero, none = torch.zeros(units, m, device=device), torch.full((units, m), -1, dtype=torch.int32, device=device)
    values = torch.full((units, m, window), torch.nan, device=device)
    return Best(zero, zero.clone(), none, none.clone(), none.clone(), values)


def _dice(peaks: Float[Tensor, "batch unit"], number: int) -> Float[Tensor, "batch unit"]:
    """Return numbers in (0, 1] that depend on nothing but the text's and the unit's number."""
    texts = torch.arange(number, number + len(peaks), device=peaks.device)[:, None]
    mixed = texts * 0x9E3779B1 + torch.arange(peaks.shape[1], device=peaks.device) * 0x85EBCA77
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    return ((mixed & 0xFFFFFF) + 1).float() / (1 << 24)
