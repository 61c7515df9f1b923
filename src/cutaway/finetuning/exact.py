"""Prompts with a reference answer: whether greedy decoding would write it, and its log-probability; no generation.

Greedy decoding writes the answer exactly when each of its tokens is the likeliest after the ones before, so one
teacher-forced forward decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.training import Data, Row, data_of


@dataclass(frozen=True)
class Item:
    """A prompt and its reference answer, as token ids."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids or not self.answer:
            raise UsageError("an item needs a token in its prompt and in its answer")


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model makes of items."""

    exact: np.ndarray
    """Whether greedy decoding writes the answer."""
    logp: np.ndarray
    """Log-probability of the whole answer, in nats."""

    @property
    def rate(self) -> float:
        return float(self.exact.mean())


def item_data(items: Sequence[Item], context: int) -> Data:
    """Return rows in which the answers carry loss."""
    rows = [Row((*each.ids, *each.answer), (0.0,) * len(each.ids) + (1.0,) * len(each.answer)) for each in items]
    return data_of([(row,) for row in rows], context=context)


@torch.no_grad()
def score(model: Model, items: Sequence[Item], batch: int = 64) -> Scores:
    """Return the scores of all items; logits are formed from the shortest prompt's end on only."""
    if not items:
        raise UsageError("no items; give at least one")
    exact, logp = np.zeros(len(items), dtype=bool), np.zeros(len(items))
    order = sorted(range(len(items)), key=lambda place: len(items[place].ids))
    for start in range(0, len(items), batch):
        places = order[start : start + batch]
        tokens = model.batch([(*items[p].ids, *items[p].answer) for p in places])
        kept = tokens.ids.shape[1] - min(len(items[p].ids) for p in places) + 1
        logits = model.hf(**tokens.forward_kwargs(), use_cache=False, logits_to_keep=kept).logits.float()
        shift = tokens.ids.shape[1] - kept
        for row, place in enumerate(places):
            item = items[place]
            first = len(item.ids) - 1 - shift
            here = logits[row, first : first + len(item.answer)]
            wanted = torch.tensor(item.answer, device=here.device)
            exact[place] = bool((here.argmax(-1) == wanted).all())
            logp[place] = float(here.log_softmax(-1).gather(1, wanted[:, None]).sum())
    return Scores(exact, logp)
