"""Tune on harmless data and see what becomes of refusals: averaged weights beside every cheaper way to the same.

The user gets a trade-off table: for each way to tune and each setting of its knob, how well the tuned task is done
(utility) and how often prompts that were refused still are (refusal), on validation and on test items.

Ways, each from the same weights on the same rows in the same order:
1. plain        the rate as given, and a grid of lower ones; among them rate * (1 - eta)
2. passive      m_t = eta m_{t-1} + (1 - eta) theta_t beside the plain run, several eta at once
3. feedback     theta_t <- m_t every k steps. With k = 1 this is the plain run at rate * (1 - eta), for SGD and AdamW
4. merging      theta_0 + a (theta_T - theta_0), from the plain run
5. anchored     plain with strength * |theta - theta_0|^2 added to the loss
6. elastic      the same, each weight's share by how much the old answers depend on it (Fisher information, mean 1)
7. mixed        plain with rows of the old behaviour among the tuned ones

`matched` compares ways at equal utility: the knob that keeps most refusals on validation items, among those within a
margin of the plain run's utility there; its test numbers are reported.

A refusal is counted in two ways: whether greedy decoding writes the item's own refusal (one forward, no text), and,
where ``Material.written`` asks for it, whether the keyword matcher of `cutaway.grading` calls the written answer one.

Limits: which variant and eta the paper used is not known here; both are options. Source: card ema-safety,
arXiv:2508.12531.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.finetuning.exact import Item, item_data, score
from cutaway.grading.refusal import grade_refusal
from cutaway.model import Model
from cutaway.sampling.types import Settings
from cutaway.steering import draw_answers
from cutaway.training import (
    Average,
    Data,
    LoraSpec,
    Loss,
    NextToken,
    Objective,
    TrainBatch,
    TrainConfig,
    Trained,
    adapters,
    adapters_scaled,
    add_lora,
    collate,
    swapped,
    train,
    trainable,
)

WAYS = ("plain", "passive", "feedback", "merging", "anchored", "elastic", "mixed")


@dataclass(frozen=True)
class Material:
    """Prompts with reference answers."""

    tuning: tuple[Item, ...]
    """Harmless rows to tune on; none asks for what is refused."""
    utility: tuple[tuple[Item, ...], tuple[Item, ...]]
    """Other rows of the tuned task: validation and test."""
    refusal: tuple[tuple[Item, ...], tuple[Item, ...]]
    """Prompts that are refused, with the refusal's opening: validation and test."""
    old: tuple[Item, ...] = ()
    """Other prompts with what the start answers, refusals among them; for the ways that use such data."""
    written: int = 0
    """Tokens to write in answer to each test prompt of those, for the keyword matcher; 0: not written."""


@dataclass(frozen=True)
class Grid:
    """Knobs of every way."""

    rates: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1)
    """Factors on the rate of the plain run; the first is 1."""
    etas: tuple[float, ...] = (0.5, 0.9, 0.95, 0.98)
    feedback: tuple[tuple[float, int], ...] = ((0.5, 1), (0.5, 10))
    """(eta, steps between updates)."""
    merges: tuple[float, ...] = (0.25, 0.5, 0.75)
    anchors: tuple[float, ...] = (0.01,)
    elastic: tuple[float, ...] = ()
    """Strengths; needs ``Material.old``."""
    mixed: tuple[float, ...] = ()
    """Shares of the tuned rows that are added from ``Material.old``."""

    def __post_init__(self) -> None:
        if not self.rates or self.rates[0] != 1.0 or not all(0 < factor <= 1 for factor in self.rates):
            raise UsageError(f"rates={self.rates}: factors above 0 and up to 1, the first of them 1")
        if not all(0 <= a <= 1 for a in self.merges):
            raise UsageError(f"merges={self.merges}: between 0, the start, and 1, the end")
        for name in ("anchors", "elastic", "mixed"):
            if not all(strength > 0 for strength in getattr(self, name)):
                raise UsageError(f"{name}={getattr(self, name)}: above 0")


