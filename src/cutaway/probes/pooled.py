"""Activations of texts for probes: pooled or token by token, from few and well filled forwards, kept on disk.

1. `token_rows` turns texts, chats or token ids into ids; the same ids are read once.
2. `buckets` deals rows of like length into batches of at most ``tokens`` tokens, padding included.
3. Each batch is one forward up to the last site needed. Values at padding and at special tokens never enter a pool.
4. With a folder, every batch is a safetensors shard, put in place whole: a run that was stopped goes on behind its
   last batch. A value is known again by weights, token ids, site and pooling (the card's text hash, made stricter:
   another tokenizer or template is another text).

Source: card tpc (2509.26238), sections Method and Beyond the paper; the trap avoided is padding all texts to the
longest one.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.model import Model
from cutaway.model.sites import expand

Pooling = Literal["mean", "last", "max", "tokens"]
Chat = Sequence[Mapping[str, str]]
Text = str | Chat | Sequence[int]

TOKENS = 8192
"""Tokens in one forward, padding included."""
_NARROW, _FULL = 0.75, 8
"""A batch that holds 1/_FULL of its tokens is closed by a row shorter than _NARROW of its longest."""
_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Pooled:
    """Activations of ``n`` texts, in their order; ``at[site, pooling]`` are one row a text (or one a token)."""

    values: dict[tuple[str, str], tuple[Float[Tensor, "_ _"], ...]] = field(repr=False)
    """By (site, pooling) and text: [1 d], or [token d] for ``tokens``."""
    lengths: tuple[int, ...]
    """Token ids of each text that were read, special tokens included."""
    cut: int
    """Texts that were longer than allowed and lost their end."""
    computed: int
    """Different texts that went through the model; the others came from the folder."""

    def __getitem__(self, key: tuple[str, str]) -> Float[Tensor, "text d"]:
        """Pooled values of all texts, one row each; for ``tokens`` all tokens one below the other."""
        if key not in self.values:
            raise KeyError(f"{key} was not asked for; there are {sorted(self.values)}")
        return torch.cat(self.values[key])

    def tokens(self, site: str) -> tuple[Float[Tensor, "token d"], ...]:
        """The values at each token of each text."""
        if (site, "tokens") not in self.values:
            raise KeyError(f"{site!r} was not asked for with pooling 'tokens'")
        return self.values[site, "tokens"]

    def __repr__(self) -> str:
        return f"Pooled({len(self.lengths)} texts, {sorted(self.values)}, {self.computed} computed, {self.cut} cut)"


def activations(
    model: Model,
    texts: Sequence[Text],
    sites: str | Sequence[str],
    pooling: Pooling | Sequence[Pooling] = "mean",
    *,
    chat: bool = False,
    longest: int = 2048,
    special: bool = False,
    tokens: int = TOKENS,
    folder: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Pooled:
    """Return activations of ``texts`` at ``sites``, in fp32 on the CPU; heads of q, k, v, z stand side by side.

    ``chat`` puts each plain text into the model's chat template as one user turn, without an answer's start.
    ``longest`` cuts the end of a text, ``special`` lets special tokens into the pools. ``folder`` keeps what was
    read. UsageError for a text without a token to pool, an unknown pooling, or a site with two position axes.
    """
    names, pools = _sites(model, sites), _poolings(pooling)
    if longest < 1 or tokens < 1:
        raise UsageError(f"longest={longest}, tokens={tokens}: 1 or more of each")
    full = token_rows(model, texts, chat=chat)
    rows = [ids[: min(longest, model.n_ctx)] for ids in full]
    _check_rows(rows, frozenset() if special else model.special_ids)
    keys = [_key(ids, special) for ids in rows]
    wanted = [(site, pool) for site in names for pool in pools]
    store = None if folder is None else _Store(folder / model.fingerprint[:32])
    known = {} if store is None else store.read(set(keys), wanted)
    missing = {key: ids for key, ids in zip(keys, rows, strict=True) if key not in known}
    done = 0
    for batch in buckets(missing, tokens):
        new = _read(model, [missing[key] for key in batch], wanted, special)
        if store is not None:
            store.write(batch, new)
        known |= {key: {want: each[i] for want, each in new.items()} for i, key in enumerate(batch)}
        done += len(batch)
        report(done, len(missing))
    values = {want: tuple(known[key][want] for key in keys) for want in wanted}
    cut = sum(len(short) < len(ids) for short, ids in zip(rows, full, strict=True))
    return Pooled(values, tuple(map(len, rows)), cut, len(missing))


def token_rows(model: Model, texts: Sequence[Text], *, chat: bool = False) -> list[list[int]]:
    """Return the token ids of each text, chat (a list of role and content) or row of ids."""
    if isinstance(texts, str) or not texts:
        raise UsageError("give a list with at least one text")
    out = []
    for number, text in enumerate(texts):
        if isinstance(text, str) and not chat:
            ids = model.encode(text, special=True)
        elif isinstance(text, str):
            ids = _chat_ids(model, [{"role": "user", "content": text}])
        elif text and isinstance(text[0], Mapping):
            ids = _chat_ids(model, cast(Chat, text))
        else:
            ids = list(cast(Sequence[int], text))
        if not ids:
            raise UsageError(f"text {number} is empty")
        out.append(ids)
    return out


def buckets(rows: Mapping[str, Sequence[int]], tokens: int = TOKENS) -> Iterator[list[str]]:
    """Yield the keys of ``rows`` in batches, longest first, each of at most ``tokens`` tokens with its padding."""
    batch: list[str] = []
    for key in sorted(rows, key=lambda key: (-len(rows[key]), key)):
        if batch:
            width = len(rows[batch[0]])
            narrow = len(rows[key]) < _NARROW * width and len(batch) * width * _FULL >= tokens
            if narrow or (len(batch) + 1) * width > tokens:
                yield batch
                batch = []
        batch.append(key)
    if batch:
        yield batch


def running(values: Float[Tensor, "token d"], pooling: Pooling) -> Float[Tensor, "token d"]:
    """Return the pool of the tokens up to each one: what a monitor sees while the text is being written."""
    if pooling == "mean":
        counts = torch.arange(1, len(values) + 1, dtype=torch.float64)[:, None]
        return (values.double().cumsum(0) / counts).to(values.dtype)
    if pooling == "max":
        return values.cummax(0).values
    if pooling == "last":
        return values
    raise UsageError(f"pooling={pooling!r}: mean, last or max")


@torch.no_grad()
def _read(
    model: Model, rows: Sequence[Sequence[int]], wanted: Sequence[tuple[str, str]], special: bool
) -> dict[tuple[str, str], list[Tensor]]:
    """One forward; for each (site, pooling) one tensor a row."""
    found = model.capture([list(ids) for ids in rows], list(dict.fromkeys(s for s, _ in wanted)), special=special)
    flat = {site: found[site].flatten(2).float() for site in dict.fromkeys(s for s, _ in wanted)}
    return {(site, pool): _pool(flat[site], found.mask, pool) for site, pool in wanted}


def _pool(values: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"], pooling: str) -> list[Tensor]:
    if pooling == "tokens":
        return [row[inside].cpu() for row, inside in zip(values, mask, strict=True)]
    if pooling == "mean":
        kept = torch.where(mask[..., None], values, 0.0)
        out = kept.sum(1, dtype=torch.float64) / mask.sum(1, keepdim=True)
    elif pooling == "max":
        out = values.masked_fill(~mask[..., None], -torch.inf).amax(1)
    else:
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, columns, -1).amax(1)
        out = values[torch.arange(len(values), device=mask.device), last]
    return list(out.float().cpu().split(1))


class _Store:
    """Shards of one model's activations: for each (site, pooling) the rows one below the other, with their counts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def read(
        self, keys: set[str], wanted: Sequence[tuple[str, str]]
    ) -> dict[str, dict[tuple[str, str], Float[Tensor, "rows d"]]]:
        """The keys for which every wanted value is there."""
        found: dict[str, dict[tuple[str, str], Tensor]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as shard:
                    about = json.loads((shard.metadata() or {}).get("about", "{}"))
                    inside = [(i, key) for i, key in enumerate(about["keys"]) if key in keys]
                    for name, counts in about["counts"].items() if inside else ():
                        want = tuple(name.split(" "))
                        if want not in wanted:
                            continue
                        rows, ends = shard.get_slice(name), torch.tensor(counts).cumsum(0).tolist()
                        for i, key in inside:
                            found.setdefault(key, {})[want] = rows[ends[i] - counts[i] : ends[i]]
            except (SafetensorError, KeyError, json.JSONDecodeError) as error:
                raise CutawayError(f"{path.name} is no shard of activations ({error}); delete it") from None
        return {key: each for key, each in found.items() if len(each) == len(set(wanted))}

    def write(self, keys: Sequence[str], values: Mapping[tuple[str, str], Sequence[Tensor]]) -> None:
        """Put one batch on disk, whole or not at all."""
        tensors = {" ".join(want): torch.cat(list(rows)).contiguous() for want, rows in values.items()}
        counts = {" ".join(want): [len(row) for row in rows] for want, rows in values.items()}
        about = json.dumps({"keys": list(keys), "counts": counts})
        name = hashlib.sha256(about.encode()).hexdigest()[:32]
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, temporary, {"about": about})
            Path(temporary).replace(self.folder / f"{name}.safetensors")
        finally:
            Path(temporary).unlink(missing_ok=True)


