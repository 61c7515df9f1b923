"""Running sums against loops that keep everything; similarity against tokens chosen by hand."""

import numpy as np
import pytest
import torch

from cutaway.editing.relearn_concepts import concept_neurons, tally
from cutaway.editing.relearn_concepts.data import LABELS, sentences, tagged
from cutaway.editing.relearn_concepts.salience import Tally
from cutaway.errors import UsageError
from cutaway.planted.concepts import tiny_llama
from cutaway.training.data import UNLABELLED


def everything(model, data, kind):
    """Values [token layer d] and labels [token], one row at a time and without padding."""
    values, marks = [], []
    for (row,) in data.examples:
        found = model.capture([list(row.ids)], f"{kind}.*", special=True)
        for at, mark in enumerate(row.labels):
            if mark != UNLABELLED:
                values.append(torch.stack([found[f"{kind}.{i}"][0, at] for i in range(model.n_layers)]))
                marks.append(mark)
    return torch.stack(values).double(), torch.tensor(marks)


@pytest.mark.parametrize("kind", ["neurons", "resid_post"])
def test_probeless_and_saliency_equal_brute_force(tagger, data, kind):
    few = tagged(tagger.model, sentences(30, seed=4))
    found = tally(tagger.model, few, LABELS, kind=kind, batch=7)
    with torch.no_grad():
        values, marks = everything(tagger.model, few, kind)
    means = torch.stack([values[marks == z].mean(0) for z in range(len(LABELS))])
    for z, label in enumerate(LABELS):
        probeless = (means[z] - means).abs().sum(0)
        assert torch.allclose(found.probeless(label), probeless, atol=1e-6)
        assert torch.equal(found.probeless(label).argsort(), probeless.argsort())
        has = (marks == z).double()
        flat = values.flatten(1)
        correlation = torch.tensor([abs(np.corrcoef(has, flat[:, i])[0, 1]) for i in range(flat.shape[1])])
        assert torch.allclose(found.saliency(label).flatten(), correlation, atol=1e-5)


def test_continuations_are_read_only_where_asked_for(tagger):
    few = sentences(10, seed=4)
    # the tokenizer falls back to characters, so a word it does not know has several tokens
    words = [type(few[0])(("She", "waits", "in", "Qz"), ("O", "O", "O", "CITY"))]
    last, every = (tagged(tagger.model, words, continuations=c) for c in (False, True))
    assert [x for x in last.examples[0][0].labels if x != UNLABELLED] == [0, 0, 0, 1]
    assert [x for x in every.examples[0][0].labels if x != UNLABELLED] == [0, 0, 0, 1, 1, 1]
    assert tally(tagger.model, every, LABELS).counts[1] == 3


def test_memory_does_not_grow_with_the_data(tagger):
    sizes = []
    for n in (5, 50):
        found = tally(tagger.model, tagged(tagger.model, sentences(n)), LABELS)
        sizes.append(found.sums.numel() + found.squares.numel())
        assert found.sums.shape == (tagger.model.n_layers, len(LABELS), tagger.model.layout.dims("neurons")[0])
    assert sizes[0] == sizes[1]


def made(peaks: torch.Tensor, own: torch.Tensor) -> Tally:
    types, labels = len(own), ("O", "X")
    concepts = torch.stack([1 - own.long(), own.long()], 1)
    zeros = torch.zeros(len(peaks), 2, peaks.shape[-1], dtype=torch.float64)
    return Tally(labels, concepts.sum(0).double(), zeros, zeros, torch.arange(types), concepts, peaks)


def test_similarity_is_one_for_the_concepts_own_tokens_and_near_zero_for_random_ones():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(400, 32, generator=generator)
    own = torch.arange(400) < 20
    peaks = torch.rand(1, 400, 500, generator=generator)
    peaks[0, :20, 0] += 5
    peaks[0, :, 1] = 0
    found = made(peaks, own).similarity("X", embeddings)[0]
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found[1] == 0
    # the null: sets of 20 tokens drawn at random
    centred = embeddings - embeddings.mean(0)
    wanted = centred[own].mean(0)
    draws = torch.stack([centred[torch.randperm(400, generator=generator)[:20]].mean(0) for _ in range(500)])
    null = torch.cosine_similarity(draws, wanted.expand_as(draws)).abs()
    assert abs(float(found[2:].abs().mean() - null.mean())) < 4 * float(null.std()) / 500**0.5


def test_a_neuron_that_never_moves_has_saliency_zero(tagger, test):
    from cutaway.editing import prune

    model = tagger.model.copy()
    prune(model, {0: (3,), 1: (0, 5)})
    found = tally(model, test, LABELS).saliency("CITY")
    assert found[0, 3] == found[1, 0] == found[1, 5] == 0
    assert (found.flatten() > 0).sum() == found.numel() - 3


def test_bad_input(tagger, test):
    found = tally(tagger.model, test, LABELS)
    with pytest.raises(UsageError, match="did you mean 'CITY'"):
        found.saliency("CTY")
    with pytest.raises(UsageError, match="no token"):
        tally(tagger.model, tagged(tagger.model, sentences(20, without="FOOD")), LABELS).probeless("FOOD")
    with pytest.raises(UsageError, match="neurons to prune: the model has"):
        concept_neurons(found, "CITY", found.saliency("CITY").numel() + 1)
    with pytest.raises(UsageError, match="labels are named"):
        tally(tagger.model, test, LABELS[:3])
    with pytest.raises(UsageError, match="no kind"):
        tally(tagger.model, test, LABELS, kind="neurones")
    with pytest.raises(UsageError, match="peaks=True"):
        found.similarity("CITY", tagger.model.hf.get_input_embeddings().weight)
    with pytest.raises(UsageError, match="without='TOWN'"):
        sentences(3, without="TOWN")
    with pytest.raises(UsageError, match="label"):
        tagged(tagger.model, sentences(3), LABELS[:2])


def test_a_tiny_llama_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    tiny_llama((" a", " b"), "tiny", d_model=16)
    assert torch.equal(before, torch.random.get_rng_state())
