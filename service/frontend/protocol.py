"""The server's side of one connection: predictions are answered here, everything else is uvicorn's.

    between two requests ──a whole head of a plain POST to a prediction (head.py)──► body ──all of it──► answering
            ▲  │                                                                                             │
            │  └──anything else──► uvicorn's, until its answer and its request's body are both complete ─┐   │
            └────────────────────────────────────────────────────────────────────────────────────────────┴───┘

A prediction costs no ASGI message, no task and no second pass over its head: its rows are committed in the turn of the
event loop that brings its body, and its answer is written in the turn that brings the engine's (docs/adr/0013 has the
microseconds). What arrives meanwhile on the same connection waits; a client that sends and does not read is not read
either.

Two changes to uvicorn's own way: an answer goes out in one write, and bad syntax gets our error body.
"""

import asyncio
import time
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.batching.claim import Claim
from service.errors import BodyTimeout, EngineError, ServiceError
from service.frontend.app import CLOSE, Frontend
from service.frontend.head import MOST_BYTES, Head, parse_head
from service.frontend.http import Answer, Request, error_body, request_id, response
from service.frontend.prepared import Prepared

_CONTINUE = b"HTTP/1.1 100"  # the client waits for it before it sends the body
_MOST_UNREAD_BYTES = 65536  # of requests that wait for the answer to the one before


class Date:
    """Header lines of the date, joined once a second, when uvicorn makes another list."""

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        if headers is not self._headers:
            self._headers = headers
            self._lines = b"".join([b"%s: %s\r\n" % header for header in headers])
        return self._lines


