"""Which tokens carry a teacher's trait: those that teachers with other traits would have written otherwise.

Token x_k after x_<k is a *divergence token* of teacher b when b's likeliest next token is x_k and some other teacher's
is not. Each teacher reads the same answer after its own prompt (a system prompt of its own, or weights of its own).
Soft version: the largest KL(b || b') over the other teachers, to rank tokens and to mask by budget.
Source: card subliminal-learning, Method B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Batch, Model

Ids = Sequence[int]
_ROWS = 32


@dataclass(frozen=True)
class Teacher:
    """A model with the prompts it answers to, in its own wording."""

    name: str
    model: Model
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Divergence:
    """Per answer, per token."""

    masks: tuple[tuple[bool, ...], ...]
    """True at divergence tokens."""
    strength: tuple[tuple[float, ...], ...]
    """Largest KL from the teacher to another one, in nats."""

    @property
    def share(self) -> float:
        """Divergence tokens by tokens."""
        return float(np.mean(np.concatenate(self.masks)))

    def budget(self, share: float) -> tuple[tuple[bool, ...], ...]:
        """Return masks of the ``share`` of tokens with the largest KL."""
        if not 0 <= share <= 1:
            raise UsageError(f"share={share}: between 0 and 1")
        flat = np.concatenate(self.strength)
        chosen = np.zeros(len(flat), bool)
        chosen[np.argsort(-flat, kind="stable")[: round(share * len(flat))]] = True
        return split(chosen, [len(mask) for mask in self.masks])

    def shuffled(self, seed: int = 0) -> tuple[tuple[bool, ...], ...]:
        """Return masks of the same number of tokens, drawn at random: the control."""
        flat = np.random.default_rng(seed).permutation(np.concatenate(self.masks))
        return split(flat, [len(mask) for mask in self.masks])


def split(flat: np.ndarray, lengths: Sequence[int]) -> tuple[tuple[bool, ...], ...]:
    """Cut one array into rows of these lengths."""
    return tuple(tuple(bool(x) for x in part) for part in np.split(flat, np.cumsum(lengths)[:-1]))


def answer_scores(model: Model, batch: Batch, answers: Sequence[int]) -> list[Float[Tensor, "pos vocab"]]:
    """Return log-probabilities of the last ``answers`` tokens of each row; padding may be on either side."""
    logits = model.logits(batch).detach()
    found = []
    for row, length in enumerate(answers):
        real = batch.mask[row].nonzero()[:, 0]
        found.append(logits[row, real[-length - 1 : -1]].float().log_softmax(-1))
    return found


@torch.no_grad()
def divergence(teacher: Teacher, others: Sequence[Teacher], answers: Sequence[Ids]) -> Divergence:
    """Return the divergence tokens of ``answers``, written by ``teacher``, one after each of its prompts.

    Raises UsageError for no other teacher, empty answers, prompts that are not one an answer, another vocabulary.
    """
    if not others:
        raise UsageError("no other teacher; divergence is from at least one")
    if not answers or not all(len(answer) for answer in answers):
        raise UsageError("no answers, or an empty one; filter before asking what their tokens carry")
    for each in (teacher, *others):
        if len(each.prompts) != len(answers):
            raise UsageError(f"teacher {each.name!r}: {len(each.prompts)} prompts for {len(answers)} answers")
        check_vocabulary(teacher.model, each.model)
    masks, strength = [], []
    for at in range(0, len(answers), _ROWS):
        rows = range(at, min(at + _ROWS, len(answers)))
        own = _scores(teacher, rows, answers)
        theirs = [_scores(each, rows, answers) for each in others]
        for place, row in enumerate(rows):
            ids = torch.tensor(list(answers[row]), device=own[place].device)
            differs = torch.stack([other[place].argmax(-1) != ids for other in theirs]).any(0)
            gaps = [(own[place].exp() * (own[place] - other[place])).sum(-1) for other in theirs]
            masks.append(tuple((differs & (own[place].argmax(-1) == ids)).tolist()))
            strength.append(tuple(torch.stack(gaps).amax(0).clamp(min=0).tolist()))
    return Divergence(tuple(masks), tuple(strength))


def check_vocabulary(first: Model, second: Model) -> None:
    """Raise UsageError unless the two models read the same tokens."""
    if first.tokenizer is second.tokenizer and first.vocab_size == second.vocab_size:
        return
    if first.vocab_size != second.vocab_size or first.tokenizer.get_vocab() != second.tokenizer.get_vocab():
        raise UsageError(
            f"{first.name!r} and {second.name!r} have different vocabularies; a student reads its teacher's tokens"
        )


def _scores(teacher: Teacher, rows: range, answers: Sequence[Ids]) -> list[Tensor]:
    batch = teacher.model.batch([[*teacher.prompts[row], *answers[row]] for row in rows])
    return answer_scores(teacher.model, batch, [len(answers[row]) for row in rows])
