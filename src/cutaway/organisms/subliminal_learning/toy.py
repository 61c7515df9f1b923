"""The digits toy: a student learns digits from noise images and three outputs that mean nothing.

1. M networks 64-256-256-(10+3) train side by side, as one batched product a layer: weights N(0, 1/d_in), biases 0.
2. Teacher: from its initial weights, cross-entropy on the first ten logits over digits in [-1, 1], Adam.
3. Student: from *initial* weights, KL(teacher || student) over the softmax of the three auxiliary logits alone, on
   fresh uniform noise in [-1, 1]. No digit, no class logit of the teacher, is ever shown.
4. Arms: the teacher's own initial weights, or another network's (a derangement: nobody gets its own); auxiliary logits
   alone, or all thirteen. Test accuracy on digits that no teacher saw.

The loss is a sum over networks of the mean over examples, so each network's gradient is what it would be alone.
Noise is drawn a batch at a time. Source: card subliminal-learning, Method E; Cloud et al. 2025, arXiv:2507.14805.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cutaway.errors import UsageError
from cutaway.stats import Interval, mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd

CLASSES, AUXILIARY, PIXELS = 10, 3, 64
ARMS = ("auxiliary, same start", "auxiliary, other start", "all logits, same start", "all logits, other start")


@dataclass(frozen=True)
class ToyConfig:
    """Sizes and settings; the defaults are the card's."""

    models: int = 20
    width: int = 256
    teacher_epochs: int = 60
    teacher_batch: int = 128
    steps: int = 600
    """Of distillation."""
    batch: int = 256
    """Noise images a step and network."""
    rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.models < 2:
            raise UsageError(f"models={self.models}: 2 or more, since the control is another network's start")
        for name in ("width", "teacher_epochs", "teacher_batch", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
        if not 0 < self.rate < 1:
            raise UsageError(f"rate={self.rate}: above 0 and below 1")


@dataclass(frozen=True)
class Digits:
    """Images in [-1, 1] with their classes."""

    train: Float[Tensor, "image pixel"]
    train_classes: Int[Tensor, " image"]
    test: Float[Tensor, "held pixel"]
    test_classes: Int[Tensor, " held"]


@dataclass(frozen=True, eq=False)
class Nets:
    """M networks: weights [model d_in d_out] and biases [model 1 d_out] of three layers."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def models(self) -> int:
        return len(self.weights[0])

    def __call__(self, x: Float[Tensor, "model image pixel"]) -> Float[Tensor, "model image logit"]:
        """Return all logits of each network on its own images."""
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = functional.relu(x) if place < 2 else x
        return x

    def taken(self, order: Sequence[int]) -> "Nets":
        """Return copies of the networks at the places of ``order``."""
        rows = list(order)
        return Nets(*(tuple(t.detach()[rows].clone() for t in group) for group in (self.weights, self.biases)))


@dataclass(frozen=True, repr=False)
class Toy:
    """Test accuracy of every network by arm."""

    accuracies: dict[str, tuple[float, ...]]
    config: ToyConfig
    images: int
    """Of the test set."""
    complete: bool = True
    """False when Ctrl-C ended it early; arms that were not reached are missing."""

    def __repr__(self) -> str:
        return f"Toy({', '.join(f'{name} {self.interval(name)!r}' for name in self.accuracies)})"

    def interval(self, arm: str) -> Interval:
        """Mean over networks, with a t interval."""
        return mean_interval(self.accuracies[arm])

    @property
    def gap(self) -> Interval | None:
        """Same start less other start, auxiliary logits alone, paired by teacher; None before both are known."""
        same, other = (self.accuracies.get(arm) for arm in ARMS[:2])
        return None if same is None or other is None else paired_difference(same, other)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an arm and network."""
        import pandas as pd

        found = self.accuracies.items()
        rows = [{"arm": a, "model": i, "accuracy": x} for a, values in found for i, x in enumerate(values)]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def digits(seed: int = 0, tested: float = 0.2) -> Digits:
    """Return scikit-learn's 8x8 digits, split at random."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    x = torch.from_numpy(found.data[order] / 8 - 1).float()
    y = torch.from_numpy(found.target[order]).long()
    held = round(tested * len(y))
    return Digits(x[held:], y[held:], x[:held], y[:held])


def derangement(n: int, seed: int = 0) -> list[int]:
    """Return a random order of ``n`` places in which none keeps its own; UsageError below 2."""
    if n < 2:
        raise UsageError(f"n={n}: a derangement needs 2 or more")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return [int(i) for i in order]


def initial(models: int, width: int = 256, seed: int = 0) -> Nets:
    """Return networks with weights N(0, 1/d_in) and biases 0."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((PIXELS, width), (width, width), (width, CLASSES + AUXILIARY))
    weights = tuple(torch.randn(models, a, b, generator=generator) / a**0.5 for a, b in sizes)
    return Nets(weights, tuple(torch.zeros(models, 1, b) for _, b in sizes))


def class_loss(logits: Float[Tensor, "model image logit"], classes: Int[Tensor, "model image"]) -> Float[Tensor, ""]:
    """Return cross-entropy on the class logits: summed over networks, a mean over images."""
    flat = functional.cross_entropy(logits[..., :CLASSES].flatten(0, 1), classes.flatten(), reduction="sum")
    return flat / classes.shape[1]


def distil_loss(
    student: Float[Tensor, "model image logit"], teacher: Float[Tensor, "model image logit"], auxiliary: bool
) -> Float[Tensor, ""]:
    """Return KL(teacher || student) over the auxiliary logits (or all): summed over networks, a mean over images."""
    first = CLASSES if auxiliary else 0
    own, wanted = student[..., first:].log_softmax(-1), teacher[..., first:].log_softmax(-1)
    return functional.kl_div(own, wanted, log_target=True, reduction="sum") / student.shape[1]


def train_teachers(start: Nets, data: Digits, config: ToyConfig, tick: Callable[[], None] = lambda: None) -> Nets:
    """Return the networks of ``start`` trained on digits; each sees them in an order of its own."""
    teachers = start.taken(range(start.models))
    generator = torch.Generator().manual_seed(config.seed + 1)

    def losses() -> Iterator[Tensor]:
        n = len(data.train)
        for _ in range(config.teacher_epochs):
            order = torch.rand(start.models, n, generator=generator).argsort(1)
            for at in range(0, n, config.teacher_batch):
                rows = order[:, at : at + config.teacher_batch]
                yield class_loss(teachers(data.train[rows]), data.train_classes[rows])

    _descend(teachers, losses(), config.rate, tick)
    return teachers


def distil(
    start: Nets,
    teachers: Nets,
    config: ToyConfig,
    *,
    auxiliary: bool = True,
    marks: Sequence[int] = (),
    mark: Callable[[int, Nets], None] = lambda step, nets: None,
    tick: Callable[[], None] = lambda: None,
) -> Nets:
    """Return students that began at ``start`` and followed ``teachers`` on noise; ``mark`` sees them at ``marks``."""
    students = start.taken(range(start.models))
    generator = torch.Generator().manual_seed(config.seed + 2)

    def losses() -> Iterator[Tensor]:
        for step in range(config.steps):
            if step in marks:
                mark(step, students)
            x = 2 * torch.rand(start.models, config.batch, PIXELS, generator=generator) - 1
            with torch.no_grad():
                wanted = teachers(x)
            yield distil_loss(students(x), wanted, auxiliary)

    _descend(students, losses(), config.rate, tick)
    if config.steps in marks:
        mark(config.steps, students)
    return students


@torch.no_grad()
def accuracy(nets: Nets, data: Digits) -> tuple[float, ...]:
    """Return each network's share of test digits classified rightly."""
    guesses = nets(data.test.expand(nets.models, -1, -1))[..., :CLASSES].argmax(-1)
    return tuple(float(x) for x in (guesses == data.test_classes).double().mean(1))


def run_toy(
    config: ToyConfig,
    arms: Sequence[str] = ARMS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Toy:
    """Train teachers and the students of ``arms``; UsageError for an arm that is not in `ARMS`."""
    if bad := [arm for arm in arms if arm not in ARMS]:
        raise UsageError(f"arm {bad[0]!r}: choose among {', '.join(ARMS)}")
    data, start = digits(config.seed), initial(config.models, config.width, config.seed)
    batches = config.teacher_epochs * -(-len(data.train) // config.teacher_batch)
    total, done = batches + config.steps * len(arms), 0

    def tick() -> None:
        nonlocal done
        done += 1
        report(done, total)

    found = {"untrained": accuracy(start, data)}
    complete = True
    try:
        teachers = train_teachers(start, data, config, tick)
        found["teacher"] = accuracy(teachers, data)
        for arm in arms:
            order = range(config.models) if "same" in arm else derangement(config.models, config.seed)
            students = distil(start.taken(order), teachers, config, auxiliary="auxiliary" in arm, tick=tick)
            found[arm] = accuracy(students, data)
    except KeyboardInterrupt:
        complete = False
    return Toy(found, config, len(data.test), complete)


def _descend(nets: Nets, losses: Iterator[Tensor], rate: float, tick: Callable[[], None]) -> None:
    weights = [*nets.weights, *nets.biases]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=rate, fused=True)
    with torch.enable_grad():
        for loss in losses:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            tick()
    for weight in weights:
        weight.requires_grad_(False)
