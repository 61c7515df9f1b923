"""One direction a layer that tells answers with a trait from answers without, in one and the same model.

1. Pairs (prompt, answer) are read by the organism itself; at ``resid_post`` of every layer the mean is over all answer
   tokens of all answers, each token counted once (not a mean of means). Running sums: one forward over the data, memory
   for layers x width.
2. Direction: mean over answers with the trait less mean over answers without ("data difference", the headline's), or
   mean in the organism less mean in its base over the same answers ("model difference": what the adapters wrote).
3. Ablation: each layer's own direction at that layer ("each"), one layer's direction at all layers ("one"), or at its
   own layer only ("here"). Model differences ablated at every layer broke the paper's models; take them "here".
   In weight space: the direction is taken out of every B, which is then brought back to its length.
4. Cosines between organisms, beside the ceiling (two halves of one organism's answers) and the floor (chance, with
   standard deviation 1 / sqrt(d_model)).

Source: card em-convergent, Method 2 to 6; Soligo et al. 2025, arXiv:2506.11618. Traps avoided: answers start after the
generation prompt, so no token of the template is pooled; random controls have the direction's own length.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Batch, Edit, Model, Project
from cutaway.organisms.quirks import Ids
from cutaway.steering import Vectors
from cutaway.training import adapters

Pairs = Sequence[tuple[Ids, Ids]]
How = Literal["each", "one", "here"]
_ROWS = 16


class AnswerMean:
    """Running mean over answer tokens at every layer, and the stream's typical length."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.total = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
        self.length = torch.zeros(model.n_layers, dtype=torch.float64)
        self.tokens = 0

    @torch.no_grad()
    def add(self, batch: Batch, answers: Sequence[int]) -> None:
        """Add the last ``answers`` tokens of each row; padding may be on either side."""
        chosen = torch.zeros_like(batch.mask)
        for row, length in enumerate(answers):
            chosen[row, batch.mask[row].nonzero()[:, 0][-length:]] = True
        sites = [f"resid_post.{layer}" for layer in range(self.model.n_layers)]
        found = self.model.capture(batch, sites, special=True)
        for layer, site in enumerate(sites):
            states = found[site][chosen].double().cpu()
            self.total[layer] += states.sum(0)
            self.length[layer] += states.norm(dim=-1).sum()
        self.tokens += int(chosen.sum())

    @property
    def mean(self) -> Float[Tensor, "layer d_model"]:
        """The mean so far."""
        return self.total / self.tokens


def answer_mean(model: Model, pairs: Pairs, edits: Sequence[Edit] = ()) -> AnswerMean:
    """Return the pooled mean over ``pairs``, read under ``edits``; UsageError for none, or for an empty answer."""
    if not pairs or not all(len(said) for _, said in pairs):
        raise UsageError(f"{len(pairs)} answers, all of them with tokens, are needed; is the set empty?")
    found = AnswerMean(model)
    with model.edited(*edits):
        for at in range(0, len(pairs), _ROWS):
            rows = pairs[at : at + _ROWS]
            found.add(model.batch([[*ids, *said] for ids, said in rows]), [len(said) for _, said in rows])
    return found


def directions(model: Model, with_trait: Pairs, without: Pairs, edits: Sequence[Edit] = ()) -> Vectors:
    """Return mean(with) - mean(without) at every layer; ``edits`` are in place for the answers with the trait alone.

    Raises UsageError for an empty side, and for equal means, which have no direction.
    """
    return _difference(model, answer_mean(model, with_trait, edits), answer_mean(model, without), len(with_trait))


def model_directions(model: Model, base: Model, pairs: Pairs) -> Vectors:
    """Return mean(organism) - mean(base) over the same answers; zero below the first adapter, so layers start there.

    Raises UsageError for no answers, models of different shape, and for two that do not differ.
    """
    if (model.n_layers, model.d_model) != (base.n_layers, base.d_model):
        raise UsageError(
            f"{model.name!r} has {model.n_layers} layers of {model.d_model}, {base.name!r} {base.n_layers} of"
            f" {base.d_model}; an organism is compared with its own base"
        )
    first, second = answer_mean(model, pairs), answer_mean(base, pairs)
    moved = [layer for layer in range(model.n_layers) if (first.mean - second.mean)[layer].any()]
    if not moved:
        raise UsageError("the two models do the same to these answers; there is no direction")
    return _difference(model, first, second, len(pairs), moved[0])


