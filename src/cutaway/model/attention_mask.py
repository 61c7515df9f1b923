"""Hide tokens from tokens, or lean towards them: another attention mask, given to the model's own attention."""

import torch
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model.edits import AttentionBias, AttentionMask
from cutaway.model.families import Layout
from cutaway.model.where import Where


def check_mask(edit: AttentionMask | AttentionBias, layout: Layout) -> None:
    """UsageError where the model's attention takes no mask, or has no such head."""
    name, how = type(edit).__name__, layout.hf.config._attn_implementation
    if how not in ("sdpa", "eager"):
        raise UsageError(f"{name}: attention {how!r} takes no mask; load the model with 'sdpa'")
    bad = [head for head in edit.heads or () if not 0 <= head < layout.n_heads]  # type: ignore[union-attr]
    if bad:
        raise UsageError(f"{name}: head {bad[0]} must be 0..{layout.n_heads - 1}")


def hide(
    edit: AttentionMask, layout: Layout, layer: int, *, where: Where, old: Tensor | None, hidden: Tensor
) -> tuple[Tensor, bool]:
    """Return the mask for one layer's attention in place of ``old``, and whether it hides anything more."""
    allowed, key_positions = _allowed(where, old, hidden.shape[1], layer)
    kept = _hide(edit, where, allowed, key_positions, layout.n_heads)
    boolean = layout.hf.config._attn_implementation == "sdpa"
    return _as_mask(kept, old, hidden.dtype, boolean), not torch.equal(kept, allowed.expand_as(kept))


def lean(
    edit: AttentionBias, layout: Layout, layer: int, *, where: Where, old: Tensor | None, hidden: Tensor
) -> tuple[Tensor, bool]:
    """Return the mask for one layer's attention with the bias in it, and whether it reaches any visible key."""
    allowed, key_positions = _allowed(where, old, hidden.shape[1], layer)
    chosen = _chosen(edit, where, key_positions, layout.n_heads) & allowed
    mask = old if old is not None and old.dtype != torch.bool else _as_mask(allowed, None, hidden.dtype, False)
    return torch.where(chosen, mask + edit.bias, mask), edit.bias != 0 and bool(chosen.any())


def _allowed(where: Where, mask: Tensor | None, width: int, layer: int) -> tuple[Tensor, Tensor]:
    """Return what each query may see [batch|1 head|1 pos keys], and each key column's absolute position."""
    offset, length = 0, where.keys.shape[1]
    if where.cache is not None:
        length, offset = where.cache.get_mask_sizes(width, layer)
    if mask is not None:
        length = mask.shape[-1]
    key_positions = where.keys[:, offset : offset + length]
    if key_positions.shape[1] < length:
        key_positions = nn.functional.pad(key_positions, (0, length - key_positions.shape[1]), value=-1)
    if mask is None:
        columns = torch.arange(length, device=key_positions.device)
        allowed = columns[None] <= (where.past - offset + columns[:width])[:, None]
        return allowed[None, None], key_positions
    if mask.dtype == torch.bool:
        return mask, key_positions
    return mask > torch.finfo(mask.dtype).min / 2, key_positions


def _hide(edit: AttentionMask, where: Where, allowed: Tensor, key_positions: Tensor, n_heads: int) -> Tensor:
    kept = allowed & ~_chosen(edit, where, key_positions, n_heads)
    itself = where.queries[:, None, :, None] == key_positions[:, None, None, :]
    lost = allowed.any(-1, keepdim=True) & ~kept.any(-1, keepdim=True)
    return kept | (lost & itself & allowed)


def _chosen(edit: AttentionMask | AttentionBias, where: Where, key_positions: Tensor, n_heads: int) -> Tensor:
    """Return the (query, key) pairs that an edit means [batch|1 head|1 pos keys]."""
    queries, _ = where.match(edit.queries, where.queries)  # type: ignore[arg-type]
    keys, _ = where.match(edit.keys, key_positions)  # type: ignore[arg-type]
    queries = where.queries >= 0 if queries is None else queries
    keys = key_positions >= 0 if keys is None else keys
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    if edit.heads is None:
        return pairs
    listed = torch.tensor(edit.heads, device=pairs.device)
    heads = torch.zeros(n_heads, dtype=torch.bool, device=pairs.device).index_fill(0, listed, True)
    return pairs & heads[None, :, None, None]


def _as_mask(kept: Tensor, old: Tensor | None, dtype: torch.dtype, boolean: bool) -> Tensor:
    if old is not None and old.dtype != torch.bool:
        return torch.where(kept, old, torch.finfo(old.dtype).min)
    if boolean:
        return kept
    return torch.zeros_like(kept, dtype=dtype).masked_fill(~kept, torch.finfo(dtype).min)
