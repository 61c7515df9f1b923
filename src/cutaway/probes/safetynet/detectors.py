"""Four ways to say how far a row lies from normal rows. Each is fitted on normal rows only; each scores a row alone.

    mahalanobis   sqrt(z C^-1 z), C the covariance shrunk towards a multiple of the identity (Ledoit, Wolf 2004)
    pca           distance to the mean inside the principal subspace (the published one); ``pca residual``: to it
    autoencoder   squared error of a network with a narrow middle, mean over features
    vae           the same with a noisy middle held near N(0, I); scored without noise

z is the row standardised by normal mean and spread. Source: card safetynet (2505.14300), Method 4. Differences to the
released code, on purpose: covariance is shrunk, not only stabilised by 1e-6 (trap 3); networks have a middle narrower
than the row; the KL is summed over latents and averaged over rows, not summed over the batch; errors are one number a
row, never a mean over a batch (trap 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import UsageError, nearest

NAMES = ("mahalanobis", "pca", "pca residual", "autoencoder", "vae")
COMPONENTS = 100
EPOCHS, BATCH, RATE, DECAY, KL = 40, 128, 4e-3, 1e-4, 0.1


@dataclass(frozen=True, eq=False)
class Detector:
    """A fitted detector; larger scores are stranger."""

    name: str
    centre: Float[Tensor, " d"] = field(repr=False)
    scale: Float[Tensor, " d"] = field(repr=False)
    distance: Callable[[Tensor], Tensor] = field(repr=False)
    """Scores of standardised rows."""
    fitted_on: int = 0

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "row width"]) -> Float[Tensor, " row"]:
        """Return one score a row; UsageError for another width or values that are not finite."""
        check_signal(x)
        if x.shape[1] != len(self.centre):
            raise UsageError(
                f"rows of {x.shape[1]} features; the {self.name} detector was fitted on {len(self.centre)}"
            )
        return self.distance((x.float() - self.centre) / self.scale)


def fit_detector(
    name: str,
    normal: Float[Tensor, "row d"],
    *,
    components: int = COMPONENTS,
    latent: int | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> Detector:
    """Fit one detector on normal rows. Features that never change count for nothing.

    ``components`` of pca (at most the rows and features there are), ``latent``: width of a network's middle (None:
    half the features, at most 64). UsageError for an unknown name, fewer than 10 rows, or values that are not finite.
    """
    if name not in NAMES:
        raise UsageError(f"detector {name!r}{nearest(name, NAMES)}")
    check_signal(normal)
    if len(normal) < 10:
        raise UsageError(f"{len(normal)} normal rows; a detector needs 10 or more")
    x = normal.float()
    centre, spread = x.mean(0), x.std(0, correction=0)
    scale = torch.where(spread > 1e-6 * (1 + centre.abs()), spread, torch.inf)
    z = (x - centre) / scale
    if name == "mahalanobis":
        distance = _mahalanobis(z)
    elif name.startswith("pca"):
        distance = _pca(z, components, inside=name == "pca")
    else:
        distance = _network(z, latent or min(64, max(1, z.shape[1] // 2)), epochs, noisy=name == "vae", seed=seed)
    return Detector(name, centre, scale, distance, len(x))


def fit_detectors(
    normal: Float[Tensor, "row d"], names: Sequence[str] = NAMES, *, seed: int = 0, components: int = COMPONENTS
) -> tuple[Detector, ...]:
    """Fit several on the same rows."""
    return tuple(fit_detector(name, normal, seed=seed, components=components) for name in names)


def check_signal(x: Float[Tensor, "row d"]) -> None:
    """UsageError for no rows, or values that are nan or infinite."""
    if x.dim() != 2 or not len(x):
        raise UsageError(f"signal of shape {list(x.shape)}: rows by features, at least one row")
    bad = (~torch.isfinite(x)).any(1).nonzero()[:, 0]
    if len(bad):
        raise UsageError(f"signal of row {int(bad[0])} is nan or infinite ({len(bad)} such rows); leave them out")


def _mahalanobis(z: Float[Tensor, "row d"]) -> Callable[[Tensor], Tensor]:
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(z.double().numpy(), assume_centered=True)
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    whitener = (vectors / values.clamp(min=1e-12 * float(values.max())).sqrt()).float()
    return lambda rows: (rows @ whitener).norm(dim=1)


def _pca(z: Float[Tensor, "row d"], components: int, inside: bool) -> Callable[[Tensor], Tensor]:
    if components < 1:
        raise UsageError(f"components={components}: 1 or more")
    _, _, directions = torch.linalg.svd(z, full_matrices=False)
    # A subspace that holds everything has no outside; leave a tenth of the directions to the residual.
    basis = directions[: min(components, max(1, int(0.9 * len(directions))))].T
    if inside:
        return lambda rows: (rows @ basis).norm(dim=1)
    return lambda rows: (rows - rows @ basis @ basis.T).norm(dim=1)


class _Auto(nn.Module):
    """d -> hidden -> latent -> hidden -> d."""

    def __init__(self, d: int, latent: int, noisy: bool) -> None:
        super().__init__()
        hidden = max(128, min(256, d))
        self.noisy, self.latent = noisy, latent
        self.down = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, latent * (1 + noisy)))
        self.up = nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, d))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the KL of each row (0 without noise)."""
        code = self.down(z)
        if not self.noisy:
            return self.up(code), code.new_zeros(len(z))
        mean, log_variance = code.chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return self.up(drawn), kl


def _network(z: Float[Tensor, "row d"], latent: int, epochs: int, noisy: bool, seed: int) -> Callable[[Tensor], Tensor]:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = _Auto(z.shape[1], latent, noisy).to(z.device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        steps = epochs * -(-len(z) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(z)).split(BATCH):
                made, kl = network(z[batch])
                loss = ((made - z[batch]).square().sum(1) + KL * kl).mean()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                schedule.step()
    network.eval().requires_grad_(False)
    return lambda rows: (network(rows)[0] - rows).square().mean(1)
