"""Neuron to graph: from the texts that fire a feature most to patterns of tokens that predict where it fires.

What you get: `fit` returns a `NeuronGraph` (see `graph`) and an account of how it came about.

1. `prune`: the peak is the token with the largest value. Take the shortest window ending there, of the lengths in
   ``Settings.lengths``, in which the peak keeps its place and half of its value, else the longest; then up to
   ``after`` tokens behind it, not beyond the end of its sentence. ``scale = value / value in the window``.
2. `saliency`: replace each token i by a filler: ``importance(i -> j) = 1 - value_filled(j) / value(j)``, averaged over
   fillers. Where ``value(j) <= 0`` it is undefined (nan).
3. `augment`: tokens with importance >= 0.8 for the peak are replaced by candidates; all variants are read.
4. `patterns`: for every token that fires (value * scale / largest known value > 0.5) walk backwards; a token is kept
   where its importance exceeds 0.75, others become IGNORE; stop at the last one kept. All go into a trie.
5. Beyond the papers: `sufficient` (kept tokens that do not fire it alone are completed, so a pattern with two
   alternatives is not lost) and `refine` (patterns meet other text: misses become samples, false alarms exceptions,
   and each END takes the mean of the values found where it predicts).

Papers: Foote et al. 2023, arXiv:2304.12918 and arXiv:2305.19911; `published` gives their settings. Limits: patterns
are exact tokens at exact distances; a substitute is one token for one token; a feature that needs tokens behind the
peak is not described.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.errors import UsageError
from cutaway.features.neuron2graph.graph import NeuronGraph, Trie
from cutaway.features.neuron2graph.refine import refine
from cutaway.features.neuron2graph.steps import Propose, Pruned, Settings, Snippet, insert, prune
from cutaway.features.neuron2graph.tokens import Spell
from cutaway.features.unit import Unit
from cutaway.features.windows import Row

_AT_ONCE = 8
"""Snippets that are pruned and read together."""


@dataclass(frozen=True)
class Fitted:
    """A graph and how it came about."""

    graph: NeuronGraph
    largest: float
    """Largest known value, the unit of the graph's."""
    pruned: tuple[Pruned, ...]
    samples: int
    """Texts read as snippets or variants."""
    dropped: int
    """Snippets whose longest window has no value above 0 at the peak."""
    added: tuple[tuple[int, int], ...] = ()
    """(misses, false alarms) that each round of refinement turned into patterns."""
    complete: bool = True
    """False where Ctrl-C ended it early."""

    def __repr__(self) -> str:
        return f"Fitted({self.graph!r}, {len(self.pruned)} snippets, {self.samples} texts read)"


def fit(
    unit: Unit,
    snippets: Sequence[Snippet],
    *,
    largest: float,
    spell: Spell,
    settings: Settings,
    propose: Propose | None = None,
    text: Sequence[tuple[Row, Sequence[float]]] = (),
) -> Fitted:
    """Turn a feature into a graph.

    ``largest`` is the largest known value, the unit of all others. ``propose`` gives substitutes (None: no
    augmentation), ``text`` other rows, without start tokens, and the feature's values on them, to refine on; never
    those that the graph is judged by.

    Ctrl-C returns the graph of what was read. UsageError where no snippet has a positive value, which is what a
    feature that never fires looks like.
    """
    live = [each for each in snippets if each.value > 0]
    if not live or largest <= 0:
        raise UsageError(f"unit {unit.name!r} has no snippet with a value above 0: it never fires on this text")
    trie, pruned, samples, dropped = Trie(), [], 0, 0
    added: list[tuple[int, int]] = []
    complete = True
    try:
        for first in range(0, len(live), _AT_ONCE):
            found = prune(unit, live[first : first + _AT_ONCE], spell=spell, settings=settings)
            pruned += [each for each in found if each is not None]
            dropped += sum(each is None for each in found)
            whole = [each for each in found if each is not None]
            samples += insert(trie, unit, whole, largest=largest, spell=spell, settings=settings, propose=propose)
        if settings.rounds and len(text):
            added = refine(trie, unit, text, largest=largest, spell=spell, settings=settings)
    except KeyboardInterrupt:
        complete = False
    if settings.merge:
        trie.merge()
    graph = trie.graph(unit.name, spell, settings.matching, settings.first)
    return Fitted(graph, largest, tuple(pruned), samples, dropped, tuple(added), complete)
