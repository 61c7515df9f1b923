"""Checkpoints: safetensors with a JSON header, never pickles.

``step-000010.safetensors`` holds the trained weights alone (adapters: kilobytes), for every n-th step.
``state.safetensors`` holds all that a run needs to go on bit for bit: weights, the optimiser's moments, averages, the
step, which is also the data's position and, with the seed, the random state. It is replaced in one move.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model
from cutaway.training.lora import base_fingerprint, refuse_other_weights
from cutaway.training.weights import put

STATE = "state.safetensors"
_STEP = re.compile(r"step-(\d+)\.safetensors")
_MAY_DIFFER = ("versions", "config.state_every", "config.weights_every", "config.probe_every")


@dataclass(frozen=True)
class Provenance:
    """What a run came from; written into each checkpoint."""

    base: str
    """Fingerprint of the weights below the adapters, before the first step."""
    data: str
    """Digest of the data."""
    config: Mapping[str, Any]
    objective: Mapping[str, Any]
    edits: tuple[Mapping[str, Any], ...]
    averages: tuple[str, ...]
    adapter: Mapping[str, Any] | None
    trained: Mapping[str, list[int]]
    """Shapes of the trained tensors by name."""
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(vars(self), default=str, sort_keys=True))


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {}
    for name in ("cutaway", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors with a JSON header in one move: a reader sees the old file or the new one."""
    from safetensors.torch import save_file

    fresh = path.with_suffix(".new")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, fresh, metadata={"cutaway": json.dumps(header, default=str)})
    fresh.replace(path)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint's tensors and header; CutawayError where it is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["cutaway"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CutawayError(f"{Path(path).name} is no checkpoint that can be read: {error}") from error


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """Return the checkpoints of the trained weights in a run's folder, by step."""
    found = {}
    for path in sorted(Path(folder).glob("step-*.safetensors")):
        if match := _STEP.fullmatch(path.name):
            found[int(match.group(1))] = path
    return found


def load_checkpoint(model: Model, path: str | Path) -> int:
    """Put a checkpoint's weights into ``model`` and return its step.

    The model must stand on the base weights, with adapters of the same form where the run had some.
    Raises CutawayError for other base weights or another form; nothing is changed then.
    """
    tensors, header = read(path)
    refuse_other_weights(header["provenance"]["base"], base_fingerprint(model), f"checkpoint {Path(path).name}")
    weights = {name.removeprefix("weight."): value for name, value in tensors.items() if name.startswith("weight.")}
    weights = {name: value for name, value in weights.items() if name not in header["tensors"]}
    own: dict[str, Tensor] = {name: weight for name, weight in model.hf.named_parameters() if name in weights}
    check_form(own, weights, Path(path).name)
    put(own, weights)
    return int(header["step"])


def check_form(own: Mapping[str, Tensor], held: Mapping[str, Tensor], what: str) -> None:
    """Raise CutawayError unless both have the same names and shapes."""
    for name in sorted({*own, *held}):
        shapes = [list(side[name].shape) if name in side else None for side in (held, own)]
        if shapes[0] != shapes[1]:
            raise CutawayError(f"{what} does not fit: {name} is {shapes[0]} there and {shapes[1]} in the model")


def check_same(held: Mapping[str, Any], now: Provenance) -> None:
    """Raise where a checkpoint is of other weights (CutawayError) or of another run (UsageError)."""
    refuse_other_weights(held["base"], now.base, "the checkpoint")
    before, after = flat(held), flat(now.to_dict())
    changed = [
        f"{key} was {before.get(key)!r}, now {after.get(key)!r}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not key.startswith(_MAY_DIFFER)
    ]
    if changed:
        raise UsageError(f"cannot resume: {changed[0]}; give the same settings, or another folder")


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
