"""How alike two dictionaries are, how much of a truth one holds, and which of its latents come back in others.

Cosines of atoms, in [-1, 1]. Two ways to pair the atoms of two dictionaries, both in use under the name MMCS:

- ``hungarian``: one to one, the assignment of the largest sum; its mean is never above
- ``maximum``: every atom with its most similar one on the other side, averaged over both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cutaway.errors import UsageError, nearest
from cutaway.features.dictionary import Dictionary

Matching = Literal["hungarian", "maximum"]
Atoms = Float[Tensor, "_latent _d"]
"""Of any number and width: two dictionaries need not have the same, and what does not fit is said in words."""


@dataclass(frozen=True)
class Pairs:
    """Which atom goes with which: one entry each."""

    one: Int[Tensor, " pair"]
    two: Int[Tensor, " pair"]


def unit(atoms: Atoms) -> Atoms:
    """Return atoms of length 1."""
    return torch.nn.functional.normalize(atoms, dim=-1)


def pairs(one: Atoms, two: Atoms, matching: Matching | str = "hungarian") -> Pairs:
    """Pair the atoms of two dictionaries; UsageError for other widths or an unknown matching.

    One to one leaves atoms of the larger dictionary out.
    """
    if matching not in get_args(Matching):
        raise UsageError(f"matching={matching!r}{nearest(matching, get_args(Matching))}")
    table = cosines(one, two)
    if matching == "hungarian":
        rows, columns = linear_sum_assignment(table.double().cpu().numpy(), maximize=True)
        return Pairs(torch.from_numpy(rows).to(one.device), torch.from_numpy(columns).to(one.device))
    ahead, back = table.argmax(1), table.argmax(0)
    rows_of, columns_of = (torch.arange(n, device=one.device) for n in table.shape)
    return Pairs(torch.cat([rows_of, back]), torch.cat([ahead, columns_of]))


def cosines(one: Atoms, two: Atoms) -> Float[Tensor, "_latent _other"]:
    """Return the cosine of every two atoms."""
    if one.shape[1] != two.shape[1]:
        raise UsageError(f"atoms of {one.shape[1]} and of {two.shape[1]} dimensions cannot be compared")
    if min(len(one), len(two)) == 0:
        raise UsageError("a dictionary without atoms has nothing to compare")
    return unit(one) @ unit(two).T


def likeness(one: Atoms, two: Atoms, matching: Matching | str = "hungarian") -> float:
    """Return the mean cosine of paired atoms ("MMCS" of the named kind)."""
    found = pairs(one, two, matching)
    return float((unit(one)[found.one] * unit(two)[found.two]).sum(-1).mean())


@dataclass(frozen=True)
class Recovery:
    """How much of the true dictionary was found."""

    mean: float
    """Over true atoms: the largest cosine with an atom found."""
    above: float
    """Share of true atoms with such a cosine above 0.9."""
    one_to_one: float
    """Mean over true atoms of the cosine in the best one-to-one assignment; atoms without a partner count 0."""


def recovery(found: Atoms, true: Atoms) -> Recovery:
    """Compare atoms found with the true ones."""
    best = cosines(true, found).amax(1)
    matched = pairs(true, found)
    total = (unit(true)[matched.one] * unit(found)[matched.two]).sum()
    return Recovery(float(best.mean()), float((best > 0.9).float().mean()), float(total) / len(true))


def reproducibility(dictionaries: Sequence[Dictionary] | Sequence[Atoms]) -> tuple[Float[Tensor, " _latent"], ...]:
    """Return for each dictionary its latents' scores: the largest cosine with any atom of any other dictionary.

    A latent that only one seed invented scores low. UsageError for fewer than two dictionaries.
    """
    tables = _compared(dictionaries)
    n = len(tables)
    return tuple(torch.stack([tables[i][j].amax(1) for j in range(n) if j != i]).amax(0) for i in range(n))


def consensus(
    dictionaries: Sequence[Dictionary] | Sequence[Atoms], cosine: float = 0.9
) -> tuple[tuple[int, float], ...]:
    """Return (m, share of all latents with a like atom in at least m of the dictionaries, their own counted)."""
    tables = _compared(dictionaries)
    n = len(tables)
    counts = torch.cat(
        [1 + torch.stack([tables[i][j].amax(1) >= cosine for j in range(n) if j != i]).sum(0) for i in range(n)]
    )
    return tuple((m, float((counts >= m).float().mean())) for m in range(1, n + 1))


def functional(one: Dictionary, two: Dictionary, rows: Float[Tensor, "row d"]) -> Float[Tensor, " latent"]:
    """Return for each latent of ``one`` its best correlation over ``rows`` with the values of a latent of ``two``.

    Like atoms may fire at different rows: this compares what latents do. A latent that is silent on ``rows`` is nan.
    """
    values = [each.encode(rows).dense().double() for each in (one, two)]
    centred = [each - each.mean(0) for each in values]
    norms = [each.norm(dim=0) for each in centred]
    scaled = [each / norm.clamp(min=1e-30) for each, norm in zip(centred, norms, strict=True)]
    best = (scaled[0].T @ scaled[1]).amax(1)
    return torch.where(norms[0] > 0, best, torch.nan).float()


def duplicates(atoms: Atoms, cosine: float = 0.95) -> float:
    """Return the share of atoms with a like one in the same dictionary."""
    table = cosines(atoms, atoms).fill_diagonal_(-1.0)
    return float((table.amax(1) > cosine).float().mean())


def effective_rank(atoms: Atoms) -> float:
    """Return exp of the entropy of the normalised singular values: how many directions the atoms spread over."""
    values = np.linalg.svd(unit(atoms).detach().cpu().numpy(), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _compared(dictionaries: Sequence[Dictionary] | Sequence[Atoms]) -> list[list[Tensor]]:
    if len(dictionaries) < 2:
        raise UsageError(f"{len(dictionaries)} dictionary: a score of agreement needs two or more")
    atoms = [each if isinstance(each, Tensor) else each.atoms for each in dictionaries]
    return [[cosines(a, b) for b in atoms] for a in atoms]
