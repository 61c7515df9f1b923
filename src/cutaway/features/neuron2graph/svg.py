"""The drawing of a neuron's graph: text runs from left to right, so context stands left of what it switches on."""

from html import escape

from cutaway.features.neuron2graph.graph import NeuronGraph, Node

_WIDTH, _HEIGHT, _STEP, _GAP = 120, 26, 150, 34
_FONT = "font-family='ui-monospace, Menlo, Consolas, monospace' font-size='13'"


def draw(graph: NeuronGraph, limit: int = 60) -> str:
    """Return an SVG of the ``limit`` patterns with most samples: activating tokens red, context blue.

    Runs of IGNORE are one dotted line with their length on it. Colour deepens with importance; patterns that predict
    no firing are struck out. Texts are escaped and nothing in the drawing runs or loads.
    """
    ends = sorted((node for node in graph.nodes if node.role == "end"), key=lambda node: -node.count)
    shown = {node.id for end in ends[:limit] for node in graph.way(end.parent)}
    places, rows = _places(graph, shown)
    depth = max((column for column, _ in places.values()), default=0)
    width, height = (depth + 1) * _STEP + 60, max(1, rows) * _GAP + 34
    quiet = {node.parent for node in graph.nodes if node.role == "end" and node.activation < 0.5}
    values = {node.parent: node for node in graph.nodes if node.role == "end"}
    body = [_link(graph, node, places, depth) for node in graph.nodes if node.id in places and node.parent >= 0]
    for node in graph.nodes:
        if node.id in places:
            body.append(_box(node, *_corner(places[node.id], depth), values.get(node.id), node.id in quiet))
    more = f", the {limit} most frequent of {len(ends)} patterns" if len(ends) > limit else ""
    title = _plain(f"{graph.name}{more}" if ends else f"{graph.name}: no pattern")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
        f" role='img' aria-label='{title}'><rect width='100%' height='100%' fill='#ffffff'/>"
        f"<text x='10' y='18' {_FONT} fill='#333333'>{title}</text>{''.join(body)}</svg>"
    )


def _plain(text: str) -> str:
    return escape("".join(c if c.isprintable() else "\u25a1" for c in text))


def _places(graph: NeuronGraph, shown: set[int]) -> tuple[dict[int, tuple[int, float]], int]:
    """Return column (from the right) and row of every node that has a token, and the number of rows."""
    below: dict[int, list[int]] = {}
    for node in graph.nodes:
        if node.id in shown:
            below.setdefault(node.parent, []).append(node.id)
    places: dict[int, tuple[int, float]] = {}
    row = 0

    def put(node: int, column: int) -> tuple[float, float]:
        nonlocal row
        solid = graph.nodes[node].token is not None
        inside = [put(child, column + solid) for child in below.get(node, ())]
        if not inside:
            inside, row = [(float(row), float(row))], row + 1
        middle = (inside[0][0] + inside[-1][1]) / 2
        if solid:
            places[node] = (column, middle)
        return middle, middle

    for root in below.get(-1, ()):
        put(root, 0)
    return places, row


def _corner(place: tuple[int, float], depth: int) -> tuple[float, float]:
    return 20.0 + (depth - place[0]) * _STEP, 32.0 + place[1] * _GAP


def _box(node: Node, x: float, y: float, end: Node | None, quiet: bool) -> str:
    colour = "200, 40, 40" if node.role == "activating" else "40, 90, 200"
    strength = node.activation if node.role == "activating" else node.importance
    alpha = 0.15 + 0.65 * min(1.0, max(0.0, strength))
    text = (node.token or "").replace(" ", "\u00b7").replace("\n", "\u21b5")
    text = text if len(text) <= 13 else f"{text[:12]}\u2026"
    mark = " text-decoration='line-through'" if quiet else ""
    note = "" if end is None else f"<title>{end.activation:.2f} (sd {end.sd:.2f}, {end.count} samples)</title>"
    return (
        f"<g>{note}<rect x='{x:.0f}' y='{y:.0f}' width='{_WIDTH}' height='{_HEIGHT}' rx='5' stroke='#555555'"
        f" stroke-width='{2 if end else 0.7}' fill='rgb({colour})' fill-opacity='{alpha:.2f}'/>"
        f"<text x='{x + _WIDTH / 2:.0f}' y='{y + 17:.0f}' text-anchor='middle' {_FONT}{mark}>{_plain(text)}</text></g>"
    )


def _link(graph: NeuronGraph, node: Node, places: dict[int, tuple[int, float]], depth: int) -> str:
    parent, skipped = node.parent, 0
    while graph.nodes[parent].token is None:
        parent, skipped = graph.nodes[parent].parent, skipped + 1
    (x, y), (to_x, to_y) = _corner(places[node.id], depth), _corner(places[parent], depth)
    x, y, to_y = x + _WIDTH, y + _HEIGHT / 2, to_y + _HEIGHT / 2
    dots = " stroke-dasharray='3 3'" if skipped else ""
    label = f"<text x='{(x + to_x) / 2 - 6:.0f}' y='{(y + to_y) / 2 - 3:.0f}' {_FONT} fill='#777777'>{skipped}</text>"
    line = f"<path d='M{x:.0f} {y:.0f} L{to_x:.0f} {to_y:.0f}' stroke='#888888' fill='none'{dots}/>"
    return line + (label if skipped else "")
