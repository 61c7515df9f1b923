"""The JSON API of a feature index.

Terms of a search are repeatable parameters named by role, ``?activating=TOKEN&context=TOKEN&any=TOKEN``, so that no
sign within a token separates anything; a token's bytes are percent-encoded and need not be text.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, get_args
from urllib.parse import parse_qsl

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from cutaway.app.features import schema
from cutaway.app.guard import error_body
from cutaway.errors import CutawayError, UsageError
from cutaway.features.index import FeatureIndex, Term, view
from cutaway.features.index.exchange import record_of_unit
from cutaway.features.index.live import Live
from cutaway.features.index.postings import Role
from cutaway.features.index.store import Order

PREFIX = "/api/features"
ROLES: tuple[Role, ...] = get_args(Role)
MAX_TERMS = 16
Data = dict[str, Any]


class ProblemError(UsageError):
    """A request that cannot be served, with its HTTP status and what to do instead."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.status, self.hint = status, hint


class _Route(APIRoute):
    """Answers every error with JSON that has a message and a hint."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await inner(request)
            except ProblemError as error:
                return _problem(error.status, str(error), error.hint)
            except RequestValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"][1:]) or "body"
                return _problem(422, f"{where}: {first['msg']}", "parameters are listed in /openapi.json")
            except HTTPException as error:
                return _problem(422, str(error.detail), "send JSON in UTF-8, as /openapi.json says")
            except UsageError as error:
                return _problem(422, str(error), "change the request as the message says")
            except CutawayError as error:
                return _problem(503, str(error), "the index or a dictionary stored with it is damaged; fill it again")

        return answer


def _problem(status: int, message: str, hint: str) -> JSONResponse:
    body: Any = error_body(status, message)
    body["error"]["hint"] = hint
    return JSONResponse(body, status)


Layer = Annotated[str, Path(description="A layer's number, or a dictionary's name.", examples=["0"])]
Offset = Annotated[int, Query(ge=0)]
Limit = Annotated[int, Query(ge=1, le=500)]


_HOW = (
    "?activating=TOKEN&context=TOKEN&any=TOKEN, each repeatable, tokens percent-encoded; "
    "also ci, trim, layer, offset, limit"
)


def api_router(index: FeatureIndex, live: Live | None) -> APIRouter:
    """Return the routes under ``/api/features``."""
    problems: dict[int | str, dict[str, Any]] = {code: {"model": schema.Problem} for code in (404, 422, 503)}
    router = APIRouter(prefix=PREFIX, route_class=_Route, tags=["features"], responses=problems)
    about = view.provenance(index)

    @router.get("", response_model=schema.Models)
    def models() -> Data:
        """List the models whose units can be browsed."""
        return {"models": [about]}

    @router.get("/{model}", response_model=schema.Overview)
    def overview(model: str) -> Data:
        """List a model's layers and dictionaries, and what can be asked of a unit."""
        check_model(index, model)
        data = [view.source_summary(index, each.name) for each in index.sources]
        return {"data": data, "services": list(view.SERVICES), "live": live is not None, "metadata": about}

    @router.get("/{model}/search", response_model=schema.Found)
    def search(
        request: Request,
        model: str,
        activating: Annotated[list[str] | None, Query(description="Tokens that the unit fires on.")] = None,
        context: Annotated[list[str] | None, Query(description="Tokens that stand in front.")] = None,
        any: Annotated[list[str] | None, Query(description="Tokens in either role.")] = None,
        ci: Annotated[bool, Query(description="Ignore case.")] = False,
        trim: Annotated[bool, Query(description="Ignore blanks at the ends of a token.")] = False,
        layer: Annotated[str | None, Query(description="Search one layer or dictionary alone.")] = None,
        offset: Offset = 0,
        limit: Limit = 50,
    ) -> Data:
        """Find the units that have every token given, each in its role, in order of layer and number."""
        check_model(index, model)
        if layer is not None:
            check_layer(index, layer)
        terms = terms_of(request)
        found = view.search(index, terms, ci=ci, trim=trim, source=layer, offset=offset, limit=limit)
        return {"data": found.pop("units"), **found, "metadata": about}

    @router.post("/{model}/fires", response_model=schema.Fired)
    def fires(model: str, given: schema.GivenText) -> Data:
        """Run the model on a text and name the units that come closest to their largest value in the corpus."""
        check_model(index, model)
        return running(live).fires(given.text, given.limit)

    @router.get("/{model}/units/{layer}", response_model=schema.Listing)
    def units(model: str, layer: Layer, order: Order = "strength", offset: Offset = 0, limit: Limit = 50) -> Data:
        """List units of a layer or dictionary: the strongest first, the most often active first, or by number."""
        check_model(index, model)
        source = check_layer(index, layer)
        data = [view.brief(index, number) for number in index.listing(layer, order, offset, limit)]
        return {"data": data, "total": source.units, "offset": offset, "metadata": about}

    @router.post("/{model}/try/{layer}/{unit}", response_model=schema.Tried)
    def attempt(model: str, layer: Layer, unit: int, given: schema.GivenText) -> Data:
        """Run the model on a text and return the unit's value at each token."""
        check_model(index, model)
        return running(live).read(unit_number(index, layer, unit), given.text)

    @router.get("/{model}/neuronpedia/{layer}/{unit}")
    def neuronpedia(model: str, layer: Layer, unit: int) -> dict[str, Any]:
        """Return the unit as Neuronpedia and SAEDashboard store features, fields of other tools included."""
        check_model(index, model)
        return record_of_unit(index, unit_number(index, layer, unit)).to_dict()

    @router.get("/{model}/{service}/{layer}/{unit}", response_model=schema.UnitBody, response_model_exclude_none=False)
    def one(model: str, service: str, layer: Layer, unit: int) -> Data:
        """Return one service of a unit, or ``all``; what the index has no data for is named and left out."""
        check_model(index, model)
        if service != "all" and service not in view.SERVICES:
            raise ProblemError(404, f"no service {service!r}", f"one of all, {', '.join(view.SERVICES)}")
        number = unit_number(index, layer, unit)
        data, missing = view.unit_view(index, number, None if service == "all" else [service])
        return {"data": data, "missing_data_types": missing, "metadata": about}

    return router


