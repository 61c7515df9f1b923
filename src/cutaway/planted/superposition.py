"""Activations made of more features than dimensions, with the true directions, codes and firing rates.

    x = sum over firing features of coefficient * direction  (+ noise),   coefficient ~ uniform [0, 1)

1. Directions are random unit vectors.
2. Features stand in groups of (nearly) equal size, and every feature is in one. A feature's rate falls with its place:
   by ``decay`` from one to the next within its group, or as 1 / rank over all (``law="zipf"``); rates are scaled to
   ``active`` firing features a row on average.
3. In each row a group is switched on with probability ``q = 1 - together (1 - p_max)``, and its features then fire
   independently with ``p / q``. So rates are exact, two features of a group have the correlation

       phi = p_i p_j (1 / q - 1) / sqrt(p_i (1 - p_i) p_j (1 - p_j)),

   two of different groups none; with ``together=1`` the first feature of a group is the parent of the others: none
   fires without it. Each row draws its own support.
4. The null has rows from a Gaussian of the same mean and covariance: no direction is sparser than another.

Source: card mfr-sae (2411.01220), data; its released generator draws one support for a million rows, which this does
not.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError, nearest

Law = Literal["decay", "zipf"]


@dataclass(frozen=True)
class SuperpositionTruth:
    """What a dictionary should find."""

    atoms: Float[Tensor, "latent d"]
    """Unit directions; no row for the null."""
    rates: Float[Tensor, " latent"]
    """Share of rows in which each feature fires."""
    groups: Int[Tensor, " latent"]
    """Number of each feature's group."""
    on: Float[Tensor, " latent"]
    """Probability that the feature's group is switched on."""

    @property
    def active(self) -> float:
        """Features that fire in a row, on average."""
        return float(self.rates.sum())

    def correlation(self) -> Float[Tensor, "latent latent"]:
        """Correlation (phi) of every two features' firing; 1 on the diagonal."""
        p = self.rates.double()
        same = self.groups[:, None] == self.groups
        joint = torch.where(same, p[:, None] * p / self.on.double()[:, None], p[:, None] * p)
        spread = (p * (1 - p)).sqrt()
        found = (joint - p[:, None] * p) / (spread[:, None] * spread)
        return found.fill_diagonal_(1.0).float()


@dataclass(frozen=True)
class Superposition:
    """Planted activations; draw as many as needed."""

    truth: SuperpositionTruth
    noise: float
    null: bool
    _hidden: SuperpositionTruth = field(repr=False)
    """What rows are made of; the null has its moments only."""

    @property
    def d(self) -> int:
        """Dimensions of a row."""
        return self._hidden.atoms.shape[1]

    def codes(self, n: int, seed: int = 0) -> Float[Tensor, "row latent"]:
        """Return the true coefficients of ``n`` rows; UsageError for the null, which has none."""
        if self.null:
            raise UsageError("the null has no codes: its rows are Gaussian")
        return self._drawn(n, torch.Generator().manual_seed(seed))

    def rows(self, n: int, seed: int = 0) -> Float[Tensor, "row d"]:
        """Return ``n`` rows; those of one seed belong to the codes of that seed."""
        if n < 1:
            raise UsageError(f"n={n}: 1 or more rows")
        generator = torch.Generator().manual_seed(seed)
        if self.null:
            mean, root = self._moments()
            return mean + torch.randn(n, self.d, generator=generator) @ root
        made = self._drawn(n, generator) @ self._hidden.atoms
        return made + self.noise * torch.randn(n, self.d, generator=generator) if self.noise else made

    def _drawn(self, n: int, generator: torch.Generator) -> Tensor:
        about = self._hidden
        group = torch.zeros(int(about.groups.max()) + 1).scatter(0, about.groups, about.on)
        switched = torch.rand(n, len(group), generator=generator) < group
        fires = torch.rand(n, len(about.rates), generator=generator) < about.rates / about.on
        return torch.rand(n, len(about.rates), generator=generator) * (fires & switched[:, about.groups])

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean of a row and a root of its covariance."""
        about = self._hidden
        p, atoms = about.rates.double(), about.atoms.double()
        same = about.groups[:, None] == about.groups
        # Coefficients are uniform: mean p / 2, second moment p / 3.
        shared = torch.where(same, p[:, None] * p / about.on.double()[:, None] - p[:, None] * p, 0.0) / 4
        covariance = shared - torch.diag(torch.diag(shared)) + torch.diag(p / 3 - p.square() / 4)
        whole = atoms.T @ covariance @ atoms + self.noise**2 * torch.eye(self.d, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(whole)
        return (p / 2 @ atoms).float(), (values.clamp(min=0).sqrt()[:, None] * vectors.T).float()


def superposition(
    d: int = 64,
    n_features: int = 128,
    active: float = 8.0,
    *,
    groups: int = 8,
    together: float = 0.5,
    law: Law | str = "decay",
    decay: float = 0.99,
    noise: float = 0.0,
    null: bool = False,
    seed: int = 0,
) -> Superposition:
    """Plant ``n_features`` directions in ``d`` dimensions, ``active`` of them firing in a row on average.

    groups: of correlated features; together: 0 (independent) to 1 (a parent in every group); noise: standard deviation
    in each dimension; seed: of the directions.

    >>> planted = superposition(d=16, n_features=32, active=4.0)
    >>> round(planted.truth.active, 6), planted.rows(5).shape
    (4.0, torch.Size([5, 16]))
    """
    if law not in get_args(Law):
        raise UsageError(f"law={law!r}{nearest(law, get_args(Law))}")
    if d < 1 or not 1 <= groups <= n_features:
        raise UsageError(f"d={d}, n_features={n_features}, groups={groups}: d from 1, groups from 1 to n_features")
    if not 0 <= together <= 1 or not 0 < decay <= 1 or noise < 0:
        raise UsageError(f"together={together}, decay={decay}, noise={noise}: in [0, 1], (0, 1], and from 0")
    group = torch.arange(n_features) * groups // n_features
    if law == "zipf":
        weights = 1 / (1 + torch.arange(n_features, dtype=torch.float64))
    else:
        first = torch.searchsorted(group, torch.arange(groups))
        weights = decay ** (torch.arange(n_features) - first[group]).double()
    rates = weights * active / weights.sum()
    if not active > 0 or float(rates.max()) >= 1:
        raise UsageError(f"active={active}: the most frequent feature would fire at a rate of {float(rates.max()):.2f}")
    most = torch.zeros(groups, dtype=torch.float64).scatter_reduce(0, group, rates, "amax")
    on = (1 - together * (1 - most))[group]
    atoms = torch.randn(n_features, d, generator=torch.Generator().manual_seed(seed))
    hidden = SuperpositionTruth(torch.nn.functional.normalize(atoms, dim=-1), rates.float(), group, on.float())
    nothing = SuperpositionTruth(torch.zeros(0, d), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    return Superposition(nothing if null else hidden, noise, null, hidden)
