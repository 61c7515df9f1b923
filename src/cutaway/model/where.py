"""Which absolute token position each column of a forward holds, also under padding and with a cache."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from cutaway.errors import UsageError


@dataclass(frozen=True)
class Where:
    """The positions of one forward pass; -1 stands at padding."""

    queries: Int[Tensor, "rows pos"]
    """Of the columns this forward computes; ``rows`` is 1 where all rows agree."""
    keys: Int[Tensor, "rows keys"]
    """Of every column so far, the cache's first."""
    past: int
    """Columns that lie in the cache."""
    cache: Any = None

    def match(
        self, positions: tuple[int, ...] | slice | None, of: Int[Tensor, "rows columns"]
    ) -> tuple[Bool[Tensor, "rows columns"] | None, Int[Tensor, "rows columns"]]:
        """Return which columns ``positions`` mean (None: all) and each one's rank among those."""
        if positions is None:
            return None, of
        if isinstance(positions, slice):
            start = self._absolute(positions.start or 0, of).clamp(min=0)
            inside = of >= start
            if positions.stop is not None:
                inside = inside & (of < self._absolute(positions.stop, of))
            if self.past and min(positions.start or 0, positions.stop or 0) < 0:
                inside = torch.zeros_like(inside)
            return inside, of - start
        targets = [self._absolute(position, of) for position in positions]
        hits = of[:, :, None] == torch.cat([target.expand(len(of), 1) for target in targets], 1)[:, None, :]
        hits = hits & (of >= 0)[:, :, None]
        return hits.any(-1), hits.int().argmax(-1)

    def _absolute(self, position: int, of: Tensor) -> Int[Tensor, "rows 1"]:
        if position >= 0 or self.past:  # where the prompt ended is not known here: a negative one means no column
            return torch.full((1, 1), position, device=of.device)
        return self.queries.amax(-1, keepdim=True) + 1 + position


class Locator:
    """Reads the positions off the arguments of the decoder's forward."""

    def __init__(self, decoder: nn.Module) -> None:
        self._signature = inspect.signature(decoder.forward)
        self._given: dict[str, Any] = {}
        self._past = 0
        self._where: Where | None = None

    def hook(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: note the arguments, and the cache's length before any layer adds to it."""
        self._given = self._signature.bind_partial(*args, **kwargs).arguments
        cache = self._given.get("past_key_values")
        self._past = 0 if cache is None else int(cache.get_seq_length())
        self._where = None

    def where(self) -> Where:
        """Return the positions of the forward under way."""
        if self._where is None:
            self._where = self._compute()
        return self._where

    def _compute(self) -> Where:
        ids = self._given.get("input_ids")
        tokens = ids if ids is not None else self._given.get("inputs_embeds")
        if tokens is None:
            raise UsageError("edits at given positions need input_ids or inputs_embeds in the forward")
        width, total = tokens.shape[1], self._past + tokens.shape[1]
        mask, given = self._given.get("attention_mask"), self._given.get("position_ids")
        cache = self._given.get("past_key_values")
        columns = torch.arange(total, device=tokens.device)[None]
        if (
            given is not None and cache is not None and hasattr(cache, "key_positions")
        ):  # rows that share a prefix's keys know where each column lies
            return Where(given, cache.key_positions(), self._past, cache)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == total:
            real = mask.bool()
            keys = torch.where(real, real.long().cumsum(-1) - 1, -1)
            return Where(keys[:, self._past :], keys, self._past, cache)
        if given is not None and given.ndim == 2:
            # without a 2-D mask the padding shows only in how far positions lag behind columns
            keys = (columns - (total - 1 - given[:, -1:])).clamp(min=-1)
            queries = torch.where(keys[:, self._past :] < 0, -1, given)
            return Where(queries, keys, self._past, cache)
        return Where(columns[:, self._past : self._past + width], columns, self._past, cache)
