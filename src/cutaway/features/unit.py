"""Any feature with one value at each token: a neuron, a latent of a dictionary, a head, a function of your own.

A `Unit` is a name and ``activations(ids, mask)``; whatever has these two can be turned into a graph, indexed and
compared. The constructors here also know which site of which model they read, so `together` reads any number of them
from one forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.features.dictionary import Dictionary
from cutaway.model import Batch, Model
from cutaway.model.sites import parse

Read = Callable[[Tensor, Tensor], Tensor]
"""``(what the site holds [batch pos ...], mask [batch pos])`` to values [batch pos]."""


@runtime_checkable
class Unit(Protocol):
    """A feature with one value at each token."""

    @property
    def name(self) -> str: ...

    def activations(self, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Return the value at every token of rows padded on either side; 0 at padding."""
        ...


@dataclass(frozen=True, eq=False)
class ModelUnit:
    """A feature read from one site of a model."""

    name: str
    model: Model
    site: str
    read: Read

    def __repr__(self) -> str:
        return f"ModelUnit({self.name!r} of {self.model.name!r})"

    def activations(self, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Return the value at every token; 0 at padding."""
        return together([self], ids, mask)[..., 0]


@dataclass(frozen=True, eq=False)
class FunctionUnit:
    """A feature computed from token ids alone."""

    name: str
    fn: Callable[[Sequence[int]], Sequence[float]]

    def activations(self, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Return the value at every token; 0 at padding. UsageError where ``fn`` returns another number of values."""
        found = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        for row, (row_ids, real) in enumerate(zip(ids, mask, strict=True)):
            values = self.fn(row_ids[real].tolist())
            if len(values) != int(real.sum()):
                raise UsageError(f"unit {self.name!r} gave {len(values)} values for {int(real.sum())} tokens")
            found[row, real] = torch.tensor([float(value) for value in values], device=ids.device)
        return found


def neuron(model: Model, layer: int, index: int, *, negative: bool = False) -> ModelUnit:
    """Return an MLP neuron (in a gated MLP the product of gate and up); ``negative`` flips its sign.

    A neuron that swings both ways is two features. UsageError for a layer or neuron the model does not have.
    """
    site = f"neurons.{layer}"
    parse(site, model.layout)
    size = model.layout.dims("neurons")[0]
    if not 0 <= index < size:
        raise UsageError(f"neuron {index}: layer {layer} has 0..{size - 1}")
    sign = -1.0 if negative else 1.0
    name = f"{'-' if negative else ''}{site}.{index}"
    return ModelUnit(name, model, site, lambda held, mask: sign * held[..., index])


def latent(model: Model, dictionary: Dictionary, site: str, index: int) -> ModelUnit:
    """Return a latent of a dictionary that reads at ``site``; UsageError where widths or the index do not fit."""
    places = parse(site, model.layout)
    place = places[0]
    if len(places) != 1 or place.kind == "pattern":
        raise UsageError(f"site {site!r}: name one place with one row of numbers at each token")
    dims = model.layout.dims(place.kind)
    width = dims[-1] if place.head is not None else int(torch.tensor(dims).prod())
    if dictionary.d_in != width:
        raise UsageError(f"dictionary reads {dictionary.d_in} numbers, {site} holds {width}")
    if not 0 <= index < dictionary.n_latents:
        raise UsageError(f"latent {index}: the dictionary has 0..{dictionary.n_latents - 1}")

    def read(held: Tensor, mask: Tensor) -> Tensor:
        codes = dictionary.encode(held[mask].flatten(1).float())
        values = (codes.values * (codes.indices == index)).sum(-1)
        return torch.zeros(mask.shape, device=held.device).masked_scatter(mask, values.float())

    return ModelUnit(f"{place}:{index}", model, str(place), read)


def head(model: Model, layer: int, head: int) -> ModelUnit:
    """Return an attention head: the length of what it adds (before a norm behind attention, where there is one)."""
    site = f"z.{layer}.{head}"
    parse(site, model.layout)
    o = model.layout.attn(layer).get_submodule(model.layout.shape.o)
    weight = o.weight.T if type(o).__name__ == "Conv1D" else o.weight
    assert isinstance(weight, Tensor)
    written = weight[:, head * model.d_head : (head + 1) * model.d_head].detach().float()
    return ModelUnit(site, model, site, lambda held, mask: (held.float() @ written.T).norm(dim=-1))


def function(name: str, fn: Callable[[Sequence[int]], Sequence[float]]) -> FunctionUnit:
    """Return a feature computed by ``fn``: the token ids of one row, without padding, to one value for each.

    >>> import torch
    >>> even = function("even", lambda ids: [float(token % 2 == 0) for token in ids])
    >>> even.activations(torch.tensor([[3, 4]]), torch.tensor([[True, True]])).tolist()
    [[0.0, 1.0]]
    """
    return FunctionUnit(name, fn)


@torch.no_grad()
def together(
    units: Sequence[Unit], ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos unit"]:
    """Return every unit's values, one forward pass for all units of a model; 0 at padding.

    UsageError where a unit gives another shape than ``ids``, CutawayError where a value is NaN or infinite.
    """
    if not units:
        raise UsageError("no unit given; name at least one")
    models = {id(unit.model): unit.model for unit in units if isinstance(unit, ModelUnit)}
    held: dict[tuple[int, str], Tensor] = {}
    for key, model in models.items():
        sites = list(dict.fromkeys(u.site for u in units if isinstance(u, ModelUnit) and u.model is model))
        found = model.capture(Batch(ids.to(model.device), mask.to(model.device)), sites)
        held |= {(key, site): found[site] for site in sites}
    columns = []
    for unit in units:
        if isinstance(unit, ModelUnit):
            values = unit.read(held[id(unit.model), unit.site], mask.to(unit.model.device))
        else:
            values = unit.activations(ids, mask)
        columns.append(checked(unit, values, mask))
    return torch.stack(columns, -1)


def checked(unit: Unit, values: Tensor, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """Return a unit's values in fp32, 0 at padding; an error for a wrong shape or a value that is not finite."""
    if values.shape != mask.shape:
        raise UsageError(f"unit {unit.name!r} gave values of shape {list(values.shape)} for {list(mask.shape)} tokens")
    values = values.float().to(mask.device).masked_fill(~mask, 0.0)
    if not bool(torch.isfinite(values).all()):
        raise CutawayError(f"unit {unit.name!r} gave NaN or infinite values")
    return values


def read_rows(
    units: Sequence[Unit], rows: Sequence[Sequence[int]], *, tokens: int = 4096
) -> Iterator[tuple[int, Float[Tensor, "pos unit"]]]:
    """Yield ``(row, its values)``, longest rows first, about ``tokens`` tokens to a forward pass.

    Sorting by length saves padding; the numbers do not depend on ``tokens`` but for rounding.
    """
    if not rows or not all(len(row) for row in rows):
        raise UsageError("give at least one row, and a token in every row")
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        size = max(1, tokens // len(rows[order[start]]))
        chosen = order[start : start + size]
        ids, mask = padded([rows[i] for i in chosen])
        for i, values in zip(chosen, together(units, ids, mask), strict=True):
            yield i, values[: len(rows[i])]
        start += size


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Return rows of token ids padded on the right with id 0, and the mask of the real ones."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths[:, None]
