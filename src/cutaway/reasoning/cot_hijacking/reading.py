"""What one forward pass of a prompt says about refusal: the log-odds of how its answer begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Edit, Model

ROW_TOKENS = 4096
"""Prompts share a forward up to this many tokens."""


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
    """``readout`` of every prompt, under ``edits``; prompts of like length share a forward."""
    odds = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        take = max(1, ROW_TOKENS // len(rows[order[-1]]))
        chosen, order = order[-take:], order[:-take]
        with torch.no_grad(), model.edited(*edits):
            odds[chosen] = readout(last_logits(model, [rows[i] for i in chosen])).cpu().numpy()
    return odds


def last_logits(model: Model, rows: Sequence[Sequence[int]]) -> Float[Tensor, "batch vocab"]:
    """Logits after the last token of each row, without those of the other positions."""
    hf = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
    batch = model.batch(rows)
    hidden = hf.get_decoder()(**batch.forward_kwargs(), use_cache=False).last_hidden_state
    at = batch.mask.sum(-1) - 1
    logits = hf.get_output_embeddings()(hidden[torch.arange(len(batch), device=at.device), at])
    cap = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def probability(odds: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Log-odds as probabilities."""
    return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
