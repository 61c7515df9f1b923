"""Mutual feature regularisation: peers trained side by side with a penalty that pulls their dictionaries together.

Each of N peers is a sparse autoencoder with one matrix: rows of ``W`` encode, the same rows at length 1 (``D``) decode,

    pre = W (x - b_dec) + b;   keep the k largest, if positive;   x_hat = D^T values + b_dec

and all learn from the same batch. A step descends, summed over peers and once for all pairs,

    |x - x_hat|^2 / |x - mean|^2   +   weight * w(t) * mean over pairs (i, j) of (1 - M_ij)

1. ``M_ij`` is the mean cosine of paired atoms, one to one (``hungarian``) or with the nearest (``maximum``); see
   `similarity`. The pairing is found anew every ``refresh`` steps and held fixed for the gradient.
2. ``w(t)`` rises from 0 to 1 as half a cosine over ``warm_up`` steps.
3. One Adam for each peer. When over ``window`` steps the latents' firing rates r are so uneven that the mean of
   ``|r - k/n|^3 / (k/n)^3`` exceeds ``redraw``, that peer starts anew with a fresh state (first half of training).
4. Controls: ``towards="random"`` pulls to fixed random atoms, ``"shuffled"`` to a peer's atoms with their coordinates
   permuted; nothing can be learnt from either.

The paper (Marks, Paren, Krueger, Barez 2024, arXiv 2411.01220) keeps negative values among the k and has no ``b_dec``;
both are as here in the room's other dictionaries, so that a trained peer is one of them. Its redraw target is
written for k/n = 1/16; here it is k/n. The error is taken as a share of the variance, so ``weight`` does not depend on
the activations' scale.

Limit: real activations have latents that fire at most tokens; there the rule of step 3 would redraw without end, so
leave ``redraw`` at None.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Provenance
from cutaway.features.kernels import by_latent, decoded, summed
from cutaway.features.mfr_sae.similarity import Matching, Pairs, pairs, unit
from cutaway.features.sparse import SparseDictionary
from cutaway.features.train import batches, check_rows

Towards = Literal["peers", "random", "shuffled"]


@dataclass(frozen=True)
class MfrConfig:
    """How peers are trained."""

    peers: int = 2
    n_latents: int = 128
    k: int = 8
    weight: float = 0.1
    """Of the penalty; 0 trains peers that know nothing of each other."""
    matching: Matching | str = "hungarian"
    refresh: int = 1
    """Steps between two pairings."""
    towards: Towards | str = "peers"
    batch: int = 1024
    rate: float = 3e-3
    """Adam's."""
    warm_up: int = 100
    """Steps until the penalty has its whole weight."""
    steps: int | None = None
    """None: until the rows end."""
    cool_down: float = 0.2
    """Share of the steps at the end over which the rate falls to zero; needs ``steps``."""
    redraw: float | None = None
    """Unevenness of firing rates above which a peer starts anew, 2.5 in the paper; None never does."""
    window: int = 100
    """Steps over which firing rates are counted for that."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("matching", Matching), ("towards", Towards)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(f"{name}={getattr(self, name)!r}{nearest(getattr(self, name), get_args(allowed))}")
        for name in ("peers", "n_latents", "k", "refresh", "batch", "window"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
        if self.k > self.n_latents:
            raise UsageError(f"k={self.k}: at most n_latents={self.n_latents}")
        if self.weight < 0 or not 0 < self.rate < 1:
            raise UsageError(f"weight={self.weight}, rate={self.rate}: weight from 0, rate between 0 and 1")
        if self.weight > 0 and self.peers < 2:
            raise UsageError(f"peers={self.peers}: a penalty of weight {self.weight} needs two or more")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps={self.steps}: 1 or more")

    def rate_at(self, step: int) -> float:
        """Return Adam's rate at a step, counted from 0."""
        if self.steps is None or self.cool_down <= 0:
            return self.rate
        return self.rate * min(1.0, (self.steps - step) / (self.cool_down * self.steps))

    def weight_at(self, step: int) -> float:
        """Return the penalty's weight at a step."""
        if step >= self.warm_up:
            return self.weight
        return self.weight * (1 - math.cos(math.pi * step / self.warm_up)) / 2


@dataclass(frozen=True)
class PeersStep:
    """What one step measured, before it was taken."""

    step: int
    rows: int
    fvu: tuple[float, ...]
    """Of each peer: share of the batch's variance that it misses."""
    likeness: float
    """Mean over pairs of M; nan where nothing was paired."""


@dataclass(frozen=True)
class Peers:
    """Dictionaries that were trained together."""

    dictionaries: tuple[SparseDictionary, ...]
    history: tuple[PeersStep, ...]
    redrawn: tuple[int, ...]
    """How often each peer started anew."""
    complete: bool = True
    """False when Ctrl-C ended it early."""
    config: MfrConfig = field(default_factory=MfrConfig)

    def __repr__(self) -> str:
        last = self.history[-1]
        fvu = sum(last.fvu) / len(last.fvu)
        return f"Peers({len(self.dictionaries)} of {self.config.n_latents} latents, {last.rows:,} rows, fvu {fvu:.3f})"


