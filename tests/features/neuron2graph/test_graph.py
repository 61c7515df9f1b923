"""The trie against a reference that knows no trie, data both ways, the papers' merge, drawings, similarity."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import CutawayError, UsageError
from cutaway.features.neuron2graph import NeuronGraph, Trie, draw, gap_summary, normalise, overlap
from cutaway.features.neuron2graph.graph import Matching, Path, path_of
from cutaway.features.neuron2graph.survey import trimmed

WORDS = ("a", "b", "c", "d")


def graph_of(patterns: dict[Path, float], matching: Matching = "all") -> NeuronGraph:
    trie = Trie()
    for path, value in patterns.items():
        trie.insert(path, value, [1.0] * len(path))
    return trie.graph("test", lambda token: WORDS[token], matching)


def drawn_patterns(rng: np.random.Generator, n: int, deepest: int = 5) -> dict[Path, float]:
    out: dict[Path, float] = {}
    for _ in range(n):
        depth = int(rng.integers(1, deepest + 1))
        rest = [None if rng.random() < 0.5 else WORDS[rng.integers(4)] for _ in range(depth - 1)]
        out[(WORDS[rng.integers(4)], *rest)] = float(np.round(rng.random(), 3))
    return out


def all_ways(patterns: dict[Path, float], tokens: list[str], at: int) -> float:
    """The definition, pattern by pattern: longer continues, narrower overrides, the largest of the rest."""
    back = tokens[: at + 1][::-1]
    fits = [p for p in patterns if len(p) <= len(back) and all(x is None or x == y for x, y in zip(p, back))]  # noqa: B905
    held = []
    for p in fits:
        continued = any(len(q) > len(p) and q[: len(p)] == p for q in fits)
        narrower = any(
            len(q) == len(p) and q != p and all(y is None or x == y for x, y in zip(q, p, strict=True)) for q in fits
        )
        if not continued and not narrower:
            held.append(patterns[p])
    return max(held, default=0.0)


def greedy_way(patterns: dict[Path, float], tokens: list[str], at: int) -> float:
    """Exact token where some pattern goes on with it, else IGNORE; the last whole pattern on the way."""
    prefixes = {p[:n] for p in patterns for n in range(1, len(p) + 1)}
    way: Path = (tokens[at],)
    value = 0.0
    while way in prefixes:
        value = patterns.get(way, value)
        if at - len(way) < 0:
            break
        exact = (*way, tokens[at - len(way)])
        way = exact if exact in prefixes else (*way, None)
    return value


# The slow tier reads the ten thousand rows that the card asks for.
@pytest.mark.parametrize("graphs", [4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("matching", "reference"), [("all", all_ways), ("greedy", greedy_way)])
def test_prediction_equals_the_reference(graphs: int, matching: Matching, reference) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    for _ in range(graphs):
        patterns = drawn_patterns(rng, 12)
        graph = graph_of(patterns, matching)
        for _ in range(200):
            ids = rng.integers(0, 4, rng.integers(1, 9)).tolist()
            tokens = [WORDS[i] for i in ids]
            found = graph.predict(ids).tolist()
            assert found == pytest.approx([reference(patterns, tokens, at) for at in range(len(ids))], abs=1e-6)


def test_each_token_costs_at_most_one_step_a_level() -> None:
    graph = graph_of(drawn_patterns(np.random.default_rng(1), 40, deepest=7))
    steps = []
    known = graph._known

    class Counting(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: object) -> object:
            steps.append(key)
            return known[key]  # type: ignore[index]

        def __contains__(self, key: object) -> bool:
            return key in known

        def __setitem__(self, key: object, value: object) -> None:
            known[key] = value  # type: ignore[index,assignment]

    graph.__dict__["_known"] = Counting()
    tokens = [WORDS[i] for i in np.random.default_rng(2).integers(0, 4, 1000)]
    graph.predict_tokens(tokens)
    assert 0 < len(steps) <= 6 * len(tokens)


def test_an_exception_silences_only_what_it_narrows() -> None:
    graph = graph_of({("b", "a"): 1.0, ("b", None, "a"): 1.0, ("b", "c", "a"): 0.0})
    assert graph.predict_tokens(["a", "c", "b"]).tolist() == [0, 0, 0]
    assert graph.predict_tokens(["a", "d", "b"]).tolist() == [0, 0, 1]
    assert graph.predict_tokens(["a", "b"]).tolist() == [0, 1]
    assert graph.paths == {("b", "a"), ("b", None, "a")}
    assert gap_summary(graph) == ["b <- a 1 to 2 back (1.00)", "not: b <- c <- a (0.00)"]


def test_an_exact_sibling_hides_what_is_behind_ignore_from_greedy_matching_alone() -> None:
    patterns: dict[Path, float] = {("b", "c", "d"): 1.0, ("b", None, "a"): 1.0}
    tokens = ["a", "c", "b"]
    assert graph_of(patterns, "all").predict_tokens(tokens)[-1] == 1
    assert graph_of(patterns, "greedy").predict_tokens(tokens)[-1] == 0


def test_merging_moves_siblings_into_ignore_as_the_papers_do() -> None:
    trie = Trie()
    for path in (("b", "c", "d"), ("b", None, "a"), ("b", "a")):
        trie.insert(path, 1.0, [1.0] * len(path))  # type: ignore[arg-type]
    trie.merge()
    graph = trie.graph("m", None, "greedy")
    # "c" went into IGNORE and took "d" along; "a" ends a pattern and stays.
    assert graph.paths == {("b", None, "d"), ("b", None, "a"), ("b", "a")}
    assert graph.predict_tokens(["d", "c", "b"])[-1] == 1


pattern = st.tuples(st.sampled_from(WORDS), st.lists(st.sampled_from([*WORDS, None]), max_size=4)).map(
    lambda pair: (pair[0], *pair[1])
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(pattern, st.floats(0, 1, width=32), max_size=10))
def test_data_goes_out_and_comes_back(patterns: dict[Path, float]) -> None:
    graph = graph_of(patterns)
    text = json.dumps(graph.to_dict(), allow_nan=False)
    back = NeuronGraph.from_dict(json.loads(text), graph.spell)
    assert back == graph
    ids = [0, 1, 2, 3, 1, 0, 2]
    assert back.predict(ids).tolist() == graph.predict(ids).tolist()
    roles = {node["role"] for node in graph.to_dict()["nodes"]}
    assert roles <= {"activating", "context", "end", "ignore"}
    assert len(graph.endings) == len(patterns)
    assert trimmed(graph, len(patterns)).paths == graph.paths


def test_ends_hold_mean_count_and_spread() -> None:
    trie = Trie()
    for value in (0.6, 1.0):
        trie.insert(("b",), value, [1.0])
    (end,) = trie.graph("e", None, "all").endings
    assert (end.activation, end.count, round(end.sd, 6)) == (0.8, 2, 0.2)
    assert trie.graph("e", None, "all", first=True).endings[0].activation == 0.6


def test_drawings_are_safe_and_whole() -> None:
    nasty = ("<script>alert('x')</script>", "a&b\"'", "\x00\x1b", None, "]]>")
    trie = Trie()
    trie.insert(nasty, 1.0, [1.0] * 5)
    trie.insert(("plain",), 0.2, [1.0])
    svg = draw(trie.graph("<b>&'\x07", None, "all"))
    root = ElementTree.fromstring(svg)
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
    shown = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert "<script>aler\u2026" in shown
    assert "\u25a1\u25a1" in shown
    assert "1" in shown  # one token ignored
    assert "no pattern" in draw(graph_of({}))
    many = graph_of({(word, other): 1.0 for word in WORDS for other in WORDS})
    assert "the 3 most frequent of 16" in draw(many, limit=3)


def test_graphs_are_alike_by_the_tokens_of_both_roles() -> None:
    a = graph_of({("a", "b"): 1.0, ("c", "d"): 1.0})
    assert overlap(a, graph_of({("c", "b"): 1.0, ("a", None, "d"): 1.0})).relation == "similar"
    assert overlap(a, graph_of({("a", "b"): 1.0})).relation == "subset"
    assert overlap(a, graph_of({("b", "a"): 1.0})).relation == "none"
    assert overlap(graph_of({("a",): 1.0}), graph_of({("a",): 1.0})).relation == "similar"
    empty = graph_of({})
    assert overlap(empty, a).relation == overlap(empty, empty).relation == "none"
    half = overlap(a, graph_of({("a", "b"): 1.0}))
    assert (half.activating, half.context) == (0.5, 0.5)


def test_tokens_are_spelled_as_the_papers_spell_them() -> None:
    assert [normalise(text) for text in (" Paris", "NASA", " the", " 7", ".", "don't", "\n")] == [
        *("paris", "NASA", "the", " 7", ".", "don't", "\n")
    ]
    assert path_of([" x", " A", " y", " B"], 3, {1}) == ("B".lower(), None, "a")
    assert path_of([" x", " B"], 1, set()) == ("b",)


def test_bad_input() -> None:
    graph = graph_of({("a",): 1.0})
    with pytest.raises(UsageError, match="no spelling"):
        NeuronGraph.from_dict(graph.to_dict()).predict([0])
    for data in ({}, {"nodes": [{"id": 1, "tokens": [], "role": "end", "importance": 0, "activation": 0}]}):
        with pytest.raises(CutawayError, match="not a neuron's graph"):
            NeuronGraph.from_dict(data)
    with pytest.raises(UsageError, match="starts at the activating token"):
        Trie().insert((None, "a"), 1.0, [1.0, 1.0])
