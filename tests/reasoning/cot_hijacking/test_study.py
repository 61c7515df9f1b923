"""The study: config, a whole run on a planted model saved to disk, findings that say what is undefined."""

import json
from pathlib import Path

import pytest
from asked import planted
from pydantic import ValidationError

from cutaway.charts import Heat, charts_from_json
from cutaway.reasoning.cot_hijacking import method as method_module
from cutaway.reasoning.cot_hijacking.data import COLUMNS
from cutaway.reasoning.cot_hijacking.study import CotHijacking, CotHijackingConfig
from cutaway.study import Findings, Lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted")
    each = planted("length", seed=3)
    each.model.hf.save_pretrained(path / "model")
    each.model.tokenizer.save_pretrained(path / "model")
    pairs = zip(each.requests(forbidden=True), each.requests(forbidden=False), strict=True)
    rows = [f"g{i},law,{bad},{good}" for i, (bad, good) in enumerate(pairs)]
    (path / "requests.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def run(folder: Path, **settings: object) -> Findings:
    config = CotHijackingConfig(
        model=str(folder / "model"),
        requests=str(folder / "requests.csv"),
        goals=12,
        family="ledger",
        max_tokens=4,
        heads=3,
        sets=40,
        few=3,
        **{"lengths": (0, 60, 300), **settings},  # type: ignore[arg-type]
    )
    return CotHijacking().run(config, Lab(home=folder / "home"))


def test_a_run_on_a_planted_model(folder: Path) -> None:
    found = run(folder)
    names = [item.name for item in found.items]
    assert names[0] == "refusal of the bare request"
    assert found.items[0].value == 1
    assert found.items[0].control is not None
    assert found.items[0].control.value == 0
    assert "a length effect" in found.summary
    assert "confounded" not in found.summary
    by_name = {item.name: item for item in found.items}
    assert by_name["refusal after 300 tokens, puzzle"].control is not None
    success = by_name["attack success after the longest preamble"]
    assert success.value == 1 - by_name["refusal after 300 tokens, puzzle"].value
    assert success.control.value == 0
    assert by_name["ways in which the length effect is confounded"].value == 0
    assert by_name["refused told from answered by r, bare requests (AUC)"].undefined
    charts = charts_from_json(found.artifacts["charts.json"])
    assert [type(chart) is Heat for chart in charts] == [False, True, False]
    kept = json.loads(found.artifacts["cot_hijacking.json"])
    assert "cannot help" not in json.dumps(kept)
    assert {row["outcome"] for row in kept["measured"]["trials"]} == {"refuse", "comply"}
    assert kept["inside"]["lengths"] == [0, 60, 300]
    assert sorted(key.split(":")[0] for key in found.inputs) == ["data", "weights"]
    # openings of English refusals are no tokens of this model's answers, so the readout stays silent
    assert by_name["share of lost refusal restored"].undefined


def test_an_interrupt_inside_keeps_what_was_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(method_module, "fit_direction", stop)
    found = run(folder)
    assert not found.complete
    assert found.items[0].value == 1
    assert found.result[2] is None


def test_a_run_without_a_control_says_so(folder: Path) -> None:
    found = run(folder, control=False, inside=False, cue=True, lengths=(0, 60))
    assert "length effect confounded" in found.summary
    by_name = {item.name: item for item in found.items}
    assert by_name["ways in which the length effect is confounded"].value == 1
    assert by_name["refusal, preamble minus length-matched control"].undefined == "no control was run"
    assert len(charts_from_json(found.artifacts["charts.json"])) == 1


def test_configs_that_contradict_themselves() -> None:
    assert CotHijackingConfig(lengths=(512, 0)).lengths == (0, 512)
    for wrong in ({"lengths": (128, 512)}, {"lengths": (0,)}, {"runs": 3}, {"goals": 2}, {"colour": 1}):
        with pytest.raises(ValidationError):
            CotHijackingConfig(**wrong)  # type: ignore[arg-type]


def test_calibration_on_one_seed() -> None:
    found = CotHijacking().calibrate(Lab(), trials=1)
    assert {rate.name: rate.passed for rate in found.rates} == {rate.name: True for rate in found.rates}
    assert len(found.rates) == 8


@pytest.mark.slow  # the default number of planted models takes minutes
def test_calibration() -> None:
    found = CotHijacking().calibrate(Lab())
    assert found.passed, [(rate.name, rate.hits, rate.trials) for rate in found.rates]
