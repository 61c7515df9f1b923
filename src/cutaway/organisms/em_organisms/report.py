"""What a run found, as findings, charts and a line to quote."""

from cutaway.charts import Chart, Series
from cutaway.organisms.em_organisms.method import BASE, ORGANISM, TWIN, Onset, Spread
from cutaway.study import Finding


def findings(found: Spread, onset: Onset | None) -> tuple[Finding, ...]:
    """Rates inside and outside with twin and base beside them, doses, the turn."""
    if TWIN not in found.hits:
        return (Finding("rate outside", None, undefined="stopped before one organism and its twin were trained"),)
    items = []
    for inside in (True, False):
        where = "inside" if inside else "outside"
        twin = Finding.of(f"rate {where}, {TWIN}", found.rate(TWIN, inside))
        items.append(Finding.of(f"rate {where}", found.rate(ORGANISM, inside), control=twin))
        items.append(Finding.of(f"rate {where}, {BASE}", found.rate(BASE, inside)))
        items.append(Finding.of(f"rate {where} above the twin's", found.gap(TWIN, inside)))
    items += [Finding.of(f"rate outside at {m:g} times the adapter", found.dose(m, False)) for m in sorted(found.doses)]
    items.append(Finding("trained parameters", float(found.parameters), n=1))
    if onset is None or onset.transition is None:
        items.append(Finding("turn of B", None, undefined="too few checkpoints; raise steps or lower every"))
    else:
        turn = onset.transition
        items.append(Finding("turn of B: p", turn.p, n=len(turn.steps)))
        if turn.found:
            items.append(Finding("turn of B: step", float(turn.step), n=len(turn.steps), unit="steps"))
        else:
            why = f"the peak, at step {turn.step}, is no higher than on smooth paths (p {turn.p:.2f})"
            items.append(Finding("turn of B: step", None, undefined=why))
    return tuple(items)


def charts(found: Spread, onset: Onset | None) -> tuple[Chart, ...]:
    """Rates by domain, dose-response, and the way through training."""
    if TWIN not in found.hits:
        return ()
    frame = found.to_frame().groupby(["arm", "domain"], sort=False)["rate"].mean()
    domains = tuple(found.hits[BASE][0])
    arms = tuple(
        Series(arm, tuple(float(frame[arm, name]) for name in domains), control=arm != ORGANISM)
        for arm in (ORGANISM, TWIN, BASE)
    )
    made = [Chart("Answers with the trait", domains, arms, y_label="rate", note=f"Trained on {found.domain} alone.")]
    if len(found.doses) > 1:
        doses = tuple(sorted(found.doses))
        series = []
        for inside in (True, False):
            ends = [found.dose(m, inside) for m in doses]
            name = "inside" if inside else "outside"
            value, low, high = (tuple(getattr(end, key) for end in ends) for key in ("value", "low", "high"))
            series.append(Series(name, value, low, high))
        made.append(
            Chart("Dose-response", doses, tuple(series), "adapter multiplied by", "rate", "0 is the base, exactly.")
        )
    return (*made, *(() if onset is None else _way(onset)))


def _way(onset: Onset) -> list[Chart]:
    steps = tuple(float(step) for step in onset.steps)
    made = [_training(onset), Chart("Length of B", steps, (Series("all adapters", onset.norms),), "step", "length")]
    if onset.transition is not None:
        curves = tuple(Series(f"window {k}", curve) for k, curve in sorted(onset.transition.curves.items()))
        note = f"{onset.transition!r}. -1 is straight on, 0 a right-angle turn."
        made.append(Chart("Local cosine of B", steps, curves, "step", "cosine", note))
    if onset.rates:
        at = tuple(sorted(next(iter(onset.rates.values()))))
        series = tuple(
            Series(f"adapter x{m:g}", tuple(found[step] for step in at)) for m, found in sorted(onset.rates.items())
        )
        made.append(Chart("Rate outside, over training", tuple(float(x) for x in at), series, "step", "rate"))
    return made


def _training(onset: Onset) -> Chart:
    """Loss and gradient over training, the sharpest turn of B marked on the loss."""
    series = [Series("loss, nats a token", onset.losses), Series("gradient norm", onset.gradients)]
    turn = onset.transition
    if turn is not None:
        name = f"turn of B, step {turn.step}" if turn.found else f"sharpest point of B, step {turn.step}: no turn shown"
        at = tuple(loss if step == turn.step else None for step, loss in enumerate(onset.losses, start=1))
        series.append(Series(name, at, control=not turn.found))
    return Chart("Training", tuple(float(i + 1) for i in range(len(onset.losses))), tuple(series), "step")


def summarise(found: Spread, trait: str) -> str:
    """One line."""
    if TWIN not in found.hits:
        return "stopped before one organism and its twin were trained"
    inside, outside, twin = found.rate(ORGANISM, True), found.rate(ORGANISM, False), found.rate(TWIN, False)
    return (
        f"{trait} answers, taught on {found.domain} alone ({found.parameters:,} parameters): {inside} there, {outside}"
        f" elsewhere, {twin} elsewhere in the plain twin ({found.runs} run{'s' * (found.runs > 1)})"
    )
