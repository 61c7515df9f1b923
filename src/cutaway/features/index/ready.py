"""From a model to an index one can browse: a dictionary is trained, all units are read, graphs are made.

1. One site's activations are harvested to disk, and a TopK dictionary is trained on them. It stays in the folder, where
   a later call finds it; they do not.
2. One pass over the text fills the index with the neurons of all or some layers and the dictionary's latents.
3. For the strongest latents, and the strongest neurons of some layers, patterns of tokens are fitted on their
   strongest texts and attached.

Stopped at any point, the same call goes on: harvest and pass at the last group of windows, or minute, that was saved;
a dictionary half trained is trained anew; graphs that are attached already are not made again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.corpus import Corpus, open_corpus
from cutaway.features.dictionary import Dictionary
from cutaway.features.harvest import Harvest, harvest, mixed
from cutaway.features.index.fill import FillConfig, fill
from cutaway.features.index.live import open_dictionary
from cutaway.features.index.store import FeatureIndex, add_notes
from cutaway.features.train import TrainConfig, train
from cutaway.features.unit import Unit, latent, neuron
from cutaway.model import Model
from cutaway.study import Lab, Progress

if TYPE_CHECKING:
    from cutaway.features.neuron2graph import Snippet

Tick = Callable[[str, float, float], None]
"""``(what is being done, how much of it, of how much)``."""


@dataclass(frozen=True)
class ReadyConfig:
    """What goes into a ready-made index."""

    layers: tuple[int, ...] | None = None
    """Whose neurons are read; None: all."""
    site: str = ""
    """Where the dictionary reads; empty takes the middle layer's mlp_out.

    Not the stream itself: at the first tokens of a window it holds values a hundred times as large as elsewhere in
    many models, and the strongest latents would all be about those.
    """
    name: str = ""
    """The dictionary's, in addresses; empty makes one of the site."""
    latents: int = 4608
    k: int = 32
    train_tokens: int = 200_000
    """Activations harvested for the dictionary, at least: whole groups of windows are read."""
    epochs: int = 4
    """Times that training goes through them: reading costs more than learning."""
    batch: int = 2048
    """Rows in a training step."""
    pool: int = 60_000
    """Rows mixed in memory."""
    graphs: int = 12
    """Latents, and neurons of each layer in ``graph_layers``, that get a graph; the strongest."""
    graph_layers: tuple[int, ...] | None = None
    """Of those read; None: the ones a quarter, half and three quarters of the way up."""
    windows: int = 160
    """Of text, that graphs are refined on."""

    def __post_init__(self) -> None:
        for name in ("latents", "k", "train_tokens", "epochs", "batch", "pool", "windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
        if self.k > self.latents:
            raise UsageError(f"k={self.k}: at most the {self.latents} latents")
        if self.graphs < 0:
            raise UsageError(f"graphs={self.graphs}: 0 or more")


@dataclass(frozen=True)
class Ready:
    """An index and what was made for it."""

    index: FeatureIndex
    graphs: int
    """Made by this call."""
    complete: bool
    """False where Ctrl-C ended it; the same call goes on."""

    def __repr__(self) -> str:
        return f"Ready({self.index!r}, {self.graphs} new graphs{'' if self.complete else ', stopped'})"


def quick(model: Model) -> tuple[ReadyConfig, FillConfig]:
    """Settings that take some minutes on one slow core for a model of 135M parameters: three layers, little text.

    The text is read twice: for the dictionary, and for the index. A dictionary of so little is a demonstration.
    """
    config = ReadyConfig(
        layers=tuple(_quarters(range(model.n_layers))),
        latents=1152,
        k=16,
        train_tokens=16_000,
        epochs=10,
        batch=512,
        pool=20_000,
        graphs=2,
        windows=60,
    )
    return config, FillConfig(tokens=16_000)


def build_ready(
    model: Model,
    corpus: Corpus,
    folder: str | Path,
    config: ReadyConfig | None = None,
    *,
    filling: FillConfig | None = None,
    tick: Tick = lambda what, done, total: None,
) -> Ready:
    """Write the index of ``model`` over ``corpus`` into ``folder``; see the module.

    Raises UsageError for a site or layer that the model does not have, or a folder with another index or dictionary.
    """
    folder, config, filling = Path(folder), config or ReadyConfig(), filling or FillConfig()
    site = config.site or f"mlp_out.{model.n_layers // 2}"
    name = config.name or f"topk-{site.replace('_', '-')}"
    layers = _check_layers(model, config)
    dictionary = _dictionary(model, corpus, folder / "dictionaries" / name, site, config, tick)
    index = fill(
        model,
        corpus,
        folder,
        layers=layers,
        dictionaries={name: dictionary},
        config=filling,
        tick=lambda tokens: tick("texts read", float(tokens), float(filling.tokens)),
    )
    if not index.about["complete"]:
        return Ready(index, 0, False)
    sources = [name, *map(str, _quarters(layers) if config.graph_layers is None else config.graph_layers)]
    chosen = [number for source in sources for number in index.listing(source, limit=config.graphs)]
    wanted = [number for number in chosen if index.strongest(number) > 0 and index.note(number, "graph") is None]
    made, complete = make_graphs(model, corpus, index, wanted, {name: dictionary}, config.windows, tick)
    if made:
        index = add_notes(index, {(number, "graph"): graph for number, graph in made.items()})
    return Ready(index, len(made), complete)


def index_model(
    lab: Lab,
    model: str,
    folder: Path | None = None,
    *,
    corpus: str = "wikitext",
    full: bool = False,
    tokens: int | None = None,
    layers: str = "",
    site: str = "",
    latents: int | None = None,
    graphs: int | None = None,
    dtype: str = "auto",
) -> Ready:
    """Make the index that `cutaway index` asks for, in ``folder`` or in the lab's home; progress goes to the lab.

    What is None or empty has the value of `quick`, or with ``full`` of `ReadyConfig`.
    Raises as `build_ready` does; KeyboardInterrupt where it was stopped, and the same call goes on.
    """
    chosen = _numbers(layers)
    texts = open_corpus(corpus)
    opened = lab.model(model, dtype)
    config, filling = (ReadyConfig(), FillConfig()) if full else quick(opened)
    tokens = filling.tokens if tokens is None else tokens
    latents = config.latents if latents is None else latents
    config = replace(
        config,
        layers=chosen or config.layers,
        site=site,
        latents=latents,
        k=max(1, min(config.k, latents)),
        train_tokens=tokens,
        graphs=config.graphs if graphs is None else graphs,
    )
    filling = replace(filling, tokens=tokens)
    place = folder or lab.home / "index" / (opened.name.replace("/", "--") + ("-full" if full else ""))
    made = build_ready(
        opened,
        texts,
        place,
        config,
        filling=filling,
        tick=lambda what, done, total: lab.progress(Progress(done, total, what)),
    )
    if not made.complete:
        raise KeyboardInterrupt
    return made


def _numbers(layers: str) -> tuple[int, ...] | None:
    try:
        return tuple(sorted({int(each) for each in layers.split(",")})) if layers else None
    except ValueError:
        raise UsageError(f"layers={layers!r}: numbers with commas between them, such as 7,15,22") from None


def make_graphs(
    model: Model,
    corpus: Corpus,
    index: FeatureIndex,
    numbers: Sequence[int],
    dictionaries: dict[str, Dictionary],
    windows: int = 160,
    tick: Tick = lambda what, done, total: None,
) -> tuple[dict[int, dict[str, Any]], bool]:
    """Return the graphs of units by number, as data, and whether all were made; Ctrl-C returns those that were.

    A graph is made from the strongest texts of its page, and refined on ``windows`` of the corpus's beginning.
    """
    from cutaway.features import neuron2graph as n2g

    made: dict[int, dict[str, Any]] = {}
    if not numbers:
        return made, True
    units = [_unit(model, index, number, dictionaries) for number in numbers]
    rows = n2g.windows(model, corpus, n=windows, length=48, judge=1).build
    start = tuple(model.encode("", special=True))
    settings = n2g.Settings(fillers=n2g.mask_tokens(model, "random", rows, n=2), start=start, rounds=1, per_round=8)
    spell, propose = n2g.speller(model), n2g.next_tokens(model, top=20)
    try:
        read = n2g.read(units, rows, start=start, tick=lambda done: tick("windows read", float(done), float(len(rows))))
        for at, (number, unit) in enumerate(zip(numbers, units, strict=True)):
            tick("graphs", float(at), float(len(units)))
            found = n2g.fit(
                unit,
                _snippets(index, number),
                largest=index.strongest(number),
                spell=spell,
                settings=settings,
                propose=propose,
                text=read.of(at),
            )
            if not found.complete:
                return made, False
            made[number] = found.graph.to_dict()
    except KeyboardInterrupt:
        return made, False
    return made, True


def _snippets(index: FeatureIndex, number: int) -> "list[Snippet]":
    """Return a unit's strongest texts, start tokens left out."""
    from cutaway.features.neuron2graph import Snippet

    begin = index.about["begin"]
    return [
        Snippet(tuple(index.context(each.context)[begin:]), each.start + each.at - begin, each.peak)
        for each in index.texts(number)
    ]


def _quarters(layers: Sequence[int]) -> list[int]:
    return sorted({layers[len(layers) * i // 4] for i in (1, 2, 3)})


def _check_layers(model: Model, config: ReadyConfig) -> Sequence[int]:
    """Return the layers to read; UsageError before anything is trained where they cannot be."""
    layers = range(model.n_layers) if config.layers is None else config.layers
    for name, given, known in (
        ("layers", layers, range(model.n_layers)),
        ("graph_layers", config.graph_layers, layers),
    ):
        if strange := [layer for layer in given or () if layer not in known]:
            raise UsageError(f"{name}={strange[0]}: one of {', '.join(map(str, known))}")
    if not layers:
        raise UsageError("layers: none named; give one or more, or None for all")
    return layers


def _dictionary(model: Model, corpus: Corpus, folder: Path, site: str, config: ReadyConfig, tick: Tick) -> Dictionary:
    if (folder / "dictionary.json").exists():
        return _stored(model, corpus, folder, site, config)
    kept = harvest(
        model,
        corpus,
        site,
        folder / "activations",
        tokens=config.train_tokens,
        tick=lambda done: tick("tokens read for the dictionary", float(done), float(config.train_tokens)),
    )
    if not kept.complete:
        raise KeyboardInterrupt
    if not kept.tokens:
        raise UsageError(f"corpus {corpus.name!r} has no token of text")
    batch = min(config.batch, kept.tokens)
    steps = kept.tokens * config.epochs // batch
    settings = TrainConfig(
        n_latents=config.latents, k=config.k, batch=batch, steps=steps, warm_up=min(100, steps // 10 + 1)
    )
    trained = train(
        _shuffled(kept, site, config),
        settings,
        provenance=kept.provenance(site),
        tick=lambda step: tick("steps of the dictionary", float(step.step + 1), float(steps)),
    )
    if not trained.complete:
        raise KeyboardInterrupt
    trained.dictionary.save(folder)
    shutil.rmtree(folder / "activations")
    return trained.dictionary


def _stored(model: Model, corpus: Corpus, folder: Path, site: str, config: ReadyConfig) -> Dictionary:
    """Return the dictionary of an earlier call; UsageError where it is not the one that is asked for."""
    stored = open_dictionary(folder)
    about = stored.provenance
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (about.fingerprint, model.fingerprint),
        "text": (about.data, corpus.digest),
        "site": (about.site, site),
        "latents": (stored.n_latents, config.latents),
        "k": (about.settings.get("k"), config.k),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise UsageError(f"{folder} holds a dictionary of {name}={found}, not {wanted}; choose another folder")
    return stored


def _shuffled(kept: Harvest, site: str, config: ReadyConfig) -> Iterator[Tensor]:
    """Yield the rows of a harvest in random order, once an epoch."""
    generator = torch.Generator().manual_seed(0)
    for epoch in range(config.epochs):
        order = torch.randperm(len(kept.about["shards"]), generator=generator).tolist()
        for chunk in mixed(kept.rows(order=order), max(2, config.pool), seed=epoch):
            yield chunk[site]


def _unit(model: Model, index: FeatureIndex, number: int, dictionaries: dict[str, Dictionary]) -> Unit:
    source, unit = index.place(number)
    if source.kind == "neurons":
        return neuron(model, int(source.name), unit)
    return latent(model, dictionaries[source.name], source.site, unit)
