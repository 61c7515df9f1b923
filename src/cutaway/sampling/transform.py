"""From logits to draws: temperature, then top-k, then top-p, then one uniform number picks the token.

The order of the filters is Hugging Face's. A draw reads the inverse of the cumulative distribution at a uniform
number that belongs to the row alone, so a row's tokens do not depend on which rows stand beside it.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from cutaway.sampling.types import Settings

# Sorting a whole vocabulary costs ten times a decode step's head on a processor; the nucleus nearly always lies
# within this many of the most likely tokens, and rows where it does not are sorted in full.
NUCLEUS_GUESS = 256
GROUPED = 16
"""Tokens in a group when the largest are sought."""
COLDEST = torch.finfo(torch.float32).tiny
"""Lower temperatures draw as this one: in single precision they are 0, and nothing can be divided by them."""


def candidates(
    logits: Float[Tensor, "batch vocab"], settings: Settings
) -> tuple[Float[Tensor, "batch kept"], Int[Tensor, "batch kept"]]:
    """Probabilities (most likely first, 0 beyond the kept set) and token ids of what `settings` may draw.

    Ids beyond the kept set mean nothing.
    """
    probs, ids, short = _likeliest(logits, settings)
    if bool(short.any()):
        rest = (0, logits.shape[-1] - ids.shape[-1])
        probs, ids = pad(probs, rest), pad(ids, rest)
        probs[short], ids[short], _ = _likeliest(logits[short], settings, whole=True)
    return probs, ids


def draw(
    logits: Float[Tensor, "batch vocab"],
    uniforms: Float[Tensor, " batch"],
    settings: Settings,
    banned: Int[Tensor, " batch"] | None = None,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """One token a row, and its log-probability at temperature 1 (nats). ``banned`` is -1 where nothing is banned.

    A banned token is taken out after the filters: the draw is conditional on the row not starting with it.
    A row that has nothing else to draw yields token -1.
    """
    if banned is None:
        banned = torch.full_like(uniforms, -1, dtype=torch.long)
    probs, ids, short = _likeliest(logits, settings)
    tokens = _picked(probs, ids, uniforms, banned)
    # Only these rows: what they need is two hundred times as wide, and a sort orders equal logits unlike topk.
    if bool(short.any()):
        probs, ids, _ = _likeliest(logits[short], settings, whole=True)
        tokens[short] = _picked(probs, ids, uniforms[short], banned[short])
    logprobs = logits.gather(-1, tokens.clamp_min(0)[:, None])[:, 0].float() - logits.float().logsumexp(-1)
    return tokens, logprobs


def _likeliest(
    logits: Float[Tensor, "batch vocab"], settings: Settings, whole: bool = False
) -> tuple[Float[Tensor, "batch kept"], Int[Tensor, "batch kept"], Bool[Tensor, " batch"]]:
    """`candidates` among the first tokens of each row, and which rows need more of them than that.

    With ``whole``, among all tokens, and no row needs more.
    """
    vocab, none = logits.shape[-1], torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if settings.temperature == 0:
        return torch.ones_like(logits[:, :1], dtype=torch.float64), logits.argmax(-1, keepdim=True), none
    rows = logits if logits.dtype == torch.float64 else logits.float()
    heat = max(settings.temperature, COLDEST)
    width = min(settings.top_k, vocab) if settings.top_k else vocab
    guess = width if whole or settings.top_k or settings.top_p == 1 else min(NUCLEUS_GUESS, vocab)
    top, ids = rows.sort(dim=-1, descending=True) if guess == vocab else largest(rows, guess)
    # Relative to the most likely token; whole rows are read in their own precision and summed in twice that.
    first = top[:, :1]
    counted = top if settings.top_k else rows
    total = (counted - first).div_(heat).exp_().sum(-1, keepdim=True, dtype=torch.float64)
    probs = ((top - first).double() / heat).exp() / total
    if settings.top_p == 1:
        return probs, ids, none
    before = probs.cumsum(-1) - probs
    short = before[:, -1] + probs[:, -1] < settings.top_p if guess < width else none
    probs = probs.masked_fill(before >= settings.top_p, 0.0)
    return probs / probs.sum(-1, keepdim=True), ids, short


def _picked(
    probs: Float[Tensor, "batch kept"],
    ids: Int[Tensor, "batch kept"],
    uniforms: Float[Tensor, " batch"],
    banned: Int[Tensor, " batch"],
) -> Int[Tensor, " batch"]:
    """The token in which each row's uniform number falls; -1 for a row that has nothing but its banned one."""
    probs = probs.masked_fill(ids == banned[:, None], 0.0)
    edges = probs.cumsum(-1)
    reach = edges[:, -1:]
    place = torch.searchsorted(edges, uniforms.double()[:, None] * reach, right=True)
    last = (probs > 0).long().mul(torch.arange(1, probs.shape[1] + 1, device=probs.device)).argmax(-1)
    place = torch.minimum(place[:, 0], last)
    tokens = ids.gather(-1, place[:, None])[:, 0]
    return torch.where(reach[:, 0] > 0, tokens, torch.full_like(tokens, -1))


def token_probability(
    logits: Float[Tensor, "pos vocab"], tokens: Int[Tensor, " pos"], settings: Settings
) -> Float[Tensor, " pos"]:
    """Probability that a draw with ``settings`` gives each of ``tokens``; 0 where a filter removed it."""
    probs, ids = candidates(logits, settings)
    return (probs * (ids == tokens[:, None])).sum(-1)


def largest(
    rows: Float[Tensor, "batch vocab"], most: int
) -> tuple[Float[Tensor, "batch most"], Int[Tensor, "batch most"]]:
    """The ``most`` largest of each row and where they stand, as ``topk``, without sorting through the whole row.

    They lie in the groups with the largest maxima; a group's members lie far apart, so that whole stretches compare.
    """
    vocab = rows.shape[-1]
    groups = vocab // GROUPED
    if groups <= 2 * most:
        found = rows.topk(min(most, vocab), dim=-1)
        return found.values, found.indices
    whole = groups * GROUPED
    grouped = rows[:, :whole].unflatten(-1, (GROUPED, groups))
    at = grouped.amax(1).topk(most, dim=-1, sorted=False).indices
    near = grouped.gather(2, at[:, None].expand(-1, GROUPED, -1)).flatten(1)
    top, place = torch.cat([near, rows[:, whole:]], -1).topk(most, dim=-1)
    inside = place < near.shape[-1]
    member, group = place // most, at.gather(1, place % most)
    return top, torch.where(inside, member * groups + group, whole + place - near.shape[-1])
