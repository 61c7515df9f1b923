"""Edits as data: what to change, where, at which positions. They print, hash, compare, save and travel.

``positions`` are absolute token positions in a row without its padding, also while decoding from a cache: an
int, several ints, a slice, or None for every position. Negative ints and "last" count from the end of the row
in a forward that starts from an empty cache (the prompt); they do not move on to generated tokens.

A tensor given for a site has the site's own shape at one position (used at every position), or with one more
axis in front one value for each position, or with two ``[batch pos ...]``.
"""

import hashlib
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError

Positions = int | Literal["last"] | Sequence[int] | slice | None


class EditError(CutawayError):
    """An edit had no effect: it met no forward pass, no such position, or values that were already so."""


class Edit:
    """What all edits share: they are frozen dataclasses, equal when their content is."""

    site: str

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as JSON-able data, tensors as shape, dtype and SHA-256."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(cast(Any, self))}
        return {"edit": type(self).__name__, **values}

    @property
    def digest(self) -> str:
        """SHA-256 of the edit's whole content."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.digest == other.digest

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{field.name}={_short(getattr(self, field.name))}"
            for field in fields(cast(Any, self))
            if getattr(self, field.name) is not None
        )
        return f"{type(self).__name__}({shown})"

    def _freeze(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Edit):
    """Add ``scale * vector``."""

    site: str
    vector: Tensor
    scale: float = 1.0
    positions: Positions = None

    def __post_init__(self) -> None:
        self._freeze(vector=_tensor(self, "vector"), positions=_positions(self.positions))


@dataclass(frozen=True, eq=False, repr=False)
class Project(Edit):
    """Remove the span of ``directions`` [k d] or [d]; with ``keep`` remove everything else."""

    site: str
    directions: Tensor
    positions: Positions = None
    keep: bool = False

    def __post_init__(self) -> None:
        directions = _tensor(self, "directions")
        if directions.ndim not in (1, 2) or not bool(directions.detach().ne(0).any()):
            raise UsageError(
                f"Project at {self.site!r}: directions must be [d] or [k d] and not all zero,"
                f" given {list(directions.shape)}"
            )
        self._freeze(directions=torch.atleast_2d(directions), positions=_positions(self.positions))

    def basis(self) -> Tensor:
        """Return an orthonormal basis [r d] of the span in fp64, r the rank; differentiable.

        Gram-Schmidt, each vector cleaned twice; a direction that the earlier ones span adds nothing.
        """
        rows: list[Tensor] = []
        for direction in self.directions.double():
            if not direction.detach().any():
                continue
            left = direction / direction.norm()
            for _ in range(2):
                for row in rows:
                    left = left - (left @ row) * row
            if float(left.detach().norm()) > 1e-6:
                rows.append(left / left.norm())
        return torch.stack(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Replace(Edit):
    """Put ``value`` in place."""

    site: str
    value: Tensor
    positions: Positions = None

    def __post_init__(self) -> None:
        self._freeze(value=_tensor(self, "value"), positions=_positions(self.positions))


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Edit):
    """Multiply by ``factor``, a number or a tensor."""

    site: str
    factor: float | Tensor
    positions: Positions = None

    def __post_init__(self) -> None:
        self._freeze(positions=_positions(self.positions))


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Edit):
    """Set to zero: the whole site, or ``index`` of its heads (q, k, v, z) or of its last axis (others)."""

    site: str
    index: int | Sequence[int] | None = None
    positions: Positions = None

    def __post_init__(self) -> None:
        self._freeze(index=_ints("index", self.index), positions=_positions(self.positions))


@dataclass(frozen=True, eq=False, repr=False)
class Patch(Edit):
    """Put in what another run had: position p takes ``source[row, p]``.

    ``source`` is a captured tensor ``[batch pos ...]`` of whole rows without padding on the left; one row
    serves all. Positions beyond its end stay as they are.
    """

    site: str
    source: Tensor
    positions: Positions = None

    def __post_init__(self) -> None:
        self._freeze(source=_tensor(self, "source"), positions=_positions(self.positions))
        if self.source.ndim < 3:
            raise UsageError(
                f"Patch at {self.site!r}: source must be [batch pos ...] as captured,"
                f" given {list(self.source.shape)}; use Replace for one value"
            )
        width = self.source.shape[1]
        asked = self.positions if isinstance(self.positions, tuple) else ()
        if any(position >= width for position in asked):
            raise UsageError(f"Patch at {self.site!r}: position {max(asked)} is beyond the source's {width} positions")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMask(Edit):
    """Hide ``keys`` from ``queries`` in ``heads`` (None: all) of ``layer`` (a number or "*").

    A query that would be left with no key at all keeps sight of itself.
    """

    layer: int | str = "*"
    queries: Positions = None
    keys: Positions = None
    heads: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._freeze(queries=_positions(self.queries), keys=_positions(self.keys), heads=_ints("heads", self.heads))

    @property
    def site(self) -> str:  # type: ignore[override]
        return f"pattern.{self.layer}"


@dataclass(frozen=True, eq=False, repr=False)
class AttentionBias(Edit):
    """Add ``bias`` to the attention logits of ``keys`` as seen from ``queries``, in ``heads`` (None: all) of ``layer``.

    ``log(c)`` gives those keys ``c`` times the weight they had against the others. What is masked stays masked.
    """

    bias: float
    layer: int | str = "*"
    queries: Positions = None
    keys: Positions = None
    heads: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._freeze(queries=_positions(self.queries), keys=_positions(self.keys), heads=_ints("heads", self.heads))

    @property
    def site(self) -> str:  # type: ignore[override]
        return f"pattern.{self.layer}"


@dataclass(frozen=True, eq=False, repr=False)
class GradientStep(Edit):
    """Climb ``wish(h) = readout . relu(w2 relu(w1 h + b1) + b2)``: ``steps`` times ``h + scale * decay**s * gradient``.

    The one edit whose push depends on the value it meets. The gradient is written out in closed form, and each
    position climbs its own: a push depends neither on the text's length nor on padding.
    """

    site: str
    w1: Tensor
    """[hidden d]"""
    b1: Tensor
    w2: Tensor
    """[out hidden]; the identity where the network has one hidden layer."""
    b2: Tensor
    readout: Tensor
    """[out]"""
    scale: float = 1.0
    steps: int = 1
    decay: float = 1.0
    unit: bool = False
    """Bring each gradient to length 1, so that a step is ``scale * decay**s`` long wherever there is a gradient."""
    goal: float | None = None
    """A position stops climbing once its wish has reached this."""
    keep_norm: bool = False
    """Bring each position back to the length it had."""
    positions: Positions = None

    def __post_init__(self) -> None:
        tensors = {name: _tensor(self, name) for name in ("w1", "b1", "w2", "b2", "readout")}
        shapes = [list(tensor.shape) for tensor in tensors.values()]
        fits = [tensor.ndim for tensor in tensors.values()] == [2, 1, 2, 1, 1]
        if not fits or self.w2.shape != (len(self.b2), len(self.b1)) or len(self.w1) != len(self.b1):
            raise UsageError(
                f"GradientStep at {self.site!r}: w1 [hidden d], b1 [hidden], w2 [out hidden], b2 [out], readout [out];"
                f" given {shapes}"
            )
        if len(self.readout) != len(self.b2):
            raise UsageError(f"GradientStep at {self.site!r}: readout has {len(self.readout)} entries, b2 {shapes[3]}")
        if self.steps < 1:
            raise UsageError(f"GradientStep at {self.site!r}: steps={self.steps}: 1 or more")
        self._freeze(positions=_positions(self.positions))

    def wish(self, value: Tensor) -> Tensor:
        """Return what is climbed, at each position of ``value`` [... d]; fp32 or wider."""
        w1, b1, w2, b2, readout = self._weights(value)
        return ((value.to(w1) @ w1.T + b1).relu() @ w2.T + b2).relu() @ readout

    def stepped(self, value: Tensor) -> Tensor:
        """Return ``value`` [... d] after all steps; computed in fp32 or wider."""
        w1, b1, w2, b2, readout = self._weights(value)
        start = here = value.to(w1)
        for step in range(self.steps):
            inner = here @ w1.T + b1
            outer = inner.relu() @ w2.T + b2
            push = (((outer > 0) * readout) @ w2 * (inner > 0)) @ w1
            if self.unit:
                push = push / push.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(push.dtype).tiny)
            if self.goal is not None:
                push = push * (outer.relu() @ readout < self.goal)[..., None]
            here = here + self.scale * self.decay**step * push
        if self.keep_norm:
            here = here * (start.norm(dim=-1, keepdim=True) / here.norm(dim=-1, keepdim=True))
        return here.to(value.dtype)

    def _weights(self, value: Tensor) -> list[Tensor]:
        wide = torch.promote_types(value.dtype, torch.float32)
        return [each.to(value.device, wide) for each in (self.w1, self.b1, self.w2, self.b2, self.readout)]


EDITS: dict[str, type[Edit]] = {
    kind.__name__: kind
    for kind in (Add, Project, Replace, Scale, Mask, AttentionMask, AttentionBias, Patch, GradientStep)
}


def save_edits(edits: Sequence[Edit], path: str | Path) -> None:
    """Write edits with their tensors to one safetensors file."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for edit in edits:
        for field in fields(cast(Any, edit)):
            value = getattr(edit, field.name)
            if isinstance(value, Tensor):
                tensors[_sha(value)] = value.detach().cpu().contiguous()
    if not tensors:
        tensors["none"] = torch.zeros(0)
    save_file(tensors, path, metadata={"edits": json.dumps([edit.to_dict() for edit in edits])})


