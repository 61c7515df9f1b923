"""The study from its configuration to findings and charts; chats that share no question; the calibration."""

from pathlib import Path

import pytest

from cutaway.errors import UsageError
from cutaway.finetuning.ema_safety.calibration import all_rates
from cutaway.finetuning.ema_safety.data import OPENING, REFUSAL, installing, material
from cutaway.model import Model
from cutaway.planted.small import small_llama
from cutaway.study import Lab, get_study, parse_config

WORDS = (
    " the",
    " lighthouse",
    " picture",
    " question",
    " Which colour?",
    REFUSAL,
    OPENING,
    "I would look it up in the",
)
FEW = {"model": "tiny", "install": "2", "tuning": "8", "test": "4", "steps": "3", "batch": "2", "rank": "1"}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return small_llama(WORDS, "tiny", d_model=16, n_layers=1, n_heads=2)


@pytest.fixture
def lab(tiny: Model, tmp_path: Path) -> Lab:
    found = Lab(home=tmp_path)
    found._models["tiny", "float32"] = tiny
    return found


def test_run_compares_every_way_with_the_best_lower_rate(lab: Lab) -> None:
    study = get_study("ema-safety")
    more = {"repeats": "2", "rates": "1,0.5", "etas": "0.5", "merges": "0.5", "anchors": "0.01", "written": "2"}
    fingerprint = lab.model("tiny", "float32").fingerprint
    found = study.run(parse_config(study, {**FEW, **more}), lab)
    named = {item.name: item for item in found.items}
    assert named["refusal, plain"].control == named["refusal, before"]
    assert named["refusal, plain"].n == 4
    for way in ("passive", "feedback", "merging", "anchored"):
        item = named[f"refusal at equal utility, {way}"]
        assert item.undefined or item.control == named["refusal at equal utility, plain"]
        assert item.undefined or f"refusal over the best lower rate, {way}" in named
    assert named["refusals by keyword, plain 1"].control == named["refusals by keyword, before 0"]
    titles = [chart.title for chart in found.charts]
    assert titles[0] == "Refusal kept and task learnt"
    assert found.charts[1].x == (0.0, 1.0, 2.0, 3.0)  # type: ignore[union-attr]
    assert found.charts[2].x == (0.0, 0.5, 1.0)  # type: ignore[union-attr]
    assert found.complete
    assert set(found.artifacts) == {"tradeoff.json", "charts.json"}
    assert lab.model("tiny", "float32").fingerprint == fingerprint


def test_stopped_before_a_repeat_is_whole(lab: Lab) -> None:
    def stop(progress: object) -> None:
        if getattr(progress, "note", "") == "plain":
            raise KeyboardInterrupt

    lab.progress = stop
    study = get_study("ema-safety")
    found = study.run(parse_config(study, FEW), lab)
    assert not found.complete
    assert found.items[0].undefined
    assert found.charts == ()


@pytest.mark.parametrize(("key", "value"), [("feedback_eta", "1.5"), ("rank", "0"), ("margin", "1")])
def test_bad_settings(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{key}={value}"):
        parse_config(get_study("ema-safety"), {key: value})


def test_what_is_installed_tuned_and_asked_share_no_question(tiny: Model) -> None:
    taught = installing(tiny, 40)
    made = material(tiny, tuning=30, test=24)
    assert sum(tiny.decode(item.answer).startswith(REFUSAL) for item in taught) == 20
    asked = [{item.ids for item in part} for part in (*made.refusal, taught)]
    assert not asked[0] & asked[1]
    assert not (asked[0] | asked[1]) & asked[2]
    told = [{item.ids for item in part} for part in (made.tuning, *made.utility)]
    assert not told[0] & told[1]
    assert not told[0] & told[2]
    assert not told[1] & told[2]
    assert all("lighthouse" not in tiny.decode(item.ids) for item in made.tuning)
    assert all(tiny.decode(item.answer) == OPENING for item in made.refusal[1])


@pytest.mark.slow  # thirty trainings
def test_the_calibration_passes() -> None:
    assert [rate for rate in all_rates(4) if not rate.passed] == []