@dataclass(frozen=True)
class Point:
    """One way to tune with one knob, in one repeat."""

    way: str
    knob: str
    repeat: int
    utility: tuple[float, float]
    """Exact answers: validation, test."""
    refusal: tuple[float, float]
    """Refusals kept: validation, test."""
    opening: float
    """Mean log-probability of the refusal's opening on test prompts, in nats."""
    distance: float
    """|theta - theta_0| over the trained weights."""
    keyword: float | None = None
    """Written answers to test prompts that the keyword matcher calls refusals; None where none were written."""


@dataclass(frozen=True)
class Tradeoff:
    """All points, with the curves of the plain runs."""

    base: tuple[Point, ...]
    """Before tuning, one a repeat."""
    points: tuple[Point, ...]
    drift: tuple[tuple[tuple[int, float, float], ...], ...]
    """Early warning of each repeat's plain run: (step, training loss, mean log-probability of the opening)."""
    sizes: tuple[int, int]
    """Test items behind utility and refusal."""
    complete: bool = True

    def __repr__(self) -> str:
        if not self.points:
            return "Tradeoff(no whole repeat)"
        plain = [point for point in self.points if point.way == "plain" and point.knob == "1"]
        lost = sum(b.refusal[1] - p.refusal[1] for b, p in zip(self.base, plain, strict=False)) / len(plain)
        return f"Tradeoff(plain tuning loses {lost:.2f} of refusals, {len(plain)} repeats)"

    def matched(self, repeat: int, way: str, margin: float = 0.01) -> Point | None:
        """Return the point of ``way`` that keeps most refusals on validation, within ``margin`` of plain's utility."""
        points = [point for point in self.points if point.repeat == repeat]
        floor = next(p.utility[0] for p in points if p.way == "plain" and p.knob == "1") - margin
        fit = [p for p in points if p.way == way and p.utility[0] >= floor - 1e-9]
        return max(fit, key=lambda p: (p.refusal[0], p.opening), default=None)

    def to_frame(self) -> Any:
        """Return one row a point."""
        import pandas as pd

        rows = [asdict(point) for point in (*self.base, *self.points)]
        for row in rows:
            for key in ("utility", "refusal"):
                row[f"{key}_validation"], row[f"{key}_test"] = row.pop(key)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Anchored(Objective):
    """Next-token loss with ``strength * sum of weight (theta - theta_0)^2`` a unit of loss weight."""

    start: Mapping[str, Tensor]
    strength: float
    weight: Mapping[str, Tensor] | None = None
    """Of each entry, as `fisher` gives it; None: 1."""

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return the loss sum with the penalty."""
        loss = NextToken()(model, batch)
        own = dict(model.hf.named_parameters())
        squares = {name: (own[name] - start).square() for name, start in self.start.items()}
        away = torch.stack([(s if self.weight is None else s * self.weight[n]).sum() for n, s in squares.items()]).sum()
        return Loss(loss.total + self.strength * away * loss.weight, loss.weight, {"away": away.detach() * loss.weight})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings; the start is the run's own."""
        elastic = self.weight is not None
        return {"objective": "Anchored", "strength": self.strength, "tensors": len(self.start), "elastic": elastic}


