"""Calibrations are runs too: kept with what they were measured on, and listed beside their study."""

import json

from cutaway.ledger.ledger import Ledger
from cutaway.ledger.provenance import code_hash, machine, versions
from cutaway.ledger.records import RunRecord, new_id, now
from cutaway.study import Calibration, Finding, Findings, Lab, get_study

PREFIX = "calibrate:"


def record_calibration(ledger: Ledger, study_id: str, lab: Lab, trials: int | None = None) -> Calibration:
    """Calibrate a study on its planted models and store every rate; returns the calibration."""
    started = now()
    calibration = get_study(study_id).calibrate(lab, trials)
    config = dict(calibration.settings)
    items = tuple(Finding(r.name, r.rate, r.low, r.high, n=r.trials) for r in calibration.rates)
    verdict = "passed" if calibration.passed else "failed"
    document = (json.dumps(calibration.to_dict(), indent=1) + "\n").encode()
    ledger.add_run(
        RunRecord(
            id=new_id(PREFIX + study_id, json.dumps(config)),
            study=PREFIX + study_id,
            config=config,
            seed=None,
            started=started,
            seconds=calibration.seconds,
            complete=True,
            summary=f"calibration of {study_id} {verdict}",
            inputs={},
            code=code_hash(),
            versions=versions(),
            machine=machine(),
            cost=Findings(items, "").cost,
        ),
        Findings(items, f"calibration of {study_id} {verdict}", {"calibration.json": document}),
    )
    return calibration


def last_calibration(ledger: Ledger, study_id: str) -> RunRecord | None:
    """The newest stored calibration of a study."""
    found = ledger.runs(1, PREFIX + study_id)
    return found[0] if found else None
