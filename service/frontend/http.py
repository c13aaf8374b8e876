"""One HTTP request on the short way: headers, body, request id, and the answer with its timings.

Nothing here allocates more than it must: this code runs once for each prediction.
"""

import asyncio
import itertools
import os
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.types import Receive, Send

from service.batching.claim import ServedModel, Timings
from service.errors import BodyTimeout, BodyTooLarge, MalformedRequest, ServiceError

JSON = b"application/json"  # without a charset: some protocol clients compare the whole value
BINARY = b"application/octet-stream"

_MAX_REQUEST_ID_BYTES = 128
_STATUS = {status.value: b"%d %s" % (status, status.phrase.encode()) for status in HTTPStatus}
_process_id = ""
_counter = itertools.count(1)


class ClientDisconnected(Exception):
    """The client left before its body was complete; there is nobody to answer."""


@dataclass(slots=True)
class Answer:
    body: bytes
    content_type: bytes = JSON
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Request:
    """What a handler reads, and what it leaves behind for the answer's headers and the metrics.

    received_at   monotonic ns
    decoded_ns    time from the complete body to the written rows; `decoded()` sets it
    timings       of the slowest item; set by the handler
    model         once it is found
    """

    __slots__ = ("_body_at", "decoded_ns", "headers", "id", "model", "query", "received_at", "timings")

    def __init__(self, headers: dict[bytes, bytes], query: bytes) -> None:
        self.received_at = self._body_at = time.monotonic_ns()
        self.headers = headers
        self.query = query
        self.id = request_id(headers.get(b"x-request-id"))
        self.decoded_ns = 0
        self.timings: Timings | None = None
        self.model: ServedModel | None = None

    def body_is_complete(self) -> None:
        """From here on it is decoded."""
        self._body_at = time.monotonic_ns()

    def decoded(self) -> None:
        """The rows are written: from here on the request waits for the engine."""
        self.decoded_ns = time.monotonic_ns() - self._body_at


async def read_body(headers: dict[bytes, bytes], receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises BodyTooLarge, BodyTimeout, ClientDisconnected."""
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > max_bytes:  # the server has checked that it is a number
        raise BodyTooLarge(f"a body of {int(declared)} bytes; at most {max_bytes} are accepted")
    chunks = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientDisconnected
                chunks += message["body"]
                if len(chunks) > max_bytes:
                    raise BodyTooLarge(f"a body of more than {max_bytes} bytes; at most that many are accepted")
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive within {timeout_s:g} s") from error
    return bytes(chunks)


def request_id(given: bytes | None) -> str:
    """The client's own id where it is short printable ASCII, else a new one."""
    if given and len(given) <= _MAX_REQUEST_ID_BYTES and given.isascii() and (text := given.decode()).isprintable():
        return text
    return f"{_process_id}-{next(_counter):x}"


def name_process() -> None:
    """Ids made from here on are of this process; called after a fork, so that no two make the same."""
    global _process_id
    _process_id = os.urandom(6).hex()


name_process()


def server_timing(request: Request) -> bytes:
    """W3C Server-Timing; milliseconds. `batch` is how many items ran together."""
    total_ms = (time.monotonic_ns() - request.received_at) / 1e6
    if request.timings is None:
        return b"total;dur=%.3f" % total_ms
    queue_us, compute_us, batch_size = request.timings
    return b'decode;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f, total;dur=%.3f, batch;desc="%d"' % (
        request.decoded_ns / 1e6,
        queue_us / 1e3,
        compute_us / 1e3,
        total_ms,
        batch_size,
    )


def response(answer: Answer, request: Request, more_lines: bytes) -> bytes:
    """The whole of an HTTP/1.1 response. `more_lines`: header lines to put in, each with its end."""
    for header in answer.headers:
        more_lines += b"%s: %s\r\n" % header
    return (
        b"HTTP/1.1 %s\r\n%scontent-type: %s\r\ncontent-length: %d\r\nx-request-id: %s\r\nserver-timing: %s\r\n\r\n%s"
    ) % (
        _STATUS[answer.status],
        more_lines,
        answer.content_type,
        len(answer.body),
        request.id.encode(),
        server_timing(request),
        answer.body,
    )


async def send_answer(send: Send, request: Request, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", request.id.encode()),
        (b"server-timing", server_timing(request)),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def error_answer(error: ServiceError) -> Answer:
    return Answer(
        error_body(str(error)),
        status=error.status,
        headers=[(name.encode(), value.encode()) for name, value in error.headers.items()],
    )


def error_body(message: str) -> bytes:
    return msgspec.json.encode({"error": message})


def decode_json(body: bytes | memoryview, shape: type[Any], what: str) -> Any:
    """`body` as `shape`. Raises MalformedRequest with msgspec's words, which name the field."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"{what}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"{what} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise MalformedRequest(f"{what} is nested too deeply") from error
