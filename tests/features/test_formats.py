"""Foreign folders: fixtures by hand, encode equals the tool's formula, round trips, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cutaway.errors import CutawayError, UsageError
from cutaway.features import SparseDictionary
from cutaway.features.dictionary import Provenance
from cutaway.features.formats import (
    read_dictionary,
    read_dictionary_learning,
    read_saelens,
    read_sparsify,
    write_dictionary,
    write_dictionary_learning,
    write_saelens,
    write_sparsify,
)
from cutaway.features.formats.places import hook_of, path_of, site_of

D, N = 4, 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def x(d: int = D) -> torch.Tensor:
    return random(9, d, seed=7)


def saelens(folder: Path, changes: dict[str, Any], tensors: dict[str, torch.Tensor], n: int = N, d: int = D) -> None:
    """A folder as the page describes it; decoder norms are far from 1."""
    config = {
        "architecture": "standard",
        "d_in": d,
        "d_sae": n,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post", "context_size": 128},
        **changes,
    }
    base = {
        "W_enc": random(d, n),
        "W_dec": random(n, d, seed=1),
        "b_dec": random(d, seed=2),
        "b_enc": random(n, seed=3),
    }
    base |= tensors
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in base.items() if t is not None}, folder / "sae_weights.safetensors")


JUMP = {"threshold": torch.tensor([0.3, 0.0, -1.0, 0.5, 0.1, 0.2])}
GATE = {"b_gate": random(N, seed=4), "b_mag": random(N, seed=5), "r_mag": random(N, seed=6), "b_enc": None}


def by_formula(folder: Path, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and reconstruction as SAELens computes them, with nothing folded."""
    config, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    mean, spread = rows.mean(-1, keepdim=True), rows.std(-1, keepdim=True) + 1e-5
    how, coefficient = config["normalize_activations"], rows.shape[1] ** 0.5 / rows.norm(dim=-1, keepdim=True)
    seen = {"layer_norm": (rows - mean) / spread, "constant_norm_rescale": rows * coefficient}.get(how, rows)
    inside = seen - t["b_dec"] if config["apply_b_dec_to_input"] else seen
    kind, norms = config["architecture"], t["W_dec"].norm(dim=-1)
    if kind == "gated":
        linear = inside @ t["W_enc"]
        values = (linear * t["r_mag"].exp() + t["b_mag"]).relu() * (linear + t["b_gate"] > 0)
    else:
        pre = inside @ t["W_enc"] + t["b_enc"]
        if config.get("rescale_acts_by_decoder_norm"):
            pre = pre * norms
        values = pre.relu()
        if kind == "topk":
            top = pre.topk(config["k"], dim=-1)
            values = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        if "jumprelu" in kind:
            values = values * (pre > t["threshold"])
    stored = values / norms if config.get("rescale_acts_by_decoder_norm") else values
    out = stored @ t["W_dec"] + t["b_dec"]
    if "W_skip" in t:
        out = out + rows @ t["W_skip"].T
    return values, {"layer_norm": out * spread + mean, "constant_norm_rescale": out / coefficient}.get(how, out)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "standard": ({}, {}, "folded"),
    "no input bias": ({"apply_b_dec_to_input": False}, {}, "folded"),
    "layer norm": ({"normalize_activations": "layer_norm"}, {}, "folded"),
    "norm of rows": ({"normalize_activations": "constant_norm_rescale"}, {}, "folded"),
    "topk": ({"architecture": "topk", "k": 2}, {}, "kept"),
    "topk rescaled": ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}, {}, "rescaled"),
    "jumprelu": ({"architecture": "jumprelu"}, JUMP, "folded"),
    "gated": ({"architecture": "gated"}, GATE, "folded"),
    "transcoder": (
        {"architecture": "jumprelu_skip_transcoder", "d_out": 3, "apply_b_dec_to_input": False},
        {**JUMP, "W_dec": random(N, 3), "b_dec": random(3), "W_skip": random(3, D)},
        "folded",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_saelens_computes_what_the_tool_computes(case: str, tmp_path: Path) -> None:
    changes, tensors, how = CASES[case]
    saelens(tmp_path, changes, tensors)
    values, out = by_formula(tmp_path, x())
    norms = load_file(tmp_path / "sae_weights.safetensors")["W_dec"].norm(dim=-1)
    folded = read_dictionary(tmp_path)
    assert (values > 0).any(0).sum() > 2
    assert torch.allclose(folded(x()), out, atol=1e-5)
    assert torch.allclose(folded.encode(x()).dense(), values * norms if how == "folded" else values, atol=1e-5)
    assert folded.provenance.settings["norms"] == ("kept" if how == "kept" else "folded")
    assert torch.allclose(folded.w_dec.norm(dim=-1), torch.ones(N), atol=1e-5) == (how != "kept")
    assert (folded.provenance.model, folded.provenance.site) == ("gpt2", "resid_post.3")
    if how == "folded":
        as_stored = read_saelens(tmp_path, fold=False)
        assert torch.allclose(as_stored.encode(x()).dense(), values, atol=1e-5)
        assert as_stored.provenance.settings["norms"] == "kept"


def test_as_many_latents_as_dimensions_is_read_by_the_format(tmp_path: Path) -> None:
    """A square matrix fits both ways round: only one of them is what the tool computes."""
    saelens(tmp_path, {}, {}, n=D)
    values, out = by_formula(tmp_path, x())
    made = read_saelens(tmp_path, fold=False)
    assert torch.allclose(made(x()), out, atol=1e-5)
    assert torch.allclose(made.encode(x()).dense(), values, atol=1e-5)
    turned = made.encode(x()).dense() @ made.w_dec.T + made.b_dec
    assert not torch.allclose(turned, out, atol=1e-1)


def test_norms_of_rows_round_trip_through_saelens_only(tmp_path: Path) -> None:
    original = made("relu", normaliser="row_norm", subtract_bias=True)
    write_saelens(original, tmp_path)
    again = read_saelens(tmp_path, fold=False)
    assert again.normaliser == "row_norm"
    assert torch.allclose(again(x()), original(x()), atol=1e-5)
    assert torch.allclose(original(5 * x()), 5 * original(x()), atol=1e-4)  # length goes in and comes out
    with pytest.raises(UsageError, match="no row_norm"):
        write_sparsify(made("topk", normaliser="row_norm"), tmp_path / "b")
    with pytest.raises(UsageError, match="cannot undo it"):
        SparseDictionary(6, 10, "relu", d_out=3, subtract_bias=False, normaliser="row_norm")


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
def test_where_a_dictionary_comes_from_survives_other_tools_folders(format: str, tmp_path: Path) -> None:
    original = made("topk")
    settings = {"rate": 0.1, "kind": "topk"}
    original.provenance = Provenance("smol", "f" * 64, "resid_post.2", "", "d" * 64, 5, True, settings)
    write_dictionary(original, tmp_path, format)
    again = read_dictionary(tmp_path / "layers.2" if format == "sparsify" else tmp_path).provenance
    kept, own = original.provenance, ("model", "fingerprint", "site", "data", "tokens", "special")
    assert [getattr(again, name) for name in own] == [getattr(kept, name) for name in own]
    assert {**again.settings, **settings} == again.settings
    assert again.settings["format"] == format


def test_what_others_put_under_our_name_is_passed_over(tmp_path: Path) -> None:
    strange = {"fingerprint": 3, "tokens": "many", "special": None, "settings": [1]}
    saelens(tmp_path, {"metadata": {"model_name": "gpt2", "cutaway": strange}}, {})
    found = read_saelens(tmp_path).provenance
    assert (found.model, found.fingerprint, found.tokens) == ("gpt2", "", 0)


def test_old_flat_configurations_are_migrated(tmp_path: Path) -> None:
    flat = {"hook_point": "blocks.5.hook_mlp_out", "hook_point_layer": 5, "model_name": "pythia", "metadata": None}
    saelens(tmp_path, {**flat, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["metadata"], config["architecture"]
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": False}))
    made = read_saelens(tmp_path)
    assert (made.activation, made.k, made.normaliser) == ("topk", 2, "none")
    assert (made.provenance.site, made.provenance.model) == ("mlp_out.5", "pythia")
    del config["activation_fn_str"]
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": True}))
    with pytest.raises(UsageError, match="pass scale="):
        read_saelens(tmp_path)
    scaled = read_saelens(tmp_path, scale=2.0)
    plain = by_formula_of_standard(tmp_path, x() * 2.0) / 2.0
    assert scaled.activation == "relu"
    assert torch.allclose(scaled(x()), plain, atol=1e-5)


def by_formula_of_standard(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    t = load_file(folder / "sae_weights.safetensors")
    return ((rows - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu() @ t["W_dec"] + t["b_dec"]


def test_saelens_bad_input(tmp_path: Path) -> None:
    with pytest.raises(CutawayError, match="holds no dictionary: expected"):
        read_dictionary(tmp_path)
    saelens(tmp_path, {"architecture": "temporal"}, {})
    with pytest.raises(UsageError, match="architecture 'temporal' is not read"):
        read_saelens(tmp_path)
    saelens(tmp_path, {"d_sae": 7}, {})
    with pytest.raises(UsageError, match=r"W_enc is \[4, 6\], expected \[4, 7\]"):
        read_saelens(tmp_path)
    saelens(tmp_path, {"normalize_activations": "covariance_whitening"}, {})
    with pytest.raises(UsageError, match="covariance_whitening' is not computed"):
        read_saelens(tmp_path)
    saelens(tmp_path, {}, {"b_enc": None})
    with pytest.raises(UsageError, match="no tensor 'b_enc'"):
        read_saelens(tmp_path)
    saelens(tmp_path, {"architecture": "topk"}, {})
    with pytest.raises(UsageError, match="needs k"):
        read_saelens(tmp_path)
    saelens(tmp_path, {}, {"b_enc": torch.full((N,), torch.nan)})
    with pytest.raises(CutawayError, match="b_enc holds NaN"):
        read_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(CutawayError, match="cannot be read as JSON"):
        read_saelens(tmp_path)


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("n", [N, D])
def test_sparsify_computes_what_the_tool_computes(transcode: bool, n: int, tmp_path: Path) -> None:
    folder = tmp_path / "layers.10.mlp"
    folder.mkdir()
    config = {"d_in": D, "num_latents": n, "k": 2, "skip_connection": transcode, "transcode": transcode}
    t = {"encoder.weight": random(n, D), "encoder.bias": random(n, seed=1), "W_dec": random(n, D, seed=2)}
    t |= {"b_dec": random(D, seed=3)} | ({"W_skip": random(D, D, seed=4)} if transcode else {})
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(t, folder / "sae.safetensors")
    pre = (x() if transcode else x() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    top = pre.relu().topk(2, dim=-1)
    out = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ t["W_dec"] + t["b_dec"]
    out = out + x() @ t["W_skip"].T if transcode else out
    made = read_dictionary(folder)
    assert torch.allclose(made(x()), out, atol=1e-5)
    about = made.provenance
    assert (about.site, about.target) == (("", "mlp_out.10") if transcode else ("mlp_out.10", ""))


def learning(folder: Path, kind: str, n: int = N) -> dict[str, torch.Tensor]:
    encoder = {
        "encoder.weight": random(n, D),
        "encoder.bias": random(n, seed=1),
        "decoder.weight": random(D, n, seed=2),
    }
    t = {
        "AutoEncoder": {**encoder, "bias": random(D, seed=3)},
        "AutoEncoderNew": {**encoder, "decoder.bias": random(D, seed=3)},
        "AutoEncoderTopK": {
            **encoder,
            "b_dec": random(D, seed=3),
            "k": torch.tensor(2),
            "threshold": torch.tensor(-1.0),
        },
        "BatchTopKSAE": {**encoder, "b_dec": random(D, seed=3), "k": torch.tensor(2), "threshold": torch.tensor(0.4)},
        "GatedAutoEncoder": {
            "encoder.weight": encoder["encoder.weight"],
            "decoder.weight": encoder["decoder.weight"],
            "decoder_bias": random(D, seed=3),
            **{name: random(n, seed=i) for i, name in enumerate(("gate_bias", "mag_bias", "r_mag"))},
        },
        "JumpReluAutoEncoder": {
            "W_enc": random(D, n),
            "W_dec": random(n, D, seed=2),
            "b_enc": random(n, seed=1),
            "b_dec": random(D, seed=3),
            "threshold": random(n, seed=4).abs() / 2,
        },
    }[kind]
    folder.mkdir(exist_ok=True)
    torch.save(t, folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": n, "layer": 8, "lm_name": "pythia"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    return t


@pytest.mark.parametrize(
    "kind",
    ["AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder"],
)
@pytest.mark.parametrize("n", [N, D])
def test_dictionary_learning_computes_what_the_tool_computes(kind: str, n: int, tmp_path: Path) -> None:
    t = learning(tmp_path, kind, n)
    made = read_dictionary(tmp_path)
    if kind == "JumpReluAutoEncoder":
        pre = x() @ t["W_enc"] + t["b_enc"]
        expected = (pre * (pre > t["threshold"])).relu() @ t["W_dec"] + t["b_dec"]
    elif kind == "GatedAutoEncoder":
        linear = (x() - t["decoder_bias"]) @ t["encoder.weight"].T
        values = (linear * t["r_mag"].exp() + t["mag_bias"]).relu() * (linear + t["gate_bias"] > 0)
        expected = values @ t["decoder.weight"].T + t["decoder_bias"]
    else:
        bias = t.get("bias", t.get("b_dec", t.get("decoder.bias")))
        inside = x() if kind == "AutoEncoderNew" else x() - bias
        values = (inside @ t["encoder.weight"].T + t["encoder.bias"]).relu()
        if kind == "AutoEncoderTopK":
            top = values.topk(2, dim=-1)
            values = torch.zeros_like(values).scatter(1, top.indices, top.values)
        if kind == "BatchTopKSAE":
            values = values * (values > 0.4)
        expected = values @ t["decoder.weight"].T + bias
    assert torch.allclose(made(x()), expected, atol=1e-5)
    assert made.provenance.site == "resid_post.8"


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def test_files_that_would_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learning(tmp_path, "AutoEncoder")
    torch.save({"encoder.weight": _Payload()}, tmp_path / "ae.pt")
    with pytest.raises(CutawayError, match="not a file of plain tensors"):
        read_dictionary_learning(tmp_path)
    assert "ran" not in capsys.readouterr().out
    torch.save({"encoder.weight": 3}, tmp_path / "ae.pt")
    with pytest.raises(CutawayError, match="named tensors"):
        read_dictionary_learning(tmp_path)
    t = learning(tmp_path, "BatchTopKSAE")
    torch.save({**t, "threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    with pytest.raises(UsageError, match="never estimated"):
        read_dictionary_learning(tmp_path)


def made(activation: str, **changes: Any) -> SparseDictionary:
    settings: dict[str, Any] = {"k": 2, "normaliser": "scale", **changes}
    about = Provenance("smol", "f" * 64, "resid_post.2", data="d" * 64, tokens=5)
    dictionary = SparseDictionary(D, N, activation, provenance=about, **settings)
    with torch.no_grad():
        for i, parameter in enumerate(dictionary.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i) * 0.8)
        if dictionary.threshold is not None:
            dictionary.threshold.abs_()
        if dictionary.normaliser == "scale":
            dictionary.scale.fill_(3.0)
        dictionary.w_dec.div_(dictionary.w_dec.norm(dim=-1, keepdim=True))
    return dictionary


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
def test_round_trips_keep_values_and_reconstruction(activation: str, format: str, tmp_path: Path) -> None:
    original = made(activation)
    if format == "sparsify" and activation != "topk":
        with pytest.raises(UsageError, match="topk dictionaries"):
            write_dictionary(original, tmp_path, format)
        return
    write_dictionary(original, tmp_path, format)
    place = tmp_path / "layers.2" if format == "sparsify" else tmp_path
    stored = {"fold": False} if format != "sparsify" else {}
    reader = {"saelens": read_saelens, "sparsify": read_sparsify, "dictionary_learning": read_dictionary_learning}
    again = reader[format](place, **stored)
    assert torch.allclose(again.encode(x()).dense(), original.encode(x()).dense(), atol=1e-5)
    assert torch.allclose(again(x()), original(x()), atol=1e-5)
    assert again.provenance.site == "resid_post.2"
    # A second trip changes nothing at all.
    write_dictionary(again, tmp_path / "second", format)
    twice = reader[format](tmp_path / "second" / ("layers.2" if format == "sparsify" else ""), **stored)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in again.state_dict().items())


def test_transcoders_round_trip(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"d_out": 3, "skip": True, "subtract_bias": False, "normaliser": "none"}
    wide = made("jumprelu", **settings)
    write_saelens(wide, tmp_path / "a")
    assert torch.allclose(read_saelens(tmp_path / "a")(x()), wide(x()), atol=1e-5)
    square = made("topk", skip=True, subtract_bias=False, normaliser="none")
    write_sparsify(square, tmp_path / "b", hook="layers.1.mlp")
    assert torch.allclose(read_sparsify(tmp_path / "b" / "layers.1.mlp")(x()), square(x()), atol=1e-5)
    with pytest.raises(UsageError, match="no transcoders"):
        write_dictionary_learning(wide, tmp_path / "c")
    with pytest.raises(UsageError, match="relu and jumprelu transcoders only"):
        write_saelens(square, tmp_path / "d")
    with pytest.raises(UsageError, match="no layer_norm"):
        write_dictionary_learning(made("relu", normaliser="layer_norm"), tmp_path / "e")
    with pytest.raises(UsageError, match="did you mean 'saelens'"):
        write_dictionary(square, tmp_path, "saelense")


def test_names_of_places() -> None:
    for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "neurons"):
        assert site_of(hook_of(f"{kind}.7")) == f"{kind}.7"
    for kind in ("resid_post", "attn_out", "mlp_out"):
        assert site_of(path_of(f"{kind}.7")) == f"{kind}.7"
    assert site_of("transformer.h.4.attn") == "attn_out.4"
    assert site_of("gpt_neox.layers.4.attention") == "attn_out.4"
    with pytest.raises(UsageError, match="pass hook="):
        hook_of("logits")
    with pytest.raises(UsageError, match="no module's output"):
        path_of("neurons.3")
