"""What a run of relearning says: findings over repeats, and what to draw."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.charts import Chart, Heat, Series
from cutaway.editing.relearn_concepts.method import Checkpoint, Primed, Relearnt
from cutaway.stats import mean_interval
from cutaway.study import Finding


@dataclass(frozen=True)
class Repeat:
    """One tagger with both arms."""

    concept: Relearnt
    control: Relearnt
    """Random neurons, as many in each layer."""
    primed: Primed

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {"concept": self.concept.to_dict(), "random": self.control.to_dict(), "primed": vars(self.primed)}


def findings(repeats: Sequence[Repeat]) -> list[Finding]:
    """Return each number over repeats, with the random arm as its control."""
    both: list[tuple[str, str, Callable[[Relearnt], float]]] = [
        ("F1 of the concept before pruning", "", lambda one: one.before.f1.value),
        ("F1 of the concept right after pruning", "", lambda one: one.curve[0].f1.value),
        ("F1 of the concept after retraining", "", lambda one: one.curve[-1].f1.value),
        ("F1 lost by pruning", "points", lambda one: 100 * one.drop),
        ("overall F1 after retraining", "", lambda one: one.curve[-1].overall.value),
        ("share of the loss recovered", "", lambda one: one.recovered),
        ("half-life", "steps", lambda one: one.half_life),
        ("steps to 90% of the loss", "steps", lambda one: one.steps_to(0.9)),
        ("shift of the centre of saliency", "of depth", lambda one: one.shift),
    ]
    items = []
    for name, unit, read in both:
        control = over(f"{name}, random neurons", [read(each.control) for each in repeats], unit)
        items.append(over(name, [read(each.concept) for each in repeats], unit, control))
    null = Finding("primed effect of shuffled neurons", 0.0)
    items += [
        over("primed effect (rank correlation)", [each.primed.rho for each in repeats], "", null),
        over("primed effect, saliency before and spread taken off", [each.primed.partial for each in repeats]),
        Finding("primed effect, largest p of any repeat", max(each.primed.p for each in repeats), n=len(repeats)),
        Finding("primed effect net of both, largest p", max(each.primed.partial_p for each in repeats), n=len(repeats)),
        over("AUC of similarity before for saliency after", [each.primed.auc for each in repeats]),
        over("neurons that took over", [float(len(each.concept.takeover())) for each in repeats]),
    ]
    return items


def over(name: str, values: Sequence[float], unit: str = "", control: Finding | None = None) -> Finding:
    """Return the mean over repeats with its t interval; undefined where some repeat has no number."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < len(values):
        missing = len(values) - len(known)
        why = f"{missing} of {len(values)} repeats lost nothing, or did not get so far within the steps"
        return Finding(name, None, undefined=why, unit=unit, control=control)
    found = mean_interval(known)
    ends = [None if math.isnan(end) else end for end in (found.low, found.high)]
    return Finding(name, found.value, ends[0], ends[1], n=len(known), unit=unit, control=control)


def summarise(repeats: Sequence[Repeat]) -> str:
    """Return one line."""
    shift = over("", [each.concept.shift for each in repeats])
    first = repeats[0].concept
    points = [float(np.mean([read(each.concept) for each in repeats])) for read in (_before, _cut, _end)]
    if shift.value is None or shift.low is None or shift.high is None or shift.low <= 0 <= shift.high:
        where = "no shift of layer shown"
    else:
        where = f"saliency moved {'earlier' if shift.value < 0 else 'later'}"
    return f"{first.concept}: F1 {points[0]:.2f}, pruned {points[1]:.2f}, retrained {points[2]:.2f}; {where}"


def charts(repeats: Sequence[Repeat]) -> tuple[Chart | Heat, ...]:
    """Return recovery curves, layer profiles, and saliency by layer and step."""
    first = repeats[0].concept
    steps = tuple(float(point.step) for point in first.curve)
    curves = (
        _curve("concept neurons pruned", [each.concept.curve for each in repeats]),
        _curve("random neurons pruned", [each.control.curve for each in repeats], control=True),
        Series("before pruning", (float(np.mean([each.concept.before.f1.value for each in repeats])),) * len(steps)),
    )
    layers = tuple(float(layer) for layer in range(len(first.before.profile)))
    profiles = tuple(
        Series(name, tuple(np.mean([read(each.concept).profile for each in repeats], 0).tolist()))
        for name, read in (("before", _at_before), ("pruned", _at_cut), ("retrained", _at_end))
    )
    heat = np.mean([[point.saliency.mean(1) for point in each.concept.curve] for each in repeats], 0)
    return (
        Chart("Recovery", steps, curves, "steps of retraining", f"F1 of {first.concept}"),
        Chart("Where the concept sits", layers, profiles, "layer", "share of saliency"),
        Heat(
            "Mean saliency by layer",
            tuple(f"step {int(step)}" for step in steps),
            tuple(str(int(layer)) for layer in layers),
            tuple(tuple(row) for row in heat.tolist()),
            note="A pruned neuron counts with 0.",
        ),
    )


def _curve(name: str, curves: Sequence[Sequence[Checkpoint]], *, control: bool = False) -> Series:
    columns = [mean_interval([curve[i].f1.value for curve in curves]) for i in range(len(curves[0]))]
    return Series(
        name,
        tuple(each.value for each in columns),
        tuple(each.low for each in columns),
        tuple(each.high for each in columns),
        control=control,
    )


def _at_before(one: Relearnt) -> Checkpoint:
    return one.before


def _at_cut(one: Relearnt) -> Checkpoint:
    return one.curve[0]


def _at_end(one: Relearnt) -> Checkpoint:
    return one.curve[-1]


def _before(one: Relearnt) -> float:
    return one.before.f1.value


def _cut(one: Relearnt) -> float:
    return one.curve[0].f1.value


def _end(one: Relearnt) -> float:
    return one.curve[-1].f1.value
