"""Matching pursuit: a row as a sum of few unit atoms, chosen one after the other.

    r = x; repeat k times:  j = argmax |D r|,  a_j += D_j . r,  r -= (D_j . r) D_j

With the Gram matrix ``G = D D^T`` the products ``c = D r`` are kept up to date by ``c -= c_j G_j``, so after the first
product a step costs n and not n * d. One row at a time its products stay in the processor's cache. An atom may be
chosen again; its coefficients are added, so L0 is at most k. Variants:

- ``nonnegative``: j = argmax D r, ending where no product is positive;
- ``orthogonal``: coefficients of all chosen atoms are solved again after each step (better at the same L0).
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg.blas import isamax, saxpy
from torch import Tensor

from cutaway.errors import UsageError, nearest
from cutaway.features.dictionary import Codes

Variant = Literal["matching", "nonnegative", "orthogonal"]
_ROWS = 256
"""Whose first products are computed together."""
_NOTHING = 1e-12


def pursue(
    rows: Float[Tensor, "row d_in"],
    atoms: Float[Tensor, "latent d"],
    k: int,
    *,
    gram: Float[Tensor, "latent latent"] | None = None,
    variant: Variant | str = "matching",
) -> Codes:
    """Return the codes of ``rows``, atoms of unit norm, in ``k`` steps; ``gram`` saves computing it again.

    UsageError for k below 1, another width, an unknown variant, NaN.
    """
    check(rows, atoms.shape[1], k, variant)
    if len(atoms) == 0:
        return Codes(torch.zeros(len(rows), 1, dtype=torch.long), torch.zeros(len(rows), 1), 0)
    table = _array(atoms @ atoms.T if gram is None else gram)
    indices, values = np.zeros((len(rows), k), dtype=np.int64), np.zeros((len(rows), k), dtype=np.float32)
    done = 0
    for part in rows.split(_ROWS):
        products = _array(part.float() @ atoms.T)
        for row in products:
            chosen = chase(row, table, k, variant)
            indices[done, : len(chosen)] = list(chosen)
            values[done, : len(chosen)] = list(chosen.values())
            done += 1
    return Codes(torch.from_numpy(indices), torch.from_numpy(values), len(atoms))


def chase(products: np.ndarray, gram: np.ndarray, k: int, variant: str = "matching") -> dict[int, float]:
    """Return ``atom -> coefficient`` of one row, given its products with all atoms [latent], which are used up."""
    if variant == "orthogonal":
        return _orthogonal(products, gram, k)
    chosen: dict[int, float] = {}
    n, signed = len(products), variant == "matching"
    for _ in range(k):
        j = int(isamax(products, n)) if signed else int(products.argmax())
        value = float(products[j])
        if (abs(value) if signed else value) <= _NOTHING:
            break
        chosen[j] = chosen.get(j, 0.0) + value
        # In place; a row of the table may be longer than the products, whose atoms grow while one is built.
        saxpy(gram[j], products, n, -value)
    return chosen


def _orthogonal(products: np.ndarray, gram: np.ndarray, k: int) -> dict[int, float]:
    start, left = products.astype(np.float64), products.astype(np.float64)
    chosen: list[int] = []
    values: np.ndarray = np.zeros(0)
    for _ in range(min(k, len(products))):
        j = int(np.abs(left).argmax())
        if j in chosen or abs(left[j]) <= 1e-6:
            break
        chosen.append(j)
        inside = gram[np.ix_(chosen, chosen)].astype(np.float64)
        values = np.linalg.lstsq(inside, start[chosen], rcond=None)[0]
        left = start - values @ gram[chosen][:, : len(products)]
    return dict(zip(chosen, values.tolist(), strict=True))


def pursue_directly(rows: Float[Tensor, "row d_in"], atoms: Float[Tensor, "latent d"], k: int) -> Codes:
    """Return the codes by k full products, as published; the oracle and the baseline, and the way on a GPU."""
    check(rows, atoms.shape[1], k, "matching")
    left, codes = rows.float().clone(), rows.new_zeros(len(rows), len(atoms), dtype=torch.float32)
    at = torch.arange(len(rows), device=rows.device)
    order = torch.zeros(len(rows), k, dtype=torch.long, device=rows.device)
    for step in range(k):
        products = left @ atoms.T
        j = products.abs().argmax(-1)
        order[:, step] = j
        codes[at, j] += products[at, j]
        left -= products[at, j][:, None] * atoms[j]
    values = codes.gather(1, order)
    # An atom chosen twice holds the sum at its first place, nothing at the second.
    again = torch.stack([(order[:, :step] == order[:, step : step + 1]).any(-1) for step in range(k)], 1)
    return Codes(order, values.masked_fill(again, 0.0), len(atoms))


def check(rows: Tensor, d: int, k: int, variant: str) -> None:
    """Refuse what cannot be coded, with the reason."""
    if variant not in get_args(Variant):
        raise UsageError(f"variant={variant!r}{nearest(variant, get_args(Variant))}")
    if k < 1:
        raise UsageError(f"k={k}: 1 or more steps")
    if rows.shape[-1] != d:
        raise UsageError(f"rows of {rows.shape[-1]} dimensions; these atoms have {d}")
    if not bool(torch.isfinite(rows).all()):
        raise UsageError("activations contain NaN or infinity")


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
