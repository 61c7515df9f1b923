"""A circuit drawn: layers of nodes, a slider over sizes, what a node reads and attends to."""

from typing import Any

from cutaway.circuits.view import CircuitView
from cutaway.explain.page import VIEWER_STYLES, embedded, render, rounded

CIRCUIT_SCRIPTS = ("circuit.js",)
CIRCUIT_STYLE = "circuit.css"


def circuit_page(view: CircuitView) -> str:
    """Return one circuit as one HTML document.

    >>> Path("circuit.html").write_text(circuit_page(view), encoding="utf-8")  # doctest: +SKIP
    """
    return render(
        "circuit_page.html.j2",
        scripts=[CIRCUIT_SCRIPTS],
        styles=(*VIEWER_STYLES, CIRCUIT_STYLE),
        title=view.title,
        view=None,
        circuit=view,
        circuit_data=embedded(circuit_data(view)),
    )


def circuit_data(view: CircuitView) -> dict[str, Any]:
    """What the page carries."""
    lists = {
        key: None if values is None else [None if x is None else rounded(x, 5) for x in values]
        for key, values in (
            *(("value", view.curve.value), ("low", view.curve.low), ("high", view.curve.high)),
            ("control", view.curve.control),
        )
    }
    return {
        "title": view.title,
        "tokens": list(view.tokens),
        "corrupted": list(view.corrupted),
        "nodes": [[node.name, node.label, node.kind, node.layer, node.x] for node in view.nodes],
        "edges": [[edge.source, edge.target, edge.port, rounded(edge.score, 4), edge.sizes] for edge in view.edges],
        "asked": list(view.asked),
        "kept": list(view.kept),
        "curve": {"name": view.curve.name, **lists},
        "attention": {name: [list(row) for row in rows] for name, rows in view.attention.items()},
    }
