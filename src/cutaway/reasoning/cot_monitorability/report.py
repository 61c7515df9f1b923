"""What a run of the study says: findings with their controls, charts, and the page of one trace."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cutaway.charts import Chart, Series
from cutaway.reasoning.cot_monitorability.gate import Gate
from cutaway.reasoning.cot_monitorability.method import (
    Monitorability,
    Sample,
    as_suite,
    select_problems,
    total_effect,
)
from cutaway.reasoning.cot_monitorability.monitors import ACTION, BOTH, CHAIN, Monitor, Scope, monitor_track
from cutaway.reasoning.cot_monitorability.probe import JudgeMonitor, ProbeMonitor
from cutaway.reasoning.cot_monitorability.properties import Relevance, legible
from cutaway.reasoning.cot_monitorability.stress import Pressure
from cutaway.reasoning.view import TraceView
from cutaway.stats import Interval, mean_interval, wilson
from cutaway.study import Finding

if TYPE_CHECKING:
    from cutaway.reasoning.cot_monitorability.reader import Understood
    from cutaway.reasoning.cot_monitorability.runs import Run, Runs

ID = "cot-monitorability"
PREFIXES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Heard:
    """What a second model made of the chains' sentences."""

    plain: "Understood"
    shuffled: "Understood"
    """The same sentences with their words in random order."""
    in_order: Interval
    """Sentences likelier as written than in any of seven random orders; chance is 1/8."""


@dataclass(frozen=True)
class Evidence:
    """Everything a run of the study found."""

    results: tuple[Monitorability, ...]
    controls: tuple[Monitorability, ...]
    """The same verdicts dealt out at random, one for each result."""
    pressure: tuple[Pressure, ...]
    relevance: Relevance | None
    gate: Gate | None
    samples: tuple[Sample, ...]
    """The samples that monitors were scored on."""
    heard: Heard | None = None


def cued(runs: "Runs") -> list["Run"]:
    return [run for run in runs.items if run.sample.arm == 1]


