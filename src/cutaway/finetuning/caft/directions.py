"""Directions of a concept, and which of the candidates carry it.

    labelled     mean activation of one class minus that of the other
    components   principal components of (tuned - base) activations, in one streaming pass
    latents      dictionary decoder columns, ranked by mean difference or by attribution of the answer's margin

Which candidates carry the unwanted concept is decided by a labelled probe set in which both rules are independent, not
by reading examples: the share of variance that the unwanted label explains, less what the wanted one does.

Source: card caft (2507.16795), Method A and C; ranking by a probe set is ours.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.finetuning.choice import Choice
from cutaway.model import Model, Positions, Project
from cutaway.model.sites import parse

WANTED, UNWANTED = 0, 1


@dataclass(frozen=True, eq=False)
class Concept:
    """A span to take out of the stream at one site."""

    site: str
    basis: Float[Tensor, "rank d_model"]
    """Orthonormal rows."""
    given: int
    """Directions it was made of; more than its rank where some depended on others."""

    @property
    def rank(self) -> int:
        """Effective rank."""
        return len(self.basis)

    @property
    def edit(self) -> Project:
        """The projection as an edit."""
        return Project(self.site, self.basis)

    def __repr__(self) -> str:
        return f"Concept({self.site}, rank {self.rank} of {self.given} directions)"


def concept(model: Model, site: str, directions: Float[Tensor, "k d_model"] | Float[Tensor, " d_model"]) -> Concept:
    """Return the orthonormal span of ``directions`` at ``site``.

    Raises UsageError, before anything is trained, for an unknown site, several sites, another width, a zero direction
    or one that is not finite.
    """
    sites = parse(site, model.layout)
    if len(sites) != 1 or sites[0].kind not in ("embed", "resid_pre", "resid_mid", "resid_post"):
        raise UsageError(f"site {site!r}: one place in the residual stream, such as 'resid_post.{model.n_layers // 2}'")
    rows = torch.atleast_2d(directions).detach().float().cpu()
    if rows.ndim != 2 or rows.shape[1] != model.d_model:
        raise UsageError(f"directions of shape {list(directions.shape)}: the site has {model.d_model} entries")
    if not bool(rows.isfinite().all()):
        raise UsageError("directions: all entries must be finite")
    if not bool(rows.ne(0).any(1).all()):
        raise UsageError(f"direction {int(rows.ne(0).any(1).logical_not().float().argmax())} is zero; leave it out")
    return Concept(str(sites[0]), Project(str(sites[0]), rows).basis().float(), len(rows))


def random_concept(like: Concept, seed: int) -> Concept:
    """Return a random span of the same site and rank: the control."""
    drawn = torch.randn(like.basis.shape, generator=torch.Generator().manual_seed(seed))
    return Concept(like.site, Project(like.site, drawn).basis().float(), like.rank)


def labels_of(choices: Sequence[Choice], rule: int) -> np.ndarray:
    """Return the labels of one rule; UsageError unless both classes occur."""
    found = np.array([each.labels[rule] for each in choices])
    if set(found.tolist()) != {0, 1}:
        raise UsageError(f"labels {sorted(set(found.tolist()))}: a probe set needs both classes, 0 and 1")
    return found


@torch.no_grad()
def last_states(
    model: Model, choices: Sequence[Choice], site: str, batch: int = 64
) -> Float[np.ndarray, "choice d_model"]:
    """Return the activations where the answer is predicted."""
    parts = [
        model.capture([each.ids for each in choices[start : start + batch]], site, "last")[site][:, 0]
        for start in range(0, len(choices), batch)
    ]
    return torch.cat(parts).float().cpu().numpy()


def labelled_direction(
    model: Model, choices: Sequence[Choice], site: str, rule: int = UNWANTED
) -> Float[Tensor, " d_model"]:
    """Return mean(class 1) - mean(class 0) of one rule's labels."""
    states, labels = last_states(model, choices, site), labels_of(choices, rule)
    return torch.from_numpy(states[labels == 1].mean(0) - states[labels == 0].mean(0))


@torch.no_grad()
def change_components(
    base: Model,
    tuned: Model,
    rows: Sequence[Sequence[int]],
    site: str,
    k: int = 20,
    *,
    positions: Positions = "last",
    batch: int = 32,
) -> Float[Tensor, "k d_model"]:
    """Return the first ``k`` principal components of (tuned - base) activations over ``rows`` of token ids.

    One pass; memory O(d (k + batch)), whatever the number of rows. UsageError for fewer tokens than components.
    """

    def changes() -> Iterator[Float[np.ndarray, "token d_model"]]:
        for start in range(0, len(rows), batch):
            part = base.batch([list(row) for row in rows[start : start + batch]])
            pair = [model.capture(part, site, positions) for model in (base, tuned)]
            yield (pair[1][site] - pair[0][site])[pair[0].mask].double().cpu().numpy()

    return torch.from_numpy(streamed_components(changes(), k)).float()


