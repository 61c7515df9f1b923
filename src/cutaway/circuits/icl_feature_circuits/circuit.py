"""Circuits of features put to the test: keep only these, or remove only these, errors always kept.

An ablation subtracts from the value at each place what the features outside the circuit decode to, and (``mean``) adds
what they decode to on average at tokens of that role. Features are encoded anew in the ablated run, from what reaches
the place. So an empty ablation is the model itself, and the error term stays whatever it is.

faithfulness = (m(circuit) - m(nothing)) / (m(model) - m(nothing));  necessity = 1 - the same without the circuit.
Only tokens with a role are touched, see `data`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.data import Prompts
from cutaway.circuits.icl_feature_circuits.feature_graph import Node, NodeEffects, Place, metric
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.model.families import module_input, with_input
from cutaway.stats import Interval, mean_interval

Kept = Mapping[str, Bool[Tensor, "role latent"]]
"""By site: which features stay, at tokens of which role."""
Baseline = Literal["zero", "mean"]
_LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Bounds:
    """The metric of the whole model and with every feature ablated, by prompt."""

    full: Float[np.ndarray, " batch"]
    empty: Float[np.ndarray, " batch"]

    @property
    def range(self) -> float:
        return float(self.full.mean() - self.empty.mean())

    def share(self, values: Float[np.ndarray, " batch"]) -> Interval:
        """Share of the range that ``values`` reach; interval over prompts by the linearised ratio.

        UsageError where ablating everything does not lower the metric: a share of nothing is not defined.
        """
        if self.range <= _LEAST:
            raise UsageError(
                f"ablating every feature changes the metric by {-self.range:.3g}; faithfulness needs a fall"
            )
        ratio = (values.mean() - self.empty.mean()) / self.range
        spread = (values - self.empty) - ratio * (self.full - self.empty)
        return mean_interval(ratio + spread / self.range)


class Ablator:
    """Runs prompts with features ablated at all places."""

    def __init__(self, model: Model, prompts: Prompts, at: Sequence[Place], baseline: Baseline | str = "zero") -> None:
        if baseline not in ("zero", "mean"):
            raise UsageError(f"baseline={baseline!r}: zero or mean")
        self.model, self.prompts, self.places = model, prompts, tuple(at)
        self.means = _means(model, prompts, at) if baseline == "mean" else None

    def run(self, kept: Kept) -> Float[np.ndarray, " batch"]:
        """Each prompt's metric with only the ``kept`` features."""
        with torch.no_grad(), self._ablated(kept):
            found: np.ndarray = metric(self.model, self.prompts).double().cpu().numpy()
        return found

    def bounds(self) -> Bounds:
        """Metric with everything and with nothing kept."""
        return Bounds(self.run(self.all_kept(True)), self.run(self.all_kept(False)))

    def all_kept(self, value: bool) -> dict[str, Tensor]:
        """Every feature kept, or none."""
        device, roles = self.prompts.role.device, len(self.prompts.roles)
        return {
            place.site: torch.full((roles, place.dictionary.n_latents), value, device=device) for place in self.places
        }

    @contextmanager
    def _ablated(self, kept: Kept) -> Iterator[None]:
        handles: list[Any] = []
        reads: dict[str, Tensor] = {}
        try:
            for place in self.places:
                if place.reads != place.site:
                    handles += _hook(self.model, place.reads, _stash(reads, place.reads))
                handles += _hook(self.model, place.site, self._change(place, kept[place.site], reads))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _change(self, place: Place, kept: Tensor, reads: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        role = self.prompts.role.flatten()

        def change(value: Tensor) -> Tensor:
            codes = place.encode(reads[place.reads] if place.reads != place.site else value)
            gone = (role >= 0)[:, None] & ~kept[role.clamp(min=0)[:, None], codes.indices]
            atoms = place.dictionary.atoms
            out = torch.nn.functional.embedding_bag(
                codes.indices, atoms, per_sample_weights=codes.values * gone, mode="sum"
            )
            if self.means is not None:
                usual = (self.means[place.site] * ~kept) @ atoms
                out = out - usual[role.clamp(min=0)] * (role >= 0)[:, None]
            return value - out.view_as(value)

        return change


@dataclass(frozen=True)
class Point:
    """One threshold on the curve."""

    threshold: float
    nodes: int
    faithfulness: Interval
    """Only these nodes kept."""
    random: Interval
    """As many random active nodes at each place and role; the interval is over the draws."""
    necessity: Interval
    """What is lost without the nodes that help: 1 - faithfulness of their complement."""
    random_necessity: Interval
    """Without as many random active nodes."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Faithfulness by number of nodes, on prompts that the nodes were not chosen on."""

    points: tuple[Point, ...]
    full: Interval
    """Metric of the model: mean log-probability, nats."""
    empty: Interval
    """Metric with every feature ablated."""
    chosen: int | None
    """The first point (fewest nodes) that reaches ``share`` of the range; None where none does."""
    share: float
    complete: bool = True

    @property
    def circuit(self) -> Point | None:
        return None if self.chosen is None else self.points[self.chosen]

    def __repr__(self) -> str:
        found = self.circuit
        if found is None:
            return f"Curve({len(self.points)} thresholds, none reaches {self.share:.0%} of the range)"
        return f"Curve({found.nodes} nodes reach {found.faithfulness!r} of the range)"

    def to_dict(self) -> dict[str, Any]:
        points = [
            {key: vars(value) if isinstance(value, Interval) else value for key, value in vars(each).items()}
            for each in self.points
        ]
        ends = {"full": vars(self.full), "empty": vars(self.empty)}
        return {**ends, "points": points, "chosen": self.chosen, "share": self.share, "complete": self.complete}


def select(effects: Mapping[str, NodeEffects], threshold: float) -> dict[str, Tensor]:
    """The features whose effect is at least ``threshold`` in size."""
    return {site: (found.mean.abs() >= threshold) & (found.mean != 0) for site, found in effects.items()}


def thresholds(effects: Mapping[str, NodeEffects], n: int) -> list[float]:
    """``n`` thresholds from the largest effect to the smallest, so that numbers of nodes grow by equal factors."""
    sizes = torch.cat([found.mean.abs().flatten() for found in effects.values()])
    sizes = sizes[sizes > 0].sort(descending=True).values
    if len(sizes) == 0:
        raise UsageError("no feature has any effect on the metric; there is no circuit to choose")
    ranks = np.geomspace(1, len(sizes), n).round().astype(int)
    return list(dict.fromkeys(float(sizes[rank - 1]) for rank in ranks))


def curve(
    model: Model,
    prompts: Prompts,
    at: Sequence[Place],
    effects: Mapping[str, NodeEffects],
    *,
    levels: int = 12,
    share: float = 0.95,
    baseline: Baseline | str = "zero",
    controls: int = 3,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, planned: None,
) -> Curve:
    """Faithfulness and necessity over thresholds, beside random nodes. On Ctrl-C: the points so far.

    prompts: others than those of ``effects``.
    share: of the range that the circuit should reach.
    controls: draws of random nodes at each threshold, among those with any effect, equal in number by place and role.
    """
    ablator = Ablator(model, prompts, at, baseline)
    bounds = ablator.bounds()
    rng = np.random.default_rng([seed, 21])
    points: list[Point] = []
    complete = True
    levels_at = thresholds(effects, levels)
    try:
        for threshold in levels_at:
            points.append(_point(ablator, bounds, effects, threshold, controls, rng))
            report(len(points), len(levels_at))
    except KeyboardInterrupt:
        complete = False
    enough = [i for i, point in enumerate(points) if point.faithfulness.value >= share]
    ends = mean_interval(bounds.full), mean_interval(bounds.empty)
    return Curve(tuple(points), *ends, enough[0] if enough else None, float(share), complete)


def nodes_of(kept: Kept, roles: Sequence[str]) -> list[Node]:
    """The features of a circuit, by name."""
    return [Node(site, roles[role], latent) for site, mask in kept.items() for role, latent in mask.nonzero().tolist()]


@dataclass(frozen=True)
class Check:
    """One node's first-order effect beside what removing it really costs."""

    node: Node
    estimate: float
    exact: Interval
    """Metric of the model minus metric without the node, over prompts."""


def verify(
    model: Model, prompts: Prompts, at: Sequence[Place], effects: Mapping[str, NodeEffects], *, top: int = 10
) -> list[Check]:
    """Ablate the ``top`` features by size of effect, one at a time."""
    ablator = Ablator(model, prompts, at)
    full = ablator.run(ablator.all_kept(True))
    ranked = sorted(
        ((abs(value), value, Node(site, role, latent)) for site, role, latent, value in _largest(effects, top)),
        key=lambda item: -item[0],
    )[:top]
    checks = []
    for _, value, node in ranked:
        kept = ablator.all_kept(True)
        kept[node.site][prompts.roles.index(node.role), node.latent] = False
        checks.append(Check(node, value, mean_interval(full - ablator.run(kept))))
    return checks


def _largest(effects: Mapping[str, NodeEffects], top: int) -> Iterator[tuple[str, str, int, float]]:
    for site, found in effects.items():
        mean, width = found.mean, found.mean.shape[1]
        for index in mean.abs().flatten().topk(min(top, mean.numel())).indices.tolist():
            role, latent = divmod(index, width)
            yield site, found.roles[role], latent, float(mean[role, latent])


def _point(
    ablator: Ablator,
    bounds: Bounds,
    effects: Mapping[str, NodeEffects],
    threshold: float,
    controls: int,
    rng: np.random.Generator,
) -> Point:
    kept = select(effects, threshold)
    helping = {site: mask & (effects[site].mean > 0) for site, mask in kept.items()}
    drawn = [_random(kept, effects, rng) for _ in range(controls)]
    also = [_random(helping, effects, rng) for _ in range(controls)]
    lost = bounds.share(ablator.run(_without(helping)))
    return Point(
        threshold,
        int(sum(int(mask.sum()) for mask in kept.values())),
        bounds.share(ablator.run(kept)),
        mean_interval([bounds.share(ablator.run(each)).value for each in drawn]),
        Interval(1 - lost.value, 1 - lost.high, 1 - lost.low, lost.n, lost.level),
        mean_interval([1 - bounds.share(ablator.run(_without(each))).value for each in also]),
    )


def _without(kept: Kept) -> dict[str, Tensor]:
    return {site: ~mask for site, mask in kept.items()}


def _random(kept: Kept, effects: Mapping[str, NodeEffects], rng: np.random.Generator) -> dict[str, Tensor]:
    """As many features at each place and role, among those that are ever active there."""
    drawn = {}
    for site, mask in kept.items():
        active = (effects[site].features != 0).any(0)
        new = torch.zeros_like(mask)
        for role, wanted in enumerate(mask.sum(-1).tolist()):
            among = active[role].nonzero()[:, 0].cpu().numpy()
            new[role, torch.as_tensor(rng.permutation(among)[:wanted], device=mask.device)] = True
        drawn[site] = new
    return drawn


def _means(model: Model, prompts: Prompts, at: Sequence[Place]) -> dict[str, Float[Tensor, "role latent"]]:
    """Mean value of each feature over tokens of each role."""
    roles, role = len(prompts.roles), prompts.role.flatten()
    means = {}
    with torch.no_grad():
        read = model.capture(prompts.batch, [place.reads for place in at], special=True)
        for place in at:
            dense = place.encode(read[place.reads]).dense()
            sums = dense.new_zeros(roles, dense.shape[1]).index_add_(0, role[role >= 0], dense[role >= 0])
            counts = torch.bincount(role[role >= 0], minlength=roles).clamp(min=1)
            means[place.site] = sums / counts[:, None]
    return means


def _stash(reads: dict[str, Tensor], site: str) -> Callable[[Tensor], Tensor]:
    def keep(value: Tensor) -> Tensor:
        reads[site] = value
        return value

    return keep


def _hook(model: Model, site: str, change: Callable[[Tensor], Tensor]) -> list[Any]:
    """Hooks that put ``change(value)`` in place of a site's value.

    An edit holds a fixed tensor; what a dictionary takes away depends on what arrives in that very run.
    """
    kind, layer = site.split(".")
    port = model.layout.port(kind, int(layer))

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = change(module_input(args, kwargs))
        return with_input(args, kwargs, value)

    def after(_module: Any, _args: Any, output: Any) -> Any:
        value = change(output[0] if isinstance(output, tuple) else output)
        return (value, *output[1:]) if isinstance(output, tuple) else value

    if port.side == "in":
        return [port.module.register_forward_pre_hook(before, with_kwargs=True)]
    return [port.module.register_forward_hook(after)]
