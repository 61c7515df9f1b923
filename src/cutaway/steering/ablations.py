"""Directional ablation: nothing a model writes into its stream may point along some directions.

Every write is projected: the embedding, and what attention and MLP of every layer add. Their sum is the stream, so the
stream has no part along the directions anywhere, at any position, prompt and answer alike. This equals taking the
directions out of the weights that write (``W <- W - r r' W``), which a test shows.

Source: card k-steering, issue of the room (steering vectors and directional ablation); the method is that of Arditi et
al. 2024, arXiv:2406.11717.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Project

WRITES = ("resid_pre.0", "attn_out.*", "mlp_out.*")
"""All that adds to the stream; it starts with the embedding, with that of positions where there is one."""


def ablation(directions: Float[Tensor, "k d_model"] | Float[Tensor, " d_model"]) -> tuple[Project, ...]:
    """Edits that keep the span of ``directions`` out of everything written to the stream."""
    return tuple(Project(site, torch.atleast_2d(directions)) for site in WRITES)


def random_ablations(
    directions: Float[Tensor, "k d_model"] | Float[Tensor, " d_model"], n: int = 20, seed: int = 0
) -> tuple[tuple[Project, ...], ...]:
    """``n`` ablations of random spans of the same number of directions: the controls."""
    if n < 1:
        raise UsageError(f"n={n}: at least 1 control; 20 or more to compare with")
    shape = torch.atleast_2d(directions).shape
    drawn = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return tuple(ablation(each) for each in drawn)
