"""Records equal a plain loop over the dense matrix; one call reaches other tools; bad input."""

from pathlib import Path

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.features.corpus import open_corpus
from cutaway.features.dictionary import Provenance
from cutaway.features.harvest import stream
from cutaway.features.neuronpedia import read_neuronpedia, write_neuronpedia
from cutaway.features.records import feature_records
from cutaway.model import Model

CORPUS = open_corpus(["the cat sat on a mat", "dogs bark at the moon", "nine birds", "the end of it all"])
SITE = "resid_post.2"


def some(**changes: str) -> SparseDictionary:
    about = Provenance(site=SITE, **changes)
    return SparseDictionary(16, 30, "topk", k=3, provenance=about, seed=3).requires_grad_(False)


def test_records_equal_a_plain_loop(model: Model) -> None:
    made = some()
    found = feature_records(model, made, CORPUS, examples=2, window=3, top=4, length=16, batch=2)
    assert [each.index for each in found] == list(range(30))
    values: dict[tuple[int, int], torch.Tensor] = {}
    windows = []
    for part in stream(model, CORPUS, SITE, length=16, batch=1):
        dense = made.encode(part.values[SITE]).dense()
        for row, (context, position) in enumerate(zip(part.context.tolist(), part.position.tolist(), strict=True)):
            values[len(windows) + context, position] = dense[row]
        windows += part.contexts
    whole = torch.stack(list(values.values()))
    effects = (made.atoms * model.hf.model.norm.weight @ model.hf.lm_head.weight.T).detach()
    for latent in (0, 7, 21):
        record = found[latent]
        assert record.density == pytest.approx(float((whole[:, latent] > 0).float().mean()))
        assert sum(record.histogram_heights) == int((whole[:, latent] > 0).sum())
        peaks = {}
        for (context, position), row in values.items():
            if row[latent] > peaks.get(context, (0.0, 0))[0]:
                peaks[context] = (float(row[latent]), position)
        order = sorted(peaks, key=lambda context: -peaks[context][0])[:2]
        assert len(record.examples) == len(order)
        for example, context in zip(record.examples, order, strict=True):
            peak = peaks[context][1]
            first = max(0, peak - 3)
            ids = windows[context].ids[first : peak + 4]
            assert example.tokens == tuple(model.decode([token]) for token in ids)
            expected = [float(values[context, first + i][latent]) for i in range(len(ids))]
            assert example.values == pytest.approx(expected, abs=1e-5)
            assert max(example.values) == pytest.approx(peaks[context][0], abs=1e-5)
        top = effects[latent].topk(4)
        assert record.positive == tuple(model.decode([token]) for token in top.indices.tolist())
        assert record.positive_values == pytest.approx(top.values.tolist(), abs=1e-4)
        assert record.negative_values[0] == pytest.approx(float(effects[latent].min()), abs=1e-4)


def test_one_call_reaches_other_tools(model: Model, tmp_path: Path) -> None:
    records = feature_records(model, some(fingerprint=model.fingerprint), CORPUS, latents=[4, 2], source="2-cutaway")
    write_neuronpedia(records, tmp_path)
    assert read_neuronpedia(tmp_path) == records
    assert [each.index for each in records] == [4, 2]
    assert records[0].prompts == 4


def test_a_silent_latent_and_one_that_writes_elsewhere(model: Model) -> None:
    made = some()
    made.b_enc[5] = -100.0
    (record,) = feature_records(model, made, CORPUS, latents=[5])
    assert (record.density, record.examples, record.histogram_heights) == (0.0, (), ())
    keys = SparseDictionary(8, 20, "topk", k=3, provenance=Provenance(site="k.1")).requires_grad_(False)
    (other,) = feature_records(model, keys, CORPUS, latents=[1])
    assert other.positive == ()


def test_bad_input(model: Model) -> None:
    with pytest.raises(UsageError, match="latent 30: this dictionary has 0 to 29"):
        feature_records(model, some(), CORPUS, latents=[30])
    with pytest.raises(UsageError, match="pass site="):
        feature_records(model, SparseDictionary(16, 30, k=3), CORPUS)
    with pytest.raises(UsageError, match="other weights"):
        feature_records(model, some(fingerprint="x"), CORPUS)
