"""Sums and products over the few active latents of each row; nothing of a row for every latent is built.

The decoder's sum and its gradient to the values are one pass over the atoms that are active (`embedding_bag` and its
backward pass), the gradients to the atoms one pass over the rows sorted by latent.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def decoded(
    indices: Int[Tensor, "row slot"], values: Float[Tensor, "row slot"], atoms: Float[Tensor, "latent d"]
) -> tuple[Float[Tensor, "row d"], Callable[[Tensor], Tensor]]:
    """Return each row's weighted sum of its atoms, and a function from a gradient [row d] to that of the values.

    The function computes ``<gradient of the row, atom>`` for the row's own atoms, and works once.
    """
    with torch.enable_grad():
        weights = values.detach().requires_grad_(True)
        out = nn.functional.embedding_bag(indices, atoms.detach(), per_sample_weights=weights, mode="sum")

    def pull(gradient: Tensor) -> Tensor:
        return torch.autograd.grad(out, weights, gradient)[0]

    return out.detach(), pull


def by_latent(
    indices: Int[Tensor, "row slot"], n_latents: int
) -> Callable[[Float[Tensor, "row slot"], Float[Tensor, "row d"]], Float[Tensor, "latent d"]]:
    """Sort once; return a function from weights and rows to each latent's weighted sum of the rows it is active in."""
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=n_latents)
    starts, rows = counts.cumsum(0) - counts, order // indices.shape[1]

    def gathered(weights: Tensor, values: Tensor) -> Tensor:
        return nn.functional.embedding_bag(
            rows, values, starts, per_sample_weights=weights.flatten()[order], mode="sum"
        )

    return gathered


def summed(indices: Int[Tensor, "row slot"], values: Float[Tensor, "row slot"], n_latents: int) -> Tensor:
    """Return the sum of each latent's values."""
    return values.new_zeros(n_latents).index_add_(0, indices.flatten(), values.flatten())
