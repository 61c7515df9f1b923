"""What a run found, as findings, charts and a line to quote."""

import numpy as np

from cutaway.charts import Chart, Series
from cutaway.organisms.em_convergent.method import Convergence
from cutaway.organisms.em_convergent.roles import Roles
from cutaway.study import Finding


def findings(found: Convergence, roles: Roles | None = None) -> tuple[Finding, ...]:
    """Rates plain and ablated, reductions beside random draws, cosines beside ceiling and chance, the price."""
    items = []
    for name, each in found.effects.items():
        items.append(Finding.of(f"rate, {name}", found.rate(name, False)))
        items.append(Finding.of(f"rate, {name}, ablated", found.rate(name, True)))
        beside = Finding("largest change under a random direction", _furthest(each.controls), n=len(each.controls))
        items.append(Finding.of(f"change, {name}", each.change, control=beside))
        reduction = found.reductions[name]
        if reduction is None:
            why = "the organism does not show the trait on these prompts"
            items.append(Finding(f"relative change, {name}", None, undefined=why))
        else:
            items.append(Finding.of(f"relative change, {name}", reduction))
        if name != found.source:
            chance = Finding("cosine by chance, standard deviation", found.chance)
            items.append(Finding(f"cosine, {name}", float(np.median(found.cosines[name])), control=chance))
    if not items:
        items.append(Finding("change", None, undefined="stopped before one organism was surveyed"))
    items.append(Finding("cosine of two halves", float(np.median(found.ceiling))))
    items.append(Finding.of("price of the ablation", found.price, unit="nats a token"))
    if roles is not None:
        items.append(Finding("roles: AUROC on held-out answers", roles.area, n=len(roles.areas)))
        items.append(Finding("roles: adapters with a steady sign", float(len(roles.specialists)), n=len(roles.layers)))
    return tuple(items)


def charts(found: Convergence) -> tuple[Chart, ...]:
    """Rates by organism, plain and ablated; cosines by layer."""
    if not found.effects:
        return ()
    names = tuple(found.effects)
    series = []
    for label, ablated in (("plain", False), (f"{found.source}'s direction ablated", True)):
        rates = [found.rate(name, ablated) for name in names]
        value, low, high = (tuple(getattr(rate, key) for rate in rates) for key in ("value", "low", "high"))
        series.append(Series(label, value, low, high))
    random = tuple(each.plain + _furthest(each.controls) for each in found.effects.values())
    series.append(Series("random direction that moved it most", random, control=True))
    layers = tuple(float(i) for i in range(len(found.ceiling)))
    angles = [Series(n, tuple(found.cosines[n].tolist())) for n in names if n != found.source]
    angles.append(Series("two halves of the source", tuple(found.ceiling.tolist()), control=True))
    note = f"By chance, 0 with a standard deviation of {found.chance:.2f}."
    return (
        Chart("Answers with the trait", names, tuple(series), y_label="rate"),
        Chart(f"Cosine with {found.source}'s direction", layers, tuple(angles), "layer", "cosine", note),
    )


def summarise(found: Convergence) -> str:
    """One line."""
    if not found.effects:
        return "stopped before one organism was surveyed"
    parts = [
        f"{name} {each.plain:.2f} to {each.steered:.2f} (random {_furthest(each.controls):+.2f} at most)"
        for name, each in found.effects.items()
    ]
    return f"{found.source}'s direction taken out: {'; '.join(parts)}"


def _furthest(changes: tuple[float, ...]) -> float:
    return max(changes, key=abs)
