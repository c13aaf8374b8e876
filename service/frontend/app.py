"""The ASGI application of one frontend: the short way for predictions, Litestar for everything else.

    POST /predict/{model}[/versions/{version}]            ─┐
    POST /v2/models/{model}[/versions/{version}]/infer     ├─ prepare → run → encode → finish
    POST /v1/models/{model}[/versions/{version}]:verb      │
    POST /v1/models/{model}/labels/{label}:verb           ─┘
    anything else                                         ──── Litestar (admin.py, …), with the same two headers

`protocol.py` calls these with a whole body and writes the answer itself; a body whose length is not told in advance
comes through uvicorn and `__call__`. Why: docs/adr/0007 and 0013. All ways end in the same error bodies.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as package_version
from typing import Any

from litestar import Litestar, Response
from litestar import Request as LitestarRequest
from litestar.datastructures import State
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException, ValidationException
from litestar.types import HTTPScope, Message, Receive, Send

from service.batching.claim import Claim, ServedModel
from service.batching.engines import Engines
from service.errors import Draining, EngineError, MalformedRequest, MethodNotAllowed, NotFound, ServiceError
from service.frontend import (
    admin,
    admin_api,
    fixed,
    infer,
    model_config,
    predict,
    repository_api,
    statistics,
    v1,
    v1_status,
)
from service.frontend.auth import Access
from service.frontend.cache import Done, ResponseCache
from service.frontend.compression import INLINE_BYTES, Decompression, compress, encoding_of, wanted_encoding
from service.frontend.head import V1_VERBS, Head, Route, find_route
from service.frontend.http import (
    Answer,
    ClientDisconnected,
    Request,
    error_answer,
    error_body,
    read_body,
    send_answer,
    server_timing,
)
from service.frontend.openapi import finish_document, openapi_config, page_file
from service.frontend.prepared import Prepared
from service.frontend.shadow import Shadows
from service.frontend.sticky import point_for
from service.frontend.verbs import allowed_methods
from service.lifecycle.controls import Controls
from service.metrics import RequestMetrics, exposition
from service.settings import Settings

log = logging.getLogger(__name__)

CLOSE = (b"connection", b"close")
_large_bodies = ThreadPoolExecutor(2, thread_name_prefix="shoal-compression")

ENDED = Draining("the server is draining and ended before this was answered; send it to another")


class Frontend:
    """An ASGI application for HTTP alone, in the event loop it is made in. `health` is the supervisor's to change.

    commit    a claim's rows are written; `done` is called once it is: by a run, or without one from the cache
    give_up   release a claim that was committed and may not be done
    drain     begins the end of the whole service
    """

    def __init__(
        self,
        engines: Engines,
        settings: Settings,
        metrics: RequestMetrics,
        controls: Controls,
        drain: Callable[[], None] = lambda: None,
    ) -> None:
        self.health = admin.Health()
        self.access = Access(settings.admin)
        self.controls = controls
        self.body_timeout_s = settings.server.body_timeout_s
        self._timeout_ns = settings.server.request_timeout_ms * 1_000_000
        self._engines = engines
        self._settings = settings
        self._metrics = metrics
        self._shadows = Shadows(engines)
        self.commit: Callable[[Claim, Done], None] = _commit
        self.give_up: Callable[[Claim], None] = Claim.release
        if settings.cache.max_bytes:
            cache = ResponseCache(settings.cache.max_bytes // metrics.n_frontends, metrics.unknown)
            self.commit, self.give_up = cache.run, cache.give_up
        state = State(
            {
                "engines": engines,
                "health": self.health,
                "metrics": metrics,
                "settings": settings,
                "controls": controls,
                "access": self.access,
                "drain": drain,
            }
        )
        self._litestar = _litestar(state)

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        request = Request(dict(scope["headers"]), scope["query_string"])
        if (route := find_route(scope["path"])) is not None:
            await self._predict_long(route, request, scope, receive, send)
            return
        match scope["path"].split("/"):
            case ["", "docs", *page] if page not in ([], [""], ["openapi.json"]):  # Litestar has a page of its own here
                await send_answer(send, request, error_answer(NotFound(f"no such path: {scope['path']}; see /docs")))
            case _ if _is_admin(scope["path"]) and not self.access.offered(scope["server"]):  # whatever the method
                await send_answer(send, request, error_answer(NotFound(f"no such path: {scope['path']}; see /docs")))
            case ["", "v1", "models", *_, last] if ":" in last:
                verbs = ", ".join(f":{verb}" for verb in V1_VERBS)
                refusal = NotFound(f"no such path: {scope['path']}; verbs of a model: {verbs}")
                await send_answer(send, request, error_answer(refusal))
            case _ if scope["method"] == "OPTIONS" and (allowed := allowed_methods(self._litestar, scope["path"])):
                await send_answer(send, request, error_answer(MethodNotAllowed("OPTIONS", allowed)))
            case _:
                await self._litestar(scope, receive, _with_headers(send, request, self.health))

    def would_refuse(self, head: Head) -> bool:
        """Whether the head alone is reason enough to refuse, before the body is there."""
        return (
            self.health.state == "closing"
            or head.body_bytes > self._settings.server.max_body_bytes
            or self._engines.known(head.route.model, head.route.version) is None
        )

    def prepare(self, route: Route, request: Request, body: bytes) -> Prepared | Coroutine[Any, Any, Prepared]:
        """What a whole request comes to: rows to commit. Raises ServiceError."""
        model = request.model = self._find(route, request, body)
        headers = request.headers
        if b"content-encoding" in headers and (encoding := encoding_of(headers[b"content-encoding"])):
            decompression = Decompression(encoding, body, self._settings.server.max_body_bytes)
            if (whole := decompression.begin()) is None:
                return self._prepare_long(route, request, decompression)
            body = whole
            model = request.model = self._find(route, request, body)  # a split may go by the body
        deadline = model.deadline(request.received_at, self._timeout_ns)
        if route.kind == "predict":
            return predict.prepare(model, request, body, deadline, self._settings.images)
        if route.kind == "infer":
            return infer.prepare(model, request, body, deadline)
        return v1.prepare(model, route.kind, request, body, deadline, self._settings.images)

    async def _prepare_long(self, route: Route, request: Request, decompression: Decompression) -> Prepared:
        """In a thread what would hold up all others."""
        body = await asyncio.get_running_loop().run_in_executor(_large_bodies, decompression.rest)
        request.headers = {name: value for name, value in request.headers.items() if name != b"content-encoding"}
        prepared = self.prepare(route, request, body)
        return prepared if isinstance(prepared, Prepared) else await prepared

    def encode(self, prepared: Prepared, request: Request) -> Answer | Exception | Coroutine[Any, Any, Answer]:
        """The answer of a claim that is done, which is released. A coroutine where a thread compresses a large one."""
        claim, encode = prepared
        if claim.error is not None:
            claim.release()
            return claim.error
        request.timings = claim.timings
        request.done_at = time.monotonic_ns()
        try:
            answer = encode(claim)
            if self._shadows.targets:
                request.copy = self._shadows.copy(claim)
        except Exception as error:  # noqa: BLE001 `finish` tells what it is
            return error
        finally:
            claim.release()
        if b"accept-encoding" in request.headers and (encoding := wanted_encoding(request.headers, answer)):
            return compress(encoding, answer) if len(answer.body) < INLINE_BYTES else _compress_long(encoding, answer)
        return answer

    def finish(self, request: Request, outcome: Answer | Exception) -> Answer:
        """What the client gets, whatever happened; and it is counted."""
        answer = outcome if isinstance(outcome, Answer) else _refusal(outcome, request)
        if self.health.state == "leaving":
            answer.headers += (CLOSE,)
        counts = self._metrics.unknown if request.model is None else request.model.observer
        now = time.monotonic_ns()
        microseconds = (now - request.received_at) // 1000
        decode_ns = request.committed_at - request.body_at
        counts.request_answered(answer.status, microseconds, request.timings, decode_ns, now - request.done_at)
        if request.copy is not None and answer.status == 200:
            self._shadows.repeat_soon(request.copy)
        return answer

    async def _predict_long(
        self, route: Route, request: Request, scope: HTTPScope, receive: Receive, send: Send
    ) -> None:
        """What `protocol.py` leaves to uvicorn: other methods, bodies of unknown length, what is refused unread."""
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(scope["method"], "POST")
            request.model = self._find(route, request, b"")  # to refuse what is not there before the body is read
            server = self._settings.server
            body = await read_body(request.headers, receive, server.max_body_bytes, server.body_timeout_s)
            request.body_at = time.monotonic_ns()
            outcome = await self._outcome(route, request, body)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            if self.health.state != "closing":
                raise
            outcome = ENDED
        except Exception as error:  # noqa: BLE001 whatever a request does to us, its client is answered
            outcome = error
        await send_answer(send, request, self.finish(request, outcome))

    async def _outcome(self, route: Route, request: Request, body: bytes) -> Answer | Exception:
        prepared = self.prepare(route, request, body)
        if not isinstance(prepared, Prepared):
            prepared = await prepared
        return await self.run(prepared, request)

    async def run(self, prepared: Prepared, request: Request) -> Answer | Exception:
        """Commit the rows and wait for the answer. Cancelled, it frees the slots as soon as the engine lets go."""
        request.committed_at = time.monotonic_ns()
        done: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()
        try:
            self.commit(prepared.claim, done.set_result)
            await done
        except asyncio.CancelledError:
            self.give_up(prepared.claim)
            raise
        outcome = self.encode(prepared, request)
        return outcome if isinstance(outcome, (Answer, Exception)) else await outcome

    def _find(self, route: Route, request: Request, body: bytes) -> ServedModel:
        """Raises Draining, UnknownModel, ModelNotReady."""
        if self.health.state == "closing":
            raise Draining("the server is draining; send the request to another")
        engines = self._engines
        if route.label is not None:
            return engines.find(route.model, v1.version_with_label(engines, route.model, route.label))
        if route.version is None and route.model in engines.sticky:
            return engines.draw(route.model, point_for(engines.sticky[route.model], request.headers, body))
        return engines.find(route.model, route.version)


def _is_admin(path: str) -> bool:
    """As Litestar reads it, to which several slashes are one."""
    return path.lstrip("/").partition("/")[0] == "admin"


def _commit(claim: Claim, done: Done) -> None:
    claim.run(done)


async def _compress_long(encoding: str, answer: Answer) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(_large_bodies, compress, encoding, answer)


def _refusal(error: Exception, request: Request) -> Answer:
    return error_answer(refusal(error, request))


def refusal(error: Exception, request: Request) -> ServiceError:
    """What the client is told of any exception; one that nobody expected is logged with its traceback."""
    match error:
        case EngineError():
            return EngineError(f"{error} (request {request.id.decode()})")
        case ServiceError():
            return error
    log.error("bug: request %s failed", request.id.decode(), exc_info=error)
    return EngineError(f"internal error (request {request.id.decode()})")


def _litestar(state: State) -> Litestar:
    app = Litestar(
        [
            admin.index,
            admin.live,
            admin.ready,
            admin.server_metadata,
            admin.model_names,
            admin.model_metadata,
            admin.model_ready,
            admin.metrics_handler(exposition(state.metrics)),
            model_config.config,
            *(statistics.all_statistics, statistics.model_statistics),
            *repository_api.HANDLERS,
            admin_api.ROUTER,
            *(fixed.get_logging, fixed.post_logging, fixed.get_trace, fixed.post_trace),
            *(fixed.get_model_trace, fixed.post_model_trace),
            *(fixed.shared_memory("system"), fixed.shared_memory("cuda")),
            page_file,
            *v1_status.HANDLERS,
        ],
        state=state,
        openapi_config=openapi_config(package_version("shoal")),
        exception_handlers={Exception: _error_response},
        logging_config=None,
    )
    finish_document(app)
    return app


def _error_response(request: LitestarRequest[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's errors in our form: none of its own bodies leak."""
    match error:
        case ServiceError():
            known = error
        case NotFoundException():
            known = NotFound(f"no such path: {request.url.path}; see /docs")
        case MethodNotAllowedException():
            known = MethodNotAllowed(request.method, allowed_methods(request.app, request.url.path))
        case ValidationException(extra=[*faults]):
            known = MalformedRequest("; ".join(_fault(fault) for fault in faults))
        case HTTPException(status_code=status, detail=detail) if status < 500:
            return Response(error_body(detail), status_code=status, media_type="application/json")
        case _:
            log.error("bug: %s %s failed", request.method, request.url.path, exc_info=error)
            known = EngineError("internal error")
    return Response(
        error_body(str(known)), status_code=known.status, media_type="application/json", headers=dict(known.headers)
    )


def _fault(fault: Any) -> str:  # Any: Litestar's own
    """The field and what was expected."""
    return ": ".join(fault[part] for part in ("key", "message") if fault.get(part))


def _with_headers(send: Send, request: Request, health: admin.Health) -> Send:
    """Put on whatever Litestar answers what the short way puts on its own answers."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                (b"x-request-id", request.id),
                (b"server-timing", server_timing(request)),
                *([CLOSE] if health.state == "leaving" else []),
            ]
        await send(message)

    return send_with_headers