def train_peers(
    rows: Iterable[Tensor],
    config: MfrConfig,
    *,
    provenance: Provenance | None = None,
    tick: Callable[[PeersStep], None] = lambda step: None,
) -> Peers:
    """Train peers on ``rows``, chunks [row d] of any length, mixed already; Ctrl-C returns what was learnt so far.

    UsageError for rows too few for one batch, with NaN or all alike.
    """
    trainer: PeerTrainer | None = None
    history: list[PeersStep] = []
    complete = True
    try:
        for batch in batches(rows, config.batch):
            trainer = trainer or PeerTrainer(batch, config)
            history.append(trainer.step(batch))
            tick(history[-1])
            if config.steps is not None and len(history) >= config.steps:
                break
    except KeyboardInterrupt:
        complete = False
    if trainer is None or not history:
        raise UsageError(f"rows: fewer than one batch of {config.batch}; pass more, or a smaller batch")
    made = trainer.finish(replace(provenance or Provenance(), tokens=history[-1].rows))
    return Peers(made, tuple(history), tuple(each.redrawn for each in trainer.peers), complete, config)


def unevenness(rates: Float[Tensor, " latent"], target: float) -> float:
    """Return the mean over latents of ``|rate - target|^3 / target^3``."""
    return float(((rates.double() - target).abs() / target).pow(3).mean())


@dataclass(frozen=True)
class Links:
    """For each atom of a peer, the atoms that it is paired with: rows of all blocks' atoms, end to end."""

    flat: Int[Tensor, " pair"]
    starts: Int[Tensor, " latent"]
    count: int
    """Entries that M is a mean over."""


class PeerTrainer:
    """Peers in training: one batch in, one step out."""

    def __init__(self, first: Float[Tensor, "row d"], config: MfrConfig) -> None:
        check_rows(first)
        self.config, self.done, self.rows = config, 0, 0
        self.scale = float((first.shape[1] / first.float().square().sum(-1).mean()).sqrt())
        mean = first.float().mean(0) * self.scale
        self.peers = [_Peer(mean, config, config.seed * config.peers + i) for i in range(config.peers)]
        self._links: list[Links] = []
        self._targets = _fixed(mean, config)

    @torch.no_grad()
    def step(self, batch: Float[Tensor, "row d"]) -> PeersStep:
        """Take one step with every peer; UsageError as `train_peers` raises it, before any of them has changed."""
        check_rows(batch)
        x = batch.float() * self.scale
        spread = (x - x.mean(0)).square().sum()
        atoms = [unit(peer.w) for peer in self.peers]
        pulls, alike = self._pull(atoms) if self.config.weight > 0 else ([None] * len(atoms), math.nan)
        fvu = tuple(
            peer.learn(x, own, spread, gradient) for peer, own, gradient in zip(self.peers, atoms, pulls, strict=True)
        )
        if not all(map(math.isfinite, fvu)):
            raise CutawayError(f"training diverged at step {self.done}; lower the rate ({self.config.rate})")
        for peer in self.peers:
            peer.update(self.config.rate_at(self.done))
        self.done, self.rows = self.done + 1, self.rows + len(batch)
        self._redraw(x)
        return PeersStep(self.done - 1, self.rows, fvu, alike)

    def finish(self, provenance: Provenance) -> tuple[SparseDictionary, ...]:
        """Return the peers as dictionaries."""
        settings = {key: "auto" if value is None else value for key, value in asdict(self.config).items()}
        return tuple(
            peer.dictionary(self.scale, replace(provenance, settings={**settings, "peer": i}))
            for i, peer in enumerate(self.peers)
        )

    def _pull(self, atoms: list[Tensor]) -> tuple[list[Tensor], float]:
        """Return the penalty's gradient by each peer's unit atoms, and the mean M."""
        blocks = self._blocks(atoms)
        if self.done % self.config.refresh == 0:
            self._links = self._paired(atoms, blocks)
        table = torch.cat(blocks)
        found = [pull(own, table, link) for own, link in zip(atoms, self._links, strict=True)]
        # Each of the N (N - 1) / 2 pairs is seen from both its sides; each side moves its own atoms.
        share = -2 * self.config.weight_at(self.done) / len(atoms)
        return [gradient.mul_(share) for gradient, _ in found], sum(alike for _, alike in found) / len(atoms)

    def _blocks(self, atoms: list[Tensor]) -> list[Tensor]:
        """Return what peers are pulled to, ``n_latents`` atoms each: one a peer, or random ones for every pair."""
        if self.config.towards == "random":
            return self._targets
        return [each[:, self._targets[0]] for each in atoms] if self.config.towards == "shuffled" else atoms

    def _paired(self, atoms: Sequence[Tensor], blocks: Sequence[Tensor]) -> list[Links]:
        """Pair every peer with each of its blocks; two peers that pull each other are paired once for both."""
        n, towards = len(atoms), self.config.towards
        known: dict[tuple[int, int], Pairs] = {}
        made = []
        for i, own in enumerate(atoms):
            numbers = range(i * (n - 1), (i + 1) * (n - 1)) if towards == "random" else [j for j in range(n) if j != i]
            for j in numbers:
                back = known.get((j, i)) if towards == "peers" else None
                known[i, j] = Pairs(back.two, back.one) if back else pairs(own, blocks[j], self.config.matching)
            made.append(links([(j, known[i, j]) for j in numbers], len(own)))
        return made

    def _redraw(self, x: Tensor) -> None:
        config = self.config
        if config.redraw is None or self.done % config.window or self.done > (config.steps or math.inf) / 2:
            return
        for i, peer in enumerate(self.peers):
            if unevenness(peer.fired / (config.window * config.batch), config.k / config.n_latents) > config.redraw:
                fresh = config.seed * config.peers + i + 7919 * (peer.redrawn + 1)
                again = peer.redrawn + 1
                self.peers[i] = _Peer(x.mean(0), config, fresh)
                self.peers[i].redrawn = again
            self.peers[i].fired.zero_()


