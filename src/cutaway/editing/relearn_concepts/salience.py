"""Which neurons carry a concept, from running sums: one pass over the data, nothing kept but labels x layers x d.

With q(z) the mean activation of a neuron over tokens of label z:

    probeless   r(z) = sum over other labels z' of |q(z) - q(z')|                       (ranks neurons)
    saliency    s(z) = |correlation of activation and "has label z"| = |q(z) - q(rest)| sqrt(p (1 - p)) / sd, p the
                share of z; 0 where nothing varies, 1 where the neuron tells the concept alone (is tracked over time)
    similarity  cosine of two means of input embeddings, corpus mean taken off: the k tokens at which |activation| is
                largest, and the concept's tokens; k is by default the number of the latter
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError, nearest
from cutaway.model import Model
from cutaway.training import Data, collate
from cutaway.training.data import UNLABELLED


@dataclass(frozen=True, eq=False)
class Tally:
    """Running sums of activations by label."""

    labels: tuple[str, ...]
    counts: Float[Tensor, " label"]
    sums: Float[Tensor, "layer label d"]
    squares: Float[Tensor, "layer label d"]
    types: Int[Tensor, " type"]
    """Token ids that were seen with a label."""
    concepts: Int[Tensor, "type label"]
    """How often each was seen with each label."""
    peaks: Float[Tensor, "layer type d"] | None
    """Largest |activation| at each token type; None unless asked for."""

    def place(self, concept: str) -> int:
        """Return the concept's column; UsageError for an unknown label or one without tokens."""
        if concept not in self.labels:
            raise UsageError(f"label {concept!r}{nearest(concept, self.labels)}")
        place = self.labels.index(concept)
        if self.counts[place] == 0:
            raise UsageError(f"label {concept!r} has no token in this data")
        return place

    def probeless(self, concept: str) -> Float[Tensor, "layer d"]:
        """Return r(concept); labels without tokens are left out. UsageError where it is the only label."""
        place = self.place(concept)
        seen = self.counts > 0
        if int(seen.sum()) < 2:
            raise UsageError(f"{concept!r} is the only label in this data; another is needed to tell it from")
        means = self.sums[:, seen] / self.counts[seen][:, None]
        own = self.sums[:, place] / self.counts[place]
        return (own[:, None] - means).abs().sum(1)

    def saliency(self, concept: str) -> Float[Tensor, "layer d"]:
        """Return s(concept), from 0 to 1. UsageError where it is the only label."""
        place = self.place(concept)
        n, own_n = self.counts.sum(), self.counts[place]
        if n == own_n:
            raise UsageError(f"{concept!r} is the only label in this data; another is needed to tell it from")
        own = self.sums[:, place] / own_n
        rest = (self.sums.sum(1) - self.sums[:, place]) / (n - own_n)
        spread, share = self.spread(), own_n / n
        found = (own - rest).abs() * (share * (1 - share)).sqrt() / spread.where(spread > 0, 1.0)
        return torch.where(spread > 0, found, 0.0).clamp(max=1.0)

    def spread(self) -> Float[Tensor, "layer d"]:
        """Return each neuron's standard deviation; exactly 0 where it never moves."""
        n = self.counts.sum()
        square = self.squares.sum(1) / n
        variance = square - (self.sums.sum(1) / n).square()
        # The difference is rounding where a neuron never moves.
        return torch.where(variance > 1e-9 * square, variance, 0.0).sqrt()

    def similarity(
        self, concept: str, embeddings: Float[Tensor, "vocab d_model"], k: int | None = None
    ) -> Float[Tensor, "layer d"]:
        """Return how near the meaning of each neuron's highest-activating tokens is to the concept's tokens.

        A neuron that is 0 at every token has no meaning: its similarity is 0.
        """
        place = self.place(concept)
        if self.peaks is None:
            raise UsageError("similarity needs tally(..., peaks=True)")
        own = self.concepts[:, place] > 0
        k = int(own.sum()) if k is None else k
        if not 1 <= k <= len(self.types):
            raise UsageError(f"k={k}: 1 to {len(self.types)}, the token types seen")
        vectors = embeddings.detach()[self.types].float()
        vectors = vectors - vectors.mean(0)
        wanted = vectors[own].mean(0)
        best = self.peaks.topk(k, dim=1).indices
        found = vectors[best].mean(1)
        cosine = torch.cosine_similarity(found, wanted.expand_as(found), dim=-1)
        return cosine * (self.peaks.amax(1) > 0)


@torch.no_grad()
def tally(
    model: Model, data: Data, labels: Sequence[str], *, kind: str = "neurons", batch: int = 32, peaks: bool = False
) -> Tally:
    """Return running sums over all layers' ``kind`` sites, one forward a batch; unlabelled tokens are ignored.

    UsageError for data without labels, labels beyond those named, or a site kind the model does not have.
    """
    types = _types(data, labels)
    shape = (model.n_layers, len(labels))
    width = 0
    totals: list[Tensor] = []
    counts, seen = torch.zeros(len(labels), dtype=torch.float64), torch.zeros(len(types), len(labels), dtype=torch.long)
    for ids, marks, values in _labelled(model, data, kind, batch):
        if not totals:
            width = values.shape[-1]
            totals = [torch.zeros(*shape, width, dtype=torch.float64, device=values.device) for _ in range(2)]
            highest = torch.zeros(shape[0], len(types) if peaks else 0, width, device=values.device)
        exact = values.double()
        totals[0].index_add_(1, marks, exact)
        totals[1].index_add_(1, marks, exact.square())
        counts += torch.bincount(marks.cpu(), minlength=len(labels))
        at = torch.searchsorted(types, ids.cpu())
        seen.index_put_((at, marks.cpu()), torch.ones((), dtype=torch.long), accumulate=True)
        if peaks:
            where = at.to(values.device)[None, :, None].expand_as(values)
            highest.scatter_reduce_(1, where, values.abs(), "amax")
    sums, squares = (total.cpu() for total in totals)
    return Tally(tuple(labels), counts, sums, squares, types, seen, highest.cpu() if peaks else None)


def _labelled(model: Model, data: Data, kind: str, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ids and labels [token] with values [layer token d], by length."""
    order = sorted(range(len(data)), key=lambda i: -len(data.examples[i][0].ids))
    for start in range(0, len(order), batch):
        rows = collate(data, order[start : start + batch], model)
        assert rows.labels is not None
        found = model.capture(rows.tokens, f"{kind}.*", special=True)
        marked = rows.labels != UNLABELLED
        values = torch.stack([found[f"{kind}.{layer}"][marked].flatten(1).float() for layer in range(model.n_layers)])
        yield rows.tokens.ids[marked], rows.labels[marked], values


def _types(data: Data, labels: Sequence[str]) -> Int[Tensor, " type"]:
    found: set[int] = set()
    for row, *_ in data.examples:
        if row.labels is None:
            raise UsageError("these rows have no labels; make them with tagged")
        if max(row.labels) >= len(labels):
            raise UsageError(f"label number {max(row.labels)}: {len(labels)} labels are named")
        found |= {token for token, mark in zip(row.ids, row.labels, strict=True) if mark != UNLABELLED}
    return torch.tensor(sorted(found))
