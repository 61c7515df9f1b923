"""An engine for many histories at once: each row keeps its own keys and values from one call to the next.

`LocalEngine` shares one text among many rows. Dialogues are the opposite case: many texts, each of which grows a
little between calls. Here every row owns a cache in which a token's column is its position, so

1. a request starts from the held row that shares the longest prefix with it (its own earlier turns, or a sibling
   branch) and only the rest is computed;
2. rows of different lengths are prefilled and decoded together under one mask: key position <= query position;
3. columns after a row's end hold leftovers that no query sees, so going back to an earlier turn costs nothing.

Draws use the same generators as `LocalEngine`: same seeds, same tokens (up to rounding).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.reasoning.history_echoes.rows import ROW_CACHE, RowCache
from cutaway.sampling.kv import common_length
from cutaway.sampling.transform import draw
from cutaway.sampling.types import Cost, Finish, Request, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.model import Edit, Model


@dataclass
class _Job:
    request: int
    seed: int
    prefix: tuple[int, ...]
    settings: Settings
    generator: np.random.Generator
    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class _Seat:
    job: _Job
    source: int
    """Row whose tokens are taken over."""
    keep: int
    """How many of them."""


class DialogueEngine:
    """Samples from ``model`` with ``slots`` rows at a time; see `cutaway.sampling.types.Engine` for the contract.

    Requests are taken in order, ``slots`` rows at a time: give one turn of ``slots`` dialogues, then their next.
    Edits apply at every position; positions, attention masks and patterns are refused.
    """

    def __init__(self, model: "Model", slots: int = 16) -> None:
        if slots < 1:
            raise UsageError(f"slots={slots}: must be at least 1")
        self.model = model
        self.slots = slots
        self.cost = Cost()
        self._hf = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
        self._rows = RowCache(slots)
        self._state: object = None

    @property
    def identity(self) -> str:
        """The weights' fingerprint."""
        return self.model.fingerprint

    def stream(self, requests: Sequence[Request], edits: "Sequence[Edit]" = ()) -> Iterator[tuple[int, Rollout]]:
        """Yield ``(request index, rollout)``, ``slots`` rows at a time. Raises UsageError for what it cannot run."""
        for request in requests:
            self._check(request)
        for edit in edits:
            if getattr(edit, "positions", None) is not None or type(edit).__name__ in ("AttentionMask", "Patch"):
                raise UsageError(f"{edit!r}: rows of different histories share no positions; give an edit of all")
            if edit.site.startswith("pattern"):
                raise UsageError(f"{edit!r}: attention runs fused here; edit v or z instead")
        jobs = [
            _Job(i, seed, r.prefix, r.settings, np.random.Generator(np.random.Philox(key=seed)), [], [])
            for i, r in enumerate(requests)
            for seed in r.seeds
        ]
        with self.model.edited(*edits) if edits else contextlib.nullcontext():
            self._forget_other_weights(tuple(edit.digest for edit in edits))
            for _, group in groupby(jobs, key=lambda job: _kind(job.settings)):
                same = list(group)
                for at in range(0, len(same), self.slots):
                    yield from self._run(same[at : at + self.slots])

    def token_probs(self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings) -> list[float] | None:
        """None: scoring given text gains nothing from rows; `LocalEngine` does it."""
        return None

    def _check(self, request: Request) -> None:
        if not request.prefix:
            raise UsageError("the prefix is empty: give at least one token (a BOS token or a prompt)")
        if request.ban_first is not None:
            raise UsageError(f"ban_first={request.ban_first}: only LocalEngine draws conditionally")
        bad = next((token for token in request.prefix if not 0 <= token < self.model.vocab_size), None)
        if bad is not None:
            raise UsageError(f"token id {bad} is outside the vocabulary 0..{self.model.vocab_size - 1}")
        if len(request.prefix) + request.settings.max_tokens > self.model.n_ctx:
            raise UsageError(
                f"prefix of {len(request.prefix)} tokens + {request.settings.max_tokens} new tokens exceed the "
                f"context of {self.model.name} ({self.model.n_ctx}); shorten the dialogue or lower max_tokens"
            )

    def _forget_other_weights(self, edits: tuple[str, ...]) -> None:
        # Keys of other weights are other keys: autograd's counter tells when weights were trained in place.
        state = (edits, tuple((weight.data_ptr(), weight._version) for weight in self._hf.parameters()))
        if state != self._state:
            self._rows, self._state = RowCache(self.slots), state

    @torch.inference_mode()
    def _run(self, jobs: list[_Job]) -> list[tuple[int, Rollout]]:
        # While rows move they belong to no state: an interrupt leaves an engine that starts afresh.
        state, self._state = self._state, None
        done: list[tuple[int, Rollout]] = []
        active, hidden = self._prefill(jobs)
        while active:
            self._draw(active, hidden)
            for slot in reversed(range(len(active))):
                finish = self._finished(active[slot])
                if finish is not None:
                    job = active[slot]
                    done.append((job.request, Rollout(job.seed, tuple(job.ids), tuple(job.logprobs), finish)))
                    last = active.pop()
                    if slot < len(active):
                        active[slot] = last
                        self._rows.swap(slot, len(active))
            if active:
                hidden = self._forward([[job.ids[-1]] for job in active])
        self.cost += Cost(decoded=sum(len(rollout.ids) for _, rollout in done))
        self._state = state
        return done

    def _prefill(self, jobs: list[_Job]) -> tuple[list[_Job], Float[Tensor, "row d_model"]]:
        """Bring the first rows to the jobs' prefixes; the jobs in the order of these rows, and what their draws read.

        What all prefixes begin with, and no row holds, is read once and copied.
        """
        first, last = min(job.prefix for job in jobs), max(job.prefix for job in jobs)
        start = first[: min(common_length(first, last), len(first) - 1)]
        if len(jobs) > 1 and len(start) > _common(_table(self._rows.ids), start).max():
            self._rows.rearrange([0], [0])
            self._forward([list(start)])
            self.cost += Cost(prefilled=len(start))
        seats = self._seats(jobs)
        self._rows.rearrange([seat.source for seat in seats], [seat.keep for seat in seats])
        new = [list(seat.job.prefix[seat.keep :]) for seat in seats]
        self.cost += Cost(prefilled=sum(map(len, new)), reused=sum(seat.keep for seat in seats))
        return [seat.job for seat in seats], self._forward(new)

    def _seats(self, jobs: list[_Job]) -> list[_Seat]:
        """Which job goes to which of the first rows, and what it takes over from which row."""
        held = _table(self._rows.ids)
        taken = np.zeros(self.slots, dtype=bool)
        found: dict[int, _Seat] = {}
        moving = []
        for job in jobs:
            # The last token is always computed again: its hidden state is what the first draw reads.
            shared = np.minimum(_common(held, job.prefix), len(job.prefix) - 1)
            # Among rows that share as much, one that nobody else starts from: nothing need be copied then.
            best = int((2 * shared + ~taken).argmax())
            seat = _Seat(job, best, int(shared[best]))
            if taken[best] or best >= len(jobs):
                moving.append(seat)
            else:
                found[best] = seat
            taken[best] = True
        empty = (i for i in range(len(jobs)) if i not in found)
        found |= dict(zip(empty, moving, strict=True))
        return [found[i] for i in range(len(jobs))]

    def _forward(self, new: list[list[int]]) -> Float[Tensor, "row d_model"]:
        """Read ``new`` tokens into the first rows; the last hidden state of each."""
        rows, device = self._rows, self._hf.device
        width = max(map(len, new))
        starts = torch.tensor([len(rows.ids[i]) for i in range(len(new))], device=device)
        tokens = torch.tensor([ids + [ids[-1]] * (width - len(ids)) for ids in new], device=device)
        positions = starts[:, None] + torch.arange(width, device=device)
        rows.starts = starts
        config = self._hf.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = ROW_CACHE
        try:
            hidden = self._hf.get_decoder()(
                input_ids=tokens,
                position_ids=positions.clamp(max=self.model.n_ctx - 1),
                attention_mask=self._masks(positions),
                past_key_values=rows,
                use_cache=True,
                row_cache=True,
            ).last_hidden_state
        finally:
            config._attn_implementation = before
        for held, ids in zip(rows.ids, new, strict=False):
            held.extend(ids)
        return hidden[torch.arange(len(new), device=device), [len(ids) - 1 for ids in new]]

    def _masks(self, positions: Int[Tensor, "row new"]) -> Tensor | dict[str, Tensor]:
        config, dtype = self._hf.config.get_text_config(), self._hf.dtype
        keys = torch.arange(int(positions[:, 0].max()) + positions.shape[1], device=positions.device)
        apart = positions[:, None, :, None] - keys
        window = getattr(config, "sliding_window", None)
        lowest = torch.finfo(dtype).min

        def mask(limit: int | None) -> Tensor:
            hidden = (apart < 0) if limit is None else (apart < 0) | (apart >= limit)
            return torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill_(hidden, lowest)

        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return mask(window)
        return {kind: mask(window if kind == "sliding_attention" else None) for kind in set(kinds)}

    def _draw(self, jobs: list[_Job], hidden: Float[Tensor, "row d_model"]) -> None:
        logits = self._hf.get_output_embeddings()(hidden)
        cap = getattr(self._hf.config.get_text_config(), "final_logit_softcapping", None)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        uniforms = torch.tensor([job.generator.random() for job in jobs], device=logits.device)
        tokens, logprobs = draw(logits, uniforms, jobs[0].settings)
        for job, token, logprob in zip(jobs, tokens.tolist(), logprobs.tolist(), strict=True):
            job.ids.append(token)
            job.logprobs.append(logprob)

    def _finished(self, job: _Job) -> Finish | None:
        if job.ids[-1] in self.model.eos_ids:
            return "stop"
        if job.settings.stop:
            text = self.model.decode(job.ids)
            if any(mark in text for mark in job.settings.stop):
                return "stop"
        return "length" if len(job.ids) >= job.settings.max_tokens else None


def _kind(settings: Settings) -> tuple[float, float, int]:
    return settings.temperature, settings.top_p, settings.top_k


def _table(rows: list[list[int]]) -> Int[np.ndarray, "row pos"]:
    table = np.full((len(rows), max(map(len, rows))), -1)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _common(held: Int[np.ndarray, "row pos"], prefix: tuple[int, ...]) -> Int[np.ndarray, " row"]:
    """Leading tokens that ``prefix`` shares with each row."""
    width = min(held.shape[1], len(prefix))
    same = held[:, :width] == np.array(prefix[:width])
    return np.where(same.all(1), width, (~same).argmax(1)) if width else np.zeros(len(held), dtype=int)
