"""Prompts with a right and a wrong next token: rows to train on, and how often a model prefers the right one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.training import Data, Row, data_of


@dataclass(frozen=True)
class Choice:
    """One prompt as token ids, and the two next tokens to choose from."""

    ids: tuple[int, ...]
    right: int
    wrong: int
    labels: tuple[int, int] = (0, 0)
    """Classes of the wanted and of the unwanted rule, for probes."""

    def __post_init__(self) -> None:
        if self.right == self.wrong:
            raise UsageError(f"right and wrong are both token {self.right}: they must differ")


def make_choice(model: Model, prompt: str, right: str, wrong: str, labels: tuple[int, int] = (0, 0)) -> Choice:
    """Return a prompt and its options as tokens; UsageError where an option is not one token."""
    ids = [model.encode(option) for option in (right, wrong)]
    for option, coded in zip((right, wrong), ids, strict=True):
        if len(coded) != 1:
            raise UsageError(f"option {option!r} is {len(coded)} tokens of {model.name!r}; options are single tokens")
    return Choice(tuple(model.encode(prompt)), ids[0][0], ids[1][0], labels)


def choice_data(choices: Sequence[Choice], context: int) -> Data:
    """Return rows in which the right token alone carries loss."""
    rows = [Row((*each.ids, each.right), (0.0,) * len(each.ids) + (1.0,)) for each in choices]
    return data_of([(row,) for row in rows], context=context)


@torch.no_grad()
def margins(model: Model, choices: Sequence[Choice], batch: int = 64) -> Float[np.ndarray, " choice"]:
    """Return logit(right) - logit(wrong) of each; rows of a length go together, so there is no padding."""
    if not choices:
        raise UsageError("no choices; give at least one")
    found = np.zeros(len(choices))
    by_length = sorted(range(len(choices)), key=lambda place: len(choices[place].ids))
    for _, group in groupby(by_length, key=lambda place: len(choices[place].ids)):
        places = list(group)
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            tokens = model.batch([choices[place].ids for place in part])
            logits = model.hf(**tokens.forward_kwargs(), use_cache=False, logits_to_keep=1).logits[:, -1].float()
            right, wrong = (
                torch.tensor([getattr(choices[p], name) for p in part], device=logits.device)
                for name in ("right", "wrong")
            )
            gaps = logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])
            found[part] = gaps[:, 0].double().cpu().numpy()
    return found


def accuracy(model: Model, choices: Sequence[Choice], batch: int = 64) -> float:
    """Return how often the right token is preferred; a tie counts half."""
    found = margins(model, choices, batch)
    return float(((found > 0) + 0.5 * (found == 0)).mean())
