"""The search: equal to circuits run one by one, never worse than the single query where it chooses, nested, pruned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.circuits.attribution import Settings, edge_scores, header
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.patch import run
from cutaway.circuits.query_circuits import (
    CHOSEN,
    WAYS,
    Query,
    Search,
    candidate_sets,
    exchanged,
    indirect_objects,
    place,
    score_matrices,
    search_circuits,
    search_query,
)
from cutaway.circuits.query_circuits.calibration import known_query
from cutaway.circuits.query_circuits.kept import kept
from cutaway.circuits.record import reference
from cutaway.circuits.select import prune
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.induction import induction

SEARCH = Search((5, 20, 60, 120), tuple(WAYS), steps=2)


@pytest.fixture(scope="module")
def queries(speaker: Model) -> list[Query]:
    return list(indirect_objects(speaker, 3, wordings=3).items)


def test_scores_of_wordings_of_any_length_keep_their_places(speaker: Model, queries: list[Query]) -> None:
    """Queries of other frames have other lengths: they are scored in other passes and must come back in order."""
    mixed = replace(queries[0], wordings=(queries[2].pair, queries[0].wordings[0], queries[1].pair))
    assert len({len(pair.clean) for pair in (mixed.pair, *mixed.wordings)}) > 1
    body, wiring, settings = anatomy(speaker), Wiring.of(speaker), Settings(steps=3)
    found = score_matrices(body, wiring, mixed, settings)
    for row, pair in zip(found, (mixed.pair, *mixed.wordings), strict=True):
        alone = edge_scores(body, wiring, Pairs((pair,)), settings)[0].numpy()
        assert np.allclose(row, alone, atol=1e-5)


def test_candidates(speaker: Model, queries: list[Query]) -> None:
    body, wiring, query = anatomy(speaker), Wiring.of(speaker), queries[0]
    matrices = score_matrices(body, wiring, query, SEARCH.settings)
    graph = CircuitGraph.whole(header(body, wiring, Pairs((query.pair,)), SEARCH.settings), matrices[0])
    sets = candidate_sets(graph, matrices, query, SEARCH)
    for way, masks in sets.items():
        assert masks.shape[0] == (1 if way in ("single", "mean") else len(matrices))
        assert (masks.sum((2, 3)) == SEARCH.sizes).all(), way
        assert not (masks & ~wiring.legal).any()
        if way not in ("mean", "random"):
            assert np.array_equal(masks[0], sets["single"][0]), way  # candidate 0 is never perturbed
    for share in ("0.1", "0.3"):
        lost = (sets["single"] & ~sets[f"swap {share}"][1:]).sum((2, 3))
        assert (lost == [round(float(share) * size) for size in SEARCH.sizes]).all()
    again = candidate_sets(graph, matrices, query, replace(SEARCH, ways=("single", "random")))
    assert np.array_equal(again["random"], sets["random"])
    other = candidate_sets(graph, matrices, query, replace(SEARCH, seed=1))
    assert not np.array_equal(other["random"], sets["random"])


def test_exchanging_everything_and_nothing(speaker: Model) -> None:
    wiring, rng = Wiring.of(speaker), np.random.default_rng(0)
    mask = np.zeros(wiring.legal.shape, dtype=bool)
    mask[0] = wiring.legal[0]
    assert np.array_equal(exchanged(mask, 0.0, wiring, rng), mask)
    assert not (exchanged(mask, 1.0, wiring, rng) & mask).any()
    assert np.array_equal(exchanged(wiring.legal, 0.5, wiring, rng), wiring.legal)  # nothing to exchange for


def test_ndf_equals_circuits_run_one_by_one(speaker: Model, queries: list[Query]) -> None:
    body, wiring, query = anatomy(speaker), Wiring.of(speaker), queries[0]
    found = search_query(body, wiring, query, SEARCH)
    for pair, values in (
        (query.pair, found.ndf["wordings"]),
        *((p, found.held_out[w]["wordings"]) for w, p in query.held_out),
    ):
        for at in range(len(SEARCH.sizes)):
            assert values[at] == pytest.approx(naive_ndf(speaker, wiring, pair, found.masks[at]), abs=1e-5)
    left = place(body, wiring, query.pair)
    for at in range(len(SEARCH.sizes)):
        value = naive_value(speaker, wiring, query.pair, wiring.legal & ~found.masks[at])
        share = (value - left.none) / (left.full - left.none)
        assert found.complement[at] == pytest.approx(share, abs=1e-4)


def naive_value(model: Model, wiring: Wiring, pair, mask) -> float:
    pairs, body = Pairs((pair,)), anatomy(model)
    with torch.no_grad():
        instead = reference(body, pairs.corrupted, "corrupted")
        return float(pairs.value(run(body, wiring, pairs.clean, torch.from_numpy(mask)[None], instead))[0, 0])


def naive_ndf(model: Model, wiring: Wiring, pair, mask) -> float:
    pairs = Pairs((pair,))
    full, none = (
        float(pairs.value(model.logits(model.batch([list(ids)]))[:, -1].detach())[0])
        for ids in (pair.clean, pair.corrupted)
    )
    return 1 - min(abs(full - naive_value(model, wiring, pair, mask)) / abs(full - none), 1)


def test_winners(speaker: Model, queries: list[Query]) -> None:
    found = search_circuits(speaker, queries, SEARCH)
    single = found.values("single")
    wiring = Wiring.of(speaker)
    for way in WAYS:
        if way not in ("mean", "random"):
            assert (found.values(way) >= single).all(), way
    for query in found.queries:
        for way in SEARCH.ways:
            assert np.array_equal(query.ndf[way], query.candidates[way].max(0))
        for way, edges in query.kept.items():
            assert (edges <= SEARCH.sizes).all(), way
        for mask, size in zip(query.masks, query.kept["wordings"], strict=True):
            assert mask.sum() == size
            assert np.array_equal(prune(wiring, mask), mask)


def test_nested_circuits_hold_each_other(speaker: Model, queries: list[Query], monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen where they are run: every nested circuit holds the smaller ones."""
    from cutaway.circuits.query_circuits import method

    seen: list[np.ndarray] = []
    real = method.Place.ndf
    monkeypatch.setattr(
        method.Place, "ndf", lambda self, circuits: (seen.append(circuits.get("nested")), real(self, circuits))[1]
    )
    search_query(anatomy(speaker), Wiring.of(speaker), queries[0], SEARCH)
    rows = [masks for masks in seen if masks is not None]
    assert len(rows) >= 3
    for masks in rows:
        assert not (masks[:-1] & ~masks[1:]).any()
        assert masks[-1].any()


