"""Which latent of a dictionary tells two classes apart, found in one sparse pass and judged without favour.

`screen` gives the AUROC of every latent at once: only active entries are sorted; rows where a latent is silent tie at
zero. `nested` judges a choice among latents on groups that had no part in the choosing; `naive_best` is the figure
that the same rows give when they also choose, and `null_best` where labels are shuffled: what the search finds in
nothing. `KSparse` joins the best k by logistic regression. Source: card sae-answerability, Metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features import Codes


def screen(codes: Codes, labels: Bool[np.ndarray, " label"]) -> Float[np.ndarray, " latent"]:
    """Return each latent's AUROC, ties counted half; 0.5 for one that is never active.

    UsageError for as many labels as there are not rows, one class only, or values that are not finite.
    """
    check_labels(labels, len(codes))
    values = codes.values.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise UsageError("codes contain nan or infinity")
    active = values != 0
    latent, value = codes.indices.cpu().numpy()[active], values[active]
    positive = np.broadcast_to(labels[:, None], values.shape)[active]
    n = codes.n_latents
    total = np.array([int(labels.sum()), int((~labels).sum())])
    shown = np.stack([np.bincount(latent[positive], minlength=n), np.bincount(latent[~positive], minlength=n)])
    # One more entry for each latent stands for all rows in which it is silent.
    latent, value = np.concatenate([latent, np.arange(n)]), np.concatenate([value, np.zeros(n)])
    ups, downs = (np.concatenate([part, total[i] - shown[i]]) for i, part in enumerate((positive, ~positive)))
    order = np.lexsort((value, latent))
    latent, value, ups, downs = latent[order], value[order], ups[order], downs[order]
    new = np.concatenate([[True], (latent[1:] != latent[:-1]) | (value[1:] != value[:-1])])
    starts = np.flatnonzero(new)
    ups, downs, latent = np.add.reduceat(ups, starts), np.add.reduceat(downs, starts), latent[starts]
    before = np.cumsum(downs) - downs - total[1] * latent
    wins = np.bincount(latent, ups * (before + 0.5 * downs), minlength=n)
    return np.asarray(wins / (total[0] * total[1]))


@dataclass(frozen=True, eq=False)
class KSparse:
    """A logistic regression on few latents."""

    latents: tuple[int, ...]
    weight: Float[np.ndarray, " k"] = field(repr=False)
    bias: float

    def scores(self, codes: Codes) -> Float[np.ndarray, " row"]:
        """Return logits; UsageError for latents that the codes do not have."""
        if max(self.latents) >= codes.n_latents:
            raise UsageError(f"latent {max(self.latents)}: these codes have {codes.n_latents}")
        return columns(codes, self.latents) @ self.weight + self.bias


def fit_k_sparse(
    codes: Codes, labels: Bool[np.ndarray, " label"], k: int = 1, latents: Sequence[int] | None = None
) -> KSparse:
    """Fit on the ``k`` latents that screen best on these rows, or on the ``latents`` given."""
    from sklearn.linear_model import LogisticRegression

    check_labels(labels, len(codes))
    if latents is None:
        if not 1 <= k <= codes.n_latents:
            raise UsageError(f"k={k}: 1 to {codes.n_latents}, the number of latents")
        latents = strongest(screen(codes, labels), k)
    x = columns(codes, latents)
    scale = x.std(0)
    scale[scale == 0] = 1.0
    fit = LogisticRegression(C=1.0, max_iter=500).fit(x / scale, labels)
    return KSparse(tuple(int(i) for i in latents), fit.coef_[0] / scale, float(fit.intercept_[0]))


def strongest(areas: Float[np.ndarray, " latent"], k: int) -> list[int]:
    """Return the ``k`` latents farthest from 0.5, either way."""
    return np.argsort(-np.abs(areas - 0.5), kind="stable")[:k].tolist()


@dataclass(frozen=True)
class Nested:
    """One search for the best latent, judged in three ways."""

    honest: float
    """Mean AUROC over outer folds, of the latent chosen on the other folds."""
    naive: float
    """Best AUROC over latents, on all rows."""
    null: tuple[float, ...]
    """`naive` for shuffled labels."""
    chosen: tuple[int, ...]
    """By fold."""

    @property
    def null_95(self) -> float:
        """What 95% of searches in shuffled labels stay below."""
        return float(np.quantile(self.null, 0.95)) if self.null else float("nan")


def nested(
    codes: Codes,
    labels: Bool[np.ndarray, " label"],
    groups: Sequence[str],
    *,
    folds: int = 5,
    shuffles: int = 20,
    seed: int = 0,
) -> Nested:
    """Search for the best latent in the training folds, judge it in the fold left out, groups kept whole."""
    scores, chosen = [], []
    for held in grouped_folds(groups, folds, seed, labels):
        areas = screen(rows_of(codes, ~held), labels[~held])
        (best,) = strongest(areas, 1)
        side = 1.0 if areas[best] >= 0.5 else -1.0
        out = columns(rows_of(codes, held), [best])[:, 0] * side
        scores.append(_area(labels[held], out))
        chosen.append(best)
    rng = np.random.default_rng((seed, 1))
    null = tuple(naive_best(codes, rng.permutation(labels)) for _ in range(shuffles))
    return Nested(float(np.mean(scores)), naive_best(codes, labels), null, tuple(chosen))


def naive_best(codes: Codes, labels: Bool[np.ndarray, " label"]) -> float:
    """Return the best AUROC over latents, either way, on the rows that chose it."""
    return float(0.5 + np.abs(screen(codes, labels) - 0.5).max())


def grouped_folds(
    groups: Sequence[str], folds: int, seed: int, labels: Bool[np.ndarray, " label"] | None = None
) -> list[Bool[np.ndarray, " row"]]:
    """Return a mask of the rows held out in each fold; a group is in one fold. Folds of one class are refused."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise UsageError(f"folds={folds}: 2 to {len(names)}, the number of groups")
    place = np.random.default_rng((seed, 2)).permutation(len(names)) % folds
    masks = [place[member] == fold for fold in range(folds)]
    for mask in masks if labels is not None else ():
        assert labels is not None
        if len(set(labels[mask].tolist())) < 2 or len(set(labels[~mask].tolist())) < 2:
            raise UsageError(f"a fold of {int(mask.sum())} rows has one class only; use fewer folds or more groups")
    return masks


