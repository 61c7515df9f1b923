"""Rows that are decoded together: any of them may join or leave between two steps.

One step reads the newest token of every row, draws the next, and seats rows that join behind what is shared of their
prefixes. Each row draws from its own generator, so its tokens do not depend on who stands beside it (up to the
rounding of the processor's matrix products, which differs between batch sizes by about 1e-6 in fp32).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from cutaway.errors import CutawayError
from cutaway.sampling.kv import SHARED_PREFIX, Rests, Tails, Trunk, decode_mask
from cutaway.sampling.transform import draw
from cutaway.sampling.types import Cost, Finish, Settings

if TYPE_CHECKING:
    from cutaway.model import Model

NUCLEUS_EDGE = 0.01
"""How far beyond top_p a row may look whose every token was banned; bf16 rounds probabilities by less."""


@dataclass(eq=False)
class Row:
    """One continuation on its way."""

    owner: Any
    """Whatever the caller knows it by."""
    seed: int
    prefix_length: int
    """Tokens that lie on the trunk."""
    rest: tuple[int, ...]
    """Tokens of the prefix beyond them."""
    settings: Settings
    banned: int = -1
    """Token that must not come first; -1 for none."""
    top: int = 0
    """How many of the most likely tokens to note at each place."""
    read_last: bool = False
    """Whether the model reads the last token too, though nothing follows it: for those who watch what is read."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    """(token, log-probability), most likely first, at each place."""
    finish: Finish | None = None
    generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=self.seed))


class RowBatch:
    """Up to ``slots`` rows on one ``trunk``.

    ``spend`` is told what each step cost; ``watch`` is called after each forward with the rows in its order.
    """

    def __init__(
        self,
        model: "Model",
        trunk: Trunk,
        slots: int,
        *,
        spend: Callable[[Cost], None],
        watch: Callable[[Sequence[Row]], None] | None = None,
    ) -> None:
        self.model = model
        self.trunk = trunk
        self.rows: list[Row] = []
        self._hf = decoder_of(model)
        self._ends = model.eos_ids  # asked once: it is looked up for every row and token
        self._tails = Tails(trunk, slots)
        self._rests = Rests(self._hf, trunk)
        self._spend, self._watch = spend, watch

    @property
    def free(self) -> int:
        """Slots that nobody sits in."""
        return self._tails.slots - len(self.rows)

    def expect(self, rows: Sequence[Row]) -> None:
        """Say which rows will be seated, in their order, before the first of them is."""
        self._rests.expect([(row.prefix_length, row.rest) for row in rows if row.rest])

    def advance(self, fresh: Sequence[Row] = ()) -> list[Row]:
        """One more token for every row; seat ``fresh`` with their first token; return the rows that are done."""
        with over_trunk(self.model):
            self.step()
        self.seat(fresh)
        return self.leave()

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row; call it inside `over_trunk`."""
        if not self.rows:
            return
        hidden = self._step()
        going = [i for i, row in enumerate(self.rows) if row.finish is None]
        if going:  # rows that are only read need no logits
            mine = hidden if len(going) == len(self.rows) else hidden[going]
            self._append([self.rows[i] for i in going], logits_of(self._hf, mine))

    @torch.inference_mode()
    def seat(self, fresh: Sequence[Row]) -> None:
        """Let ``fresh`` join with their first token."""
        if fresh:
            seated = [self._seat(len(self.rows) + place, row) for place, row in enumerate(fresh)]
            self._append(fresh, logits_of(self._hf, torch.stack(seated)))
            self.rows += fresh

    @torch.inference_mode()
    def drop(self, row: Row) -> None:
        """Take a row out, wherever it is in its text."""
        self._free(self.rows.index(row))

    @torch.inference_mode()
    def leave(self) -> list[Row]:
        """Take out the rows that are done, and return them."""
        done = []
        for slot in reversed(range(len(self.rows))):
            row = self.rows[slot]
            read = row.finish is not None
            row.finish = row.finish or self._finished(row)
            if row.finish is not None and (read or not row.read_last):
                done.append(row)
                self._free(slot)
                self._spend(Cost(decoded=len(row.ids)))
        return done

    def _free(self, slot: int) -> None:
        last = self.rows.pop()
        if slot < len(self.rows):
            self.rows[slot] = last
            self._tails.move(len(self.rows), slot)

    def _seat(self, slot: int, row: Row) -> Float[Tensor, " d_model"]:
        """Return the hidden state behind a row's prefix."""
        if not row.rest:
            self._tails.lengths[slot] = 0
            self._spend(Cost(reused=row.prefix_length))
            return self.trunk.hidden[row.prefix_length - 1]
        rest, read = self._rests.take((row.prefix_length, row.rest))
        self._tails.load(slot, rest)
        self._spend(Cost(prefilled=read, reused=row.prefix_length))
        return rest.hidden

    def _step(self) -> Float[Tensor, "batch d_model"]:
        """Hidden states after reading each row's newest token."""
        tails, rows = self._tails, self.rows
        device = tails.lengths.device
        prefix = torch.tensor([row.prefix_length for row in rows], device=device)
        tails.step(prefix)
        tokens = torch.tensor([[row.ids[-1]] for row in rows], device=device)
        hidden = self._hf.get_decoder()(
            input_ids=tokens,
            position_ids=(prefix + tails.lengths[: len(rows)])[:, None],
            attention_mask=self._masks(),
            past_key_values=tails,
            use_cache=True,
            shared_prefix=tails,
        ).last_hidden_state
        tails.lengths[: len(rows)] += 1
        if self._watch is not None:
            self._watch(rows)
        read: Tensor = hidden[:, -1]
        return read

    def _masks(self) -> Tensor | dict[str, Tensor]:
        tails = self._tails
        config, dtype = self._hf.config.get_text_config(), self.trunk.hidden.dtype
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return decode_mask(tails, window, dtype)
        return {kind: decode_mask(tails, window if kind == "sliding_attention" else None, dtype) for kind in set(kinds)}

    def _append(self, rows: Sequence[Row], logits: Tensor) -> None:
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
                if token < 0 and row.banned < 0:
                    raise CutawayError("the model's numbers are no longer finite; are its edits too strong?")
                if token < 0:
                    raise CutawayError(
                        f"ban_first={row.banned}: nothing else can follow this prefix under {row.settings}; "
                        "the token has probability 1"
                    )
                row.ids.append(token)
                row.logprobs.append(logprob)

        self._note_tops(rows, logits)

    def _note_tops(self, rows: Sequence[Row], logits: Float[Tensor, "batch vocab"]) -> None:
        asked = [i for i, row in enumerate(rows) if row.top]
        if not asked:
            return
        width = min(max(rows[i].top for i in asked), logits.shape[-1])
        values, ids = logits[asked].float().log_softmax(-1).topk(width, dim=-1)
        for i, mine, names in zip(asked, values.tolist(), ids.tolist(), strict=True):
            rows[i].tops.append(tuple(zip(names, mine, strict=True))[: rows[i].top])

    def _finished(self, row: Row) -> Finish | None:
        if row.ids[-1] in self._ends:
            return "stop"
        if row.settings.stop:
            text = self.model.decode(row.ids)
            if any(mark in text for mark in row.settings.stop):
                return "stop"
        return "length" if len(row.ids) >= row.settings.max_tokens else None


@contextmanager
def over_trunk(model: "Model") -> Iterator[None]:
    """Let forwards inside the block attend over a trunk and the rows' own tails."""
    config = decoder_of(model).config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = SHARED_PREFIX
    try:
        yield
    finally:
        config._attn_implementation = before


def decoder_of(model: "Model") -> PreTrainedModel:
    """The causal LM itself: a PEFT model wraps the one whose decoder and head are called."""
    found: PreTrainedModel = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
    return found


def logits_of(hf: PreTrainedModel, hidden: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
    """What the head makes of hidden states."""
    logits: Tensor = hf.get_output_embeddings()(hidden)
    cap = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _kind(row: Row) -> tuple[float, float, int]:
    return row.settings.temperature, row.settings.top_p, row.settings.top_k
