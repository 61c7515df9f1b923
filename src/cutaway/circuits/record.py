"""What every writer wrote in one run: the material that cut edges carry instead, and where runs start from."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.circuits.anatomy import Anatomy
from cutaway.errors import UsageError, nearest

Ablation = Literal["corrupted", "mean", "zero"]
"""What a cut edge carries instead: the corrupted run's value, its mean over pairs at each position, or nothing."""


@dataclass(frozen=True)
class Record:
    """What every writer wrote in one run, and the stream each layer read."""

    embed: Float[Tensor, "pair pos d_model"]
    z: tuple[Float[Tensor, "pair pos head d_head"], ...]
    """Of each layer, times the scale of the norm behind attention where there is one."""
    mlp: tuple[Float[Tensor, "pair pos d_model"], ...]
    resid: tuple[Float[Tensor, "pair pos d_model"], ...]
    """The stream in front of each layer; shared with the model's own tensors."""

    def mean(self) -> "Record":
        """Return the mean over pairs, repeated for each."""
        return self._map(lambda value: value.mean(0, keepdim=True).expand_as(value))

    def zero(self) -> "Record":
        """Return a record of writers that write nothing."""
        return self._map(torch.zeros_like)

    def rows(self, which: slice) -> "Record":
        return self._map(lambda value: value[which])

    def _map(self, change: Any) -> "Record":
        parts = (tuple(map(change, values)) for values in (self.z, self.mlp, self.resid))
        return Record(change(self.embed), *parts)


def record(body: Anatomy, ids: Int[Tensor, "pair pos"]) -> Record:
    """Run the model once on ``ids`` and keep what its writers wrote."""
    model = body.model
    with torch.no_grad():
        kept = model.capture(model.batch(ids.tolist()), ["resid_pre.*", "z.*", "mlp_out.*"], special=True)
    layers = range(len(body.blocks))
    z = tuple(
        kept[f"z.{layer}"] * block.head_scale(kept[f"z.{layer}"]).to(model.dtype)[..., None]
        for layer, block in enumerate(body.blocks)
    )
    resid = tuple(kept[f"resid_pre.{layer}"] for layer in layers)
    return Record(resid[0], z, tuple(kept[f"mlp_out.{layer}"] for layer in layers), resid)


def reference(body: Anatomy, corrupted: Int[Tensor, "pair pos"], ablation: Ablation | str) -> Record:
    """Return what cut edges carry; UsageError for an unknown ``ablation``."""
    if ablation not in get_args(Ablation):
        raise UsageError(f"ablation={ablation!r}{nearest(ablation, get_args(Ablation))}")
    kept = record(body, corrupted)
    if ablation == "corrupted":
        return kept
    return kept.mean() if ablation == "mean" else kept.zero()
