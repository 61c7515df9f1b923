"""How well a model knows facts: probability and rank of one-word answers, in any wording and after any hint.

An answer counts by its first token after the prompt; a fact is known when that token is the most probable of the whole
vocabulary, and *chosen* when it is the most probable of the fact's choices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.concepts import Fact
from cutaway.stats import Interval, clopper_pearson

Ask = Callable[[Fact], str]
"""How a fact becomes a prompt."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model makes of each fact."""

    known: Bool[np.ndarray, " fact"]
    chosen: Bool[np.ndarray, " fact"]
    logp: Float[np.ndarray, " fact"]
    """Of the answer's first token, over the whole vocabulary; nats."""
    share: Float[np.ndarray, " fact"]
    """Probability of the answer among its choices."""
    top: tuple[int, ...]
    """The most probable token."""

    def __repr__(self) -> str:
        return f"Answers(known {self.accuracy!r}, log-prob {self.logp.mean():.2f}, n={len(self.known)})"

    @property
    def accuracy(self) -> Interval:
        """Share of facts known, with an exact interval."""
        return clopper_pearson(int(self.known.sum()), len(self.known))


def plainly(fact: Fact) -> str:
    """Ask in the first wording."""
    return fact.prompt


def wording(number: int) -> Ask:
    """Ask in another wording, counted from 0."""
    return lambda fact: fact.wordings[number]


@torch.no_grad()
def answers(model: Model, facts: Sequence[Fact], ask: Ask = plainly, batch: int = 64) -> Answers:
    """Return what the model answers; UsageError for no facts, or choices that begin with one and the same token."""
    if not facts:
        raise UsageError("no facts; give at least one")
    logits = last_logits(model, [ask(fact) for fact in facts], batch)
    logps = logits.double().log_softmax(-1)
    rows = zip(logps, facts, strict=True)
    found = [_one(row, first_tokens(model, fact.choices), fact) for row, fact in rows]
    known, chosen, logp, share = (np.array(column) for column in zip(*found, strict=True))
    return Answers(known, chosen, logp, share, tuple(logits.argmax(-1).tolist()))


@torch.no_grad()
def last_logits(model: Model, prompts: Sequence[str], batch: int = 64) -> Float[Tensor, "prompt vocab"]:
    """Return the logits after each prompt."""
    parts = []
    for start in range(0, len(prompts), batch):
        rows = model.batch(list(prompts[start : start + batch]))
        ends = rows.mask.sum(1) - 1
        parts.append(model.logits(rows)[torch.arange(len(ends), device=ends.device), ends].float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def text_loss(model: Model, texts: Sequence[str], batch: int = 32) -> Float[np.ndarray, " text"]:
    """Return the mean negative log-probability of each text's tokens, in nats."""
    found = []
    for start in range(0, len(texts), batch):
        rows = model.batch(list(texts[start : start + batch]))
        logps = model.logits(rows).float().log_softmax(-1)[:, :-1]
        each = -logps.gather(-1, rows.ids[:, 1:, None])[..., 0] * rows.mask[:, 1:]
        found.append((each.sum(1) / rows.mask[:, 1:].sum(1)).cpu())
    return torch.cat(found).double().numpy()


def first_tokens(model: Model, words: Sequence[str]) -> list[int]:
    """Return the first token of each word; UsageError where two words share it."""
    ids = [model.encode(word)[0] for word in words]
    if len(set(ids)) < len(ids):
        raise UsageError(f"choices {', '.join(words)}: two of them begin with the same token of {model.name!r}")
    return ids


def single_tokens(model: Model, words: Sequence[str]) -> tuple[int, ...]:
    """Return the token of each word; UsageError naming the words that are several tokens."""
    if not words:
        raise UsageError("no concept words; give at least one")
    ids = [model.encode(word) for word in words]
    several = [word for word, pieces in zip(words, ids, strict=True) if len(pieces) != 1]
    if several:
        raise UsageError(f"{', '.join(map(repr, several))}: more than one token each; give words of one token")
    return tuple(pieces[0] for pieces in ids)


def _one(logps: Tensor, choices: Sequence[int], fact: Fact) -> tuple[bool, bool, float, float]:
    right = choices[fact.choices.index(fact.answer)]
    among = logps[list(choices)]
    share = float((logps[right] - among.logsumexp(0)).exp())
    known = int(logps.argmax()) == right
    return known, bool(logps[right] >= among.max()), float(logps[right]), share
