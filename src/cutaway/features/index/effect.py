"""Which tokens a unit makes more or less likely, through the unembedding alone.

    effect of a token = W_U[token] . (gain * centred(direction))

``direction`` is what the unit adds to the residual stream at value 1: a neuron's column of the down projection, a
latent's atom. ``gain`` is the final norm's; its scale, one positive number for a position, is left out, and so is
everything that later layers make of the direction: an effect is exact in the last layer and a reading elsewhere.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.features.dictionary import Dictionary
from cutaway.features.index.tensors import Arrays
from cutaway.model import Model
from cutaway.model.sites import parse

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_STREAM = {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
_ROWS = 256


def neuron_directions(model: Model, layer: int) -> Float[Tensor, "unit d_model"]:
    """Return what each neuron of a layer adds to the stream at value 1, behind the norm where the family has one."""
    down = model.layout.port("neurons", layer).module
    weight = down.weight
    assert isinstance(weight, Tensor)
    rows = (weight if type(down).__name__ == "Conv1D" else weight.T).detach().float()
    after = model.layout.post_norm(layer, "mlp")
    return rows if after is None else _through(after, rows)


def atom_directions(model: Model, dictionary: Dictionary, site: str) -> Float[Tensor, "latent d_model"] | None:
    """Return a dictionary's atoms where they are added to the residual stream, else None."""
    target = getattr(dictionary, "provenance", None)
    place = parse((target.target if target is not None else "") or site, model.layout)[0]
    atoms = dictionary.atoms.detach().float()
    return atoms if place.kind in _STREAM and atoms.shape[1] == model.d_model else None


@torch.no_grad()
def logit_effects(
    model: Model, directions: Float[Tensor, "unit d_model"], tokens: int, top: int = 10
) -> dict[str, np.ndarray]:
    """Return the ``top`` tokens each direction raises and lowers most, of the first ``tokens``: ``up.token`` [unit top]
    and so on. Equal effects are ordered by token id.
    """
    head = model.hf.get_output_embeddings()
    weight = head.weight.detach()[:tokens].float()
    decoder = model.layout.decoder
    norm = next((getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)), None)
    rows = directions.to(weight.device)
    rows = rows if norm is None else _through(norm, rows)
    top = min(top, len(weight))
    found: dict[str, list[np.ndarray]] = {name: [] for name in _NAMES}
    for part in rows.split(_ROWS):
        logits = part @ weight.T
        for name, largest in (("up", True), ("down", False)):
            best = logits.topk(top, dim=1, largest=largest)
            value, token = best.values.cpu().numpy(), best.indices.cpu().numpy().astype(np.int32)
            order = np.lexsort((token, -value if largest else value))
            found[f"{name}.token"].append(np.take_along_axis(token, order, 1))
            found[f"{name}.value"].append(np.take_along_axis(value, order, 1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


_NAMES = ("up.token", "up.value", "down.token", "down.value")


def no_effects(units: int, top: int = 10) -> dict[str, np.ndarray]:
    """Return what stands for units without a direction in the stream: token -1, value NaN."""
    kinds = {"token": (-1, np.int32), "value": (np.nan, np.float32)}
    return {name: np.full((units, top), kinds[name[-5:]][0], kinds[name[-5:]][1]) for name in _NAMES}


def joined(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Return the effects of several sources one after the other."""
    width = min(part["up.token"].shape[1] for part in parts)
    return {name: np.concatenate([part[name][:, :width] for part in parts]) for name in _NAMES}


@torch.no_grad()
def _through(norm: nn.Module, rows: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
    """Return directions as a norm passes them on, its scale left out: centred where it centres, times its gain."""
    probe = torch.ones(rows.shape[1], device=rows.device)
    probe[1::2] = -1.0
    ones = torch.ones_like(probe)
    kind = next(norm.parameters(), rows)

    def apply(x: Tensor) -> Tensor:
        # The module's own arithmetic, whatever its gain's convention is; a bias cancels in the difference.
        both = type(norm).forward(norm, torch.stack([x, -x]).to(kind.device, kind.dtype)).float()
        return (both[0] - both[1]).to(rows.device) / 2

    gain = apply(probe) * probe
    centres = float(apply(ones).abs().max()) < 1e-3 * float(gain.abs().max())
    return (rows - rows.mean(-1, keepdim=True) if centres else rows) * gain
