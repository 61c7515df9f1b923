"""An audit on one page: the verdict's parts as findings, each beside its control, and what to draw."""

import math

from cutaway.charts import Chart, Heat, Series
from cutaway.editing.unlearning_open_problems.method import JUDGED, Audit, Row
from cutaway.study import Finding


def findings(found: Audit) -> list[Finding]:
    """Return every measure of the edited model, with the never-learnt control beside it where there is one."""
    items = [_finding(row) for row in found.rows]
    for name, effects in found.effects.items():
        items += [Finding(f"{effect}, {name}", value) for effect, value in effects.items()]
    items += [Finding(f"known after merging with {share}", value) for share, value in found.merges.items()]
    for share in (0.5, 0.9):
        for name in found.curves:
            step = found.steps_to(name, share)
            why = "not reached within the steps" if math.isnan(step) else ""
            items.append(
                Finding(f"relearning steps to {share:.0%} of before, {name}", step, unit="steps", undefined=why)
            )
    if "control" not in next((row.scores for row in found.rows), {}):
        items.append(Finding("flagged checks", None, undefined="no control model; nothing can be judged"))
    else:
        items.append(Finding("flagged checks", float(len(found.flagged)), n=len(JUDGED)))
    items += [Finding(f"time of {check}", value, unit="s") for check, value in found.seconds.items()]
    return items


def summarise(found: Audit) -> str:
    """Return one line."""
    flags = ", ".join(found.flagged) or "none"
    rows = {(row.check, row.measure): row for row in found.rows}
    plain = rows.get(("direct", "forget known"))
    said = "" if plain is None else f"known {plain.mean('before').value:.0%} -> {plain.mean('after').value:.0%}; "
    return f"{found.verdict}: {said}flagged checks: {flags}"


def charts(found: Audit) -> tuple[Chart | Heat, ...]:
    """Return measures by model, relearning curves, and probes by layer."""
    if not found.rows:
        return ()
    models = tuple(found.rows[0].scores)
    made: list[Chart | Heat] = [
        Heat(
            "Every measure",
            tuple(f"{row.check}: {row.measure}" for row in found.rows),
            models,
            tuple(tuple(row.mean(model).value for model in models) for row in found.rows),
        )
    ]
    if found.curves:
        steps = tuple(float(step) for step, _ in next(iter(found.curves.values())))
        lines = tuple(
            Series(name, tuple(score for _, score in curve), control=name == "control")
            for name, curve in found.curves.items()
            if len(curve) == len(steps)
        )
        made.append(Chart("Relearning from adjacent facts", steps, lines, "steps", "forgotten facts known"))
    probes = [
        Series(f"{model}, {kind}", tuple(values), control=kind == "shuffled")
        for model, layers in found.layers.items()
        for kind, values in layers.items()
    ]
    if probes:
        layers = tuple(float(i) for i in range(len(probes[0].y)))
        made.append(Chart("What probes read", layers, tuple(probes), "layer", "accuracy on forgotten facts"))
    return tuple(made)


def _finding(row: Row) -> Finding:
    name = f"{row.check}: {row.measure}"
    control = None
    if "control" in row.scores:
        never = row.mean("control")
        control = Finding.of(f"{name}, never learnt", never)
    after = row.mean("after")
    return Finding.of(name, after, control=control)
