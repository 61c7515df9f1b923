"""Fill a feature index from a model and a text, in one pass.

1. The logit effect of every unit is computed from the weights.
2. Texts are cut into windows and read in groups; one forward feeds all sources: the neurons of any layers and the
   latents of any dictionaries (`cutaway.features.index.collect` says what is kept).
3. Every minute what is kept goes to ``filling.safetensors``, together with the number of groups read. A later call
   with the same arguments goes on there: no text is read twice, and the index is that of an uninterrupted pass.
4. The inverted index is built, and the whole is written as one.

Memory: the lists ((top + samples) * window * 4 bytes a unit), one batch's activations of all sites, and the model.
Ctrl-C leaves an index of what was saved last (``complete`` is false), and the same call goes on.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.features.corpus import Corpus
from cutaway.features.dictionary import Dictionary
from cutaway.features.harvest import GROUP, Context, contexts, groups
from cutaway.features.index import effect
from cutaway.features.index.collect import BARS, EDGES, Collector, TextRows
from cutaway.features.index.notes import pack
from cutaway.features.index.readers import Reader, plan_readers
from cutaway.features.index.store import FILLING, HEADER, FeatureIndex, make_postings, open_index, write_index
from cutaway.features.index.tensors import offsets
from cutaway.features.index.vocabulary import token_bytes, vocabulary_of
from cutaway.model import Model


@dataclass(frozen=True)
class FillConfig:
    """What is kept of a pass."""

    tokens: int = 200_000
    """Tokens of text, at least: whole groups of windows are read."""
    top: int = 10
    """Texts kept of each unit, the strongest first."""
    samples: int = 4
    """Random texts kept of each unit, of those where it is above zero."""
    window: int = 64
    """Tokens shown of a text."""
    before: int = 47
    """Of which in front of the peak."""
    length: int = 128
    """Tokens read at once, start tokens included."""
    batch: int = 16
    """Windows in a forward pass; the index does not depend on it but for rounding."""

    def __post_init__(self) -> None:
        for name in ("tokens", "top", "window", "length", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
        if self.samples < 0 or not 0 <= self.before < self.window:
            raise UsageError(f"samples={self.samples}: 0 or more; before={self.before}: 0 to {self.window - 1}")


def fill(
    model: Model,
    corpus: Corpus,
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    config: FillConfig | None = None,
    save_every: float = 60.0,
    tick: Callable[[int], None] = lambda tokens: None,
) -> FeatureIndex:
    """Read ``corpus`` once and write the index of all neurons of ``layers`` (None: every layer) and all latents.

    A dictionary reads at its ``provenance.site``. ``save_every`` is in seconds.
    Raises UsageError for a name or layer that cannot be, or a folder with another index or filling; CutawayError
    where activations are not finite.
    """
    folder, config = Path(folder), config or FillConfig()
    readers = plan_readers(model, range(model.n_layers) if layers is None else layers, dictionaries or {})
    identity = _identity(model, corpus, readers, config)
    if (folder / HEADER).exists():
        found = open_index(folder)
        if found.about.get("identity") != identity:
            raise UsageError(f"{folder} holds another index: {_difference(found.about.get('identity'), identity)}")
        if found.about["complete"]:
            return found
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in (dictionaries or {}).items():
        if hasattr(each, "save"):
            each.save(folder / "dictionaries" / name)
    effects = _effects(model, readers)
    state = _Filling(model, readers, config, folder / FILLING, identity)
    complete = True
    try:
        state.run(corpus, save_every, tick)
    except KeyboardInterrupt:
        if not (folder / FILLING).exists():
            raise
        state, complete = _Filling(model, readers, config, folder / FILLING, identity), False
    index = _finish(model, corpus, folder, state, effects, complete)
    if complete:
        (folder / FILLING).unlink(missing_ok=True)
    return index


def _identity(model: Model, corpus: Corpus, readers: Sequence[Reader], config: FillConfig) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name != "batch"}
    return {
        "model": model.fingerprint,
        "corpus": corpus.digest,
        "group": GROUP,
        **settings,
        "sources": [[each.source.name, each.source.site, each.source.units, each.digest] for each in readers],
    }


def _difference(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> str:
    names = [name for name in ours if (theirs or {}).get(name) != ours[name]]
    return f"{', '.join(names)} differ{'s' if len(names) == 1 else ''}; choose another folder"


def _effects(model: Model, readers: Sequence[Reader]) -> dict[str, np.ndarray]:
    tokens = min(model.vocab_size, len(model.tokenizer)) if model.tokenizer is not None else model.vocab_size
    parts = []
    for each in readers:
        if each.dictionary is None:
            assert each.source.name.isdecimal()
            rows: Tensor | None = effect.neuron_directions(model, int(each.source.name))
        else:
            rows = effect.atom_directions(model, each.dictionary, each.source.site)
        none = effect.no_effects(each.source.units)
        parts.append(none if rows is None else effect.logit_effects(model, rows, tokens))
    return effect.joined(parts)


class _Filling:
    """Collectors of all sources, the texts they have seen, and where to go on."""

    def __init__(
        self, model: Model, readers: Sequence[Reader], config: FillConfig, path: Path, identity: Mapping[str, Any]
    ) -> None:
        self.model, self.readers, self.config, self.path, self.identity = model, readers, config, path, identity
        self.collectors = [
            Collector(each.source.units, config.top, config.samples, config.window, model.device) for each in readers
        ]
        self.texts: list[Context] = []
        self.tokens = self.groups = 0
        if path.exists():
            self._load()

    def run(self, corpus: Corpus, save_every: float, tick: Callable[[int], None]) -> None:
        """Read groups of windows until there are enough tokens or the corpus ends."""
        saved = time.monotonic()
        tick(self.tokens)
        for group in groups(contexts(self.model, corpus, self.config.length), self.groups):
            if self.tokens >= self.config.tokens:
                break
            for start in range(0, len(group), self.config.batch):
                self._add(group[start : start + self.config.batch])
                tick(self.tokens)
            self.groups += 1
            if time.monotonic() - saved >= save_every:
                self.save()
                saved = time.monotonic()
        if not self.tokens:
            raise UsageError("the corpus has no token of text")

    @torch.no_grad()
    def _add(self, windows: Sequence[Context]) -> None:
        sites = list(dict.fromkeys(each.source.site for each in self.readers))
        found = self.model.capture(self.model.batch([window.ids for window in windows]), sites)
        begin = len(self.model.encode("", special=True))
        device = found.mask.device
        lengths = torch.tensor([len(window.ids) for window in windows], device=device)
        first = torch.full_like(lengths, begin)
        rows = TextRows(len(self.texts), found.mask, first, lengths, self.config.before)
        for reader, collector in zip(self.readers, self.collectors, strict=True):
            if not collector.add(reader.values(found), rows):
                raise CutawayError(f"{reader.source.title}: activations contain NaN or infinity")
        self.texts += windows
        self.tokens += int(found.mask.sum())

    def save(self) -> None:
        """Write everything, at once."""
        from safetensors.torch import save_file

        tensors = {name: torch.from_numpy(value) for name, value in self.text_arrays().items()}
        for i, each in enumerate(self.collectors):
            tensors |= {f"{i}.{name}": value.cpu() for name, value in each.state().items()}
        about = {"identity": self.identity, "groups": self.groups, "tokens": self.tokens}
        draft = self.path.with_suffix(".draft")
        save_file(tensors, draft, {"about": json.dumps(about)})
        draft.replace(self.path)

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                if about["identity"] != self.identity:
                    difference = _difference(about["identity"], self.identity)
                    raise UsageError(f"{self.path.parent} holds the beginning of another index: {difference}")
                for i, each in enumerate(self.collectors):
                    each.load({name: file.get_tensor(f"{i}.{name}") for name in each.state()})
                held = {name: file.get_tensor(name).tolist() for name in ("ids", "offset", "document", "first")}
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CutawayError(f"{self.path} is damaged; delete it to begin anew: {error}") from error
        self.groups, self.tokens = about["groups"], about["tokens"]
        cuts = zip(held["offset"], held["offset"][1:], strict=False)
        self.texts = [
            Context(document, start, tuple(held["ids"][low:high]))
            for (low, high), document, start in zip(cuts, held["document"], held["first"], strict=True)
        ]

    def text_arrays(self) -> dict[str, np.ndarray]:
        """Return the texts as the index stores them; ``first`` is a window's place in its document."""
        return {
            "ids": np.array([token for each in self.texts for token in each.ids], np.int32),
            "offset": offsets([len(each.ids) for each in self.texts]),
            "document": np.array([each.document for each in self.texts], np.int64),
            "first": np.array([each.start for each in self.texts], np.int64),
        }

    def unit_arrays(self) -> dict[str, np.ndarray]:
        """Return top and random texts side by side, densities and histograms, all sources end to end."""
        lists = {
            field: [torch.cat([getattr(each.top, field), getattr(each.some, field)], 1) for each in self.collectors]
            for field in ("peak", "context", "position", "start", "values")
        }
        made = {field: torch.cat(parts).cpu().numpy() for field, parts in lists.items()}
        fired = torch.cat([each.fired for each in self.collectors]).cpu().numpy()
        made["density"] = fired / max(1, self.tokens)
        made["bars"] = torch.cat([each.bars for each in self.collectors]).cpu().numpy().astype(np.uint32)
        return made


