"""What else there is to say about one trace: labels, attention, suppression and black-box importance, as one view.

Each part is asked for by name (`PARTS`); a part that a trace is too short for is left out with its reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cutaway.errors import UsageError, nearest
from cutaway.model import Model
from cutaway.reasoning.embedding import Embed
from cutaway.reasoning.rollouts import Report
from cutaway.reasoning.source import Asked
from cutaway.reasoning.thought_anchors.boundaries import Draws, draw_boundaries
from cutaway.reasoning.thought_anchors.forced import Forced, choice_ids, force_answers
from cutaway.reasoning.thought_anchors.importance import measure_importance
from cutaway.reasoning.thought_anchors.influence import measure_influence
from cutaway.reasoning.thought_anchors.receivers import RULES, receiver_heads
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.thought_anchors.suppression import suppression_matrix
from cutaway.reasoning.thought_anchors.taxonomy import label_sentences
from cutaway.reasoning.view import Links, Track
from cutaway.sampling import BranchTree, LocalEngine, Trace
from cutaway.study import Finding

PARTS = ("categories", "attention", "suppression", "importance", "influence", "forced")
"""The first three cost a few forwards; the others draw rollouts at every boundary."""
TOP_HEADS = 20
RECEIVERS_NEED = RULES["published"][0] + 2


@dataclass(frozen=True)
class Account:
    """The parts that were asked for."""

    tracks: tuple[Track, ...] = ()
    links: tuple[Links, ...] = ()
    categories: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()
    complete: bool = True

    def __add__(self, other: "Account") -> "Account":
        return Account(
            self.tracks + other.tracks,
            self.links + other.links,
            self.categories or other.categories,
            self.findings + other.findings,
            self.complete and other.complete,
        )


def check_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """``parts`` in the order of `PARTS`; UsageError for an unknown one."""
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"also={part!r}: choose from {', '.join(PARTS)}{nearest(part, PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def account(
    engine: LocalEngine,
    asked: Asked,
    anchors: AnchorMap,
    parts: Sequence[str],
    *,
    rollouts: int = 100,
    forcing: str = "",
    embed: Embed | None = None,
    seed: int = 0,
    tree: BranchTree | None = None,
    report: Report = lambda done, planned, note: None,
) -> Account:
    """Measure ``parts`` of one trace. ``rollouts`` are drawn at every boundary where a part needs them.

    ``forcing`` is the text that asks for the answer at once, needed by the part of that name. Ctrl-C keeps the parts
    that are done.
    """
    model, trace = engine.model, asked.trace
    parts, found = check_parts(parts), Account()
    try:
        if "categories" in parts:
            found += Account(categories=label_sentences(anchors.sentences))
        if "attention" in parts:
            found += _attention(model, trace)
        if "suppression" in parts:
            found += _suppression(model, trace, seed, report)
        forced = _forced(engine, asked, forcing, rollouts, seed, tree) if "forced" in parts else None
        if {"importance", "influence", "forced"} & set(parts):
            draws: Sequence[Draws | None] = [None] * trace.n_sentences
            if forced is None or forced.complete:  # whoever stopped the forced answers wants no rollouts either
                draws = draw_boundaries(
                    engine, trace, asked.outcome, model.decode, rollouts, seed=seed, tree=tree, report=report
                )
            for part in _from_rollouts(anchors, draws, parts, forced, embed, seed):
                found += part
    except KeyboardInterrupt:
        found += Account(complete=False)
    return found


def _from_rollouts(
    anchors: AnchorMap,
    draws: Sequence[Draws | None],
    parts: Sequence[str],
    forced: Forced | None,
    embed: Embed | None,
    seed: int,
) -> Iterator[Account]:
    if {"importance", "forced"} & set(parts):
        table = measure_importance(anchors.sentences, draws, anchors.answers[0], embed=embed, forced=forced, seed=seed)
        yield Account(tracks=table.tracks(), complete=table.complete)
    if "influence" in parts:
        influence = measure_influence(anchors.sentences, draws, embed, seed=seed)
        control = Finding("links kept among shuffled rollouts", float(influence.control), n=influence.tested)
        kept = Finding("sentence-to-sentence links kept", float(influence.kept.sum()), n=influence.tested)
        yield Account(links=(influence.links(),), findings=(_beside(kept, control),))


def _beside(finding: Finding, control: Finding) -> Finding:
    return Finding(finding.name, finding.value, finding.low, finding.high, n=finding.n, control=control)


def _attention(model: Model, trace: Trace) -> Account:
    name = "receiver heads: kurtosis above uniform attention, certified"
    if trace.n_sentences < RECEIVERS_NEED:
        reason = f"{trace.n_sentences} sentences; receiver heads need at least {RECEIVERS_NEED}"
        return Account(findings=(Finding(name, None, undefined=reason),))
    top = min(TOP_HEADS, (model.n_layers - 1) * model.n_heads - 1)
    if top < 1:
        return Account(findings=(Finding(name, None, undefined="the model has one layer, and layer 0 is left out"),))
    found = receiver_heads(model, [trace], top=top)
    heads = Finding(name, None, undefined="one trace; certification needs several: cutaway run thought-anchors on more")
    best = Finding("largest head kurtosis", float(found.kurtosis[found.heads[0]]), n=trace.n_sentences)
    uniform = Finding("kurtosis of uniform attention", float(found.uniform[0]), n=trace.n_sentences)
    return Account(tracks=found.tracks(study="thought-anchors"), findings=(heads, _beside(best, uniform)))


def _suppression(model: Model, trace: Trace, seed: int, report: Report) -> Account:
    name = "suppression links above length-matched random spans"
    if trace.n_sentences < 2:
        return Account(findings=(Finding(name, None, undefined="one sentence; nothing earlier can be hidden"),))
    found = suppression_matrix(model, trace, seed=seed, report=report)
    links = found.links(study="thought-anchors")
    count = Finding(name, float(len(links.links)), n=trace.n_sentences * (trace.n_sentences - 1) // 2)
    return Account(found.tracks(study="thought-anchors"), (links,), None, (count,), found.complete)


def _forced(
    engine: LocalEngine, asked: Asked, forcing: str, rollouts: int, seed: int, tree: BranchTree | None
) -> Forced:
    if not forcing:
        raise UsageError("also=forced: give forcing, the text that asks for the answer, such as ' So the answer is'")
    model, trace, outcome = engine.model, asked.trace, asked.outcome
    ids = model.encode(forcing)
    if str(getattr(outcome, "spec", "")).partition(":")[0] in {"letter", "choice"}:
        return force_answers(engine, trace, ids, choices=choice_ids(outcome, model.encode))
    return force_answers(engine, trace, ids, outcome=outcome, decode=model.decode, n=rollouts, seed=seed, tree=tree)
