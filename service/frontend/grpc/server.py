"""gRPC in a frontend: its own port, the frontend's event loop, models and metrics.

    ModelInfer, each request of ModelStreamInfer ──► infer.prepare → Frontend.run → Frontend.finish, as HTTP's
    everything else                              ──► calls.py

All frontends listen on one port (SO_REUSEPORT), which the supervisor has settled. The earlier of the call's deadline
and `server.request_timeout_ms` holds. Limits of gRPC's own, which answer before we see a request: a message longer than
`server.max_body_bytes` ends its call with RESOURCE_EXHAUSTED, calls beyond `_MOST_CALLS` of one connection wait at the
client.
Ends as HTTP does (`service/frontend/serve.py`): `close` refuses new calls and ends streams once what they sent is
answered; `finished` waits for that.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import grpc

from service.batching.claim import ServedModel
from service.batching.engines import Engines
from service.errors import DeadlineExceeded, Draining, ServiceError
from service.frontend.app import Frontend, refusal
from service.frontend.grpc.calls import HEALTH_SERVICE, SERVICE, Calls, Metadata
from service.frontend.grpc.codes import abort, read
from service.frontend.grpc.health_pb2 import DESCRIPTOR as HEALTH
from service.frontend.grpc.infer import Write, prepare, streamed, unary
from service.frontend.grpc.open_inference_pb2 import DESCRIPTOR as OPEN_INFERENCE
from service.frontend.grpc.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from service.frontend.grpc.stream import Streams
from service.frontend.http import Answer, Request
from service.frontend.sticky import point_for
from service.metrics import RequestMetrics
from service.settings import Settings

_MOST_CALLS = 1024  # of one connection at a time
_LAST_WORDS_S = 0.5  # after `drain_timeout_s`, for the answers of those given up
_UNDER_WAY_NS = 50_000_000  # a call's deadline passes at the client by this much earlier than here, at most

Context: TypeAlias = grpc.aio.ServicerContext


class GrpcServer:
    """Made in the event loop it serves in."""

    def __init__(self, frontend: Frontend, engines: Engines, settings: Settings, metrics: RequestMetrics) -> None:
        self._frontend = frontend
        self._engines = engines
        self._timeout_ns = settings.server.request_timeout_ms * 1_000_000
        self._drain_timeout_s = settings.server.drain_timeout_s
        self._give_up_at = 0.0
        self._ending: asyncio.Task[None] | None = None
        self._streams = Streams()
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.server.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MOST_CALLS),
            )
        )
        calls = Calls(engines, frontend.health, settings, metrics, frontend.access, frontend.controls)
        for service, methods in ((SERVICE, OPEN_INFERENCE), (HEALTH_SERVICE, HEALTH)):
            described = methods.services_by_name[service.rpartition(".")[2]].methods
            handlers = {method.name: self._handler(method, calls) for method in described}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def start(self, host: str, port: int) -> None:
        """Raises RuntimeError where it cannot listen, which the supervisor has tried."""
        self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()

    def close(self, at_once: bool = False) -> None:
        """Refuse what comes, finish what is here, for `drain_timeout_s`; at once: cancel that too."""
        self._streams.close()
        if self._ending is None or at_once:
            self._give_up_at = asyncio.get_running_loop().time() + (0 if at_once else self._drain_timeout_s)
            grace_s = None if at_once else self._drain_timeout_s + _LAST_WORDS_S
            self._ending = asyncio.create_task(self._server.stop(grace_s))

    async def finished(self) -> None:
        """Until every call is answered or `drain_timeout_s` is over. After `close`."""
        while (ending := self._ending) is not None and not ending.done():
            left_s = self._give_up_at - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            await asyncio.wait({ending}, timeout=left_s)

    async def ended(self) -> None:
        """Until the last call is gone. The engines' clients are closed by now, so nobody waits for them."""
        self.close()
        assert self._ending is not None
        await self._ending

    # ── predictions ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _infer(self, data: bytes, context: Context) -> bytes | None:
        request = Request({}, b"")
        try:
            outcome = await self._outcome(read(ModelInferRequest, data), data, request, context, unary)
        except ServiceError as error:
            outcome = error
        if isinstance(outcome := self._finish(request, outcome), Answer):
            return outcome.body
        await abort(context, outcome)
        return None

    async def _stream(self, _: Any, context: Context) -> None:
        await self._streams.serve(context, partial(self._infer_streamed, context))

    async def _infer_streamed(self, context: Context, data: bytes) -> bytes:
        request = Request({}, b"")
        message = ModelInferRequest()
        try:
            message = read(ModelInferRequest, data)
            outcome = await self._outcome(message, data, request, context, streamed)
        except ServiceError as error:
            outcome = error
        if isinstance(outcome := self._finish(request, outcome), Answer):
            return outcome.body
        answer = ModelStreamInferResponse(error_message=str(outcome))
        answer.infer_response.id = message.id
        answer.infer_response.model_name = message.model_name
        answer.infer_response.model_version = message.model_version
        answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer.SerializeToString()  # type: ignore[no-any-return]

    async def _outcome(
        self, message: ModelInferRequest, data: bytes, request: Request, context: Context, write: Write
    ) -> Answer | Exception:
        deadline = request.received_at + self._timeout_ns
        if (left_s := context.time_remaining()) is not None:
            deadline = min(deadline, request.received_at + int(left_s * 1e9))
        try:
            if self._frontend.health.state == "closing":
                return Draining("the server is draining; send the request to another")
            model = request.model = self._find(message, data, context)
            deadline = min(deadline, model.deadline(request.received_at, self._timeout_ns))
            return await self._frontend.run(prepare(model, message, deadline, request.received_at, write), request)
        except asyncio.CancelledError:
            if time.monotonic_ns() >= deadline - _UNDER_WAY_NS:  # the client knows, so this is but counted
                self._frontend.finish(request, DeadlineExceeded("the call's deadline passed"))
            raise
        except Exception as error:  # noqa: BLE001 `finish` tells what it is
            return error

    def _find(self, message: ModelInferRequest, data: bytes, context: Context) -> ServedModel:
        """Of a split, by the call's metadata or the message's bytes. Raises UnknownModel, ModelNotReady."""
        name, engines = message.model_name, self._engines
        if message.model_version or name not in engines.sticky:
            return engines.find(name, message.model_version or None)
        return engines.draw(name, point_for(engines.sticky[name], _headers(context), data))

    def _finish(self, request: Request, outcome: Answer | Exception) -> Answer | ServiceError:
        """What the client gets; and it is counted."""
        told = outcome if isinstance(outcome, Answer) else refusal(outcome, request)
        self._frontend.finish(request, told)
        return told

    # ── handlers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _handler(self, method: Any, calls: Calls) -> grpc.RpcMethodHandler:
        """For a method as its descriptor has it. Messages are bytes to grpcio: `read` says what is wrong with them."""
        if method.name == "ModelInfer":
            return grpc.unary_unary_rpc_method_handler(self._infer)
        if method.name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        answer = getattr(calls, _snake(method.name))
        call = _ask if inspect.iscoroutinefunction(answer) else _call
        return grpc.unary_unary_rpc_method_handler(partial(call, answer, method.input_type._concrete_class))


async def _call(answer: Callable[[Any], Any], kind: type[Any], data: bytes, context: Context) -> bytes | None:
    try:
        return answer(read(kind, data)).SerializeToString()  # type: ignore[no-any-return]
    except ServiceError as error:
        await abort(context, error)
        return None


def _headers(context: Context) -> dict[bytes, bytes]:
    """A call's metadata. Names are in lower case; the values of those that end in -bin are bytes already."""
    metadata = context.invocation_metadata() or ()
    return {key.encode(): value if isinstance(value, bytes) else value.encode() for key, value in metadata}


async def _ask(
    answer: Callable[[Any, Metadata], Awaitable[Any]], kind: type[Any], data: bytes, context: Context
) -> bytes | None:
    """A call that takes a while, and minds who asks."""
    metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    try:
        answered = await answer(read(kind, data), metadata)
        return answered.SerializeToString()  # type: ignore[no-any-return]
    except ServiceError as error:
        await abort(context, error)
        return None


def _snake(name: str) -> str:
    """ServerLive to server_live."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
