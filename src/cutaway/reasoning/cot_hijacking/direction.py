"""The refusal direction: difference of means at the prompt's last tokens, chosen on one half, tested on the other.

1. v = mean resid_post(refused requests) - mean resid_post(harmless twins), unit norm, for every layer and each of
   the last ``positions`` tokens; means on a training part.
2. The candidates that best separate a validation part (AUC) are tried: v is projected out everywhere, and added
   where it was found. The one whose removal lowers the refusal log-odds most, and whose addition raises them, wins.
3. `check_direction` measures removal and addition on prompts not seen so far, beside random directions.
4. `components` reads r_l = <resid_post.l(last token), v> at all layers, `standardise` puts it in units of the harmless
   prompts' standard deviation, `auc` says how well it tells refused from answered.

After Arditi et al. 2024 (arXiv:2406.11717), as used by Zhao et al. 2025 (arXiv:2510.26418). A direction chosen by its
effect on few prompts overfits them; hence three disjoint parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Add, Edit, Model, Project
from cutaway.reasoning.cot_hijacking.reading import Readout, probability, refusal_odds
from cutaway.reasoning.starts import batches
from cutaway.stats import Interval, bootstrap, mean_interval

Rows = Sequence[Sequence[int]]
_SILENT = 1e-6
"""A site whose relative component along a direction is below this has nothing to take away."""


@dataclass(frozen=True, eq=False)
class RefusalDirection:
    """A unit direction, where it was found, and how it did on the validation part."""

    layer: int
    position: int
    """Counted from the prompt's end: -1 is the last token."""
    vector: Float[np.ndarray, " d_model"]
    gap: float
    """Distance of the two means along the direction, at its layer."""
    auc: float
    removal: float
    """Change of the validation prompts' mean refusal log-odds when the direction is projected out."""
    addition: float
    """The same for harmless prompts when ``gap`` times the direction is added."""

    def __repr__(self) -> str:
        return (
            f"RefusalDirection(layer {self.layer}, position {self.position}, validation AUC {self.auc:.2f}, "
            f"removal {self.removal:+.2f}, addition {self.addition:+.2f})"
        )

    def to_dict(self) -> dict[str, Any]:
        fields = ("layer", "position", "gap", "auc", "removal", "addition")
        return {**{name: getattr(self, name) for name in fields}, "vector": self.vector.tolist()}

    def tensor(self, model: Model) -> Float[Tensor, " d_model"]:
        return torch.tensor(self.vector, dtype=torch.float32, device=model.device)


@dataclass(frozen=True)
class DirectionTest:
    """Effects on the probability of refusing, on prompts that the direction was not chosen on."""

    base: Interval
    removed: Interval
    """Paired change when the direction is projected out of every write."""
    added: Interval
    """Paired change of harmless prompts when the direction is added."""
    random_removed: Interval
    random_added: Interval
    """The same for random directions of equal norm: mean over directions and prompts, by direction."""

    def __repr__(self) -> str:
        return f"DirectionTest(removed {self.removed}, random {self.random_removed}; added {self.added})"


def fit_direction(
    model: Model,
    harmful: Rows,
    harmless: Rows,
    readout: Readout,
    *,
    validation: tuple[Rows, Rows],
    positions: int = 1,
    tries: int = 4,
) -> RefusalDirection:
    """Find the direction on ``harmful`` and ``harmless`` prompts and choose it on the ``validation`` pair.

    ``positions``: how many of the last tokens may carry it; those behind the request (`tail_tokens`).

    Raises UsageError where a part is empty or no prompt pair differs.
    """
    if not (harmful and harmless and validation[0] and validation[1]):
        raise UsageError("a direction needs harmful and harmless prompts for training and for validation")
    at = tuple(range(-positions, 0))
    means = [_last(model, rows, at).mean(0) for rows in (harmful, harmless)]
    raw = means[0] - means[1]
    gaps = raw.norm(dim=-1)
    vectors = raw / gaps.clamp(min=1e-30)[..., None]
    # Where the means agree up to rounding (before the request, say) there is no direction, whatever its AUC.
    empty = (gaps < _SILENT * means[0].norm(dim=-1)).cpu().numpy()
    if empty.all():
        raise UsageError("harmful and harmless prompts have the same activations; they must differ")
    aucs = np.where(empty, -1.0, _separation(model, validation, vectors, at))
    order = np.argsort(-aucs, axis=None, kind="stable")[: min(tries, int((~empty).sum()))]
    base = [refusal_odds(model, rows, readout).mean() for rows in validation]
    found = []
    for layer, place in zip(*np.unravel_index(order, aucs.shape), strict=True):
        vector, gap = vectors[layer, place], float(gaps[layer, place])
        removed = refusal_odds(model, validation[0], readout, ablation(model, vector, validation[0])).mean() - base[0]
        added = refusal_odds(model, validation[1], readout, [Add(f"resid_post.{layer}", gap * vector)]).mean()
        found.append(
            RefusalDirection(
                int(layer),
                at[int(place)],
                vector.double().cpu().numpy(),
                gap,
                float(aucs[layer, place]),
                float(removed),
                float(added - base[1]),
            )
        )
    return min(found, key=lambda each: (each.addition <= 0, each.removal))