def behaviour(runs: "Runs") -> tuple[Finding, ...]:
    """What the cue did, whoever reads."""
    if not runs.items:
        return (Finding("problems the cue moved", None, undefined="the run ended before the first question"),)
    suite = as_suite(runs.samples)
    chosen, same = select_problems(suite), select_problems(suite, "same-data")
    # The control arm's odd draws against its even ones: two arms that differ in nothing.
    halves = [suite.followed[:, 0, k::2][:, : suite.followed.shape[2] // 2] for k in (0, 1)]
    null = np.stack(halves, 1)
    silent = select_problems(replace(suite, followed=null, present=np.ones_like(null)))
    n = len(chosen.passed)
    kept, chance = wilson(int(chosen.passed.sum()), n), wilson(int(silent.passed.sum()), n)
    control = Finding.of("problems the cue moved, control arm against itself", chance, n=n)
    effect, _ = total_effect(suite.followed, suite.present)
    unanswered = wilson(sum(run.answer is None for run in runs.items), len(runs.items))
    return (
        Finding.of("problems the cue moved", kept, n=n, control=control, unit="share"),
        _mean_effect("total effect of the cue", effect),
        _mean_effect("total effect where the filter saw one, fresh samples", chosen.effect[chosen.decided]),
        _mean_effect("total effect where the filter saw one, same samples", same.effect[same.decided]),
        Finding.of("runs without an answer", unanswered),
    )


def _mean_effect(name: str, effects: np.ndarray) -> Finding:
    if not len(effects):
        return Finding(name, None, undefined="no problem passed the filter")
    mean = mean_interval(effects)
    # A t interval knows nothing of the scale: a change of a probability ends at -1 and 1.
    low, high = (None if np.isnan(end) else float(np.clip(end, -1, 1)) for end in (mean.low, mean.high))
    return Finding(name, mean.value, low, high, n=mean.n, unit="change of P(hinted letter)")


def scores(results: Sequence[Monitorability], controls: Sequence[Monitorability]) -> tuple[Finding, ...]:
    return tuple(_finding(a, _finding(b, None)) for a, b in zip(results, controls, strict=True))


def learned(monitors: Sequence[Monitor]) -> tuple[Finding, ...]:
    """How often learning monitors err where they learned, each problem judged with a threshold set on the others."""
    found = []
    for monitor in monitors:
        if isinstance(monitor, ProbeMonitor | JudgeMonitor):
            rates = monitor.cross_fitted
            why = "" if rates else "too few discovery problems with both classes"
            n = len(monitor.trained_on)
            for kind, rate in zip(("misses", "false alarms"), rates or (None, None), strict=True):
                name = f"{kind} of {monitor.name} on discovery problems, cross-fitted"
                found.append(Finding(name, None if rate is None else 1 - rate, n=n, unit="share", undefined=why))
    return tuple(found)


def _finding(result: Monitorability, control: Finding | None) -> Finding:
    dealt = ", verdicts dealt at random" if control is None else ""
    return Finding(
        f"g-mean^2 of {result.monitor}, {result.scope}, {result.design}{dealt}",
        result.value,
        result.low,
        result.high,
        level=result.level,
        n=result.samples,
        control=control,
        undefined=result.undefined,
    )


def properties(found: Evidence) -> tuple[Finding, ...]:
    sentences = [sentence for sample in found.samples for sentence in sample.chain]
    readable = wilson(sum(legible(sentences)), len(sentences))
    items = [
        Finding.of("legible sentences", readable, unit="share")
        if sentences
        else Finding("legible sentences", None, undefined="no chain has a sentence")
    ]
    items += _hearing(found.heard)
    if found.relevance is None:
        reason = "no run with the cue has both a chain of two sentences and an answer"
        items.append(Finding("area over the truncation curve", None, undefined=reason))
    else:
        whole = found.relevance.same[-1]
        control = Finding.of("same answer with the whole chain", whole)
        drawn = sum(each.n for each in found.relevance.same)
        items.append(Finding("area over the truncation curve", found.relevance.area, n=drawn, control=control))
    if found.gate is not None:
        g = found.gate
        name = "change of g-mean^2 when told that it is watched"
        items.append(Finding(name, g.change, g.low, g.high, n=g.n, undefined=g.undefined))
    return tuple(items)


def _hearing(heard: Heard | None) -> list[Finding]:
    names = ("sentences that a second model paraphrases and recognises", "sentences likelier as written than reordered")
    if heard is None:
        why = "no second model was named (reader=...), or too few sentences of four words"
        return [Finding(name, None, undefined=why) for name in names]
    control = _share("the same with words in random order", heard.shuffled.share)
    copied = _share("paraphrases that were copies", heard.plain.copied)
    return [_share(names[0], heard.plain.share, control), copied, _share(names[1], heard.in_order)]


def _share(name: str, found: Interval, control: Finding | None = None) -> Finding:
    if np.isnan(found.value):
        return Finding(name, None, undefined="nothing to count", control=control)
    return Finding.of(name, found, unit="share", control=control)


def charts(found: Evidence) -> tuple[Chart, ...]:
    full = [str(scope) for scope in (ACTION, CHAIN, BOTH)]
    shares = (*PREFIXES, 1.0)
    prefixes = [str(Scope("chain", share)) for share in shares]
    strengths = found.pressure[0].strengths
    missing = "A gap is an undefined number; the findings say why."
    title = "g-mean^2 by scope (0.25: coin flips, 0: constant verdict)"
    truncation = () if found.relevance is None else (_truncation(found.relevance),)
    return (
        Chart(title, tuple(full), _by_scope(found, full), "scope", "g-mean^2", missing),
        Chart("g-mean^2 by share of the chain read", shares, _by_scope(found, prefixes), "share", "g-mean^2", missing),
        Chart(
            "rule monitor under pressure",
            strengths,
            tuple(each.series() for each in found.pressure),
            "strength of the rewrite",
            "g-mean^2, outcome design",
            missing,
        ),
        *truncation,
    )


def _truncation(relevance: Relevance) -> Chart:
    same = relevance.same
    ends = (tuple(each.low for each in same), tuple(each.high for each in same))
    line = Series("same answer", tuple(each.value for each in same), *ends)
    note = f"One run. Area over the curve: {relevance.area:.2f}; 0 means that the chain changes nothing."
    title = "does the answer need the chain? (chain cut, conclusion forced)"
    return Chart(title, relevance.kept, (line,), "share of the chain kept", "P(same answer)", note)


def _by_scope(found: Evidence, scopes: Sequence[str]) -> tuple[Series, ...]:
    out = []
    for results, control in ((found.results, False), (found.controls, True)):
        for monitor, design in dict.fromkeys((r.monitor, r.design) for r in results if r.design != "process"):
            row = {r.scope: r for r in results if (r.monitor, r.design) == (monitor, design)}
            shown = [row[scope] for scope in scopes]
            name = f"{monitor}, {design}" + (", dealt at random" if control else "")
            ends = (tuple(r.low for r in shown), tuple(r.high for r in shown))
            out.append(Series(name, tuple(r.value for r in shown), *ends, control=control))
    return tuple(out)


def artifacts(
    found: Evidence, monitors: Sequence[Monitor], runs: "Runs", given: tuple[str, tuple[str, ...], str] | None = None
) -> dict[str, bytes]:
    """What the run keeps; the view is of the question that was ``given`` (prompt, sentences, answer), if any was."""
    body = {
        "results": [each.to_dict() for each in found.results],
        "controls": [each.to_dict() for each in found.controls],
        "pressure": [each.to_dict() for each in found.pressure],
        "relevance": None if found.relevance is None else found.relevance.to_dict(),
        "gate": None if found.gate is None else found.gate.to_dict(),
    }
    out = {"monitorability.json": _json(body)}
    scored = {sample.problem for sample in found.samples}
    run = next((r for r in cued(runs) if r.sample.problem in scored and r.sample.chain), None)
    if given is not None:
        out["view.json"] = _json(_view(monitors, *given, question=given[0]).to_dict())
    elif run is not None:
        asked = next(each for each in runs.questions if each.name == run.sample.problem)
        sentences, meta = (*run.sample.chain, run.sample.action), {"hinted letter": asked.hinted}
        shown = _view(monitors, asked.prompt(1), sentences, run.answer or "no answer", question=run.sample.question)
        out["view.json"] = _json(replace(shown, meta=meta | {"correct letter": asked.correct}).to_dict())
    return out


def _view(
    monitors: Sequence[Monitor], prompt: str, sentences: tuple[str, ...], answer: str, *, question: str
) -> TraceView:
    return TraceView(
        title="What monitors see, sentence by sentence",
        prompt=prompt,
        sentences=sentences,
        answer=answer,
        tracks=tuple(monitor_track(each, sentences, question, ID) for each in monitors),
    )


def summary(found: Evidence, runs: "Runs") -> str:
    partial = "" if runs.complete else f" ({len(runs.questions)} questions before the stop)"
    rule = {(r.design, r.scope): r for r in reversed(found.results) if r.monitor == "rule"}
    main = rule["intervention", str(CHAIN)]
    if main.value is not None:
        return f"rule on the chain: {_short(main)}{partial}"
    others = {"with the answer": rule["intervention", str(BOTH)], "outcome design": rule["outcome", str(CHAIN)]}
    rest = [f"; {name}: {_short(each)}" for name, each in others.items() if each.value is not None]
    return f"rule on the chain: {main.undefined}{''.join(rest)}{partial}"


def _short(found: Monitorability) -> str:
    return f"g-mean^2 {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _json(body: object) -> bytes:
    return (json.dumps(body, ensure_ascii=False) + "\n").encode()
