"""Graphs of many units from one reading of the text, each judged on its own snippets and on other text."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.errors import UsageError, nearest
from cutaway.features.dictionary import Dictionary
from cutaway.features.neuron2graph.graph import NeuronGraph, Trie
from cutaway.features.neuron2graph.method import Fitted, fit
from cutaway.features.neuron2graph.scores import Predict, Score, judge, lookups
from cutaway.features.neuron2graph.snippets import Read, halves
from cutaway.features.neuron2graph.steps import Propose, Settings
from cutaway.features.neuron2graph.tokens import Spell
from cutaway.features.unit import Unit, head, latent, neuron
from cutaway.model import Model

Rows = list[tuple[Sequence[int], Sequence[float]]]


@dataclass(frozen=True)
class Surveyed:
    """One unit's graph with what it is worth."""

    name: str
    fitted: Fitted | None
    """None where the unit never fires on the text."""
    own: dict[str, Score]
    """By predictor, on the snippets kept for testing; empty where there are none."""
    other: dict[str, Score]
    """By predictor, on text of other documents."""
    curve: tuple[tuple[int, float], ...]
    """(patterns kept, the most frequent first; F1 on other text)."""
    seconds: float

    def __repr__(self) -> str:
        return f"{self.name}: never fires" if self.fitted is None else f"{self.name}: {self.other['graph']}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "graph": None if self.fitted is None else self.fitted.graph.to_dict(),
            "largest": None if self.fitted is None else self.fitted.largest,
            "own": {name: each.to_dict() for name, each in self.own.items()},
            "other": {name: each.to_dict() for name, each in self.other.items()},
            "curve": [list(point) for point in self.curve],
            "seconds": self.seconds,
        }


def survey(
    units: Sequence[Unit],
    build: Read,
    other: Read,
    *,
    spell: Spell,
    settings: Settings,
    propose: Propose | None = None,
    n: int = 20,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[list[Surveyed], bool]:
    """Fit and judge each unit; ``build`` and ``other`` hold all units' values in the same order.

    Half of the ``n`` strongest snippets build, half test. Ctrl-C returns the units done so far and False.
    """
    done: list[Surveyed] = []
    try:
        for at, unit in enumerate(units):
            found = one(unit, at, build, other, spell=spell, settings=settings, propose=propose, n=n, seed=seed)
            done.append(found)
            if found.fitted is not None and not found.fitted.complete:
                return done, False
            tick(len(done))
    except KeyboardInterrupt:
        return done, False
    return done, True


def one(
    unit: Unit,
    at: int,
    build: Read,
    other: Read,
    *,
    spell: Spell,
    settings: Settings,
    propose: Propose | None,
    n: int,
    seed: int,
) -> Surveyed:
    """Fit and judge one unit, the ``at``-th of both readings."""
    started = time.monotonic()
    snippets = build.snippets(at, n)
    if not snippets:
        return Surveyed(unit.name, None, {}, {}, (), time.monotonic() - started)
    largest = build.largest(at)
    made, kept = halves(snippets, seed)
    # The rows that test must not be refined on.
    tested = {each.ids for each in kept}
    text = [pair for pair in build.of(at) if pair[0] not in tested]
    fitted = fit(unit, made, largest=largest, spell=spell, settings=settings, propose=propose, text=text)
    known = [pair for pair in _rows(build, at, largest) if tuple(pair[0]) not in tested]
    predictors: dict[str, Predict] = {"graph": lambda tokens: fitted.graph.predict_tokens(tokens).tolist()}
    predictors |= lookups(known, spell)
    own = [pair for pair in _rows(build, at, largest) if tuple(pair[0]) in tested]
    elsewhere = _rows(other, at, largest)
    seconds = time.monotonic() - started
    return Surveyed(
        unit.name,
        fitted,
        judge(predictors, own, spell, settings.fires) if own else {},
        judge(predictors, elsewhere, spell, settings.fires),
        complexity(fitted.graph, elsewhere, spell, settings.fires),
        seconds,
    )


def complexity(graph: NeuronGraph, rows: Rows, spell: Spell, at: float = 0.5) -> tuple[tuple[int, float], ...]:
    """Return F1 with the 1, 2, 4, ... most frequent patterns, and with all: a long look-up is no explanation."""
    sizes, n = [], 1
    while n < len(graph.endings):
        sizes.append(n)
        n *= 2
    predictors: dict[str, Predict] = {}
    for size in [*sizes, len(graph.endings)]:
        smaller = trimmed(graph, size)
        predictors[str(size)] = lambda tokens, smaller=smaller: smaller.predict_tokens(tokens).tolist()  # type: ignore[misc]
    return tuple((int(name), each.f1) for name, each in judge(predictors, rows, spell, at).items())


def trimmed(graph: NeuronGraph, n: int) -> NeuronGraph:
    """Return the graph's ``n`` patterns with most samples."""
    trie = Trie()
    for each in sorted(graph.endings, key=lambda each: -each.count)[:n]:
        trie.insert(each.path, each.activation, each.importance)
    return trie.graph(graph.name, graph.spell, graph.matching)


def unit_named(model: Model, name: str, dictionary: Dictionary | None = None) -> Unit:
    """Return a unit by name: "neurons.5.37", "-neurons.5.37", "z.3.1" (a head), "latent.12" of ``dictionary``."""
    kind, *numbers = name.split(".")
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"unit {name!r}: numbers after {kind!r}, as in neurons.5.37")
    places = [int(number) for number in numbers]
    if kind in ("neurons", "-neurons") and len(places) == 2:
        return neuron(model, *places, negative=kind.startswith("-"))
    if kind == "z" and len(places) == 2:
        return head(model, *places)
    if kind == "latent" and len(places) == 1:
        if dictionary is None:
            raise UsageError(f"unit {name!r}: name a dictionary too")
        return latent(model, dictionary, dictionary.provenance.site, places[0])
    kinds = ("neurons", "-neurons", "z", "latent")
    raise UsageError(f"unit {name!r}: write neurons.LAYER.INDEX, z.LAYER.HEAD or latent.INDEX{nearest(kind, kinds)}")


def _rows(found: Read, at: int, largest: float) -> Rows:
    return [(row, [value / largest for value in values]) for row, values in found.of(at)]
