"""The app put together: guard, pages, and what a model or an index adds."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from cutaway.app.endpoint import Endpoint, endpoint_router
from cutaway.app.guard import Access, Guard, access, error_body
from cutaway.app.pages import own_pages, runs_router, static_router
from cutaway.app.playground import playground_router
from cutaway.app.registry import Registry, Wishes
from cutaway.app.service import Limits, Service
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
    registry: Registry | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The web app over ``ledger`` (a database URL), with the pages of ``index`` where given.

    With ``model``, the OpenAI protocol under ``/v1`` and the playground; ``registry`` holds what requests may name,
    and ``limits`` bound the work. UsageError where they do not fit the model.

    Requests must be addressed to loopback unless ``access`` says otherwise; in tests give the client the base
    URL ``http://127.0.0.1``.
    """
    book = Ledger(ledger if ledger is not None else default_url())

    wishes = Wishes(model, registry or Registry()) if model is not None else None
    service = Service(model, limits) if model is not None else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if service is not None:
            await asyncio.to_thread(service.close)
        book.close()

    app = FastAPI(title="Cutaway", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.nav = [("Runs", "/runs")]
    app.add_middleware(Guard, access=access or Access())
    _handle_errors(app)
    app.include_router(static_router())
    app.include_router(runs_router(book))
    app.state.service = service
    if service is not None and wishes is not None:
        endpoint = Endpoint(service, wishes)
        app.include_router(endpoint_router(endpoint))
        app.include_router(playground_router(endpoint, book))
        app.state.nav.append(("Playground", "/playground"))
    if index is not None:
        from cutaway.app.features import router as features_router

        app.include_router(features_router(index, model, service.lock if service is not None else None))
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
    registry: Registry | None = None,
    limits: Limits | None = None,
) -> None:
    """Answer at ``host:port`` until interrupted. UsageError for an address beyond loopback without a token."""
    import uvicorn

    allowed = access(host, token)
    if not 0 <= port < 65536:
        raise UsageError(f"port={port}: must be 0..65535")
    app = create_app(ledger, model=model, index=index, access=allowed, registry=registry, limits=limits)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15,
        timeout_graceful_shutdown=5, limit_concurrency=256, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(CutawayError)
    async def ours(request: Request, error: CutawayError) -> Response:
        status = getattr(error, "status", 400 if isinstance(error, UsageError) else 500)
        return answer(request, status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        # Of several shapes a field may have, the one that was meant fails for another reason than its type.
        first = next((each for each in found if not each["type"].endswith("_type")), found[0])
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        where = where.encode("utf-8", "replace").decode()[:200]
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
    # A request that took too long would take as long again; clients of the protocol ask this header.
    headers = {"x-should-retry": "false"} if status == 408 else {}
    return JSONResponse(error_body(status, message, **more), status, headers)
