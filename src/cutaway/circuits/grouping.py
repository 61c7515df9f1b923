"""Attention with one key and value for each query head, in models whose heads share them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cutaway.circuits.parts import Anatomy
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError


@contextmanager
def ungrouped(body: Anatomy, wiring: Wiring) -> Iterator[None]:
    """Let attention take one key and value for each query head while heads read on their own."""
    if wiring.grouping == "shared" or wiring.n_heads == wiring.n_kv_heads:
        yield
        return
    attns: list[Any] = [body.model.layout.attn(layer) for layer in range(wiring.n_layers)]
    if any(len(block.projections) == 1 for block in body.blocks):
        raise UsageError("this family computes q, k and v in one projection with shared heads; use grouping='shared'")
    before = [attn.num_key_value_groups for attn in attns]
    try:
        for attn in attns:
            attn.num_key_value_groups = 1
        yield
    finally:
        for attn, groups in zip(attns, before, strict=True):
            attn.num_key_value_groups = groups
