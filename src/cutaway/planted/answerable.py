"""Activations of several domains with one shared concept and a shortcut of each domain's own.

    x = +-concept * c  +-shortcut * s_D  + noise              the sign is the label; in other domains s_D is noise alone

All directions are orthonormal rows of ``atoms``: row 0 is c, row 1 + D is s_D, the rest mean nothing. A probe on c
alone transfers: AUROC Phi(sqrt 2 * concept). The best dense probe of domain D weighs c and s_D by their strengths, so
it has Phi(sqrt 2 * sqrt(concept^2 + shortcut^2)) at home and loses, elsewhere, exactly down to

    Phi(sqrt 2 * concept^2 / sqrt(concept^2 + shortcut^2))

The null gives labels by a coin. Source: card sae-answerability (2502.19964), At small scale.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from cutaway.errors import UsageError


@dataclass(frozen=True)
class TransferTruth:
    """What a transfer table should show."""

    concept: int | None
    """The atom that transfers; None for the null."""
    shortcuts: tuple[int, ...]
    """The atom of each domain that does not."""
    concept_area: float
    """AUROC of the concept alone, in every domain."""
    dense_home: float
    """AUROC of the best dense probe in its own domain."""
    dense_away: float
    """AUROC of that probe in another domain."""


@dataclass(frozen=True)
class TransferData:
    """Domains with a shared concept; atoms are the rows of a known dictionary."""

    atoms: Float[np.ndarray, "latent d"]
    truth: TransferTruth
    concept: float
    shortcut: float
    domains: int
    seed: int

    def rows(self, domain: int, n: int) -> tuple[Float[np.ndarray, "row d"], Bool[np.ndarray, " row"]]:
        """``n`` rows of one domain with their labels, half of each."""
        if not 0 <= domain < self.domains or n < 2:
            raise UsageError(f"domain={domain}, n={n}: domains 0 to {self.domains - 1}, 2 rows or more")
        rng = np.random.default_rng((self.seed, domain))
        labels = rng.permutation(np.arange(n) % 2 == 0)
        sign = np.where(labels, 1.0, -1.0)
        if self.truth.concept is None:
            sign = rng.permutation(sign)
        x = rng.standard_normal((n, self.atoms.shape[1]))
        x += sign[:, None] * (self.concept * self.atoms[0] + self.shortcut * self.atoms[1 + domain])
        return x.astype(np.float32), labels


def transfer_data(
    *, domains: int = 3, d: int = 48, concept: float = 1.6, shortcut: float = 2.2, null: bool = False, seed: int = 0
) -> TransferData:
    """Draw the directions; ``concept`` and ``shortcut`` are half the distance of the class means, in noise units."""
    if domains < 2 or d < domains + 2 or concept <= 0 or shortcut < 0:
        raise UsageError(f"domains={domains}, d={d}, concept={concept}, shortcut={shortcut}: 2 domains, room for all")
    atoms = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0].T
    both = float(np.hypot(concept, shortcut))
    areas = [0.5] * 3 if null else [float(stats.norm.cdf(2**0.5 * s)) for s in (concept, both, concept**2 / both)]
    truth = TransferTruth(None if null else 0, () if null else tuple(range(1, 1 + domains)), *areas)
    return TransferData(atoms, truth, concept, shortcut, domains, seed)
