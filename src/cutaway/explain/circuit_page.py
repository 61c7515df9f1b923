"""A circuit as the run's page shows it: layers of nodes, a slider over sizes, what a node reads and attends to."""

from typing import Any

from cutaway.circuits.view import CircuitView
from cutaway.explain.page import rounded

CIRCUIT_SCRIPTS = ("circuit.js",)
CIRCUIT_STYLE = "circuit.css"


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
