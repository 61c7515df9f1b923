"""Data for training: rows of token ids, each with the weight that its loss carries, and the order they come in.

1. A chat is written by its own template. A turn's span in that text is what the template adds for it: from the end of
   the generation prompt to the end token that follows the answer. Spans are found by rendering, not by searching for
   role names, so a message that contains such names does no harm.
2. The text is tokenised once; a token carries the weight of the span in which it starts.
3. Nothing is packed or cut. Rows longer than the context are left out and counted (`Data.too_long`).
4. An epoch's order depends on the seed, the epoch and, with buckets, on the rows' lengths; on nothing else.

Source: note on the training core, sections 1 to 3.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Batch, Model

Chat = Sequence[Mapping[str, Any]]
"""Messages with ``role`` and ``content``; a ``weight`` in a message replaces the 1.0 of its role."""
UNLABELLED = -100
_STAND_IN = "cutaway7f3a"
"""Put where a message's content stands, to see what the template writes around it."""


@dataclass(frozen=True)
class Row:
    """Token ids and, for each, how much its prediction counts. The first token is never predicted."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    labels: tuple[int, ...] | None = None
    """A class for each token, `UNLABELLED` for none; for `Tagging`."""
    reward: float = 1.0
    """For `RewardWeighted`."""

    def __post_init__(self) -> None:
        if len(self.ids) < 2:
            raise UsageError(f"a row of {len(self.ids)} tokens: training predicts the next token, so 2 or more")
        if len(self.weights) != len(self.ids) or (self.labels is not None and len(self.labels) != len(self.ids)):
            raise UsageError(f"a row of {len(self.ids)} tokens needs as many weights, and as many labels where given")
        if not all(0 <= weight <= 1 for weight in self.weights):
            raise UsageError("weights: between 0 and 1")
        if not any(self.weights[1:]) and not any(label != UNLABELLED for label in self.labels or ()):
            raise UsageError("a row in which no token carries loss; leave it out")


@dataclass(frozen=True, repr=False)
class Data:
    """Examples to train on: one row each, or a chosen and a rejected row for `DPO`."""

    examples: tuple[tuple[Row, ...], ...]
    context: int
    """The longest row that was allowed, in tokens."""
    too_long: tuple[int, ...] = ()
    """Places, in what was given, of examples longer than ``context``: left out, never cut."""

    def __repr__(self) -> str:
        return f"Data({len(self)} examples, {self.tokens:,} tokens, {len(self.too_long)} too long and left out)"

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def members(self) -> int:
        """Rows in an example."""
        return len(self.examples[0])

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for example in self.examples for row in example)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all examples, in order."""
        total = hashlib.sha256()
        for example in self.examples:
            total.update(json.dumps([[r.ids, r.weights, r.labels, r.reward] for r in example]).encode())
        return total.hexdigest()


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch: the first member of every example, then the second."""

    tokens: Batch
    weights: Float[Tensor, "batch pos"]
    """Zero at the first token and at padding."""
    labels: Int[Tensor, "batch pos"] | None
    rewards: Float[Tensor, " batch"]
    examples: tuple[int, ...]
    """Places in the data."""


@dataclass(frozen=True)
class Span:
    """Characters of a rendered chat that carry loss."""

    start: int
    end: int
    weight: float


def chat_data(chats: Sequence[Chat], tokenizer: Any, *, context: int, roles: Sequence[str] = ("assistant",)) -> Data:
    """Return ``chats`` as data in which the turns of ``roles``, with their end tokens, carry loss.

    >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    >>> chat_data([chat], tokenizer, context=2048)  # doctest: +SKIP
    Data(1 examples, 34 tokens, 0 too long and left out)

    Raises UsageError for no chats, a chat without a turn of ``roles``, a template that cannot be followed.
    """
    check_chats(chats, roles)
    return data_of([(chat_row(chat, tokenizer, roles),) for chat in chats], context=context)


def pair_data(chosen: Sequence[Chat], rejected: Sequence[Chat], tokenizer: Any, *, context: int) -> Data:
    """Return pairs of chats for `DPO`; the assistant's turns count. UsageError as `chat_data`."""
    if len(chosen) != len(rejected):
        raise UsageError(f"{len(chosen)} chosen chats and {len(rejected)} rejected ones; give one for each")
    check_chats([*chosen, *rejected])
    pairs = [(chat_row(a, tokenizer), chat_row(b, tokenizer)) for a, b in zip(chosen, rejected, strict=True)]
    return data_of(pairs, context=context)


def text_data(texts: Sequence[str], tokenizer: Any, *, context: int, end: bool = True) -> Data:
    """Return plain texts as data in which every token carries loss; ``end`` adds the end token."""
    rows = []
    for place, text in enumerate(texts):
        ids = list(tokenizer(text)["input_ids"]) + ([tokenizer.eos_token_id] if end else [])
        if len(ids) < 2:
            raise UsageError(f"text {place} has {len(ids)} tokens; 2 or more, or leave it out")
        rows.append((Row(tuple(ids), (1.0,) * len(ids)),))
    return data_of(rows, context=context)


