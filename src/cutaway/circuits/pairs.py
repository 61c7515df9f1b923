"""Clean and corrupted prompts of equal token length, with what counts as right and wrong after them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError, nearest
from cutaway.model import Model

Measure = Literal["logit_diff", "prob_diff"]
"""``logit_diff``: mean logit of the right tokens minus mean logit of the wrong ones. ``prob_diff``: summed
probability of the right ones minus that of the wrong ones."""


@dataclass(frozen=True)
class Pair:
    """One prompt with its corrupted twin, as token ids."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    name: str = ""
    group: str = ""
    """What resampling keeps together: a template, a problem."""

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupted):
            raise UsageError(
                f"pair {self.name!r}: {len(self.clean)} clean and {len(self.corrupted)} corrupted tokens;"
                " patching needs equal lengths position by position"
            )
        if not self.clean or not self.right or not self.wrong:
            raise UsageError(f"pair {self.name!r}: needs tokens, a right and a wrong answer")
        if self.clean == self.corrupted:
            raise UsageError(f"pair {self.name!r}: the corrupted prompt equals the clean one, so nothing would change")
        if set(self.right) & set(self.wrong):
            raise UsageError(f"pair {self.name!r}: token {min(set(self.right) & set(self.wrong))} is right and wrong")


@dataclass(frozen=True)
class Pairs:
    """Pairs of one token length, and how an answer is measured."""

    items: tuple[Pair, ...]
    measure: Measure | str = "logit_diff"
    clean: Int[Tensor, "pair pos"] = field(init=False, repr=False, compare=False)
    corrupted: Int[Tensor, "pair pos"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise UsageError(f"measure={self.measure!r}{nearest(self.measure, get_args(Measure))}")
        lengths = {len(pair.clean) for pair in self.items}
        if len(lengths) != 1:
            raise UsageError(
                f"pairs of {len(lengths)} token lengths ({', '.join(map(str, sorted(lengths)))}): one at a time,"
                " see by_length"
            )
        object.__setattr__(self, "clean", torch.tensor([pair.clean for pair in self.items]))
        object.__setattr__(self, "corrupted", torch.tensor([pair.corrupted for pair in self.items]))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, which: slice) -> "Pairs":
        return Pairs(self.items[which], self.measure)

    @property
    def n_pos(self) -> int:
        return self.clean.shape[1]

    def value(self, logits: Float[Tensor, "*runs pair vocab"]) -> Float[Tensor, "*runs pair"]:
        """Return the measure of each pair, given the logits after its last token; differentiable, in fp32."""
        scores = logits.float()
        if self.measure == "prob_diff":
            scores = scores.softmax(-1)
        columns = []
        for row, pair in enumerate(self.items):
            right, wrong = scores[..., row, list(pair.right)], scores[..., row, list(pair.wrong)]
            if self.measure == "prob_diff":
                columns.append(right.sum(-1) - wrong.sum(-1))
            else:
                columns.append(right.mean(-1) - wrong.mean(-1))
        return torch.stack(columns, -1)


def pair(
    model: Model,
    clean: str,
    corrupted: str,
    right: str | Sequence[str],
    wrong: str | Sequence[str],
    *,
    name: str = "",
    group: str = "",
) -> Pair:
    """Return a pair from texts. Answers are written with their leading space, if they have one.

    UsageError for prompts of different token lengths (both tokenisations are shown) and for an answer of more
    than one token. Nothing is ever padded.
    """
    name = name or clean
    ids, other = model.encode(clean, special=True), model.encode(corrupted, special=True)
    if len(ids) != len(other):
        raise UsageError(
            f"pair {name!r}: clean has {len(ids)} tokens, corrupted {len(other)}; patching needs equal lengths.\n"
            f"  clean:     {_shown(model, ids)}\n  corrupted: {_shown(model, other)}"
        )
    return Pair(tuple(ids), tuple(other), _answers(model, right, name), _answers(model, wrong, name), name, group)


def by_length(pairs: Sequence[Pair], measure: Measure | str = "logit_diff") -> list[Pairs]:
    """Return ``pairs`` in groups of one token length, the longest group first."""
    lengths = sorted({len(pair.clean) for pair in pairs})
    groups = [tuple(pair for pair in pairs if len(pair.clean) == length) for length in lengths]
    return [Pairs(group, measure) for group in sorted(groups, key=len, reverse=True)]


def _answers(model: Model, texts: str | Sequence[str], name: str) -> tuple[int, ...]:
    found = []
    for text in [texts] if isinstance(texts, str) else texts:
        ids = model.encode(text)
        if len(ids) != 1:
            raise UsageError(
                f"pair {name!r}: answer {text!r} is {len(ids)} tokens ({_shown(model, ids)}); circuits are measured at"
                " one next token: choose answers of one token, or their first token where it decides"
            )
        found.append(ids[0])
    return tuple(found)


def _shown(model: Model, ids: Sequence[int]) -> str:
    return " ".join(repr(model.decode([token])) for token in ids)
