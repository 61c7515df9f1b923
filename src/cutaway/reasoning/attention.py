"""How much attention spans of a text get, in one forward and without any matrix of tokens by tokens for all heads.

- `span_attention`: span by span, the mean attention weight of every head (sentence matrices of thought anchors).
- `last_row_attention`: the attention mass that one query position gives each span (attention ratios).
- `find_span`: where a piece of text lies in token ids; `uniform_share`: what a head without preferences would give.

Weights come from captured queries and keys after the rotary step, layer by layer while the forward runs, so they
hold for grouped heads, sliding windows, soft-capped scores and per-head norms; see `cutaway.model.pattern`. Memory
grows with the text's length, not with its square (a family that itself passes a mask of tokens by tokens, as with
sliding windows, still makes that one).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Batch, Model
from cutaway.model.capture import stream_attention
from cutaway.model.pattern import Meeting
from cutaway.sampling.sentences import token_ends

Span = tuple[int, int]
BLOCK = 128


@torch.no_grad()
def span_attention(
    model: Model, ids: Sequence[int], spans: Sequence[Span], *, layers: Sequence[int] | None = None, block: int = BLOCK
) -> Float[Tensor, "layer head span_q span_k"]:
    """Mean attention weight from each span's tokens to each span's tokens; 0 where the key span lies later.

    ``spans`` are token spans [start, end) in ``ids``, prompt included; ``layers`` None means all. ``block`` query
    positions are worked on at a time. UsageError for a span that is empty or outside the text.
    """
    _check(spans, len(ids))
    chosen = _layers(model, layers)
    starts, ends = (torch.tensor(side) for side in zip(*spans, strict=True))
    inside = _indicator(spans, len(ids), model) / (ends - starts).to(model.device)
    found: dict[int, Tensor] = {}
    first, last = int(starts.min()), int(ends.max())

    def visit(layer: int, heads: Meeting) -> None:
        total = torch.zeros(model.n_heads, len(spans), len(spans), device=model.device)
        for a in range(first, last, block):
            b = min(a + block, last)
            here = ((starts < b) & (ends > a)).nonzero()[:, 0].to(model.device)
            if len(here):
                weights = heads.weights(slice(a, b))[0].float()
                by_query = inside[a:b, here].T @ weights
                total[:, here] += by_query @ inside[:b]
        found[layer] = total.cpu()

    stream_attention(model.layout, model.batch([list(ids)]), chosen, visit)
    return torch.stack([found[layer] for layer in chosen])


@torch.no_grad()
def last_row_attention(
    model: Model,
    rows: Batch | Sequence[int],
    spans: Sequence[Span] | Sequence[Sequence[Span]],
    query_position: int = -1,
    *,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "*batch layer head span"]:
    """Sum of the attention weights that the query at ``query_position`` gives to each span.

    For token ids and their spans the result is [layer head span]; for a `Batch` (padded on either side) and one list
    of spans a row it is [batch layer head span]. Positions and spans count in each row without its padding; a span
    after the query gets 0. Divide by `uniform_share` to compare texts of different lengths.
    """
    batch = rows if isinstance(rows, Batch) else model.batch([list(rows)])
    by_row: list[Sequence[Span]] = list(spans) if isinstance(rows, Batch) else [spans]  # type: ignore[arg-type,list-item]
    if len(by_row) != len(batch) or len({len(each) for each in by_row}) != 1:
        raise UsageError(f"{len(by_row)} lists of spans for {len(batch)} rows; give every row the same number of spans")
    lengths = batch.mask.sum(-1).tolist()
    pads = batch.mask.int().argmax(-1).tolist()
    inside = []
    for row, length, pad in zip(by_row, lengths, pads, strict=True):
        _check(row, length)
        inside.append(_indicator([(pad + a, pad + b) for a, b in row], batch.ids.shape[1], model))
    member = torch.stack(inside)[:, None]
    chosen = _layers(model, layers)
    found: dict[int, Tensor] = {}

    def visit(layer: int, heads: Meeting) -> None:
        found[layer] = (heads.weights().float() @ member)[:, :, 0].cpu()

    stream_attention(model.layout, batch, chosen, visit, query_position)
    result = torch.stack([found[layer] for layer in chosen], 1)
    return result if isinstance(rows, Batch) else result[0]


def uniform_share(spans: Sequence[Span], n: int, query: int = -1) -> Float[Tensor, " span"]:
    """Attention mass that a head without preferences gives each span from position ``query`` of ``n`` tokens.

    >>> uniform_share([(0, 2), (2, 6)], 8)
    tensor([0.2500, 0.5000])
    """
    _check(spans, n)
    if not -n <= query < n:
        raise UsageError(f"query={query}: outside a text of {n} tokens")
    seen = query % n + 1
    return torch.tensor([max(min(b, seen) - a, 0) / seen for a, b in spans])


def find_span(model: Model, ids: Sequence[int], what: str | tuple[int, int], occurrence: int = 0) -> Span:
    """Token span [start, end) of a text, or of a character range, inside ``ids`` as the model's tokenizer reads them.

    The span holds every token that carries a part of the text, also one that reaches beyond it. ``occurrence``
    counts repeated texts from 0, negative ones from the last. UsageError for a text that is empty or not there.
    """
    text = model.decode(ids)
    first, last = _characters(text, what, occurrence)
    ends = token_ends(ids, model.decode)
    # Tokens that share a character end together; each one begins where the last completed character ended.
    edges = sorted({0, *ends})
    before = {b: a for a, b in pairwise(edges)}
    at = [i for i, end in enumerate(ends) if end > first and before.get(end, 0) < last]
    if not at:
        raise UsageError(f"characters {first}..{last} belong to no token; choose another range")
    return at[0], at[-1] + 1


def _characters(text: str, what: str | tuple[int, int], occurrence: int) -> tuple[int, int]:
    if not isinstance(what, str):
        first, last = what
        if not 0 <= first < last <= len(text):
            raise UsageError(f"characters {first}..{last}: must be a range inside a text of {len(text)} characters")
        return first, last
    if not what:
        raise UsageError("the text to find is empty; name at least one character")
    found, at = [], text.find(what)
    while at >= 0:
        found.append(at)
        at = text.find(what, at + 1)
    if not -len(found) <= occurrence < len(found):
        raise UsageError(f"{what[:40]!r} occurs {len(found)} times in the text; there is no occurrence={occurrence}")
    return found[occurrence], found[occurrence] + len(what)


def _check(spans: Sequence[Span], n: int) -> None:
    if not spans:
        raise UsageError("spans=(): name at least one")
    bad = next((span for span in spans if not 0 <= span[0] < span[1] <= n), None)
    if bad is not None:
        raise UsageError(f"span {tuple(bad)}: must be [start, end) with a token in it, inside a text of {n} tokens")


def _layers(model: Model, layers: Sequence[int] | None) -> list[int]:
    chosen = list(range(model.n_layers)) if layers is None else list(layers)
    bad = next((layer for layer in chosen if not 0 <= layer < model.n_layers), None)
    if bad is not None or not chosen:
        raise UsageError(f"layers={chosen}: each must be 0..{model.n_layers - 1}")
    return chosen


def _indicator(spans: Sequence[Span], n: int, model: Model) -> Float[Tensor, "pos span"]:
    columns = torch.arange(n, device=model.device)[:, None]
    starts, ends = (torch.tensor(side, device=model.device) for side in zip(*spans, strict=True))
    return ((columns >= starts) & (columns < ends)).float()
