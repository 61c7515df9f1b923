"""Train on the hidden-state shift that acts like the worst paraphrase, found anew for each batch.

Let h be the stream entering block l, L the loss of the reference answers, c the relative size of a shift.
1. *Inner loop*, weights frozen: K steps up ``L(h + d) - lambda max(0, c(d) - rho)`` on a shift d of the prompt's
   positions, one for each example; lambda <- max(0, lambda + eta (c - rho)) after each step. Blocks below l are not
   computed again: the forward starts from the h of the first one.
2. The shift is brought back into the ball c <= rho and held fixed.
3. *Outer loop*: the weights descend ``(L(h) + w L(h + d)) / (1 + w)``.

    c(d) = |d| / |h|, both over an example's prompt positions

K = 0 is the random arm: a Gaussian shift of size rho. With rho = 0 there is no shift and the loss is that of plain
tuning. `shift_limit` measures rho: how far real phrasings of one request lie apart at that place.

The loss is a reconstruction: the paper's abstract names a dual loop, a learnable shift and a Lagrangian constraint,
and no more was at hand. Source: card latent-adversarial-paraphrasing, arXiv:2503.01345.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from cutaway.errors import UsageError
from cutaway.model import Add, Batch, Model
from cutaway.training import Loss, NextToken, Objective, TrainBatch, predictions


@dataclass(frozen=True)
class Climb:
    """What one inner loop did: mean losses over the batch's weight in nats, the rest over its examples."""

    loss: float
    """Without a shift."""
    start: float
    """With the random shift it started from, brought to the size of the final one."""
    end: float
    """With the shift found."""
    size: float
    """c of the shift after the last step, before it is brought back into the ball."""
    inside: float
    """Share of examples with c <= 1.1 rho then."""
    lagrange: float


