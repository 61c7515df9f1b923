"""The planted direction is where, how strong and as linear as its truth says; the null knows nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.model import Add
from cutaway.planted import LinearDirection, linear_direction, null_model, reasoner


def difference(planted: LinearDirection, texts: list[str], *edits: Add) -> np.ndarray:
    """Logit(yes) - logit(no) at the last token of each text."""
    with torch.no_grad(), planted.model.edited(*edits):
        logits = planted.model.logits(planted.model.batch(texts))[:, -1]
    return (logits[:, planted.truth.yes] - logits[:, planted.truth.no]).numpy()


def along(vector: np.ndarray, scale: float, site: str) -> Add:
    return Add(site, torch.tensor(vector, dtype=torch.float32), scale=scale)


@pytest.mark.parametrize("kwargs", [{}, {"layer": 0, "n_layers": 1}, {"d_model": 64, "slope": -0.7, "seed": 3}])
def test_concept_writes_strength_along_the_direction(kwargs):
    planted = linear_direction(**kwargs)
    truth = planted.truth
    layer = int(truth.site.split(".")[1])
    for concept in (True, False):
        texts = planted.texts(30, concept=concept)
        sites = [f"resid_pre.{layer}", truth.site, f"resid_post.{planted.model.n_layers - 1}"]
        with torch.no_grad():
            states = planted.model.capture(texts, sites)
        before, after, end = (states[site][:, -1].double().numpy() @ truth.direction for site in sites)
        np.testing.assert_allclose(before, 0, atol=1e-3)
        np.testing.assert_allclose(after, truth.strength * concept, atol=1e-3)
        np.testing.assert_allclose(end, truth.strength * concept, atol=1e-3)
        expected = truth.bias + truth.slope * truth.strength * concept
        np.testing.assert_allclose(difference(planted, texts), expected, atol=2e-3)
    assert np.linalg.norm(truth.direction) == pytest.approx(1)
    assert np.abs(truth.direction).max() < 0.9


@given(
    scale=st.floats(-20, 20).filter(lambda s: abs(s) > 0.01),
    site=st.sampled_from(["resid_post.1", "resid_post.2"]),
)
@budget(max_examples=20, deadline=None)
def test_adding_the_direction_is_linear_with_the_known_slope(scale, site):
    planted = linear_direction()
    texts = planted.texts(3, concept=False)
    edit = along(planted.truth.direction, scale, site)
    moved = difference(planted, texts, edit) - difference(planted, texts)
    np.testing.assert_allclose(moved, planted.truth.slope * scale, atol=2e-3 + 1e-3 * abs(scale))


def test_an_orthogonal_direction_does_nothing():
    planted = linear_direction()
    other = np.random.default_rng(0).normal(size=32)
    other -= (other @ planted.truth.direction) * planted.truth.direction
    # Orthogonal to the constant too: shortening that is a real effect of the final norm.
    texts = planted.texts(5, concept=True)
    mean = planted.model.hf.model.embed_tokens.weight.detach().double().mean(0).numpy()
    other -= (other @ mean) / (mean @ mean) * mean
    edit = along(other / np.linalg.norm(other), 5.0, planted.truth.site)
    moved = difference(planted, texts, edit) - difference(planted, texts)
    assert np.abs(moved).max() < 5e-3


def test_texts_differ_by_the_concept_alone():
    planted = linear_direction()
    with_, without = (planted.texts(50, concept=c, length=4, seed=1) for c in (True, False))
    concept = {" rain", " storm", " hail", " flood", " thunder"}

    def count(text: str) -> int:
        return sum(planted.model.decode([i]) in concept for i in planted.model.encode(text))

    assert {count(text) for text in with_} == {1}
    assert {count(text) for text in without} == {0}
    assert planted.texts(5, concept=True) == planted.texts(5, concept=True)


def test_generation_answers_once_and_stops():
    planted = linear_direction()
    ids = torch.tensor([planted.model.encode(planted.texts(1, concept=True)[0])])
    out = planted.model.hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
    assert planted.model.decode(out[0, ids.shape[1] :].tolist()) == " yes<eos>"


@pytest.mark.parametrize("kwargs", [{"layer": 3}, {"layer": -1}, {"d_model": 7}, {"d_model": 9}])
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(UsageError):
        linear_direction(**kwargs)


def test_null_model_has_the_shape_of_its_twin_and_unrelated_labels():
    twin = reasoner().model
    null = null_model(twin, seed=1)
    assert (null.model.d_model, null.model.vocab_size) == (twin.d_model, twin.vocab_size)
    assert null.model.fingerprint != null_model(twin, seed=2).model.fingerprint
    texts, labels = null.texts(400), null.labels(400)
    with torch.no_grad():
        batch = null.model.batch(texts)
        states = null.model.hf.model(**batch.forward_kwargs()).last_hidden_state
        last = states[torch.arange(400), batch.mask.sum(-1) - 1].numpy()
    weights, *_ = np.linalg.lstsq(last[:200] - last[:200].mean(0), labels[:200] - 0.5, rcond=None)
    right = ((last[200:] - last[:200].mean(0)) @ weights > 0) == labels[200:]
    assert abs(right.mean() - null.truth.accuracy) < 4 * 0.5 / np.sqrt(200)
    assert np.array_equal(labels, null.labels(400))
