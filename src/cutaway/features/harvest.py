"""Activations out of text: one forward pass feeds any number of sites and of dictionaries in training.

1. `contexts` cuts documents into windows of tokens, the model's start tokens in front of each.
2. `stream` runs the model over them, no further than the last layer asked for, and yields rows: padding and special
   tokens are left out before anything is stored. Windows are sorted by length within groups of a fixed size, so the
   order of rows does not depend on the batch size.
3. `mixed` keeps a pool of rows and emits a random half whenever it is full: neighbours of one text are pulled apart
   in bounded memory (twice the pool).
4. `train_all` feeds several dictionaries from one stream; `harvest` writes it to disk, one shard a group, and goes on
   where it was stopped.

Sources: peers page of dictionaries, sections 3 and 4.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.corpus import Corpus
from cutaway.features.dictionary import Provenance
from cutaway.features.train import Step, TrainConfig, Trained, Trainer
from cutaway.model import Model
from cutaway.model.sites import expand

GROUP = 128
"""Windows that are sorted together; a shard of a harvest holds one group."""
_ABOUT = "harvest.json"


@dataclass(frozen=True)
class Context:
    """One window of a document."""

    document: int
    """Which of the corpus, from 0."""
    start: int
    """Of its first token of text, counted in the document's tokens."""
    ids: tuple[int, ...]
    """Start tokens and text."""
    ends: tuple[int, ...] = ()
    """Where each token ends, in characters of the document; -1 at start tokens; empty where the tokenizer knows not."""


@dataclass(frozen=True)
class Rows:
    """Activations at tokens of text, in reading order, with where each comes from."""

    values: dict[str, Float[Tensor, "row d"]]
    """By site."""
    context: Int[Tensor, " row"]
    """Index into ``contexts``."""
    position: Int[Tensor, " row"]
    """In the context's ids."""
    contexts: tuple[Context, ...]

    def __len__(self) -> int:
        return len(self.context)

    def __repr__(self) -> str:
        return f"Rows({len(self)} rows, {len(self.values)} sites, {len(self.contexts)} contexts)"

    @property
    def documents(self) -> Int[Tensor, " row"]:
        """Which document each row comes from."""
        return torch.tensor([each.document for each in self.contexts], dtype=torch.long)[self.context]

    @property
    def tokens(self) -> Int[Tensor, " row"]:
        """The token id at each row."""
        pairs = zip(self.context.tolist(), self.position.tolist(), strict=True)
        return torch.tensor([self.contexts[i].ids[at] for i, at in pairs], dtype=torch.long)

    def first(self, n: int) -> "Rows":
        """Return the first ``n`` rows."""
        values = {site: each[:n] for site, each in self.values.items()}
        return Rows(values, self.context[:n], self.position[:n], self.contexts)


def contexts(model: Model, corpus: Corpus, length: int = 128) -> Iterator[Context]:
    """Yield every document's tokens in windows of ``length``, start tokens included."""
    begin = tuple(model.encode("", special=True))
    size = length - len(begin)
    if size < 1 or length > model.n_ctx:
        raise UsageError(f"length={length}: {len(begin) + 1} to {model.n_ctx}, what {model.name} can read")
    for number, text in enumerate(corpus):
        ids, ends = _tokens(model, text)
        for start in range(0, len(ids), size):
            window = tuple(ids[start : start + size])
            places = (-1,) * len(begin) + tuple(ends[start : start + size]) if ends else ()
            yield Context(number, start, begin + window, places)


def stream(
    model: Model,
    corpus: Corpus,
    sites: str | Sequence[str],
    *,
    tokens: int | None = None,
    length: int = 128,
    batch: int = 16,
    special: bool = False,
    skip: int = 0,
) -> Iterator[Rows]:
    """Yield the activations of ``sites`` over ``corpus``, one `Rows` for each batch of windows.

    ``tokens`` ends it after so many rows, ``skip`` leaves out as many groups of windows at the start. Heads of one
    position (q, k, v, z) stand side by side in a row. UsageError for a site with two position axes or no row each.
    """
    names = site_names(model, sites)
    if batch < 1:
        raise UsageError(f"batch={batch}: 1 or more windows")
    left = tokens
    for group in groups(contexts(model, corpus, length), skip):
        for start in range(0, len(group), batch):
            rows = activations(model, group[start : start + batch], names, special=special)
            rows = rows if left is None else rows.first(left)
            yield rows
            left = None if left is None else left - len(rows)
            if left is not None and left <= 0:
                return


