"""Evaluation: numbers by a plain loop, perfect and empty dictionaries, baselines, classes, bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.features.corpus import open_corpus
from cutaway.features.dictionary import Provenance
from cutaway.features.evaluate import Evaluation, _ratio, evaluate, spliced_logits, token_class
from cutaway.features.harvest import contexts
from cutaway.model import Model, Replace

WORDS = ["the cat sat. 12 mats", "a dog ran to the sea", "nine (9) birds sing", "the end\nof it all"]
CORPUS = open_corpus([" ".join([WORDS[i % 4], WORDS[(i * 3 + 1) % 4]]) for i in range(8)])
SITE = "resid_post.1"


@pytest.fixture
def model(model: Model) -> Model:
    """After a few steps on the text, so that zeros in its middle do harm."""
    batch = model.batch(list(CORPUS))
    adam = torch.optim.Adam(model.hf.parameters(), lr=1e-2)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(
            model.logits(batch)[:, :-1][batch.mask[:, 1:]], batch.ids[:, 1:][batch.mask[:, 1:]]
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.hf.requires_grad_(False)
    return model


def spanning(d: int = 16) -> SparseDictionary:
    """Every direction and its opposite: rebuilds any row exactly."""
    made = SparseDictionary(d, 2 * d, "relu", provenance=Provenance(site=SITE))
    with torch.no_grad():
        both = torch.cat([torch.eye(d), -torch.eye(d)])
        made.w_enc.copy_(both)
        made.w_dec.copy_(both)
    return made.requires_grad_(False)


def some(k: int = 3, **changes: Any) -> SparseDictionary:
    made = SparseDictionary(16, 40, "topk", k=k, provenance=Provenance(site=SITE), seed=3, **changes)
    return made.requires_grad_(False)


def empty() -> SparseDictionary:
    made = some()
    made.w_dec.zero_()
    return made


def run(model: Model, dictionary: SparseDictionary, **options: Any) -> Evaluation:
    return evaluate(model, dictionary, CORPUS, length=32, batch=3, **options)


@pytest.mark.parametrize("site", [SITE, "resid_pre.1", "resid_pre.0", "mlp_out.0", "attn_out.1", "embed"])
def test_every_number_equals_a_plain_loop(model: Model, site: str) -> None:
    dictionary = some()
    found = run(model, dictionary, site=site)
    ys, hats, clean, zero, spliced, l0 = [], [], [], [], [], []
    for window in contexts(model, CORPUS, 32):
        if window.document % 2 == 0:
            continue
        ids = [list(window.ids)]
        batch = model.batch(ids)
        y = model.capture(batch, site)[site].detach()
        hat = dictionary(y[0])
        codes = dictionary.encode(y[0]).dense()
        ys.append(y[0]), hats.append(hat), l0.extend((codes != 0).sum(-1).tolist())
        for store, value in ((clean, y), (zero, torch.zeros_like(y)), (spliced, hat[None])):
            if store is clean:
                logits = model.logits(batch)
            else:
                with model.edited(Replace(site, value)):
                    logits = model.logits(batch)
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], batch.ids[0, 1:], reduction="none")
            store.extend(loss.tolist())
    y, hat = torch.cat(ys), torch.cat(hats)
    fvu = (y - hat).square().sum() / (y - y.mean(0)).square().sum()
    assert found.tokens == len(y)
    assert found.score.fvu.value == pytest.approx(float(fvu), abs=1e-5)
    assert found.score.l0.value == pytest.approx(np.mean(l0))
    assert (found.ce_clean, found.ce_zero) == pytest.approx((np.mean(clean), np.mean(zero)), abs=1e-5)
    expected = (np.mean(zero) - np.mean(spliced)) / (np.mean(zero) - np.mean(clean))
    assert found.score.ce_score.value == pytest.approx(expected, abs=1e-4)
    assert found.documents == 4
    silent = (dictionary.encode(y).dense() != 0).sum(0) == 0
    assert found.dead.value == pytest.approx(float(silent.float().mean()))


def test_dictionaries_beside_one_are_scored_as_alone(model: Model) -> None:
    found = run(model, some(), beside={"other": some(5)})
    alone = run(model, some(5))
    (other,) = found.beside
    assert other.name == "other"
    assert (other.fvu, other.l0, other.ce_score) == (alone.score.fvu, alone.score.l0, alone.score.ce_score)
    assert found.score == run(model, some()).score
    assert list(found.to_frame()["name"])[:3] == ["dictionary", "other", "PCA"]
    with pytest.raises(UsageError, match="reads 8"):
        run(model, some(), beside={"narrow": SparseDictionary(8, 16, "relu")})


def test_few_tokens_are_of_many_documents(model: Model) -> None:
    corpus = open_corpus([" ".join(WORDS * 4)] * 8)
    assert run(model, some()).documents == 4
    assert evaluate(model, some(), corpus, length=16, batch=4, tokens=50, spliced=False).documents == 4


def test_a_perfect_and_an_empty_dictionary(model: Model) -> None:
    perfect, nothing = run(model, spanning()), run(model, empty())
    assert perfect.score.fvu.value < 1e-10
    assert perfect.score.ce_score.value == pytest.approx(1.0, abs=1e-5)
    assert nothing.score.ce_score.value == 0.0
    assert nothing.score.fvu.value >= 1.0
    assert perfect.score.l0.value == 16


def test_baselines_stand_at_the_same_budget(model: Model) -> None:
    found = run(model, some(5))
    by_name = {score.name: score for score in found.baselines}
    assert set(by_name) == {"PCA", "random atoms", "token mean"}
    assert by_name["PCA"].l0.value == by_name["random atoms"].l0.value == round(found.score.l0.value)
    assert all(0 < score.fvu.value < 1 for score in found.baselines)
    whole = {score.name: score for score in run(model, spanning()).baselines}
    assert whole["PCA"].fvu.value < 1e-6
    assert whole["PCA"].ce_score.value == pytest.approx(1.0, abs=1e-4)


def test_token_means_explain_an_embedding(model: Model) -> None:
    corpus = open_corpus(["the cat sat on a mat"] * 4)
    found = evaluate(model, some(), corpus, site="embed", spliced=False)
    means = next(score for score in found.baselines if score.name == "token mean")
    assert means.fvu.value < 1e-6
    assert found.score.ce_score is None


def test_splicing_with_the_error_is_the_model_itself(model: Model) -> None:
    batch = model.batch(["the cat sat", "a dog ran to the sea"])
    dictionary = some()
    clean = model.logits(batch).detach()
    assert torch.allclose(spliced_logits(model, dictionary, batch, error=True), clean, atol=1e-4)
    plain = spliced_logits(model, dictionary, batch)
    assert not torch.allclose(plain, clean, atol=1e-2)
    none = spliced_logits(model, dictionary, batch, change=lambda codes: codes.keep(torch.tensor([], dtype=torch.long)))
    with model.edited(Replace(SITE, dictionary.b_dec)):
        assert torch.allclose(none[batch.mask], model.logits(batch)[batch.mask], atol=1e-4)


def test_classes_add_up(model: Model) -> None:
    found = run(model, some())
    assert {each.kind for each in found.classes} == {"word inside", "word start", "number", "white space", "other"}
    assert sum(each.tokens for each in found.classes) == found.tokens
    for each in found.classes:
        assert sum(each.histogram) == 40
    weighted = sum(each.l0.value * each.tokens for each in found.classes) / found.tokens
    assert weighted == pytest.approx(found.score.l0.value)
    assert token_class(" ¿") == "other"


def test_a_transcoder_is_measured_where_it_writes(model: Model) -> None:
    about = Provenance(site="resid_mid.1", target="mlp_out.1")
    made = SparseDictionary(16, 40, k=3, subtract_bias=False, skip=True, provenance=about).requires_grad_(False)
    found = run(model, made)
    assert found.site == "mlp_out.1"
    batch = model.batch("the cat")
    assert torch.allclose(spliced_logits(model, made, batch, error=True), model.logits(batch), atol=1e-4)


def test_reports(model: Model, tmp_path: Path) -> None:
    found = run(model, some(), spliced=False)
    assert list(found.to_frame()["name"]) == ["dictionary", "PCA", "random atoms", "token mean"]
    found.save(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text().startswith("{")
    assert "FVU" in repr(found)


def test_bad_input(model: Model) -> None:
    with pytest.raises(UsageError, match="pass site="):
        evaluate(model, SparseDictionary(16, 20, k=2), CORPUS)
    with pytest.raises(UsageError, match="rows of 16 dimensions; this dictionary reads 8"):
        evaluate(model, SparseDictionary(8, 20, k=2), CORPUS, site=SITE)
    with pytest.raises(UsageError, match="two documents or more"):
        evaluate(model, some(), open_corpus(["one text only"]))
    with pytest.raises(UsageError, match="one place each"):
        evaluate(model, some(), CORPUS, site="resid_post.*")


def test_intervals_of_ratios_cover_and_take_documents_as_units() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(30), 20)
    covered = 0
    for _ in range(400):
        shift = rng.normal(0, 0.3, 30)[documents]  # what the tokens of a document share
        below = rng.uniform(1, 2, 600)
        found = _ratio((0.4 + shift) * below + rng.normal(0, 0.1, 600), below, documents)
        covered += found.low <= 0.4 <= found.high
    assert 0.92 <= covered / 400 <= 0.98
    alone = _ratio(np.ones(5), np.ones(5), np.zeros(5))
    assert np.isnan(alone.low)
