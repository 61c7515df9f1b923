"""Charts that both arithmetic studies draw."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cutaway.charts import Chart, Heat, Series
from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.questions import SETS
from cutaway.circuits.arithmetic.training import BIN
from cutaway.stats import Interval

LEGEND = dict(zip(SETS, ("nothing arrives", "a carry or borrow arrives", "one arrives and is passed on"), strict=True))


def loss_chart(training: Mapping[str, Any]) -> Chart:
    """Loss of each sub-task while training, mean over digits."""
    curves = np.array(training["set_loss"], dtype=float)
    curves = np.where(curves < 0, np.nan, curves)
    there = ~np.isnan(curves)
    total, count = np.where(there, curves, 0.0).sum(axis=2), there.sum(axis=2)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    x = tuple(float(BIN * (i + 1)) for i in range(len(mean)))
    series = tuple(Series(LEGEND[name], tuple(mean[:, i].tolist())) for i, name in enumerate(SETS))
    note = "Mean over digits; a later fall of one line than of another is a sub-task learned later."
    return Chart(f"Loss by sub-task: {training['recipe']['name']}", x, series, "step", "nats", note)


def class_chart(title: str, shares: Mapping[str, Interval], control: Mapping[str, Interval] | None = None) -> Chart:
    """Share of right answers by class of question, with intervals."""
    series = [_bars("model", shares)]
    if control is not None:
        series.append(_bars("claim", control, control=True))
    return Chart(title, tuple(shares), tuple(series), "class of question", "share right")


def staircase_heat(title: str, attention: np.ndarray, form: Format, layer: int) -> Heat:
    """Attention of a layer's heads from the answer-predicting positions, each head's rows apart."""
    rows, values = [], []
    for head in range(attention.shape[1]):
        for position in form.predicting:
            rows.append(f"H{head} {form.name(position)}")
            values.append(tuple(attention[layer, head, position].tolist()))
    note = "A head that reads one digit pair per answer position shows as a staircase."
    return Heat(title, tuple(rows), form.names, tuple(values), "attention", note)


def _bars(name: str, shares: Mapping[str, Interval], control: bool = False) -> Series:
    columns = [tuple(float(getattr(each, key)) for each in shares.values()) for key in ("value", "low", "high")]
    return Series(name, columns[0], columns[1], columns[2], control)