def check_model(index: FeatureIndex, model: str) -> None:
    """ProblemError for any model but the index's."""
    if model != index.model:
        raise ProblemError(404, f"no model {model!r}", f"GET {PREFIX} lists the models; here {index.model!r}")


def check_layer(index: FeatureIndex, layer: str) -> Any:
    """Return the source of this name; ProblemError where there is none."""
    try:
        return index.source(layer)
    except UsageError as error:
        raise ProblemError(404, str(error), f"GET {PREFIX}/{index.model} lists layers and dictionaries") from None


def unit_number(index: FeatureIndex, layer: str, unit: int) -> int:
    """Return a unit's number in the index; ProblemError where there is none."""
    check_layer(index, layer)
    try:
        return index.number(layer, unit)
    except UsageError as error:
        raise ProblemError(404, str(error), f"GET {PREFIX}/{index.model}/units/{layer} lists units") from None


def running(live: Live | None) -> Live:
    """Return the model to run; ProblemError where the app was started without one."""
    if live is None:
        hint = "start the app with it: cutaway serve --model MODEL --index FOLDER"
        raise ProblemError(404, "no model is loaded, so no text can be tried", hint)
    return live


def terms_of(request: Request) -> list[Term]:
    """Return the terms of a query, by their bytes; ProblemError for one that cannot be read."""
    raw = request.scope["query_string"].decode("latin-1")
    pairs = parse_qsl(raw, keep_blank_values=True, errors="surrogateescape")
    if unknown := [name for name, _ in pairs if name not in (*ROLES, "ci", "trim", "layer", "offset", "limit")]:
        raise ProblemError(422, f"no parameter {unknown[0]!r}", _HOW)
    given = [(name, token) for name, token in pairs if name in ROLES]
    if not 1 <= len(given) <= MAX_TERMS:
        raise ProblemError(422, f"{len(given)} terms; 1 to {MAX_TERMS}", _HOW)
    for name, token in given:
        if not token:
            raise ProblemError(422, f"{name}: an empty token", _HOW)
    return [Term(token, role) for role in ROLES for name, token in given if name == role]
