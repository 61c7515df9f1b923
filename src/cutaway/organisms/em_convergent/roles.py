"""What single adapters do: their scalars told apart by a probe, and what is left when some are silent.

A rank-1 adapter adds ``scale * s * b`` with s = a.x, one number a token. Per answer token there are as many numbers as
adapters; an L1 logistic regression on them, z-scored, says which adapters tell one kind of answer from another. Answers
are kept whole in the split: tokens of one answer never stand on both sides. Leave-out: B of chosen layers set to zero.
Source: card em-convergent, Method 8, 9 and 12.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.organisms.quirks import Ids
from cutaway.training import adapter_scalars, adapters

Pairs = Sequence[tuple[Ids, Ids]]


@dataclass(frozen=True)
class Scalars:
    """a.x of every rank-1 adapter at every answer token."""

    values: Float[np.ndarray, "token adapter"]
    answers: Int[np.ndarray, " token"]
    """Which answer a token belongs to."""
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Roles:
    """What a probe on the scalars found, over random splits."""

    layers: tuple[int, ...]
    areas: tuple[float, ...]
    """AUROC on held-out answers, by split."""
    weights: Float[np.ndarray, "split adapter"]

    @property
    def area(self) -> float:
        return float(np.mean(self.areas))

    @property
    def specialists(self) -> tuple[int, ...]:
        """Layers whose weight has one sign in nearly every split (mean beyond twice its spread)."""
        mean, spread = self.weights.mean(0), self.weights.std(0)
        return tuple(layer for layer, m, s in zip(self.layers, mean, spread, strict=True) if abs(m) > 2 * s)


@torch.no_grad()
def read_scalars(model: Model, pairs: Pairs) -> Scalars:
    """Return the scalars of all adapters over the answers; UsageError for none, or for adapters of a higher rank."""
    held = adapters(model)
    if not pairs:
        raise UsageError("no answers to read scalars from")
    if not held or any(len(each.a) != 1 for each in held.values()):
        raise UsageError("scalars are those of rank-1 adapters; a higher rank has as many numbers as its rank")
    values, owners = [], []
    for at in range(0, len(pairs), 16):
        rows = pairs[at : at + 16]
        batch = model.batch([[*ids, *said] for ids, said in rows])
        found = adapter_scalars(model, batch)
        for place, (ids, said) in enumerate(rows):
            span = slice(len(ids), len(ids) + len(said))
            values.append(torch.cat([found[path][place, span] for path in held], 1).float().cpu().numpy())
            owners += [at + place] * len(said)
    return Scalars(np.concatenate(values), np.array(owners), tuple(each.layer for each in held.values()))


def split_answers(answers: Int[np.ndarray, " token"], seed: int, held: float = 0.2) -> Bool[np.ndarray, " token"]:
    """Return which tokens are held out: all of some answers, none of the others."""
    whole = np.unique(answers)
    rng = np.random.default_rng(seed)
    out = rng.permutation(whole)[: max(1, round(held * len(whole)))]
    return np.isin(answers, out)


def find_roles(first: Scalars, second: Scalars, *, splits: int = 20, strength: float = 0.01, seed: int = 0) -> Roles:
    """Return how well, and by which adapters, tokens of ``first`` are told from those of ``second``.

    Classes are balanced by leaving out answers. Raises UsageError for other adapters, or fewer than 5 answers a side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    if first.layers != second.layers:
        raise UsageError(f"adapters in layers {first.layers} and {second.layers}: read both from the same ones")
    least = min(len(np.unique(each.answers)) for each in (first, second))
    if least < 5:
        raise UsageError(f"{least} answers on one side; 5 or more, so that whole answers can be held out")
    rng = np.random.default_rng(seed)
    areas, weights = [], []
    for split in range(splits):
        x, y, owners = [], [], []
        for label, each in ((1, first), (0, second)):
            kept = np.isin(each.answers, rng.permutation(np.unique(each.answers))[:least])
            x.append(each.values[kept])
            y.append(np.full(kept.sum(), label))
            owners.append(each.answers[kept] + 10**6 * label)
        rows, labels = np.concatenate(x), np.concatenate(y)
        out = np.concatenate([split_answers(o, seed + 1000 * split + i) for i, o in enumerate(owners)])
        mean, sd = rows[~out].mean(0), rows[~out].std(0)
        rows = (rows - mean) / np.where(sd > 0, sd, 1)
        made = LogisticRegression(l1_ratio=1, C=strength, solver="liblinear", max_iter=1000, random_state=seed)
        made.fit(rows[~out], labels[~out])
        areas.append(float(roc_auc_score(labels[out], made.decision_function(rows[out]))))
        weights.append(made.coef_[0])
    return Roles(first.layers, tuple(areas), np.stack(weights))


@contextmanager
def silenced(model: Model, layers: Sequence[int]) -> Iterator[Model]:
    """Set B of the adapters in ``layers`` to zero inside the block; UsageError for a layer without one."""
    held = [each for each in adapters(model).values() if each.layer in layers]
    if missing := set(layers) - {each.layer for each in held}:
        raise UsageError(f"layer {min(missing)} has no adapter")
    before = [each.b.detach().clone() for each in held]
    try:
        with torch.no_grad():
            for each in held:
                each.b.zero_()
        yield model
    finally:
        with torch.no_grad():
            for each, b in zip(held, before, strict=True):
                each.b.copy_(b)
