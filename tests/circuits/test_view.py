"""What a page draws: pruned sizes, ports by name, shared readers reaching every head of their group."""

import json
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest

from cutaway.circuits.draw import svg
from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.view import CircuitView, SizeCurve, circuit_view
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError


def make() -> tuple[CircuitGraph, list[np.ndarray]]:
    wiring = Wiring(2, 4, 2)
    scores = np.random.default_rng(0).normal(size=wiring.legal.shape)
    graph = CircuitGraph.whole(Header("tiny", "f", wiring, "eap"), scores)
    small = np.zeros(wiring.legal.shape, dtype=bool)
    for writer, reader in (("embed", "k.1.1"), ("z.1.2", "logits"), ("embed", "mlp_in.0")):
        small[wiring.writer(writer), wiring.reader(reader)] = True
    large = small.copy()
    large[wiring.writer("mlp_out.0"), wiring.reader("q.1.2")] = True
    return graph, [np.zeros_like(small), small, large]


def test_edges_carry_the_sizes_they_belong_to() -> None:
    graph, masks = make()
    curve = SizeCurve("faithfulness", (0.0, None, 0.9), control=(0.0, 0.1, 0.1))
    view = circuit_view(graph, masks, curve, title="t", tokens=["a"], asked=[1, 5, 9])
    assert (view.asked, view.kept, view.curve.value) == ((5, 9), (3, 4), (None, 0.9))
    drawn = {(view.nodes[e.source].name, view.nodes[e.target].name, e.port): e.sizes for e in view.edges}
    assert drawn == {
        ("embed", "z.1.2", "k"): 3,
        ("embed", "z.1.3", "k"): 3,  # one key, two heads
        ("embed", "mlp_out.0", "input"): 3,
        ("z.1.2", "logits", "logits"): 3,
        ("mlp_out.0", "z.1.2", "q"): 2,
    }
    assert CircuitView.from_dict(json.loads(json.dumps(view.to_dict()))) == view


def test_svg_draws_the_size_asked_for_and_escapes_the_title() -> None:
    graph, masks = make()
    view = circuit_view(graph, masks[1:], SizeCurve("f", (0.5, 0.9)), title="<script>")
    root = fromstring(svg(view, 0))
    tag = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{tag}path")) == 4
    assert len(fromstring(svg(view)).findall(f"{tag}path")) == 5
    assert root.find(f"{tag}title").text == "<script>: 3 edges"  # type: ignore[union-attr]
    heights = {text.text: float(text.get("y", 0)) for text in root.findall(f"{tag}text")}
    assert heights["logits"] < heights["1.2"] < heights["mlp 0"] < heights["embedding"]


def test_nothing_to_draw_is_refused() -> None:
    graph, masks = make()
    with pytest.raises(UsageError, match="no circuit with 1 to"):
        circuit_view(graph, masks[:1], SizeCurve("f", (0.0,)), title="t")
    with pytest.raises(UsageError, match="2 sizes, the circuits 3"):
        circuit_view(graph, masks, SizeCurve("f", (0.0, 1.0)), title="t")
