"""The planted sequence model does what its docstring says, at every start of every list."""

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.sequence import TASKS, VERBS, Composition, sequence


def prompt(members: tuple[str, ...], start: int, verb: str) -> str:
    told = [f"{word} {verb} in {members[start + i]}." for i, word in enumerate(("Van", "Hat", "Ring", "Desk"))]
    return " ".join([*told, f"Sun {verb} in"])


@pytest.mark.parametrize("composition", ["v", "k", "q"])
def test_every_sequence_is_continued(composition: Composition) -> None:
    planted = sequence(composition, seed=3)
    asked = [(members, start, verb) for members in TASKS.values() for start in range(8) for verb in VERBS]
    batch = planted.model.batch([prompt(*each) for each in asked])
    with torch.no_grad():
        log = planted.model.logits(batch)[:, -1].log_softmax(-1)
    for row, (members, start, _) in zip(log, asked, strict=True):
        assert planted.model.decode([int(row.argmax())]) == f" {members[start + 4]}"
        assert row.max() > -0.1


def test_cancelling_heads_leave_the_answer_and_are_named() -> None:
    planted = sequence(compensate=True)
    assert planted.truth.compensating == ("z.3.3", "z.3.1")
    members = TASKS["numwords"]
    logits = planted.model.logits(planted.model.batch([prompt(members, 2, "done")]))[0, -1]
    assert planted.model.decode([int(logits.argmax())]) == " seven"


def test_the_null_writes_no_answer() -> None:
    planted = sequence(null=True)
    assert all(nodes == () for nodes in planted.truth.nodes.values())
    members = TASKS["numerals"]
    ids = [planted.model.encode(f" {m}")[0] for m in members]
    logits = planted.model.logits(planted.model.batch([prompt(members, 1, "done")]))[0, -1].detach()
    assert float(logits[ids].max() - logits[ids].min()) < 1.0, "the distractors' noise, against 12 for an answer"


def test_building_leaves_the_global_random_state_alone_and_the_seed_decides() -> None:
    before = torch.get_rng_state()
    one, same, other = sequence(seed=1), sequence(seed=1), sequence(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert one.model.fingerprint == same.model.fingerprint != other.model.fingerprint


def test_bad_settings() -> None:
    for wrong in ({"compensate": True, "composition": "q"}, {"compensate": True, "null": True}, {"noise": -1.0}):
        with pytest.raises(UsageError, match=r"compensate|noise"):
            sequence(**wrong)
