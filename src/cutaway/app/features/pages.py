"""The pages over a feature index: overview, layer, unit, search."""

import json
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from cutaway.app.features import drawing
from cutaway.app.features.api import ROLES, ProblemError, check_layer, check_model, terms_of, unit_number
from cutaway.app.pages import Pages
from cutaway.errors import CutawayError
from cutaway.features.index import FeatureIndex, view
from cutaway.features.index.live import Live
from cutaway.features.index.store import Order
from cutaway.features.index.vocabulary import visible

STATIC = {"features.css": "text/css", "features.js": "text/javascript"}
PER_PAGE = 50


@cache
def _pages() -> Pages:
    return Pages("cutaway.app.features")


def pages_router(index: FeatureIndex, live: Live | None) -> APIRouter:
    """Return the routes under ``/features``."""
    router = APIRouter(prefix="/features", include_in_schema=False)
    home = f"/features/{quote(index.model, safe='')}"
    shared: dict[str, Any] = {"index": index, "home": home, "live": live}
    shared |= {"about": view.provenance(index), "link": linker(home), "visible": visible}

    def page(request: Request, template: str, **context: Any) -> HTMLResponse:
        return _pages().page(request, template, **shared, **context)

    @router.get("")
    def start() -> RedirectResponse:
        return RedirectResponse(home)

    router.get("/static/{name}")(_static)

    @router.get("/{model}")
    def overview(request: Request, model: str) -> HTMLResponse:
        check_model(index, model)
        sources = [view.source_summary(index, each.name) for each in index.sources]
        return page(request, "overview.html.j2", sources=sources)

    @router.get("/{model}/search")
    def search(
        request: Request, model: str, ci: bool = False, trim: bool = False, offset: int = Query(0, ge=0)
    ) -> HTMLResponse:
        check_model(index, model)
        found = _searched(index, f"{home}/search", request, ci, trim, offset)
        return page(request, "search.html.j2", ci=ci, trim=trim, **found)

    @router.get("/{model}/{layer}")
    def layer_page(
        request: Request, model: str, layer: str, order: Order = "strength", offset: int = Query(0, ge=0)
    ) -> HTMLResponse:
        check_model(index, model)
        source = check_layer(index, layer)
        rows = []
        for number in index.listing(layer, order, offset, PER_PAGE):
            effects = view.logits(index, number) or {"promoted": []}
            rows.append({**view.brief(index, number), "promoted": [each["token"] for each in effects["promoted"][:4]]})
        turns = _turns(f"{home}/{quote(layer)}?order={order}&", offset, source.units)
        return page(request, "layer.html.j2", source=source, rows=rows, order=order, turns=turns)

    @router.get("/{model}/{layer}/{unit}")
    def unit_page(request: Request, model: str, layer: str, unit: int) -> HTMLResponse:
        check_model(index, model)
        number = unit_number(index, layer, unit)
        data, missing = view.unit_view(index, number)
        strongest = data["metadata"]["strongest"]
        texts = {
            name: [
                {"heat": drawing.heat(each["tokens"], each["values"], strongest, each["at"]), **each}
                for each in data.get(name, ())
            ]
            for name in ("texts", "samples")
        }
        return page(
            request,
            "unit.html.j2",
            unit=unit,
            source=index.source(layer),
            data={**dict.fromkeys(view.SERVICES), **data},
            missing=missing,
            **texts,
            bars=drawing.bars(data["histogram"]) if "histogram" in data else "",
            graph=_graph(data.get("graph")),
            extra=json.dumps(data.get("extra"), indent=1, ensure_ascii=False) if "extra" in data else "",
        )

    return router


def _searched(index: FeatureIndex, home: str, request: Request, ci: bool, trim: bool, offset: int) -> dict[str, Any]:
    """What was asked for and, if anything was, what was found."""
    asked = [(name, value) for name, value in request.query_params.multi_items() if name in ROLES and value]
    if not asked:
        return {"asked": asked, "found": None}
    # An empty field of the form is no term.
    kept = [part for part in request.scope["query_string"].split(b"&") if not part.endswith(b"=")]
    terms = terms_of(Request({**request.scope, "query_string": b"&".join(kept)}))
    found = view.search(index, terms, ci=ci, trim=trim, offset=offset, limit=PER_PAGE)
    rest = b"&".join(part for part in kept if not part.startswith(b"offset=")).decode("latin-1")
    return {"asked": asked, "found": found, "turns": _turns(f"{home}?{rest}&", offset, found["total"])}


def _static(name: str) -> Response:
    if name not in STATIC:
        raise ProblemError(404, f"no file {name!r}", "")
    text = (files("cutaway.app.features") / "static" / name).read_text(encoding="utf-8")
    return Response(text, media_type=STATIC[name], headers={"cache-control": "no-cache"})


def linker(home: str) -> Any:
    """Return what makes addresses: ``link("12", 7)`` of a unit, ``link(activating=" a")`` of a search."""

    def link(source: str | None = None, unit: int | None = None, **terms: str) -> str:
        if source is None:
            return f"{home}/search?{urlencode(terms, errors='surrogatepass')}"
        return f"{home}/{quote(source, safe='')}" + ("" if unit is None else f"/{unit}")

    return link


def _graph(graph: dict[str, Any] | None) -> Markup | str:
    """Return a unit's graph as SVG; graphs of other tools that cannot be read are left out."""
    if graph is None:
        return ""
    from cutaway.features.neuron2graph import NeuronGraph, draw

    try:
        return Markup(draw(NeuronGraph.from_dict(graph)))
    except CutawayError:
        return ""


def _turns(address: str, offset: int, total: int) -> dict[str, Any]:
    """Return the addresses of the pages before and after, empty where there is none, and what is shown."""
    last = min(offset + PER_PAGE, total)
    return {
        "before": f"{address}offset={max(0, offset - PER_PAGE)}" if offset else "",
        "after": f"{address}offset={last}" if last < total else "",
        "first": offset + 1,
        "last": last,
        "total": total,
    }
