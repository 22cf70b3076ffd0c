"""The HTTP application: routes, probes, and errors as answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from botplane.errors import Rejected, Retryable
from botplane.web import metrics
from botplane.web.problems import problem

log = structlog.get_logger()

Check = Callable[[], str | None]
"""Returns what is wrong, or None."""
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DESCRIPTION: Final = "Usage events in; usage and invoices of the key's tenant out."


def create_app(routers: list[APIRouter], lifespan: Lifespan, live: Check, ready: Check) -> FastAPI:
    """Return the application.

    Args:
        routers: The routes below `/v1`.
        lifespan: What runs beside the requests.
        live: A failure makes the kubelet restart the process.
        ready: A failure takes the process out of service.
    """
    app = FastAPI(
        title="botplane",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirection would name a scheme and a host, and the key would be sent there.
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(Rejected, _expected)
    app.add_exception_handler(Retryable, _expected)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _bug)

    @app.get("/livez", include_in_schema=False)
    async def livez() -> Response:
        return _probe(live())

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        return _probe(ready())

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


class Counted:
    """Counts the answers of an application by route and status code."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection through."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                metrics.REQUESTS.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


def _probe(problem_text: str | None) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if problem_text else HTTPStatus.OK
    return PlainTextResponse(f"{problem_text or 'ok'}\n", status)


async def _expected(_request: Request, error: Exception) -> Response:
    if not isinstance(error, Rejected | Retryable):
        raise TypeError("not an expected error") from error
    return problem(error)


async def _no_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError("not an answer of the router") from error
    status, headers = HTTPStatus(error.status_code), error.headers or {}
    message = "There is no such route."
    if "Allow" in headers:
        message = f"{request.url.path} takes {headers['Allow']}, not {request.method}."
    reason = status.phrase.title().replace(" ", "")
    return JSONResponse({"reason": reason, "message": message}, status, headers=headers)


async def _bug(_request: Request, error: Exception) -> Response:
    log.error("Could not answer a request", exc_info=error)
    content: dict[str, Any] = {
        "reason": "InternalError",
        "message": "The server's log has the details.",
    }
    return JSONResponse(content, HTTPStatus.INTERNAL_SERVER_ERROR)
