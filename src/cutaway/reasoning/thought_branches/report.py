"""A branch report as findings, tracks and charts."""

import json
from collections.abc import Sequence

from cutaway.charts import Chart, Series
from cutaway.reasoning.thought_branches.chain import Effect
from cutaway.reasoning.thought_branches.method import BranchReport
from cutaway.reasoning.thought_branches.offpolicy import VERDICTS, Interventions
from cutaway.reasoning.thought_branches.resilience import Resilience
from cutaway.reasoning.thought_branches.transplant import Mediation
from cutaway.reasoning.view import TraceView, Track
from cutaway.stats import Interval
from cutaway.study import Finding

STUDY = "thought-branches"


def finding(name: str, effect: Effect, unit: str = "change of rate", control: Finding | None = None) -> Finding:
    """The change of rate as a finding; undefined with its reason."""
    n = min(effect.n_with, effect.n_without)
    rate = effect.rate
    if rate is None:
        return Finding(name, None, n=n, control=control, undefined=effect.undefined)
    return Finding(name, rate.value, rate.low, rate.high, rate.level, n, unit, control)


def findings(report: BranchReport) -> tuple[Finding, ...]:
    """The numbers a ledger keeps."""
    control = finding("first boundary, one half of its rollouts against the other", report.control)
    unit = f"change of P({report.target})"
    items = [
        finding(f"importance of sentence {each.sentence + 1}", each.effect, unit, control) for each in report.importance
    ]
    for each in report.resilience:
        where, gone = f"sentence {each.sentence + 1}", each.count("gone")
        items += [
            finding(f"importance++ of {where}", each.plus, unit, control),
            finding(f"importance++ of {where} by rejection", each.conditional, unit, control),
            _interval(f"resilience of {where}", each.mean, "returns", f"all {len(each.runs)} runs are undefined"),
            _interval(f"draws that replace {where}", each.acceptance, "share", "nothing was drawn"),
            Finding(f"runs that got rid of {where}", gone / len(each.runs), n=len(each.runs), unit="share"),
        ]
    if report.interventions is not None:
        items += _steering(report.interventions, unit)
    if report.mediation is not None:
        items += _mediated(report.mediation)
    for swap in report.swaps:
        items.append(finding(f"one hinted sentence at place {swap.place + 1}", swap.effect, unit, control))
    return tuple(items)


def view(report: BranchReport, meta: dict[str, str]) -> TraceView:
    """The chain with a track for each number a sentence has."""
    n = len(report.sentences)
    effects = {each.sentence: each.effect for each in report.importance}
    removed = {each.sentence: each for each in report.resilience}
    last = "states the answer, or stands after the reasoning"
    plus = {i: each.plus for i, each in removed.items()}
    rejection = {i: each.conditional for i, each in removed.items()}
    returns = {i: each.mean for i, each in removed.items()}
    tracks = (
        _track("counterfactual importance", "Rate kept minus rate with another sentence.", n, _rates(effects), last),
        _track("importance++", "Rate kept minus rate once it is gone for good.", n, _rates(plus), "not removed"),
        _track(
            "importance++ by rejection", "The same, from chains that never say it.", n, _rates(rejection), "not removed"
        ),
        _track("resilience", "How often it came back when taken away.", n, returns, "not removed", "returns"),
    )
    rates = {each.sentence: each.before for each in report.importance}
    if report.importance:
        rates[report.importance[-1].sentence + 1] = report.importance[-1].after
    curve = _track(f"P({report.target})", "Rate of the target before each sentence.", n + 1, rates, last)
    return TraceView(
        f"Branches of one chain, answer {report.answer}",
        report.prompt,
        report.sentences,
        report.answer,
        curve=curve,
        tracks=tracks,
        meta=meta,
    )


def charts(report: BranchReport) -> tuple[Chart, ...]:
    """Survival of each removed sentence, the transplant curve, and insertions by how likely they were."""
    out = [_survival(report.resilience)] if any(each.curve for each in report.resilience) else []
    if report.interventions is not None:
        out += _scatter(report.interventions)
    if report.mediation is not None:
        out.append(_transplant(report.mediation))
    return tuple(out)


def view_json(report: BranchReport, meta: dict[str, str]) -> bytes:
    """The artifact ``view.json``."""
    return (json.dumps(view(report, meta).to_dict(), ensure_ascii=False) + "\n").encode()


def _interval(name: str, found: Interval | None, unit: str, why: str) -> Finding:
    if found is None or found.value != found.value:
        return Finding(name, None, undefined=why)
    return Finding(name, found.value, found.low, found.high, found.level, found.n, unit)


def _rates(effects: dict[int, Effect]) -> dict[int, Interval | None]:
    return {i: effect.rate for i, effect in effects.items()}


def _track(
    name: str, what: str, n: int, found: dict[int, Interval | None] | dict[int, Interval], why: str, unit: str = ""
) -> Track:
    known = {i: each for i, each in found.items() if each is not None}
    return Track(
        name,
        what,
        tuple(known[i].value if i in known else None for i in range(n)),
        tuple(known[i].low if i in known else None for i in range(n)),
        tuple(known[i].high if i in known else None for i in range(n)),
        unit,
        tuple("" if i in known else ("undefined: no such runs" if i in found else why) for i in range(n)),
        STUDY,
    )


