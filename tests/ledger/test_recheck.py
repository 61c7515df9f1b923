"""Recheck names what changed, reruns from nothing, and its status follows from the findings alone."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutaway.errors import CutawayError
from cutaway.ledger import Change, Comparison, Ledger, Recheck, recheck, record
from cutaway.study import Finding, Lab

pytestmark = pytest.mark.usefixtures("dice")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Llama of one layer, saved to a directory."""
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(8)}, unk_token="w0"))
    folder = tmp_path / "tiny-llama"
    LlamaForCausalLM(shape).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


def _change_a_byte(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_changed_weights_are_named_and_stop_the_recheck(
    ledger: Ledger, make_config: Callable[..., Any], lab: Lab, tiny: Path
) -> None:
    run = record(ledger, "dice", make_config(model=str(tiny)), lab)
    assert recheck(ledger, run.id, lab).status == "reproduced"
    _change_a_byte(tiny)
    told = recheck(ledger, run.id[:6], lab)
    [change] = told.changes
    before = run.inputs["weights:tiny-llama"][:8]
    assert str(change) == f"weights of tiny-llama changed: {before} -> {change.after[:8]}"
    assert change.after[:8] != before
    assert (told.status, told.rerun, told.comparisons) == ("changed", None, ())
    assert len(ledger.runs()) == 2
    assert str(change) in str(told)
    anyway = recheck(ledger, run.id, lab, anyway=True)
    assert (anyway.status, anyway.changes) == ("reproduced", told.changes)


def test_an_unchanged_run_is_reproduced_without_reusing_rollouts(ledger: Ledger, config: Any, lab: Lab) -> None:
    record(ledger, "dice", config, lab)
    run = record(ledger, "dice", config, lab)
    assert run.summary.endswith("1 kept")
    told = recheck(ledger, run.id, lab)
    assert (told.status, told.changes) == ("reproduced", ())
    assert [each.verdict for each in told.comparisons] == ["identical"] * 3
    assert ledger.run(told.rerun or "").summary.endswith("0 kept")
    assert ledger.replications(run.id) == (told,)
    json.dumps(told.to_dict(), allow_nan=False)


def test_drift_within_the_interval_reproduces_and_beyond_it_does_not(
    ledger: Ledger, config: Any, lab: Lab, dice: Any
) -> None:
    run = record(ledger, "dice", config, lab)
    dice.drift = 0.25
    small = recheck(ledger, run.id, lab)
    verdicts = {each.name: each.verdict for each in small.comparisons}
    assert verdicts == {"mean": "within", "luck": "identical", "faces": "outside"}
    assert small.status == "not reproduced"
    dice.drift = 0.75
    assert {each.verdict for each in recheck(ledger, run.id, lab).comparisons} == {"outside", "identical"}
    assert [each.status for each in ledger.replications(run.id)] == ["not reproduced"] * 2


def test_code_versions_and_state_are_named_but_do_not_stop(
    ledger: Ledger, make_config: Callable[..., Any], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(ledger, "dice", make_config(partial=True), lab)
    module = importlib.import_module("cutaway.ledger.recheck")
    monkeypatch.setattr(module, "code_hash", lambda: "f" * 64)
    monkeypatch.setattr(module, "versions", lambda: {**run.versions, "torch": "9.9"})
    told = recheck(ledger, run.id, lab)
    assert [str(change) for change in told.changes] == [
        f"code changed: {run.code[:8]} -> ffffffff",
        f"version of torch changed: {run.versions['torch']} -> 9.9",
    ]
    assert told.status == "reproduced"


def test_data_that_only_a_run_can_name_is_compared_after_the_rerun(
    ledger: Ledger, config: Any, lab: Lab, dice: Any
) -> None:
    dice.data = "a" * 64
    run = record(ledger, "dice", config, lab)
    assert recheck(ledger, run.id, lab).changes == ()
    dice.data, dice.drift = "b" * 64, 9.0
    told = recheck(ledger, run.id, lab)
    assert [str(change) for change in told.changes] == ["data of throws changed: aaaaaaaa -> bbbbbbbb"]
    assert (told.status, told.rerun is None) == ("changed", False)


def test_settings_that_a_study_gave_up_are_named(
    ledger: Ledger, config: Any, lab: Lab, refused: Callable[..., Any]
) -> None:
    run = record(ledger, "dice", config, lab)
    old = replace(run, id="0ld", config={**run.config, "faces": 6, "seed": "x"})
    from cutaway.study import Findings

    ledger.add_run(old, Findings((), ""))
    with refused("dice no longer accepts its stored settings faces, seed", CutawayError):
        recheck(ledger, "0ld", lab)
    with refused("no run 'zzz'"):
        recheck(ledger, "zzz", lab)


NUMBER = Finding("x", 1.0, 0.5, 1.5)
NOTHING = Finding("x", None, undefined="why")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (NUMBER, NUMBER, "identical"),
        (NUMBER, Finding("x", 1.5, 1.0, 2.0), "within"),
        (NUMBER, Finding("x", 1.51, 0.5, 2.0), "outside"),
        (Finding("x", 1.0, 0.5, None), Finding("x", 1e9), "within"),
        (Finding("x", 1.0), Finding("x", 1.0, n=3), "identical"),
        (Finding("x", 1.0), Finding("x", 1.1), "outside"),
        (NOTHING, Finding("x", None, undefined="other"), "within"),
        (NOTHING, NUMBER, "outside"),
        (NUMBER, NOTHING, "outside"),
        (NUMBER, None, "outside"),
        (None, NUMBER, "outside"),
    ],
)
def test_verdicts(before: Finding | None, after: Finding | None, verdict: str) -> None:
    assert Comparison("x", before, after).verdict == verdict


@pytest.mark.parametrize(
    ("rerun", "kind", "after", "status"),
    [
        ("r", None, 1.2, "reproduced"),
        ("r", "code", 1.2, "reproduced"),
        ("r", "weights", 1.2, "reproduced"),
        ("r", None, 9.0, "not reproduced"),
        ("r", "version", 9.0, "not reproduced"),
        ("r", "data", 9.0, "changed"),
        (None, "weights", None, "changed"),
    ],
)
def test_status_follows_from_changes_and_findings(
    rerun: str | None, kind: Any, after: float | None, status: str
) -> None:
    changes = (Change(kind, "m", "a", "b"),) if kind else ()
    pairs = () if after is None else (Comparison("x", NUMBER, Finding("x", after)),)
    assert Recheck("id", "run", rerun, changes, pairs).status == status
