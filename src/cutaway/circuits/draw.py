"""Circuits as still SVG: layers from bottom to top, heads side by side, the MLP on the right; no graphviz."""

import math
from xml.etree.ElementTree import Element, SubElement, tostring

from cutaway.circuits.view import CircuitView, Node

_WIDTH, _ROW, _MARGIN = 860.0, 46.0, 34.0
_FILL = {"embed": "#eef0ec", "head": "#dcebf8", "mlp": "#fbe6d6", "logits": "#eef0ec"}
_GOOD, _BAD = "#0b63ad", "#c2500b"


def svg(view: CircuitView, size: int = -1) -> str:
    """Return the ``size``-th circuit of ``view`` (default: the largest) as one SVG document.

    Edges that support the answer are blue, those against it orange; width goes with the score's square root.
    """
    bit = 1 << range(len(view.asked))[size]
    edges = [edge for edge in view.edges if edge.sizes & bit]
    used = sorted({end for edge in edges for end in (edge.source, edge.target)})
    rows = sorted({view.nodes[i].layer for i in used})
    height = 2 * _MARGIN + _ROW * max(1, len(rows) - 1)
    at = {i: (_x(view.nodes[i]), height - _MARGIN - _ROW * rows.index(view.nodes[i].layer)) for i in used}
    root = Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img")
    SubElement(root, "title").text = f"{view.title}: {view.kept[size]} edges"
    largest = max((abs(edge.score) for edge in edges), default=0.0) or 1.0
    for edge in edges:
        (x1, y1), (x2, y2) = at[edge.source], at[edge.target]
        share = math.sqrt(abs(edge.score) / largest)
        SubElement(
            root,
            "path",
            {
                "d": f"M{x1:.1f} {y1:.1f}C{x1:.1f} {(y1 + y2) / 2:.1f} {x2:.1f} {(y1 + y2) / 2:.1f} {x2:.1f} {y2:.1f}",
                "fill": "none",
                "stroke": _GOOD if edge.score >= 0 else _BAD,
                "stroke-width": f"{0.4 + 2.6 * share:.2f}",
                "stroke-opacity": f"{0.25 + 0.6 * share:.2f}",
            },
        )
    for i in used:
        _draw_node(root, view.nodes[i], *at[i])
    return tostring(root, encoding="unicode")


def _draw_node(root: Element, node: Node, x: float, y: float) -> None:
    width = 13.0 + 6.4 * len(node.label)
    box = {"x": f"{x - width / 2:.1f}", "y": f"{y - 9:.1f}", "width": f"{width:.1f}", "height": "18", "rx": "5"}
    SubElement(root, "rect", {**box, "fill": _FILL[node.kind], "stroke": "#59626c", "stroke-width": "0.7"})
    middle = {"x": f"{x:.1f}", "y": f"{y + 4:.1f}", "text-anchor": "middle"}
    SubElement(root, "text", {**middle, "font-size": "11", "font-family": "sans-serif"}).text = node.label


def _x(node: Node) -> float:
    return _MARGIN + node.x * (_WIDTH - 2 * _MARGIN)
