"""What a head does to the neuron's token: ablate it, and compare prompts where it is active with those where not.

Pairs of one neuron share its prompts and its token, so they are not independent draws. The permutation test of the
Kolmogorov-Smirnov distance therefore exchanges "active" and "inactive" for all pairs of a neuron at once.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.attention_mlp.method import Place
from cutaway.model import Batch, EditError, Mask, Model


@dataclass(frozen=True)
class Drops:
    """Fall of a token's probability at the end of each prompt when a head is taken out."""

    probability: Float[Tensor, " prompt"]
    log: Float[Tensor, " prompt"]


@dataclass(frozen=True)
class Distance:
    """Two samples compared."""

    d: float
    """Kolmogorov-Smirnov distance."""
    p: float
    """Share of exchanges with a distance as large, the observed one included."""
    n: int
    """Pairs."""
    clusters: int

    def __repr__(self) -> str:
        return f"D {self.d:.3f}, permutation p {self.p:.4f} ({self.n} pairs of {self.clusters} neurons)"


@torch.no_grad()
def ablate(model: Model, head: Place, prompts: Sequence[Sequence[int]], token: int) -> Drops:
    """Zero one head's output before the output projection, at every position; its group's keys and values stay."""
    batch = model.batch([list(prompt) for prompt in prompts])
    before = _log_odds(model, batch, token)
    after = before
    # A head that writes nothing on these prompts has nothing to lose, which the edit reports as an error.
    with suppress(EditError), model.edited(Mask(f"z.{head[0]}", index=head[1])):
        after = _log_odds(model, batch, token)
    return Drops(before.exp() - after.exp(), before - after)


def compare(
    active: Sequence[float], inactive: Sequence[float], neurons: Sequence[object], *, n: int = 2000, seed: int = 0
) -> Distance:
    """Compare paired samples, one value of each kind for each neuron-head pair.

    Distances of small samples are tied; ties are broken by the difference of the means, which keeps p uniform where
    nothing is there. UsageError for samples that do not pair up.
    """
    a, b = np.asarray(active, dtype=float), np.asarray(inactive, dtype=float)
    if a.shape != b.shape or len(neurons) != len(a) or len(a) == 0:
        raise UsageError(f"{len(a)} active, {len(b)} inactive values, {len(neurons)} neurons: one of each a pair")
    labels = {name: i for i, name in enumerate(dict.fromkeys(neurons))}
    member = np.array([labels[name] for name in neurons])
    both = np.concatenate([a, b])
    order = np.argsort(both, kind="stable")
    last = np.append(np.diff(both[order]) != 0, True)
    spread = both.std() or 1.0

    def statistic(flip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        signs = np.where(flip[:, member], -1.0, 1.0)
        weights = np.concatenate([signs, -signs], 1)[:, order] / len(a)
        distance = np.abs(np.cumsum(weights, 1))[:, last].max(1)
        return distance, np.abs((signs * (a - b)).mean(1)) / spread

    rng = np.random.default_rng(seed)
    d, tie = statistic(np.zeros((1, len(labels)), dtype=bool))
    others, ties = statistic(rng.random((n, len(labels))) < 0.5)
    close = np.isclose(others, d[0], rtol=0, atol=1e-9)
    larger = (others > d[0] + 1e-9) | (close & (ties >= tie[0] - 1e-12))
    return Distance(float(d[0]), float((1 + larger.sum()) / (n + 1)), len(a), len(labels))


def _log_odds(model: Model, batch: Batch, token: int) -> Tensor:
    last = batch.mask.long().cumsum(-1).argmax(-1)
    logits = model.logits(batch)[torch.arange(len(batch)), last]
    return logits.float().log_softmax(-1)[:, token].cpu()