def groups(windows: Iterable[Context], skip: int = 0) -> Iterator[list[Context]]:
    """Yield windows in groups, longest first within each; ``skip`` passes over the first groups."""
    source = islice(windows, skip * GROUP, None)
    while group := list(islice(source, GROUP)):
        yield sorted(group, key=lambda context: -len(context.ids))


@torch.no_grad()
def activations(model: Model, windows: Sequence[Context], sites: Sequence[str], *, special: bool = False) -> Rows:
    """Return the rows of one batch of windows from one forward."""
    found = model.capture(model.batch([window.ids for window in windows]), sites, special=special)
    where = found.mask.nonzero().cpu()
    values = {site: found.flat(site).flatten(1).cpu() for site in sites}
    return Rows(values, where[:, 0], found.positions.cpu()[where[:, 0], where[:, 1]], tuple(windows))


def site_names(model: Model, sites: str | Sequence[str]) -> list[str]:
    """Return the canonical names of ``sites``, wildcards expanded; UsageError for patterns, which are no rows."""
    found = [site for each in expand(sites, model.layout).values() for site in each]
    if bad := [str(site) for site in found if site.kind == "pattern"]:
        raise UsageError(f"site {bad[0]!r}: an attention pattern has no row at each token")
    return list(dict.fromkeys(map(str, found)))


