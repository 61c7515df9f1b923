"""The page of any study's run: what it found, with intervals and controls, and what it was measured on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cutaway.charts import Chart, Heat
from cutaway.circuits.view import CircuitView
from cutaway.explain.circuit_page import CIRCUIT_SCRIPTS, CIRCUIT_STYLE, circuit_data
from cutaway.explain.figures import figure
from cutaway.explain.findings import Scale, dot_plot, finding_rows
from cutaway.explain.page import VIEWER_SCRIPTS, VIEWER_STYLES, embedded, number, render
from cutaway.explain.views import viewer_data
from cutaway.ledger import RunRecord
from cutaway.ledger.export import scrub
from cutaway.reasoning.view import TraceView
from cutaway.study import Finding, Rate


@dataclass(frozen=True)
class RateRow:
    """One calibration rate as the table shows it."""

    name: str
    what: str
    measured: str
    interval: str
    counted: str
    required: str
    passed: bool
    plot: Markup


def run_page(
    run: RunRecord,
    findings: Sequence[Finding],
    charts: Sequence[Chart | Heat] = (),
    view: TraceView | None = None,
    circuit: CircuitView | None = None,
) -> str:
    """Return a run as one HTML document: summary, findings, charts, the viewer of its trace, its circuit drawn.

    Local paths stay at home, as in `cutaway.ledger.export`.
    """
    return render(
        "run_page.html.j2",
        scripts=[*([] if view is None else [VIEWER_SCRIPTS]), *([] if circuit is None else [CIRCUIT_SCRIPTS])],
        styles=VIEWER_STYLES if circuit is None else (*VIEWER_STYLES, CIRCUIT_STYLE),
        **_about(run),
        findings=finding_rows(findings),
        rates=(),
        charts=[figure(chart, i) for i, chart in enumerate(charts)],
        view=view,
        view_data="" if view is None else embedded(viewer_data(view)),
        circuit=circuit,
        circuit_data="" if circuit is None else embedded(circuit_data(circuit)),
    )


def calibration_page(run: RunRecord, rates: Sequence[Rate]) -> str:
    """Return a stored calibration as one HTML document: every rate beside what is required of it."""
    return render(
        "run_page.html.j2",
        styles=VIEWER_STYLES,
        **_about(run),
        findings=(),
        rates=[_rate_row(rate) for rate in rates],
        charts=(),
        view=None,
        view_data="",
        circuit=None,
    )


def provenance(run: RunRecord) -> dict[str, str]:
    """What the numbers depended on, without anything that tells where or by whom the run was made."""
    told = {
        **{name.replace(":", " "): f"sha256 {digest}" for name, digest in run.inputs.items()},
        "run": run.id,
        "started": run.started,
        "time": f"{run.seconds:.0f} s" if run.seconds >= 10 else f"{run.seconds:.1f} s",
        "code": run.code,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "machine": ", ".join(f"{name} {value}" for name, value in run.machine.items()),
    }
    cost = run.cost
    if cost.decoded or cost.prefilled or cost.reused:
        told["tokens"] = f"{cost.decoded:,} decoded, {cost.prefilled:,} prefilled, {cost.reused:,} reused"
    return dict(scrub({key: value for key, value in told.items() if value}))


def _about(run: RunRecord) -> dict[str, Any]:
    config = {key: value if isinstance(value, str) else json.dumps(value) for key, value in run.config.items()}
    if "model" in config:
        config["model"] = Path(config["model"]).name
    kind = "calibration" if run.study.startswith("calibrate:") else "run"
    return {
        "title": run.study.removeprefix("calibrate:"),
        "kind": kind,
        "summary": scrub(run.summary),
        "complete": run.complete,
        "config": scrub(config),
        "meta": provenance(run),
    }


def _rate_row(rate: Rate) -> RateRow:
    bounds = []
    if rate.at_least is not None:
        bounds.append(f"at least {number(rate.at_least)}")
    if rate.at_most is not None:
        bounds.append(f"at most {number(rate.at_most)}")
    measured = Finding(rate.name, rate.rate, rate.low, rate.high, n=rate.trials)
    limits = tuple(x for x in (rate.at_least, rate.at_most) if x is not None and math.isfinite(x))
    return RateRow(
        name=rate.name,
        what=rate.what,
        measured=number(rate.rate),
        interval=f"{number(rate.low)} to {number(rate.high)}",
        counted=f"{rate.hits:,} of {rate.trials:,}",
        required=" and ".join(bounds) or "no requirement",
        passed=rate.passed,
        plot=dot_plot(measured, Scale(0.0, 1.0), limits),
    )


def rates_of(document: Mapping[str, Any]) -> tuple[Rate, ...]:
    """The rates that a stored ``calibration.json`` holds."""
    names = ("name", "hits", "trials", "at_least", "at_most", "what")
    return tuple(Rate(**{name: each[name] for name in names}) for each in document["rates"])
