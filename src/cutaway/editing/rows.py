"""An edit of MLP rows as data: what each row was and what it becomes. Applied for a block, or for good to a copy.

A row is what one neuron writes into the stream (`written`). The file that `Edit.save` writes undoes the edit as well.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.editing.weights import written
from cutaway.errors import CutawayError
from cutaway.model import Model


@dataclass(frozen=True)
class Feature:
    """One feature of a layer's dictionary and why it was chosen."""

    layer: int
    index: int
    favours: bool
    """Whether concept tokens are among those it favours most, or least."""
    words: tuple[str, ...] = ()
    """The concept's words found there."""


@dataclass(frozen=True, eq=False)
class RowEdit:
    """Rows of one layer, before and after."""

    layer: int
    neurons: Int[Tensor, " row"]
    before: Float[Tensor, "row d_model"]
    after: Float[Tensor, "row d_model"]


@dataclass(frozen=True, eq=False)
class Edit:
    """Everything that is rewritten, with what it cost to work out."""

    rows: tuple[RowEdit, ...]
    features: tuple[Feature, ...]
    tau: float
    mu: float
    multiplications: int
    """Made in the encoders and decoders."""
    reference: int
    """What encoding and decoding every neuron over the whole width would take."""

    def __repr__(self) -> str:
        saved = 1 - self.multiplications / max(1, self.reference)
        return (
            f"Edit({len(self)} rows in {len(self.rows)} layers, {len(self.features)} features, tau {self.tau:g},"
            f" mu {self.mu:g}, norm {self.norm:.3g}, {saved:.1%} of multiplications saved)"
        )

    def __len__(self) -> int:
        return sum(len(each.neurons) for each in self.rows)

    @property
    def norm(self) -> float:
        """Frobenius norm of the change."""
        return float(sum((each.after - each.before).double().square().sum() for each in self.rows)) ** 0.5

    @property
    def changed(self) -> tuple[tuple[int, int, float], ...]:
        """(layer, neuron, length of the change) of every row."""
        return tuple(
            (each.layer, int(neuron), float(length))
            for each in self.rows
            for neuron, length in zip(each.neurons, (each.after - each.before).norm(dim=-1), strict=True)
        )

    def save(self, path: str | Path) -> None:
        """Write rows before and after to one safetensors file, from which `load_edit` can undo it."""
        from safetensors.torch import save_file

        tensors = {
            f"{name}.{each.layer}": getattr(each, name).contiguous()
            for each in self.rows
            for name in ("neurons", "before", "after")
        }
        tensors = tensors or {"none": torch.zeros(0)}
        about = {"tau": self.tau, "mu": self.mu, "layers": [each.layer for each in self.rows]}
        about |= {"multiplications": self.multiplications, "reference": self.reference}
        about |= {"features": [asdict(each) for each in self.features]}
        save_file(tensors, path, metadata={"pisces": json.dumps(about)})


def load_edit(path: str | Path) -> Edit:
    """Read what `Edit.save` wrote; CutawayError for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["pisces"])
            rows = tuple(
                RowEdit(layer, *(file.get_tensor(f"{name}.{layer}") for name in ("neurons", "before", "after")))
                for layer in about["layers"]
            )
        features = tuple(Feature(**{**each, "words": tuple(each["words"])}) for each in about["features"])
        return Edit(rows, features, about["tau"], about["mu"], about["multiplications"], about["reference"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CutawayError(f"{path} holds no edit written by Edit.save: {error}") from error


def rewritten(model: Model, edit: Edit, *, undo: bool = False) -> Model:
    """Return a copy of the model with the rows after (or, to ``undo``, before) the edit; the model is not touched.

    CutawayError where its rows are not those that the edit (or its undoing) starts from.
    """
    changed = model.copy()
    _put(changed, edit, undo)
    return changed


@contextmanager
def applied(model: Model, edit: Edit) -> Iterator[Model]:
    """Edit inside the block; the rows come back bit for bit, also after an error."""
    kept = {each.layer: written(model, each.layer)[each.neurons].clone() for each in edit.rows}
    _put(model, edit, undo=False)
    try:
        yield model
    finally:
        with torch.no_grad():
            for layer, rows in kept.items():
                neurons = next(each.neurons for each in edit.rows if each.layer == layer)
                written(model, layer)[neurons.to(rows.device)] = rows


@torch.no_grad()
def _put(model: Model, edit: Edit, undo: bool) -> None:
    for each in edit.rows:
        held = each.after if undo else each.before
        rows = written(model, each.layer)
        if rows.shape[1] != held.shape[1] or not torch.equal(rows[each.neurons.to(rows.device)], held.to(rows.device)):
            raise CutawayError(f"layer {each.layer} of {model.name!r} holds other rows than the edit starts from")
    for each in edit.rows:
        rows = written(model, each.layer)
        rows[each.neurons.to(rows.device)] = (each.before if undo else each.after).to(rows)
