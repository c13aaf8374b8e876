"""One HTTP request on the short way: headers, body, request id, and the answer with its timings.

Nothing here allocates more than it must: this code runs once for each prediction.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from litestar.types import Receive, Send

from service.batching.arena import Rows
from service.batching.claim import FROM_CACHE, ServedModel, Timings
from service.batching.link import ModelFacts
from service.errors import BodyTimeout, BodyTooLarge, MalformedRequest, ServiceError

JSON = b"application/json"  # without a charset: some protocol clients compare the whole value
BINARY = b"application/octet-stream"

_MAX_REQUEST_ID_BYTES = 128
_STATUS = {status.value: b"%d %s" % (status, status.phrase.encode()) for status in HTTPStatus}
_process_id = b""
_counter = itertools.count(1)


class ClientDisconnected(Exception):
    """The client left before its body was complete; there is nobody to answer."""


@dataclass(slots=True)
class Answer:
    body: bytes
    content_type: bytes = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Copy(NamedTuple):
    """The rows and the outputs of a request that was answered by the version of `facts`, for its shadow `target`."""

    facts: ModelFacts
    target: str
    n_items: int
    inputs: Mapping[str, Rows]
    outputs: Mapping[str, Rows]


class Request:
    """What a handler reads, and what it leaves behind for the answer's headers and the metrics.

    received_at    monotonic ns, as are the other instants
    body_at        the body is complete: from here on it is decoded
    committed_at   the rows are written: from here on the request waits for the engine
    done_at        the engine has answered: from here on the outputs are encoded
    timings        of the slowest item; None: the model was not run
    model          once it is found
    copy           what a shadow will repeat
    """

    __slots__ = (
        "body_at",
        "committed_at",
        "copy",
        "done_at",
        "headers",
        "id",
        "model",
        "query",
        "received_at",
        "timings",
    )

    def __init__(self, headers: dict[bytes, bytes], query: bytes) -> None:
        self.received_at = self.body_at = self.committed_at = self.done_at = time.monotonic_ns()
        self.headers = headers
        self.query = query
        given = headers.get(b"x-request-id")
        self.id = b"%s-%x" % (_process_id, next(_counter)) if given is None else request_id(given)
        self.timings: Timings | None = None
        self.model: ServedModel | None = None
        self.copy: Copy | None = None


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


def request_id(given: bytes | None) -> bytes:
    """The client's own id where it is short printable ASCII, else a new one."""
    if given and len(given) <= _MAX_REQUEST_ID_BYTES and given.isascii() and given.decode().isprintable():
        return given
    return b"%s-%x" % (_process_id, next(_counter))


def name_process() -> None:
    """Ids made from here on are of this process; called after a fork, so that no two make the same."""
    global _process_id
    _process_id = os.urandom(6).hex().encode()


name_process()


def server_timing(request: Request) -> bytes:
    """W3C Server-Timing; milliseconds. `batch` is how many items ran together; `cache` in its place: none did."""
    total_us = (time.monotonic_ns() - request.received_at) // 1000
    if request.timings is None:
        return b"total;dur=%d.%03d" % divmod(total_us, 1000)
    queue_us, compute_us, batch_size = request.timings
    decode_us = (request.committed_at - request.body_at) // 1000
    if batch_size == FROM_CACHE:
        return b"decode;dur=%d.%03d, queue;dur=%d.%03d, total;dur=%d.%03d, cache;desc=hit" % (
            *divmod(decode_us, 1000),
            *divmod(queue_us, 1000),
            *divmod(total_us, 1000),
        )
    # Whole numbers: to print four of them as floats takes twice as long.
    return b'decode;dur=%d.%03d, queue;dur=%d.%03d, compute;dur=%d.%03d, total;dur=%d.%03d, batch;desc="%d"' % (
        *divmod(decode_us, 1000),
        *divmod(queue_us, 1000),
        *divmod(compute_us, 1000),
        *divmod(total_us, 1000),
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
        request.id,
        server_timing(request),
        answer.body,
    )


async def send_answer(send: Send, request: Request, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", request.id),
        (b"server-timing", server_timing(request)),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def error_answer(error: ServiceError) -> Answer:
    return Answer(
        error_body(str(error)),
        status=error.status,
        headers=tuple((name.encode(), value.encode()) for name, value in error.headers.items()),
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
