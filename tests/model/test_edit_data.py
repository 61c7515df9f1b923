"""Edits are data: they print, compare, hash, save and come back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cutaway.errors import CutawayError
from cutaway.model import (
    Add,
    AttentionBias,
    AttentionMask,
    Edit,
    Mask,
    Model,
    Patch,
    Project,
    Replace,
    Scale,
    load_edits,
    save_edits,
)


def some() -> list[Edit]:
    torch.manual_seed(0)
    return [
        Add("resid_post.*", torch.randn(32), 2.5, positions=[1, 2]),
        Project("resid_pre.1", torch.randn(2, 32, dtype=torch.float64), keep=True),
        Replace("z.1.0", torch.randn(8).bfloat16(), positions=slice(2, None)),
        Scale("neurons.0", 0.5),
        Scale("neurons.0", torch.randn(48), positions="last"),
        Mask("z.0", [1, 3]),
        AttentionMask(layer=1, queries=slice(3, None), keys=[0, 1], heads=2),
        AttentionBias(0.7, layer="*", queries="last", keys=slice(1, 3)),
        Patch("resid_mid.2", torch.randn(1, 4, 32)),
    ]


def test_round_trip(tmp_path: Path) -> None:
    save_edits(some(), tmp_path / "edits.safetensors")
    back = load_edits(tmp_path / "edits.safetensors")
    assert back == some()
    assert [edit.digest for edit in back] == [edit.digest for edit in some()]
    save_edits([Mask("z.0")], tmp_path / "plain.safetensors")
    assert load_edits(tmp_path / "plain.safetensors") == [Mask("z.0")]


def test_saved_edits_do_the_same(llama: Model, tmp_path: Path, rows: list[list[int]]) -> None:
    save_edits(some(), tmp_path / "edits.safetensors")
    batch = llama.batch(rows)
    with llama.edited(*some()):
        expected = llama.logits(batch)
    with llama.edited(*load_edits(tmp_path / "edits.safetensors")):
        assert torch.equal(llama.logits(batch), expected)


def test_dicts_are_json_and_digests_tell_edits_apart() -> None:
    edits = some()
    assert json.loads(json.dumps([edit.to_dict() for edit in edits]))[0]["edit"] == "Add"
    assert len({edit.digest for edit in edits}) == len(edits)
    assert len({*edits, *some()}) == len(edits)
    ones = torch.ones(4)
    assert Add("embed", ones).digest != Add("embed", ones * 2).digest
    assert Add("embed", ones).digest != Add("embed", ones.double()).digest
    assert Add("embed", ones).digest != Add("embed", ones.reshape(2, 2)).digest
    assert Add("embed", ones, positions=1) == Add("embed", ones, positions=[1])
    assert Add("embed", ones) != Replace("embed", ones)
    assert repr(Mask("z.0", 1)) == "Mask(site='z.0', index=(1,))"


def test_files_of_another_kind(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CutawayError, match="not a file of edits"):
        load_edits(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(CutawayError, match="not a file of edits"):
        load_edits(tmp_path / "broken.safetensors")
