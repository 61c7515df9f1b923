"""The addition-subtraction study: config, wiring, findings and calibration."""

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cutaway.errors import UsageError
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.charts import Chart, Heat
    from cutaway.circuits.addition_subtraction.method import Explanation
    from cutaway.circuits.addition_subtraction.survey import Survey
    from cutaway.circuits.arithmetic.recipes import Recipe
    from cutaway.circuits.arithmetic.store import Stored
    from cutaway.stats import Interval


class AdditionSubtractionConfig(StudyConfig):
    models: str = "small-1-layer,small-2-layers"
    """Presets or published names, separated by commas; ``all`` is the whole published inventory."""
    folder: str = ""
    """Analyse this trained model instead of training; ``models`` is then ignored."""
    steps: int | None = Field(None, ge=1)
    """Train for so many steps instead of each model's own number."""
    questions: int = Field(10_000, ge=100)
    """Uniform questions for accuracy; the published count is 1,000,000."""
    per_class: int = Field(1000, ge=30)
    """Questions of every complexity class for accuracy."""
    map_per_class: int = Field(60, ge=30)
    """Questions of every class for the map of useful nodes."""
    pairs: int = Field(100, ge=30)
    """Sampled pairs of each interchange test."""
    explained: bool = True
    """Also map nodes and search sub-tasks; off: accuracy only."""
    survey: str = ""
    """Language model that is asked the thirty survey questions as well; empty: none."""
    survey_tokens: int = Field(64, ge=1)
    """Longest survey answer; published: 1024."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = Field(0, ge=0)
    """Of the questions."""


@dataclass(frozen=True)
class Result:
    """One model."""

    stored: "Stored"
    errors: "dict[str, Interval]"
    explanation: "Explanation | None"


@study
class AdditionSubtraction(Study[AdditionSubtractionConfig]):
    id = "addition-subtraction"
    title = "Which node of a small model does which part of adding and subtracting"
    paper = "Quirke, Neo, Barez 2024, arXiv:2402.02619"
    status = "published configurations, node map, sub-task search with controls, clauses, survey; calibrated"
    Config = AdditionSubtractionConfig

    def run(self, config: AdditionSubtractionConfig, lab: Lab) -> Findings:
        """Train or load every model, measure it and take it apart; ask the survey where a model is named."""
        done: list[Result] = []
        complete, surveyed = True, None
        try:
            for stored in _models(config, lab):
                if not stored.complete:
                    complete = False
                    break
                done.append(analyse(stored, config, lab))
            if config.survey and complete:
                surveyed = _survey(config, lab)
        except KeyboardInterrupt:
            complete = False
        if not done and surveyed is None:
            item = Finding("models analysed", None, undefined="stopped before a model was complete")
            return Findings((item,), "stopped before a model was complete; run again to go on", complete=False)
        return Findings(
            items=(*findings(done), *_survey_findings(config, surveyed)),
            summary=summarise(done, surveyed),
            artifacts=_artifacts(done, surveyed),
            charts=charts(done),
            inputs={f"weights:{_name(each.stored)}": each.stored.model.fingerprint for each in done},
            complete=complete,
            result=(tuple(done), surveyed),
        )

    def inputs(self, config: AdditionSubtractionConfig, lab: Lab) -> dict[str, str]:
        """The weights that are there already; a model not yet trained is not an input."""
        if not config.folder:
            return {}
        from pathlib import Path

        from cutaway.circuits.arithmetic.store import open_folder

        stored = open_folder(Path(config.folder))
        return {f"weights:{_name(stored)}": stored.model.fingerprint}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted adders of two layers: (node, sub-task) pairs, split jobs, and noise."""
        from cutaway.circuits.addition_subtraction.calibration import all_rates

        started, trials = time.monotonic(), 6 if trials is None else trials
        rates = all_rates(trials, lambda i, n: lab.progress(Progress(float(i), float(n), "models")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def plans(config: AdditionSubtractionConfig) -> "list[Recipe]":
    """The recipes a config names; UsageError for an unknown one before anything is trained."""
    from cutaway.circuits.arithmetic.recipes import PUBLISHED, recipe

    names = PUBLISHED if config.models == "all" else [n.strip() for n in config.models.split(",") if n.strip()]
    if not names:
        raise UsageError("models is empty; name a preset, a published configuration, or all")
    found = [recipe(name) for name in names]
    if config.steps is not None:
        found = [recipe(each.name, steps=config.steps, warmup=min(each.warmup, config.steps // 5)) for each in found]
    if plain := [each.name for each in found if not each.signed]:
        raise UsageError(f"{plain[0]}: has no sign token; use the study addition-transformers")
    return found


def _models(config: AdditionSubtractionConfig, lab: Lab) -> Any:
    from pathlib import Path

    from cutaway.circuits.arithmetic.store import obtain, open_folder

    if config.folder:
        yield open_folder(Path(config.folder), device=config.device)
        return
    wanted = plans(config)
    whole = float(sum(plan.steps for plan in wanted))
    before = 0.0
    for plan in wanted:

        def tell(done: int, total: int, loss: float, start: float = before, name: str = plan.name) -> None:
            lab.progress(Progress(min(start + done, whole), whole, "steps", f"{name} loss {loss:.2g}"))

        yield obtain(plan, lab.home / "arithmetic", device=config.device, report=tell)
        before += plan.steps


def analyse(stored: "Stored", config: AdditionSubtractionConfig, lab: Lab) -> Result:
    """Errors by class, and what the nodes do."""
    from cutaway.circuits.addition_subtraction.method import class_errors, explain

    model, recipe = stored.model, stored.recipe
    errors = class_errors(
        model,
        recipe.format,
        recipe.operation,
        uniform_n=config.questions,
        per_class_n=config.per_class,
        seed=1000 * config.seed + 7,
    )
    if not config.explained:
        return Result(stored, errors, None)
    explanation = explain(
        model,
        recipe.format,
        recipe.operation,
        per_class_n=config.map_per_class,
        pairs=config.pairs,
        seed=1000 * config.seed,
        report=lambda done, total, note: lab.progress(Progress(float(done), float(total), "sub-tasks", note)),
    )
    return Result(stored, errors, explanation)


def findings(done: list[Result]) -> tuple[Finding, ...]:
    """Numbers of every model."""
    items: list[Finding] = []
    for each in done:
        name = _name(each.stored)
        for label, share in each.errors.items():
            items.append(Finding.of(f"{name}: wrong, {label}", share))
        if each.explanation is None:
            continue
        roles, verdicts = each.explanation.roles, each.explanation.verdicts
        cover = roles.coverage
        items.append(
            Finding.of(f"{name}: useful heads with a purpose", cover)
            if cover.n
            else Finding(f"{name}: useful heads with a purpose", None, undefined="no head is useful")
        )
        tested = [verdict for verdict in verdicts if verdict.outcome != "not testable"]
        held = sum(verdict.outcome == "valid" for verdict in tested)
        items.append(Finding(f"{name}: clauses that hold", float(held), n=len(tested)))
        items.append(_matches(name, each.explanation))
    return tuple(items)


def _matches(name: str, explanation: "Explanation") -> Finding:
    """Mean exact matches over the strong tags, beside those of other useful nodes on the same pairs."""
    import numpy as np

    from cutaway.stats import mean_interval

    strong = [tag for tag in explanation.roles.tags if tag.strength == "strong"]
    label = f"{name}: interchange gives the predicted answer"
    if len(strong) < 2:
        return Finding(label, None, undefined=f"{len(strong)} strong tags were found")
    own = mean_interval([tag.match.value for tag in strong])
    others = [tag.random for tag in strong if not np.isnan(tag.random)]
    beside = mean_interval(others) if len(others) > 1 else None
    control = (
        Finding.of("another useful node", beside)
        if beside is not None
        else Finding("another useful node", None, undefined="there is none")
    )
    return Finding.of(label, own, control=control)


def summarise(done: list[Result], surveyed: "Survey | None") -> str:
    """One line."""
    parts = []
    for each in done:
        worst = max(each.errors, key=lambda label: each.errors[label].value)
        parts.append(f"{_name(each.stored)} errs most on {worst} ({100 * each.errors[worst].value:.2g}%)")
    if surveyed is not None:
        parts.append(f"survey: {surveyed.score('addition')} additions, {surveyed.score('subtraction')} subtractions")
    return "; ".join(parts[:4]) + ("; ..." if len(parts) > 4 else "")


def charts(done: list[Result]) -> "tuple[Chart | Heat, ...]":
    """Learning, accuracy by class, and the node map of each model (of the first four)."""
    from cutaway.circuits.arithmetic.draw import class_chart, loss_chart
    from cutaway.stats import Interval

    out: list[Chart | Heat] = []
    for each in done[:4]:
        name = _name(each.stored)
        right = {
            label: Interval(1 - share.value, 1 - share.high, 1 - share.low, share.n, share.level)
            for label, share in each.errors.items()
        }
        out += [loss_chart(each.stored.training), class_chart(f"Right answers by class: {name}", right)]
        if each.explanation is not None:
            out.append(each.explanation.nodes.heat(f"Answers broken when a node is mean-ablated: {name}"))
    return tuple(out)


def _artifacts(done: list[Result], surveyed: "Survey | None") -> dict[str, bytes]:
    out = {"models.json": _as_json([report(each) for each in done])}
    if surveyed is not None:
        out["survey.json"] = _as_json(surveyed.to_dict())
    return out


def report(each: Result) -> dict[str, Any]:
    """One model's results as plain JSON types."""
    from cutaway.circuits.addition_subtraction.method import nines

    uniform = {k: v for k, v in each.errors.items() if k.startswith("uniform")}
    out: dict[str, Any] = {
        "model": _name(each.stored),
        "recipe_sha256": each.stored.recipe.digest,
        "weights_sha256": each.stored.model.fingerprint,
        "errors": {label: {"share": s.value, "high": s.high, "n": s.n} for label, s in each.errors.items()},
        "nines": {label: nines(round(s.value * s.n), s.n) for label, s in uniform.items()},
    }
    if each.explanation is not None:
        found = each.explanation
        out |= {
            "positions": found.positions.to_dict(),
            "nodes": found.nodes.to_dict(),
            "roles": found.roles.to_dict(),
            "mlps": found.mlps.to_dict(),
            "attends": found.attends,
            "clauses": [verdict.to_dict() for verdict in found.verdicts],
            "geometry": [
                {"node": str(g.node), "column": g.column, "agreement": g.agreement, "accepted": g.accepted}
                for g in found.geometry
            ],
        }
    return out


def _survey(config: AdditionSubtractionConfig, lab: Lab) -> "Survey":
    from cutaway.circuits.addition_subtraction.survey import asker, run_survey

    return run_survey(asker(lab.model(config.survey), config.survey_tokens))


def _survey_findings(config: AdditionSubtractionConfig, surveyed: "Survey | None") -> tuple[Finding, ...]:
    if surveyed is None:
        return ()
    return tuple(
        Finding(f"{config.survey}: consecutive {operation}s right", float(surveyed.score(operation)), n=15)
        for operation in ("addition", "subtraction")
    )


def _name(stored: "Stored") -> str:
    own = f"_s{stored.recipe.seed}"
    return stored.recipe.name if stored.recipe.name.endswith(own) else f"{stored.recipe.name}{own}"


def _as_json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
