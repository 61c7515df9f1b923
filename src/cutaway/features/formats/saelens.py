"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Provenance
from cutaway.features.formats.common import assembled, check, kept, known, plain, read_json, read_tensors, write
from cutaway.features.formats.places import hook_of, site_of
from cutaway.features.sparse import SparseDictionary

_SAELENS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_NORMALISERS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "row_norm",
    "expected_average_only_in": "scale",
}
_FOREIGN = {ours: theirs for theirs, ours in _NORMALISERS.items()}


def read_saelens(folder: str | Path, *, fold: bool = True, scale: float | None = None) -> SparseDictionary:
    """Read ``cfg.json`` and ``sae_weights.safetensors``, nested (version 6) or flat (older) configuration.

    ``scale`` is what activations are multiplied by, needed where the configuration asks for
    ``expected_average_only_in`` and the constant was not folded into the weights.

    Raises CutawayError for missing or damaged files, UsageError for an architecture or a normalisation that no
    `SparseDictionary` computes and for shapes that do not fit.
    """
    folder = Path(folder)
    config = _migrated(read_json(folder / "cfg.json"))
    tensors = read_tensors(folder / "sae_weights.safetensors")
    architecture, about = config["architecture"], config["metadata"]
    if architecture not in _SAELENS:
        raise UsageError(f"{folder}: architecture {architecture!r} is not read{nearest(architecture, _SAELENS)}")
    activation, transcoder = _SAELENS[architecture], "transcoder" in architecture
    n, d_in = config["d_sae"], config["d_in"]
    d_out = config.get("d_out", d_in) if transcoder else d_in
    shapes = {"W_enc": (d_in, n), "W_dec": (n, d_out), "b_dec": (d_out,)}
    gated = activation == "gated"
    shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag") if gated else ("b_enc",), (n,))
    shapes |= {"threshold": (n,)} if activation == "jumprelu" else {}
    shapes |= {"W_skip": (d_out, d_in)} if "skip" in architecture else {}
    check(folder, tensors, shapes)
    k = int(config.get("k", 0) or 0)
    if activation == "topk" and not 1 <= k <= n:
        raise UsageError(f"{folder}: k={k} of {n} latents; a topk configuration needs k from 1 to d_sae")
    normaliser = _normaliser(folder, config, scale, transcoder)
    state = {"w_enc": tensors["W_enc"].T, "w_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    state |= {"b_enc": tensors["b_gate" if gated else "b_enc"]}
    state |= {name: tensors[name] for name in ("b_mag", "r_mag", "threshold") if name in shapes}
    state |= {"w_skip": tensors["W_skip"]} if "W_skip" in shapes else {}
    if scale is not None and normaliser == "scale":
        state["scale"] = torch.tensor(float(scale))
    settings: dict[str, Any] = {"format": "saelens", "architecture": architecture, "hook": about.get("hook_name", "")}
    settings |= {name: about[name] for name in ("context_size", "dataset_path", "prepend_bos") if about.get(name)}
    if about.get("model_from_pretrained_kwargs"):
        settings["loaded with"] = json.dumps(about["model_from_pretrained_kwargs"], sort_keys=True)
    return assembled(
        state,
        activation,
        k=k,
        # SAELens pays no heed to this flag in a transcoder, whose bias lives at the output.
        subtract_bias=bool(config.get("apply_b_dec_to_input", True)) and not transcoder,
        normaliser=normaliser,
        fold="exact" if config.get("rescale_acts_by_decoder_norm") else fold,
        provenance=known(
            Provenance(
                model=about.get("model_name") or "",
                site=site_of(about.get("hook_name") or ""),
                target=site_of(about.get("hook_name_out") or "") if transcoder else "",
                tokens=int(config.get("training_tokens") or 0),
                settings=settings,
            ),
            about.get("cutaway"),
        ),
    )


def write_saelens(dictionary: SparseDictionary, folder: str | Path, *, hook: str = "") -> None:
    """Write what SAELens version 6 reads; UsageError for an encoder it does not have."""
    made, about = plain(dictionary, by_row=True), dictionary.provenance
    transcoder = bool(about.target) or made.w_skip is not None or made.d_in != made.d_out
    architecture = {"relu": "standard", **{name: name for name in ("topk", "jumprelu", "gated")}}[made.activation]
    if transcoder:
        if made.activation not in ("relu", "jumprelu") or made.subtract_bias or made.normaliser != "none":
            raise UsageError(
                "SAELens has relu and jumprelu transcoders only, without subtracted bias or norms of rows; this one is"
                f" {made!r}"
            )
        jump = "jumprelu_" if made.activation == "jumprelu" else ""
        architecture = f"{jump}{'skip_' if made.w_skip is not None else ''}transcoder"
    tensors = {"W_enc": made.w_enc.T, "W_dec": made.w_dec, "b_dec": made.b_dec}
    gated = {"b_gate": made.b_enc, "b_mag": made.b_mag, "r_mag": made.r_mag}
    tensors |= (
        {n: t for n, t in gated.items() if t is not None} if made.activation == "gated" else {"b_enc": made.b_enc}
    )
    tensors |= {} if made.threshold is None else {"threshold": made.threshold.clamp(min=0)}
    tensors |= {} if made.w_skip is None else {"W_skip": made.w_skip}
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": made.d_in,
        "d_sae": made.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": made.subtract_bias,
        "normalize_activations": _FOREIGN[made.normaliser],
        "reshape_activations": "hook_z" if about.site.startswith("z.") else "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": about.model,
            "hook_name": hook or (hook_of(about.site) if about.site else ""),
            "cutaway": kept(about),
        },
    }
    if transcoder:
        config["d_out"] = made.d_out
        config["metadata"]["hook_name_out"] = hook_of(about.target) if about.target else ""
    if made.activation == "topk":
        config |= {"k": made.k, "rescale_acts_by_decoder_norm": False}
    write(folder, "cfg.json", config, "sae_weights.safetensors", tensors)


