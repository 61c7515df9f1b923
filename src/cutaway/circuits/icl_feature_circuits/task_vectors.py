"""Task vectors: what the arrows of few-shot prompts have in common, added at the arrow of a prompt without examples."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.data import Prompts
from cutaway.errors import UsageError
from cutaway.model import Add, Batch, Model
from cutaway.stats import Interval, mean_interval, wilson


def task_vector(model: Model, prompts: Prompts, layer: int, role: str = "arrow") -> Float[Tensor, " d_model"]:
    """Mean of ``resid_pre.layer`` over all tokens of ``role``: ``arrow`` executes, ``output`` detects."""
    where = prompts.having(role)
    if not bool(where.any()):
        raise UsageError(f"no {role} token in these prompts; task vectors come from prompts with examples")
    with torch.no_grad():
        stream = model.capture(prompts.batch, f"resid_pre.{layer}", special=True)[f"resid_pre.{layer}"]
    return stream[where].mean(0)


@dataclass(frozen=True)
class Score:
    """How a model answers prompts."""

    loss: Interval
    """Mean over prompts of the mean negative log-probability of the answer's first tokens, nats."""
    accuracy: Interval
    """Share of prompts whose first answer token is the model's top token (Wilson)."""
    losses: tuple[float, ...]
    """By prompt."""

    def __repr__(self) -> str:
        return f"Score(loss {self.loss!r}, accuracy {self.accuracy!r}, n={self.loss.n})"

    def to_dict(self) -> dict[str, Any]:
        return {"loss": vars(self.loss), "accuracy": vars(self.accuracy), "losses": list(self.losses)}


class Bench:
    """Prompts of which everything is computed once that no vector at an arrow can change.

    A vector is added at every arrow, at ``layer``. The stream below that layer, and all keys and values in front of the
    first arrow, are kept; a forward computes the blocks from ``layer`` on, at the tokens from the first arrow on.
    """

    def __init__(self, model: Model, prompts: Prompts, layer: int) -> None:
        self.model, self.prompts, self.layer = model, prompts, layer
        self.site = f"resid_pre.{layer}"
        shift = (~prompts.batch.mask).sum(-1, keepdim=True)
        width = prompts.batch.ids.shape[1]
        # Padding on the left: arrows of prompts without examples then stand under one another.
        order = (torch.arange(width, device=shift.device)[None] - shift) % width
        arrows = prompts.having("arrow").gather(1, order)
        batch = Batch(prompts.batch.ids.gather(1, order), prompts.batch.mask.gather(1, order))
        at = prompts.at + shift
        self.first, self.end = int(arrows.any(0).nonzero()[0]), int(at.max()) + 1
        self.columns, self.where = (at - self.first).unique(return_inverse=True)
        self.arrows = arrows[:, self.first : self.end, None].to(model.dtype)
        self.ids, self.mask = batch.ids[:, self.first : self.end], batch.mask[:, : self.end].long()
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            self.stream = model.capture(batch, self.site, special=True)[self.site][:, self.first : self.end]
            self.cache = self._prefix(batch.ids)

    def __len__(self) -> int:
        return len(self.prompts)

    def losses(self, vector: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, " batch"]:
        """Mean negative log-probability of each prompt's targets; differentiable in ``vector``."""
        return self._losses(vector)[0]

    def losses_from_the_bottom(self, vector: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, " batch"]:
        """The same by a whole forward; what `losses` is checked and timed against."""
        if vector is None:
            return answers(self.model, self.prompts)[0]
        arrows = self.prompts.having("arrow")[..., None].to(vector)
        with self.model.edited(Add(self.site, vector * arrows)):
            return answers(self.model, self.prompts)[0]

    @torch.no_grad()
    def score(self, vector: Float[Tensor, " d_model"] | None = None) -> Score:
        """Loss and accuracy with their intervals."""
        losses, right = self._losses(vector)
        rows = tuple(losses.double().tolist())
        return Score(mean_interval(rows), wilson(int(right.sum()), len(right)), rows)

    def _losses(self, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        stream = self.stream if vector is None else self.stream + self.arrows * vector
        with self.model.started(self.layer, stream):
            logits = self.model.hf(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions[:, self.first :],
                past_key_values=_copied(self.cache),
                use_cache=True,
                logits_to_keep=self.columns,
            ).logits
        return _judged(logits, self.where, self.prompts)

    def _prefix(self, ids: Tensor) -> Any:
        """Keys and values in front of the first arrow."""
        out = self.model.hf(
            input_ids=ids[:, : self.first],
            attention_mask=self.mask[:, : self.first],
            position_ids=self.positions[:, : self.first],
            use_cache=True,
            logits_to_keep=1,
        )
        return out.past_key_values


def answers(model: Model, prompts: Prompts) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Each prompt's loss (mean over its targets, nats), and whether its first target is the top token: 1 or 0.

    A plain forward; only the targets' logits are computed.
    """
    columns, where = prompts.at.unique(return_inverse=True)
    logits = model.hf(**prompts.batch.forward_kwargs(), use_cache=False, logits_to_keep=columns).logits
    return _judged(logits, where, prompts)


def _judged(logits: Tensor, where: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    picked = logits.gather(1, where[..., None].expand(-1, -1, logits.shape[-1]))
    wanted = picked.gather(-1, prompts.target[..., None])[..., 0]
    lost = picked.logsumexp(-1) - wanted
    real = prompts.real.to(lost)
    right = (picked[:, 0].argmax(-1) == prompts.target[:, 0]).to(lost)
    return (lost * real).sum(-1) / real.sum(-1), right


def _copied(cache: Any) -> Any:
    """A cache that can grow while the given one stays: layers put new tensors in place of their keys and values."""
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    return grown
