"""The local engine: rollouts from a Hugging Face model in this process.

One text's keys and values are computed once (`kv.Trunk`); every request whose prefix is part of that text starts
from a crop of it, and one that leaves the text soon before its end reads only the rest. Rows of all requests share a
batch; a row that finishes leaves, and the next one takes its slot.
Each row draws from its own generator, so its tokens do not depend on the batch (up to the rounding of the
processor's matrix products, which differs between batch sizes by about 1e-6 in fp32).

On a processor with several cores the rows are dealt to two lanes, each a batch of its own on half of the cores: threads
that share every small matrix product of a decode step wait for each other more than they compute.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from cutaway.errors import UsageError
from cutaway.sampling.batch import Row, RowBatch, decoder_of, logits_of, over_trunk
from cutaway.sampling.kv import Trunk, common_length, grow_trunk
from cutaway.sampling.transform import token_probability
from cutaway.sampling.types import Cost, Request, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.model import Edit, Model

LONGEST_REST = 256
"""Tokens that a prefix may have beyond a trunk and still share its batch: each of its rows keeps them for itself."""
FEWEST = 16
"""Rows that make a lane worth its thread: in smaller batches a step is mostly reading weights, which each lane does."""
LANES, SMALLEST = 2, 10_000_000
"""Lanes on a processor of several cores, for models of so many weights: a step of a smaller one is Python's time, and
Python runs one thread."""


class LocalEngine:
    """Samples from ``model``; see `cutaway.sampling.types.Engine` for the contract."""

    def __init__(self, model: "Model", batch_size: int = 64, lanes: int | None = None) -> None:
        """``batch_size`` rows at a time in each of ``lanes``, which by default are what pays (`LANES`)."""
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: must be at least 1")
        if lanes is not None and lanes < 1:
            raise UsageError(f"lanes={lanes}: must be at least 1")
        self.model = model
        self.batch_size = batch_size
        self.cost = Cost()
        self._hf = decoder_of(model)
        pays = model.device.type == "cpu" and torch.get_num_threads() > 1 and self._hf.num_parameters() >= SMALLEST
        self.lanes = lanes or (LANES if pays else 1)
        self._known: tuple[object, Trunk] | None = None

    @property
    def identity(self) -> str:
        """The weights' fingerprint."""
        return self.model.fingerprint

    def stream(self, requests: Sequence[Request], edits: "Sequence[Edit]" = ()) -> Iterator[tuple[int, Rollout]]:
        """Yield ``(request index, rollout)`` as rows finish. With ``edits``, the model stays edited until exhausted.

        UsageError for edits whose positions are not absolute and for positions at the logits.
        """
        for request in requests:
            self.check(request)
        check_edits(edits)
        return self._stream(requests, edits)

    def _stream(self, requests: Sequence[Request], edits: "Sequence[Edit]") -> Iterator[tuple[int, Rollout]]:
        if edits:
            self.forget()  # an edit must meet a forward pass, also where the last call left the same prefix
        with self.model.edited(*edits) if edits else contextlib.nullcontext():
            for ids, members in _by_trunk(requests, self.batch_size):
                trunk = self.trunk(ids, edits)
                rows = [
                    Row(
                        owner=i,
                        seed=seed,
                        prefix_length=shared,
                        rest=tuple(requests[i].prefix[shared:]),
                        settings=requests[i].settings,
                        banned=-1 if requests[i].ban_first is None else int(requests[i].ban_first or 0),
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
            self.check(Request((), (0,), settings))
        self.check(Request(text, (0,), settings), new_tokens=0)
        trunk = self.trunk(text, ())
        start, probs = len(prefix) - 1, []
        for at in range(start, len(text) - 1, 64):
            stop = min(at + 64, len(text) - 1)
            targets = torch.tensor(text[at + 1 : stop + 1], device=self._hf.device)
            probs.append(token_probability(logits_of(self._hf, trunk.hidden[at:stop]), targets, settings))
        return torch.cat(probs).tolist() if probs else []

    def check(self, request: Request, new_tokens: int | None = None) -> None:
        """UsageError for a request that cannot be served: no prefix, unknown tokens or seeds, no room for the text."""
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

    def forget(self) -> None:
        """Read the next trunk from its first token."""
        self._known = None

    @torch.inference_mode()
    def trunk(self, ids: tuple[int, ...], edits: "Sequence[Edit]") -> Trunk:
        """A trunk that begins with ``ids``, from the last one where it can be; call it inside `Model.edited`."""
        # Weights that were trained in place are other weights: autograd's counter tells.
        state = (
            tuple(edit.digest for edit in edits),
            tuple((weight.data_ptr(), weight._version) for weight in self._hf.parameters()),
        )
        known = self._known[1] if self._known and self._known[0] == state else None
        if known and common_length(known.ids, ids) == len(ids):
            return known  # a crop of what is there: rows address it by their prefix length
        trunk, new = grow_trunk(self._hf, ids, known)
        self.cost += Cost(prefilled=new)
        self._known = (state, trunk)
        return trunk

    def spend(self, cost: Cost) -> None:
        """Add to what this engine has cost."""
        self.cost += cost

    def _decode(self, trunk: Trunk, waiting: list[Row]) -> Iterator[tuple[int, Rollout]]:
        # Shortest prefix first: these rows have the most to say, and none of them is left to decode alone at the end.
        # Neighbours in time then also attend over nearly the same part of the trunk.
        waiting.sort(key=lambda row: -row.prefix_length)
        n = max(1, min(self.lanes, len(waiting) // FEWEST))
        # Hooks keep notes of the forward they are in, so two forwards at a time must meet none.
        if n > 1 and any(part._forward_hooks or part._forward_pre_hooks for part in self._hf.modules()):
            n = 1
        spent: list[Cost] = []
        queues = _dealt(waiting, n)
        batches = [
            RowBatch(self.model, trunk, min(self.batch_size, len(queue)), spend=spent.append) for queue in queues
        ]
        for batch, queue in zip(batches, queues, strict=True):
            batch.expect(queue[::-1])
        with _threads(n) as run:
            while any(queues) or any(batch.rows for batch in batches):
                with over_trunk(self.model):
                    run(RowBatch.step, batches)
                fresh = [
                    [queue.pop() for _ in range(min(b.free, len(queue)))]
                    for b, queue in zip(batches, queues, strict=True)
                ]
                run(RowBatch.seat, batches, fresh)
                done = [row for batch in batches for row in batch.leave()]
                self.spend(sum(spent, Cost()))
                spent.clear()
                for row in done:
                    assert row.finish is not None
                    yield row.owner, Rollout(row.seed, tuple(row.ids), tuple(row.logprobs), row.finish)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[Callable[..., list[Any]]]:
    """A `map` over ``n`` threads that share the cores; with one, the caller's own."""
    if n == 1:
        yield lambda call, *rows: list(map(call, *rows))
        return
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(max(1, cores // n),)) as pool:
            yield lambda call, *rows: list(pool.map(call, *rows))
    finally:
        torch.set_num_threads(cores)


def _dealt(rows: Sequence[Row], n: int) -> list[list[Row]]:
    """Return ``rows`` in ``n`` parts of about equal size; those with the same rest stay together: it is read once."""
    parts: list[list[Row]] = [[] for _ in range(n)]
    for _, group in groupby(rows, key=lambda row: (row.prefix_length, row.rest) if row.rest else id(row)):
        min(parts, key=len).extend(group)
    return parts


def check_edits(edits: "Sequence[Edit]") -> None:
    """UsageError for edits that rows of several texts cannot share."""
    for edit in edits:
        _check_edit(edit)


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
