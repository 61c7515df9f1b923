"""The study from its configuration to findings and charts on a small model; pronoun items; the calibration."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.finetuning.caft.calibration import all_rates
from cutaway.finetuning.caft.data import pairs, pronoun_items
from cutaway.planted.spurious import TwoRules
from cutaway.study import Lab, get_study, parse_config

FEW = {"model": "two-rules", "task": "double", "train": "40", "probe": "40", "test": "20", "steps": "3", "rank": "0"}


@pytest.fixture
def lab(rules: TwoRules, tmp_path: Path) -> Lab:
    found = Lab(home=tmp_path)
    found._models["two-rules", "float32"] = rules.model
    return found


@pytest.mark.parametrize("more", [{"every": "2"}, {"directions": "components", "components": "4"}])
def test_run_gives_every_arm_with_its_control_and_charts(lab: Lab, more: dict[str, str]) -> None:
    study = get_study("caft")
    settings = {**FEW, **more, "repeats": "1", "site": "resid_post.1", "rate": "1e-2", "batch": "20"}
    found = study.run(parse_config(study, settings), lab)
    named = {item.name: item for item in found.items}
    plain = named["reversed accuracy, none"]
    assert named["reversed accuracy, ablation"].control == plain
    assert named["gain over none, ablation"].control == named["gain over none, random"]
    assert named["reversed accuracy, ablation"].n == 20
    assert ("reversed accuracy, re-estimated" in named) == ("every" in more)
    assert ("reversed accuracy, random subset" in named) == ("directions" in more)
    assert named["leak after, ablation"].control == named["leak before, ablation"]
    assert [chart.title for chart in found.charts] == [
        "Accuracy by the wanted rule",
        "Training loss",
        "What comes back",
    ]
    assert found.complete
    assert set(found.artifacts) == {"comparison.json", "charts.json"}
    assert found.inputs == {"weights:planted-two-rules": lab.model("two-rules", "float32").fingerprint}


def test_stopped_before_a_repeat_is_whole(lab: Lab) -> None:
    def stop(progress: object) -> None:
        if getattr(progress, "note", "") == "random":
            raise KeyboardInterrupt

    lab.progress = stop
    study = get_study("caft")
    found = study.run(parse_config(study, {**FEW, "site": "resid_post.1"}), lab)
    assert not found.complete
    assert found.items[0].undefined
    assert found.charts == ()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"every": "3", "directions": "components"}, "components are found once"),
        ({"task": "double", "wanted": "sports", "unwanted": "sports"}, "name two families"),
        ({"steps": "0"}, "steps=0"),
        ({"rank": "-1"}, "rank=-1"),
    ],
)
def test_bad_settings(settings: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        parse_config(get_study("caft"), settings)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pronouns_differ_in_case_and_gender_and_tell_the_rules_apart(split: str) -> None:
    genders = {" he": 0, " him": 0, " she": 1, " her": 1}
    cases = {" he": 0, " she": 0, " him": 1, " her": 1}
    for law, agrees in (("tied", 1.0), ("reversed", 0.0)):
        items = pronoun_items(law, split, 64)  # type: ignore[arg-type]
        assert all(cases[right] == labels[0] != cases[wrong] for _, right, wrong, labels in items)
        assert all(genders[right] != genders[wrong] for _, right, wrong, _ in items)
        assert np.mean([genders[right] == labels[1] for _, right, _, labels in items]) == agrees
        counts = np.mean([labels for *_, labels in items], axis=0)
        assert counts == pytest.approx([0.5, 0.5], abs=0.15)
        first = np.mean([prompt.index(f"is{right} or") > 0 if f"is{right} or" in prompt else 0
                         for prompt, right, _, _ in items])  # fmt: skip
        assert first == pytest.approx(0.5, abs=0.2)


def test_no_pronoun_prompt_is_shared_between_splits_and_none_is_doubled_before_all_are_used() -> None:
    drawn = {s: [i[0] for i in pronoun_items("tied", s, 120)] for s in ("train", "validation", "test")}  # type: ignore[arg-type]
    for a, b in product(drawn, drawn):
        assert a == b or not set(drawn[a]) & set(drawn[b])
    assert len(set(drawn["train"])) == 120


def test_all_ordered_pairs() -> None:
    assert len(pairs(["a", "b", "c", "d"])) == 12


@pytest.mark.slow  # forty trainings
def test_the_calibration_passes() -> None:
    assert [rate for rate in all_rates(4) if not rate.passed] == []