@dataclass(frozen=True)
class Paraphrase(Objective):
    """Next-token loss on prompts as they are and under a shift of their states."""

    layer: int
    """The stream entering this block is shifted."""
    rho: float
    """Largest relative size of the shift."""
    steps: int = 3
    """K; 0 for a random shift."""
    pace: float = 1.0
    """Length of all inner steps together, as a share of rho; from a start of a tenth of rho."""
    weight: float = 1.0
    """Of the shifted loss against the plain one."""
    eta: float = 5.0
    """How fast lambda follows the constraint, in units of 1 / rho."""
    cached: bool = True
    """Start inner forwards at ``layer``; False runs the whole model, for comparison."""
    log: list[Climb] = field(default_factory=list, compare=False, repr=False)
    """One entry a micro-batch where K > 0."""

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise UsageError(f"layer={self.layer}: 0 or more")
        if not 0 <= self.rho < 10:
            raise UsageError(f"rho={self.rho}: a relative size from 0 to below 10")
        if self.steps < 0 or not self.pace > 0 or not self.weight > 0 or self.eta < 0:
            raise UsageError("steps 0 or more, pace and weight above 0, eta 0 or more")

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the mixed loss sum; terms: the plain and the shifted loss."""
        plain = NextToken()(model, batch)
        if self.rho == 0:
            return plain
        found = self._found(model, batch)
        with model.edited(Add(f"resid_pre.{self.layer}", found.shift)):
            shifted = NextToken()(model, batch)
        if self.steps:
            self._note(model, batch, found, plain, shifted)
        total = (plain.total + self.weight * shifted.total) / (1 + self.weight)
        terms = {"plain": plain.total.detach(), "shifted": shifted.total.detach()}
        return Loss(total, plain.weight, terms)

    def to_dict(self) -> dict[str, object]:
        """Return the settings; the log is the run's own."""
        return {key: value for key, value in super().to_dict().items() if key != "log"}

    def shift(self, model: Model, batch: TrainBatch) -> Float[Tensor, "batch pos d_model"]:
        """Return the shift of one batch: zero at answers and padding, size at most rho; weights are left alone."""
        return self._found(model, batch).shift

    def _found(self, model: Model, batch: TrainBatch) -> "_Found":
        where = prompt_positions(batch)
        site = f"resid_pre.{self.layer}"
        with torch.no_grad():
            states = model.capture(batch.tokens, site, special=True)[site]
        noise = torch.randn(states.shape, device=states.device) * where[..., None]
        start = sized(noise, states, where, self.rho)
        if not self.steps:
            none = torch.zeros(len(states), device=states.device)
            return _Found(start, start, states, none + self.rho, none)
        with frozen(model):
            return self._climbed(model, batch, states, where, start)

    def _climbed(self, model: Model, batch: TrainBatch, states: Tensor, where: Tensor, start: Tensor) -> "_Found":
        shift, lagrange = start * 0.1, torch.zeros(len(states), device=states.device)
        length = _norm(states * where[..., None])
        for _ in range(self.steps):
            shift = shift.detach().requires_grad_(True)
            size = _norm(shift) / length
            loss = row_losses(self._from_here(model, batch, states, shift), batch)
            goal = loss - lagrange * (size - self.rho).clamp_min(0)
            (gradient,) = torch.autograd.grad(goal.sum(), shift)
            gradient = gradient * where[..., None]
            step = self.pace / self.steps * self.rho * length / _norm(gradient).clamp_min(1e-12)
            shift = shift.detach() + step[:, None, None] * gradient
            size = _norm(shift) / length
            lagrange = followed(lagrange, size, self.rho, self.eta)
        return _Found(shift * (self.rho / size).clamp_max(1.0)[:, None, None], start, states, size, lagrange)

    def _from_here(self, model: Model, batch: TrainBatch, states: Tensor, shift: Tensor) -> "Logits":
        if self.cached:
            with model.started(self.layer, states + shift):
                return predictions(model, batch)
        # an edit that adds nothing is an error
        if not bool(shift.any()):
            return predictions(model, batch)
        with model.edited(Add(f"resid_pre.{self.layer}", shift)):
            return predictions(model, batch)

    @torch.no_grad()
    def _note(self, model: Model, batch: TrainBatch, found: "_Found", plain: Loss, shifted: Loss) -> None:
        equal = found.start * (_norm(found.shift) / _norm(found.start))[:, None, None]
        logits, targets, weights, _ = self._from_here(model, batch, found.states, equal)
        random = (functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
        losses = [float(total.detach() / plain.weight) for total in (plain.total, random, shifted.total)]
        inside = float((found.size <= 1.1 * self.rho).float().mean())
        size, lagrange = float(found.size.mean()), float(found.lagrange.mean())
        self.log.append(Climb(losses[0], losses[1], losses[2], size, inside, lagrange))


class _Found(NamedTuple):
    """A shift, the random one it started from, the states both are added to, and how the constraint went."""

    shift: Tensor
    start: Tensor
    states: Tensor
    size: Tensor
    """Before it was brought back into the ball."""
    lagrange: Tensor


Logits = tuple[Tensor, Tensor, Tensor, Tensor]


def followed(lagrange: Float[Tensor, " batch"], size: Float[Tensor, " batch"], rho: float, eta: float) -> Tensor:
    """Return lambda after one step: it rises where ``size`` is above ``rho``, falls to 0 at most where below."""
    return (lagrange + eta / rho * (size - rho)).clamp_min(0)


def prompt_positions(batch: TrainBatch) -> Bool[Tensor, "batch pos"]:
    """Return where the prompt stands: real tokens before the first that carries loss."""
    carries = batch.weights > 0
    return batch.tokens.mask & (carries.long().cumsum(1) == 0)


def row_losses(found: Logits, batch: TrainBatch) -> Float[Tensor, " batch"]:
    """Return each row's mean negative log-probability over its weight, in nats."""
    logits, targets, weights, rows = found
    each = functional.cross_entropy(logits, targets, reduction="none") * weights
    zero = torch.zeros(len(batch.tokens), dtype=each.dtype, device=each.device)
    return zero.index_add(0, rows, each) / zero.index_add(0, rows, weights)


def sized(
    noise: Float[Tensor, "batch pos d_model"],
    states: Float[Tensor, "batch pos d_model"],
    where: Bool[Tensor, "batch pos"],
    rho: float,
) -> Float[Tensor, "batch pos d_model"]:
    """Return ``noise`` brought to relative size ``rho`` in every row, over the positions ``where``."""
    length = _norm(states * where[..., None])
    return noise * (rho * length / _norm(noise).clamp_min(1e-12))[:, None, None]


@torch.no_grad()
def shift_limit(model: Model, queries: Sequence[Sequence[Sequence[int]]], layer: int, quantile: float = 0.5) -> float:
    """Return rho: a quantile of the relative distance between phrasings of one query.

    ``queries`` holds each query's phrasings as token ids. States entering ``layer`` are averaged over positions, and
    distances taken between those means, as phrasings differ in length. UsageError for fewer than two phrasings.
    """
    distances: list[float] = []
    site = f"resid_pre.{layer}"
    for phrasings in queries:
        if len(phrasings) < 2:
            raise UsageError("every query needs two phrasings or more")
        found = model.capture(model.batch([list(ids) for ids in phrasings]), site, special=True)
        mask = found.mask[..., None]
        means = (found[site] * mask).sum(1) / mask.sum(1)
        gaps = (means[1:] - means[:1]).norm(dim=-1) / means[:1].norm(dim=-1)
        distances += gaps.tolist()
    return float(torch.tensor(distances).quantile(quantile))


def nearest_tokens(model: Model, shift: Float[Tensor, " d_model"], k: int = 5) -> list[tuple[int, float]]:
    """Return the tokens whose embeddings point most along a shift of the embedding, with cosines: what it says."""
    embed = model.hf.get_input_embeddings().weight.detach().float()
    cosines = functional.cosine_similarity(embed, shift.float()[None], dim=-1)
    best = cosines.topk(k)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Let no weight ask for a gradient inside the block; as before after it, raised or not."""
    asked = [weight for weight in model.hf.parameters() if weight.requires_grad]
    try:
        for weight in asked:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)


def batch_of(tokens: Batch, weights: Float[Tensor, "batch pos"]) -> TrainBatch:
    """Return rows as a micro-batch of their own, for looking at shifts outside training."""
    rewards = torch.ones(len(tokens.ids), device=tokens.ids.device)
    return TrainBatch(tokens, weights, None, rewards, tuple(range(len(tokens.ids))))


def _norm(value: Tensor) -> Tensor:
    return value.flatten(1).norm(dim=1)