def streamed_components(parts: Iterable[Float[np.ndarray, "row d"]], k: int) -> Float[np.ndarray, "k d"]:
    """Return the first ``k`` principal components of rows that come in parts; none is kept.

    A sketch of 2 k rows stands for the parts so far: exact for data of that rank, close to it where variances fall off
    (Ross et al. 2008, with the sketch twice as wide). UsageError for fewer rows than components.
    """
    count, mean, sketch = 0, np.zeros(0), np.zeros((0, 0))
    for part in parts:
        if not count:
            mean, sketch = np.zeros(part.shape[1]), np.zeros((0, part.shape[1]))
        own, total = part.mean(0), count + len(part)
        between = np.sqrt(count * len(part) / total) * (mean - own)
        _, sizes, axes = np.linalg.svd(np.concatenate([sketch, part - own, between[None]]), full_matrices=False)
        sketch = (sizes[:, None] * axes)[: 2 * k]
        mean, count = (count * mean + len(part) * own) / total, total
    if count < k or len(sketch) < k:
        raise UsageError(f"{count} tokens for {k} components: give more rows, or ask for fewer")
    return sketch[:k] / np.linalg.norm(sketch[:k], axis=1, keepdims=True).clip(1e-12)


@torch.no_grad()
def change_latents(
    base: Model, tuned: Model, choices: Sequence[Choice], site: str, encode: Callable[[Tensor], Tensor]
) -> Float[Tensor, " latent"]:
    """Return, for each latent of a dictionary, its mean under ``tuned`` minus its mean under ``base``."""
    means = []
    for model in (tuned, base):
        states = torch.from_numpy(last_states(model, choices, site))
        means.append(encode(states).mean(0))
    return means[0] - means[1]


def attributed_latents(
    model: Model,
    choices: Sequence[Choice],
    site: str,
    encode: Callable[[Tensor], Tensor],
    decoder: Float[Tensor, "latent d_model"],
) -> Float[Tensor, " latent"]:
    """Return ``|mean of latent * (gradient of the answer's margin . decoder)|``: how much each latent decides."""
    total = torch.zeros(len(decoder))
    for each in choices:
        with torch.enable_grad():
            start = model.capture([list(each.ids)], site, "last")[site][:, 0].detach().requires_grad_(True)
            margin = _margin_from(model, each, site, start)
            (gradient,) = torch.autograd.grad(margin, start)
        total += (encode(start.detach()) * (gradient @ decoder.T))[0]
    return (total / len(choices)).abs()


def _margin_from(model: Model, each: Choice, site: str, state: Tensor) -> Tensor:
    from cutaway.model import Replace

    last = len(each.ids) - 1
    with model.edited(Replace(site, state, positions=last)):
        logits = model.hf(model.batch([each.ids]).ids, use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits[each.right] - logits[each.wrong]


def selectivity(
    states: Float[np.ndarray, "choice d_model"], candidates: Float[np.ndarray, "k d_model"], choices: Sequence[Choice]
) -> Float[np.ndarray, " k"]:
    """Return, for each candidate, how well it tells the unwanted label, less how well it tells the wanted one.

    Each is the share of the variance along the candidate that the label explains, so the difference lies between -1
    and 1.
    """
    along = states @ candidates.T
    told = [_explained(along, labels_of(choices, rule)) for rule in (UNWANTED, WANTED)]
    return told[0] - told[1]


@dataclass(frozen=True, eq=False)
class Selected:
    """A concept chosen among candidates, and what stands beside it as control."""

    concept: Concept
    places: tuple[int, ...]
    """Of the candidates chosen."""
    scores: Float[np.ndarray, " k"]
    """`selectivity` of every candidate."""
    controls: dict[str, Concept]
    """``random subset`` of the candidates, and ``all candidates`` with no choice made."""


def select(
    model: Model,
    candidates: Float[Tensor, "k d_model"],
    probe: Sequence[Choice],
    site: str,
    *,
    at_least: float = 0.3,
    most: int = 5,
    seed: int = 0,
) -> Selected:
    """Return the span of the candidates that tell the unwanted label; UsageError where none reaches ``at_least``.

    One candidate after the other, each judged on what the ones before it leave of the states.
    """
    states, rows = last_states(model, probe, site), candidates.detach().float().cpu().numpy()
    first = selectivity(states, rows, probe)
    places: list[int] = []
    scores = first
    while len(places) < most and scores.max() >= at_least:
        places.append(int(scores.argmax()))
        basis = concept(model, site, candidates[places]).basis.numpy()
        scores = selectivity(states - states @ basis.T @ basis, rows, probe)
        scores[places] = -1.0
    if not places:
        raise UsageError(
            f"no candidate at {site!r} tells the unwanted label: best {first.max():.2f}, {at_least:g} needed"
        )
    controls = {
        "random subset": concept(model, site, candidates[random_subset(len(candidates), seed)]),
        "all candidates": concept(model, site, candidates),
    }
    return Selected(concept(model, site, candidates[places]), tuple(places), first, controls)


def random_subset(n: int, seed: int) -> list[int]:
    """Return places kept with probability one half each, at least one: the control for a candidate list."""
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(n) < 0.5)
    return kept.tolist() if len(kept) else [int(rng.integers(n))]


def _explained(along: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the squared correlation of each column with the labels; 0 for one that does not vary."""
    centred, side = along - along.mean(0), labels - labels.mean()
    spread = np.sqrt((centred**2).sum(0) * (side**2).sum())
    # What is left of a direction that was taken out is rounding.
    varies = spread > 1e-4 * np.abs(along).max(initial=1.0)
    return np.where(varies, (side @ centred) / np.maximum(spread, 1e-12), 0.0) ** 2
