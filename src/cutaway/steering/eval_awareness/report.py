"""What a run found, as findings, charts and a line to quote."""

import math
from functools import partial

from cutaway.charts import Chart, Series
from cutaway.steering.eval_awareness.method import Measured, Recovery
from cutaway.steering.eval_awareness.organism import Round
from cutaway.study import Finding

_finding = partial(Finding.of, undefined="no task has a function in all conditions")


def findings(
    found: dict[str, Measured], original: dict[str, Measured], recovery: Recovery | None, rounds: tuple[Round, ...]
) -> tuple[Finding, ...]:
    """Rates of all conditions, what the vector does, and the log of the training rounds."""
    items: list[Finding] = []
    if recovery is not None:
        items += _recovery(recovery)
    items += [_rate(f"hints, {name}", each) for name, each in found.items() if not name.startswith("random")]
    items += [_rate(f"hints, original model, {name}", each) for name, each in original.items()]
    for number, each in enumerate(rounds, 1):
        for place, name in enumerate(("evaluation", "deployment")):
            share = each.kept[place] / each.drawn[place]
            items.append(Finding(f"round {number} kept, {name}", share, n=each.drawn[place], unit="of answers"))
    return tuple(items) or (Finding("recovery", None, undefined="stopped before anything was measured"),)


def _recovery(found: Recovery) -> list[Finding]:
    best = found.best_control
    control = None
    if math.isfinite(best):
        control = Finding("recovery, best of the random vectors", best, n=len(found.controls))
    items = [
        _finding("gap, evaluation less deployment", found.gap),
        _finding("cue override, cue less deployment", found.override),
    ]
    if found.override.low > 0 and math.isfinite(found.recovery.value):
        items.append(_finding("recovery", found.recovery, control=control))
    else:
        why = f"the cue's override has the interval [{found.override.low:.2f}, {found.override.high:.2f}]"
        items.append(Finding("recovery", None, undefined=f"{why}: there is nothing clear to recover from"))
    items.append(_finding("distance to deployment, steered with the cue", found.distance))
    items.append(_finding("tasks done, steered less not", found.accuracy))
    return items


def summarise(found: dict[str, Measured], recovery: Recovery | None) -> str:
    """One line."""
    if recovery is None:
        return "stopped before all conditions were measured"
    rates = ", ".join(
        f"{name} {100 * found[name].rate.value:.0f}%" for name in ("testing", "deployed", "cue", "steered")
    )
    if not recovery.override.low > 0:
        return f"hints: {rates}; the cue's effect is not clear of 0, so no recovery is claimed"
    text = f"hints: {rates}; recovery {recovery.recovery.value:.2f}"
    if recovery.controls:
        text += f" (best of {len(recovery.controls)} random vectors {recovery.best_control:.2f})"
    distance = recovery.distance
    if distance.high < 0:
        return text + f"; overshoots deployment by {-100 * distance.value:.0f} points"
    return text + (f"; {100 * distance.value:+.0f} points from deployment")


def charts(
    found: dict[str, Measured], original: dict[str, Measured], rates: dict[float, float], recovery: Recovery | None
) -> tuple[Chart, ...]:
    """Rates by condition, rates by strength, and the vector among random ones."""
    out: list[Chart] = []
    shown = {name: each for name, each in found.items() if not name.startswith("random")}
    shown |= {f"original: {name}": each for name, each in original.items()}
    if shown:
        value, low, high = (
            tuple(100 * getattr(each.rate, end) for each in shown.values()) for end in ("value", "low", "high")
        )
        note = "Steered: with the cue. Original: the weights before any training."
        out.append(Chart("Answers with type hints", tuple(shown), (Series("rate", value, low, high),), "", "%", note))
    if len(rates) > 1 and "deployed" in found:
        scales = tuple(sorted(rates))
        deployed = 100 * found["deployed"].rate.value
        series = (
            Series("testing, steered", tuple(100 * rates[scale] for scale in scales)),
            Series("deployed, held-out contexts", (deployed,) * len(scales), control=True),
        )
        note = "Contexts of testing without the cue; the strength nearest to deployment is taken."
        out.append(Chart("How the strength was chosen", scales, series, "times the vector", "%", note, log_x=True))
    if recovery is not None and recovery.controls and recovery.override.low > 0:
        ordered = sorted((each for each in recovery.controls if math.isfinite(each)), reverse=True)
        names = ("the vector", *(f"random {place + 1}" for place in range(len(ordered))))
        values = (100 * recovery.recovery.value, *(100 * each for each in ordered))
        out.append(Chart("Recovery", names, (Series("recovery", values),), "", "% of the cue's effect"))
    return tuple(out)


def _rate(name: str, found: Measured) -> Finding:
    return Finding.of(name, found.rate, undefined="no answer holds a function")
