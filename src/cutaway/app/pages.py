"""The app's own pages: templates that extend one base, styles and scripts from ``/static``, runs of the ledger."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cutaway.errors import UsageError
from cutaway.explain.page import number

if TYPE_CHECKING:
    from cutaway.ledger import Ledger

SHOWN = 200
REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""For a stored run's page, whose own policy names its one script and style by hash. It runs without an origin."""
STATIC = {
    "report.css": ("cutaway.explain", "templates", "text/css"),
    "app.css": ("cutaway.app", "static", "text/css"),
    "playground.css": ("cutaway.app", "static", "text/css"),
    "playground.js": ("cutaway.app", "static", "text/javascript"),
}


class Pages:
    """Renders templates of ``package`` that extend the app's ``base.html.j2`` (blocks: title, head, content).

    >>> Pages("cutaway.app.features").page(request, "list.html.j2", rows=[])  # doctest: +SKIP
    """

    def __init__(self, package: str = "cutaway.app") -> None:
        self._templates = Environment(
            loader=ChoiceLoader([PackageLoader(package), PackageLoader("cutaway.app")]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        self._templates.filters["number"] = number

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """The filled template with the app's navigation."""
        path = request.url.path
        nav = [(label, to, path == to or path.startswith(to + "/")) for label, to in request.app.state.nav]
        html = self._templates.get_template(template).render(nav=nav, **context)
        # A decoded token can leave half a surrogate pair, which no encoding could send.
        return HTMLResponse(html.encode("utf-8", "replace"), status)


@cache
def own_pages() -> Pages:
    """The pages of this package."""
    return Pages()


def static_router() -> APIRouter:
    """Styles and scripts, each named here: no file system path comes from a request."""
    router = APIRouter(include_in_schema=False)

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise AbsentError(f"no file {name!r}")
        package, folder, kind = STATIC[name]
        text = (files(package) / folder / name).read_text(encoding="utf-8")
        return Response(text, media_type=kind, headers={"cache-control": "no-cache"})

    return router


def runs_router(ledger: "Ledger") -> APIRouter:
    """The ledger's runs: a list, a page each, and the stored report in a frame without rights."""
    router = APIRouter(include_in_schema=False)

    @router.get("/runs")
    def runs(request: Request, study: str | None = None) -> HTMLResponse:
        found = ledger.runs(SHOWN, study)
        return own_pages().page(request, "runs.html.j2", runs=found, study=study, shown=SHOWN)

    @router.get("/runs/{id}")
    def run(request: Request, id: str) -> HTMLResponse:
        found = _run(ledger, id)
        return own_pages().page(request, "run.html.j2", run=found, artifacts=ledger.artifacts(found.id))

    @router.get("/runs/{id}/report")
    def report(id: str) -> Response:
        from cutaway.explain import report_of_run

        return HTMLResponse(report_of_run(ledger, _run(ledger, id)), headers={"content-security-policy": REPORT_POLICY})

    @router.get("/runs/{id}/files/{name}")
    def file(id: str, name: str) -> Response:
        found = _run(ledger, id)
        kinds = {each.name: each.media_type for each in ledger.artifacts(found.id)}
        if name not in kinds:
            raise AbsentError(f"run {found.id} has no file {name!r}")
        # Always a download: what a run stored must not become a page of this origin.
        headers = {"content-disposition": f'attachment; filename="{found.id}-{name}"'}
        return Response(ledger.artifact(found.id, name), media_type=kinds[name], headers=headers)

    return router


class AbsentError(UsageError):
    """Nothing is there under this name; answered with 404."""

    status = 404


def _run(ledger: "Ledger", id: str) -> Any:
    try:
        return ledger.run(id)
    except UsageError as error:
        raise AbsentError(str(error)) from None
