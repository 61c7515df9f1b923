"""The local engine: rollouts from a Hugging Face model in this process.

One text's keys and values are computed once (`kv.Trunk`); every request whose prefix is part of that text starts
from a crop of it, and one that leaves the text soon before its end reads only the rest. Rows of all requests share a
batch; a row that finishes leaves, and the next one takes its slot.
Each row draws from its own generator, so its tokens do not depend on the batch (up to the rounding of the
processor's matrix products, which differs between batch sizes by about 1e-6 in fp32).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.sampling.kv import SHARED_PREFIX, Rests, Tails, Trunk, common_length, decode_mask, grow_trunk
from cutaway.sampling.transform import draw, token_probability
from cutaway.sampling.types import Cost, Finish, Request, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.model import Edit, Model

LONGEST_REST = 256
"""Tokens that a prefix may have beyond a trunk and still share its batch: each of its rows keeps them for itself."""
NUCLEUS_EDGE = 0.01
"""How far beyond top_p a row may look whose every token was banned; bf16 rounds probabilities by less."""


@dataclass
class _Row:
    request: int
    seed: int
    prefix_length: int
    """Tokens that lie on the trunk."""
    rest: tuple[int, ...]
    """Tokens of the prefix beyond them."""
    settings: Settings
    banned: int
    generator: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LocalEngine:
    """Samples from ``model``; see `cutaway.sampling.types.Engine` for the contract."""

    def __init__(self, model: "Model", batch_size: int = 64) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: must be at least 1")
        self.model = model
        self.batch_size = batch_size
        self.cost = Cost()
        # A PEFT model wraps the causal LM whose decoder and head are called here.
        self._hf = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
        self._known: tuple[object, Trunk] | None = None
        self._ends: frozenset[int] = frozenset()

    @property
    def identity(self) -> str:
        """The weights' fingerprint."""
        return self.model.fingerprint

    def stream(self, requests: Sequence[Request], edits: "Sequence[Edit]" = ()) -> Iterator[tuple[int, Rollout]]:
        """Yield ``(request index, rollout)`` as rows finish. With ``edits``, the model stays edited until exhausted.

        UsageError for edits whose positions are not absolute and for positions at the logits.
        """
        for request in requests:
            self._check(request)
        for edit in edits:
            _check_edit(edit)
        return self._stream(requests, edits)

    def _stream(self, requests: Sequence[Request], edits: "Sequence[Edit]") -> Iterator[tuple[int, Rollout]]:
        self._ends = self.model.eos_ids  # asked once: it is looked up for every row and token
        if edits:
            self._known = None  # an edit must meet a forward pass, also where the last call left the same prefix
        with self.model.edited(*edits) if edits else contextlib.nullcontext():
            for ids, members in _by_trunk(requests, self.batch_size):
                trunk = self._trunk(ids, tuple(edit.digest for edit in edits))
                rows = [
                    _Row(
                        request=i,
                        seed=seed,
                        prefix_length=shared,
                        rest=tuple(requests[i].prefix[shared:]),
                        settings=requests[i].settings,
                        banned=-1 if requests[i].ban_first is None else int(requests[i].ban_first or 0),
                        generator=np.random.Generator(np.random.Philox(key=seed)),
                    )
                    for i, shared in members
                    for seed in requests[i].seeds
                ]
                yield from self._decode(trunk, rows)

    @torch.inference_mode()
    def token_probs(self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings) -> list[float]:
        """Probability that sampling with ``settings`` draws each token of ``continuation`` after ``prefix``."""
        text = (*prefix, *continuation)
        if not prefix:
            self._check(Request((), (0,), settings))
        self._check(Request(text, (0,), settings), new_tokens=0)
        trunk = self._trunk(text, ())
        start, probs = len(prefix) - 1, []
        for at in range(start, len(text) - 1, 64):
            stop = min(at + 64, len(text) - 1)
            targets = torch.tensor(text[at + 1 : stop + 1], device=self._hf.device)
            probs.append(token_probability(self._logits(trunk.hidden[at:stop]), targets, settings))
        return torch.cat(probs).tolist() if probs else []

    def _check(self, request: Request, new_tokens: int | None = None) -> None:
        if not request.prefix:
            raise UsageError("the prefix is empty: give at least one token (a BOS token or a prompt)")
        given = (*request.prefix, request.ban_first or 0)
        unknown = next((token for token in given if not 0 <= token < self.model.vocab_size), None)
        if unknown is not None:
            raise UsageError(
                f"token id {unknown} lies outside the vocabulary of {self.model.name} "
                f"(0..{self.model.vocab_size - 1}); was the text tokenised for another model?"
            )
        for seed in request.seeds:
            if not 0 <= seed < 2**128:
                raise UsageError(f"seed={seed}: must be 0 or larger, and below 2**128")
        room = request.settings.max_tokens if new_tokens is None else new_tokens
        if len(request.prefix) + room > self.model.n_ctx:
            raise UsageError(
                f"prefix of {len(request.prefix)} tokens + {room} new tokens exceed the context of "
                f"{self.model.name} ({self.model.n_ctx}); shorten the prompt or lower max_tokens"
            )

    @torch.inference_mode()
    def _trunk(self, ids: tuple[int, ...], edits: tuple[str, ...]) -> Trunk:
        # Weights that were trained in place are other weights: autograd's counter tells.
        state = (edits, tuple((weight.data_ptr(), weight._version) for weight in self._hf.parameters()))
        known = self._known[1] if self._known and self._known[0] == state else None
        if known and common_length(known.ids, ids) == len(ids):
            return known  # a crop of what is there: rows address it by their prefix length
        trunk, new = grow_trunk(self._hf, ids, known)
        self.cost += Cost(prefilled=new)
        self._known = (state, trunk)
        return trunk

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._hf.get_output_embeddings()(hidden)
        cap = getattr(self._hf.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _decode(self, trunk: Trunk, waiting: list[_Row]) -> Iterator[tuple[int, Rollout]]:
        # Longest prefix first: neighbours in time then attend over nearly the same part of the trunk.
        waiting.sort(key=lambda row: row.prefix_length)
        tails = Tails(trunk, min(self.batch_size, len(waiting)))
        rests = Rests(self._hf, trunk, [(row.prefix_length, row.rest) for row in reversed(waiting) if row.rest])
        active: list[_Row] = []
        while waiting or active:
            for row, finish in self._advance(tails, rests, active, waiting):
                self.cost += Cost(decoded=len(row.ids))
                yield row.request, Rollout(row.seed, tuple(row.ids), tuple(row.logprobs), finish)

    @torch.inference_mode()
    def _advance(
        self, tails: Tails, rests: Rests, active: list[_Row], waiting: list[_Row]
    ) -> list[tuple[_Row, Finish]]:
        """One more token for every active row; admit waiting rows to free slots; return the rows that finished."""
        if active:
            self._append(active, self._step(tails, active))
        fresh = [waiting.pop() for _ in range(min(tails.slots - len(active), len(waiting)))]
        if fresh:
            hidden = [self._admit(tails, rests, len(active) + place, row) for place, row in enumerate(fresh)]
            self._append(fresh, self._logits(torch.stack(hidden)))
            active += fresh
        done = []
        for slot in reversed(range(len(active))):
            finish = self._finished(active[slot])
            if finish is not None:
                done.append((active[slot], finish))
                last = active.pop()
                if slot < len(active):
                    active[slot] = last
                    tails.move(len(active), slot)
        return done

    def _admit(self, tails: Tails, rests: Rests, slot: int, row: _Row) -> Tensor:
        """Seat a row; return the hidden state [d_model] behind its prefix."""
        if not row.rest:
            tails.lengths[slot] = 0
            self.cost += Cost(reused=row.prefix_length)
            return tails.trunk.hidden[row.prefix_length - 1]
        rest, read = rests.take((row.prefix_length, row.rest))
        tails.load(slot, rest)
        self.cost += Cost(prefilled=read, reused=row.prefix_length)
        return rest.hidden

    def _step(self, tails: Tails, rows: list[_Row]) -> Tensor:
        """Logits [row, vocab] after reading each row's newest token."""
        device = tails.lengths.device
        prefix = torch.tensor([row.prefix_length for row in rows], device=device)
        tails.step(prefix)
        tokens = torch.tensor([[row.ids[-1]] for row in rows], device=device)
        config = self._hf.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = SHARED_PREFIX
        try:
            hidden = self._hf.get_decoder()(
                input_ids=tokens,
                position_ids=(prefix + tails.lengths[: len(rows)])[:, None],
                attention_mask=self._masks(tails),
                past_key_values=tails,
                use_cache=True,
                shared_prefix=tails,
            ).last_hidden_state
        finally:
            config._attn_implementation = before
        tails.lengths[: len(rows)] += 1
        return self._logits(hidden[:, -1])

    def _masks(self, tails: Tails) -> Tensor | dict[str, Tensor]:
        config, dtype = self._hf.config.get_text_config(), tails.trunk.hidden.dtype
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return decode_mask(tails, window, dtype)
        return {kind: decode_mask(tails, window if kind == "sliding_attention" else None, dtype) for kind in set(kinds)}

    def _append(self, rows: list[_Row], logits: Tensor) -> None:
        for kind in {_kind(row) for row in rows}:
            places = [i for i, row in enumerate(rows) if _kind(row) == kind]
            members = [rows[i] for i in places]
            uniforms = torch.tensor([row.generator.random() for row in members], device=logits.device)
            banned = torch.tensor([-1 if row.ids else row.banned for row in members], device=logits.device)
            mine = logits if len(places) == len(rows) else logits[places]
            tokens, logprobs = draw(mine, uniforms, members[0].settings, banned)
            if bool((tokens < 0).any()):
                # Rounding differs between batch sizes: a token at the edge of the nucleus may be in or out of it.
                wider = replace(members[0].settings, top_p=min(1.0, members[0].settings.top_p + NUCLEUS_EDGE))
                found, their_logprobs = draw(mine, uniforms, wider, banned)
                stuck = tokens < 0
                tokens, logprobs = torch.where(stuck, found, tokens), torch.where(stuck, their_logprobs, logprobs)
            for row, token, logprob in zip(members, tokens.tolist(), logprobs.tolist(), strict=True):
                if token < 0:
                    raise CutawayError(
                        f"ban_first={row.banned}: nothing else can follow this prefix under {row.settings}; "
                        "the token has probability 1"
                    )
                row.ids.append(token)
                row.logprobs.append(logprob)

    def _finished(self, row: _Row) -> Finish | None:
        if row.ids[-1] in self._ends:
            return "stop"
        if row.settings.stop:
            text = self.model.decode(row.ids)
            if any(mark in text for mark in row.settings.stop):
                return "stop"
        return "length" if len(row.ids) >= row.settings.max_tokens else None


def _kind(row: _Row) -> tuple[float, float, int]:
    return row.settings.temperature, row.settings.top_p, row.settings.top_k


def _check_edit(edit: "Edit") -> None:
    # Rows share the longest prefix's forward and read their own first logits off it, outside any forward of theirs.
    for name in ("positions", "queries", "keys"):
        given = getattr(edit, name, None)
        named = (given.start, given.stop) if isinstance(given, slice) else given or ()
        if any(position is not None and position < 0 for position in named):
            raise UsageError(f"{edit!r}: 'last' and negative {name} differ between prefixes; give absolute positions")
    if edit.site == "logits" and getattr(edit, "positions", None) is not None:
        raise UsageError(f"{edit!r}: the logits cannot be edited at single positions while sampling; leave them out")


def _by_trunk(requests: Sequence[Request], batch_size: int) -> list[tuple[tuple[int, ...], list[tuple[int, int]]]]:
    """Group requests: ``(text, [(request index, tokens of its prefix on the text)])`` a group.

    A prefix off every text joins the one it follows longest, if it leaves few tokens and cannot fill a batch alone.
    """
    groups: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = []
    for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].prefix)):
        prefix = tuple(requests[i].prefix)
        shared = [common_length(ids, prefix) for ids, _ in groups]
        best = max(range(len(groups)), key=lambda group: shared[group], default=None)
        alone = len(requests[i].seeds) >= batch_size
        if best is None or len(prefix) - shared[best] > (0 if alone else LONGEST_REST):
            groups.append((prefix, [(i, len(prefix))]))
        else:
            groups[best][1].append((i, shared[best]))
    return groups
