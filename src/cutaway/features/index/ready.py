"""From a model to an index one can browse: a dictionary is trained, all units are read, graphs are made.

1. A TopK dictionary is trained on one site's activations (kept in the folder; a later call finds it there).
2. One pass over the text fills the index with all neurons and the dictionary's latents.
3. For the strongest latents, and the strongest neurons of some layers, patterns of tokens are fitted on windows of
   the same text and attached.

Stopped at any point, the same call goes on; graphs that are attached already are not made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import UsageError
from cutaway.features.corpus import Corpus
from cutaway.features.dictionary import Dictionary
from cutaway.features.harvest import mixed, provenance_of, stream
from cutaway.features.index.fill import FillConfig, fill
from cutaway.features.index.live import open_dictionary
from cutaway.features.index.store import FeatureIndex, add_notes
from cutaway.features.train import TrainConfig, train
from cutaway.features.unit import Unit, latent, neuron
from cutaway.model import Model

Tick = Callable[[str, float, float], None]
"""``(what is being done, how much of it, of how much)``."""


@dataclass(frozen=True)
class ReadyConfig:
    """What goes into a ready-made index."""

    site: str = ""
    """Where the dictionary reads; empty takes the middle layer's resid_post."""
    name: str = ""
    """The dictionary's, in addresses; empty makes one of the site."""
    latents: int = 4608
    k: int = 32
    train_tokens: int = 200_000
    """Activations the dictionary is trained on; the text is read again where it is shorter."""
    batch: int = 2048
    """Rows in a training step."""
    pool: int = 60_000
    """Rows mixed in memory."""
    graphs: int = 12
    """Latents, and neurons of each layer in ``graph_layers``, that get a graph; the strongest."""
    graph_layers: tuple[int, ...] | None = None
    """None: a quarter, half and three quarters of the way up."""
    windows: int = 160
    """Of text, that graphs are made from."""

    def __post_init__(self) -> None:
        for name in ("latents", "k", "train_tokens", "batch", "windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: 1 or more")
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

    Raises UsageError for a site or layer that the model does not have, or a folder with another index.
    """
    folder, config, filling = Path(folder), config or ReadyConfig(), filling or FillConfig()
    site = config.site or f"resid_post.{model.n_layers // 2}"
    name = config.name or f"topk-{site.replace('_', '-')}"
    dictionary = _dictionary(model, corpus, folder / "dictionaries" / name, site, config, tick)
    index = fill(
        model,
        corpus,
        folder,
        dictionaries={name: dictionary},
        config=filling,
        tick=lambda tokens: tick("texts read", float(tokens), float(filling.tokens)),
    )
    if not index.about["complete"]:
        return Ready(index, 0, False)
    layers = config.graph_layers or sorted({model.n_layers * i // 4 for i in (1, 2, 3)})
    sources = [name, *map(str, layers)]
    chosen = [number for source in sources for number in index.listing(source, limit=config.graphs)]
    wanted = [number for number in chosen if index.strongest(number) > 0 and index.note(number, "graph") is None]
    made, complete = make_graphs(model, corpus, index, wanted, {name: dictionary}, config.windows, tick)
    if made:
        index = add_notes(index, {(number, "graph"): graph for number, graph in made.items()})
    return Ready(index, len(made), complete)


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

    A unit that fires nowhere in the windows has none.
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
            snippets = read.snippets(at, 12)
            if snippets:
                found = n2g.fit(
                    unit,
                    snippets,
                    largest=read.largest(at),
                    spell=spell,
                    settings=settings,
                    propose=propose,
                    text=read.rows,
                )
                if not found.complete:
                    return made, False
                made[number] = found.graph.to_dict()
    except KeyboardInterrupt:
        return made, False
    return made, True


def _dictionary(model: Model, corpus: Corpus, folder: Path, site: str, config: ReadyConfig, tick: Tick) -> Dictionary:
    if (folder / "dictionary.json").exists():
        return open_dictionary(folder)
    steps = max(1, config.train_tokens // config.batch)

    def rows() -> Any:
        left = steps * config.batch
        while left > 0:
            before = left
            for part in stream(model, corpus, site, tokens=left):
                left -= len(part)
                yield part
            if left == before:
                raise UsageError(f"corpus {corpus.name!r} has no token of text")

    settings = TrainConfig(n_latents=config.latents, k=config.k, batch=config.batch, steps=steps)
    trained = train(
        (chunk[site] for chunk in mixed(rows(), config.pool)),
        settings,
        provenance=provenance_of(model, corpus, site),
        tick=lambda step: tick("steps of the dictionary", float(step.step + 1), float(steps)),
    )
    if not trained.complete:
        raise KeyboardInterrupt
    trained.dictionary.save(folder)
    return trained.dictionary


def _unit(model: Model, index: FeatureIndex, number: int, dictionaries: dict[str, Dictionary]) -> Unit:
    source, unit = index.place(number)
    if source.kind == "neurons":
        return neuron(model, int(source.name), unit)
    return latent(model, dictionaries[source.name], source.site, unit)
