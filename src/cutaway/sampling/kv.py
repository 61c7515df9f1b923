"""Keys and values for many rows that continue one text.

A `Trunk` holds the text's keys and values once. Rows leave it at any token (a crop, which copies nothing) and keep
only what is their own in `Tails`: the rest of a prefix that is not on the trunk (`Rests` reads those in batches) and
new tokens. One decode step attends over both: the trunk's part is a plain matrix product
shared by all rows, so memory and time for the common text do not grow with the number of rows. The layout follows
the idea of shared-prefix attention (Hydragen, arXiv 2402.05099); it runs through the attention interface of
`transformers`, so any family that uses that interface works unchanged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel

from cutaway.errors import CutawayError

SHARED_PREFIX = "cutaway_shared_prefix"
GROWTH = 64
PART, WASTE = 16, 2000
"""Rows that may attend by themselves, and how many scores of masked columns that must save them."""
AHEAD = 1 << 28
"""Bytes of keys and values that one forward over rests may fill, the trunk's part repeated for each."""


@dataclass(frozen=True)
class Trunk:
    """One text's keys, values and last hidden states."""

    ids: tuple[int, ...]
    keys: tuple[Float[Tensor, "head pos d_head"], ...]
    values: tuple[Float[Tensor, "head pos d_head"], ...]
    hidden: Float[Tensor, "pos d_model"]
    """What the unembedding reads at each position."""


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def grow_trunk(hf: PreTrainedModel, ids: tuple[int, ...], known: Trunk | None) -> tuple[Trunk, int]:
    """The trunk of ``ids``, reusing what ``known`` shares with it, and the number of tokens newly prefilled."""
    shared = min(common_length(ids, known.ids), len(ids)) if known else 0
    if known and shared == len(ids):
        return Trunk(
            ids,
            tuple(k[:, :shared] for k in known.keys),
            tuple(v[:, :shared] for v in known.values),
            known.hidden[:shared],
        ), 0
    cache = _cropped(known, shared, 1) if known else DynamicCache()
    new = torch.tensor([ids[shared:]], device=hf.device)
    positions = torch.arange(shared, len(ids), device=hf.device)[None]
    hidden = hf.get_decoder()(
        input_ids=new, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state[0]
    if known and shared:
        hidden = torch.cat([known.hidden[:shared], hidden])
    layers: Any = cache.layers
    return Trunk(
        ids,
        tuple(layer.keys[0] for layer in layers),
        tuple(layer.values[0] for layer in layers),
        hidden,
    ), len(ids) - shared


def _cropped(trunk: Trunk, tokens: int, rows: int) -> DynamicCache:
    """A cache that holds the trunk's first tokens in each of ``rows`` rows."""
    cache = DynamicCache()
    if tokens:
        for layer, (k, v) in enumerate(zip(trunk.keys, trunk.values, strict=True)):
            cache.update(
                k[None, :, :tokens].expand(rows, -1, -1, -1), v[None, :, :tokens].expand(rows, -1, -1, -1), layer
            )
    return cache


@dataclass(frozen=True)
class Part:
    """Neighbouring rows, and how many columns of the trunk and of their tails the longest of them sees."""

    rows: slice
    trunk: int
    tail: int


class Tails(Cache):
    """The rows' own keys and values, [slot, head, pos, d_head] a layer, written in place at each row's length."""

    def __init__(self, trunk: Trunk, slots: int) -> None:
        super().__init__(layers=[])
        self.trunk = trunk
        self.slots = slots
        self.lengths = torch.zeros(slots, dtype=torch.long, device=trunk.hidden.device)
        self.prefix = self.lengths[:0]
        self.view = 0
        self.trunk_view = 0
        self.parts: list[Part] = []
        self._buffers = [
            (k.new_zeros(0, k.shape[0], 0, k.shape[-1]), v.new_zeros(0, v.shape[0], 0, v.shape[-1]))
            for k, v in zip(trunk.keys, trunk.values, strict=True)
        ]

    @property
    def rows(self) -> int:
        """Slots in use."""
        return len(self.prefix)

    def step(self, prefix: Int[Tensor, " batch"]) -> None:
        """Make room for one more token in each of the first slots, whose rows leave the trunk at ``prefix``."""
        self.prefix, self.trunk_view = prefix, int(prefix.max())
        self.view = int(self.lengths[: self.rows].max()) + 1
        if prefix.device.type == "cpu":
            self.parts = _parts(prefix.tolist(), (self.lengths[: self.rows] + 1).tolist())
        else:  # a part more costs more than the columns it saves
            self.parts = [Part(slice(0, self.rows), self.trunk_view, self.view)]
        self._reserve(self.rows, self.view)

    def load(self, slot: int, rest: "Rest") -> None:
        """Start a row in ``slot``, all before it in use, behind ``rest``."""
        n = rest.tokens
        self._reserve(slot + 1, max(n, int(self.lengths[:slot].max()) if slot else 0))
        for (keys, values), key, value in zip(self._buffers, rest.keys, rest.values, strict=True):
            keys[slot, :, :n] = key
            values[slot, :, :n] = value
        self.lengths[slot] = n

    def _reserve(self, slots: int, length: int) -> None:
        """Have room for the first ``slots`` rows at ``length`` tokens each; they keep what they hold.

        Buffers that are too small are made anew at the size needed now, so what one long row took is given back.
        """
        have, _, long, _ = self._buffers[0][0].shape
        if slots <= have and length <= long:
            return
        # A quarter more of what ran out, so that one token more does not mean one copy more.
        slots = min(self.slots, max(slots, have + have // 4)) if slots > have else slots
        length = -(-max(length, long + long // 4 if length > long else 0) // GROWTH) * GROWTH
        self._buffers = [(_moved(keys, slots, length), _moved(values, slots, length)) for keys, values in self._buffers]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one new token a row; return the rows' tails up to the longest one."""
        keys, values = self._buffers[layer_idx]
        slot = torch.arange(self.rows, device=keys.device)
        keys[slot, :, self.lengths[: self.rows]] = key_states[:, :, 0]
        values[slot, :, self.lengths[: self.rows]] = value_states[:, :, 0]
        return keys[: self.rows, :, : self.view], values[: self.rows, :, : self.view]

    def key_positions(self) -> Int[Tensor, "batch key"]:
        """Absolute position of each trunk and tail column in each row; -1 where the row has no such token."""
        trunk = torch.arange(self.trunk_view, device=self.lengths.device)[None]
        tail = torch.arange(self.view, device=self.lengths.device)[None]
        prefix, lengths = self.prefix[:, None], self.lengths[: self.rows, None]
        return torch.cat(
            [torch.where(trunk < prefix, trunk, -1), torch.where(tail <= lengths, prefix + tail, -1)], dim=1
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always passed explicitly; nothing may be derived from this length."""
        return 0

    def move(self, source: int, target: int) -> None:
        """Copy a row into another slot, so that active rows stay contiguous."""
        n = int(self.lengths[source])
        self.lengths[target] = n
        if n:  # a row that was seated just now and has nothing of its own has no place in the buffers yet
            for keys, values in self._buffers:
                keys[target, :, :n] = keys[source, :, :n]
                values[target, :, :n] = values[source, :, :n]


def _moved(
    buffer: Float[Tensor, "slot head pos d_head"], slots: int, length: int
) -> Float[Tensor, "new head to d_head"]:
    # Zeros, not uninitialised memory: a masked key has weight 0, and 0 times a stray NaN would be NaN.
    new = buffer.new_zeros(slots, buffer.shape[1], length, buffer.shape[3])
    rows, tokens = min(slots, buffer.shape[0]), min(length, buffer.shape[2])
    new[:rows, :, :tokens] = buffer[:rows, :, :tokens]
    return new


@dataclass(frozen=True)
class Rest:
    """What a prefix has beyond its trunk: keys and values of a few tokens, and the last one's hidden state."""

    keys: tuple[Float[Tensor, "head pos d_head"], ...]
    values: tuple[Float[Tensor, "head pos d_head"], ...]
    hidden: Float[Tensor, " d_model"]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.keys[0].shape[1]


Place = tuple[int, tuple[int, ...]]
"""Where a row leaves the trunk, and by which tokens."""


class Rests:
    """Reads the rests of rows that will come, several in a forward, in the order in which they come."""

    def __init__(self, hf: PreTrainedModel, trunk: Trunk) -> None:
        self._hf, self._trunk = hf, trunk
        self._uses: Counter[Place] = Counter()
        self._queue: list[Place] = []
        self._ready: dict[Place, Rest] = {}
        width = sum(
            k.shape[0] * k.shape[-1] + v.shape[0] * v.shape[-1] for k, v in zip(trunk.keys, trunk.values, strict=True)
        )
        self._room = AHEAD // max(1, width * trunk.hidden.dtype.itemsize)
        """Tokens of keys and values that fit in a read."""

    def expect(self, coming: Sequence[Place]) -> None:
        """Say which rests will be taken, in their order, so that one read may serve several."""
        self._queue += [place for place in dict.fromkeys(coming) if not self._uses[place]]
        self._uses.update(coming)

    def take(self, place: Place) -> tuple[Rest, int]:
        """Return a row's rest, forgotten after its last use, and how many tokens were read for it and those after."""
        read = 0 if place in self._ready else self._read(place)
        self._uses[place] -= 1
        found = self._ready[place] if self._uses[place] else self._ready.pop(place)
        return found, read

    def _read(self, place: Place) -> int:
        """Read ``place`` and what follows it in the queue from the same token of the trunk, as far as there is room."""
        crop, start = place[0], self._queue.index(place)
        batch = [place]
        for other in self._queue[start + 1 :]:
            longest = max(len(rest) for _, rest in (*batch, other))
            if other[0] != crop or (len(batch) + 1) * (crop + longest) > self._room:
                break
            batch.append(other)
        del self._queue[: start + len(batch)]
        lengths = [len(rest) for _, rest in batch]
        # Padded on the right: no real token sees what stands behind it, and distances stay what they are.
        ids = torch.tensor([list(rest) + [0] * (max(lengths) - len(rest)) for _, rest in batch], device=self._hf.device)
        positions = torch.arange(crop, crop + max(lengths), device=self._hf.device)[None]
        cache = _cropped(self._trunk, crop, len(batch))
        hidden = self._hf.get_decoder()(
            input_ids=ids, position_ids=positions.expand(len(batch), -1), past_key_values=cache, use_cache=True
        ).last_hidden_state
        layers: Any = cache.layers
        for row, (at, n) in enumerate(zip(batch, lengths, strict=True)):
            own = slice(crop, crop + n)
            keys = tuple(layer.keys[row, :, own].clone() for layer in layers)
            values = tuple(layer.values[row, :, own].clone() for layer in layers)
            self._ready[at] = Rest(keys, values, hidden[row, n - 1].clone())
        return sum(lengths)


def decode_mask(tails: Tails, window: int | None, dtype: torch.dtype) -> Float[Tensor, "batch 1 1 key"]:
    """Additive mask over trunk and tail for the token each row is about to read."""
    where = tails.key_positions()
    visible = where >= 0
    if window is not None:
        here = (tails.prefix + tails.lengths[: tails.rows])[:, None]
        visible = visible & (here - where < window)
    mask = torch.zeros(visible.shape, dtype=dtype, device=where.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None, None]


def shared_prefix_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head 1 d_head"],
    key: Float[Tensor, "batch kv_head tail d_head"],
    value: Float[Tensor, "batch kv_head tail d_head"],
    attention_mask: Float[Tensor, "batch _ 1 key"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    shared_prefix: Tails | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch 1 head d_head"], None]:
    """Attention of one new token a row over the common trunk and the row's own tail."""
    if shared_prefix is None or attention_mask is None or kwargs.get("s_aux") is not None:
        raise CutawayError(
            f"{type(module).__name__} does not pass its arguments through the attention interface; "
            "sample this family through an OpenAI-compatible server instead"
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module calls every attribute a tensor or a module
    trunk_k, trunk_v = shared_prefix.trunk.keys[layer], shared_prefix.trunk.values[layer]
    _, heads, _, d_head = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    outs, start = [], shared_prefix.trunk_view
    for part in shared_prefix.parts:
        mine, width = part.rows, part.trunk
        grouped = query[mine].reshape(-1, kv_heads, group, d_head)
        batch = len(grouped)
        by_head = grouped.transpose(0, 1).reshape(kv_heads, -1, d_head)
        on_trunk = torch.bmm(by_head, trunk_k[:, :width].transpose(1, 2)).view(kv_heads, batch, group, width)
        on_tail = grouped @ key[mine, :, : part.tail].transpose(-1, -2)
        scores = torch.cat([on_trunk.transpose(0, 1), on_tail], dim=-1)
        scores = scores * (d_head**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        mask = torch.cat([attention_mask[mine, ..., :width], attention_mask[mine, ..., start : start + part.tail]], -1)
        if mask.shape[1] > 1:  # a per-head mask, as edits of attention make it
            mask = mask.view(batch, kv_heads, group, -1)
        pattern = torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype)
        by_head = pattern[..., :width].transpose(0, 1).reshape(kv_heads, batch * group, width)
        from_trunk = torch.bmm(by_head, trunk_v[:, :width]).view(kv_heads, batch, group, -1).transpose(0, 1)
        outs.append((from_trunk + pattern[..., width:] @ value[mine, :, : part.tail]).reshape(batch, 1, heads, -1))
    return torch.cat(outs), None


def _parts(prefix: Sequence[int], tail: Sequence[int]) -> list[Part]:
    """Rows in stretches of much the same number of columns.

    Rows join at the end, so the oldest, with the longest tails, stand first; a row that moved is of the youngest.
    """
    parts: list[Part] = []
    for start in range(0, len(prefix), PART):
        rows = slice(start, min(start + PART, len(prefix)))
        each = Part(rows, max(prefix[rows]), max(tail[rows]))
        if parts:
            last = parts[-1]
            both = Part(slice(last.rows.start, rows.stop), max(last.trunk, each.trunk), max(last.tail, each.tail))
            if _cells(both) - _cells(last) - _cells(each) < WASTE:
                parts[-1] = both
                continue
        parts.append(each)
    return parts


def _cells(part: Part) -> int:
    return (part.rows.stop - part.rows.start) * (part.trunk + part.tail)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
