"""Texts for any number of units in one pass: those that fire each most, the rest, and tokens to mask and substitute."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.neuron2graph.steps import Propose, Snippet
from cutaway.features.unit import Unit, read_rows
from cutaway.features.windows import Row
from cutaway.model import Model


@dataclass(frozen=True)
class Read:
    """Units' values on rows of text."""

    rows: tuple[Row, ...]
    values: tuple[Float[Tensor, "_ unit"], ...]
    """Start tokens left out."""

    def snippets(self, unit: int, n: int) -> list[Snippet]:
        """Return the ``n`` rows with the largest values above 0, largest first, each with its peak."""
        peaks = [values[:, unit].max(0) for values in self.values]
        order = sorted(range(len(self.rows)), key=lambda i: -float(peaks[i].values))
        found = [Snippet(self.rows[i], int(peaks[i].indices), float(peaks[i].values)) for i in order[:n]]
        return [each for each in found if each.value > 0]

    def of(self, unit: int) -> list[tuple[Row, list[float]]]:
        """Return the rows with a unit's values."""
        return [(row, values[:, unit].tolist()) for row, values in zip(self.rows, self.values, strict=True)]

    def largest(self, unit: int) -> float:
        """Return the largest value of a unit."""
        return max(float(values[:, unit].max()) for values in self.values)


def read(
    units: Sequence[Unit],
    rows: Sequence[Row],
    *,
    start: Row = (),
    tokens: int = 2048,
    tick: Callable[[int], None] = lambda rows: None,
) -> Read:
    """Read all units on all rows, one forward pass for a batch."""
    found: dict[int, Tensor] = {}
    for i, values in read_rows(units, [(*start, *row) for row in rows], tokens=tokens):
        found[i] = values[len(start) :].cpu()
        tick(len(found))
    return Read(tuple(tuple(row) for row in rows), tuple(found[i] for i in range(len(rows))))


def halves(snippets: Sequence[Snippet], seed: int = 0) -> tuple[list[Snippet], list[Snippet]]:
    """Split snippets into those to build on and those to test on, at random."""
    order = np.random.default_rng(seed).permutation(len(snippets))
    half = (len(snippets) + 1) // 2
    return [snippets[i] for i in order[:half]], [snippets[i] for i in order[half:]]


def mask_tokens(model: Model, how: str, rows: Iterable[Row] = (), *, n: int = 3, seed: int = 0) -> tuple[int, ...]:
    """Return the tokens to mask with: "mask", "pad", "random" (``n`` ordinary words seen in ``rows``) or "id:<number>".

    There is no default: token 1, which the papers use, is something else in each tokenizer.
    """
    if how in ("mask", "pad"):
        token = getattr(model.tokenizer, f"{how}_token_id", None)
        if token is None:
            raise UsageError(f"fillers={how!r}: the tokenizer of {model.name} has no such token; try random or id:<n>")
        return (int(token),)
    if how.startswith("id:"):
        if not how[3:].isdecimal() or int(how[3:]) >= model.vocab_size:
            raise UsageError(f"fillers={how!r}: a token from 0 to {model.vocab_size - 1}")
        return (int(how[3:]),)
    if how != "random":
        raise UsageError(f"fillers={how!r}: mask, pad, random or id:<number>")
    seen = sorted({token for row in islice(rows, 500) for token in row})
    words = [token for token in seen if model.decode([token])[:1] == " " and model.decode([token]).strip().islower()]
    words = [token for token in words if model.decode([token]).strip().isalpha()]
    if len(words) < n:
        raise UsageError(f"fillers='random': the text has {len(words)} whole words, {n} are needed")
    return tuple(int(token) for token in np.random.default_rng(seed).choice(words, n, replace=False))


def next_tokens(model: Model, *, top: int = 40, least: float = 1e-5) -> Propose:
    """Return a proposer of what the model itself would write at a position, given what stands before it."""
    known: dict[tuple[int, ...], list[int]] = {}

    @torch.no_grad()
    def propose(ids: Sequence[int], position: int) -> Sequence[int]:
        before = tuple(ids[:position])
        if not before:
            return ()
        if before not in known:
            odds = model.logits(model.batch([before]))[0, -1].float().softmax(-1)
            best = odds.topk(min(top, len(odds)))
            found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            known[before] = [token for value, token in found if value >= least]
        return known[before]

    return propose


def nearest_tokens(model: Model, *, top: int = 40) -> Propose:
    """Return a proposer of the tokens whose embeddings point most nearly the same way."""
    embedding = torch.nn.functional.normalize(model.hf.get_input_embeddings().weight.detach().float(), dim=-1)
    known: dict[int, list[int]] = {}

    def propose(ids: Sequence[int], position: int) -> Sequence[int]:
        token = ids[position]
        if token not in known:
            best = (embedding @ embedding[token]).topk(min(top + 1, len(embedding))).indices.tolist()
            known[token] = [each for each in best if each != token]
        return known[token]

    return propose


def listed(tokens: Sequence[int]) -> Propose:
    """Return a proposer of a list of your own, in its order."""
    return lambda ids, position: tokens
