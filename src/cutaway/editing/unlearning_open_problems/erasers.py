"""A baseline to audit that needs no training: neurons that fire for the facts and not for others are zeroed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway.editing.weights import prune
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.concepts import Fact


@torch.no_grad()
def pruned(model: Model, forget: Sequence[Fact], retain: Sequence[Fact], share: float) -> Model:
    """Return a copy without the ``share`` of MLP neurons whose mean |activation| at the last token differs most.

    UsageError for a share that leaves no neuron to prune.
    """
    gap = _strength(model, forget) - _strength(model, retain)
    n = round(share * gap.numel())
    if not 0 < n < gap.numel():
        raise UsageError(f"share={share}: of {gap.numel()} neurons that is {n}; between 1 and all but one")
    neurons: dict[int, list[int]] = {}
    for place in gap.flatten().topk(n).indices.tolist():
        neurons.setdefault(place // gap.shape[1], []).append(place % gap.shape[1])
    changed = model.copy()
    prune(changed, neurons)
    return changed


def _strength(model: Model, facts: Sequence[Fact]) -> Tensor:
    """Mean |activation| of every neuron at the last token: [layer neuron]."""
    rows = model.batch([fact.prompt for fact in facts])
    ends = rows.mask.sum(1) - 1
    place = torch.arange(len(ends), device=ends.device)
    found = model.capture(rows, "neurons.*", special=True)
    return torch.stack([found[f"neurons.{i}"][place, ends].abs().float().mean(0) for i in range(model.n_layers)]).cpu()
