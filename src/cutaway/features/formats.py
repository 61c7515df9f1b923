"""Dictionaries of other tools: SAELens, sparsify and dictionary_learning directories, read and written.

Which axis is which comes from the format, never from a tensor's shape, so that a dictionary with as many latents as
dimensions is read rightly; every shape is checked against the configuration. Encoders that every tool computes alike
become a `SparseDictionary`; what it cannot compute is refused by name.

Norms of atoms are folded into the encoder when a dictionary is read (values times the norm, atoms divided by it),
and ``provenance.settings["norms"]`` says what happened: ``unit`` (they were 1 already), ``folded``, or ``kept``: a
TopK chooses its latents before the norm counts, so folding would change which are active.

Sources: peers page of dictionaries, section 2.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Provenance
from cutaway.features.sparse import SparseDictionary

Format = Literal["saelens", "sparsify", "dictionary_learning"]
Tensors = dict[str, Tensor]

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "neurons": "mlp.hook_post",
}
_PATHS = {"": "resid_post", "mlp": "mlp_out", "self_attn": "attn_out", "attn": "attn_out", "attention": "attn_out"}
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
_OURS = {"model": str, "fingerprint": str, "data": str, "tokens": int, "special": bool}
"""Fields of `Provenance` that another tool's folder keeps for us."""
# An old pickled file makes torch raise this; the module it comes from is not imported here.
_Pickled: type[Exception] = torch.serialization.pickle.UnpicklingError


def site_of(hook: str) -> str:
    """Return the site that a hook name or module path means; a place that is no site comes back as it is.

    >>> site_of("blocks.15.hook_resid_post"), site_of("model.layers.3.mlp"), site_of("blocks.2.ln2.hook_normalized")
    ('resid_post.15', 'mlp_out.3', 'blocks.2.ln2.hook_normalized')
    """
    kinds = {name: kind for kind, name in HOOKS.items()}
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", hook):
        layer, name = match.groups()
        return f"{kinds[name]}.{layer}" if name in kinds else hook
    if match := re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?", hook):
        layer, inside = match.groups()
        kind = _PATHS.get(inside or "")
        return f"{kind}.{layer}" if kind else hook
    return hook


def hook_of(site: str) -> str:
    """Return the TransformerLens name of a site; UsageError for one that has none."""
    if site == "embed":
        return "hook_embed"
    kind, _, layer = site.partition(".")
    if kind not in HOOKS or not layer.isdecimal():
        raise UsageError(f"site {site!r} has no hook name{nearest(kind, HOOKS)}; pass hook=")
    return f"blocks.{layer}.{HOOKS[kind]}"


def path_of(site: str) -> str:
    """Return the module path of a site in a Llama-like model; UsageError for one that is no module's output."""
    paths = {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".self_attn"}
    kind, _, layer = site.partition(".")
    if kind not in paths or not layer.isdecimal():
        raise UsageError(f"site {site!r} is no module's output{nearest(kind, paths)}; pass hook=")
    return f"layers.{layer}{paths[kind]}"


def read_dictionary(folder: str | Path, *, fold: bool = True, scale: float | None = None) -> SparseDictionary:
    """Read a dictionary's folder, whichever tool wrote it; see `read_saelens` for ``scale``."""
    from cutaway.features.sparse import load_dictionary

    folder = Path(folder)
    if (folder / "dictionary.json").exists():
        return load_dictionary(folder)
    if (folder / "sae_weights.safetensors").exists():
        return read_saelens(folder, fold=fold, scale=scale)
    if (folder / "sae.safetensors").exists():
        return read_sparsify(folder)
    if (folder / "ae.pt").exists():
        return read_dictionary_learning(folder, fold=fold)
    raise CutawayError(
        f"{folder} holds no dictionary: expected dictionary.json (Cutaway), sae_weights.safetensors (SAELens),"
        " sae.safetensors (sparsify) or ae.pt (dictionary_learning)"
    )


