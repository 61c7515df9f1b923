"""The pairs a circuit is found or judged on: of several lengths at once, resampled by group, split in two."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float

from cutaway.circuits.attribution import Settings, attribute
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.memory import plan
from cutaway.circuits.pairs import Pair, Pairs, by_length
from cutaway.circuits.parts import Anatomy
from cutaway.circuits.patch import bytes_per_circuit, run
from cutaway.circuits.record import Ablation, reference
from cutaway.circuits.wiring import Grouping, Wiring
from cutaway.errors import UsageError
from cutaway.model import Model

Items: TypeAlias = Pairs | Sequence[Pairs]
"""Pairs of one length, or several such groups (see `by_length`)."""


@dataclass(frozen=True)
class Split:
    """Pairs to find a circuit on and other pairs to judge it on; no group is in both."""

    discovery: list[Pairs]
    held_out: list[Pairs]


def split(items: Items | Sequence[Pair], seed: int = 0, *, share: float = 0.5) -> Split:
    """Divide pairs at random, ``share`` of the groups for discovery; pairs without a group are groups of one.

    UsageError where fewer than two groups exist. Pairs given loose are measured by logit difference.
    """
    loose: list[Pair] = []
    measures: set[str] = set()
    for each in [items] if isinstance(items, Pairs) else items:
        loose += each.items if isinstance(each, Pairs) else (each,)
        measures.add(each.measure if isinstance(each, Pairs) else "logit_diff")
    if len(measures) > 1:
        raise UsageError(f"measures {', '.join(sorted(measures))}: one for all pairs")
    names = _labels(loose)
    labels = sorted(set(names))
    if len(labels) < 2:
        raise UsageError(f"{len(loose)} pairs in {len(labels)} group: a split needs two groups or more")
    order = np.random.default_rng(seed).permutation(len(labels))
    first = {labels[place] for place in order[: min(max(1, round(share * len(labels))), len(labels) - 1)]}
    measure = measures.pop()

    def half(wanted: bool) -> list[Pairs]:
        return by_length([pair for pair, name in zip(loose, names, strict=True) if (name in first) == wanted], measure)

    return Split(half(True), half(False))


def as_groups(items: Items) -> list[Pairs]:
    """Return the groups; UsageError for none, or for more than one measure."""
    groups = [items] if isinstance(items, Pairs) else list(items)
    if not groups or len({group.measure for group in groups}) > 1:
        raise UsageError(f"{len(groups)} groups of pairs: one or more, all with the same measure")
    return groups


def clusters(items: Items) -> tuple[str, ...]:
    """Return what each pair is resampled with: its group, or itself."""
    return tuple(_labels([pair for group in as_groups(items) for pair in group.items]))


def _labels(pairs: Sequence[Pair]) -> list[str]:
    return [pair.group or f"#{place}" for place, pair in enumerate(pairs)]


def circuit_values(
    body: Anatomy,
    wiring: Wiring,
    masks: Bool[np.ndarray, "circuit *pos writer reader"],
    items: Items,
    ablation: Ablation | str = "corrupted",
    *,
    memory: int | None = None,
) -> Float[np.ndarray, "circuit item"]:
    """Return the measure of every circuit on every pair, items in the order of the groups.

    Circuits and pairs share forwards as far as ``memory`` (bytes) allows; the reference run is made once.
    """
    torched, parts = torch.from_numpy(np.ascontiguousarray(masks)), []
    with torch.no_grad():
        for group in as_groups(items):
            each = bytes_per_circuit(body, wiring, (1, group.n_pos))
            at_once = plan(each, len(group), body.model.device, memory).at_once
            # A mean is over all pairs, so its record cannot be made a part at a time.
            whole = reference(body, group.corrupted, ablation) if ablation == "mean" else None
            for start in range(0, len(group), at_once):
                rows = slice(start, start + at_once)
                some = group[rows]
                instead = whole.rows(rows) if whole else reference(body, some.corrupted, ablation, some.clean)
                values = some.value(run(body, wiring, some.clean, torched, instead, memory=memory))
                parts.append(values.double().cpu().numpy())
    return np.concatenate(parts, 1)


def attribute_all(
    model: Model, items: Items, settings: Settings | None = None, *, grouping: Grouping | str = "shared"
) -> CircuitGraph:
    """Return the graph of mean scores over pairs of several lengths."""
    groups = as_groups(items)
    graphs = [attribute(model, group, settings, grouping=grouping) for group in groups]
    if len(graphs) > 1 and graphs[0].header.positions:
        raise UsageError("scores by position need pairs of one length")
    n_pairs = sum(map(len, groups))
    scores = sum(graph.scores * (len(group) / n_pairs) for graph, group in zip(graphs, groups, strict=True))
    header = graphs[0].header
    return CircuitGraph.whole(
        replace(header, settings={**header.settings, "pairs": n_pairs}), np.asarray(scores, dtype=np.float32)
    )
