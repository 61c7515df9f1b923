"""A branch report as findings, tracks and charts."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cutaway.charts import Chart, Series
from cutaway.reasoning.thought_branches.chain import Effect
from cutaway.reasoning.thought_branches.method import BranchReport
from cutaway.reasoning.thought_branches.offpolicy import VERDICTS, Interventions, Verdict
from cutaway.reasoning.thought_branches.resilience import Resilience
from cutaway.reasoning.thought_branches.transplant import Mediation
from cutaway.reasoning.view import TraceView, Track
from cutaway.stats import Interval, wilson
from cutaway.stats.survival import Survival
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
    """The numbers a ledger keeps: removed sentences first, then the hint, the insertions, and every sentence."""
    control = finding("first boundary, one half of its rollouts against the other", report.control)
    unit = f"change of P({report.target})"
    items = [item for each in report.resilience for item in _removed(each, unit, control)]
    if report.mediation is not None:
        items += _mediated(report.mediation, control)
    if report.interventions is not None:
        items += _steering(report.interventions, unit)
    for each in report.importance:
        plain = " (plain resampling)" if each.resampled else ""
        items.append(finding(f"importance of sentence {each.sentence + 1}{plain}", each.effect, unit, control))
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
        _track(
            "counterfactual importance",
            "Rate kept minus rate with another sentence, each interval by itself.",
            n,
            _rates(effects),
            last,
        ),
        _track(
            "importance++",
            "Rate kept minus rate once it is gone; intervals hold for all removed sentences together.",
            n,
            _rates(plus),
            "not removed",
        ),
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
    """Survival and thresholds of the removed sentences, the insertions, and the transplant curve."""
    out = [_survival(report.resilience)] if any(each.curve for each in report.resilience) else []
    if any(each.effect.rate for removed in report.resilience for each in removed.sweep):
        out.append(_thresholds(report.resilience, report.target))
    if report.interventions is not None:
        out += [_changes(report.interventions, report.target), _heard(report.interventions)]
    if report.mediation is not None:
        out.append(_transplant(report.mediation))
    return tuple(out)


def view_json(report: BranchReport, meta: dict[str, str]) -> bytes:
    """The artifact ``view.json``."""
    return (json.dumps(view(report, meta).to_dict(), ensure_ascii=False) + "\n").encode()


def _interval(name: str, found: Interval | None, unit: str, why: str, control: Finding | None = None) -> Finding:
    if found is None or found.value != found.value:
        return Finding(name, None, undefined=why)
    return Finding.of(name, found, unit=unit, control=control)


def _share(name: str, k: int, n: int, control: Finding | None = None) -> Finding:
    found = wilson(k, n)
    return Finding(name, found.value, found.low, found.high, found.level, n, "share", control)


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


def _removed(found: Resilience, unit: str, control: Finding) -> list[Finding]:
    where, total = f"sentence {found.sentence + 1}", len(found.runs)
    return [
        finding(f"importance++ of {where}", found.plus, unit, control),
        finding(f"importance++ of {where} by rejection", found.conditional, unit, control),
        _interval(f"resilience of {where}", found.mean, "returns", f"all {total} runs are undefined"),
        _interval(f"draws that replace {where}", found.acceptance, "share", "nothing was drawn"),
        _share(f"runs that got rid of {where}", found.count("gone"), total),
    ]


def _steering(found: Interventions, unit: str) -> list[Finding]:
    controls = {each.kind: finding(f"{each.kind}", each.effect, unit) for each in found.items if "control" in each.kind}
    paraphrase = controls.get("paraphrase control")
    base = _share("no effect, plain continuations", found.plain["no effect"], sum(found.plain.values()))
    items = []
    for kind in ("handwritten", "other problem", "on-policy"):
        heard = _verdicts(found, kind)
        if heard.total():
            items.append(_share(f"no effect, {kind}", heard["no effect"], heard.total(), base))
        else:
            items.append(Finding(f"no effect, {kind}", None, undefined=f"no {kind} text could be made"))
    items += [
        finding(f"{each.kind}: {each.name}", each.effect, unit, paraphrase)
        for each in found.items
        if "control" not in each.kind
    ]
    name, why = "change of rate against mean log-probability", f"{found.trend_n} scored points that differ, of 3 needed"
    items.append(
        Finding(name, found.trend, n=found.trend_n, unit="Spearman", undefined=why if found.trend is None else "")
    )
    return items


def _verdicts(found: Interventions, kind: str) -> Counter[Verdict]:
    """What continuations of all texts of a kind did."""
    out: Counter[Verdict] = Counter()
    for each in found.items:
        if each.kind == kind:
            out.update(each.verdicts)
    return out


def _mediated(found: Mediation, control: Finding) -> list[Finding]:
    last, unit = found.cuts[-1], f"change of P({found.answer})"
    return [
        _interval("hint, total effect", found.total, unit, "no rollouts", control),
        _interval("hint, through the whole chain (indirect)", last.indirect, unit, "no rollouts", control),
        _interval("hint, besides the whole chain (direct)", last.direct, unit, "no rollouts", control),
        _interval("direct plus indirect minus total", found.gap(len(found.cuts) - 1), unit, "no rollouts"),
    ]


def _survival(removed: Sequence[Resilience]) -> Chart:
    cap = max(each.cap for each in removed)
    x = tuple(float(k) for k in range(cap))
    series = []
    for each in removed:
        if each.curve is not None:
            known = each.curve.times[-1] if each.curve.survival[-1] > 0 else cap
            reach = [_at(each.curve, k) if k <= known else None for k in range(cap)]
            series.append(_series(f"sentence {each.sentence + 1}", reach))
    note = "Kaplan-Meier; runs that reach the cap are censored there. A slow fall means an idea that keeps returning."
    return Chart(
        "How often a removed sentence comes back", x, tuple(series), "returns, k", "P(more than k returns)", note
    )


def _at(curve: Survival, time: int) -> Interval:
    """The curve with its interval; open before the first time at which anything happened."""
    i = int(np.searchsorted(curve.times, time, side="right")) - 1
    low, high = (float(curve.low[i]), float(curve.high[i])) if i >= 0 else (float("nan"), float("nan"))
    return Interval(curve.at(time), low, high, curve.n, curve.level)


def _thresholds(removed: Sequence[Resilience], target: str) -> Chart:
    x = tuple(each.threshold for each in removed[0].sweep)
    series = [_series(f"sentence {each.sentence + 1}", [t.effect.rate for t in each.sweep]) for each in removed]
    note = (
        "Importance++ by rejection: rate kept minus rate of free rollouts without any sentence at this cosine or above."
    )
    title = "How much hangs on what counts as the same"
    return Chart(title, x, tuple(series), "cosine from which sentences say the same", f"change of P({target})", note)


def _changes(found: Interventions, target: str) -> Chart:
    points = [each for each in found.items if each.mean_logprob is not None and each.effect.rate is not None]
    points.sort(key=lambda each: each.mean_logprob or 0.0)
    names = tuple(
        f"{each.mean_logprob:.1f} {each.kind}" + ("" if "control" in each.kind else f": {each.name}") for each in points
    )
    series = _series("with the text minus without", [each.effect.rate for each in points])
    note = (
        "Before each name the text's mean token log-probability: the first rows are what the model would hardly write."
    )
    title = f"What a text after sentence {found.sentence + 1} changes"
    return Chart(title, names, (series,), "inserted text", f"change of P({target})", note)


def _heard(found: Interventions) -> Chart:
    kinds = list(dict.fromkeys(each.kind for each in found.items if each.verdicts))
    rows = [Counter(found.plain), *(_verdicts(found, kind) for kind in kinds)]
    shares = tuple(_series(verdict, [wilson(row[verdict], row.total()) for row in rows]) for verdict in VERDICTS)
    note = (
        "Acknowledged: the answer stays, but an early sentence repeats the text or reconsiders. Read every row against "
        "plain continuations, which get no text."
    )
    return Chart(
        "What continuations do with it", ("plain continuations", *kinds), shares, "kind of text", "share", note
    )


def _transplant(found: Mediation) -> Chart:
    cuts = found.cuts
    band = [Interval(each.moved.value, *each.band, each.moved.n, each.moved.level) for each in cuts]
    lines = (
        _series("without the hint", band),
        _series("with the hint", [each.hinted for each in cuts]),
        Series("nothing pasted", tuple(found.base.value for _ in cuts), control=True),
    )
    note = (
        f"{found.chains} chains written under the hint, pasted up to a cut. The first band holds for all cuts together."
    )
    title = f"P({found.answer}) by how much of a hinted chain is pasted"
    return Chart(title, tuple(each.fraction for each in cuts), lines, "share of its sentences pasted", "rate", note)


def _series(name: str, found: Sequence[Interval | None]) -> Series:
    value, low, high = (
        tuple(None if each is None else float(getattr(each, key)) for each in found) for key in ("value", "low", "high")
    )
    return Series(name, value, low, high)
