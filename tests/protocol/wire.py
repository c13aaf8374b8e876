"""HTTP/1.1 by hand, for what no client library would send. RFC 9112."""

import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """`headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Connection:
    def __init__(self, host: str, port: int, timeout_s: float = 15.0) -> None:
        self._socket = socket.create_connection((host, port), timeout_s)
        self._received = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_no_more(self) -> None:
        """Close our direction: the server sees the end of what it reads."""
        self._socket.shutdown(socket.SHUT_WR)

    def post(self, path: str, body: bytes, *headers: str, declared: int | None = None) -> None:
        """`declared`: a Content-Length that is not the body's."""
        length = f"Content-Length: {len(body) if declared is None else declared}"
        self.send(head("POST", path, length, *headers) + body)

    def answer(self) -> Answer:
        """The next that is not a 1xx. Raises ConnectionError where the connection ends before it is complete."""
        while True:
            status, headers = self._head()
            if status >= 200:
                break
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Answer(status, headers, self._chunks())
        return Answer(status, headers, self._take(int(headers.get("content-length", 0))))

    def interim(self) -> int:
        """The status of the next head, which has no body."""
        return self._head()[0]

    def ended(self) -> bool:
        """The server closes, and sends nothing more."""
        try:
            return not self._received and not self._socket.recv(1)
        except ConnectionResetError:
            return True

    def _head(self) -> tuple[int, dict[str, str]]:
        status, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            content += self._take(size + 2)[:-2]
        self._until(b"\r\n")
        return content

    def _until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        found, _, self._received = self._received.partition(end)
        return found

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        found, self._received = self._received[:size], self._received[size:]
        return found

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionError(f"the connection ended after {self._received[:200]!r}")
        self._received += received


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode("latin-1")
