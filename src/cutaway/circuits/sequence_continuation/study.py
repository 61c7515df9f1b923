"""The sequence-continuation study: config, wiring and calibration."""

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cutaway.circuits.sequence_continuation.data import (
    CARRIERS,
    MEMBERS,
    Rows,
    generate,
    other_tasks,
    prepare,
    whole_words,
)
from cutaway.circuits.sequence_continuation.report import charts, findings, summary
from cutaway.errors import nearest
from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.circuits.sequence_continuation.method import Report
    from cutaway.circuits.sequence_continuation.result import SequenceStudy
    from cutaway.model import Model


class SequenceConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """Catalogue name, Hugging Face id, local directory or GGUF file."""
    tasks: str = "numerals,numwords,months"
    """Lists to continue: numerals, numwords, months, months backwards."""
    verb: str = "done"
    """Template the circuits are found on: done, lost, born."""
    held_out: str = "lost"
    """Template they are scored on; it must be another one."""
    candidates: int = Field(256, ge=8)
    """Prompts drawn for each task and template, before filtering."""
    prompts: int = Field(64, ge=4)
    """Prompts used of those that pass."""
    joint: bool = True
    """Keep a prompt only where it passes in every task, so that all tasks have the same carrier words."""
    threshold: float = Field(20.0, gt=0, lt=100)
    """Percent of the full model's metric that the circuit may lose."""
    reference: Literal["mean", "zero", "resample"] = "mean"
    """What a cut node gives: its mean by position over corrupted prompts, zero, or what it gave on the twin."""
    one_iter: bool = False
    """Stop after one backward and one forward sweep."""
    controls: int = Field(50, ge=1)
    """Random circuits of the same size for each circuit."""
    edge_prompts: int = Field(8, ge=0)
    """Prompts for testing connections; 0 leaves that out."""
    edge_threshold: float = Field(0.8, gt=0, lt=1)
    """A connection is kept when the metric falls below this share without it."""
    effects: int = Field(20, ge=0)
    """Random head sets beside the removal of a circuit's heads on other tasks; 0 leaves that out."""
    restarts: int = Field(0, ge=0)
    """Prunings with resampled prompts, and as many with random orders, of the first task; each costs one pruning."""
    minutes: float | None = Field(None, gt=0)
    """Stop pruning after this time."""
    seed: int = Field(0, ge=0)
    """Of prompts, random circuits and resamples."""
    dtype: str = "auto"
    """Weights' precision: auto, float32 or bfloat16."""

    @model_validator(mode="after")
    def _fits(self) -> "SequenceConfig":
        for name in ("verb", "held_out"):
            if getattr(self, name) not in CARRIERS:
                raise ValueError(f"{name}={getattr(self, name)!r}{nearest(getattr(self, name), CARRIERS)}")
        if self.verb == self.held_out:
            raise ValueError(f"held_out={self.held_out!r} is the template the circuits are found on; take another")
        for task in self.task_names:
            if task not in MEMBERS:
                raise ValueError(f"task {task!r}{nearest(task, MEMBERS)}")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task.strip() for task in self.tasks.split(",") if task.strip()))


