"""What a run found, as findings, charts and a line to quote."""

import math
from functools import partial

from cutaway.charts import Chart, Heat, Series
from cutaway.stats import Interval
from cutaway.steering.effects import Effect
from cutaway.steering.k_steering.method import Comparison, Interference, Outcome, Strength
from cutaway.study import Finding

_finding = partial(Finding.of, undefined="no prompts were measured")

Point = tuple[float, float, float]
"""Strength, relative change of words, relative change of perplexity."""


def findings(
    comparison: Comparison,
    crossed: Interference | None,
    strengths: dict[str, Strength],
    accuracies: dict[str, Interval],
    measure: str,
) -> tuple[Finding, ...]:
    """Accuracies, strengths, each arm's effect on ``measure`` with its price, and steering to pairs."""
    items = [_finding(f"accuracy, {name}", interval) for name, interval in accuracies.items()]
    for name, found in strengths.items():
        if found.value is None:
            why = f"the weakest strength tried raises perplexity by {100 * found.tried[0][1]:.0f}%"
            items.append(Finding(f"strength, {name}", None, undefined=why))
        else:
            items.append(Finding(f"strength, {name}", found.value, unit="of the stream's length"))
    for outcome in comparison.outcomes:
        items += _arm(outcome, measure)
    if crossed is not None:
        rise = sum(pair.both_rise and pair.p < 0.05 for pair in crossed.pairs)
        items.append(Finding("pairs of targets that both rise", float(rise), n=len(crossed.pairs), unit="pairs"))
        items += [_finding(f"both rank highest, {' + '.join(pair.targets)}", pair.success) for pair in crossed.pairs]
    return tuple(items)


def verdict(outcome: Outcome | None, fall: float = 0.3, rise: float = 0.2) -> str:
    """Whether words fell by ``fall`` at a perplexity rise of ``rise`` at most, and by more than random pushes."""
    if outcome is None:
        return "no steered answers were measured"
    over = outcome.effects["words"].over_controls
    beats = over is not None and over.high < 0
    if outcome.words.value <= -fall and outcome.perplexity.value <= rise and beats:
        return "reached"
    reasons = [
        f"words {100 * outcome.words.value:+.0f}% (asked for {-100 * fall:.0f}%)" * (outcome.words.value > -fall),
        f"perplexity {100 * outcome.perplexity.value:+.0f}%" * (outcome.perplexity.value > rise),
        "no more than random directions of equal push" * (not beats),
    ]
    return "not reached: " + "; ".join(reason for reason in reasons if reason)


def summarise(comparison: Comparison, crossed: Interference | None, target: str) -> str:
    """One line."""
    steered = next((each for each in comparison.outcomes if each.arm == "K-Steering"), None)
    if steered is None:
        return "stopped before the steered answers were measured"
    text = f"{target}: words {_percent(steered.words)}, perplexity {_percent(steered.perplexity)}, n={comparison.n}"
    if target == "concise":
        text += f"; 30% fewer words at 20% more perplexity: {verdict(steered)}"
    if crossed is not None:
        rise = sum(pair.both_rise and pair.p < 0.05 for pair in crossed.pairs)
        text += f"; both targets rise in {rise} of {len(crossed.pairs)} pairs"
    return text


def charts(
    comparison: Comparison, crossed: Interference | None, frontiers: dict[str, list[Point]], target: str
) -> tuple[Chart | Heat, ...]:
    """Words against strength, with perplexity; the interference matrix; pairs; each arm's words."""
    out: list[Chart | Heat] = []
    for name, points in frontiers.items():
        ordered = sorted(points)
        if len(ordered) > 1:
            x = tuple(100 * point[0] for point in ordered)
            series = tuple(
                Series(label, tuple(100 * point[at] for point in ordered))
                for at, label in ((1, "words"), (2, "perplexity"))
            )
            title = f"{name}: what a strength buys ({target})"
            out.append(Chart(title, x, series, "strength, % of the stream's length", "change, %", log_x=True))
    if comparison.outcomes:
        rows = [each.words for each in comparison.outcomes]
        value, low, high = (tuple(100 * getattr(row, end) for row in rows) for end in ("value", "low", "high"))
        arms = tuple(each.arm for each in comparison.outcomes)
        out.append(
            Chart("Words of an answer, against plain", arms, (Series("change", value, low, high),), "", "change, %")
        )
    if crossed is not None:
        values = tuple(tuple(each.value for each in row) for row in crossed.singles)
        note = "Row: steered to. Column: change of that label's probability by a held-out classifier at a later site."
        out.append(Heat("Interference", crossed.labels, crossed.labels, values, note=note))
        out.append(_pair_heat(crossed))
    return tuple(out)


def _pair_heat(crossed: Interference) -> Heat:
    by_pair = {frozenset(pair.targets): pair for pair in crossed.pairs}
    values: list[tuple[float | None, ...]] = []
    for place, row in enumerate(crossed.labels):
        cells: list[float | None] = []
        for column in crossed.labels:
            pair = by_pair.get(frozenset((row, column)))
            cells.append(crossed.success[place].value if pair is None else pair.success.value)
        values.append(tuple(cells))
    note = "Share of prompts where all targets rank above the rest; the diagonal is a single target."
    return Heat("Two targets at once", crossed.labels, crossed.labels, tuple(values), note=note)


def _arm(outcome: Outcome, measure: str) -> list[Finding]:
    name = outcome.arm
    items = [
        _finding(f"words, {name}, relative change", outcome.words),
        _finding(f"perplexity, {name}, relative change", outcome.perplexity),
        _of_effect(f"repetition, {name}, change", outcome.effects["repetition"]),
    ]
    if measure != "words":
        items.append(_of_effect(f"{measure}, {name}, change", outcome.effects[measure]))
    items.append(_of_effect(f"words, {name}, change", outcome.effects["words"]))
    over = outcome.effects[measure].over_controls
    if over is not None:
        items.append(_finding(f"{measure}, {name}, less random directions of equal push", over))
    return items


def _of_effect(name: str, found: Effect) -> Finding:
    control = None
    if found.controls:
        mean = sum(found.controls) / len(found.controls)
        ends = min(found.controls), max(found.controls)
        # The ends are those of the controls themselves, not of an interval for their mean.
        control = Finding("random directions: mean and range", mean, *ends, n=len(found.controls))
    return _finding(name, found.change, control=control)


def _percent(interval: Interval) -> str:
    value, low, high = (100 * end for end in (interval.value, interval.low, interval.high))
    return f"{value:+.0f}%" + (f" [{low:+.0f}, {high:+.0f}]" if math.isfinite(low + high) else " (no interval)")
