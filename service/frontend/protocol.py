"""uvicorn's HTTP/1.1 protocol with two changes: an answer goes out in one write, and bad syntax gets our error body.

uvicorn writes an answer's head when the application sends it, and the body when that follows: two system calls, and the
client wakes twice. Here the head waits for what is written next. It never waits longer than the answer: the end of the
response, closing, and anything else that is written let it go.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.frontend.http import error_body, request_id

_CONTINUE = b"HTTP/1.1 100"  # the client waits for it before it sends the body


class HeadWithBody:
    """A transport that holds an answer's head back until the next write."""

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
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(cast(asyncio.Transport, HeadWithBody(transport)))

    def on_response_complete(self) -> None:
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
            b"connection: close\r\n\r\n%s" % (len(body), request_id(None).encode(), body)
        )
        self.transport.close()
