"""A graph meets text that it was not made from: what it missed, where it cried wolf, and what its patterns are worth.

A round reads the graph's predictions on the text. Misses (fires, not predicted) become samples. For a false alarm,
each token that the pattern ignores is masked in turn; one whose masking lets the feature fire is what held it back,
and the pattern with that token in its place becomes an exception. At the end every END takes the mean of the values
found where it is the one that predicts; one seen nowhere keeps its samples.
"""

from collections.abc import Sequence

from cutaway.features.neuron2graph.graph import Ending, NeuronGraph, Path, Trie
from cutaway.features.neuron2graph.steps import Settings, Snippet, insert, prune
from cutaway.features.neuron2graph.tokens import Spell, normalise
from cutaway.features.neuron2graph.variants import vary
from cutaway.features.unit import Unit
from cutaway.features.windows import Row


def refine(
    trie: Trie,
    unit: Unit,
    text: Sequence[tuple[Row, Sequence[float]]],
    *,
    largest: float,
    spell: Spell,
    settings: Settings,
) -> list[tuple[int, int]]:
    """Change ``trie`` in place; return (misses, false alarms) that became patterns, round by round.

    ``text`` is rows without start tokens and the feature's values on them. It ends early when a round finds nothing
    new.
    """
    rows = [row for row, _ in text]
    full = [(*settings.start, *row) for row in rows]
    values = [[value / largest for value in found] for _, found in text]
    tokens = [[spell(token) for token in row] for row in rows]
    added = []
    for _ in range(settings.rounds):
        graph = trie.graph(unit.name, spell, "all")
        predicted = [graph.predict_tokens(row).tolist() for row in tokens]
        places = [(r, i) for r, row in enumerate(predicted) for i in range(len(row))]
        missed = [(r, i) for r, i in places if values[r][i] > settings.fires and predicted[r][i] < settings.fires]
        wolves = [(r, i) for r, i in places if values[r][i] <= settings.fires and predicted[r][i] >= settings.fires]
        learnt = _learn(trie, unit, rows, _spread(missed, tokens, settings.per_round), values, largest, spell, settings)
        kept = _except(trie, unit, full, _spread(wolves, tokens, settings.per_round), graph, tokens, largest, settings)
        added.append((learnt, kept))
        if not learnt and not kept:
            break
    graph = trie.graph(unit.name, spell, "all")
    met: dict[Path, list[float]] = {}
    for r, row in enumerate(tokens):
        for i, predicted_ in enumerate(graph.predict_tokens(row).tolist()):
            if predicted_ > 0:
                met.setdefault(graph.counting(row, i)[0].path, []).append(values[r][i])
    for path, found in met.items():
        trie.set(path, found)
    return added


def _spread(places: Sequence[tuple[int, int]], tokens: Sequence[Sequence[str]], n: int) -> list[tuple[int, int]]:
    """Return ``n`` places with as many different tokens as there are, one of each in turn."""
    turns: dict[str, int] = {}
    order = []
    for number, (r, i) in enumerate(places):
        token = normalise(tokens[r][i])
        turns[token] = turns.get(token, 0) + 1
        order.append((turns[token], number))
    return [places[number] for _, number in sorted(order)[:n]]


def _learn(
    trie: Trie,
    unit: Unit,
    rows: Sequence[Row],
    missed: Sequence[tuple[int, int]],
    values: Sequence[Sequence[float]],
    largest: float,
    spell: Spell,
    settings: Settings,
) -> int:
    snippets = [Snippet(rows[r], i, values[r][i] * largest) for r, i in missed]
    if not snippets:
        return 0
    found = [x for x in prune(unit, snippets, spell=spell, settings=settings, peak=False) if x is not None]
    before = sum(map(bool, trie.values))
    insert(trie, unit, found, largest=largest, spell=spell, settings=settings, propose=None, only=True)
    return len(found) if sum(map(bool, trie.values)) > before else 0


def _except(
    trie: Trie,
    unit: Unit,
    full: Sequence[Sequence[int]],
    wolves: Sequence[tuple[int, int]],
    graph: NeuronGraph,
    tokens: Sequence[Sequence[str]],
    largest: float,
    settings: Settings,
) -> int:
    """Mask what false alarms ignore, and up to five tokens behind their patterns, one at a time."""
    skip, filler = len(settings.start), settings.fillers[0]
    endings: list[Ending] = [graph.counting(tokens[r], i)[0] for r, i in wolves]
    rows, tries = [], []
    for number, ((r, i), ending) in enumerate(zip(wolves, endings, strict=True)):
        for back in range(1, min(i + 1, len(ending.path) + 5)):
            if back >= len(ending.path) or ending.path[back] is None:
                at = skip + i - back
                rows.append((number, (*full[r][:at], filler, *full[r][at + 1 : skip + i + 1])))
                tries.append((number, back))
    if not rows:
        return 0
    texts = [full[r][: skip + i + 1] for r, i in wolves]
    read = vary(unit, texts, rows, reuse=settings.reuse)
    done: set[int] = set()
    for (number, back), values in zip(tries, read.variants, strict=True):
        if number in done or float(values[-1]) / largest <= settings.fires:
            continue
        done.add(number)
        r, i = wolves[number]
        path = list(endings[number].path) + [None] * max(0, back + 1 - len(endings[number].path))
        path[back] = normalise(tokens[r][i - back])
        trie.insert(tuple(path), float(read.texts[number][-1]) / largest, [0.0] * len(path))
    return len(done)
