"""dictionary_learning: ``config.json`` and ``ae.pt``, of which only plain tensors are loaded."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Provenance
from cutaway.features.formats.common import Tensors, assembled, check, dump, kept, known, plain, read_json
from cutaway.features.formats.places import site_of
from cutaway.features.sparse import SparseDictionary

_LEARNING = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
}
_GATED_NAMES = {"decoder_bias": "b_dec", "gate_bias": "b_enc", "mag_bias": "b_mag", "r_mag": "r_mag"}
# An old pickled file makes torch raise this; the module it comes from is not imported here.
_Pickled: type[Exception] = torch.serialization.pickle.UnpicklingError


def read_dictionary_learning(folder: str | Path, *, fold: bool = True) -> SparseDictionary:
    """Read ``ae.pt`` (tensors only: a file that needs unpickling is refused) and ``config.json``."""
    folder = Path(folder)
    whole = read_json(folder / "config.json")
    config = whole.get("trainer", {})
    kind = str(config.get("dict_class", "AutoEncoder"))
    if kind not in _LEARNING:
        raise UsageError(f"{folder}: dict_class {kind!r} is not read{nearest(kind, _LEARNING)}")
    n, d = config.get("dict_size"), config.get("activation_dim")
    if not isinstance(n, int) or not isinstance(d, int):
        raise CutawayError(f"{folder / 'config.json'}: trainer needs dict_size and activation_dim")
    tensors = _weights_only(folder / "ae.pt")
    if kind == "JumpReluAutoEncoder":
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
        check(folder, tensors, {**shapes, "threshold": (n,)})
        state = {"w_enc": tensors["W_enc"].T, "w_dec": tensors["W_dec"]}
        state |= {name: tensors[name] for name in ("b_enc", "b_dec", "threshold")}
    else:
        names = {"encoder.bias": (n,), _output_bias(kind, tensors): (d,)}
        names = {name: (d,) if name == "decoder_bias" else (n,) for name in _GATED_NAMES} if "Gated" in kind else names
        check(folder, tensors, {"encoder.weight": (n, d), "decoder.weight": (d, n), **names})
        state = {"w_enc": tensors["encoder.weight"], "w_dec": tensors["decoder.weight"].T}
        renamed = _GATED_NAMES if "Gated" in kind else {"encoder.bias": "b_enc", _output_bias(kind, tensors): "b_dec"}
        state |= {ours: tensors[theirs] for theirs, ours in renamed.items()}
    if "BatchTopK" in kind:
        threshold = float(tensors.get("threshold", torch.tensor(-1.0)))
        if threshold < 0:
            raise UsageError(f"{folder}: threshold {threshold:g} was never estimated; train it further")
        state["threshold"] = torch.full((n,), threshold)
    k = int(tensors["k"]) if "k" in tensors else int(config.get("k", 0) or 0)
    hook = str(config.get("submodule_name") or "")
    layer = config.get("layer")
    plain = f"resid_post.{layer}" if isinstance(layer, int) else ""
    about = Provenance(
        model=str(config.get("lm_name") or ""),
        site=plain if not hook or hook.startswith("resid_post") else site_of(hook),
        settings={"format": "dictionary_learning", "architecture": kind, "hook": hook},
    )
    subtract = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder") or bool(config.get("apply_b_dec_to_input"))
    about = known(about, whole.get("cutaway"))
    return assembled(state, _LEARNING[kind], k=k, subtract_bias=subtract, fold=fold, provenance=about)


def write_dictionary_learning(dictionary: SparseDictionary, folder: str | Path, *, hook: str = "") -> None:
    """Write ``ae.pt`` and ``config.json``, its normalisation folded in; UsageError for what that tool does not have."""
    made, about = plain(dictionary), dictionary.provenance
    if made.d_in != made.d_out or made.w_skip is not None:
        raise UsageError(f"dictionary_learning has no transcoders; this is {made!r} to {made.d_out}")
    new = {"relu": "AutoEncoderNew", "jumprelu": "JumpReluAutoEncoder"}
    old = {"relu": "AutoEncoder", "topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder"}
    old["jumprelu"] = "JumpReluAutoEncoder"
    kinds = old if made.subtract_bias else new
    if made.activation not in kinds:
        raise UsageError(
            f"dictionary_learning subtracts the bias in every {made.activation} dictionary; this one does not"
        )
    kind = kinds[made.activation]
    wide = {"encoder.weight": made.w_enc, "decoder.weight": made.w_dec.T}
    tensors = {
        "AutoEncoder": {**wide, "encoder.bias": made.b_enc, "bias": made.b_dec},
        "AutoEncoderNew": {**wide, "encoder.bias": made.b_enc, "decoder.bias": made.b_dec},
        "AutoEncoderTopK": {**wide, "encoder.bias": made.b_enc, "b_dec": made.b_dec, "k": torch.tensor(made.k)},
        "GatedAutoEncoder": wide | {theirs: getattr(made, ours) for theirs, ours in _GATED_NAMES.items()},
        "JumpReluAutoEncoder": {
            "W_enc": made.w_enc.T,
            "W_dec": made.w_dec,
            "b_enc": made.b_enc,
            "b_dec": made.b_dec,
            "threshold": made.threshold,
        },
    }[kind]
    if kind == "AutoEncoderTopK":
        tensors["threshold"] = torch.tensor(-1.0)
    kind_of_site, _, layer = about.site.partition(".")
    trainer: dict[str, Any] = {"dict_class": kind, "activation_dim": made.d_in, "dict_size": made.n_latents}
    trainer |= {"k": made.k} if made.activation == "topk" else {}
    trainer |= {"apply_b_dec_to_input": made.subtract_bias} if kind == "JumpReluAutoEncoder" else {}
    trainer |= {"lm_name": about.model, "layer": int(layer) if layer.isdecimal() else None}
    trainer["submodule_name"] = hook or (f"resid_post_layer_{layer}" if kind_of_site == "resid_post" else about.site)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "ae.pt")
    dump(folder / "config.json", {"trainer": trainer, "buffer": {}, "cutaway": kept(about)})


def _output_bias(kind: str, tensors: Tensors) -> str:
    if kind == "AutoEncoderNew":
        return "decoder.bias"
    return "bias" if "bias" in tensors else "b_dec"


def _weights_only(path: Path) -> Tensors:
    try:
        # Plain tensors only: with weights_only a file that would run code is an error.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, _Pickled) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CutawayError(f"{path} is not a file of plain tensors, and nothing else is loaded: {first}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CutawayError(f"{path} is not a file of named tensors")
    return found
