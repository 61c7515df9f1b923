"""Claims about findings, predictions made ahead of runs, and critiques; each one's standing is computed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import insert, select

from cutaway.errors import UsageError, nearest
from cutaway.ledger import schema
from cutaway.ledger.ledger import Ledger
from cutaway.ledger.records import new_id, now
from cutaway.study import Finding

Verdict = Literal["holds", "fails", "undecided"]
Standing = Literal["supported", "contradicted", "disputed", "unreplicated", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A sentence that stands or falls with one finding: "the number is at least / at most so much"."""

    id: str
    text: str
    run: str
    finding: str
    at_least: float | None
    at_most: float | None
    made: str
    status: Standing
    verdicts: tuple[Verdict, ...]
    """The finding itself, then each replication's."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """What a finding of a study will be, written down before it was run."""

    id: str
    text: str
    study: str
    finding: str
    at_least: float | None
    at_most: float | None
    made: str
    outcome: Literal["open", "holds", "fails", "undecided"]
    run: str | None
    """The run that decided: the first finished one that started later and has the finding."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict(item: Finding, at_least: float | None, at_most: float | None) -> Verdict:
    """``holds`` if the whole interval meets the bounds, ``fails`` if all of it misses, else ``undecided``.

    A finding without interval is taken as exact and an undefined one decides nothing. Where its control meets
    the bounds too, the number shows nothing about the effect: undecided.
    """
    if item.value is None:
        return "undecided"
    exact = item.low is None and item.high is None
    low = item.value if exact else (float("-inf") if item.low is None else item.low)
    high = item.value if exact else (float("inf") if item.high is None else item.high)
    floor = float("-inf") if at_least is None else at_least
    ceiling = float("inf") if at_most is None else at_most
    if high < floor or low > ceiling:
        return "fails"
    if low < floor or high > ceiling:
        return "undecided"
    return "undecided" if item.control and verdict(item.control, at_least, at_most) == "holds" else "holds"


def standing(verdicts: Sequence[Verdict], open_critiques: int) -> Standing:
    """A claim's status from its finding's verdict, those of the replications after it, and open critiques.

    - ``undecided``: no verdict is decided;
    - ``disputed``: some hold and some fail, or none fails but a critique is unanswered;
    - ``contradicted``: at least one fails and none holds;
    - ``supported``: none fails, and the finding and at least one replication hold;
    - ``unreplicated``: none fails, but nothing beyond one verdict holds yet.
    """
    holds, fails = verdicts.count("holds"), verdicts.count("fails")
    if not holds and not fails:
        return "undecided"
    if fails:
        return "disputed" if holds else "contradicted"
    if open_critiques:
        return "disputed"
    return "supported" if verdicts[0] == "holds" and holds > 1 else "unreplicated"


def add_claim(
    ledger: Ledger,
    text: str,
    run: str,
    finding: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Claim:
    """Claim that a run's finding meets a bound; UsageError when the run has no such finding."""
    _check_bounds(at_least, at_most)
    run = ledger.run(run).id
    names = [item.name for item in ledger.findings(run)]
    if finding not in names:
        raise UsageError(f"run {run} has no finding {finding!r}{nearest(finding, names)}")
    row = {"id": new_id("claim", text), "text": text, "run": run, "finding": finding, "made": now()}
    with ledger.writing() as connection:
        connection.execute(insert(schema.claim).values(**row, at_least=at_least, at_most=at_most))
    return next(claim for claim in claims(ledger) if claim.id == row["id"])


def claims(ledger: Ledger) -> tuple[Claim, ...]:
    """Every claim, oldest first, with its status as of now."""
    with ledger.reading() as connection:
        rows = connection.execute(select(schema.claim).order_by(schema.claim.c.made)).mappings().all()
        remarks = connection.execute(select(schema.critique)).mappings().all()
    answered = {remark["answers"] for remark in remarks}
    made = []
    for row in rows:
        found = [ledger.findings(row["run"])]
        found += [ledger.findings(each.rerun) for each in ledger.replications(row["run"]) if each.rerun]
        items = [item for run in found for item in run if item.name == row["finding"]]
        verdicts = tuple(verdict(item, row["at_least"], row["at_most"]) for item in items)
        open_critiques = sum(
            remark["claim"] == row["id"] and remark["answers"] is None and remark["id"] not in answered
            for remark in remarks
        )
        made.append(Claim(**row, status=standing(verdicts, open_critiques), verdicts=verdicts))
    return tuple(made)


def add_critique(ledger: Ledger, claim: str, text: str, *, answers: str | None = None) -> str:
    """Record an objection to a claim, or with ``answers`` the answer to an objection. Return its id."""
    known = [each.id for each in claims(ledger)]
    if claim not in known:
        raise UsageError(f"no claim {claim!r}{nearest(claim, known)}")
    with ledger.writing() as connection:
        mine = select(schema.critique.c.id).where(schema.critique.c.claim == claim)
        remarks = list(connection.scalars(mine))
        if answers is not None and answers not in remarks:
            raise UsageError(f"claim {claim} has no critique {answers!r}{nearest(answers, remarks)}")
        id = new_id("critique", text)
        row = {"id": id, "claim": claim, "text": text, "answers": answers, "made": now()}
        connection.execute(insert(schema.critique).values(row))
    return id


def add_prediction(
    ledger: Ledger,
    text: str,
    study: str,
    finding: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Prediction:
    """Write down what a study's finding will be, before running it."""
    _check_bounds(at_least, at_most)
    row = {"id": new_id("prediction", text), "text": text, "study": study, "finding": finding, "made": now()}
    with ledger.writing() as connection:
        connection.execute(insert(schema.prediction).values(**row, at_least=at_least, at_most=at_most))
    return Prediction(**row, at_least=at_least, at_most=at_most, outcome="open", run=None)


def predictions(ledger: Ledger) -> tuple[Prediction, ...]:
    """Every prediction, oldest first, with its outcome as of now."""
    with ledger.reading() as connection:
        query = select(schema.prediction).order_by(schema.prediction.c.made)
        rows = connection.execute(query).mappings().all()
    made = []
    for row in rows:
        found = _first_after(ledger, row["study"], row["finding"], row["made"])
        outcome = "open" if found is None else verdict(found[1], row["at_least"], row["at_most"])
        made.append(Prediction(**row, outcome=outcome, run=found[0] if found else None))
    return tuple(made)


def _first_after(ledger: Ledger, study: str, finding: str, made: str) -> tuple[str, Finding] | None:
    run, item = schema.run, schema.finding
    query = (
        select(run.c.id)
        .join(item, item.c.run == run.c.id)
        .where(run.c.study == study, run.c.started > made, run.c.complete, item.c.name == finding)
        .order_by(run.c.started)
    )
    with ledger.reading() as connection:
        id = connection.scalars(query).first()
    return id and (id, next(each for each in ledger.findings(id) if each.name == finding))


def _check_bounds(at_least: float | None, at_most: float | None) -> None:
    if at_least is None and at_most is None:
        raise UsageError("a claim or prediction needs at_least, at_most or both")
    if at_least is not None and at_most is not None and at_least > at_most:
        raise UsageError(f"at_least={at_least} lies above at_most={at_most}")
