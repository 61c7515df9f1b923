"""The comparison and its verdict, the study on planted data and on a tiny model, the calibration."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features.corpus import open_corpus
from cutaway.features.harvest import stream
from cutaway.features.mfr_sae.calibration import planted_trial, verdicts
from cutaway.features.mfr_sae.experiment import ARMS, compare, judge, measure
from cutaway.features.mfr_sae.method import MfrConfig
from cutaway.features.mfr_sae.study import MfrSae, MfrSaeConfig
from cutaway.features.sparse import SparseDictionary
from cutaway.model import Model
from cutaway.planted.superposition import superposition
from cutaway.stats import Interval, mean_interval
from cutaway.study import Lab, get_study

SMALL = {"d": 16, "n_features": 20, "active": 2.0, "n_latents": 24, "k": 2, "steps": 8, "batch": 64, "seeds": 2}


def gain(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 5, 0.95)


def test_verdicts_by_hand() -> None:
    good, none, unclear = gain(0.02, 0.1), gain(-0.01, 0.005), gain(-0.01, 0.1)
    assert judge({"alone": good, "long": good, "random": good}) == "supported"
    assert judge({"alone": good, "long": none, "random": good}) == "not supported"
    assert judge({"alone": good, "long": unclear, "random": good}) == "inconclusive"


def test_a_verdict_is_rarely_wrong_and_found_where_there_is_one() -> None:
    assert verdicts(200, 0.0) <= 10
    assert verdicts(200, 6.0) >= 180


def test_measures_of_a_perfect_dictionary() -> None:
    planted = superposition(16, 12, 2.0, groups=3)
    made = SparseDictionary(16, 12, "topk", k=12)
    with torch.no_grad():
        made.w_dec.copy_(planted.truth.atoms)
        made.w_enc.copy_(torch.linalg.pinv(planted.truth.atoms).T)
        made.b_enc.fill_(-1e-4)  # what is zero but for rounding stays silent
    made.requires_grad_(False)
    found = measure([made, made], planted.truth.atoms, planted.rows(500))
    assert (found.recovery, found.one_to_one, found.above) == pytest.approx((1.0, 1.0, 1.0))
    assert found.fvu < 1e-5
    assert found.l0 == pytest.approx(float((planted.codes(500) > 0).sum(1).float().mean()), abs=0.01)
    assert (found.peers, found.dead, found.duplicates) == pytest.approx((1.0, 0.0, 0.0))
    assert np.isnan(found.spearman)  # every latent is as true as every other


def test_a_comparison_is_paired_and_its_numbers_add_up() -> None:
    planted = superposition(16, 20, 2.0, groups=2)
    config = MfrConfig(peers=2, n_latents=24, k=2, batch=64, rate=1e-2, steps=12, refresh=5)
    found = compare(planted, config, seeds=2, weights=(0.01, 1.0))
    assert set(found.outcomes) == set(ARMS)
    assert set(found.tried) == {0.01, 1.0}
    assert found.weight == max(found.tried, key=lambda weight: found.tried[weight])
    own = [a.recovery - b.recovery for a, b in zip(found.outcomes["mfr"], found.outcomes["long"], strict=True)]
    assert found.gains["long"].value == pytest.approx(np.mean(own))
    assert found.gains["long"].low == pytest.approx(mean_interval(own).low)
    again = compare(planted, config, seeds=2, weights=(found.weight,), arms=("mfr", "alone", "long", "random"))
    assert [each.recovery for each in again.outcomes["mfr"]] == [each.recovery for each in found.outcomes["mfr"]]
    assert len(found.to_frame()) == 2 * len(ARMS)
    assert found.verdict in repr(found)


def test_stopping_compares_what_is_done() -> None:
    planted = superposition(16, 20, 2.0, groups=2)
    config = MfrConfig(peers=2, n_latents=24, k=2, batch=64, rate=1e-2, steps=4)

    def stop(done: float, total: float, note: str) -> None:
        if done == 3 * 4 + 1:
            raise KeyboardInterrupt

    found = compare(planted, config, seeds=5, weights=(0.1,), arms=("alone", "mfr", "long", "random"), tick=stop)
    assert not found.complete
    assert len(found.outcomes["mfr"]) == 3


def test_bad_comparisons() -> None:
    planted = superposition(16, 20, 2.0, groups=2)
    config = MfrConfig(peers=2, n_latents=24, k=2, batch=64)
    with pytest.raises(UsageError, match="steps=None"):
        compare(planted, config)
    with pytest.raises(UsageError, match="no true atoms"):
        compare(superposition(16, 20, 2.0, groups=2, null=True), MfrConfig(steps=3))
    with pytest.raises(UsageError, match="'long' is missing"):
        compare(planted, MfrConfig(steps=3), arms=("alone", "mfr", "random"))


def test_a_run_on_planted_features_says_its_verdict(tmp_path: Path) -> None:
    found = MfrSae().run(MfrSaeConfig(**SMALL, weights=(0.05,)), Lab(tmp_path))
    names = {item.name: item for item in found.items}
    assert any(word in found.summary for word in ("supported", "inconclusive"))
    for rival in ("alone", "long", "random"):
        assert names[f"recovery gained over {rival}"].n == 2
        assert names[f"recovery gained over {rival}"].control is not None
    assert {f"seconds to train, {arm}" for arm in ARMS} <= set(names)
    assert {"comparison.json", "charts.json"} <= set(found.artifacts)
    assert MfrSae().inputs(MfrSaeConfig(), Lab(tmp_path)) == {}


def lab_of(model: Model, folder: Path) -> Lab:
    lab = Lab(folder)
    lab._models[("tiny", "float32")] = model
    return lab


def text(folder: Path) -> Path:
    lines = ["the cat sat on a mat", "dogs bark at the moon", "nine birds sing", "the end of it all", "a cat ran"]
    path = folder / "text.jsonl"
    path.write_text("".join(f'{{"text": "{a} and {b}"}}\n' for a in lines for b in lines))
    return path


def test_a_run_on_activations_compares_with_and_without(started: Model, tmp_path: Path) -> None:
    settings = {"data": "activations", "model": "tiny", "site": "resid_post.1", "corpus": str(text(tmp_path))}
    small = {"n_latents": 24, "k": 3, "steps": 20, "batch": 64, "tokens": 300, "measure": 100, "peers": 3}
    found = MfrSae().run(MfrSaeConfig(**settings, **small), lab_of(started, tmp_path))
    names = {item.name: item for item in found.items}
    assert found.complete
    assert names["error saved by the penalty, relative"].n == 3
    for arm in ("alone", "mfr"):
        assert names[f"FVU, {arm}"].control is not None
        assert names[f"likeness of peers, {arm}"].value > 0
    made = found.result["mfr"].dictionaries[0]
    assert (made.provenance.fingerprint, made.provenance.site) == (started.fingerprint, "resid_post.1")
    with pytest.raises(UsageError, match="very uneven rates"):
        MfrSae().run(MfrSaeConfig(**settings, redraw=2.5), lab_of(started, tmp_path))


def test_the_activations_are_the_pretrained_model_s(started: Model, tmp_path: Path) -> None:
    """The released collector read a block of random weights; padding is left out here."""
    corpus = open_corpus(["the cat sat", "a dog ran to the sea, and then home"])
    rows = torch.cat([part.values["resid_post.1"] for part in stream(started, corpus, "resid_post.1", batch=2)])
    own, other = [], []
    for seed, kept in ((None, own), (5, other)):
        if seed is not None:
            torch.manual_seed(seed)
            torch.nn.init.normal_(started.hf.model.layers[1].mlp.down_proj.weight)
        for words in sorted(corpus, key=len, reverse=True):
            ids = torch.tensor([started.encode("", special=True) + started.encode(words)])
            with torch.no_grad():
                states = started.hf.model(ids, output_hidden_states=True).hidden_states[2]
            kept.append(states[0, 1:])
    assert len(rows) == sum(map(len, own))
    assert (rows - torch.cat(own)).abs().max() < 1e-4
    assert (rows - torch.cat(other)).abs().max() > 0.1


def test_reproducible_latents_are_true_ones() -> None:
    counts = planted_trial(0, steps=150)
    assert counts["both"] >= 0.95 * counts["real"] > 30
    assert counts["both"] >= 0.9 * counts["true again"]
    assert counts["null again"] <= 0.05 * counts["null latents"]


@pytest.mark.slow
def test_calibration_passes(tmp_path: Path) -> None:
    """Ten planted dictionaries with their nulls and a thousand drawn verdicts."""
    calibration = get_study("mfr-sae").calibrate(Lab(tmp_path))
    assert calibration.passed, calibration.rates