def load_edits(path: str | Path) -> list[Edit]:
    """Read what `save_edits` wrote; CutawayError where the file is damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            listed = json.loads((file.metadata() or {})["edits"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        return [_restore(dict(item), tensors) for item in listed]
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CutawayError(f"{path} is not a file of edits written by save_edits: {error}") from error


def _restore(item: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    kind = EDITS[item.pop("edit")]
    for name, value in item.items():
        if isinstance(value, dict) and "sha256" in value:
            item[name] = tensors[value["sha256"]]
        elif isinstance(value, dict):
            item[name] = slice(*value["slice"])
    return kind(**item)


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return {"sha256": _sha(value), "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop]}
    return list(value) if isinstance(value, tuple) else value


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"<{list(value.shape)} {_sha(value)[:8]}>"
    return repr(value)


def _sha(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    total = hashlib.sha256(f"{plain.dtype}:{tuple(plain.shape)};".encode())
    total.update(plain.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _tensor(edit: Edit, name: str) -> Tensor:
    value = getattr(edit, name)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"{type(edit).__name__} at {edit.site!r}: {name} must be a float tensor, given {given}")
    return value


def _positions(positions: Positions) -> int | str | tuple[int, ...] | slice | None:
    """Return positions in one canonical form: None, a tuple of ints, or a slice of step 1."""
    if positions is None:
        return None
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise UsageError(f"positions={positions}: a slice must have step 1; list the positions instead")
        return slice(positions.start, positions.stop)
    if isinstance(positions, str):
        if positions != "last":
            raise UsageError(f"positions={positions!r}: use an int, ints, a slice, 'last' or None")
        return (-1,)
    return _ints("positions", positions)


def _ints(name: str, value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        listed = tuple(map(operator.index, value)) if hasattr(value, "__iter__") else (operator.index(value),)
    except TypeError as error:
        raise UsageError(f"{name}={value!r}: must be an int or several ints") from error
    if not listed:
        raise UsageError(f"{name}: empty; name at least one")
    return listed