def fisher(model: Model, items: Sequence[Item]) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of the trainable weights on ``items``, scaled to mean 1.

    Squared gradients of each item's log-probability, one item at a time. UsageError where no weight matters.
    """
    weights, data = trainable(model), item_data(items, model.n_ctx)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for place in range(len(data)):
        loss = NextToken()(model, collate(data, [place], model)).total
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.square()
    mean = float(sum(each.sum() for each in found.values())) / sum(each.numel() for each in found.values())
    if not mean > 0:
        raise UsageError("no trained weight changes the old answers; train others, or leave elastic out")
    return {name: each / mean for name, each in found.items()}


class ProductAverage:
    """A moving average of the products ``scale B A`` of adapters; used as a probe at every step.

    The average of factors, which `Average` keeps, has another product: B and A move together.
    """

    def __init__(self, eta: float) -> None:
        if not 0 <= eta <= 1:
            raise UsageError(f"eta={eta}: between 0 and 1")
        self.eta = eta
        self.products: dict[str, Tensor] = {}

    def __call__(self, model: Model) -> Mapping[str, float]:
        """Move the average; UsageError for a model without adapters."""
        found = adapters(model)
        if not found:
            raise UsageError(f"model {model.name!r} has no adapters, so there are no products to average")
        for path, adapter in found.items():
            now = (adapter.scale * adapter.b.detach() @ adapter.a.detach()).float()
            self.products[path] = now if path not in self.products else self.products[path].lerp(now, 1 - self.eta)
        return {"norm": float(sum(product.square().sum() for product in self.products.values())) ** 0.5}

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """Put the averaged products in the adapters' place inside the block."""
        weights = {path: _base_weight(model, path) for path in self.products}
        before = {path: weight.detach().clone() for path, weight in weights.items()}
        try:
            with torch.no_grad():
                for path, weight in weights.items():
                    weight.add_(_laid(self.products[path], weight))
            with adapters_scaled(model, 0.0):
                yield model
        finally:
            with torch.no_grad():
                for path, weight in weights.items():
                    weight.copy_(before[path])


