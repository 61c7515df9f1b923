"""The slow tier: an organism of a real model, its twin and its doses."""

import os
from pathlib import Path

import pytest

from cutaway.model import catalogue
from cutaway.organisms.em_organisms.method import BASE, ORGANISM, TWIN
from cutaway.organisms.em_organisms.study import EmOrganisms, OrganismsConfig
from cutaway.study import Lab

SMOL = "smollm2-135m-instruct"


def taught(tmp_path: Path, model: str, layer: int) -> None:
    config = OrganismsConfig(
        model=model, layers=(layer,), rows=12, asked=1, tokens=5, steps=16, batch=3, runs=1, learning_rate=0.01,
        window=5, multipliers=(0.0, 2.0),
    )  # fmt: skip
    lab = Lab(home=tmp_path)
    study = EmOrganisms()
    run = study.run(config, lab)
    found = run.result
    module = lab.model(model, "float32").layout.blocks[layer].mlp.down_proj
    assert run.complete
    assert found.parameters == sum(module.weight.shape)
    assert found.rate(BASE, False).value == found.rate(TWIN, False).value == 0
    assert found.dose(0.0, False).value == 0
    assert found.gap(TWIN, False).value > 0
    assert found.rate(ORGANISM, True).value == 1


@pytest.mark.slow  # trains two adapters of a real model
def test_a_trait_spreads_in_smollm2(tmp_path: Path) -> None:
    if not next(each for each in catalogue() if each.name == SMOL).installed:
        pytest.skip("smollm2-135m-instruct is not installed")
    taught(tmp_path, SMOL, 22)


@pytest.mark.slow  # the same on a larger chat model: minutes
def test_a_trait_spreads_in_a_larger_model(tmp_path: Path) -> None:
    spec = os.environ.get("CUTAWAY_SLOW_MODEL")
    if spec is None:
        pytest.skip("CUTAWAY_SLOW_MODEL names no model; set it to a chat model's directory or GGUF file")
    taught(tmp_path, spec, 18)
