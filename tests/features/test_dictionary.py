"""Codes and dictionaries: sparse equals dense, formulae by hand, round trips, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import CutawayError, UsageError
from cutaway.features import Codes, Dictionary, SparseDictionary, load_dictionary
from cutaway.features.dictionary import Provenance, sparse
from cutaway.model import Model

KINDS = ("relu", "topk", "jumprelu", "gated")


def made(kind: str, **changes: object) -> SparseDictionary:
    """A dictionary with every parameter away from its start."""
    settings: dict[str, object] = {"k": 3, **changes}
    dictionary = SparseDictionary(6, 10, kind, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
        if dictionary.normaliser == "scale":
            dictionary.scale.fill_(2.0)
    return dictionary


def rows(n: int = 7) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(2))


def by_hand(d: SparseDictionary, x: torch.Tensor) -> torch.Tensor:
    """The reconstruction of one row, latent by latent."""
    mean, spread = x.mean(), x.std() + 1e-5
    length = x.norm() / len(x) ** 0.5
    seen = {"none": x, "scale": x * d.scale, "layer_norm": (x - mean) / spread, "row_norm": x / length}[d.normaliser]
    inside = seen - d.b_dec if d.subtract_bias else seen
    out = d.b_dec.clone()
    pre = torch.stack([(d.w_enc[i] * inside).sum() + d.b_enc[i] for i in range(d.n_latents)])
    kept = set(pre.argsort(descending=True)[: d.k].tolist())
    for i in range(d.n_latents):
        value = pre[i].clamp(min=0)
        if d.activation == "topk" and i not in kept:
            value = torch.zeros(())
        if d.activation == "jumprelu":
            value = pre[i] if pre[i] > d.threshold[i] else torch.zeros(())
        if d.activation == "gated":
            strength = (d.w_enc[i] * inside).sum() * d.r_mag[i].exp() + d.b_mag[i]
            value = strength.clamp(min=0) if pre[i] > 0 else torch.zeros(())
        out = out + value * d.w_dec[i]
    if d.w_skip is not None:
        out = out + d.w_skip @ seen
    undone = {"none": out, "scale": out / d.scale, "layer_norm": out * spread + mean, "row_norm": out * length}
    return undone[d.normaliser]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normaliser", ["none", "scale", "layer_norm", "row_norm"])
def test_equals_the_formulae_latent_by_latent(kind: str, normaliser: str) -> None:
    for changes in ({}, {"subtract_bias": False, "skip": True}):
        dictionary = made(kind, normaliser=normaliser, **changes)
        x = rows()
        expected = torch.stack([by_hand(dictionary, row) for row in x])
        assert torch.allclose(dictionary(x), expected, atol=1e-5)
        assert torch.allclose(dictionary.encode(x).dense(), dictionary.dense(x), atol=1e-6)
        assert isinstance(dictionary, Dictionary)


@torch.no_grad()
def test_a_transcoder_may_change_the_width() -> None:
    transcoder = made("topk", d_out=4, subtract_bias=False)
    assert transcoder(rows()).shape == (7, 4)
    assert transcoder.atoms.shape == (10, 4)
    with pytest.raises(UsageError, match="no meaning at its input"):
        SparseDictionary(6, 10, k=3, d_out=4)


def test_gradients_reach_every_parameter() -> None:
    for kind in ("relu", "topk", "gated"):
        dictionary = made(kind)
        (dictionary(rows()) - rows()).square().sum().backward()
        for name, parameter in dictionary.named_parameters():
            if (kind, name) != ("gated", "b_enc"):  # a gate passes no gradient
                assert parameter.grad is not None, (kind, name)
                assert parameter.grad.abs().sum() > 0, (kind, name)


@given(st.integers(1, 6), st.integers(1, 8), st.floats(0, 1), st.integers(0, 99))
def test_sparse_and_dense_are_the_same_codes(n: int, latents: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, latents, generator=generator) * (torch.rand(n, latents, generator=generator) < share)
    codes = sparse(dense)
    assert torch.equal(codes.dense(), dense)
    assert torch.equal(codes.l0, (dense != 0).sum(-1).float())
    kept = codes.keep(torch.tensor([0])).dense()
    assert torch.equal(kept[:, 0], dense[:, 0])
    assert not kept[:, 1:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    dictionary = made(kind, normaliser="scale", provenance=Provenance("m", "f", "resid_post.3", tokens=7))
    dictionary.save(tmp_path)
    again = load_dictionary(tmp_path)
    assert torch.equal(again(rows()), dictionary(rows()))
    assert (again.provenance, again.to_dict()) == (dictionary.provenance, dictionary.to_dict())


def test_a_dictionary_is_checked_against_its_model(tmp_path: Path, model: Model) -> None:
    about = Provenance("reader", model.fingerprint, "resid_post.1")
    SparseDictionary(16, 20, k=2, provenance=about).save(tmp_path / "own")
    assert load_dictionary(tmp_path / "own", model).provenance == about
    SparseDictionary(8, 20, k=2, provenance=about).save(tmp_path / "narrow")
    with pytest.raises(UsageError, match="reads 8 dimensions; reader-0 has 16"):
        load_dictionary(tmp_path / "narrow", model)
    SparseDictionary(16, 20, k=2, provenance=replace(about, fingerprint="x")).save(tmp_path / "other")
    with pytest.raises(UsageError, match="other weights"):
        load_dictionary(tmp_path / "other", model)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'topk'"):
        SparseDictionary(6, 10, "topkk")
    with pytest.raises(UsageError, match="k=11: 1 to 10"):
        SparseDictionary(6, 10, k=11)
    with pytest.raises(UsageError, match="rows of 5 dimensions"):
        made("topk").encode(torch.zeros(2, 5))
    with pytest.raises(UsageError, match="NaN"):
        made("relu").encode(torch.full((2, 6), torch.nan))
    with pytest.raises(UsageError, match="codes of 3 latents"):
        made("topk").decode(Codes(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), 3))
    with pytest.raises(UsageError, match="decode\\(codes, x\\)"):
        made("topk", skip=True).decode(made("topk").encode(rows()))
    with pytest.raises(CutawayError, match="holds no dictionary"):
        load_dictionary(tmp_path)
    made("topk").save(tmp_path)
    about = json.loads((tmp_path / "dictionary.json").read_text())
    (tmp_path / "dictionary.json").write_text(json.dumps({**about, "n_latents": 6}))
    with pytest.raises(CutawayError, match="holds no dictionary"):
        load_dictionary(tmp_path)