def links(found: Sequence[tuple[int, Pairs]], n: int) -> Links:
    """Join a peer's pairs with blocks of ``n`` atoms: ``(number of the block, pairs)``."""
    rows = torch.cat([each.one for _, each in found])
    columns = torch.cat([each.two + block * n for block, each in found])
    counts = torch.bincount(rows, minlength=n)
    return Links(columns[rows.argsort(stable=True)], counts.cumsum(0) - counts, len(rows))


def pull(
    own: Float[Tensor, "latent d"], table: Float[Tensor, "_all d"], link: Links
) -> tuple[Float[Tensor, "latent d"], float]:
    """Return the gradient of M (mean over the blocks) with respect to a peer's unit atoms, and M itself."""
    gradient = nn.functional.embedding_bag(link.flat, table, link.starts, mode="sum").div_(link.count)
    return gradient, float(gradient.flatten() @ own.flatten())


class _Peer:
    """One tied autoencoder with its Adam."""

    def __init__(self, mean: Tensor, config: MfrConfig, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        n, d = config.n_latents, len(mean)
        drawn = torch.randn(max(n, d), min(n, d), generator=generator)
        start = torch.linalg.qr(drawn)[0]
        start = start if n >= d else start.T
        self.w = nn.Parameter(start.contiguous().to(mean.device))
        self.b = nn.Parameter(torch.zeros(n, device=mean.device))
        self.b_dec = nn.Parameter(mean.clone())
        self.adam = torch.optim.Adam([self.w, self.b, self.b_dec], fused=True)
        self.k, self.redrawn = config.k, 0
        self.fired = torch.zeros(n, device=mean.device)

    def learn(self, x: Tensor, atoms: Tensor, spread: Tensor, pull: Tensor | None = None) -> float:
        """Set the gradients of the error's share of the variance, ``pull`` added to the atoms'; return the share."""
        centred = x - self.b_dec
        pre = torch.addmm(self.b, centred, self.w.T)
        top = pre.topk(self.k, dim=-1, sorted=False)
        indices, values = top.indices, top.values.relu()
        out, pull_of = decoded(indices, values, atoms)
        missed = out + self.b_dec - x
        gradient = missed * (2 / spread)
        on = values > 0
        weights = pull_of(gradient) * on
        gathered = by_latent(indices, len(self.w))
        self.w.grad = gathered(weights, centred)
        by_atoms = gathered(values, gradient)
        self._towards(atoms, by_atoms if pull is None else by_atoms.add_(pull))
        self.b.grad = summed(indices, weights, len(self.w))
        self.b_dec.grad = gradient.sum(0) - self.b.grad @ self.w
        self.fired += summed(indices, on.float(), len(self.w))
        return float(missed.square().sum() / spread)

    def _towards(self, atoms: Tensor, gradient: Tensor) -> None:
        """Add a gradient of the unit atoms to that of the weights: what would change their length falls away."""
        across = gradient - (gradient * atoms).sum(-1, keepdim=True) * atoms
        assert self.w.grad is not None
        self.w.grad += across / self.w.norm(dim=-1, keepdim=True)

    def update(self, rate: float) -> None:
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()

    @torch.no_grad()
    def dictionary(self, scale: float, provenance: Provenance) -> SparseDictionary:
        n, d = self.w.shape
        made = SparseDictionary(d, n, "topk", k=self.k, normaliser="scale", provenance=provenance).to(self.w.device)
        made.scale.fill_(scale)
        for ours, theirs in ((made.w_enc, self.w), (made.w_dec, unit(self.w)), (made.b_enc, self.b)):
            ours.copy_(theirs)
        made.b_dec.copy_(self.b_dec)
        return made.requires_grad_(False)


def _fixed(mean: Tensor, config: MfrConfig) -> list[Tensor]:
    """What the controls pull to: random atoms for every pair, or one order of the coordinates."""
    generator = torch.Generator().manual_seed(10_000 + config.seed)
    if config.towards == "shuffled":
        return [torch.randperm(len(mean), generator=generator).to(mean.device)]
    if config.towards == "peers":
        return []
    many = config.peers * (config.peers - 1)
    return [unit(torch.randn(config.n_latents, len(mean), generator=generator)).to(mean.device) for _ in range(many)]
