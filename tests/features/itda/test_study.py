"""The study end to end on a tiny model, and its calibration."""

from pathlib import Path

import pytest

from cutaway.errors import UsageError
from cutaway.features.itda.study import Itda, ItdaConfig, layer_matching, matched_layers, planted_trial
from cutaway.model import Model
from cutaway.study import Lab, get_study


def lab_of(model: Model, folder: Path) -> Lab:
    lab = Lab(folder)
    lab._models[("tiny", "auto")] = model
    return lab


def config(folder: Path, **changes: object) -> ItdaConfig:
    lines = ["the cat sat on a mat", "dogs bark at the moon", "nine birds sing", "the end of it all", "a cat ran"]
    path = folder / "text.jsonl"
    path.write_text("".join(f'{{"text": "{a} and {b}"}}\n' for a in lines for b in lines))
    settings = {"model": "tiny", "site": "resid_post.1", "corpus": str(path), "tokens": 400, "k": 6, "length": 32}
    return ItdaConfig(**{**settings, "cosine": 0.9, "max_atoms": 64, "measure": 100, **changes})


def test_a_run_builds_measures_and_compares(started: Model, tmp_path: Path) -> None:
    found = Itda().run(config(tmp_path), lab_of(started, tmp_path))
    names = {item.name: item for item in found.items}
    assert found.complete
    assert names["atoms"].value == found.result.dictionary.n_latents > 5
    assert names["FVU, ITDA"].value < 1
    assert names["FVU, ITDA"].control is not None
    assert "FVU, TopK trained for as long" in names
    assert {"atoms.jsonl", "evaluation.json", "charts.json"} <= set(found.artifacts)
    assert found.artifacts["atoms.jsonl"].count(b"\n") == names["atoms"].value
    (tmp_path / "few.txt").write_text("short")
    few = config(tmp_path, corpus=str(tmp_path / "few.txt"))
    with pytest.raises(UsageError, match="4 or more"):
        Itda().run(few, lab_of(started, tmp_path))


def test_planted_atoms_come_back_and_known_ones_are_not_added_again() -> None:
    found = planted_trial(0)
    assert found["found"] >= 0.95 * found["alone"] > 100
    assert (found["added"], found["new"]) == (20, 20)
    assert (found["familiar"], found["near"]) == (0, 0)


def test_planted_layers_are_matched_and_unrelated_ones_are_not() -> None:
    assert matched_layers(0) >= 22
    assert sum(matched_layers(seed, null=True) for seed in range(3)) <= 0.45 * 72


@pytest.mark.slow
def test_layers_of_five_tiny_seeds_are_matched_beside_every_comparator() -> None:
    """Trains five tiny models."""
    found = {each.name: each for each in layer_matching(5, lambda done, total, note: None)}
    # Above chance is a finding of the run, not a fact about four layers and a hundred thousand characters.
    assert set(found) == {"labels", "random labels", "CKA", "SVCCA", "relative"}
    assert all(each.with_self > each.accuracy.value for each in found.values() if each.accuracy.value < 1)


@pytest.mark.slow
def test_calibration_passes(tmp_path: Path) -> None:
    """Ten planted dictionaries and twenty sets of planted layers."""
    calibration = get_study("itda").calibrate(Lab(tmp_path))
    assert calibration.passed, calibration.rates