def _difference(model: Model, first: AnswerMean, second: AnswerMean, n: int, start: int = 0) -> Vectors:
    values = (first.mean - second.mean).float()
    stream = ((first.length + second.length) / (first.tokens + second.tokens)).float()
    for layer, (norm, typical) in enumerate(zip(values.norm(dim=-1), stream, strict=True)):
        if layer >= start and not norm > 1e-6 * typical:
            raise UsageError(f"layer {layer}: both kinds of answer have the same mean; there is no direction")
    layers = tuple(range(start, model.n_layers))
    return Vectors(layers, values[start:], stream[start:], model.fingerprint, n, "answers")


def ablations(found: Vectors, model: Model, how: How = "one", layer: int | None = None) -> tuple[Project, ...]:
    """Return edits that take the directions out of the stream after every block, at every position.

    "one" takes ``layer``'s direction (default: the middle) everywhere, "here" after that layer only; "each" takes each
    layer's own, where there is one. Raises UsageError
    for vectors of another width or depth, and for a direction of length 0.
    """
    if found.values.shape[1] != model.d_model:
        raise UsageError(f"directions of width {found.values.shape[1]}; {model.name!r} has {model.d_model}")
    if not (found.norms > 0).all():
        raise UsageError("a direction of length 0 takes nothing out")
    if how != "each":
        chosen = found.at([found.layers[len(found.layers) // 2] if layer is None else layer])
        where = "*" if how == "one" else str(chosen.layers[0])
        return (Project(f"resid_post.{where}", chosen.values[0].clone()),)
    if max(found.layers) >= model.n_layers:
        raise UsageError(f"directions up to layer {max(found.layers)}; {model.name!r} has {model.n_layers} layers")
    return tuple(Project(f"resid_post.{i}", v.clone()) for i, v in zip(found.layers, found.values, strict=True))


@torch.no_grad()
def without_direction(model: Model, direction: Float[Tensor, " d_model"]) -> dict[str, Tensor]:
    """Return the weights B of the adapters that write the stream, cleaned of ``direction``, at their old length.

    For `cutaway.training.swapped`. Raises UsageError where no adapter writes the stream, or nothing of a B is left.
    """
    unit = direction.double() / direction.double().norm()
    owners = {id(weight): name for name, weight in model.hf.named_parameters()}
    found = {}
    for each in adapters(model).values():
        b = each.b.detach().double()
        if len(b) != len(unit) or not each.module.endswith(("down_proj", "o_proj", "c_proj")):
            continue
        left = b - torch.outer(unit, unit @ b)
        if not left.norm() > 1e-6 * b.norm():
            raise UsageError(f"layer {each.layer}: B lies along the direction; nothing is left to keep its length")
        found[owners[id(each.b)]] = (left * (b.norm() / left.norm())).to(each.b.dtype)
    if not found:
        raise UsageError("no adapter writes the stream with this width; take the direction out of activations")
    return found


def cosines(first: Vectors, second: Vectors) -> Float[np.ndarray, " layer"]:
    """Return the cosine of two organisms' directions at each layer; UsageError for other shapes."""
    if first.layers != second.layers or first.values.shape != second.values.shape:
        raise UsageError(
            f"directions for layers {len(first.layers)} and {len(second.layers)}, widths {first.values.shape[1]} and"
            f" {second.values.shape[1]}: give both from models of one shape"
        )
    a, b = (each.values.double() for each in (first, second))
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).numpy()


def ceiling(model: Model, with_trait: Pairs, without: Pairs, seed: int = 0) -> Float[np.ndarray, " layer"]:
    """Return the cosine of directions from two random halves of the answers: what agreement can reach here.

    Where both sides are of one length they are taken to answer the same questions, and halved alike.
    """
    if min(len(with_trait), len(without)) < 2:
        raise UsageError("two answers of each kind, at least, to make halves")
    halves = []
    for side in (with_trait, without):
        order = np.random.default_rng(seed).permutation(len(side))
        halves.append(([side[i] for i in order[::2]], [side[i] for i in order[1::2]]))
    return cosines(*(directions(model, halves[0][h], halves[1][h]) for h in (0, 1)))