def test_what_is_held_out_changes_no_choice(speaker: Model, queries: list[Query]) -> None:
    query, other = queries[:2]
    with_own = search_circuits(speaker, [query], SEARCH).queries[0]
    with_other = search_circuits(speaker, [replace(query, held_out=other.held_out)], SEARCH).queries[0]
    assert np.array_equal(with_own.masks, with_other.masks)
    assert with_own.ndf.keys() == with_other.ndf.keys()
    assert not np.allclose(
        with_own.held_out["another corruption"]["single"], with_other.held_out["another corruption"]["single"]
    )


def test_planted_circuit_is_found_exactly() -> None:
    planted = induction(16)
    known = known_query(planted, "value", 0)
    found = search_circuits(planted.model, [known.query], Search((1, 2, 3), steps=10)).queries[0]
    assert {(writer, reader) for writer, reader, _ in found.circuit(1).edges()} == known.edges
    assert found.ndf["wordings"][1] > 0.95
    assert found.kept["wordings"].tolist() == [0, 2, 2]
    assert found.ndf["wordings"][0] == pytest.approx(0.0, abs=1e-6)


def test_an_answer_that_cannot_change_has_no_ndf() -> None:
    silent = induction(16, noise=0.0)
    query = known_query(silent, "nothing", 0).query
    found = search_circuits(silent.model, [query], Search((2, 8), steps=3))
    assert found.undefined == 1
    assert all(np.isnan(values).all() for values in found.queries[0].ndf.values())
    assert all(np.isnan(each.value) for each in found.curve("wordings"))


def test_interrupted_search_keeps_what_is_finished(speaker: Model, queries: list[Query]) -> None:
    def tick(done: float, total: float, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    found = search_circuits(speaker, queries, replace(SEARCH, ways=("single", "random")), tick=tick)
    assert (len(found.queries), found.complete) == (2, False)
    whole = search_circuits(speaker, queries[:2], replace(SEARCH, ways=("single", "random")))
    assert np.allclose(found.values("single"), whole.values("single"))


def test_a_stopped_search_goes_on_where_it_was(speaker: Model, queries: list[Query], tmp_path: Path) -> None:
    def stop(done: float, total: float, note: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    search = replace(SEARCH, ways=("single", "wordings", "random"))
    assert not search_circuits(speaker, queries[:2], search, folder=tmp_path, tick=stop).complete
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 1
    again = search_circuits(speaker, queries[:2], search, folder=tmp_path)
    assert before.items() < {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.items(), "searched once more"
    whole = search_circuits(speaker, queries[:2], search)
    assert again.complete
    assert again.to_dict() == whole.to_dict()
    for ours, fresh in zip(again.queries, whole.queries, strict=True):
        assert (ours.masks == fresh.masks).all()
        assert ours.graph.header == fresh.graph.header
        assert (ours.graph.scores == fresh.graph.scores).all()


def test_what_is_kept_belongs_to_one_search_and_a_damaged_file_is_made_anew(
    speaker: Model, queries: list[Query], tmp_path: Path
) -> None:
    search = replace(SEARCH, ways=("single", "random"))
    search_circuits(speaker, queries[:1], search, folder=tmp_path)
    (first,) = tmp_path.iterdir()
    other = search_circuits(speaker, queries[:1], replace(search, steps=1), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert other.to_dict() == search_circuits(speaker, queries[:1], replace(search, steps=1)).to_dict()
    first.write_bytes(first.read_bytes()[:-100])
    assert search_circuits(speaker, queries[:1], search, folder=tmp_path).complete
    assert kept(first) is not None


def test_memory_changes_nothing(speaker: Model, queries: list[Query]) -> None:
    small = replace(SEARCH, ways=("single", "wordings", "random"))
    plenty, little = (search_circuits(speaker, queries[:1], small, memory=memory) for memory in (None, 2_000_000))
    for where in (CHOSEN, "another wording"):
        assert np.allclose(plenty.values("wordings", where), little.values("wordings", where), atol=1e-5)


def test_bad_input(speaker: Model, queries: list[Query]) -> None:
    for given, why in (
        ({"sizes": ()}, "one or more"),
        ({"sizes": (5, 5)}, "rising"),
        ({"ways": ("single", "randon")}, "did you mean 'random'"),
        ({"ways": ("single", "wordings")}, "'random' belongs to every search"),
        ({"steps": 0}, "steps=0"),
        ({"rule": "middle"}, "choose one of: left, midpoint"),
    ):
        with pytest.raises(UsageError, match=why):
            Search(**given)
    with pytest.raises(UsageError, match="sizes up to 100000: speaker has"):
        search_circuits(speaker, queries, Search((5, 100_000)))
    with pytest.raises(UsageError, match="no queries"):
        search_circuits(speaker, [])