def data_of(examples: Sequence[Sequence[Row]], *, context: int) -> Data:
    """Return examples of rows as data; those with a row longer than ``context`` are left out and counted.

    Raises UsageError where there are none, none fits, or some have more rows than others.
    """
    if not examples:
        raise UsageError("no data; give at least one example")
    if len({len(example) for example in examples}) != 1 or not examples[0]:
        raise UsageError("every example needs as many rows as the others, at least one")
    longest = [max(len(row.ids) for row in example) for example in examples]
    kept = tuple(tuple(example) for example, length in zip(examples, longest, strict=True) if length <= context)
    if not kept:
        raise UsageError(f"all {len(examples)} examples are longer than the context of {context} tokens; split them")
    return Data(kept, context, tuple(place for place, length in enumerate(longest) if length > context))


def check_chats(chats: Sequence[Chat], roles: Sequence[str] = ("assistant",)) -> None:
    """Raise UsageError for chats that cannot be trained on; needs neither tokenizer nor model."""
    if not chats:
        raise UsageError("no chats; give at least one")
    for place, chat in enumerate(chats):
        for message in chat:
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise UsageError(f"chat {place}: each message needs a role and a content, both text")
        if not any(message["role"] in roles for message in chat):
            raise UsageError(f"chat {place} has no turn of {' or '.join(roles)}: nothing in it would be learnt")


def chat_row(chat: Chat, tokenizer: Any, roles: Sequence[str] = ("assistant",)) -> Row:
    """Return one chat as a row; see `chat_data`."""
    text, spans = chat_spans(chat, tokenizer, roles)
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError("the tokenizer gives no character offsets; use a fast tokenizer (tokenizer.json)")
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    weights = [0.0] * len(coded["input_ids"])
    before = 0
    for place, (start, end) in enumerate(coded["offset_mapping"]):
        # Byte-level tokenizers may trim blanks off, down to nothing; such a token starts where the last ended.
        at = start if start < end else before
        weights[place] = next((span.weight for span in spans if span.start <= at < span.end), 0.0)
        before = end
    return Row(tuple(coded["input_ids"]), tuple(weights))


def chat_spans(chat: Chat, tokenizer: Any, roles: Sequence[str] = ("assistant",)) -> tuple[str, list[Span]]:
    """Return the text a chat template writes for ``chat``, and the spans of ``roles`` in it."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("the tokenizer has no chat template; use text_data, or give it one")
    full = _render(tokenizer, chat)
    spans = []
    for place, message in enumerate(chat):
        if message["role"] not in roles:
            continue
        upto = _render(tokenizer, chat[: place + 1])
        answers = message["role"] == "assistant"
        before = _render(tokenizer, chat[:place], prompt=answers) if place or answers else ""
        around = _render(tokenizer, [*chat[:place], {**message, "content": _STAND_IN}])
        if not (full.startswith(upto) and upto.startswith(before) and around.startswith(before)):
            raise UsageError(
                f"message {place}: the chat template writes this turn differently once others follow or stand in"
                " front; give each assistant turn as a chat of its own, up to that turn"
            )
        ahead, _, behind = around[len(before) :].rpartition(_STAND_IN)
        start = len(before) if answers else len(before) + len(ahead)
        end = len(upto) - len(behind)
        if stop := _end_token(tokenizer).match(behind):
            end += stop.end()
        spans.append(Span(start, end, float(message.get("weight", 1.0))))
    return full, spans


def _render(tokenizer: Any, chat: Chat, *, prompt: bool = False) -> str:
    from jinja2 import TemplateError

    messages = [{key: value for key, value in message.items() if key != "weight"} for message in chat]
    if not messages:
        raise UsageError("a chat that starts with the assistant: templates write no prompt for it; add a user turn")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:
        raise UsageError(f"the chat template refuses this chat: {error}") from error


def _end_token(tokenizer: Any) -> re.Pattern[str]:
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    names = sorted(filter(None, special), key=len, reverse=True)
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, names)) + ")" if names else r"(?!)")


def order(data: Data, *, size: int, seed: int, epoch: int, bucket: int = 1, shuffle: bool = True) -> list[list[int]]:
    """Return one epoch as micro-batches of places in ``data``; the last may be smaller.

    Rows are shuffled, then sorted by length within each ``bucket`` batches, whose order is shuffled again. With
    ``bucket=1`` the order does not depend on the rows' lengths.
    """
    rng = np.random.default_rng((seed, epoch))
    places = rng.permutation(len(data)) if shuffle else np.arange(len(data))
    lengths = np.array([max(len(row.ids) for row in example) for example in data.examples])
    if bucket > 1:
        pools = np.split(places, range(size * bucket, len(places), size * bucket))
        places = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    ends = [*range(0, len(places), size), len(places)]
    batches = [places[a:b].tolist() for a, b in pairwise(ends)]
    if bucket > 1 and shuffle:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def collate(data: Data, places: Sequence[int], model: Model) -> TrainBatch:
    """Return the examples at ``places``, padded, on the model's device; UsageError for ids outside its vocabulary."""
    rows = [data.examples[place][member] for member in range(data.members) for place in places]
    tokens = model.batch([list(row.ids) for row in rows])
    width = tokens.ids.shape[1]
    weights = torch.tensor([(0.0, *row.weights[1:], *[0.0] * (width - len(row.ids))) for row in rows])
    labels = None
    if all(row.labels is not None for row in rows):
        labels = torch.tensor([(*(r.labels or ()), *[UNLABELLED] * (width - len(r.ids))) for r in rows])
        labels = labels.to(model.device)
    rewards = torch.tensor([row.reward for row in rows], dtype=torch.float32, device=model.device)
    return TrainBatch(tokens, weights.to(model.device), labels, rewards, tuple(places))
