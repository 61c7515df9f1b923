"""The standing of claims and predictions is computed from findings, replications and critiques."""

from collections.abc import Callable
from typing import Any

import pytest

from cutaway.ledger import (
    Ledger,
    add_claim,
    add_critique,
    add_prediction,
    claims,
    predictions,
    recheck,
    record,
)
from cutaway.ledger.claims import standing, verdict
from cutaway.study import Finding, Lab

pytestmark = pytest.mark.usefixtures("dice")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Finding("x", 1.0, 0.5, 1.5), "holds"),
        (Finding("x", 1.0, 0.4, 1.5), "undecided"),
        (Finding("x", 0.2, 0.1, 0.4), "fails"),
        (Finding("x", 3.0, 2.5, None), "fails"),
        (Finding("x", 1.0, 0.6, None), "undecided"),
        (Finding("x", 1.0), "holds"),
        (Finding("x", None, undefined="why"), "undecided"),
        (Finding("x", 1.0, 0.6, 1.5, control=Finding("c", 0.1)), "holds"),
        (Finding("x", 1.0, 0.6, 1.5, control=Finding("c", 0.9)), "undecided"),
    ],
)
def test_a_finding_holds_only_when_its_whole_interval_does(item: Finding, expected: str) -> None:
    assert verdict(item, 0.5, 2.0) == expected


@pytest.mark.parametrize(
    ("verdicts", "critiques", "expected"),
    [
        (["undecided"], 1, "undecided"),
        (["holds"], 0, "unreplicated"),
        (["holds", "holds"], 0, "supported"),
        (["holds", "undecided"], 0, "unreplicated"),
        (["undecided", "holds"], 0, "unreplicated"),
        (["holds", "holds"], 1, "disputed"),
        (["holds", "fails"], 0, "disputed"),
        (["fails", "holds"], 0, "disputed"),
        (["fails"], 1, "contradicted"),
        (["fails", "fails", "undecided"], 0, "contradicted"),
    ],
)
def test_standing(verdicts: Any, critiques: int, expected: str) -> None:
    assert standing(verdicts, critiques) == expected


def test_a_claims_status_moves_with_the_evidence(ledger: Ledger, config: Any, lab: Lab, dice: Any) -> None:
    run = record(ledger, "dice", config, lab)
    claim = add_claim(ledger, "six faces", run.id[:8], "faces", at_least=6.0, at_most=6.0)
    wrong = add_claim(ledger, "many faces", run.id, "faces", at_least=10.0)
    assert (claim.run, claim.status, wrong.status) == (run.id, "unreplicated", "contradicted")

    def status() -> str:
        return claims(ledger)[0].status

    recheck(ledger, run.id, lab)
    assert status() == "supported"
    remark = add_critique(ledger, claim.id, "only one die was thrown")
    assert status() == "disputed"
    add_critique(ledger, claim.id, "two were, see the artifact", answers=remark)
    assert status() == "supported"
    dice.drift = 1.0
    recheck(ledger, run.id, lab)
    assert claims(ledger)[0].verdicts == ("holds", "holds", "fails")
    assert status() == "disputed"


def test_a_prediction_is_decided_by_the_first_finished_run_after_it(
    ledger: Ledger, make_config: Callable[..., Any], lab: Lab
) -> None:
    record(ledger, "dice", make_config(), lab)
    made = add_prediction(ledger, "mean above 3.5", "dice", "mean", at_least=4.0)
    record(ledger, "dice", make_config(partial=True), lab)
    assert predictions(ledger) == (made,)
    assert made.outcome == "open"
    run = record(ledger, "dice", make_config(seed=1), lab)
    record(ledger, "dice", make_config(seed=-9), lab)
    assert [(each.outcome, each.run) for each in predictions(ledger)] == [("holds", run.id)]


def test_claims_must_name_what_exists(ledger: Ledger, config: Any, lab: Lab, refused: Callable[..., Any]) -> None:
    run = record(ledger, "dice", config, lab)
    with refused("no finding 'meen'; did you mean 'mean'"):
        add_claim(ledger, "t", run.id, "meen", at_least=1.0)
    with refused("needs at_least, at_most or both"):
        add_claim(ledger, "t", run.id, "mean")
    with refused("at_least=2.0 lies above at_most=1.0"):
        add_prediction(ledger, "t", "dice", "mean", at_least=2.0, at_most=1.0)
    with refused("no claim 'abc'"):
        add_critique(ledger, "abc", "t")
    claim = add_claim(ledger, "t", run.id, "mean", at_least=1.0)
    with refused(f"claim {claim.id} has no critique 'xyz'"):
        add_critique(ledger, claim.id, "t", answers="xyz")