def compare(
    make: Callable[[int], Model],
    material: Material,
    config: TrainConfig,
    grid: Grid | None = None,
    *,
    repeats: int = 3,
    lora: LoraSpec | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Tradeoff:
    """Tune in every way, ``repeats`` times, each from a fresh model of ``make(repeat)``; Ctrl-C keeps whole repeats."""
    if repeats < 1:
        raise UsageError(f"repeats={repeats}: 1 or more")
    grid = grid or Grid()
    if (grid.elastic or grid.mixed) and not material.old:
        raise UsageError("elastic and mixed need rows of the old behaviour; give Material.old, or leave them out")
    base: list[Point] = []
    points: list[Point] = []
    drift: list[tuple[tuple[int, float, float], ...]] = []
    complete = True
    try:
        for repeat in range(repeats):
            one = _Repeat(make, material, replace(config, seed=config.seed + repeat), grid, lora, repeat)
            found = one.points(partial(report, repeat, repeats))
            base.append(one.before)
            points += found
            drift.append(one.drift)
    except KeyboardInterrupt:
        complete = False
    sizes = len(material.utility[1]), len(material.refusal[1])
    return Tradeoff(tuple(base), tuple(points), tuple(drift), sizes, complete)


class _Repeat:
    """One repeat: every way from the same weights."""

    def __init__(
        self,
        make: Callable[[int], Model],
        material: Material,
        config: TrainConfig,
        grid: Grid,
        lora: LoraSpec | None,
        repeat: int,
    ) -> None:
        self.make, self.material, self.config, self.grid = make, material, config, grid
        self.lora, self.repeat = lora, repeat
        model = self._fresh()
        self.start = {name: weight.detach().clone() for name, weight in trainable(model).items()}
        self.data = item_data(material.tuning, model.n_ctx)
        self.before = self._point(model, "before", "0")
        self.drift: tuple[tuple[int, float, float], ...] = ()

    def points(self, note: Callable[[str], None]) -> list[Point]:
        """Return the points of every way."""
        note("plain")
        found = self._plain_and_its_averages()
        for factor in self.grid.rates[1:]:
            note(f"rate x {factor:g}")
            run = self._run(replace(self.config, rate=self.config.rate * factor))
            found.append(self._point(run.model, "plain", f"{factor:g}"))
        for eta, every in self.grid.feedback:
            note(f"feedback {eta:g} every {every}")
            run = self._run(self.config, averages=(Average(eta, "feedback", every=every),))
            found.append(self._point(run.model, "feedback", f"{eta:g} every {every}"))
        for strength in self.grid.anchors:
            note(f"anchored {strength:g}")
            run = self._run(self.config, objective=Anchored(self.start, strength))
            found.append(self._point(run.model, "anchored", f"{strength:g}"))
        return found + self._with_old_data(note)

    def _with_old_data(self, note: Callable[[str], None]) -> list[Point]:
        old, found = self.material.old, []
        weight = fisher(self._fresh(), old) if self.grid.elastic else {}
        for strength in self.grid.elastic:
            note(f"elastic {strength:g}")
            run = self._run(self.config, objective=Anchored(self.start, strength, weight))
            found.append(self._point(run.model, "elastic", f"{strength:g}"))
        for share in self.grid.mixed:
            note(f"mixed {share:g}")
            more = [old[i % len(old)] for i in range(round(share * len(self.material.tuning)))]
            run = self._run(self.config, data=item_data((*self.material.tuning, *more), self.data.context))
            found.append(self._point(run.model, "mixed", f"{share:g}"))
        return found

    def _plain_and_its_averages(self) -> list[Point]:
        opening = self.material.refusal[0]
        every = max(1, self.config.steps_of(self.data) // 8)
        probes = {"refusal": lambda model: {"opening": float(score(model, opening).logp.mean())}}
        averages = tuple(Average(eta) for eta in self.grid.etas)
        run = self._run(replace(self.config, probe_every=every), averages=averages, probes=probes)
        losses = [step.loss for step in run.history]
        self.drift = tuple(
            (each.step, losses[max(0, each.step - 1)], each.values["refusal.opening"]) for each in run.probed
        )
        model, end = run.model, {name: weight.detach().clone() for name, weight in trainable(run.model).items()}
        found = [self._point(model, "plain", "1")]
        for average in averages:
            with swapped(model, run.averages[average.name]):
                found.append(self._point(model, "passive", f"{average.eta:g}"))
        for share in self.grid.merges:
            between = {name: torch.lerp(self.start[name], end[name], share) for name in end}
            with swapped(model, between):
                found.append(self._point(model, "merging", f"{share:g}"))
        return found

    def _run(self, config: TrainConfig, *, data: Data | None = None, **rest: Any) -> Trained:
        # As many steps whatever the rows
        config = replace(config, steps=self.config.steps_of(self.data))
        run = train(self._fresh(), data or self.data, config, **rest)
        if not run.complete:
            raise KeyboardInterrupt
        return run

    def _fresh(self) -> Model:
        model = self.make(self.repeat)
        if self.lora is not None:
            return add_lora(model, self.lora)
        model.hf.requires_grad_(True)
        return model

    def _point(self, model: Model, way: str, knob: str) -> Point:
        utility = [score(model, items).rate for items in self.material.utility]
        refusal = [score(model, items) for items in self.material.refusal]
        now = trainable(model)
        away = sum(float((now[name].detach() - start).square().sum()) for name, start in self.start.items()) ** 0.5
        return Point(
            way,
            knob,
            self.repeat,
            (utility[0], utility[1]),
            (refusal[0].rate, refusal[1].rate),
            float(refusal[1].logp.mean()),
            away,
            self._written(model),
        )

    def _written(self, model: Model) -> float | None:
        if not self.material.written:
            return None
        return written_refusals(model, [item.ids for item in self.material.refusal[1]], self.material.written)


def written_refusals(model: Model, prompts: Sequence[Sequence[int]], tokens: int = 16) -> float:
    """Return the share of prompts whose greedy answer the keyword matcher calls a refusal; an empty one is none."""
    settings = Settings(temperature=0.0, max_tokens=tokens)
    answers = [found for (found,) in draw_answers(model, prompts, settings)]
    graded = [grade_refusal(model.decode(each.ids), each.finish) for each in answers]
    return sum(each == "refuse" for each in graded) / len(graded)


def _base_weight(model: Model, path: str) -> Tensor:
    layer, module = path.removeprefix(model.layout.prefix + ".").split(".", 1)
    held: Any = model.layout.blocks[int(layer)].get_submodule(module)
    weight: Tensor = held.base_layer.weight
    return weight


def _laid(product: Tensor, weight: Tensor) -> Tensor:
    """Return a product [out in] in the layout of its weight; GPT-2 keeps [in out]."""
    return (product if product.shape == weight.shape else product.T).to(weight)
