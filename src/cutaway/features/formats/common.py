"""What the formats share: tensors into a dictionary and back, what they have no field for, files."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Provenance
from cutaway.features.sparse import SparseDictionary

Tensors = dict[str, Tensor]
_OURS = {"model": str, "fingerprint": str, "data": str, "tokens": int, "special": bool}
"""Fields of `Provenance` that another tool's folder keeps for us."""


def assembled(
    state: Tensors,
    activation: str,
    *,
    k: int,
    subtract_bias: bool,
    provenance: Provenance,
    fold: bool | Literal["exact"],
    normaliser: str = "none",
) -> SparseDictionary:
    """Return the dictionary of these tensors, norms folded where that changes nothing it computes."""
    state = {name: value.detach().float() for name, value in state.items()}
    if bad := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise CutawayError(f"{bad[0]} holds NaN or infinity")
    if "threshold" in state:
        # Others take relu before the threshold, so one below 0 acts as 0.
        state["threshold"] = state["threshold"].clamp(min=0)
    norms = state["w_dec"].norm(dim=-1)
    if torch.allclose(norms, torch.ones_like(norms), atol=1e-5):
        did = "unit"
    elif fold == "exact" or (fold and activation != "topk"):
        did = "folded"
        _fold(state, norms)
    else:
        did = "kept"
    made = SparseDictionary(
        state["w_enc"].shape[1],
        len(state["w_dec"]),
        activation,
        k=max(1, k),
        d_out=state["w_dec"].shape[1],
        skip="w_skip" in state,
        subtract_bias=subtract_bias,
        normaliser=normaliser,
        provenance=replace(provenance, settings={**provenance.settings, "norms": did}),
    )
    made.load_state_dict({"scale": torch.ones(()), **state})
    return made.requires_grad_(False)


def _fold(state: Tensors, norms: Tensor) -> None:
    """Move the atoms' norms into the values: latents of norm 0 write nothing and are left."""
    norms = torch.where(norms > 0, norms, 1.0)
    state["w_dec"] = state["w_dec"] / norms[:, None]
    if "r_mag" in state:
        state["r_mag"] = state["r_mag"] + norms.log()  # the gate needs no scale: it only asks for the sign
        state["b_mag"] = state["b_mag"] * norms
        return
    state["w_enc"] = state["w_enc"] * norms[:, None]
    for name in ("b_enc", "threshold"):
        if name in state:
            state[name] = state[name] * norms


def plain(made: SparseDictionary, by_row: bool = False) -> SparseDictionary:
    """Return the same function without a scale, which the other tools do not store; values stay as they are."""
    if made.normaliser in ("layer_norm", "row_norm") and not by_row:
        raise UsageError(f"this format has no {made.normaliser}; only SAELens and Cutaway store one")
    if made.normaliser != "scale":
        return made
    state = {name: value.detach().clone() for name, value in made.state_dict().items()}
    scale = state.pop("scale")
    state["w_enc"] = state["w_enc"] * scale
    state["w_dec"], state["b_dec"] = state["w_dec"] / scale, state["b_dec"] / scale
    # W (s x - b) = (s W) (x - b / s), and the bias is already divided.
    new = SparseDictionary(
        made.d_in,
        made.n_latents,
        made.activation,
        k=made.k,
        d_out=made.d_out,
        skip=made.w_skip is not None,
        subtract_bias=made.subtract_bias,
        provenance=made.provenance,
    )
    new.load_state_dict({"scale": torch.ones(()), **state})
    return new


def kept(about: Provenance) -> dict[str, Any]:
    """What the other tools have no field for; they pass over unknown ones."""
    return {name: getattr(about, name) for name in _OURS} | {"settings": dict(about.settings)}


def known(about: Provenance, kept: Any) -> Provenance:
    """Return ``about`` with what `kept` wrote; fields of another kind than ours are passed over."""
    if not isinstance(kept, dict):
        return about
    fields = {name: kept[name] for name, kind in _OURS.items() if type(kept.get(name)) is kind}
    settings = kept.get("settings")
    given = settings if isinstance(settings, dict) else {}
    given = {str(key): value for key, value in given.items() if isinstance(value, str | int | float)}
    return replace(about, **fields, settings={**given, **about.settings})


def check(folder: Path, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """UsageError where a tensor is missing or is not of the shape that the configuration says."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise UsageError(f"{folder}: no tensor {name!r}{nearest(name, tensors)}")
        if tuple(tensors[name].shape) != shape:
            raise UsageError(f"{folder}: {name} is {list(tensors[name].shape)}, expected {list(shape)} by its config")


def read_json(path: Path) -> dict[str, Any]:
    """Return the file's object; CutawayError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CutawayError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CutawayError(f"{path} holds no JSON object")
    return found


def read_tensors(path: Path) -> Tensors:
    """Return the file's tensors; CutawayError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CutawayError(f"{path} cannot be read: {error}") from error


def write(
    folder: str | Path, about: str, config: Mapping[str, Any], weights: str, tensors: Mapping[str, Tensor]
) -> None:
    """Write a configuration and tensors into ``folder``, made where it is missing."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / weights)
    dump(folder / about, config)


def dump(path: Path, content: Mapping[str, Any]) -> None:
    """Write a configuration."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
