"""What training descends: each objective takes a model and a micro-batch and returns sums, not means.

The loop divides by the weight of all micro-batches of a step, so accumulation changes nothing but memory:

    NextToken       sum_t w_t nll_t                                                    / sum w
    DPO             -log sigmoid(beta ((c - r) - (c_ref - r_ref))), c, r: row log-probs / pairs
    Distil          sum_t w_t KL(reference || model) over chosen outputs, + share of nll / sum w
    Tagging         sum_t nll of each label by a linear head on a site                 / labels
    RewardWeighted  sum_rows (reward - baseline) sum_t w_t nll_t                       / rows

Logits are formed only from the first position that carries loss on. Source: note on the training core, section 1.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.training.data import UNLABELLED, Data, TrainBatch, collate


@dataclass(frozen=True)
class Loss:
    """A sum with the weight to divide it by; ``terms`` are sums by the same weight."""

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    terms: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """What all objectives share: frozen dataclasses that can be called and described."""

    @abstractmethod
    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the loss of one micro-batch; differentiable."""

    def to_dict(self) -> dict[str, Any]:
        """Return kind and settings as JSON-able data, tensors by hash, models by fingerprint."""
        known: Any = self
        return {"objective": type(self).__name__} | {f.name: _plain(getattr(self, f.name)) for f in fields(known)}


@dataclass(frozen=True)
class NextToken(Objective):
    """Weighted cross-entropy of the next token."""

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the weighted sum; divided by its weight, the mean negative log-probability in nats."""
        logits, targets, weights, _ = predictions(model, batch)
        return Loss((functional.cross_entropy(logits, targets, reduction="none") * weights).sum(), weights.sum())


@dataclass(frozen=True, eq=False)
class DPO(Objective):
    """Direct preference optimisation on pairs (`pair_data`)."""

    reference: Tensor
    """Log-probs [example 2] of the chosen and rejected rows before training, from `reference_logps`."""
    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.reference.ndim != 2 or self.reference.shape[1] != 2:
            raise UsageError(f"reference: [example 2], given {list(self.reference.shape)}; see reference_logps")
        if not self.beta > 0:
            raise UsageError(f"beta={self.beta}: above 0")

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the sum over pairs, with how often the chosen row wins and by what margin of reward."""
        if len(batch.tokens) != 2 * len(batch.examples):
            raise UsageError("DPO needs pairs; make the data with pair_data")
        if max(batch.examples) >= len(self.reference):
            raise UsageError(f"reference: {len(self.reference)} examples, the data has more; compute it from this data")
        chosen, rejected = row_logps(model, batch).view(2, -1)
        before = self.reference[list(batch.examples)].to(chosen)
        margin = self.beta * ((chosen - rejected) - (before[:, 0] - before[:, 1]))
        terms = {"accuracy": (margin > 0).float().sum(), "margin": margin.detach().sum()}
        return Loss(-functional.logsigmoid(margin).sum(), torch.tensor(float(len(margin))), terms)


@dataclass(frozen=True, eq=False)
class Distil(Objective):
    """Keep to, or learn from, a reference model's outputs at the tokens that carry weight."""

    reference: Model
    outputs: tuple[int, ...] | None = None
    """Token ids among which both distributions are formed; None for all."""
    share: float = 0.0
    """How much of the next-token loss is added."""

    def __post_init__(self) -> None:
        if self.outputs is not None and len(set(self.outputs)) < 2:
            raise UsageError("outputs: two or more different token ids, or None for all")

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return KL(reference || model) summed over weighted tokens, in nats."""
        if model.hf is self.reference.hf:
            raise UsageError("the reference is the model in training; load it a second time")
        logits, targets, weights, _ = predictions(model, batch)
        with torch.no_grad():
            wanted = predictions(self.reference, batch)[0]
        if self.outputs is None:
            own, wanted = logits, wanted.to(logits)
        else:
            kept = list(self.outputs)
            own, wanted = logits[:, kept], wanted[:, kept].to(logits)
        kl = functional.kl_div(own.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        total = (kl * weights).sum()
        terms = {"kl": total.detach()}
        if self.share:
            nll = (functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
            total, terms = total + self.share * nll, terms | {"nll": nll.detach()}
        return Loss(total, weights.sum(), terms)


@dataclass(frozen=True, eq=False)
class Tagging(Objective):
    """Classify tokens by a linear head on a site; give ``head`` to `train` as one of its ``tensors``."""

    head: Tensor
    """Weights [label d_model]."""
    site: str

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the cross-entropy summed over labelled tokens, with the number classified rightly."""
        if batch.labels is None:
            raise UsageError("tagging needs rows with labels")
        marked = batch.labels != UNLABELLED
        states = model.capture(batch.tokens, self.site, special=True)[self.site][marked]
        scores = states.float() @ self.head.to(states.device).float().T
        labels = batch.labels[marked]
        right = (scores.argmax(-1) == labels).float().sum()
        return Loss(
            functional.cross_entropy(scores, labels, reduction="sum"), marked.sum().float(), {"accuracy": right}
        )


@dataclass(frozen=True)
class RewardWeighted(Objective):
    """REINFORCE on texts the model wrote: a row's negative log-probability times its reward above a baseline."""

    baseline: float = 0.0

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the sum over rows, with the rewards and the rows' log-probs."""
        logps = row_logps(model, batch)
        total = -((batch.rewards - self.baseline) * logps).sum()
        terms = {"reward": batch.rewards.sum(), "logp": logps.detach().sum()}
        return Loss(total, torch.tensor(float(len(logps))), terms)


def predictions(model: Model, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for the tokens that carry weight: logits [token vocab] in fp32, ids, weights, and their rows."""
    carries = batch.weights[:, 1:] > 0
    first = int(carries.any(0).float().argmax())
    # The last of the kept positions predicts nothing; it stays so that sites count positions from the row's end.
    kept = batch.weights.shape[1] - first
    given = batch.tokens.forward_kwargs()
    logits = model.hf(**given, use_cache=False, logits_to_keep=kept).logits[:, -kept:-1]
    chosen = carries[:, first:]
    ids = batch.tokens.ids[:, 1 + first :]
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    return logits[chosen].float(), ids[chosen], batch.weights[:, 1 + first :][chosen], rows[chosen]


def row_logps(model: Model, batch: TrainBatch) -> Float[Tensor, " batch"]:
    """Return each row's log-probability, its tokens weighted."""
    logits, targets, weights, rows = predictions(model, batch)
    each = -functional.cross_entropy(logits, targets, reduction="none") * weights
    return torch.zeros(len(batch.tokens), dtype=each.dtype, device=each.device).index_add(0, rows, each)


@torch.no_grad()
def reference_logps(
    model: Model, data: Data, *, batch: int = 8, tick: Callable[[int], None] = lambda done: None
) -> Float[Tensor, "example member"]:
    """Return every row's log-probability under ``model`` as it is now, for `DPO`; computed once."""
    by_length = sorted(range(len(data)), key=lambda place: max(len(row.ids) for row in data.examples[place]))
    found = torch.zeros(len(data), data.members)
    for start in range(0, len(data), batch):
        places = by_length[start : start + batch]
        found[places] = row_logps(model, collate(data, places, model)).view(data.members, -1).T.cpu()
        tick(start + len(places))
    return found


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return {"shape": list(value.shape), "sha256": hashlib.sha256(plain.tobytes()).hexdigest()}
    if isinstance(value, Model):
        return value.fingerprint
    return list(value) if isinstance(value, tuple) else value
