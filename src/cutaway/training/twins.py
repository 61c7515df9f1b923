"""Two runs that differ in one thing only.

Both start from their own fresh copy of the same weights and share seeds, and so the order of the data and every random
number. What differs is named in the result. Source: cards poisonbench, ema-safety, caft; note on the training core.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import UsageError
from cutaway.model import Edit, Model
from cutaway.training.checkpoint import flat
from cutaway.training.config import TrainConfig
from cutaway.training.data import Data
from cutaway.training.loop import Probe, train
from cutaway.training.lora import LoraSpec, add_lora, base_fingerprint
from cutaway.training.objectives import NextToken, Objective
from cutaway.training.trained import Step, Trained
from cutaway.training.weights import Average


@dataclass(frozen=True)
class RunSpec:
    """All that decides a run, the weights it starts from aside."""

    data: Data
    config: TrainConfig = field(default_factory=TrainConfig)
    objective: Objective = field(default_factory=NextToken)
    lora: LoraSpec | None = None
    """None: the weights that the given model has trainable."""
    edits: tuple[Edit, ...] = ()
    keep_edits: bool = False
    averages: tuple[Average, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON-able data, the rows by digest."""
        return {
            "data": self.data.digest,
            "config": asdict(self.config),
            "objective": self.objective.to_dict(),
            "lora": None if self.lora is None else asdict(self.lora),
            "edits": [edit.to_dict() for edit in self.edits],
            "keep_edits": self.keep_edits,
            "averages": [asdict(average) for average in self.averages],
        }


@dataclass(frozen=True)
class Twins:
    """Two runs and the field in which they differ."""

    field: str
    values: tuple[Any, Any]
    a: Trained
    b: Trained

    def __repr__(self) -> str:
        return f"Twins({self.field}: {self.values[0]!r} {self.a!r}, {self.values[1]!r} {self.b!r})"


def differences(a: RunSpec, b: RunSpec) -> dict[str, tuple[Any, Any]]:
    """Return ``field -> (value in a, value in b)`` where the two differ.

    >>> differences(spec, replace(spec, config=replace(spec.config, rate=1e-5)))  # doctest: +SKIP
    {'config.rate': (0.0001, 1e-05)}
    """
    left, right = flat(a.to_dict()), flat(b.to_dict())
    # A spec with adapters against one without is one difference, not one for each of their settings.
    for whole in ("lora", "objective"):
        kinds = [side.get(whole, side.get(f"{whole}.objective", "set")) for side in (left, right)]
        if kinds[0] != kinds[1]:
            for side, spec in ((left, a), (right, b)):
                for key in [key for key in side if key.startswith(f"{whole}.")]:
                    del side[key]
                side[whole] = spec.to_dict()[whole]
    keys = sorted(key for key in {*left, *right} if left.get(key) != right.get(key))
    return {key: (left.get(key), right.get(key)) for key in keys}


def twins(
    make: Callable[[], Model],
    a: RunSpec,
    b: RunSpec,
    *,
    probes: Mapping[str, Probe] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    tick: Callable[[Step], None] = lambda step: None,
) -> Twins:
    """Train both specs, each on a fresh model from ``make``; folders ``a`` and ``b`` receive their checkpoints.

    Raises UsageError unless exactly one field differs, both have as many examples, and ``make`` gives separate models
    of the same weights. Data that differ need ``bucket=1``: otherwise their lengths would change the order.
    """
    found = differences(a, b)
    if len(found) != 1:
        raise UsageError(f"twins differ in exactly one field, these in {len(found)}: {', '.join(found) or 'none'}")
    ((name, values),) = found.items()
    if name == "data" and (len(a.data) != len(b.data) or a.config.bucket != 1):
        raise UsageError("twins on different data need as many examples in both, and bucket=1 for the same order")
    models = [make(), make()]
    weights = {id(weight) for weight in models[0].hf.parameters()}
    if any(id(weight) in weights for weight in models[1].hf.parameters()):
        raise UsageError("make returned the same weights twice; load or build the model anew each time")
    if base_fingerprint(models[0]) != base_fingerprint(models[1]):
        raise UsageError("make returned different weights; twins start from the same ones")
    runs = [
        train_spec(model, spec, probes, None if folder is None else Path(folder) / side, resume, tick)
        for model, spec, side in zip(models, (a, b), "ab", strict=True)
    ]
    return Twins(name, values, runs[0], runs[1])


def train_spec(
    model: Model,
    spec: RunSpec,
    probes: Mapping[str, Probe] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    tick: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train ``model`` as ``spec`` says; see `train`."""
    return train(
        model if spec.lora is None else add_lora(model, spec.lora),
        spec.data,
        spec.config,
        objective=spec.objective,
        edits=spec.edits,
        keep_edits=spec.keep_edits,
        averages=spec.averages,
        probes=probes,
        folder=folder,
        resume=resume,
        tick=tick,
    )
