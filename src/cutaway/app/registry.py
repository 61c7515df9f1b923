"""What a server was given by name, and the ``cutaway`` field of a request turned into edits and monitors.

A registered set of edits makes a model of its own, ``<model>+<name>``, so that a client that knows nothing of the
field can talk to a steered model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.app.monitors import Monitor, monitor_of, site_of
from cutaway.app.protocol import Cutaway, MonitorSpec, Span, Strict
from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.model.edits import EDITS, Edit, EditError, load_edits
from cutaway.probes import LinearProbe, load_probe
from cutaway.sampling.local import check_edits

if TYPE_CHECKING:
    from cutaway.model import Model

TENSORS = ("vector", "directions", "value", "factor")


@dataclass(frozen=True)
class Registry:
    """Vectors, sets of edits and monitors by name."""

    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    edits: Mapping[str, tuple[Edit, ...]] = field(default_factory=dict)
    monitors: Mapping[str, LinearProbe] = field(default_factory=dict)

    def check(self, model: "Model") -> None:
        """UsageError for what does not fit ``model``."""
        for probe in self.monitors.values():
            site_of(model, probe)
        for name, edits in self.edits.items():
            if "+" in name:
                raise UsageError(f"edits {name!r}: a name has no '+'")
            check_edits(edits)
            try:
                with model.edited(*edits):
                    pass
            except EditError:
                pass  # no forward ran: only that they fit was asked


def read_registry(vectors: Sequence[str] = (), edits: Sequence[str] = (), monitors: Sequence[str] = ()) -> Registry:
    """Read ``NAME=PATH`` entries: files of vectors (safetensors), of `save_edits`, folders of `LinearProbe.save`."""
    known: dict[str, Tensor] = {}
    for name, path in map(_pair, vectors):
        known |= _vectors(name, path)
    return Registry(
        known,
        {name: tuple(load_edits(path)) for name, path in map(_pair, edits)},
        {name: load_probe(path) for name, path in map(_pair, monitors)},
    )


class Wishes:
    """Reads the names and ``cutaway`` fields of requests to one model."""

    def __init__(self, model: "Model", registry: Registry, name: str | None = None) -> None:
        registry.check(model)
        self.model, self.registry = model, registry
        self.name = name or model.name
        self._registered = {name: monitor_of(model, name, probe) for name, probe in registry.monitors.items()}

    @property
    def names(self) -> list[str]:
        """Every model that can be asked for."""
        return [self.name, *(f"{self.name}+{each}" for each in self.registry.edits)]

    def model_edits(self, name: str) -> tuple[Edit, ...]:
        """The edits that a model's name stands for; UnknownModelError for another's."""
        if name == self.name:
            return ()
        base, plus, edits = name.rpartition("+")
        if not plus or base != self.name or edits not in self.registry.edits:
            raise UnknownModelError(f"model {name!r} is not served here{nearest(name, self.names)}")
        return self.registry.edits[edits]

    def edits(self, name: str, asked: Cutaway | None) -> tuple[Edit, ...]:
        """All edits of a request, checked against the model."""
        found = list(self.model_edits(name))
        for each in asked.edits if asked else ():
            if isinstance(each, str):
                if each not in self.registry.edits:
                    raise UsageError(f"no registered edits {each!r}{nearest(each, self.registry.edits)}")
                found += self.registry.edits[each]
            else:
                found.append(self._edit(each))
        return tuple(found)

    def monitors(self, asked: Cutaway | None) -> tuple[Monitor, ...]:
        """The monitors of a request, checked against the model."""
        found = [self._monitor(each) for each in (asked.monitors if asked else ())]
        names = [each.name for each in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"monitor {twice!r} is named twice")
        return tuple(found)

    def _edit(self, spec: Strict) -> Edit:
        given = {name: _plain(getattr(spec, name)) for name in type(spec).model_fields}
        kind = EDITS[given.pop("edit")]
        for name in TENSORS:
            if isinstance(given.get(name), str | list):
                given[name] = self._tensor(given[name])
        for name in ("scale", "factor", "bias"):
            if isinstance(given.get(name), int):
                given[name] = float(given[name])
        return kind(**given)

    def _monitor(self, spec: MonitorSpec | str) -> Monitor:
        if isinstance(spec, str):
            if spec not in self._registered:
                raise UsageError(f"no registered monitor {spec!r}{nearest(spec, self._registered)}")
            return self._registered[spec]
        weight = self._tensor(spec.direction)
        if weight.ndim != 1:
            raise UsageError(f"monitor {spec.name!r}: a direction has one axis, given {list(weight.shape)}")
        return monitor_of(self.model, spec.name, LinearProbe(weight, float(spec.bias), spec.site, concept=spec.name))

    def _tensor(self, given: str | list[Any]) -> Tensor:
        if isinstance(given, str):
            if given not in self.registry.vectors:
                raise UsageError(f"no registered vector {given!r}{nearest(given, self.registry.vectors)}")
            return self.registry.vectors[given]
        rows = given if isinstance(given[0], list) else [given]
        if len({len(row) for row in rows}) > 1:
            raise UsageError("a tensor's rows must be equally long")
        return torch.tensor(given, dtype=torch.float32)


class UnknownModelError(UsageError):
    """A model that is not served; answered with 404."""

    status = 404


def _plain(value: Any) -> Any:
    return slice(*value.slice) if isinstance(value, Span) else value


def _pair(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    if not equals or not name or not path:
        raise UsageError(f"{given!r}: write NAME=PATH")
    return name, Path(path)


def _vectors(name: str, path: Path) -> dict[str, Tensor]:
    """The float tensors of a safetensors file; those of `Vectors.save` as ``NAME.LAYER``, a lone one as ``NAME``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("vectors", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CutawayError(f"{path.name} cannot be read as safetensors: {error}") from error
    if about is not None:
        rows = zip(about["layers"], tensors["values"], strict=True)
        return {f"{name}.{layer}": vector.clone() for layer, vector in rows}
    fine = {key: each.is_floating_point() and bool(each.isfinite().all()) for key, each in tensors.items()}
    wrong = next((key for key in fine if not fine[key]), None)
    if wrong is not None or not tensors:
        raise CutawayError(f"{path.name}: {'no tensors' if wrong is None else f'{wrong!r} is not of finite floats'}")
    return {name if len(tensors) == 1 else f"{name}.{key}": each for key, each in tensors.items()}