@study
class SequenceContinuation(Study[SequenceConfig]):
    id = "sequence-continuation"
    title = "Which heads and MLPs continue a sequence, and whether other sequences use the same ones"
    paper = "Lan, Torr, Barez 2023, arXiv:2311.04131"
    status = "node and edge circuits, transfer with random-circuit control, roles, side effects; calibrated"
    Config = SequenceConfig

    def run(self, config: SequenceConfig, lab: Lab) -> Findings:
        """Filter prompts, prune each task's circuit, score all circuits on all tasks of a held-out template."""
        model = lab.model(config.model, config.dtype)
        report = _reporter(lab)
        drawn = [
            generate(config.task_names, verb, config.candidates, seed=config.seed, words=whole_words(model, verb))
            for verb in (config.verb, config.held_out)
        ]
        lab.progress(Progress(0.0, None, "prompts", "which prompts the model continues"))
        rows, checked = prepare(model, drawn[0], joint=config.joint, keep=config.prompts, least=8)
        other = {task: given for task, given in drawn[1].items() if task in rows}
        held, _ = prepare(model, other, joint=config.joint, keep=config.prompts, least=8)
        found, complete = _circuits(model, rows, held, config, report)
        result = found.study()
        return Findings(
            items=findings(result, checked, config.verb, config.held_out),
            summary=summary(result, complete),
            artifacts={
                "circuits.json": (
                    json.dumps({**result.to_dict(), "checked": [c.to_dict() for c in checked]}) + "\n"
                ).encode()
            },
            inputs={f"weights:{model.name}": model.fingerprint},
            complete=complete,
            result=result,
            charts=charts(result),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted circuits recovered in any order, transfer as planted; refusal and silence where there is nothing."""
        from cutaway.circuits.counts import Counts
        from cutaway.circuits.sequence_continuation.calibration import ASKED, trial

        started, trials, counts = time.monotonic(), 12 if trials is None else trials, Counts(ASKED)
        for seed in range(trials):
            lab.progress(Progress(float(seed), float(trials), "planted models"))
            trial(seed, counts)
        return Calibration(self.id, counts.rates(), time.monotonic() - started, {"trials": trials})


@dataclass
class _Found:
    """What is known so far; every part may be missing when a run is stopped."""

    circuits: dict[str, Any] = field(default_factory=dict)
    importance: dict[str, Any] = field(default_factory=dict)
    edges: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, Any] = field(default_factory=dict)
    lens: dict[str, Any] = field(default_factory=dict)
    transfer: Any = None
    effects: tuple[Any, ...] = ()
    stability: tuple[Any, ...] = ()

    def study(self) -> "SequenceStudy":
        from cutaway.circuits.sequence_continuation.result import SequenceStudy, Transfer

        transfer = self.transfer or Transfer((), (), False)
        parts = (self.circuits, self.importance, self.edges, self.roles, self.lens)
        return SequenceStudy(*parts, transfer, self.effects, self.stability)


def _circuits(
    model: "Model", rows: dict[str, Rows], held: dict[str, Rows], config: SequenceConfig, report: "Report"
) -> tuple[_Found, bool]:
    """All parts of the method in the order of their worth, and whether none was cut short."""
    from cutaway.circuits.sequence_continuation.method import Bench, importance, prune, stability
    from cutaway.circuits.sequence_continuation.roles import head_roles, logit_lens
    from cutaway.circuits.sequence_continuation.transfer import side_effects, transfer

    deadline = time.monotonic() + 60 * config.minutes if config.minutes else None
    found, benches = _Found(), dict[str, Any]()
    try:
        for task, given in rows.items():
            bench = benches[task] = Bench(model, given, config.reference)
            circuit = found.circuits[task] = prune(
                bench, threshold=config.threshold, one_iter=config.one_iter, report=report, deadline=deadline
            )
            _stop_if_interrupted(circuit.complete, deadline)
            found.importance[task] = importance(bench, circuit.nodes)
            found.roles[task] = head_roles(model, given, circuit.heads)
            found.lens[task] = logit_lens(model, given)
        nodes = {task: circuit.nodes for task, circuit in found.circuits.items()}
        scored = {task: Bench(model, held[task], config.reference) for task in rows if task in held}
        if scored:
            found.transfer = transfer(nodes, scored, controls=config.controls, seed=config.seed, report=report)
            _stop_if_interrupted(found.transfer.complete)
        if config.edge_prompts:
            for task, names in nodes.items():
                found.edges[task] = _edges(model, rows[task], benches[task], names, config, report)
                _stop_if_interrupted(found.edges[task].complete)
        if config.effects:
            means = next(iter(benches.values())).runner.reference
            found.effects = side_effects(
                model, nodes, means, other_tasks(), controls=config.effects, seed=config.seed, report=report
            )
        if config.restarts:
            first = next(iter(rows.values()))
            kinds: tuple[Literal["prompts", "order"], ...] = ("prompts", "order")
            found.stability = tuple(
                stability(
                    model,
                    first,
                    over=over,
                    runs=config.restarts,
                    seed=config.seed,
                    threshold=config.threshold,
                    reference=config.reference,
                    report=report,
                )
                for over in kinds
            )
    except KeyboardInterrupt:
        return found, False
    parts = [*found.circuits.values(), *found.edges.values(), *([found.transfer] if found.transfer else [])]
    return found, bool(found.transfer) and all(part.complete for part in parts)


def _stop_if_interrupted(complete: bool, deadline: float | None = None) -> None:
    """Every part keeps what it has on Ctrl-C; what comes after it must not start. Out of time is no interruption."""
    if not complete and (deadline is None or time.monotonic() < deadline):
        raise KeyboardInterrupt


def _edges(
    model: "Model", rows: Rows, bench: Any, names: tuple[str, ...], config: SequenceConfig, report: "Report"
) -> Any:
    from cutaway.circuits.nodes import Reference
    from cutaway.circuits.sequence_continuation.edges import prune_edges
    from cutaway.circuits.sequence_continuation.method import Bench

    few, given = range(min(config.edge_prompts, len(rows))), bench.runner.reference
    if len(given.z) > 1:
        given = Reference(given.z[: len(few)], given.mlp[: len(few)], given.kind)
    return prune_edges(Bench(model, rows.take(few), given), names, threshold=config.edge_threshold, report=report)


def _reporter(lab: Lab) -> "Report":
    return lambda done, planned, note: lab.progress(Progress(float(done), float(planned), "nodes", note))
