"""Keys and values of many texts side by side, and the attention that reads them.

Every row owns its columns: a token's column is its position. Columns after a row's end hold leftovers that no query
sees, because a query reads columns up to its own position only; so going back to an earlier token costs nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

from cutaway.errors import CutawayError

ROW_CACHE = "cutaway_row_cache"
GROWTH = 128


class RowCache(Cache):
    """Keys and values [row, kv_head, pos, d_head] a layer; a row's column is its position."""

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.starts: Int[Tensor, " row"] = torch.zeros(0, dtype=torch.long)
        """Column at which the next forward begins to write, for each of the first rows; set before it."""
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns; return the rows' columns up to the last one written."""
        rows, _, new, _ = key_states.shape
        view = int(self.starts.max()) + new
        if layer_idx == len(self._buffers):
            self._buffers.append((self._blank(key_states), self._blank(value_states)))
        while view > self._buffers[layer_idx][0].shape[2]:
            keys, values = self._buffers[layer_idx]
            self._buffers[layer_idx] = (_longer(keys), _longer(values))
        keys, values = self._buffers[layer_idx]
        row = torch.arange(rows, device=keys.device)[:, None]
        column = self.starts[:, None] + torch.arange(new, device=keys.device)
        keys[row, :, column] = key_states.transpose(1, 2)
        values[row, :, column] = value_states.transpose(1, 2)
        return keys[:rows, :, :view], values[:rows, :, :view]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions and masks are always passed explicitly; nothing may be derived from this length."""
        return 0

    def rearrange(self, sources: Sequence[int], keep: Sequence[int]) -> None:
        """Row i becomes the first ``keep[i]`` tokens of what row ``sources[i]`` held; other rows stay."""
        self.ids[: len(sources)] = [self.ids[s][:k] for s, k in zip(sources, keep, strict=True)]
        moved = [i for i, source in enumerate(sources) if source != i]
        if not moved:
            return
        origins, width = [sources[i] for i in moved], max(keep[i] for i in moved)
        for keys, values in self._buffers:
            for buffer in (keys, values):
                buffer[moved, :, :width] = buffer[origins, :, :width]

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        pair = [a, b]
        self.ids[a], self.ids[b] = self.ids[b], self.ids[a]
        width = max(len(self.ids[a]), len(self.ids[b]))
        for keys, values in self._buffers:
            for buffer in (keys, values):
                buffer[pair, :, :width] = buffer[pair[::-1], :, :width]

    def _blank(self, like: Tensor) -> Tensor:
        # Zeros, not uninitialised memory: a masked column has weight 0, and 0 times a stray NaN would be NaN.
        return like.new_zeros(len(self.ids), like.shape[1], 0, like.shape[3])


def _longer(buffer: Float[Tensor, "row head pos d_head"]) -> Float[Tensor, "row head longer d_head"]:
    rows, heads, _, width = buffer.shape
    return torch.cat([buffer, buffer.new_zeros(rows, heads, GROWTH, width)], dim=2)


def row_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head new d_head"],
    key: Float[Tensor, "batch kv_head pos d_head"],
    value: Float[Tensor, "batch kv_head pos d_head"],
    attention_mask: Float[Tensor, "batch 1 new pos"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    row_cache: bool = False,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch new head d_head"], None]:
    """Grouped attention without copying keys and values for each query head."""
    if not row_cache or attention_mask is None or softcap is not None or kwargs.get("s_aux") is not None:
        raise CutawayError(
            f"{type(module).__name__} does not attend in a way that rows can share; use LocalEngine or a server"
        )
    batch, heads, new, d_head = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, key.shape[1], groups * new, d_head)
    mask = attention_mask.repeat(1, 1, groups, 1)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, new, d_head).transpose(1, 2).contiguous(), None


AttentionInterface.register(ROW_CACHE, row_attention)
