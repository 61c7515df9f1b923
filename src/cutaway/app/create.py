"""The app put together: guard, pages, and what a model or an index adds."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from cutaway.app.guard import Access, Guard, access, error_body
from cutaway.app.pages import AbsentError, own_pages, runs_router, static_router
from cutaway.errors import CutawayError, UsageError
from cutaway.ledger import Ledger, default_url

if TYPE_CHECKING:
    from cutaway.model import Model


def create_app(
    ledger: str | None = None,
    *,
    model: "Model | None" = None,
    index: Path | None = None,
    access: Access | None = None,
) -> FastAPI:
    """The web app over ``ledger`` (a database URL), with the pages of ``index`` where given.

    Requests must be addressed to loopback unless ``access`` says otherwise; in tests give the client the base
    URL ``http://127.0.0.1``.
    """
    book = Ledger(ledger if ledger is not None else default_url())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        book.close()

    app = FastAPI(title="Cutaway", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.nav = [("Runs", "/runs")]
    app.add_middleware(Guard, access=access or Access())
    _handle_errors(app)
    app.include_router(static_router())
    app.include_router(runs_router(book))
    if index is not None:
        from cutaway.app.features import router as features_router

        app.include_router(features_router(index, model))
        app.state.nav.append(("Features", "/features"))

    @app.get("/", include_in_schema=False)
    def start() -> RedirectResponse:
        return RedirectResponse(app.state.nav[0][1])

    return app


def serve(
    *,
    ledger: str | None = None,
    model: "Model | None" = None,
    index: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
) -> None:
    """Answer at ``host:port`` until interrupted. UsageError for an address beyond loopback without a token."""
    import uvicorn

    allowed = access(host, token)
    if not 0 <= port < 65536:
        raise UsageError(f"port={port}: must be 0..65535")
    app = create_app(ledger, model=model, index=index, access=allowed)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15,
        timeout_graceful_shutdown=5, limit_concurrency=256, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(CutawayError)
    async def ours(request: Request, error: CutawayError) -> Response:
        status = getattr(error, "status", None) or (
            404 if isinstance(error, AbsentError) else 400 if isinstance(error, UsageError) else 500
        )
        return answer(request, status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return answer(request, 400, f"{where}: {first['msg']}", param=where)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        made = answer(request, error.status_code, str(error.detail))
        made.headers.update(error.headers or {})
        return made

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logging.getLogger("cutaway.app").error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(request, 500, "the server failed; its log says why")


def answer(request: Request, status: int, message: str, **more: Any) -> Response:
    """An error as JSON, or as a page where a browser asked for one."""
    if "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(("/v1/", "/api/")):
        return own_pages().page(request, "error.html.j2", status=status, code=status, message=message)
    return JSONResponse(error_body(status, message, **more), status)
