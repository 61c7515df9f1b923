"""The main job: one answer, opened. Runs the thought-anchors study, keeps it, and hands back its parts.

The same question asked twice of the same weights and code is answered from the ledger; an interrupted one goes on
from its branch tree.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutaway.charts import charts_from_json
from cutaway.circuits.view import CircuitView
from cutaway.errors import UsageError
from cutaway.explain.report import report_html
from cutaway.explain.run_page import calibration_page, rates_of, run_page
from cutaway.ledger import Ledger, RunRecord, record
from cutaway.ledger.provenance import code_hash
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.thought_anchors.study import ThoughtAnchorsConfig
from cutaway.reasoning.view import TraceView
from cutaway.study import Lab, get_study

STUDY = "thought-anchors"


@dataclass(frozen=True)
class Explanation:
    """One answer, opened."""

    run: RunRecord
    anchors: AnchorMap
    known: bool
    """True when the ledger already held it and nothing was sampled."""


def explain(config: ThoughtAnchorsConfig, lab: Lab, ledger: Ledger) -> Explanation:
    """Explain one answer, or fetch the finished run that already did."""
    stored = config.model_dump(mode="json")
    inputs = dict(get_study(STUDY).inputs(config, lab))
    for run in ledger.runs(1000, STUDY):
        same = run.config == stored and run.code == code_hash() and run.inputs == inputs
        if same and run.complete and not lab.fresh:
            return Explanation(run, anchors_of(ledger, run), known=True)
    run = record(ledger, STUDY, config, lab)
    return Explanation(run, anchors_of(ledger, run), known=False)


def anchors_of(ledger: Ledger, run: RunRecord) -> AnchorMap:
    """The anchor map that a run stored."""
    return AnchorMap.from_dict(json.loads(ledger.artifact(run.id, "anchors.json")))


def report_of(run: RunRecord, anchors: AnchorMap, view: TraceView | None = None) -> str:
    """The report page of a run with an anchor map, and of a stored view of its trace.

    Local paths stay at home: a model is named by its last path component and its hash.
    """
    config = run.config
    sampling = f"temperature {config['temperature']:g}, top-p {config['top_p']:g}, seed {config['seed']}"
    meta = {
        "model": Path(str(config["model"])).name,
        "settings": f"{sampling}, outcome {config['outcome']}",
        **{name.replace(":", " "): f"sha256 {digest}" for name, digest in run.inputs.items()},
        "run": run.id,
        "started": run.started,
        "code": run.code,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    return report_html(anchors, title="Why this answer?", meta=meta, view=view)


def with_companions(ledger: Ledger, run: RunRecord, view: TraceView) -> TraceView:
    """``view`` with what other stored runs say about the same trace of the same weights, newest first.

    So the studies of one question line up on one page, whichever of them is asked for.
    """
    weights = {value for name, value in run.inputs.items() if name.startswith("weights:")}
    for other in ledger.runs(1000):
        same = other.config.get("prompt") == run.config.get("prompt") and weights & set(other.inputs.values())
        if other.id == run.id or not same or "view.json" not in {each.name for each in ledger.artifacts(other.id)}:
            continue
        found = TraceView.from_dict(json.loads(ledger.artifact(other.id, "view.json")))
        if found.sentences != view.sentences:
            continue
        known = {track.name for track in view.tracks} | {links.name for links in view.links}
        view = replace(
            view,
            tracks=(*view.tracks, *(each for each in found.tracks if each.name not in known)),
            links=(*view.links, *(each for each in found.links if each.name not in known)),
            categories=view.categories or found.categories,
            curve=view.curve or found.curve,
        )
    return view


def report_of_run(ledger: Ledger, run: RunRecord) -> str:
    """The page of any stored run: the report of an explained answer, rates of a calibration, else `run_page`.

    Raises `UsageError` when the run stored nothing that a page could show.
    """
    stored = {each.name for each in ledger.artifacts(run.id)}

    def read(name: str) -> Any:
        return json.loads(ledger.artifact(run.id, name)) if name in stored else None

    view = with_companions(ledger, run, TraceView.from_dict(read("view.json"))) if "view.json" in stored else None
    circuit = CircuitView.from_dict(read("circuit.json")) if "circuit.json" in stored else None
    if run.study == STUDY and "anchors.json" in stored:
        return report_of(run, anchors_of(ledger, run), view)
    if "calibration.json" in stored:
        return calibration_page(run, rates_of(read("calibration.json")))
    findings = ledger.findings(run.id)
    charts = charts_from_json(ledger.artifact(run.id, "charts.json")) if "charts.json" in stored else ()
    if not findings and not charts and view is None and circuit is None:
        raise UsageError(f"run {run.id} ({run.study}) stored no findings, charts or trace; there is nothing to show")
    return run_page(run, findings, charts, view, circuit)
