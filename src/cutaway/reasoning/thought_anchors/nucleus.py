"""How far two rows of logits lie apart, over the tokens that either would say (thought-anchors card, section 3).

KL(base || other) over the union of both nuclei and one bucket for the rest. The long rows are read few times,
and what lies outside the nucleus is summed directly.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.sampling.transform import largest

Divergence = Literal["union and rest", "published"]
MISSING = -1e9


@dataclass(frozen=True)
class Nucleus:
    """Which tokens count: the fewest that hold ``mass`` of the tempered distribution, at most ``most`` of them."""

    temperature: float = 0.6
    mass: float = 0.9999
    most: int = 100


@dataclass(frozen=True)
class Side:
    """One side's tempered logits and nucleus."""

    scaled: Float[Tensor, "pos vocab"]
    log_total: Float[Tensor, "pos 1"]
    ids: Int[Tensor, "pos kept"]
    kept: Bool[Tensor, "pos kept"]
    log_kept: Float[Tensor, "pos kept"]
    """Log-probability of each of ``ids``."""
    rest: Float[Tensor, " pos"]
    """Probability outside the nucleus, summed directly: one minus the inside would be rounding."""

    def at(self, part: slice) -> "Side":
        """The positions of ``part``."""
        return Side(**{name: value[part] for name, value in vars(self).items()})


def nucleus_kl(
    base: Float[Tensor, "pos vocab"],
    other: Float[Tensor, "pos vocab"],
    *,
    temperature: float = 0.6,
    nucleus: float = 0.9999,
    most: int = 100,
    divergence: Divergence = "union and rest",
) -> Float[Tensor, " pos"]:
    """KL(base || other) of two rows of logits over the union of both nuclei, nats, fp64.

    ``union and rest``: true probabilities, and one bucket for every token outside the union. ``published``: no bucket,
    a token outside a side's own nucleus has logit -1e9 there, both sides are renormalised.
    """
    how = Nucleus(temperature, nucleus, most)
    return compare(read_side(base.clone(), how), other.clone(), how, divergence)


def read_side(logits: Float[Tensor, "pos vocab"], how: Nucleus) -> Side:
    """Temper ``logits`` (in place), find their nucleus and sum what lies outside it."""
    scaled = logits.div_(how.temperature)
    top, ids = largest(scaled, how.most)
    masses = (scaled - top[:, :1]).exp_()
    total = masses.sum(-1, keepdim=True)
    log_total, log_kept, kept = _inside(top, total, how)
    masses.scatter_(-1, torch.where(kept, ids, ids[:, :1]), 0.0)
    return Side(scaled, log_total, ids, kept, log_kept, masses.sum(-1).double() / total[:, 0])


def compare(
    base: Side, other: Float[Tensor, "pos vocab"], how: Nucleus, divergence: Divergence
) -> Float[Tensor, " pos"]:
    """KL from ``base`` of the tempered logits ``other``, which are overwritten."""
    scaled = other.div_(how.temperature)
    top, ids = largest(scaled, how.most)
    there = scaled.gather(-1, base.ids)
    masses = scaled.sub_(top[:, :1]).exp_()
    total = masses.sum(-1, keepdim=True)
    log_total, log_kept, kept = _inside(top, total, how)
    masses.scatter_(-1, torch.where(base.kept, base.ids, base.ids[:, :1]), 0.0)
    # What is left of a token that the base's nucleus holds is 0; so is one too small to be in any nucleus.
    new = kept & (masses.gather(-1, ids) > 0)
    p_new = base.scaled.gather(-1, ids).double() - base.log_total
    p, q = torch.cat([base.log_kept, p_new], -1), torch.cat([there.double() - log_total, log_kept], -1)
    union = torch.cat([base.kept, new], -1)
    if divergence == "published":
        return _published(base, ids, kept, p, q, union, how.temperature)
    masses.scatter_(-1, torch.where(new, ids, base.ids[:, :1]), 0.0)
    rest = masses.sum(-1).double() / total[:, 0]
    # p log(p/q) - p + q is never negative and vanishes to second order, so rounding of a total cannot pose as a KL.
    terms = torch.where(union, p.exp() * (p - q) - p.exp() + q.exp(), 0.0)
    rest_p = (base.rest - torch.where(new, p_new.exp(), 0.0).sum(-1)).clamp(min=1e-38)
    rest_q = rest.clamp(min=1e-38)
    return (terms.sum(-1) + rest_p * (rest_p / rest_q).log() - rest_p + rest_q).clamp(min=0.0)


def _published(
    base: Side,
    ids: Int[Tensor, "pos kept"],
    kept: Bool[Tensor, "pos kept"],
    p: Float[Tensor, "pos both"],
    q: Float[Tensor, "pos both"],
    union: Bool[Tensor, "pos both"],
    temperature: float,
) -> Float[Tensor, " pos"]:
    same = (base.ids[:, :, None] == ids[:, None]) & base.kept[:, :, None] & kept[:, None]
    in_base = torch.cat([base.kept, torch.zeros_like(kept)], -1)
    in_other = torch.cat([same.any(2), kept], -1)
    p = torch.where(in_base, p, MISSING / temperature).masked_fill(~union, -torch.inf).log_softmax(-1)
    q = torch.where(in_other, q, MISSING / temperature).masked_fill(~union, -torch.inf).log_softmax(-1)
    return torch.where(union & (p.exp() > 0), p.exp() * (p - q), 0.0).sum(-1).clamp(min=0.0)


def _inside(
    top: Float[Tensor, "pos kept"], total: Float[Tensor, "pos 1"], how: Nucleus
) -> tuple[Float[Tensor, "pos 1"], Float[Tensor, "pos kept"], Bool[Tensor, "pos kept"]]:
    """Log of the total mass, log-probability of each of the largest, and whether the nucleus holds it."""
    log_total = top[:, :1].double() + total.double().log()
    log_kept = top.double() - log_total
    probs = log_kept.exp()
    return log_total, log_kept, probs.cumsum(-1) - probs < how.mass
