"""Search and similarity against a scan of everything, with tokens no query language could separate."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from makers import by_hand

from cutaway.errors import UsageError
from cutaway.features.index import FeatureIndex, Term, add_notes
from cutaway.features.index.postings import REACH, SHARE, alike, matching
from cutaway.features.index.view import search

TOKENS = [
    *(b":", b",", b"%", b"/", b" ", b"  ", b"\n", b'"', b"'", b"+", b"&", b"=", b"a:b,c", b" a", b"a", b"A", b" A"),
    *(b"Paris", b"paris", b" Paris", "🙂".encode(), b"\xf0", b"\x9f\x99", b"<b>", b"\\n", b"%41", b"", b"\x00"),
]


def scan(index: FeatureIndex) -> dict[str, dict[int, set[int]]]:
    """The same rules, written as loops: tokens of each unit by role."""
    found: dict[str, dict[int, set[int]]] = {role: defaultdict(set) for role in ("activating", "context")}
    for unit in range(index.n_units):
        shown = index.texts(unit)
        largest = max((text.peak for text in shown), default=0.0)
        before: dict[int, set[int]] = defaultdict(set)
        for number, text in enumerate(shown):
            for token, value in zip(text.ids, text.values, strict=True):
                if value is not None and value > 0 and value >= np.float32(largest) * SHARE:
                    found["activating"][unit].add(token)
            for token in text.ids[max(0, text.at - REACH) : text.at]:
                before[token].add(number)
        graph = index.note(unit, "graph")
        found["context"][unit] = {token for token, numbers in before.items() if len(numbers) >= 2}
        if graph is not None:
            found["context"][unit] = set()
            for node in graph["nodes"]:
                if node["role"] in found:
                    same = {i for i in range(len(TOKENS)) if node["tokens"] and plain(TOKENS[i]) == node["tokens"][0]}
                    found[node["role"]][unit] |= same
    return found


def plain(token: bytes) -> str:
    text = token.decode("utf-8", "backslashreplace")
    stripped = text.strip()
    if not stripped.isalpha():
        return text
    return stripped.lower() if stripped.istitle() else stripped


def graph(*tokens: tuple[str, str]) -> dict[str, Any]:
    nodes = [
        {"id": i, "tokens": [token] if token else [], "role": role, "importance": 1.0, "activation": 1.0}
        for i, (role, token) in enumerate(tokens)
    ]
    return {"nodes": nodes, "edges": [[i - 1, i] for i in range(1, len(nodes))]}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    notes = {
        (3, "graph"): graph(("activating", "paris"), ("context", "a"), ("ignore", ""), ("end", "")),
        (9, "graph"): graph(("activating", ":"), ("context", ","), ("end", "")),
    }
    return by_hand(tmp_path_factory.mktemp("odd"), TOKENS, units=60, notes=notes)


def folded(token: bytes, ci: bool, trim: bool) -> str:
    text = token.decode("utf-8", "surrogateescape")
    text = text.casefold() if ci else text
    return (text.strip() or text) if trim else text


Truth = dict[str, dict[int, set[int]]]


def random_terms(draw: random.Random) -> list[Term]:
    roles = [draw.choice(["activating", "context", "any"]) for _ in range(draw.choice([1, 1, 2, 2, 3]))]
    return [Term(draw.choice([token for token in TOKENS if token]), role) for role in roles]  # type: ignore[arg-type]


def units_with(truth: Truth, terms: list[Term], units: int, ci: bool = False, trim: bool = False) -> list[int]:
    """Units that have every term in its role."""
    wanted = [folded(bytes(term.token), ci, trim) for term in terms]  # type: ignore[arg-type]
    spelled = [folded(token, ci, trim) if token else None for token in TOKENS]
    return [
        unit
        for unit in range(units)
        if all(
            any(word == spelled[token] for role in truth if term.role in (role, "any") for token in truth[role][unit])
            for term, word in zip(terms, wanted, strict=True)
        )
    ]


def test_a_thousand_random_queries_agree_with_a_scan(odd: FeatureIndex) -> None:
    truth, draw = scan(odd), random.Random(0)
    some = 0
    for _ in range(1000):
        terms, ci, trim = random_terms(draw), draw.random() < 0.3, draw.random() < 0.2
        expected = units_with(truth, terms, odd.n_units, ci, trim)
        found = matching(odd.parts["postings"], odd.vocabulary, terms, odd.n_units, ci=ci, trim=trim)
        assert found.tolist() == expected, (terms, ci, trim)
        some += 0 < len(expected) < odd.n_units
    assert some > 300  # most queries tell units apart


def test_a_thousand_random_graphs_agree_with_a_scan(tmp_path: Path) -> None:
    draw, words = random.Random(1), sorted({plain(token) for token in TOKENS if token})
    notes = {}
    for unit in range(1000):
        chosen = [(draw.choice(["activating", "context"]), draw.choice(words)) for _ in range(draw.randint(0, 5))]
        notes[unit, "graph"] = graph(*chosen)
    index = by_hand(tmp_path, TOKENS, units=1000, notes=notes)
    truth, lists = scan(index), index.parts["postings"]
    for _ in range(100):
        terms = random_terms(draw)
        assert matching(lists, index.vocabulary, terms, 1000).tolist() == units_with(truth, terms, 1000), terms
    for unit in draw.sample(range(1000), 50):
        check_alike(index, truth, unit)


def test_every_token_finds_its_units_through_percent_encoding(odd: FeatureIndex) -> None:
    from urllib.parse import parse_qsl

    truth = scan(odd)
    for token, content in enumerate(TOKENS):
        if content:
            query = f"activating={quote_from_bytes(content, safe='')}"
            ((_, given),) = parse_qsl(query, errors="surrogateescape")
            found = matching(odd.parts["postings"], odd.vocabulary, [Term(given, "activating")], odd.n_units)
            same = {i for i, other in enumerate(TOKENS) if other == content}
            assert found.tolist() == [u for u in range(odd.n_units) if truth["activating"][u] & same], token


def test_graphs_decide_the_context_and_add_to_what_activates(odd: FeatureIndex, tmp_path: Path) -> None:
    for token in ("Paris", "paris", " Paris"):
        assert 3 in matching(odd.parts["postings"], odd.vocabulary, [Term(token, "activating")], odd.n_units)
    plain_index = by_hand(tmp_path, TOKENS, units=60)
    before = matching(plain_index.parts["postings"], plain_index.vocabulary, [Term(":", "context")], 60)
    assert 5 not in before
    grown = add_notes(plain_index, {(5, "graph"): graph(("activating", "x"), ("context", ":"))})
    after = matching(grown.parts["postings"], grown.vocabulary, [Term(":", "context")], 60)
    assert after.tolist() == sorted({*before, 5})
    assert grown.note(5, "graph") is not None
    assert len(list(tmp_path.glob("postings-*"))) == 1  # the old file is gone
    with pytest.raises(UsageError, match="unit number 60"):
        add_notes(grown, {(60, "graph"): graph()})


def check_alike(index: FeatureIndex, truth: Truth, unit: int) -> None:
    """The seven most similar units, by sets of tokens."""
    sets, expected = truth["activating"], []
    own = sets[unit]
    for other in range(index.n_units):
        shared = len(own & sets[other])
        if other != unit and shared:
            expected.append((-shared / len(own | sets[other]), other, shared / len(own), shared / len(sets[other])))
    best = alike(index.parts["postings"], unit, 7)
    found = [(-each.similarity, each.unit, each.inside, each.holds) for each in best]
    assert found == [pytest.approx(each) for each in sorted(expected)[:7]]


def test_similarity_and_subset_against_sets(odd: FeatureIndex) -> None:
    truth = scan(odd)
    for unit in range(odd.n_units):
        check_alike(odd, truth, unit)


def test_similarity_is_the_same_both_ways_and_silent_units_have_none(odd: FeatureIndex) -> None:
    lists = odd.parts["postings"]
    for unit in range(0, odd.n_units - 1, 5):
        for each in alike(lists, unit, odd.n_units):
            back = next(other for other in alike(lists, each.unit, odd.n_units) if other.unit == unit)
            assert (back.similarity, back.inside, back.holds) == (each.similarity, each.holds, each.inside)
    assert alike(lists, odd.n_units - 1) == []


def test_search_pages_name_sources_and_near_tokens(odd: FeatureIndex) -> None:
    everything = search(odd, [Term("a", "any")], ci=True, trim=True, limit=1000)
    parts = [search(odd, [Term("a", "any")], ci=True, trim=True, offset=i, limit=7)["units"] for i in range(0, 63, 7)]
    assert [row for part in parts for row in part] == everything["units"]
    only = search(odd, [Term("a", "any")], ci=True, trim=True, source="dict", limit=1000)
    assert [row for row in everything["units"] if row["source"] == "dict"] == only["units"]
    near = search(odd, [Term("PARIS", "any")])
    assert near["total"] == 0
    assert [each["token"] for each in near["near"]] == ["Paris", "paris", " Paris"]
    assert search(odd, [Term("Paris", "any")])["near"] == []


def test_bad_terms_are_refused(odd: FeatureIndex) -> None:
    with pytest.raises(UsageError, match="role 'importance'"):
        Term("a", "importance")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="empty token"):
        Term("", "any")
    with pytest.raises(UsageError, match="no term"):
        matching(odd.parts["postings"], odd.vocabulary, [], odd.n_units)
