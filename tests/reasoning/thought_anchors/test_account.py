"""Everything measured on one trace, lined up: parts by name, one branch tree, gaps with their reason."""

from pathlib import Path

import pytest

from cutaway.errors import UsageError
from cutaway.planted import EXACT, Reasoner, reasoner
from cutaway.reasoning.source import Asked
from cutaway.reasoning.thought_anchors.account import PARTS, account, check_parts
from cutaway.reasoning.thought_anchors.method import asked_anchors
from cutaway.reasoning.thought_anchors.result import AnchorMap, anchors_view
from cutaway.sampling import BranchTree, LocalEngine, Settings, Trace, split_tokens


def asked_of(planted: Reasoner) -> Asked:
    ids = planted.sample_trace(0)
    settings = Settings(EXACT.temperature, EXACT.top_p, EXACT.top_k, len(ids) + 8)
    spans = tuple(split_tokens(ids, planted.model.decode))
    return Asked(Trace(planted.prompt_ids, ids, (), spans, settings), planted.outcome)


@pytest.fixture(scope="module")
def planted() -> Reasoner:
    return reasoner("ffpfsfsfa", p_one=(0.1, 0.9))


@pytest.fixture(scope="module")
def anchors(planted: Reasoner) -> AnchorMap:
    return asked_anchors(LocalEngine(planted.model), planted.prompt, asked_of(planted), budget=2000)


def test_every_part_lands_in_one_view_and_rollouts_are_drawn_once(planted, anchors, tmp_path: Path) -> None:
    engine, asked = LocalEngine(planted.model), asked_of(planted)
    with BranchTree.open(tmp_path, engine.identity) as tree:
        found = account(engine, asked, anchors, PARTS, rollouts=20, forcing=" The answer is", tree=tree)
        spent = engine.cost.decoded
        again = account(engine, asked, anchors, ["importance", "influence"], rollouts=20, tree=tree)
    assert engine.cost.decoded == spent
    view = anchors_view(anchors, title="t", tracks=found.tracks, links=found.links, categories=found.categories)
    names = {track.name for track in view.tracks}
    assert {"resampling importance, accuracy", "counterfactual importance, accuracy"} <= names
    assert {track.name for track in again.tracks} < names
    plan = planted.truth.kinds.index("plan")
    moved = next(track for track in view.tracks if track.name == "resampling importance, accuracy")
    known = [0.0 if x is None else abs(x) for x in moved.value]
    assert max(range(len(known)), key=known.__getitem__) == plan
    assert {each.name for each in found.links} >= {"black-box influence"}
    assert len(view.categories or ()) == len(anchors.sentences)


def test_what_a_short_trace_cannot_tell_is_said(anchors) -> None:
    short = reasoner("pa", p_one=(0.1, 0.9))
    engine, asked = LocalEngine(short.model), asked_of(short)
    few = asked_anchors(engine, short.prompt, asked, budget=200)
    found = account(engine, asked, few, ["attention", "suppression"])
    reasons = [item.undefined for item in found.findings if item.value is None]
    assert any("receiver heads need at least" in reason for reason in reasons)


def test_unknown_and_incomplete_parts_are_refused(planted, anchors) -> None:
    with pytest.raises(UsageError, match="did you mean 'influence'"):
        check_parts(["influense"])
    with pytest.raises(UsageError, match="give forcing"):
        account(LocalEngine(planted.model), asked_of(planted), anchors, ["forced"])


def test_ctrl_c_anywhere_keeps_the_parts_that_are_done(planted, anchors) -> None:
    def stop(texts):
        raise KeyboardInterrupt

    found = account(
        LocalEngine(planted.model), asked_of(planted), anchors, ["categories", "importance"], rollouts=2, embed=stop
    )
    assert not found.complete
    assert len(found.categories or ()) == len(anchors.sentences)
    assert not found.tracks
