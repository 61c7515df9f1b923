"""The drawing of a circuit in a real browser: slider, nodes, keyboard, attention; text from models stays text."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from page_reader import HOSTILE, Page, check_sealed

from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.view import CircuitView, SizeCurve, circuit_view
from cutaway.circuits.wiring import Wiring
from cutaway.explain import circuit_page, run_page
from cutaway.ledger import RunRecord
from cutaway.sampling.types import Cost

RUN = RunRecord("r1", "query-circuits", {}, 0, "2026-01-02T10:00:00", 1.0, True, "one line", {}, "c", {}, {}, Cost())


@pytest.fixture
def view() -> CircuitView:
    wiring = Wiring(4, 3, 3)
    rng = np.random.default_rng(0)
    graph = CircuitGraph.whole(Header("tiny", "f", wiring, "eap-ig"), rng.normal(size=wiring.legal.shape))
    order = np.argsort(-np.abs(np.where(wiring.legal, graph.scores, 0)).ravel())
    masks = []
    for size in (5, 20, 60):
        mask = np.zeros(wiring.legal.size, dtype=bool)
        mask[order[:size]] = True
        masks.append(mask.reshape(wiring.legal.shape))
    tokens = ["Mary", HOSTILE, " gave"]
    attention = {name: np.tril(np.ones((3, 3))) / 3 for name in wiring.writers if name.startswith("z.")}
    curve = SizeCurve("faithfulness", (0.2, 0.6, 0.9), (0.1, 0.5, 0.8), (0.3, 0.7, 1.0), (0.0, 0.0, 0.1))
    return circuit_view(graph, masks, curve, title=HOSTILE, tokens=tokens, corrupted=tokens, attention=attention)


def test_page_is_sealed_and_carries_what_it_shows(view: CircuitView) -> None:
    html = run_page(RUN, (), circuit=view)
    check_sealed(Page(html))
    assert html.count('id="circuit-data"') == 1
    assert 'id="circuit"' not in run_page(RUN, ())


def test_a_circuit_has_a_page_of_its_own(view: CircuitView, open_page: Callable[..., Any]) -> None:
    html = circuit_page(view)
    check_sealed(Page(html))
    page = open_page(html)
    assert page.locator(".c-edge").count() == 60
    page.locator("#c-size").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".c-edge").count() == 20


def test_slider_and_nodes(view: CircuitView, open_page: Callable[..., Any]) -> None:
    page = open_page(run_page(RUN, (), circuit=view))
    assert page.locator(".c-edge").count() == 60  # the first size that reaches 0.8
    page.locator("#c-size").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".c-edge").count() == 20
    assert page.locator("#c-size-out").inner_text() == "20; faithfulness 0.60"
    page.locator(".c-point").first.click()
    assert page.locator(".c-edge").count() == 5
    page.locator(".c-point").last.click()
    head = page.locator(".c-node.head").first
    name = head.get_attribute("aria-label")
    head.click()
    assert page.locator("#c-chosen").inner_text() == name
    assert page.locator(".c-heat .cell").count() == 6
    assert page.locator(".c-edge.is-of").count() >= 1
    other = page.locator(".c-aside button").first
    target = other.inner_text()
    other.click()
    assert page.locator("#c-chosen").inner_text() == target
    page.locator(f'.c-node[aria-label="{target}"]').focus()
    page.keyboard.press("Enter")
    assert page.locator("#c-chosen").count() == 0
