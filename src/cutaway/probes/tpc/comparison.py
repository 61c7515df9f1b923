"""One comparison: every order, cascades, networks of the same size and a control with shuffled labels.

1. Train on the training rows; settings, calibration, cascade bands and alarm thresholds come from validation rows.
2. Test rows are only scored. F1 at the fixed threshold (logit 0), AUROC, recall at the threshold that let through the
   stated share of validation negatives, and the false alarms that this threshold really gives on test rows.
3. Cost: multiplies spent on a test row, on average over rows.
4. Gains over order 1 are paired over test rows: F1 by bootstrap, AUROC by DeLong with a level shared by all orders.
   ``linear is enough`` unless a gain in AUROC has an interval above 0. F1 cannot decide this: on labels without a
   rule, whichever order flags more rows has the larger F1.
5. The control trains on the same activations with labels in random order.

Source: card tpc, Metrics.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cutaway.errors import UsageError
from cutaway.probes.scoring import alarm_threshold, area_gains, auroc, recall_at
from cutaway.probes.tpc.baselines import fit_early_exit, fit_mlp
from cutaway.probes.tpc.cascade import ladder, replay, run_cascade, tune
from cutaway.probes.tpc.method import Labelled, Recipe, drops, f1, fit_linear, fit_polynomial
from cutaway.probes.tpc.polynomial import Polynomial
from cutaway.stats import Interval, wilson

if TYPE_CHECKING:
    import pandas as pd

Kind = str
_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """One monitor at one price, on test rows."""

    monitor: str
    kind: Kind
    """order, cascade, mlp, early exit, early-exit cascade or joint."""
    multiplies: float
    """Mean of a test row."""
    f1: Interval
    auroc: Interval
    recall: Interval | None
    """At the validation threshold of the stated false-alarm rate; None where it cannot be set."""
    alarms: Interval | None
    """Share of test negatives that this threshold flags."""
    recall_here: float | None = None
    """At the threshold that the test negatives themselves would set: what ranking alone can do at that rate."""
    exits: tuple[int, ...] = ()
    """Test rows that left at each order."""


@dataclass(frozen=True)
class Comparison:
    """Every monitor on the same test rows."""

    points: tuple[Point, ...]
    gains: tuple[Interval, ...] = field(default=())
    """F1 of order n less that of order 1, n = 2 on, paired over test rows."""
    areas: tuple[Interval, ...] = field(default=())
    """AUROC of order n less that of order 1; together the intervals hold with 95%."""
    control: tuple[Interval, ...] = field(default=())
    """F1 of every order, trained on shuffled labels."""
    control_gains: tuple[Interval, ...] = field(default=())
    control_areas: tuple[Interval, ...] = field(default=())
    runs: tuple[tuple[float, ...], ...] = field(default=())
    """F1 of every order in each run (another seed)."""
    joint: tuple[float, ...] = field(default=())
    """F1 of every truncation after joint training."""
    why_no_recall: str = ""
    share: float | None = None
    """Multiplies of the tuned cascade over those of the whole monitor."""
    n: int = 0
    complete: bool = True
    monitor: Polynomial | None = field(default=None, repr=False)
    """The strictly trained polynomial of the first run."""

    def __repr__(self) -> str:
        orders = [point for point in self.points if point.kind == "order"]
        if not orders:
            return "Comparison(nothing was finished)"
        return f"Comparison(F1 {orders[0].f1} at order 1, {orders[-1].f1} at order {len(orders)}, n={self.n})"

    @property
    def linear_is_enough(self) -> bool:
        """No order's gain in AUROC over order 1 has an interval above 0."""
        return not any(gain.low > 0 for gain in self.areas)

    def point(self, monitor: str) -> Point:
        """Return the point of this name."""
        for each in self.points:
            if each.monitor == monitor:
                return each
        raise UsageError(f"no monitor {monitor!r}; there are {', '.join(p.monitor for p in self.points)}")

    def to_frame(self) -> "pd.DataFrame":
        """One row a monitor: price, F1, AUROC, recall and false alarms with their ends."""
        import pandas as pd

        rows = []
        for each in self.points:
            row: dict[str, Any] = {"monitor": each.monitor, "kind": each.kind, "multiplies": each.multiplies}
            for name in ("f1", "auroc", "recall", "alarms"):
                found: Interval | None = getattr(each, name)
                row[name] = None if found is None else found.value
                row[f"{name}_low"] = None if found is None else found.low
                row[f"{name}_high"] = None if found is None else found.high
            rows.append(row)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, as plain types; numbers that are not finite become None."""
        plain = asdict(replace(self, monitor=None))
        del plain["monitor"]
        found: dict[str, Any] = _plain(plain)
        return found


def compare(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    recipe: Recipe,
    *,
    runs: int = 1,
    false_alarms: float = 0.01,
    tolerance: float = 0.001,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Comparison:
    """Train and measure every monitor; on Ctrl-C return what is finished, ``complete=False``.

    ``tolerance`` is the validation F1 that the cascade may lose. UsageError for test rows of one class, or an order
    below 2 (there is nothing to compare).
    """
    if recipe.order < 2 or runs < 1 or not 0 < false_alarms < 1:
        raise UsageError(f"order={recipe.order}, runs={runs}, false_alarms={false_alarms}: from 2, from 1, in (0, 1)")
    if len(set(test.y.tolist())) < 2 or test.x.shape[1] != train.x.shape[1]:
        raise UsageError(f"test rows: {int(test.y.sum())} of {len(test.y)} positive, {test.x.shape[1]} features; "
                         f"both classes and {train.x.shape[1]} features are needed")  # fmt: skip
    judge = _Judge(validation, test, false_alarms)
    linear = fit_linear(train, validation)
    found = Comparison((), why_no_recall=judge.why, n=len(test.y))
    steps = _steps(train, validation, test, recipe, linear, judge, runs, tolerance)
    total = 5 + runs
    try:
        for done, (note, step) in enumerate(steps):
            report(done, total, note)
            found = step(found)
    except KeyboardInterrupt:
        found = replace(found, complete=False)
    return found


def difference(labels: np.ndarray, ours: np.ndarray, other: np.ndarray, seed: int = 0) -> Interval:
    """F1 of ``ours`` less that of ``other`` (flags), with a bootstrap interval that draws rows with both."""
    return _resampled(labels, (ours, other), seed)


class _Judge:
    """Scores on validation and test rows to a `Point`."""

    def __init__(self, validation: Labelled, test: Labelled, rate: float) -> None:
        self.validation, self.test, self.rate = validation.labels, test.labels, rate
        negatives = int((~self.validation).sum())
        enough = math.floor(rate * (negatives + 1) + 1e-9) >= 1
        needed = math.ceil(1 / rate) - 1
        self.why = "" if enough else f"{negatives} validation negatives; a rate of {rate:g} needs {needed}"

    def point(
        self,
        monitor: str,
        kind: Kind,
        multiplies: float,
        validation: np.ndarray,
        test: np.ndarray,
        exits: Sequence[int] = (),
    ) -> Point:
        labels, flags = self.test, test > 0
        threshold = alarm_threshold(validation[~self.validation], self.rate)
        recall = alarms = None
        if threshold is not None:
            above = test > threshold
            recall = wilson(int(above[labels].sum()), int(labels.sum()))
            alarms = wilson(int(above[~labels].sum()), int((~labels).sum()))
        reached = _resampled(labels, (flags,))
        area = auroc(labels, test.astype(float))
        here = recall_at(test[~labels].astype(float), test[labels].astype(float), self.rate)
        return Point(monitor, kind, multiplies, reached, area, recall, alarms, here, tuple(exits))


_Step = tuple[str, Callable[[Comparison], Comparison]]


def _steps(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    recipe: Recipe,
    linear: Polynomial,
    judge: _Judge,
    runs: int,
    tolerance: float,
) -> Iterator[_Step]:
    """What is done, in order; each step adds its part."""
    first = fit_polynomial(train, validation, recipe, linear=linear)
    yield "orders", lambda found: _orders(replace(found, monitor=first), first, validation, test, judge)
    yield "cascade", lambda found: _cascades(found, first, validation, test, judge, tolerance)
    for run in range(1, runs):
        again = replace(recipe, seed=recipe.seed + run)
        yield f"run {run + 1}", lambda found, again=again: _run(found, train, validation, test, again, linear)  # type: ignore[misc]
    yield "networks", lambda found: _networks(found, train, validation, test, recipe, first, judge, tolerance)
    yield "joint", lambda found: _joint(found, train, validation, test, recipe, first)
    yield "control", lambda found: _control(found, train, validation, test, recipe)


def _orders(found: Comparison, monitor: Polynomial, validation: Labelled, test: Labelled, judge: _Judge) -> Comparison:
    held, scores = monitor.logits(validation.x).numpy(), monitor.logits(test.x).numpy()
    prices = np.cumsum(monitor.multiplies)
    points = [
        judge.point(f"order {n}", "order", float(price), held[n - 1], scores[n - 1])
        for n, price in enumerate(prices, 1)
    ]
    flags = scores > 0
    gains = tuple(difference(test.labels, row, flags[0]) for row in flags[1:])
    reached = tuple(f1(test.labels, row) for row in flags)
    areas = area_gains(test.labels, scores.astype(float))
    return replace(found, points=(*found.points, *points), gains=gains, areas=areas, runs=(reached,))


def _cascades(
    found: Comparison, monitor: Polynomial, validation: Labelled, test: Labelled, judge: _Judge, tolerance: float
) -> Comparison:
    held = monitor.logits(validation.x).numpy()
    chosen = tune(held, validation.labels, monitor.multiplies, tolerance)
    points = []
    rungs = {f"cascade, rung {i}": bands for i, bands in enumerate(ladder(held, validation.labels, leans=(1.0,)), 1)}
    for name, bands in {"cascade": chosen, **rungs}.items():
        before, after = replay(held, bands, monitor.multiplies), run_cascade(monitor, test.x, bands)
        left = np.bincount(after.order, minlength=monitor.order + 1)[1:].tolist()
        points.append(judge.point(name, "cascade", float(after.multiplies.mean()), before.score, after.score, left))
    share = points[0].multiplies / sum(monitor.multiplies)
    return replace(found, points=(*found.points, *points), share=share)


def _run(
    found: Comparison, train: Labelled, validation: Labelled, test: Labelled, recipe: Recipe, linear: Polynomial
) -> Comparison:
    flags = (fit_polynomial(train, validation, recipe, linear=linear).logits(test.x) > 0).numpy()
    return replace(found, runs=(*found.runs, tuple(f1(test.labels, row) for row in flags)))


def _networks(
    found: Comparison,
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    recipe: Recipe,
    monitor: Polynomial,
    judge: _Judge,
    tolerance: float,
) -> Comparison:
    points = []
    for n, size in enumerate(np.cumsum(monitor.parameters).tolist(), 1):
        if n > 1:
            network = fit_mlp(train, validation, monitor, size, recipe)
            held, scores = (network.logits(each.x)[0].numpy() for each in (validation, test))
            points.append(judge.point(f"mlp {n}", "mlp", float(sum(network.multiplies)), held, scores))
    network = fit_early_exit(train, validation, monitor, monitor.parameters, recipe)
    held, scores = network.logits(validation.x).numpy(), network.logits(test.x).numpy()
    for n, price in enumerate(np.cumsum(network.multiplies).tolist()):
        points.append(judge.point(f"early exit {n + 1}", "early exit", float(price), held[n], scores[n]))
    bands = tune(held, validation.labels, network.multiplies, tolerance)
    before, after = (replay(each, bands, network.multiplies) for each in (held, scores))
    left = np.bincount(after.order, minlength=len(scores) + 1)[1:].tolist()
    price = float(after.multiplies.mean())
    points.append(judge.point("early-exit cascade", "early-exit cascade", price, before.score, after.score, left))
    return replace(found, points=(*found.points, *points))


def _joint(
    found: Comparison, train: Labelled, validation: Labelled, test: Labelled, recipe: Recipe, strict: Polynomial
) -> Comparison:
    joint = fit_polynomial(train, validation, replace(recipe, mode="joint"), linear=strict)
    return replace(found, joint=tuple(drops(strict, joint, test)[1].tolist()))


def _control(found: Comparison, train: Labelled, validation: Labelled, test: Labelled, recipe: Recipe) -> Comparison:
    order = torch.Generator().manual_seed(recipe.seed + 1)
    shuffled = [Labelled(each.x, each.y[torch.randperm(len(each.y), generator=order)]) for each in (train, validation)]
    scores = fit_polynomial(shuffled[0], shuffled[1], recipe).logits(test.x).double().numpy()
    flags, areas = scores > 0, area_gains(test.labels, scores)
    control = tuple(_resampled(test.labels, (row,)) for row in flags)
    gains = tuple(difference(test.labels, row, flags[0]) for row in flags[1:])
    return replace(found, control=control, control_gains=gains, control_areas=areas)


def _resampled(labels: np.ndarray, flags: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """F1 of the first flags, less that of the second where given, with a percentile bootstrap over rows.

    Rows with the same label and flags are one cell, and drawing rows is drawing counts of cells: the same bootstrap
    as row by row, without touching the rows again.
    """
    cells = labels.astype(np.int64)
    for each in flags:
        cells = 2 * cells + each
    counts = np.bincount(cells, minlength=2 ** (1 + len(flags)))
    drawn = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), size=_RESAMPLES)
    value, replicates = (_f1_of_cells(each, len(flags)) for each in (counts[None], drawn))
    low, high = np.quantile(replicates, [0.025, 0.975]) if np.ptp(replicates) else (np.nan, np.nan)
    return Interval(float(value[0]), float(low), float(high), len(labels), 0.95)


def _f1_of_cells(counts: np.ndarray, flags: int) -> np.ndarray:
    """F1 of each row of counts by (label, flag, ...); 0 where there is neither a positive nor a flag."""
    table = counts.reshape(len(counts), *[2] * (1 + flags))
    found = []
    for axis in range(flags):
        pair = table.sum(axis=tuple(2 + other for other in range(flags) if other != axis))
        either = 2 * pair[:, 1, 1] + pair[:, 1, 0] + pair[:, 0, 1]
        found.append(2 * pair[:, 1, 1] / np.maximum(1, either))
    return np.asarray(found[0] if flags == 1 else found[0] - found[1])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
