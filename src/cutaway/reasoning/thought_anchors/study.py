"""The thought-anchors study: config, wiring, findings and calibration."""

import json
import time
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.reasoning.source import TraceConfig
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, study

if TYPE_CHECKING:
    from cutaway.reasoning.rollouts import Report
    from cutaway.reasoning.thought_anchors.result import AnchorMap


class ThoughtAnchorsConfig(TraceConfig):
    tokens: int | None = Field(None, ge=1)
    """Budget in decoded tokens; default: a fifth of what the uniform estimator would cost."""
    minutes: float | None = Field(None, gt=0)
    """Stop adding rollouts after this time."""
    exact: bool = False
    """The paper's estimator: 100 free rollouts from every boundary."""
    delta: float = Field(0.2, gt=0, lt=1)
    """Effects within +-delta count as none."""
    fdr: float = Field(0.05, gt=0, lt=1)
    """False-discovery rate of the certified anchors."""
    also: str = "categories,attention,suppression"
    """What else to measure: categories, attention, suppression; with rollouts: importance, influence, forced."""
    rollouts: int = Field(100, ge=2)
    """Free rollouts at every boundary, for what needs them."""
    forcing: str = ""
    """The text that asks for the answer at once, for forced."""


@study
class ThoughtAnchors(Study[ThoughtAnchorsConfig]):
    id = "thought-anchors"
    title = "Which sentences of a chain of thought decided its answer"
    paper = "Bogdan, Macar, Nanda, Conmy 2025, arXiv:2506.19143"
    status = "resampling curve, band, certified anchors; calibrated"
    Config = ThoughtAnchorsConfig

    def run(self, config: ThoughtAnchorsConfig, lab: Lab) -> Findings:
        """Sample a trace, find its anchors."""
        from cutaway.reasoning.embedding import load_embedder
        from cutaway.reasoning.source import ask, tree_key
        from cutaway.reasoning.thought_anchors.account import Account, account, check_parts
        from cutaway.reasoning.thought_anchors.method import asked_anchors
        from cutaway.reasoning.thought_anchors.result import anchors_view
        from cutaway.sampling import BranchTree, LocalEngine

        model = lab.model(config.model, config.dtype)
        parts = check_parts([part.strip() for part in config.also.split(",") if part.strip()])
        deadline = time.monotonic() + 60 * config.minutes if config.minutes else None
        engine, report = LocalEngine(model), reporter(lab)
        embed = load_embedder(config.embedder) if config.embedder else None
        with BranchTree.open(lab.tree_folder(tree_key(model, config.prompt, config.raw)), model.fingerprint) as tree:
            asked = ask(
                engine,
                config.prompt,
                config.outcome,
                settings=config.settings(),
                raw=config.raw,
                seed=config.seed,
                tree=tree,
            )
            anchors = asked_anchors(
                engine,
                config.prompt,
                asked,
                seed=config.seed,
                # A time limit alone may spend as many tokens as it likes.
                budget=config.tokens if config.tokens or not config.minutes else 10**9,
                estimator="uniform" if config.exact else "deviation",
                delta=config.delta,
                fdr=config.fdr,
                tree=tree,
                embed=embed,
                report=report,
                deadline=deadline,
            )
            more = Account()
            if anchors.complete:  # whoever stopped the run wants no more of it
                more = account(
                    engine,
                    asked,
                    anchors,
                    parts,
                    rollouts=config.rollouts,
                    forcing=config.forcing,
                    embed=embed,
                    seed=config.seed,
                    tree=tree,
                    report=report,
                )
        view = anchors_view(
            anchors, title=config.prompt, tracks=more.tracks, links=more.links, categories=more.categories
        )
        return Findings(
            items=(*findings(anchors), *more.findings),
            summary=summarise(anchors),
            artifacts={"anchors.json": as_json(anchors.to_dict()), "view.json": as_json(view.to_dict())},
            inputs={f"weights:{model.name}": model.fingerprint},
            cost=engine.cost,
            complete=anchors.complete and more.complete,
            result=anchors,
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Band coverage and recall on a planted reasoner, false anchors where nothing has an effect."""
        from cutaway.reasoning.thought_anchors.calibration import calibrate

        return calibrate(self.id, lab, 200 if trials is None else trials)


def as_json(value: object) -> bytes:
    """An artifact's content."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def reporter(lab: Lab) -> "Report":
    """Hand a method's progress to the lab."""
    return lambda spent, planned, note: lab.progress(Progress(float(spent), float(planned), "tokens", note))


def findings(anchors: "AnchorMap") -> tuple[Finding, ...]:
    """The numbers a ledger keeps: one per certified sentence, the start of the curve, counts and shares."""
    total = int(anchors.draws.sum())
    control = Finding(
        "anchors certified, each sentence against itself", float(anchors.control), n=len(anchors.sentences)
    )
    items = [
        Finding("anchors certified", float(len(anchors.anchors)), n=len(anchors.sentences), control=control),
        Finding(
            f"P({anchors.answers[0]}) before the first sentence",
            float(anchors.curve[0, 0]),
            float(anchors.low[0, 0]),
            float(anchors.high[0, 0]),
            n=total,
        ),
        Finding("share of rollouts without an answer", anchors.unanswered, n=total)
        if total
        else Finding("share of rollouts without an answer", None, undefined="no rollout was finished"),
    ]
    items += [
        Finding(
            f"effect of sentence {i + 1}",
            float(anchors.effect[i]),
            float(anchors.effect_low[i]),
            float(anchors.effect_high[i]),
            n=int(anchors.draws[i]),
            unit=f"change of P({anchors.answers[0]})",
        )
        for i in range(len(anchors.sentences))
    ]
    return tuple(items)


def summarise(anchors: "AnchorMap") -> str:
    """One line: the answer and what decided it."""
    answer = f"answer {anchors.answers[0]!r}"
    partial = "" if anchors.complete else " (not every sentence decided)"
    if not anchors.anchors:
        return f"{answer}: no sentence certified as an anchor among {len(anchors.sentences)}{partial}"
    i = anchors.anchors[0]
    return (
        f"{answer}: sentence {i + 1} moved P from {anchors.curve[i, 0]:.2f} to {anchors.curve[i + 1, 0]:.2f}; "
        f"{len(anchors.anchors)} of {len(anchors.sentences)} sentences certified{partial}"
    )