def tail_tokens(model: Model) -> int:
    """How many tokens the chat template puts behind every request (at least 1)."""
    one, other = model.chat_ids("One"), model.chat_ids("Another two")
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    return max(1, same)


def ablation(model: Model, vector: Float[Tensor, " d_model"], rows: Rows) -> list[Edit]:
    """Edits that keep ``vector`` out of the residual stream: out of the embedding and of everything written to it.

    Kinds of writes that never hold it (on the first of ``rows``) are left out.
    """
    sites = ("resid_pre.0", "attn_out.*", "mlp_out.*")
    with torch.no_grad():
        found = model.capture(model.batch([list(rows[0])]), sites, special=True)
    unit = vector / vector.norm()
    holds = {
        name.split(".")[0]
        for name, value in found.items()
        if float((value @ unit).abs().max()) > _SILENT * float(value.norm(dim=-1).max())
    }
    return [Project(site, unit) for site in sites if site.split(".")[0] in holds]


def check_direction(
    model: Model,
    direction: RefusalDirection,
    harmful: Rows,
    harmless: Rows,
    readout: Readout,
    *,
    randoms: int = 5,
    seed: int = 0,
) -> DirectionTest:
    """Remove and add the direction, and ``randoms`` random ones of equal norm, on prompts of their own.

    The random ones are orthogonal to the mean activation, as a difference of means is about: many models keep a
    constant there, and taking that away breaks everything at once.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = [direction.tensor(model)]
    mean = _last(model, harmless, (direction.position,)).mean(0)[direction.layer, 0]
    for _ in range(randoms):
        drawn = torch.randn(model.d_model, generator=generator).to(vectors[0])
        drawn = drawn - (drawn @ mean) / (mean @ mean) * mean
        vectors.append(drawn / drawn.norm())
    base = probability(refusal_odds(model, harmful, readout))
    quiet = probability(refusal_odds(model, harmless, readout))
    removed, added = [], []
    for vector in vectors:
        edits = ablation(model, vector, harmful)
        removed.append((probability(refusal_odds(model, harmful, readout, edits)) - base) if edits else 0 * base)
        push = [Add(f"resid_post.{direction.layer}", direction.gap * vector)]
        added.append(probability(refusal_odds(model, harmless, readout, push)) - quiet)
    return DirectionTest(
        mean_interval(base),
        mean_interval(removed[0]),
        mean_interval(added[0]),
        mean_interval([each.mean() for each in removed[1:]]),
        mean_interval([each.mean() for each in added[1:]]),
    )


def components(model: Model, rows: Rows, vector: Float[Tensor, " d_model"]) -> Float[np.ndarray, "row layer"]:
    """r_l of every prompt: its last token's ``resid_post`` along ``vector``, at all layers."""
    return (_last(model, rows, (-1,))[:, :, 0] @ vector).double().cpu().numpy()


def standardise(
    r: Float[np.ndarray, "row layer"], harmless: Float[np.ndarray, "reference layer"]
) -> Float[np.ndarray, "row layer"]:
    """``r`` in standard deviations of the harmless prompts, from their mean; nan where those do not vary."""
    if len(harmless) < 2:
        raise UsageError(f"{len(harmless)} harmless prompts: at least 2 are needed for a standard deviation")
    spread = harmless.std(0, ddof=1)
    return (r - harmless.mean(0)) / np.where(spread > 0, spread, np.nan)


def auc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Probability that a positive scores above a negative, ties half; nan where one class is missing."""
    if positive.all() or not positive.any():
        return Interval(np.nan, 0.0, 1.0, len(scores), 0.95)
    pairs = np.column_stack([scores, positive])

    def statistic(rows: np.ndarray) -> float:
        wins = rows[:, 1] > 0
        return 0.5 if wins.all() or not wins.any() else _auc(rows[:, 0], wins)

    found = bootstrap(pairs, statistic, method="percentile", n=500, seed=seed)
    if np.isnan(found.low):
        return Interval(found.value, found.value, found.value, len(scores), found.level)
    return Interval(found.value, found.low, found.high, len(scores), found.level)


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    n = int(positive.sum())
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _last(model: Model, rows: Rows, at: tuple[int, ...]) -> Float[Tensor, "row layer pos d_model"]:
    """``resid_post`` of every prompt at the tokens ``at``, counted from its end."""
    out = torch.zeros(len(rows), model.n_layers, len(at), model.d_model, device=model.device)
    for members, batch in batches(model, rows, keep=-min(at)):
        with torch.no_grad():
            found = model.capture(batch, "resid_post.*", at, special=True)
        out[members] = torch.stack([found[f"resid_post.{layer}"] for layer in range(model.n_layers)], 1).float()
    return out


def _separation(
    model: Model, validation: tuple[Rows, Rows], vectors: Float[Tensor, "layer pos d_model"], at: tuple[int, ...]
) -> Float[np.ndarray, "layer pos"]:
    scores = [(_last(model, rows, at) * vectors).sum(-1).cpu().numpy() for rows in validation]
    positive = np.repeat([True, False], [len(scores[0]), len(scores[1])])
    both = np.concatenate(scores)
    return np.array([[_auc(both[:, i, j], positive) for j in range(both.shape[2])] for i in range(both.shape[1])])
