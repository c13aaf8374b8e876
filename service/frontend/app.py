"""The ASGI application of one frontend: the short way for predictions, Litestar for everything else.

    POST /predict/{model}                              ─┐
    POST /v2/models/{model}/infer                       ├─ _short_way: body → handler → answer
    POST /v2/models/{model}/versions/{version}/infer   ─┘
    anything else                                      ──── Litestar (admin.py, openapi.py), with the same two headers

Why predictions do not go through Litestar: docs/adr/0007. Both ways end in the same error bodies: `{"error": "..."}`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version as package_version
from typing import Any

from litestar import Litestar, Response
from litestar import Request as LitestarRequest
from litestar.datastructures import State
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.types import HTTPScope, Message, Receive, Send

from service.batching.claim import ServedModel
from service.batching.client import Client
from service.errors import Draining, EngineError, MethodNotAllowed, NotFound, ServiceError
from service.frontend import admin
from service.frontend.http import (
    Answer,
    ClientDisconnected,
    Request,
    error_answer,
    error_body,
    send_answer,
    server_timing,
)
from service.frontend.infer import infer
from service.frontend.openapi import add_predictions, openapi_config, page_file
from service.frontend.predict import predict
from service.metrics import RequestMetrics, exposition
from service.settings import Settings

log = logging.getLogger(__name__)

_CLOSE = (b"connection", b"close")
Handler = Callable[[ServedModel, Request, bytes, int], Awaitable[Answer]]


class Frontend:
    """An ASGI application for HTTP alone, in the event loop it is made in. `health` is the supervisor's to change."""

    def __init__(self, client: Client, settings: Settings, metrics: RequestMetrics) -> None:
        self.health = admin.Health()
        self._client = client
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._litestar = _litestar(client, self.health, metrics)

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, self._loop)
        match scope["path"].split("/"):
            case ["", "predict", name]:
                await self._short_way(scope, request, send, self._predict, name, None)
            case ["", "v2", "models", name, "infer"]:
                await self._short_way(scope, request, send, self._infer, name, None)
            case ["", "v2", "models", name, "versions", version, "infer"]:
                await self._short_way(scope, request, send, self._infer, name, version)
            case ["", "docs", *page] if page not in ([], [""], ["openapi.json"]):  # Litestar has a page of its own here
                await send_answer(send, request, error_answer(NotFound(f"no such path: {scope['path']}; see /docs")))
            case _:
                await self._litestar(scope, receive, _with_headers(send, request, self.health))

    async def _short_way(
        self, scope: HTTPScope, request: Request, send: Send, handler: Handler, name: str, version: str | None
    ) -> None:
        model: ServedModel | None = None
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(scope["method"], "POST")
            if self.health.state == "closing":
                raise Draining("the server is draining; send the request to another")
            model = self._client.find(name, version)
            server = self._settings.server
            deadline = request.received_at + server.request_timeout_ms * 1_000_000
            body = await request.body(server.max_body_bytes, server.body_timeout_s)
            answer = await handler(model, request, body, deadline)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            if self.health.state != "closing":
                raise
            answer = error_answer(
                Draining("the server is draining and ended before this was answered; send it to another")
            )
        except EngineError as error:
            answer = error_answer(EngineError(f"{error} (request {request.id})"))
        except ServiceError as error:
            answer = error_answer(error)
        except Exception:
            log.exception("bug: request %s to %s failed", request.id, scope["path"])
            answer = error_answer(EngineError(f"internal error (request {request.id})"))
        if self.health.state == "leaving":
            answer.headers.append(_CLOSE)
        await send_answer(send, request, answer)
        seconds = (time.monotonic_ns() - request.received_at) / 1e9
        self._metrics.request_answered(model.facts if model else None, answer.status, seconds, request.timings)

    def _predict(self, model: ServedModel, request: Request, body: bytes, deadline: int) -> Awaitable[Answer]:
        return predict(self._client, model, request, body, deadline, self._settings.images)

    def _infer(self, model: ServedModel, request: Request, body: bytes, deadline: int) -> Awaitable[Answer]:
        return infer(self._client, model, request, body, deadline)


def _litestar(client: Client, health: admin.Health, metrics: RequestMetrics) -> Litestar:
    app = Litestar(
        [
            admin.index,
            admin.live,
            admin.ready,
            admin.server_metadata,
            admin.model_names,
            admin.model_metadata,
            admin.model_ready,
            admin.metrics_handler(exposition(metrics)),
            page_file,
        ],
        state=State({"client": client, "health": health}),
        openapi_config=openapi_config(package_version("shoal")),
        exception_handlers={Exception: _error_response},
        logging_config=None,
    )
    add_predictions(app)
    return app


def _error_response(request: LitestarRequest[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's errors in our form: none of its own bodies leak."""
    match error:
        case ServiceError():
            known = error
        case NotFoundException():
            known = NotFound(f"no such path: {request.url.path}; see /docs")
        case MethodNotAllowedException():
            allowed = (error.headers or {}).get("Allow", "GET")
            known = MethodNotAllowed(request.method, allowed)
        case HTTPException(status_code=status, detail=detail) if status < 500:
            return Response(error_body(detail), status_code=status, media_type="application/json")
        case _:
            log.error("bug: %s %s failed", request.method, request.url.path, exc_info=error)
            known = EngineError("internal error")
    return Response(
        error_body(str(known)), status_code=known.status, media_type="application/json", headers=dict(known.headers)
    )


def _with_headers(send: Send, request: Request, health: admin.Health) -> Send:
    """Put on whatever Litestar answers what the short way puts on its own answers."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                (b"x-request-id", request.id.encode()),
                (b"server-timing", server_timing(request).encode()),
                *([_CLOSE] if health.state == "leaving" else []),
            ]
        await send(message)

    return send_with_headers
