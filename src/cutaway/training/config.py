"""Settings of a training run, checked before any weights are loaded.

The learning rate at step s of S, warm-up w: rate * s / w, then constant, linear to zero, or half a cosine, as Hugging
Face counts them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cutaway.errors import UsageError, nearest
from cutaway.training.data import Data

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    rate: float = 1e-4
    batch: int = 8
    """Examples in a micro-batch."""
    accumulate: int = 1
    """Micro-batches in a step."""
    epochs: int = 1
    steps: int | None = None
    """Overrides ``epochs``."""
    optimizer: Literal["adamw", "sgd"] | str = "adamw"
    schedule: Schedule | str = "linear"
    warm_up: int = 0
    """Steps."""
    weight_decay: float = 0.0
    """Of matrices; vectors (norms, biases) are left alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0
    """Largest norm of the gradient; None for any."""
    bucket: int = 16
    """Batches within which rows are sorted by length; 1 for an order that lengths do not touch."""
    shuffle: bool = True
    precision: Literal["auto", "float32", "bfloat16"] | str = "auto"
    """Of products; auto takes bf16 where the processor multiplies it natively. Trained weights stay fp32."""
    weights_every: int = 0
    """Steps between checkpoints of the trained weights; 0 for none."""
    state_every: int = 0
    """Steps between states to resume from; 0 for one at the end or at Ctrl-C."""
    probe_every: int = 0
    """Steps between probes; 0 for before the first step and after the last."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "epochs", "bucket"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
        for name in ("warm_up", "weights_every", "state_every", "probe_every", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)}: 0 or more")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps={self.steps}: 1 or more, or None for whole epochs")
        if not 0 < self.rate < (1 if self.optimizer == "adamw" else 100):
            raise UsageError(f"rate={self.rate}: above 0 and below {1 if self.optimizer == 'adamw' else 100}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip={self.clip}: above 0, or None")
        allowed: dict[str, Sequence[str]] = {
            "optimizer": ("adamw", "sgd"),
            "schedule": get_args(Schedule),
            "precision": ("auto", "float32", "bfloat16"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name}={getattr(self, name)!r}{nearest(getattr(self, name), choices)}")

    def steps_of(self, data: Data) -> int:
        """Return the number of optimiser steps on ``data``."""
        batches = math.ceil(len(data) / self.batch)
        return math.ceil(batches * self.epochs / self.accumulate) if self.steps is None else self.steps

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.rate * step / self.warm_up
        left = max(0.0, (steps - step) / max(1, steps - self.warm_up))
        if self.schedule == "linear":
            return self.rate * left
        return self.rate * (0.5 * (1 + math.cos(math.pi * (1 - left))) if self.schedule == "cosine" else 1.0)