def write_dictionary(dictionary: SparseDictionary, folder: str | Path, format: Format | str, hook: str = "") -> None:
    """Write ``dictionary`` as another tool's folder; ``hook`` names the place where its site has no name there."""
    writers = {
        "saelens": write_saelens,
        "sparsify": write_sparsify,
        "dictionary_learning": write_dictionary_learning,
    }
    if format not in get_args(Format):
        raise UsageError(f"format={format!r}{nearest(format, writers)}")
    writers[format](dictionary, folder, hook=hook)


# ---- SAELens


def read_saelens(folder: str | Path, *, fold: bool = True, scale: float | None = None) -> SparseDictionary:
    """Read ``cfg.json`` and ``sae_weights.safetensors``, nested (version 6) or flat (older) configuration.

    ``scale`` is what activations are multiplied by, needed where the configuration asks for
    ``expected_average_only_in`` and the constant was not folded into the weights.

    Raises CutawayError for missing or damaged files, UsageError for an architecture or a normalisation that no
    `SparseDictionary` computes and for shapes that do not fit.
    """
    folder = Path(folder)
    config = _migrated(_json(folder / "cfg.json"))
    tensors = _safetensors(folder / "sae_weights.safetensors")
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
    _check(folder, tensors, shapes)
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
    return _assembled(
        state,
        activation,
        k=k,
        # SAELens pays no heed to this flag in a transcoder, whose bias lives at the output.
        subtract_bias=bool(config.get("apply_b_dec_to_input", True)) and not transcoder,
        normaliser=normaliser,
        fold="exact" if config.get("rescale_acts_by_decoder_norm") else fold,
        provenance=_known(
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
    made, about = _plain(dictionary, by_row=True), dictionary.provenance
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
            "cutaway": _kept(about),
        },
    }
    if transcoder:
        config["d_out"] = made.d_out
        config["metadata"]["hook_name_out"] = hook_of(about.target) if about.target else ""
    if made.activation == "topk":
        config |= {"k": made.k, "rescale_acts_by_decoder_norm": False}
    _write(folder, "cfg.json", config, "sae_weights.safetensors", tensors)


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


# ---- sparsify


