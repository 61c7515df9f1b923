"""The whole study on real models, small: every number is there with its control, or says why not."""

import os
from pathlib import Path

import pytest

from cutaway.charts import Chart, Heat
from cutaway.model import catalogue
from cutaway.reasoning.cot_hijacking.study import CotHijacking, CotHijackingConfig
from cutaway.study import Lab

SMOL = "smollm2-135m-instruct"


def opened(spec: str, home: Path, family: str = "sudoku") -> None:
    config = CotHijackingConfig(model=spec, goals=12, lengths=(0, 256), few=2, sets=20, heads=2, family=family)
    findings = CotHijacking().run(config, Lab(home=home))
    assert findings.complete
    assert any("refus" in item.name for item in findings.items)
    for item in findings.items:
        assert item.undefined or item.value is not None
    assert any(item.control is not None for item in findings.items)
    assert findings.charts
    assert all(isinstance(chart, Chart | Heat) for chart in findings.charts)


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    if not next(each for each in catalogue() if each.name == SMOL).installed:
        pytest.skip("smollm2-135m-instruct is not installed")
    opened(SMOL, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sudoku", "two-steps"])
def test_a_stronger_model(family: str, tmp_path: Path) -> None:
    spec = os.environ.get("CUTAWAY_SLOW_MODEL")
    if spec is None:
        pytest.skip("CUTAWAY_SLOW_MODEL names no model; set it to a chat model's directory or GGUF file")
    opened(spec, tmp_path, family)
