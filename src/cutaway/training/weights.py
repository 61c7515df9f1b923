"""Which weights train, and moving averages of them.

    m_t = eta m_{t-1} + (1 - eta) theta_t,   m_0 = theta_0

*Passive*: the optimiser goes on from theta_t; the average is delivered beside it. *Feedback*: theta_t is replaced by
m_t before the next step, so each update is drawn back. Updated at every step, feedback is nothing but the rate times
(1 - eta), for SGD and, as its updates too are the rate times a function of the gradients, for AdamW: a test shows both.
Only with ``every`` above 1 is it more, so a run at the lower rate is the control. Tied weights are one tensor here.
Averages of LoRA factors are not averages of their products. Source: card ema-safety.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.training.lora import LoraSpec, targets

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Average:
    """One moving average of the trained weights."""

    eta: float
    """Share of the past: 0 is the weights themselves, 1 the start."""
    mode: Literal["passive", "feedback"] = "passive"
    start: int = 0
    """Steps before it begins; m_0 is then the weights at that step."""
    every: int = 1
    """Steps between updates."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta={self.eta}: between 0 and 1")
        if self.start < 0 or self.every < 1:
            raise UsageError(f"start={self.start}, every={self.every}: start 0 or more, every 1 or more")
        if self.mode not in ("passive", "feedback"):
            raise UsageError(f"mode={self.mode!r}: passive or feedback")

    @property
    def name(self) -> str:
        return (
            f"{self.mode}-{self.eta:g}"
            + (f"-from-{self.start}" if self.start else "")
            + (f"-every-{self.every}" if self.every > 1 else "")
        )

    @torch.no_grad()
    def update(self, shadow: dict[str, Tensor], weights: Weights, step: int) -> None:
        """Move the fp32 ``shadow`` after ``step`` steps are done, and with feedback the weights."""
        kept, now = [shadow[name] for name in weights], list(weights.values())
        if step <= self.start:
            torch._foreach_copy_(kept, now)
        elif (step - self.start) % self.every == 0:
            torch._foreach_lerp_(kept, now, 1 - self.eta)
            if self.mode == "feedback":
                torch._foreach_copy_(now, kept)


def trainable(model: Model, tensors: Weights | None = None) -> dict[str, Tensor]:
    """Return the model's trainable weights by name, tied ones once, and the given ``tensors``.

    Raises UsageError where there are none, or where one is kept in bf16 or fp16 and would lose small updates.
    """
    found = {name: weight for name, weight in model.hf.named_parameters() if weight.requires_grad}
    for name, tensor in (tensors or {}).items():
        if not tensor.requires_grad or not tensor.is_leaf or name in found:
            raise UsageError(f"tensor {name!r}: a leaf with requires_grad, under a name of its own")
        found[name] = tensor
    if not found:
        raise UsageError(f"nothing to train in {model.name!r}: give it adapters (add_lora) or unfreeze weights")
    thin = next((name for name, weight in found.items() if weight.dtype != torch.float32), None)
    if thin is not None:
        raise UsageError(
            f"{thin} is {str(found[thin].dtype).removeprefix('torch.')}, in which small updates are lost; load the"
            " model with dtype='float32' (its products are bf16 where the processor has them), or train adapters"
        )
    return found


def unfreeze(
    model: Model, modules: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> tuple[str, ...]:
    """Make weights trainable and freeze all others; return their names.

    Linear ``modules`` (None: everything) of ``layers`` (None: all; and, with modules None, the embeddings and norms
    outside the blocks too). UsageError for a module or layer that is not there.
    """
    if modules is None and layers is None:
        chosen = {name for name, _ in model.hf.named_parameters()}
    elif modules is None:
        blocks = model.layout.blocks
        bad = next((layer for layer in layers or () if not 0 <= layer < len(blocks)), None)
        if bad is not None or not layers:
            raise UsageError(f"layer {bad}: the model has 0..{len(blocks) - 1}; name at least one")
        inside = {id(weight) for layer in layers for weight in blocks[layer].parameters()}
        chosen = {name for name, weight in model.hf.named_parameters() if id(weight) in inside}
    else:
        paths = targets(model.hf, LoraSpec(tuple(modules), None if layers is None else tuple(layers)))
        chosen = {name for name, _ in model.hf.named_parameters() if any(name.startswith(path + ".") for path in paths)}
    for name, weight in model.hf.named_parameters():
        weight.requires_grad_(name in chosen)
    return tuple(name for name, _ in model.hf.named_parameters() if name in chosen)


@contextmanager
def swapped(model: Model, weights: Weights) -> Iterator[Model]:
    """Put ``weights`` (an average, a checkpoint's) in place inside the block; the model's own come back after it."""
    own = {name: weight for name, weight in model.hf.named_parameters() if name in weights}
    before = {name: weight.detach().clone() for name, weight in own.items()}
    try:
        put(own, {name: weights[name] for name in own})
        yield model
    finally:
        put(own, before)


@torch.no_grad()
def put(own: Weights, values: Weights) -> None:
    """Copy ``values`` into the weights of the same names."""
    for name, weight in own.items():
        weight.copy_(values[name])
