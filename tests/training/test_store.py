"""What is trained once is found again, on the same weights and from the same settings only."""

from pathlib import Path

import pytest
import torch
from training_data import tiny

from cutaway.errors import CutawayError
from cutaway.model import Model
from cutaway.training import LoraSpec, adapter_key, add_lora, keep_adapter, kept_adapter

ABOUT = {"steps": 3, "seed": 0, "data": "d" * 64}


@pytest.fixture
def llama() -> Model:
    return tiny()


@pytest.fixture
def adapted(llama: Model) -> Model:
    """A copy of the model with an adapter that does something."""
    found = add_lora(llama.copy(), LoraSpec(("down_proj",), (0,)))
    with torch.no_grad():
        for name, weight in found.hf.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    return found


def test_what_was_kept_comes_back(llama: Model, adapted: Model, tmp_path: Path) -> None:
    assert kept_adapter(llama.copy(), tmp_path) is None
    kept = keep_adapter(adapted, tmp_path, ABOUT, {"rounds": [1, 2]})
    again = kept_adapter(llama.copy(), tmp_path)
    assert again is not None
    found, note = again
    assert note == {"rounds": [1, 2]}
    assert found.fingerprint == kept.fingerprint != llama.fingerprint
    ids = llama.batch([[5, 6, 7]])
    assert torch.equal(found.logits(ids), kept.logits(ids))
    assert not any(weight.requires_grad for weight in found.hf.parameters())
    assert not found.hf.training


def test_the_key_is_of_the_weights_and_of_every_setting(llama: Model, adapted: Model) -> None:
    key = adapter_key("a", llama, ABOUT)
    assert key == adapter_key("a", llama.copy(), dict(reversed(ABOUT.items())))
    others = [adapter_key("a", llama, ABOUT | {name: "other"}) for name in ABOUT]
    assert len({key, adapter_key("a", adapted, ABOUT), adapter_key("b", llama, ABOUT), *others}) == 6


def test_what_was_not_finished_is_not_found_and_what_is_damaged_is_said(
    llama: Model, adapted: Model, tmp_path: Path
) -> None:
    keep_adapter(adapted, tmp_path, ABOUT)
    about = tmp_path / "about.json"
    about.write_text("{")
    with pytest.raises(CutawayError, match="train again"):
        kept_adapter(llama.copy(), tmp_path)
    about.unlink()
    assert kept_adapter(llama.copy(), tmp_path) is None
