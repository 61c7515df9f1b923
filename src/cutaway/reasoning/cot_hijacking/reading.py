"""What one forward pass of a prompt says about refusal: the log-odds of how its answer begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Edit, Model
from cutaway.reasoning.starts import batches, last_logits


@dataclass(frozen=True)
class Readout:
    """Log-odds that the first token of the answer is one of ``refuse``, against ``comply`` or (empty) all others."""

    refuse: tuple[int, ...]
    comply: tuple[int, ...] = ()

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        logits = logits.double()
        for_it = logits[:, list(self.refuse)].logsumexp(-1)
        if self.comply:
            return for_it - logits[:, list(self.comply)].logsumexp(-1)
        others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        others[list(self.refuse)] = False
        return for_it - logits[:, others].logsumexp(-1)


def first_tokens(model: Model, openings: Sequence[str]) -> tuple[int, ...]:
    """The first token of each opening, each once; UsageError without any."""
    ids = tuple(dict.fromkeys(model.encode(opening)[0] for opening in openings))
    if not ids:
        raise UsageError("openings is empty: name at least one way in which a refusal begins")
    return ids


def refusal_odds(
    model: Model, rows: Sequence[Sequence[int]], readout: Readout, edits: Sequence[Edit] = ()
) -> Float[np.ndarray, " row"]:
    """``readout`` of every prompt, under ``edits``."""
    odds = np.zeros(len(rows))
    with torch.no_grad(), model.edited(*edits):
        for members, batch in batches(model, rows):
            odds[members] = readout(last_logits(model, batch)).cpu().numpy()
    return odds


def probability(odds: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Log-odds as probabilities."""
    return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
