"""Record a run; recheck one: name what changed since, run it again from nothing, compare every finding."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from cutaway.errors import CutawayError, UsageError
from cutaway.ledger.calibrations import PREFIX as CALIBRATION
from cutaway.ledger.ledger import Ledger
from cutaway.ledger.provenance import code_hash, machine, versions
from cutaway.ledger.records import Change, Recheck, RunRecord, new_id, now
from cutaway.study import Findings, Lab, Study, get_study

ABSENT = "absent"


def record(ledger: Ledger, study_id: str, config: BaseModel, lab: Lab) -> RunRecord:
    """Run a study and store the run with all it returned, at once or not at all.

    A study that answers Ctrl-C with incomplete findings is stored as partial; any other end stores nothing.
    """
    study = get_study(study_id)
    ledger.check_writable()  # before the work, not after it
    run, findings = _run(study, config, lab)
    ledger.add_run(run, findings)
    return run


def recheck(ledger: Ledger, run_id: str, lab: Lab, anyway: bool = False) -> Recheck:
    """Compare what a run depended on with what is there now, run it again reusing nothing, store the outcome.

    Changed weights or data stop it before the rerun unless ``anyway``; changed code, versions and machine are
    named only. Inputs that the study can only name by running are compared after the rerun.
    """
    ledger.check_writable()
    old = ledger.run(run_id)
    if old.study.startswith(CALIBRATION):
        name = old.study.removeprefix(CALIBRATION)
        raise UsageError(f"run {old.id} is a calibration; measure it again with: cutaway calibrate {name}")
    study = get_study(old.study)
    config = _stored_config(study, old)
    bench = replace(lab, fresh=True)
    changes = _changed_inputs(old, study.inputs(config, bench), partly=True) + _changed_ground(old)
    if any(change.stops for change in changes) and not anyway:
        ledger.add_replication(old.id, changes)
    else:
        new, findings = _run(study, config, bench)
        changes = _changed_inputs(old, new.inputs) + _changed_ground(old)
        if new.state != old.state:
            changes.append(Change("state", "run", old.state, new.state))
        ledger.add_run(new, findings, replicates=(old.id, changes))
    return ledger.replications(old.id)[-1]


def _run(study: Study[Any], config: BaseModel, lab: Lab) -> tuple[RunRecord, Findings]:
    stored = _jsonable(config)
    started, clock = now(), time.monotonic()
    findings = study.run(config, lab)
    run = RunRecord(
        id=new_id(study.id, json.dumps(stored)),
        study=study.id,
        config=stored,
        seed=stored.get("seed"),
        started=started,
        seconds=time.monotonic() - clock,
        complete=findings.complete,
        summary=findings.summary,
        inputs={**study.inputs(config, lab), **findings.inputs},
        code=code_hash(),
        versions=versions(),
        machine=machine(),
        cost=findings.cost,
    )
    return run, findings


def _jsonable(config: BaseModel) -> dict[str, Any]:
    stored = config.model_dump(mode="json")
    try:
        json.dumps(stored, allow_nan=False)
    except ValueError:
        raise UsageError(f"the config {config!r} holds a number that is not finite; give finite ones") from None
    return stored


def _stored_config(study: Study[Any], run: RunRecord) -> BaseModel:
    try:
        return study.Config.model_validate(dict(run.config))
    except ValidationError as error:
        fields = sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]})
        raise CutawayError(
            f"run {run.id}: {study.id} no longer accepts its stored settings {', '.join(fields)}; "
            f"check out cutaway {run.versions.get('cutaway', '?')} to recheck it"
        ) from error


def _changed_inputs(old: RunRecord, current: Mapping[str, str], partly: bool = False) -> list[Change]:
    """Inputs whose hash differs; with ``partly``, names missing from ``current`` are left for the rerun."""
    changes = []
    for key in sorted(old.inputs.keys() | current.keys()):
        kind, _, name = key.partition(":")
        before, after = old.inputs.get(key, ABSENT), current.get(key, ABSENT)
        if before != after and not (partly and key not in current):
            changes.append(Change("weights" if kind == "weights" else "data", name, before, after))
    return changes


def _changed_ground(old: RunRecord) -> list[Change]:
    code = code_hash()
    changes = [Change("code", "cutaway", old.code, code)] if code != old.code else []
    for kind, before, after in (("version", old.versions, versions()), ("machine", old.machine, machine())):
        for name in sorted(before.keys() | after.keys()):
            pair = before.get(name, ABSENT), after.get(name, ABSENT)
            if pair[0] != pair[1]:
                changes.append(Change("version" if kind == "version" else "machine", name, *pair))
    return changes
