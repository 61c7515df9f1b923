"""Attention weights from captured queries and keys: the arithmetic of a family's own eager attention."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.model.families import Layout


@dataclass
class Ingredients:
    """What a layer's forward gave: q, k [batch pos head d_head] before rotation, and the call's arguments."""

    q: Tensor | None = None
    k: Tensor | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def check(layout: Layout, layer: int) -> None:
    """UsageError with the reason where a layer's pattern is not a plain softmax of q and k."""
    attn = layout.attn(layer)
    if hasattr(attn, "sinks"):
        raise UsageError(f"pattern.{layer}: this model's attention has sinks outside the keys; capture z instead")


@dataclass(frozen=True)
class Meeting:
    """One layer's queries and keys as its softmax meets them: rotated, with the mask and the scale."""

    q: Float[Tensor, "batch head queries d_head"]
    k: Float[Tensor, "batch kv_head keys d_head"]
    mask: Tensor | None
    """Boolean (True: seen) or additive, [batch|1 head|1 queries keys]; None: a column sees itself and those before."""
    scale: float
    cap: float | None
    rows: Int[Tensor, "batch queries"] | None
    """The column of each query; None: all columns in order."""

    def weights(self, part: slice | None = None) -> Float[Tensor, "batch head queries keys"]:
        """Return the attention weights; with ``part`` (start, stop) of these queries only, over keys before stop.

        A causal model's queries before ``stop`` see no later key, so nothing is lost.
        """
        q, mask, keys = self.q, self.mask, self.k.shape[2]
        if part is not None:
            assert self.rows is None
            q, keys = q[:, :, part], part.stop
            mask = None if mask is None else mask[:, :, part, :keys]
        if mask is None:
            rows = torch.arange(self.k.shape[2], device=q.device)[None] if self.rows is None else self.rows
            rows = rows if part is None else rows[:, part]
            mask = (torch.arange(keys, device=q.device) <= rows[..., None])[:, None]
        grouped = q.unflatten(1, (self.k.shape[1], -1))
        scores = (grouped @ self.k[:, :, None, :keys].transpose(-1, -2)).flatten(1, 2).mul_(self.scale)
        if self.cap is not None:
            scores = torch.tanh(scores / self.cap) * self.cap
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            scores.add_(mask)
        return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)


def meeting(layout: Layout, layer: int, made_of: Ingredients, rows: Int[Tensor, "batch queries"] | None) -> Meeting:
    """Return what one layer's softmax reads, for query columns ``rows`` or all."""
    attn = layout.attn(layer)
    assert made_of.q is not None
    assert made_of.k is not None
    q, k = made_of.q.transpose(1, 2), made_of.k.transpose(1, 2)
    mask, angles = made_of.arguments.get("attention_mask"), made_of.arguments.get("position_embeddings")
    k = _rotate(attn, k, angles)
    if rows is not None:
        at = torch.arange(len(rows), device=rows.device)[:, None]
        q = q.transpose(1, 2)[at, rows].transpose(1, 2)
        if mask is not None:
            mask = mask.expand(len(rows), *mask.shape[1:]).transpose(1, 2)[at, rows].transpose(1, 2)
        if angles is not None:
            angles = tuple(angle.expand(len(rows), *angle.shape[1:])[at, rows] for angle in angles)
    cap = getattr(attn, "attn_logit_softcapping", None)
    scale = float(getattr(attn, "scaling", layout.d_head**-0.5))
    return Meeting(_rotate(attn, q, angles), k, mask, scale, None if cap is None else float(cap), rows)


def attention_pattern(
    layout: Layout, layer: int, made_of: Ingredients, rows: Tensor | None
) -> Float[Tensor, "batch head queries keys"]:
    """Return the attention weights of one layer, for query columns ``rows`` [batch n] or all."""
    return meeting(layout, layer, made_of, rows).weights()


def _rotate(attn: nn.Module, heads: Tensor, angles: Any) -> Tensor:
    if angles is None:
        return heads
    cos, sin = angles
    rotary = getattr(sys.modules[type(attn).__module__], "apply_rotary_pos_emb", None)
    if rotary is None:
        raise UsageError(f"pattern: {type(attn).__name__} rotates q and k in its own way; capture q, k or z instead")
    width = cos.shape[-1]
    # The family's function turns queries and keys together; no heads stand in for the other side.
    turned = rotary(heads[..., :width], heads[:, :0, :, :width], cos, sin)[0]
    return torch.cat([turned, heads[..., width:]], -1)
