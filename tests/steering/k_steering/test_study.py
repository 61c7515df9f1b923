"""The study from its configuration to its findings, on a tiny model that speaks; bad settings; the data."""

import json
from pathlib import Path

import pytest

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer
from cutaway.planted.null import null_model
from cutaway.steering.k_steering.data import default_instructions, questions, read_instructions
from cutaway.steering.k_steering.study import KSteering, KSteeringConfig
from cutaway.study import Lab, get_study

FEW = {"fit": 8, "choose": 2, "measure": 4, "tokens": 4, "randoms": 1, "halvings": 0, "epochs": 2, "hidden": 8}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Models of random weights that read characters; the lab hands one out for every spec."""
    planted = null_model(seed=1).model
    assert isinstance(planted, Model)
    found = Lab(home=tmp_path)
    found._models["tiny", "float32"] = Model(planted.hf, planted.tokenizer, name="tiny")
    return found


def instructions(folder: Path) -> str:
    path = folder / "styles.json"
    path.write_text(json.dumps({"tones": {"concise": " snow.", "casual": " lamp.", "expert": " tree."}}))
    return str(path)


def test_run_end_to_end_and_again_from_what_was_kept(lab: Lab, tmp_path: Path) -> None:
    config = KSteeringConfig(
        model="tiny",
        instructions=instructions(tmp_path),
        layer=0,
        held_layer=1,
        **FEW,  # type: ignore[arg-type]
    )
    study = get_study("k-steering")
    found = study.run(config, lab)
    assert found.complete
    names = [item.name for item in found.items]
    assert "accuracy, steering classifier" in names
    assert "words, instruction, relative change" in names
    assert any(name.startswith("both rank highest, concise + casual") for name in names)
    assert {"k-steering.json", "charts.json"} <= set(found.artifacts)
    assert set(found.inputs) == {"weights:tiny", "data:instructions"}
    again = study.run(config, lab)
    assert [item.to_dict() for item in again.items] == [item.to_dict() for item in found.items]


def test_ctrl_c_gives_what_is_known(lab: Lab, tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    lab.progress = stop
    config = KSteeringConfig(
        model="tiny",
        instructions=instructions(tmp_path),
        layer=0,
        held_layer=1,
        **FEW,  # type: ignore[arg-type]
    )
    found = KSteering().run(config, lab)
    assert not found.complete
    assert found.items[0].undefined


def test_bad_settings(lab: Lab, tmp_path: Path) -> None:
    path = instructions(tmp_path)
    cases: list[tuple[dict[str, object], str]] = [
        ({"target": "concize"}, "did you mean 'concise'"),
        ({"target": "concise", "avoid": ("concise",)}, "keep one"),
        ({"layer": 2, "held_layer": 1}, "not before layer"),
        ({"held_layer": 99}, "the model has layers 0..2"),
        ({"fit": 10_000}, "fit=10000"),
        ({"group": "tunes"}, "did you mean 'tones'"),
    ]
    for given, message in cases:
        config = KSteeringConfig(**{"model": "tiny", "instructions": path, "layer": 0, "held_layer": 1, **given})
        with pytest.raises(UsageError, match=message):
            KSteering().run(config, lab)


def test_questions_share_no_topic_between_parts() -> None:
    found = questions(60, 12, 40, seed=1)
    topics = [{each.topic for each in part} for part in (found.fit, found.choose, found.measure)]
    assert all(not topics[i] & topics[j] for i in range(3) for j in range(i))
    assert questions(60, 12, 40, seed=1) == found
    assert questions(60, 12, 40, seed=2) != found
    assert (len(found.fit), len(found.choose), len(found.measure)) == (60, 12, 40)


def test_published_instructions_are_read() -> None:
    tones, sha = read_instructions(default_instructions())
    assert list(tones) == ["expert", "cautious", "empathetic", "casual", "concise"]
    assert len(sha) == 64
    assert len(read_instructions(default_instructions(), "debates")[0]) == 10


def test_bad_instruction_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, message in (("no", "is no JSON"), ('{"tones": {"a": "x"}}', "two or more"), ("[]", "group='tones'")):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            read_instructions(path)
    with pytest.raises(UsageError, match="no such file"):
        read_instructions(tmp_path / "none.json")
    assert word_tokenizer((" a",)).encode(" a")
