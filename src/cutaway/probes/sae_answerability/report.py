"""The transfer table as findings, heats and a line to quote."""

import math
from functools import partial

import numpy as np

from cutaway.charts import Chart, Heat, Series
from cutaway.probes.sae_answerability.method import Answerability, SiteReport
from cutaway.probes.transfer import Cell
from cutaway.study import Finding

_finding = partial(Finding.of, undefined="one class, or too few rows")


def findings(found: Answerability) -> tuple[Finding, ...]:
    """Every cell with the best shortcut beside it; selection, agreement, verdicts."""
    items: list[Finding] = []
    for (name, score), area in found.shortcuts.items():
        items.append(_finding(f"AUROC of {score} alone on {name}", area))
    for site in found.sites:
        for cell in site.table.cells:
            items += _cell(cell, found)
        items += _selection(site, found)
    return tuple(items)


def summarise(found: Answerability) -> str:
    """One line: the residual probe at home and away at the best site, and the shortcut to beat."""
    if not found.sites:
        return "stopped before the first site"
    home = found.sets[0]
    site = max(found.sites, key=lambda each: _value(each, home, home))
    away = [f"{_value(site, home, other):.2f} on {other}" for other in found.sets[1:]]
    shared = found.shortcuts[home, "shared words"].value
    return (
        f"probe at {site.site}: AUROC {_value(site, home, home):.2f} on {home} (shared words alone {shared:.2f}), "
        f"{', '.join(away)}; nested best latent {site.selection.honest:.2f}, naive {site.selection.naive:.2f}"
    )


def charts(found: Answerability) -> tuple[Chart | Heat, ...]:
    """A heat for each family at each site; shortcuts as bars."""
    out: list[Chart | Heat] = []
    for site in found.sites:
        for family in dict.fromkeys(cell.family for cell in site.table.cells):
            cells = {(c.train, c.test): c for c in site.table.cells if c.family == family}
            values = tuple(tuple(_area(cells.get((a, b))) for b in found.sets) for a in found.sets)
            note = "Rows: trained on; columns: tested on. The diagonal is cross-fitted."
            out.append(Heat(f"AUROC of {family} at {site.site}", found.sets, found.sets, values, "AUROC", note))
    scores = tuple(dict.fromkeys(score for _, score in found.shortcuts))
    series = []
    for score in scores:
        areas = [found.shortcuts[name, score] for name in found.sets]
        value, low, high = (tuple(float(getattr(each, end)) for each in areas) for end in ("value", "low", "high"))
        series.append(Series(score, value, low, high, control=True))
    out.append(Chart("What needs no model", found.sets, tuple(series), "set", "AUROC"))
    return tuple(out)


def _cell(cell: Cell, found: Answerability) -> list[Finding]:
    name = f"{cell.family} at {cell.site}, {cell.train} to {cell.test}"
    if cell.area is None:
        return [Finding(f"AUROC of {name}", None, undefined=cell.mark)]
    areas = {score: area for (other, score), area in found.shortcuts.items() if other == cell.test}
    best = max(areas, key=lambda score: areas[score].value)
    items = [_finding(f"AUROC of {name}", cell.area, control=_finding(f"{best} alone", areas[best]))]
    if cell.accuracy is not None and cell.retuned is not None:
        moved = Finding("at the best threshold of the test set", cell.retuned, n=cell.n)
        items.append(Finding(f"accuracy of {name}", cell.accuracy, n=cell.n, control=moved))
    if cell.error is not None:
        items.append(Finding(f"calibration error of {name}", cell.error, n=cell.n))
    return items


def _selection(site: SiteReport, found: Answerability) -> list[Finding]:
    at, chosen = site.site, site.selection
    n = len(chosen.null)
    null = Finding("95% point of the search in shuffled labels", chosen.null_95, n=n)
    items = [
        Finding(f"AUROC of the best latent at {at}, chosen and judged on the same rows", chosen.naive, control=null)
    ]
    items.append(Finding(f"AUROC of the best latent at {at}, nested", chosen.honest, n=len(chosen.chosen)))
    for name, tau in site.agreement.items():
        label = f"Kendall tau of latents at {at}, {found.sets[0]} and {name}"
        if math.isfinite(tau.value):
            items.append(_finding(label, tau))
        else:
            items.append(Finding(label, None, undefined=f"{tau.n} latents are active in both; 10 are needed"))
    verdicts = list(site.verdicts.values())
    items.append(
        Finding(f"strong latents at {at} that are shortcuts", float(verdicts.count("shortcut")), n=len(verdicts))
    )
    return items


def _value(site: SiteReport, train: str, test: str) -> float:
    cells = [c for c in site.table.cells if (c.train, c.test) == (train, test) and c.area is not None]
    first = next((c for c in cells if c.family == "logistic"), cells[0] if cells else None)
    return float("nan") if first is None or first.area is None else first.area.value


def _area(cell: Cell | None) -> float | None:
    return None if cell is None or cell.area is None or not np.isfinite(cell.area.value) else cell.area.value
