"""Many prompts that begin alike: the keys and values of their common start are computed once.

`batches` deals prompts out; `read_start` and `continued` make one batch by hand. A `Continued` batch goes wherever a
batch goes (`Model.capture`, inside `Model.edited`). Positions count from the start's first token for edits, and from
the rest's own first token for captures. Under edits of every position, read the start inside `Model.edited` too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from cutaway.model import Model
from cutaway.model.model import Batch
from cutaway.sampling.kv import common_length

LONGEST_REST = 256
"""Prompts share a start where each has fewer tokens than this behind it."""
CACHED_TOKENS = 1 << 15
"""Rows share a forward up to this many tokens of keys and values."""


@dataclass(frozen=True, eq=False)
class Start:
    """Token ids with their keys and values, a pair a layer; empty for prompts that share nothing."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Float[Tensor, "1 head pos d_head"], Float[Tensor, "1 head pos d_head"]], ...]

    def first(self, tokens: int) -> "Start":
        """The first ``tokens`` of it; nothing is copied."""
        layers = tuple((keys[:, :, :tokens], values[:, :, :tokens]) for keys, values in self.layers)
        return Start(self.ids[:tokens], layers if tokens else ())

    def cache(self, rows: int) -> DynamicCache:
        """A new cache that holds the start in each of ``rows`` rows."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


NOTHING = Start((), ())


@dataclass(frozen=True)
class Continued(Batch):
    """Rows that stand behind a start, padded on the left."""

    start: Start = field(repr=False)

    def forward_kwargs(self) -> dict[str, Any]:
        """Return the arguments a Hugging Face model takes for these rows; a new cache each time."""
        pads = (~self.mask).sum(-1, keepdim=True)
        first = len(self.start.ids)
        places = first + torch.arange(self.ids.shape[1], device=self.ids.device) - pads
        seen = self.mask.new_ones(len(self), first)
        return {
            "input_ids": self.ids,
            "attention_mask": torch.cat([seen, self.mask], 1).long(),
            "position_ids": places.clamp(min=0),
            "past_key_values": self.start.cache(len(self)),
        }


@torch.no_grad()
def read_start(model: Model, ids: Sequence[int], known: Start | None = None) -> Start:
    """Read ``ids``, from where they part from ``known`` on."""
    known = NOTHING if known is None else known.first(common_length(known.ids, ids))
    if len(known.ids) == len(ids):
        return known
    given = continued(model, known, [ids[len(known.ids) :]]).forward_kwargs()
    decoder(model)(**given, use_cache=True)
    layers: Any = given["past_key_values"].layers
    return Start(tuple(ids), tuple((layer.keys, layer.values) for layer in layers))


def continued(model: Model, start: Start, rests: Sequence[Sequence[int]]) -> Continued:
    """A batch of ``rests``, each with a token at least, behind ``start``."""
    width = max(map(len, rests))
    ids = torch.tensor([[rest[0]] * (width - len(rest)) + list(rest) for rest in rests], device=model.device)
    pads = torch.tensor([width - len(rest) for rest in rests], device=model.device)
    return Continued(ids, torch.arange(width, device=model.device) >= pads[:, None], start)


def batches(
    model: Model, prompts: Sequence[Sequence[int]], *, keep: int = 1, room: int = 0
) -> Iterator[tuple[list[int], Continued]]:
    """Numbers of prompts with the batch that holds them, until all have come.

    keep: tokens of each prompt that its batch holds at least; room: tokens that will be written behind each.
    """
    for shared, members in by_start(prompts, keep):
        start = read_start(model, shared)
        for part in _parts(model, [prompts[i] for i in members], room):
            chosen = [members[k] for k in part]
            yield chosen, continued(model, start, [prompts[i][len(shared) :] for i in chosen])


def by_start(prompts: Sequence[Sequence[int]], keep: int = 1) -> list[tuple[tuple[int, ...], list[int]]]:
    """Groups of prompts with the start they share, which leaves each prompt its last ``keep`` tokens at least."""
    groups: list[tuple[tuple[int, ...], list[int]]] = []
    for i, prompt in enumerate(prompts):
        for at, (start, members) in enumerate(groups):
            shared = common_length(start, prompt[:-keep])
            if max(len(prompts[k]) for k in (i, *members)) - shared < LONGEST_REST:
                groups[at] = (tuple(start[:shared]), [*members, i])
                break
        else:
            groups.append((tuple(prompt[:-keep]), [i]))
    return groups


def last_logits(model: Model, batch: Continued) -> Float[Tensor, "batch vocab"]:
    """Logits after the last token of each row, without those of the other positions."""
    return unembed(model, decoder(model)(**batch.forward_kwargs()).last_hidden_state[:, -1])


def unembed(model: Model, hidden: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
    """The logits of final hidden states."""
    hf = _plain(model)
    logits = hf.get_output_embeddings()(hidden)
    cap = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def decoder(model: Model) -> Any:
    """The model without its unembedding."""
    return _plain(model).get_decoder()


def _plain(model: Model) -> Any:
    return model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf


def _parts(model: Model, prompts: Sequence[Sequence[int]], room: int) -> Iterator[list[int]]:
    """Numbers of the prompts that share a forward, shortest first.

    Where attention looks through a window, prompts of unlike length do not: padding would count in it.
    """
    windowed = getattr(model.hf.config.get_text_config(), "sliding_window", None) is not None
    part: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        full = (len(part) + 1) * (len(prompts[i]) + room) > CACHED_TOKENS
        if part and (full or (windowed and len(prompts[part[0]]) != len(prompts[i]))):
            yield part
            part = []
        part.append(i)
    if part:
        yield part
