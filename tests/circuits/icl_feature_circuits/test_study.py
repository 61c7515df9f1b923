import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.circuits.counts import Counts
from cutaway.circuits.icl_feature_circuits.calibration import ASKED, trial
from cutaway.circuits.icl_feature_circuits.data import ARROW
from cutaway.circuits.icl_feature_circuits.dictionaries import Recipe, texts
from cutaway.circuits.icl_feature_circuits.study import FeatureConfig
from cutaway.circuits.icl_feature_circuits.words import NOUNS
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer
from cutaway.study import Lab, get_study

SMALL = {
    "model": "tiny",
    "tasks": "first,last,next letter,plural",
    "shots": 3,
    "prompts": 3,
    "queries": 4,
    "least": 0.0,
    "penalties": "0.001,0.05",
    "steps": 6,
    "n_latents": 32,
    "k": 4,
    "tokens": 1000,
    "passes": 2,
    "levels": 3,
    "graphs": 1,
}


@pytest.fixture(scope="module")
def tiny() -> Model:
    words = (" the", " pattern", ARROW, *NOUNS, *(f" {noun}" for noun in NOUNS))
    tokenizer = word_tokenizer(("Follow", *(word for word in words if len(word) > 1)))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        hf = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Model(hf, tokenizer, "tiny")


@pytest.fixture
def lab(tiny, tmp_path) -> Lab:
    made = Lab(home=tmp_path)
    made._models[("tiny", "float32")] = tiny
    return made


def test_a_whole_run_says_everything_with_its_control(lab) -> None:
    study = get_study("icl-feature-circuits")
    found = study.run(FeatureConfig(**SMALL), lab)
    names = {item.name: item for item in found.items}
    assert found.complete
    assert names["first: loss with task vector"].control.name == "no vector"
    assert names["first: cleaned against raw vector"].n == 4
    # Answers of several tokens are left out, and too few of them are left.
    assert names["plural: pairs"].value < 5
    assert "pairs leave" in names["plural: task vector"].undefined
    for kind in ("no vector", "task vector", "reconstruction", "pursuit 5", "cleaned 0.05", "random atoms"):
        assert names[f"last: loss with {kind}"].n == 4
        assert names[f"last: accuracy with {kind}"].low is not None
    assert sum("Pareto" in chart.title or "atoms against" in chart.title for chart in found.charts) >= 2
    assert any(chart.title == "Steering by one feature" for chart in found.charts) or found.result.steering is None
    content = json.loads(found.artifacts["feature_circuits.json"])
    assert {task["task"] for task in content["tasks"]} <= {"first", "last", "next letter"}
    splits = json.loads(found.artifacts["pairs.json"])
    for parts in splits:
        shown = {x for x, _ in (*parts["shots"], *parts["fit"])}
        assert not shown & {x for x, _ in parts["held"]}
    assert list((lab.home / "dictionaries").glob("*/resid_pre.*/dictionary.json"))


def test_the_same_dictionaries_are_trained_once(lab) -> None:
    study = get_study("icl-feature-circuits")
    config = FeatureConfig(**{**SMALL, "tasks": "first", "layer": 2, "graphs": 0})
    first = study.run(config, lab)
    stamp = {path: path.stat().st_mtime_ns for path in lab.home.rglob("dictionary.json")}
    second = study.run(config, lab)
    assert {path: path.stat().st_mtime_ns for path in lab.home.rglob("dictionary.json")} == stamp
    assert first.items == second.items


def test_ctrl_c_keeps_what_was_measured(lab) -> None:
    def stop(progress) -> None:
        if "cleaning" in progress.note and "last" in progress.note:
            raise KeyboardInterrupt

    lab.progress = stop
    found = get_study("icl-feature-circuits").run(FeatureConfig(**{**SMALL, "tasks": "first,last"}), lab)
    assert not found.complete
    assert "not complete" in found.summary
    assert {"first: L0 fraction", "last: accuracy with examples"} <= {item.name for item in found.items}


def test_bad_settings_are_named(lab) -> None:
    for changed, message in (
        ({"tasks": "plurals"}, "did you mean"),
        ({"tasks": ","}, "at least one"),
        ({"penalties": "-1"}, "0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureConfig(**{**SMALL, **changed})
    with pytest.raises(UsageError, match="layer=9"):
        get_study("icl-feature-circuits").run(FeatureConfig(**{**SMALL, "layer": 9}), lab)


def test_held_out_queries_are_not_in_the_dictionaries_texts(tiny) -> None:
    from cutaway.circuits.icl_feature_circuits.data import split
    from cutaway.circuits.icl_feature_circuits.words import task

    parts = split(task("first"), 4, queries=40)
    rows = texts(tiny, [parts], Recipe(tokens=3000, shots=6, plain=0.2))
    shown = "\n".join(tiny.decode(row) for row in rows)
    assert "->" in shown
    assert not any(f"\n{x} ->" in shown for x, _ in parts.held)
    with pytest.raises(UsageError, match="Recipe"):
        Recipe(passes=0)


@pytest.mark.slow
def test_one_calibration_trial_meets_every_rate() -> None:
    """Slow: two models with their circuits, 12 to 28 s."""
    counts = Counts(ASKED)
    trial(0, counts)
    failed = [rate for rate in counts.rates() if not rate.passed]
    assert failed == []


@pytest.mark.slow
def test_calibration_passes() -> None:
    """Slow: eight planted and eight null models."""
    found = get_study("icl-feature-circuits").calibrate(Lab())
    assert found.passed, [rate for rate in found.rates if not rate.passed]
