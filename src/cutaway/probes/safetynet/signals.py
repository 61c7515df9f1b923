"""What a detector looks at: one row of numbers for each prompt, whatever its length.

A signal is named ``site pooling`` (``resid_post.15 last``, ``neurons.9 mean``) or ``attention.L``. The second reads
the scores S = q k^T * scale of layer L, rotated and with each query head at its own group's keys, as the model's
softmax meets them, and sums them up for the last token and over all tokens: log of the sum of exponentials, largest,
mean, spread and entropy of each head. `score_matrix` is the published signal: scores averaged over heads, for prompts
of one length.

Source: card safetynet (2505.14300), Method 1; traps 4 (length) and 5 (grouped queries, rotary) of its code.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.model.capture import stream_attention
from cutaway.model.pattern import Meeting
from cutaway.probes.pooled import Pooling, activations, buckets

Rows = Sequence[Sequence[int]]
TOKENS = 4096
"""Tokens in one forward, padding included."""


def read_signals(
    model: Model,
    rows: Rows,
    names: Sequence[str],
    *,
    folder: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Float[Tensor, "item d"]]:
    """Return each signal of each prompt (token ids); a prompt's row does not depend on the others.

    UsageError for an empty prompt, one beyond the model's context, a name that means no signal, or values not finite.
    """
    check_prompts(model, rows)
    layers, pooled = split_names(names)
    found: dict[str, Tensor] = {}
    for pooling in dict.fromkeys(pool for _, pool in pooled.values()):
        wanted = {name: site for name, (site, pool) in pooled.items() if pool == pooling}
        sites = list(dict.fromkeys(wanted.values()))
        read = activations(
            model, rows, sites, cast(Pooling, pooling), special=True, tokens=TOKENS, folder=folder, report=report
        )
        canonical = dict(zip(sites, _canonical(model, sites), strict=True))
        found |= {name: read[canonical[site], pooling] for name, site in wanted.items()}
    if layers:
        found |= attention_summaries(model, rows, layers)
    for name, values in found.items():
        if not bool(torch.isfinite(values).all()):
            raise UsageError(
                f"signal {name!r} is nan or infinite for {int((~torch.isfinite(values)).any(1).sum())} prompts"
            )
    return {name: found[name] for name in names}


def split_names(names: Sequence[str]) -> tuple[dict[str, int], dict[str, tuple[str, str]]]:
    """Return the layers of attention signals, and site and pooling of the others, by name."""
    if not names or len(set(names)) < len(names):
        raise UsageError(f"signals {list(names)}: name at least one, each once")
    layers: dict[str, int] = {}
    pooled: dict[str, tuple[str, str]] = {}
    for name in names:
        kind, _, rest = name.partition(".")
        if kind == "attention" and rest.isdecimal():
            layers[name] = int(rest)
        elif name.count(" ") == 1 and name.split(" ")[1] in ("mean", "last", "max"):
            site, pool = name.split(" ")
            pooled[name] = (site, pool)
        else:
            raise UsageError(f"signal {name!r}: write 'site pooling' (mean, last or max) or 'attention.LAYER'")
    return layers, pooled


def check_prompts(model: Model, rows: Rows) -> None:
    """UsageError for prompts that cannot be read."""
    if not rows:
        raise UsageError("no prompts; give at least one")
    for number, ids in enumerate(rows):
        if not ids:
            raise UsageError(f"prompt {number} is empty")
        if len(ids) > model.n_ctx:
            raise UsageError(f"prompt {number} has {len(ids)} tokens; {model.name!r} reads {model.n_ctx}")


@torch.no_grad()
def attention_summaries(model: Model, rows: Rows, layers: Mapping[str, int]) -> dict[str, Float[Tensor, "item d"]]:
    """Return for each layer, by its signal's name, ten numbers a head: five at the last token, five means over all."""
    found: dict[str, dict[int, Tensor]] = {name: {} for name in layers}
    names = {layer: name for name, layer in layers.items()}
    if bad := [layer for layer in names if not 0 <= layer < model.n_layers]:
        raise UsageError(f"attention.{bad[0]}: the model has layers 0 to {model.n_layers - 1}")
    for batch in buckets({str(i): ids for i, ids in enumerate(rows)}, TOKENS):
        places = [int(key) for key in batch]
        tokens = model.batch([list(rows[i]) for i in places])

        def keep(layer: int, met: Meeting, places: list[int] = places) -> None:
            every = raw_scores(met)
            for row, place in enumerate(places):
                n = len(rows[place])
                found[names[layer]][place] = _summary(every[row, :, :n, :n])

        stream_attention(model.layout, tokens, sorted(names), keep)
    return {name: torch.stack([by_place[i] for i in range(len(rows))]) for name, by_place in found.items()}


def raw_scores(met: Meeting) -> Float[Tensor, "batch head queries keys"]:
    """Return q k^T * scale as the softmax meets it, before the mask; each group of query heads at its own keys."""
    grouped = met.q.unflatten(1, (met.k.shape[1], -1))
    return (grouped @ met.k[:, :, None].transpose(-1, -2)).flatten(1, 2) * met.scale


@torch.no_grad()
def score_matrix(model: Model, rows: Rows, layer: int, *, rotary: bool = True) -> Float[Tensor, "item pairs"]:
    """Return S averaged over heads and flattened, as published (there without ``rotary``); later keys count 0.

    UsageError for prompts of different lengths: padding would let length into the signal.
    """
    check_prompts(model, rows)
    if len({len(ids) for ids in rows}) > 1:
        raise UsageError("score_matrix needs prompts of one length; use the signal 'attention.L' for others")
    tokens, kept = model.batch([list(ids) for ids in rows]), []
    if rotary:
        stream_attention(model.layout, tokens, [layer], lambda _, met: kept.append(raw_scores(met)))
    else:
        found = model.capture(tokens, [f"q.{layer}", f"k.{layer}"], special=True)
        q, k = (found[f"{kind}.{layer}"].transpose(1, 2) for kind in "qk")
        scores = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].transpose(-1, -2)
        kept.append(scores.flatten(1, 2) / model.d_head**0.5)
    return kept[0].mean(1).tril().flatten(1)


def _summary(scores: Float[Tensor, "head queries keys"]) -> Float[Tensor, " d"]:
    """Five numbers of each head, of the last query and on average over queries."""
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    counts = seen.sum(-1)
    masked = scores.float().masked_fill(~seen, -torch.inf)
    zeros = scores.float().masked_fill(~seen, 0.0)
    total = masked.logsumexp(-1)
    weights = (masked - total[..., None]).exp()
    entropy = total - (weights * zeros).sum(-1)
    mean = zeros.sum(-1) / counts
    spread = ((zeros - mean[..., None]).masked_fill(~seen, 0.0).square().sum(-1) / counts).sqrt()
    each = torch.stack([total, masked.amax(-1), mean, spread, entropy], -1)
    return torch.cat([each[:, -1].flatten(), each.mean(1).flatten()]).cpu()


def _canonical(model: Model, sites: Sequence[str]) -> list[str]:
    from cutaway.model import parse

    found = []
    for site in sites:
        means = parse(site, model.layout)
        if len(means) != 1:
            raise UsageError(f"signal site {site!r} means {len(means)} sites; name one")
        found.append(str(means[0]))
    return found