def read_sparsify(folder: str | Path) -> SparseDictionary:
    """Read ``<hookpoint>/cfg.json`` and ``sae.safetensors``; W_dec is stored [latent, d]; the folder names the site."""
    folder = Path(folder)
    config, tensors = _json(folder / "cfg.json"), _safetensors(folder / "sae.safetensors")
    if not isinstance(config.get("d_in"), int):
        raise CutawayError(f"{folder / 'cfg.json'} says no d_in; it is not a sparsify configuration")
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise UsageError(f"{folder}: activation {activation!r} is not computed here; only topk is")
    d = config["d_in"]
    n = config.get("num_latents") or d * config.get("expansion_factor", 32)
    skip, transcode = bool(config.get("skip_connection")), bool(config.get("transcode"))
    shapes = {"encoder.weight": (n, d), "encoder.bias": (n,), "W_dec": (n, d), "b_dec": (d,)}
    shapes |= {"W_skip": (d, d)} if skip else {}
    _check(folder, tensors, shapes)
    state = {"w_enc": tensors["encoder.weight"], "b_enc": tensors["encoder.bias"]}
    state |= {"w_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]} | ({"w_skip": tensors["W_skip"]} if skip else {})
    site = site_of(folder.name)
    # The input of a transcoder is what enters the module, which for an MLP is no site of the stream.
    provenance = _known(
        Provenance(
            site="" if transcode else site,
            target=site if transcode else "",
            settings={"format": "sparsify", "hook": folder.name, "transcode": transcode},
        ),
        config.get("cutaway"),
    )
    k = int(config.get("k", 32))
    return _assembled(state, "topk", k=k, subtract_bias=not transcode, fold=False, provenance=provenance)


def write_sparsify(dictionary: SparseDictionary, folder: str | Path, *, hook: str = "") -> None:
    """Write into ``folder/<hookpoint>``; UsageError for an encoder that is not TopK."""
    made, about = _plain(dictionary), dictionary.provenance
    if made.activation != "topk" or made.d_in != made.d_out:
        raise UsageError(f"sparsify holds topk dictionaries of one width; this is {made!r} to {made.d_out}")
    config = {
        "activation": "topk",
        "expansion_factor": max(1, made.n_latents // made.d_in),
        "normalize_decoder": bool(torch.allclose(made.w_dec.norm(dim=-1), torch.ones(made.n_latents), atol=1e-4)),
        "num_latents": made.n_latents,
        "k": made.k,
        "multi_topk": False,
        "skip_connection": made.w_skip is not None,
        "transcode": not made.subtract_bias,
        "d_in": made.d_in,
        "cutaway": _kept(about),
    }
    tensors = {"encoder.weight": made.w_enc, "encoder.bias": made.b_enc, "W_dec": made.w_dec, "b_dec": made.b_dec}
    tensors |= {} if made.w_skip is None else {"W_skip": made.w_skip}
    place = Path(folder) / (hook or path_of(about.target or about.site))
    _write(place, "cfg.json", config, "sae.safetensors", tensors)


# ---- dictionary_learning


def read_dictionary_learning(folder: str | Path, *, fold: bool = True) -> SparseDictionary:
    """Read ``ae.pt`` (tensors only: a file that needs unpickling is refused) and ``config.json``."""
    folder = Path(folder)
    whole = _json(folder / "config.json")
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
        _check(folder, tensors, {**shapes, "threshold": (n,)})
        state = {"w_enc": tensors["W_enc"].T, "w_dec": tensors["W_dec"]}
        state |= {name: tensors[name] for name in ("b_enc", "b_dec", "threshold")}
    else:
        names = {"encoder.bias": (n,), _output_bias(kind, tensors): (d,)}
        names = {name: (d,) if name == "decoder_bias" else (n,) for name in _GATED_NAMES} if "Gated" in kind else names
        _check(folder, tensors, {"encoder.weight": (n, d), "decoder.weight": (d, n), **names})
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
    about = _known(about, whole.get("cutaway"))
    return _assembled(state, _LEARNING[kind], k=k, subtract_bias=subtract, fold=fold, provenance=about)


def write_dictionary_learning(dictionary: SparseDictionary, folder: str | Path, *, hook: str = "") -> None:
    """Write ``ae.pt`` and ``config.json``, its normalisation folded in; UsageError for what that tool does not have."""
    made, about = _plain(dictionary), dictionary.provenance
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
    _dump(folder / "config.json", {"trainer": trainer, "buffer": {}, "cutaway": _kept(about)})


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


# ---- common


def _assembled(
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


def _plain(made: SparseDictionary, by_row: bool = False) -> SparseDictionary:
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


def _kept(about: Provenance) -> dict[str, Any]:
    """What the other tools have no field for; they pass over unknown ones."""
    return {name: getattr(about, name) for name in _OURS} | {"settings": dict(about.settings)}


def _known(about: Provenance, kept: Any) -> Provenance:
    """Return ``about`` with what `_kept` wrote; fields of another kind than ours are passed over."""
    if not isinstance(kept, dict):
        return about
    fields = {name: kept[name] for name, kind in _OURS.items() if type(kept.get(name)) is kind}
    settings = kept.get("settings")
    plain = settings if isinstance(settings, dict) else {}
    plain = {str(key): value for key, value in plain.items() if isinstance(value, str | int | float)}
    return replace(about, **fields, settings={**plain, **about.settings})


def _check(folder: Path, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in tensors:
            raise UsageError(f"{folder}: no tensor {name!r}{nearest(name, tensors)}")
        if tuple(tensors[name].shape) != shape:
            raise UsageError(f"{folder}: {name} is {list(tensors[name].shape)}, expected {list(shape)} by its config")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CutawayError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CutawayError(f"{path} holds no JSON object")
    return found


def _safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CutawayError(f"{path} cannot be read: {error}") from error


def _write(
    folder: str | Path, about: str, config: Mapping[str, Any], weights: str, tensors: Mapping[str, Tensor]
) -> None:
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / weights)
    _dump(folder / about, config)


def _dump(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
