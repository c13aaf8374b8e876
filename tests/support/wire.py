"""HTTP by hand, for what no client library would send."""

import json
import socket
from dataclasses import dataclass
from typing import Any

from tests.support.server import Server


@dataclass
class WireAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection."""

    def __init__(self, server: Server, timeout_s: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout_s)
        self._received = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def post(self, path: str, body: bytes = b"", *headers: str, length: int | None = None) -> None:
        """`length` declares another length than that of what is sent."""
        declared = f"Content-Length: {len(body) if length is None else length}"
        self.send(head("POST", path, declared, *headers) + body)

    def answer(self) -> WireAnswer:
        """The next one on this connection. Raises ConnectionError when it ends before."""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        text, _, self._received = self._received.partition(b"\r\n\r\n")
        status, *lines = text.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        while len(self._received) < size:
            self._receive()
        body, self._received = self._received[:size], self._received[size:]
        return WireAnswer(int(status.split()[1]), headers, body)

    def closed(self) -> bool:
        """The server ends the connection, without another byte."""
        try:
            return not self._received and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionError(f"the connection ended after {self._received!r}")
        self._received += received


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode("latin-1")
