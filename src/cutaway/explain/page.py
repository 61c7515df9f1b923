"""What every page shares: one HTML file that asks nothing of the network.

A page runs under a content security policy that allows only its own style and script, each named by hash.
Whatever a model or a user wrote is data: Jinja escapes it, or it travels as JSON and reaches the page as text
nodes.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cutaway.sampling import without_end_mark

VIEWER_SCRIPTS = ("view_state.js", "view_plot.js", "view_rows.js", "view_detail.js", "view_start.js")
VIEWER_STYLES = ("report.css", "viewer.css")


def render(template: str, *, scripts: Sequence[Sequence[str]] = (), styles: Sequence[str], **context: Any) -> str:
    """Fill a template of ours; ``scripts`` are groups of files, and a group sees no other group's names."""
    style = "".join(_own(name) for name in styles)
    blocks = "".join("{\n" + "".join(_own(name) for name in group) + "}\n" for group in scripts)
    script = f'"use strict";\n(() => {{\n{_own("dom.js")}{blocks}}})();\n' if scripts else ""
    allowed = f"'{csp_hash(script)}'" if script else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src '{csp_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    html = page.render(style=Markup(style), script=Markup(script), policy=policy, **context)
    # A decoded token can leave half a surrogate pair, which no file could hold.
    return html.encode("utf-8", "replace").decode("utf-8")


def embedded(payload: object) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def rounded(value: float | None, digits: int) -> float | None:
    """``value`` with so many significant digits; None where JSON has no number for it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def probability(value: float) -> str:
    """Two decimals that never round a possible event to certain or impossible.

    >>> probability(0.425), probability(0.9991), probability(1.0)
    ('0.42', '>0.99', '1.00')
    """
    if 0 < value < 0.01:
        return "<0.01"
    if 0.99 < value < 1:
        return ">0.99"
    return f"{value:.2f}"


def signed(value: float) -> str:
    """A change with its sign: ``+0.49``, ``−0.10``, and ``0.00`` without one."""
    size = f"{abs(value):.2f}"
    return size if size == "0.00" else ("−" if value < 0 else "+") + size


def number(value: float) -> str:
    """Any number with three significant digits, or whole with thousands marked.

    >>> number(0.12345), number(-2), number(14820.4), number(0.00001234)
    ('0.123', '−2', '14,820', '1.23e-05')
    """
    if abs(value) < 1e-12:  # what rounding leaves of zero
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "0" if text == "-0" else text.replace("-", "−", 1) if text.startswith("-") else text


def shown(sentence: str) -> str:
    """A sentence as it is read: no white space around it, no end-of-turn mark behind it."""
    return without_end_mark(sentence.strip()).strip()


@cache
def _own(name: str) -> str:
    return (files("cutaway.explain") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cutaway.explain"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"prob": probability, "signed": signed, "number": number, "shown": shown}
    return environment