def _migrated(config: dict[str, Any]) -> dict[str, Any]:
    """Return a version-6 configuration; older ones are flat."""
    new = {"architecture": "standard", "normalize_activations": "none", **config}
    if "metadata" not in new:
        if "hook_point" in new:
            new.setdefault("hook_name", new.pop("hook_point"))
        names = ["model_name", "hook_name", "hook_name_out", "context_size", "dataset_path", "prepend_bos"]
        names += ["hook_head_index", "model_from_pretrained_kwargs", "neuronpedia_id"]
        new["metadata"] = {name: new[name] for name in names if name in new}
    if str(new.get("activation_fn_str", new.get("activation_fn", ""))).startswith("topk"):
        new["architecture"] = "topk"
        kwargs = new.get("activation_fn_kwargs") or {}
        new.setdefault("k", kwargs.get("k", 0))
    if isinstance(new["normalize_activations"], bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    missing = [name for name in ("d_in", "d_sae") if not isinstance(new.get(name), int)]
    if missing:
        raise CutawayError(f"cfg.json says no {' and no '.join(missing)}; it is not a SAELens configuration")
    return new


def _normaliser(folder: Path, config: Mapping[str, Any], scale: float | None, transcoder: bool) -> str:
    given = config["normalize_activations"]
    if given not in _NORMALISERS:
        raise UsageError(
            f"{folder}: normalize_activations={given!r} is not computed here{nearest(str(given), _NORMALISERS)};"
            " fold it into the weights with the tool that wrote it"
        )
    if transcoder and given != "none":
        raise UsageError(f"{folder}: a transcoder with normalize_activations={given!r}; only none is read")
    if given == "expected_average_only_in" and scale is None:
        raise UsageError(
            f"{folder}: activations must be multiplied by a constant that the folder does not hold"
            " (expected_average_only_in left over); pass scale=sqrt(d_in) / mean norm of the activations"
        )
    if given != "expected_average_only_in" and scale is not None:
        raise UsageError(f"{folder}: scale={scale}, but normalize_activations={given!r} asks for none")
    return _NORMALISERS[given]