def _finish(
    model: Model,
    corpus: Corpus,
    folder: Path,
    state: _Filling,
    effects: dict[str, np.ndarray],
    complete: bool,
) -> FeatureIndex:
    size = model.vocab_size
    words = token_bytes(model.tokenizer, size) if model.tokenizer is not None else [b""] * size
    parts: dict[str, Any] = {
        "units": state.unit_arrays(),
        "contexts": state.text_arrays(),
        "vocabulary": vocabulary_of(words).arrays(),
        "effects": effects,
        "notes": pack({}),
    }
    if (folder / HEADER).exists():
        parts["notes"] = open_index(folder).parts["notes"]
    parts["postings"] = make_postings(parts, state.config.top)
    about = {
        "model": {
            "name": model.name.replace("/", "--"),
            "fingerprint": model.fingerprint,
            "layers": model.n_layers,
            "d_model": model.d_model,
        },
        "corpus": {"name": corpus.name, "digest": corpus.digest},
        "tokens": state.tokens,
        "texts": len(state.texts),
        "top": state.config.top,
        "begin": len(model.encode("", special=True)),
        "edges": list(EDGES),
        "complete": complete,
        "identity": dict(state.identity),
    }
    assert parts["units"]["bars"].shape[1] == BARS
    return write_index(folder, about, [each.source for each in state.readers], parts)