class HeadWithBody:
    """A transport that holds the head of uvicorn's answer back until the next write.

    uvicorn writes an answer's head when the application sends it, and the body when that follows: two system calls, and
    the client wakes twice. It never waits longer than the answer: the end of the response, closing, and anything else
    that is written let it go.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(b"HTTP/") and not data.startswith(_CONTINUE):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # Any: whatever else a transport can do
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """Of one connection, in the event loop's thread."""

    # Beside these there is uvicorn's dictionary, which Python keeps small for up to 30 names. With hundreds of
    # connections their state is what does not fit the processor's cache.
    __slots__ = (
        "_answered_at",
        "_body",
        "_body_timer",
        "_close_after",
        "_compressing",
        "_decoding",
        "_frontend",
        "_head",
        "_idle_timer",
        "_prepared",
        "_request",
        "_socket",
        "_unread",
        "_uvicorn_reads",
        "_uvicorn_unanswered",
    )
    _date = Date()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frontend = cast(Frontend, self.app)
        self._socket: asyncio.Transport = None  # type: ignore[assignment]  # from connection_made on
        self._uvicorn_reads = False  # a request whose end its parser has not seen
        self._uvicorn_unanswered = 0
        self._head: Head | None = None  # of the prediction under way
        self._request: Request | None = None
        self._body: bytearray | None = None  # while it is incomplete
        self._body_timer: asyncio.TimerHandle | None = None
        self._decoding: asyncio.Task[Prepared] | None = None
        self._prepared: Prepared | None = None  # committed
        self._compressing: asyncio.Task[Answer] | None = None
        self._unread = b""
        self._close_after = False
        self._answered_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._socket = transport
        super().connection_made(cast(asyncio.Transport, HeadWithBody(transport)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._uvicorn_reads or self._uvicorn_unanswered:
            super().data_received(data)
        elif self._body is not None:
            self._more_body(data)
        elif self._head is None and not self._unread and not self.flow.write_paused:
            self._begin(data)
        else:
            self._unread += data
            if len(self._unread) > _MOST_UNREAD_BYTES:
                self._socket.pause_reading()

    def shutdown(self) -> None:
        """Close, or do so after the answer that is under way."""
        if self._head is None:
            super().shutdown()
        else:
            self._close_after = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._head is None and self._unread:
            self._next()

    def give_up(self, reason: ServiceError) -> None:
        """Answer a prediction that is under way with `reason`: the server ends now."""
        if self._head is None or self._request is None:
            return
        self._abandon()
        self._body = None
        self._close_after = True
        self._write(reason)

    # ── a prediction ─────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n", 0, MOST_BYTES)
        head = parse_head(data[:end]) if end > 0 else None
        if head is None:
            super().data_received(data)
            return
        body = data[end + 4 :]
        missing = head.body_bytes - len(body)
        if missing > 0 and self._frontend.would_refuse(head):
            super().data_received(data)  # which refuses without the body
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._head = head
        self._request = Request(head.headers, head.query)
        if missing == 0:
            self._answer(body)
            return
        self._body = bytearray()
        self._more_body(body)

    def _more_body(self, data: bytes) -> None:
        assert self._head is not None
        assert self._request is not None
        assert self._body is not None
        self._body += data
        if len(self._body) < self._head.body_bytes:
            if self._body_timer is None:
                self._body_timer = self.loop.call_later(self._frontend.body_timeout_s, self._body_is_late)
            return
        body, self._unread = bytes(self._body[: self._head.body_bytes]), bytes(self._body[self._head.body_bytes :])
        self._body = None
        self._cancel_body_timer()
        self._request.body_at = time.monotonic_ns()
        self._answer(body)

    def _body_is_late(self) -> None:
        self.give_up(BodyTimeout(f"the body did not arrive within {self._frontend.body_timeout_s:g} s"))

    def _answer(self, body: bytes) -> None:
        assert self._head is not None
        assert self._request is not None
        try:
            prepared = self._frontend.prepare(self._head.route, self._request, body)
        except Exception as error:  # noqa: BLE001 `finish` tells what it is
            self._write(error)
            return
        if isinstance(prepared, Prepared):
            self._commit(prepared)
        else:
            self._decoding = self.loop.create_task(prepared)
            self._decoding.add_done_callback(self._decoded)

    def _decoded(self, task: "asyncio.Task[Prepared]") -> None:
        self._decoding = None
        if task.cancelled():
            return  # nobody waits any more
        error = task.exception()
        if self._head is None:  # the client left in the turn in which it was decoded
            if error is None:
                task.result().claim.release()
        elif error is None:
            self._commit(task.result())
        else:
            self._write(error if isinstance(error, Exception) else EngineError("decoding was ended"))

    def _commit(self, prepared: Prepared) -> None:
        assert self._request is not None
        self._prepared = prepared
        self._request.committed_at = time.monotonic_ns()
        self._frontend.commit(prepared.claim, self._done)

    def _done(self, _: Claim) -> None:
        assert self._prepared is not None
        assert self._request is not None
        prepared, self._prepared = self._prepared, None
        outcome = self._frontend.encode(prepared, self._request)
        if isinstance(outcome, (Answer, Exception)):  # no Coroutine; asking an abstract class takes long
            self._write(outcome)
        else:
            self._compressing = self.loop.create_task(outcome)
            self._compressing.add_done_callback(self._compressed)

    def _compressed(self, task: "asyncio.Task[Answer]") -> None:
        self._compressing = None
        if task.cancelled() or self._head is None:
            return  # nobody waits any more
        error = task.exception()
        if error is None:
            self._write(task.result())
        else:
            self._write(error if isinstance(error, Exception) else EngineError("compressing was ended"))

    def _abandon(self) -> None:
        """Slots are free once the engine has answered them, or the decoding ends."""
        if self._decoding is not None:
            self._decoding.cancel()
        if self._compressing is not None:
            self._compressing.cancel()
        if self._prepared is not None:
            self._frontend.give_up(self._prepared.claim)
            self._prepared = None

    def _write(self, outcome: Answer | Exception) -> None:
        assert self._head is not None
        assert self._request is not None
        answer = self._frontend.finish(self._request, outcome)
        close = self._close_after or not self._head.keep_alive or CLOSE in answer.headers
        if close and CLOSE not in answer.headers:
            answer.headers += (CLOSE,)
        self._socket.write(response(answer, self._request, self._date.lines(self.server_state.default_headers)))
        self._head = self._request = None
        if close:
            self._socket.close()
            return
        self._answered_at = time.monotonic()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
        if self._unread:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        """Go on with what came while a prediction was under way, unless the client is not reading its answers."""
        if self._head is not None or self._socket.is_closing() or self.flow.write_paused:
            return
        data, self._unread = self._unread, b""
        self._socket.resume_reading()
        self.data_received(data)

    # ── uvicorn's requests ───────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._uvicorn_reads = True
        self._uvicorn_unanswered += 1
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._uvicorn_reads = bool(self.parser.should_upgrade())  # what follows an upgrade is no request
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._uvicorn_unanswered -= 1
        self._answered_at = time.monotonic()
        cast(HeadWithBody, self.transport).flush()  # an answer to HEAD has no body
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer and close. `msg` is uvicorn's; it says no more than that the request is invalid."""
        body = error_body("not a valid HTTP/1.1 request")
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n"
            b"x-request-id: %s\r\n"
            b"server-timing: total;dur=0\r\n"
            b"connection: close\r\n\r\n%s" % (len(body), request_id(None), body)
        )
        self.transport.close()

    # ── timers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _close_if_idle(self) -> None:
        """One timer a connection that looks when it last answered, not one a request."""
        self._idle_timer = None
        if self._head is not None or self._uvicorn_reads or self._uvicorn_unanswered:
            return  # the next answer starts it again
        left = self._answered_at + self.timeout_keep_alive - time.monotonic()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._close_if_idle)
        else:
            self._socket.close()

    def _cancel_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _cancel_timers(self) -> None:
        self._cancel_body_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
