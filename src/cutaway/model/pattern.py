"""Attention weights from captured queries and keys: the arithmetic of a family's own eager attention."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
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


def attention_pattern(
    layout: Layout, layer: int, made_of: Ingredients, rows: Tensor | None
) -> Float[Tensor, "batch head queries keys"]:
    """Return the attention weights of one layer, for query columns ``rows`` [batch n] or all."""
    attn = layout.attn(layer)
    assert made_of.q is not None
    assert made_of.k is not None
    q, k = _rotate(attn, made_of.q.transpose(1, 2), made_of.k.transpose(1, 2), made_of.arguments)
    k = k.repeat_interleave(layout.n_heads // layout.n_kv_heads, dim=1)
    mask = made_of.arguments.get("attention_mask")
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
    if rows is not None:
        at = torch.arange(len(rows), device=rows.device)[:, None]
        q = q.transpose(1, 2)[at, rows].transpose(1, 2)
        mask = mask.expand(len(rows), *mask.shape[1:]).transpose(1, 2)[at, rows].transpose(1, 2)
    scores = (q @ k.transpose(2, 3)).mul_(getattr(attn, "scaling", layout.d_head**-0.5))
    cap = getattr(attn, "attn_logit_softcapping", None)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    else:
        scores.add_(mask)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)


def _rotate(attn: nn.Module, q: Tensor, k: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    angles = arguments.get("position_embeddings")
    if angles is None:
        return q, k
    cos, sin = angles
    rotary = getattr(sys.modules[type(attn).__module__], "apply_rotary_pos_emb", None)
    if rotary is None:
        raise UsageError(f"pattern: {type(attn).__name__} rotates q and k in its own way; capture q, k or z instead")
    width = cos.shape[-1]
    q_turned, k_turned = rotary(q[..., :width], k[..., :width], cos, sin)
    return torch.cat([q_turned, q[..., width:]], -1), torch.cat([k_turned, k[..., width:]], -1)