def _steering(found: Interventions, unit: str) -> list[Finding]:
    controls = {each.kind: finding(f"{each.kind}", each.effect, unit) for each in found.items if "control" in each.kind}
    paraphrase = controls.get("paraphrase control")
    items = [
        finding(f"{each.kind}: {each.name}", each.effect, unit, paraphrase)
        for each in found.items
        if "control" not in each.kind
    ]
    plain = sum(found.plain.values())
    base = Finding("no effect, plain continuations", found.plain["no effect"] / max(1, plain), n=plain, unit="share")
    for kind in ("handwritten", "other problem", "on-policy"):
        of_kind = [each for each in found.items if each.kind == kind and each.verdicts]
        total = sum(sum(each.verdicts.values()) for each in of_kind)
        if total:
            quiet = sum(each.verdicts["no effect"] for each in of_kind)
            items.append(Finding(f"no effect, {kind}", quiet / total, n=total, unit="share", control=base))
        else:
            items.append(Finding(f"no effect, {kind}", None, undefined=f"no {kind} text could be made"))
    why = f"{found.trend_n} scored points, or all alike; at least 3 are needed"
    items.append(
        Finding("change of rate against mean log-probability", found.trend, n=found.trend_n, unit="Spearman")
        if found.trend is not None
        else Finding("change of rate against mean log-probability", None, undefined=why)
    )
    return items


def _mediated(found: Mediation) -> list[Finding]:
    last, unit = found.cuts[-1], f"change of P({found.answer})"
    return [
        _interval("hint, total effect", found.total, unit, "no rollouts"),
        _interval("hint, through the whole chain (indirect)", last.indirect, unit, "no rollouts"),
        _interval("hint, besides the whole chain (direct)", last.direct, unit, "no rollouts"),
        Finding("direct plus indirect minus total", found.gap(len(found.cuts) - 1), n=found.chains, unit=unit),
    ]


def _survival(removed: Sequence[Resilience]) -> Chart:
    cap = max(each.cap for each in removed)
    x = tuple(float(k) for k in range(cap))
    series = []
    for each in removed:
        if each.curve is not None:
            known = each.curve.times[-1] if each.curve.survival[-1] > 0 else cap
            y = tuple(each.curve.at(k) if k <= known else None for k in x)
            series.append(Series(f"sentence {each.sentence + 1}", y))
    note = "Kaplan-Meier; runs that reach the cap are censored there. A slow fall means an idea that keeps returning."
    return Chart("How often a removed sentence comes back", x, tuple(series), "returns", "P(more returns)", note)


def _scatter(found: Interventions) -> list[Chart]:
    points = sorted(
        (each for each in found.items if each.mean_logprob is not None and each.effect.rate is not None),
        key=lambda each: each.mean_logprob or 0.0,
    )
    # One x may belong to several points; charts take one value a series there, so equal ones are told apart.
    x = tuple((each.mean_logprob or 0.0) + 1e-9 * k for k, each in enumerate(points))
    kinds = list(dict.fromkeys(each.kind for each in points))
    series = tuple(
        Series(
            kind,
            tuple(p.effect.rate.value if p.kind == kind and p.effect.rate else None for p in points),
            tuple(p.effect.rate.low if p.kind == kind and p.effect.rate else None for p in points),
            tuple(p.effect.rate.high if p.kind == kind and p.effect.rate else None for p in points),
            control="control" in kind,
        )
        for kind in kinds
    )
    shares = tuple(Series(v, tuple(p.share(v) for p in points)) for v in VERDICTS)
    names = tuple(f"{p.kind}: {p.name}" for p in points)
    note = "Left: texts that the model would hardly write here. Controls in the background."
    label = "mean token log-probability of the inserted text, nats"
    return [
        Chart("What an inserted text changes", x, series, label, "change of rate", note),
        Chart("What continuations do with it", names, shares, "", "share", "By the rules in the method's text."),
    ]


def _transplant(found: Mediation) -> Chart:
    cuts = found.cuts
    moved = Series(
        "without the hint",
        tuple(cut.moved.value for cut in cuts),
        tuple(cut.band[0] for cut in cuts),
        tuple(cut.band[1] for cut in cuts),
    )
    hinted = Series(
        "with the hint",
        tuple(cut.hinted.value for cut in cuts),
        tuple(cut.hinted.low for cut in cuts),
        tuple(cut.hinted.high for cut in cuts),
    )
    base = Series("nothing pasted", tuple(found.base.value for _ in cuts), control=True)
    note = "Chains written under the hint, pasted up to a cut. The band holds for all cuts together."
    x = tuple(cut.fraction for cut in cuts)
    return Chart(
        f"P({found.answer}) by how much is pasted", x, (moved, hinted, base), "share of sentences", "rate", note
    )