def mixed(
    rows: Iterable[Rows | Mapping[str, Tensor]], capacity: int = 200_000, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield the same rows in random order, sites in step with each other.

    ``capacity`` rows are kept; when they are full a random half goes out, and the rest at the end. Every row comes
    out once.
    """
    if capacity < 2:
        raise UsageError(f"capacity={capacity}: 2 or more rows")
    generator = torch.Generator().manual_seed(seed)
    pool: dict[str, Tensor] = {}
    held = 0
    for chunk in rows:
        values = chunk.values if isinstance(chunk, Rows) else chunk
        if not pool:
            pool = {site: torch.empty(capacity, each.shape[1], dtype=each.dtype) for site, each in values.items()}
        if values.keys() != pool.keys():
            raise UsageError(f"sites {sorted(values)} after {sorted(pool)}: every chunk needs the same")
        n, at = len(next(iter(values.values()))), 0
        while at < n:
            taken = min(capacity - held, n - at)
            for site, each in values.items():
                pool[site][held : held + taken] = each[at : at + taken]
            held, at = held + taken, at + taken
            if held == capacity:
                order = torch.randperm(capacity, generator=generator)
                half = capacity // 2
                yield {site: each[order[:half]] for site, each in pool.items()}
                for each in pool.values():
                    each[: capacity - half] = each[order[half:]]
                held = capacity - half
    if held:
        order = torch.randperm(held, generator=generator)
        yield {site: each[order] for site, each in pool.items()}


@dataclass(frozen=True)
class Job:
    """One dictionary to train: where it reads and how."""

    site: str
    config: TrainConfig
    target: str = ""
    """Where a transcoder writes; empty for other dictionaries."""


def train_all(
    rows: Iterable[Rows | Mapping[str, Tensor]],
    jobs: Mapping[str, Job],
    *,
    provenance: Mapping[str, Provenance] | None = None,
    tick: Callable[[str, Step], None] = lambda name, step: None,
) -> dict[str, Trained]:
    """Train every job on the same rows (mix them first); Ctrl-C returns what was learnt so far.

    ``provenance`` by site, as `provenance_of` makes it. UsageError where rows end before a job's first batch.
    """
    if not jobs:
        raise UsageError("no job; name at least one dictionary to train")
    feeds = {name: _Feed(job) for name, job in jobs.items()}
    complete = True
    try:
        for chunk in rows:
            values = chunk.values if isinstance(chunk, Rows) else chunk
            for name, feed in feeds.items():
                for step in feed.push(values):
                    tick(name, step)
            if all(feed.done for feed in feeds.values()):
                break
    except KeyboardInterrupt:
        complete = False
    return {
        name: feed.finish(name, (provenance or {}).get(feed.job.site, Provenance(site=feed.job.site)), complete)
        for name, feed in feeds.items()
    }


class _Feed:
    """Chunks of any length in, steps of one trainer out."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.trainer: Trainer | None = None
        self.history: list[Step] = []
        self._left: list[Tensor] = []
        self._held = 0

    @property
    def done(self) -> bool:
        return self.job.config.steps is not None and len(self.history) >= self.job.config.steps

    def push(self, values: Mapping[str, Tensor]) -> Iterator[Step]:
        size, job = self.job.config.batch, self.job
        read = values[job.site].float()
        width = read.shape[1]
        self._left.append(torch.cat([read, values[job.target].float()], 1) if job.target else read)
        self._held += len(read)
        while self._held >= size and not self.done:
            joined = torch.cat(self._left)
            x, y = joined[:size, :width], joined[:size, width:] if job.target else None
            self.trainer = self.trainer or Trainer(x, job.config, y)
            self.history.append(self.trainer.step(x, y))
            yield self.history[-1]
            self._left, self._held = [joined[size:]], self._held - size

    def finish(self, name: str, about: Provenance, complete: bool) -> Trained:
        if self.trainer is None or not self.history:
            raise UsageError(f"job {name!r}: fewer rows than one batch of {self.job.config.batch}")
        settings = {key: "auto" if value is None else value for key, value in asdict(self.job.config).items()}
        about = replace(about, target=self.job.target, tokens=self.trainer.rows, settings=settings)
        return Trained(self.trainer.finish(about), tuple(self.history), complete)


@dataclass(frozen=True)
class Harvest:
    """Rows on disk: ``harvest.json`` and one safetensors shard for each group of windows."""

    folder: Path
    about: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Harvest({self.tokens:,} rows, {len(self.about['sites'])} sites, {len(self.about['shards'])} shards)"

    @property
    def tokens(self) -> int:
        """Rows stored."""
        return sum(shard["rows"] for shard in self.about["shards"])

    @property
    def complete(self) -> bool:
        """Whether it has the rows asked for, or all that the corpus gives."""
        return bool(self.about["complete"])

    def rows(self, sites: Sequence[str] | None = None, *, order: Sequence[int] | None = None) -> Iterator[Rows]:
        """Yield the shards, as `stream` gave them but one group each; ``order`` shuffles or picks shards."""
        names = list(self.about["sites"]) if sites is None else list(sites)
        for name in names:
            if name not in self.about["sites"]:
                raise UsageError(f"site {name!r} was not harvested{nearest(name, self.about['sites'])}")
        for number in range(len(self.about["shards"])) if order is None else order:
            yield _load_shard(self.folder / self.about["shards"][number]["file"], names)

    def provenance(self, site: str) -> Provenance:
        """Return what a dictionary trained on these rows has to say about them."""
        about = self.about
        return Provenance(
            about["model"], about["fingerprint"], site, data=about["data"], tokens=self.tokens, special=about["special"]
        )


def harvest(
    model: Model,
    corpus: Corpus,
    sites: str | Sequence[str],
    folder: str | Path,
    *,
    tokens: int | None = None,
    length: int = 128,
    batch: int = 16,
    special: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tick: Callable[[int], None] = lambda rows: None,
) -> Harvest:
    """Write activations to ``folder``, at least ``tokens`` of them (None: the whole corpus), in whole groups.

    A folder with a harvest of the same model, text, sites and settings is continued; of others it is an error.
    CutawayError for values that are not finite, or are not in ``dtype``: nothing of their group is written.
    Killed at any moment, the shards named in ``harvest.json`` are whole. Ctrl-C returns what is there.
    """
    folder = Path(folder)
    names = site_names(model, sites)
    identity = {
        "schema": 1,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "data": corpus.digest,
        "sites": names,
        "length": length,
        "group": GROUP,
        "special": special,
        "dtype": dtype,
    }
    about: dict[str, Any] = {**identity, "shards": [], "complete": False}
    if (folder / _ABOUT).exists():
        about = dict(open_harvest(folder).about)
        if differ := [key for key, value in identity.items() if about.get(key) != value]:
            key = differ[0]
            raise UsageError(f"{folder} holds a harvest with {key}={about.get(key)!r}, not {identity[key]!r}")
    folder.mkdir(parents=True, exist_ok=True)
    about["complete"] = False
    try:
        for group in groups(contexts(model, corpus, length), len(about["shards"])):
            stored = sum(shard["rows"] for shard in about["shards"])
            if tokens is not None and stored >= tokens:
                break
            parts: list[Rows] = []
            for i in range(0, len(group), batch):
                parts.append(activations(model, group[i : i + batch], names, special=special))
                if i + batch < len(group):
                    tick(stored + sum(map(len, parts)))
            file = f"{len(about['shards']):05d}.safetensors"
            _save_shard(folder / file, parts, getattr(torch, dtype))
            about["shards"].append({"file": file, "rows": sum(map(len, parts))})
            _write_about(folder, about)
            tick(stored + sum(map(len, parts)))
        about["complete"] = True
    except KeyboardInterrupt:
        pass
    _write_about(folder, about)
    return Harvest(folder, about)


def open_harvest(folder: str | Path) -> Harvest:
    """Open what `harvest` wrote; CutawayError where there is none or it is damaged."""
    try:
        about = json.loads((Path(folder) / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CutawayError(f"{folder} holds no harvest: {error}") from error
    return Harvest(Path(folder), about)


def _write_about(folder: Path, about: Mapping[str, Any]) -> None:
    draft = folder / f"{_ABOUT}.draft"
    draft.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / _ABOUT)


def _save_shard(path: Path, parts: Sequence[Rows], dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    windows = [window for part in parts for window in part.contexts]
    width = max(len(window.ids) for window in windows)

    def padded(lists: Iterable[Sequence[int]]) -> Tensor:
        return torch.tensor([[*each, *[-2] * (width - len(each))] for each in lists], dtype=torch.int32)

    offsets = torch.tensor([0, *[len(part.contexts) for part in parts]]).cumsum(0)
    tensors = {
        "document": torch.tensor([window.document for window in windows]),
        "start": torch.tensor([window.start for window in windows]),
        "ids": padded(window.ids for window in windows),
        "ends": padded(window.ends for window in windows),
        "context": torch.cat([part.context + offset for part, offset in zip(parts, offsets[:-1], strict=True)]),
        "position": torch.cat([part.position for part in parts]),
    }
    for site in parts[0].values:
        values = torch.cat([part.values[site] for part in parts]).to(dtype)
        if not bool(torch.isfinite(values).all()):
            raise CutawayError(f"{site}: activations contain NaN or infinity as {dtype}; nothing of this group is kept")
        tensors[f"site:{site}"] = values
    draft = path.with_suffix(".draft")
    save_file(tensors, draft)
    draft.replace(path)


def _load_shard(path: Path, sites: Sequence[str]) -> Rows:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {
                name: file.get_tensor(name) for name in ("document", "start", "ids", "ends", "context", "position")
            }
            values = {site: file.get_tensor(f"site:{site}").float() for site in sites}
    except (OSError, SafetensorError) as error:
        raise CutawayError(f"{path} is damaged: {error}") from error
    lists = zip(*(found[name].tolist() for name in ("document", "start", "ids", "ends")), strict=True)
    windows = (
        Context(document, start, *(tuple(each for each in some if each != -2) for some in (ids, ends)))
        for document, start, ids, ends in lists
    )
    return Rows(values, found["context"], found["position"], tuple(windows))


def provenance_of(model: Model, corpus: Corpus, site: str, *, tokens: int = 0, special: bool = False) -> Provenance:
    """Return what is known about rows before anything is trained on them."""
    return Provenance(model.name, model.fingerprint, site, data=corpus.digest, tokens=tokens, special=special)


def _tokens(model: Model, text: str) -> tuple[list[int], list[int]]:
    """Return the ids of a document and where each ends, in characters (empty from a slow tokenizer)."""
    if model.tokenizer is None or not getattr(model.tokenizer, "is_fast", False):
        return model.encode(text), []
    # A document longer than the model can read is cut into windows afterwards, so its length is no warning.
    found = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