def _sites(model: Model, sites: str | Sequence[str]) -> list[str]:
    found = [site for each in expand(sites, model.layout).values() for site in each]
    if bad := [str(site) for site in found if site.kind == "pattern"]:
        raise UsageError(f"site {bad[0]!r}: an attention pattern has no row at each token")
    return list(dict.fromkeys(map(str, found)))


def _poolings(pooling: Pooling | Sequence[Pooling]) -> list[str]:
    given = [pooling] if isinstance(pooling, str) else list(pooling)
    for each in given:
        if each not in get_args(Pooling):
            raise UsageError(f"pooling={each!r}{nearest(each, get_args(Pooling))}")
    if not given:
        raise UsageError("no pooling given; name mean, last, max or tokens")
    return list(dict.fromkeys(given))


def _chat_ids(model: Model, messages: Chat) -> list[int]:
    if model.tokenizer is None or model.tokenizer.chat_template is None:
        raise UsageError(f"model {model.name!r} has no chat template; pass plain texts")
    turns = [dict(message) for message in messages]
    return list(model.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))


def _check_rows(rows: Sequence[Sequence[int]], skipped: frozenset[int]) -> None:
    for number, ids in enumerate(rows):
        if skipped.issuperset(ids):
            raise UsageError(f"text {number} has no token to pool: all {len(ids)} are special")


def _key(ids: Sequence[int], special: bool) -> str:
    text = f"{_VERSION} {special} {','.join(map(str, ids))}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
