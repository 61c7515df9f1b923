"""Scores against hand counts and scikit-learn, look-ups, complexity, the study on a model and on nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cutaway.errors import UsageError
from cutaway.features.neuron2graph import judge, lookups, score
from cutaway.features.neuron2graph.calibration import planted
from cutaway.features.neuron2graph.scores import average_precision
from cutaway.features.neuron2graph.study import NeuronToGraph, NeuronToGraphConfig
from cutaway.features.neuron2graph.survey import unit_named
from cutaway.model import Model
from cutaway.planted.rules import rule
from cutaway.study import Lab


def test_scores_are_those_counted_by_hand() -> None:
    found = score("x", [0.9, 0.6, 0.1, 0.0, 0.5], [1.0, 0.0, 0.7, 0.1, 0.5])
    assert (found.tokens, found.fires, found.predicted) == (5, 3, 3)
    assert (found.precision, found.recall, found.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (found.quiet_precision, found.quiet_recall) == (0.5, 0.5)
    assert found.base_rate == 0.6
    nothing = score("x", [0.9, 0.1], [0.0, 0.0])
    assert math.isnan(nothing.f1)
    assert math.isnan(nothing.pr_auc)
    assert math.isnan(nothing.correlation)
    assert nothing.to_dict()["f1"] is None


def test_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        guess, fires = rng.integers(0, 5, 60) / 4, rng.random(60) < 0.3
        assert average_precision(guess, fires) == pytest.approx(average_precision_score(fires, guess))


def test_lookups_know_single_tokens_and_pairs() -> None:
    def spell(token: int) -> str:
        return " " + "abc"[token]

    made = lookups([([0, 1, 2, 1], [0.0, 1.0, 0.0, 0.5])], spell)
    assert made["token look-up, mean"]([" b", " z"]) == [0.75, 0.0]
    assert made["token look-up, largest"]([" b"]) == [1.0]
    assert made["pair look-up"]([" b", " a", " b", " b"]) == [0.75, 0.0, 1.0, 0.75]
    assert judge(made, [([0, 1], [0.0, 1.0])], spell)["pair look-up"].f1 == 1.0


def test_few_patterns_are_worth_less() -> None:
    curve = planted(rule("within"), 0, rows=80).curve
    assert [n for n, _ in curve] == [1, 2, 4, 5]
    f1 = [value for _, value in curve]
    assert f1 == sorted(f1)
    assert f1[0] < 0.6 < f1[-1]


@pytest.fixture
def lab(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path)
    monkeypatch.setattr(lab, "model", lambda *_: model)
    return lab


def config(tmp_path: Path, **rest: object) -> NeuronToGraphConfig:
    path = tmp_path / "text.jsonl"
    words = ["the cat sat on a mat", "dogs bark at the moon", "nine birds sing", "the end of it all", "a bee hums"]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.permutation(words)) for _ in range(12)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    base = {"corpus": str(path), "windows": 10, "length": 24, "snippets": 4, "start": "none", "fillers": "id:40"}
    return NeuronToGraphConfig(**{**base, "layers": (1,), "per_round": 2, **rest})  # type: ignore[arg-type]


def test_the_study_reports_both_kinds_of_text_beside_look_ups(lab: Lab, tmp_path: Path) -> None:
    findings = NeuronToGraph().run(config(tmp_path, units=("neurons.1.3", "-neurons.1.3", "z.2.1")), lab)
    items = {item.name: item for item in findings.items}
    for where in ("own snippets", "other text"):
        assert items[f"base rate, {where}"].value is not None
        f1 = items[f"F1, {where}"]
        assert f1.control is not None
        assert "look-up" in f1.control.name
        assert any(name.startswith(f"F1, {where}, minus") for name in items)
    assert items["units that never fire"].value == 0
    assert {"neurons.1.3.svg", "minus-neurons.1.3.svg", "z.2.1.svg", "graphs.jsonl", "charts.json"} == set(
        findings.artifacts
    )
    lines = [json.loads(line) for line in findings.artifacts["graphs.jsonl"].decode().splitlines()]
    assert [line["name"] for line in lines] == ["neurons.1.3", "-neurons.1.3", "z.2.1"]
    assert findings.complete
    drawn = NeuronToGraph().run(config(tmp_path, paper="2305.19911", substitutes="nearest"), lab)
    assert len([name for name in drawn.artifacts if name.endswith(".svg")]) == 2


def test_a_unit_that_never_fires_is_reported_as_such(lab: Lab, tmp_path: Path, model: Model) -> None:
    model.layout.blocks[1].mlp.up_proj.weight.data[3] = 0.0  # type: ignore[union-attr,index]
    findings = NeuronToGraph().run(config(tmp_path, units=("neurons.1.3",)), lab)
    items = {item.name: item for item in findings.items}
    assert items["units that never fire"].value == 1
    assert items["F1, other text, neurons.1.3"].undefined.startswith("never above 0")
    assert items["F1, other text"].value is None
    assert findings.charts == ()


@pytest.mark.slow  # a minute of hashing for the coin; the quick tier fits each rule once in test_method
def test_calibration_passes() -> None:
    done = NeuronToGraph().calibrate(Lab(), trials=1)
    assert done.passed
    assert {rate.name for rate in done.rates} >= {"patterns exact", "fire predicted from noise", "silence seen"}


def test_names_of_units(model: Model) -> None:
    assert unit_named(model, "-neurons.1.2").name == "-neurons.1.2"
    for name, message in (
        ("neuron.1.2", "did you mean|write neurons"),
        ("neurons.x.2", "numbers after"),
        ("latent.3", "name a dictionary"),
    ):
        with pytest.raises(UsageError, match=message):
            unit_named(model, name)