def rows_of(codes: Codes, mask: Bool[np.ndarray, " row"]) -> Codes:
    """Return the codes of some rows."""
    keep = torch.from_numpy(np.flatnonzero(mask))
    return Codes(codes.indices[keep], codes.values[keep], codes.n_latents)


def columns(codes: Codes, latents: Sequence[int]) -> Float[np.ndarray, "row k"]:
    """Return the values of some latents, one column each."""
    found = [torch.where(codes.indices == latent, codes.values, 0.0).sum(1) for latent in latents]
    return torch.stack(found, 1).double().cpu().numpy()


def codes_of(dense: Float[Tensor, "row latent"]) -> Codes:
    """Return a dense matrix as codes."""
    indices = torch.arange(dense.shape[1]).expand_as(dense)
    return Codes(indices, dense, dense.shape[1])


def check_labels(labels: np.ndarray, rows: int) -> None:
    """UsageError for labels that are not binary, not one for each row, or all alike."""
    if labels.dtype != np.bool_:
        raise UsageError(f"labels of type {labels.dtype}: true or false for each row")
    if len(labels) != rows:
        raise UsageError(f"{len(labels)} labels for {rows} rows: give one for each")
    if labels.all() or not labels.any():
        raise UsageError(f"{int(labels.sum())} of {rows} labels are true; both classes are needed")


def _area(labels: np.ndarray, scores: np.ndarray) -> float:
    from cutaway.probes.scoring import auroc

    return auroc(labels, scores).value
