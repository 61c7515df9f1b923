"""What every writer wrote in one run: the material that cut edges carry instead, and where runs start from."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from cutaway.circuits.parts import Anatomy
from cutaway.circuits.wiring import Wiring
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
    start: int = 0
    """The prompt's position that ``pos`` begins at. Before it both runs are the same, so nothing there can differ."""

    def mean(self) -> "Record":
        """Return the mean over pairs, repeated for each."""
        return self._map(lambda value: value.mean(0, keepdim=True).expand_as(value))

    def zero(self) -> "Record":
        """Return a record of writers that write nothing."""
        return self._map(torch.zeros_like)

    def rows(self, which: slice) -> "Record":
        return self._map(lambda value: value[which])

    def _map(self, change: Any) -> "Record":
        z, mlp, resid = (tuple(map(change, values)) for values in (self.z, self.mlp, self.resid))
        return Record(change(self.embed), z, mlp, resid, self.start)


def record(body: Anatomy, ids: Int[Tensor, "pair pos"], start: int = 0) -> Record:
    """Run the model once on ``ids`` and keep what its writers wrote, from position ``start`` on."""
    model = body.model
    sites, where = ["resid_pre.*", "z.*", "mlp_out.*"], slice(start, None) if start else None
    with torch.no_grad():
        kept = model.capture(model.batch(ids.tolist()), sites, where, special=True)
    layers = range(len(body.blocks))
    z = tuple(
        kept[f"z.{layer}"] * block.head_scale(kept[f"z.{layer}"]).to(model.dtype)[..., None]
        for layer, block in enumerate(body.blocks)
    )
    resid = tuple(kept[f"resid_pre.{layer}"] for layer in layers)
    return Record(resid[0], z, tuple(kept[f"mlp_out.{layer}"] for layer in layers), resid, start)


def reference(
    body: Anatomy,
    corrupted: Int[Tensor, "pair pos"],
    ablation: Ablation | str,
    clean: Int[Tensor, "pair pos"] | None = None,
) -> Record:
    """Return what cut edges carry; UsageError for an unknown ``ablation``.

    With ``clean``, the corrupted run is kept from the first token on that differs from it in any pair: what comes
    before is the same in both runs, is read once and never run again.
    """
    if ablation not in get_args(Ablation):
        raise UsageError(f"ablation={ablation!r}{nearest(ablation, get_args(Ablation))}")
    if ablation == "corrupted":
        return record(body, corrupted, 0 if clean is None else int((clean != corrupted).any(0).int().argmax()))
    kept = record(body, corrupted)
    return kept.mean() if ablation == "mean" else kept.zero()


@dataclass(frozen=True)
class Beginning:
    """Keys and values of the tokens in front of what is run; empty where everything is run."""

    layers: tuple[tuple[Float[Tensor, "pair head pos d_head"], Float[Tensor, "pair head pos d_head"]], ...]

    def forward_kwargs(self, repeats: int) -> dict[str, Any]:
        """Return what makes a forward go on from here, for rows [repeat pair]; a new cache each time."""
        if not self.layers:
            return {"use_cache": False}
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys.repeat(repeats, 1, 1, 1), values.repeat(repeats, 1, 1, 1), layer)
        return {"use_cache": True, "past_key_values": cache}


def beginning(body: Anatomy, wiring: Wiring, ids: Int[Tensor, "pair pos"], start: int) -> Beginning:
    """Read the first ``start`` tokens of ``ids``."""
    if start == 0:
        return Beginning(())
    cache = DynamicCache()
    with torch.no_grad():
        batch = body.model.batch(ids[:, :start].tolist())
        body.model.hf(**batch.forward_kwargs(), past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: Any = cache.layers
    times = wiring.n_heads // wiring.n_kv_heads if wiring.grouping != "shared" else 1
    return Beginning(
        tuple((each.keys.repeat_interleave(times, 1), each.values.repeat_interleave(times, 1)) for each in layers)
    )
