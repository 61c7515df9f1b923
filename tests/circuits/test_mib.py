"""MIB's JSON: names, legal edges, every grouping back and forth, shared heads spread out, unknown nodes refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.mib import read_mib, write_mib
from cutaway.circuits.wiring import Wiring
from cutaway.errors import CutawayError, UsageError


def graph_of(wiring: Wiring, positions: tuple[str, ...] = ()) -> CircuitGraph:
    rng = np.random.default_rng(0)
    shape = (*([len(positions)] if positions else []), *wiring.legal.shape)
    scores = (rng.normal(size=shape) * wiring.legal).astype(np.float32)
    return CircuitGraph(Header("m", "f", wiring, "eap", positions=positions), scores, rng.random(shape) < 0.3)


@pytest.mark.parametrize("grouping", ["shared", "expanded", "whole"])
@pytest.mark.parametrize("parallel", [False, True])
def test_what_is_written_comes_back(tmp_path: Path, grouping: str, parallel: bool) -> None:
    graph = graph_of(Wiring(2, 4, 2, grouping, parallel))
    write_mib(graph, tmp_path / "c.json", d_model=32)
    back = read_mib(tmp_path / "c.json", n_kv_heads=2, grouping=grouping)
    assert back.wiring == graph.wiring
    assert np.array_equal(back.mask, graph.mask)
    assert np.allclose(back.scores, graph.scores, atol=1e-7)


def test_the_file_says_it_in_mibs_words(tmp_path: Path) -> None:
    """As EAP-IG names things, for GPT-2 Small's 32,491 edges."""
    graph = graph_of(Wiring(12, 12, 12))
    write_mib(graph, tmp_path / "c.json", d_model=768)
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["cfg"] == {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}
    assert len(data["edges"]) == 32_491
    assert len(data["nodes"]) == 158
    assert data["nodes"]["logits"] == {"in_graph": True}
    wiring = graph.wiring
    entry = data["edges"]["a0.h1->a3.h2<q>"]
    place = wiring.writer("z.0.1"), wiring.reader("q.3.2")
    assert entry == {"score": float(graph.scores[place]), "in_graph": bool(graph.mask[place])}
    for name in ("input->a0.h0<k>", "a0.h11->m0", "m11->logits", "input->logits"):
        assert name in data["edges"]
    assert "a3.h0->a3.h1<q>" not in data["edges"]


def test_a_shared_key_is_written_for_each_head_of_its_group(tmp_path: Path) -> None:
    shared = graph_of(Wiring(2, 4, 2, "shared"))
    write_mib(shared, tmp_path / "c.json", d_model=32)
    expanded = read_mib(tmp_path / "c.json", n_kv_heads=2)
    assert expanded.n_edges == Wiring(2, 4, 2, "expanded").n_edges
    place = shared.wiring.writer("z.0.3"), shared.wiring.reader("k.1.1")
    for head in (2, 3):
        there = expanded.wiring.writer("z.0.3"), expanded.wiring.reader(f"k.1.{head}")
        assert expanded.scores[there] == pytest.approx(shared.scores[place] / 2)
        assert expanded.mask[there] == shared.mask[place]


def test_old_files_and_files_with_few_edges(tmp_path: Path) -> None:
    old = {
        "cfg": {"n_layers": 1, "n_heads": 2, "d_model": 8},
        "nodes": {"input": True, "a0.h1": True, "logits": True},
        "edges": {
            "input->a0.h1<v>": {"score": 0.5, "in_graph": True},
            "a0.h1->logits": {"score": -2, "in_graph": True},
        },
    }
    (tmp_path / "c.json").write_text(json.dumps(old))
    graph = read_mib(tmp_path / "c.json", model="tiny")
    assert list(graph.edges()) == [("z.0.1", "logits", -2.0), ("embed", "v.0.1", 0.5)]


CFG = {"n_layers": 1, "n_heads": 2, "d_model": 8}
EDGE = {"score": 1.0, "in_graph": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no MIB circuit"),
        ("[]", "is no MIB circuit"),
        (json.dumps({"cfg": CFG, "nodes": {}}), "is no MIB circuit: KeyError"),
        (json.dumps({"cfg": CFG, "nodes": {"a0.h5": True}, "edges": {}}), "no node 'a0.h5'"),
        (json.dumps({"cfg": CFG, "nodes": {}, "edges": {"m7->logits": EDGE}}), "no node 'm7'"),
        (json.dumps({"cfg": CFG, "nodes": {}, "edges": {"input->a0.h1": EDGE}}), "no node 'a0.h1'.*a0.h1<"),
        (json.dumps({"cfg": CFG, "nodes": {}, "edges": {"input a0.h1": EDGE}}), "is not of the form"),
        (json.dumps({"cfg": CFG, "nodes": {}, "edges": {"m0->a0.h0<q>": EDGE}}), "mlp_out.0 writes after q.0.0 has"),
        (json.dumps({"cfg": CFG, "nodes": {}, "edges": {"m0->logits": {"score": 1}}}), "needs score and in_graph"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CutawayError, match=message):
        read_mib(tmp_path / "c.json")


def test_positions_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no positions"):
        write_mib(graph_of(Wiring(1, 2, 2), ("0", "1")), tmp_path / "c.json", d_model=8)
