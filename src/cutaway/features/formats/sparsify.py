"""sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the place."""

from pathlib import Path

import torch

from cutaway.errors import CutawayError, UsageError
from cutaway.features.dictionary import Provenance
from cutaway.features.formats.common import assembled, check, kept, known, plain, read_json, read_tensors, write
from cutaway.features.formats.places import path_of, site_of
from cutaway.features.sparse import SparseDictionary


def read_sparsify(folder: str | Path) -> SparseDictionary:
    """Read ``<hookpoint>/cfg.json`` and ``sae.safetensors``; W_dec is stored [latent, d]; the folder names the site."""
    folder = Path(folder)
    config, tensors = read_json(folder / "cfg.json"), read_tensors(folder / "sae.safetensors")
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
    check(folder, tensors, shapes)
    state = {"w_enc": tensors["encoder.weight"], "b_enc": tensors["encoder.bias"]}
    state |= {"w_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]} | ({"w_skip": tensors["W_skip"]} if skip else {})
    site = site_of(folder.name)
    # The input of a transcoder is what enters the module, which for an MLP is no site of the stream.
    provenance = known(
        Provenance(
            site="" if transcode else site,
            target=site if transcode else "",
            settings={"format": "sparsify", "hook": folder.name, "transcode": transcode},
        ),
        config.get("cutaway"),
    )
    k = int(config.get("k", 32))
    return assembled(state, "topk", k=k, subtract_bias=not transcode, fold=False, provenance=provenance)


def write_sparsify(dictionary: SparseDictionary, folder: str | Path, *, hook: str = "") -> None:
    """Write into ``folder/<hookpoint>``; UsageError for an encoder that is not TopK."""
    made, about = plain(dictionary), dictionary.provenance
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
        "cutaway": kept(about),
    }
    tensors = {"encoder.weight": made.w_enc, "encoder.bias": made.b_enc, "W_dec": made.w_dec, "b_dec": made.b_dec}
    tensors |= {} if made.w_skip is None else {"W_skip": made.w_skip}
    place = Path(folder) / (hook or path_of(about.target or about.site))
    write(place, "cfg.json", config, "sae.safetensors", tensors)
