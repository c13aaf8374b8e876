"""Servers that models are downloaded from: a real one that speaks S3, a proxy that cuts, and one for HTTP's ways."""

import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOTO = ROOT / ".remotes" / "moto"

needs_moto = pytest.mark.skipif(
    not (MOTO / ".ready").exists() and os.environ.get("SHOAL_REQUIRE_ALL") != "1",
    reason="not installed: moto; `make remotes` installs it",
)


def version_files(seed: int, size: int = 1 << 20) -> dict[str, bytes]:
    """The files of a version with a manifest that is right. Bytes that do not repeat, so that a shift shows."""
    files = {
        "model.onnx": hashlib.shake_256(b"%d" % seed).digest(size),
        "golden.npz": hashlib.shake_256(b"golden %d" % seed).digest(1000),
    }
    return files | {"manifest.json": manifest_of(files)}


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    digests = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return json.dumps({"files": digests}).encode()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Bucket:
    """A bucket of moto's, and how to write it without the code under test."""

    port: int
    name: str

    def put(self, folder: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self._ask("PUT", f"{folder}/{name}", data)

    def delete(self, key: str) -> None:
        self._ask("DELETE", key)

    def create(self) -> None:
        self._ask("PUT", "", b"")

    def _ask(self, method: str, key: str, data: bytes | None = None) -> None:
        address = f"http://127.0.0.1:{self.port}/{self.name}/{key}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        scope = "Credential=someone/20260101/us-east-1/s3/aws4_request"  # moto wants one, and does not check it
        signed = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=none"
        headers = {"content-type": "application/octet-stream", "authorization": signed}
        opener.open(urllib.request.Request(address, data, headers, method=method), timeout=10).read()


@contextmanager
def running_moto() -> Iterator[int]:
    """Its port."""
    command = [MOTO / "bin" / "moto_server", "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = next((int(found[1]) for line in process.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)", line))), None)
    reader = threading.Thread(target=process.stderr.read)  # else its log fills the pipe
    reader.start()
    try:
        assert port is not None, "moto has started"
        yield port
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


@dataclass
class Proxy:
    """Passes connections on to `target`. `passed`: bytes that came back from there; `down`: none is accepted."""

    target: int
    passed: int = 0
    down: bool = False
    port: int = 0
    _after: tuple[int, Callable[[], None]] | None = None
    _threads: list[threading.Thread] = field(default_factory=list)

    def cut_after(self, n_bytes: int, action: Callable[[], None] = lambda: None) -> None:
        """Once: when `n_bytes` more have come back, do it, and cut the connection they came on."""
        self._after = self.passed + n_bytes, action

    def cut_never(self) -> None:
        self._after = None

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            for pump, ends in ((self._there, (client, server)), (self._back, (server, client))):
                thread = threading.Thread(target=pump, args=ends, daemon=True)
                thread.start()

    def _there(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                server.sendall(data)
        except OSError:
            pass
        _shut(server)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(16384):
                if self._after is not None and self.passed + len(data) >= self._after[0]:
                    (_, action), self._after = self._after, None
                    action()
                    break
                client.sendall(data)
                self.passed += len(data)
        except OSError:
            pass
        _shut(server)
        _shut(client)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def running_proxy(target: int) -> Iterator[Proxy]:
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(target, port=listener.getsockname()[1])
    thread = threading.Thread(target=proxy._serve, args=(listener,))
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@dataclass
class WebServer:
    """Files by path, with or without ranges. `asked`: paths and ranges; `tokens`: of whoever asked.

    cut_after    of the next answer that is longer, only so many bytes are sent
    redirects    by path, where to
    failures     so many requests are answered 503
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    cut_after: int | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    failures: int = 0
    url: str = ""


@contextmanager
def running_web_server() -> Iterator[WebServer]:
    state = WebServer()

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, wanted = self.path.partition("?")[0], self.headers.get("range", "")
            state.asked.append((path, wanted))
            state.tokens.add(self.headers.get("authorization", ""))
            if state.failures:
                state.failures -= 1
                return self._empty(503)
            if path in state.redirects:
                return self._empty(302, state.redirects[path])
            if path not in state.files:
                return self._empty(404)
            data = state.files[path]
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            self.send_response(206 if wanted and state.ranges else 200)
            if wanted and state.ranges:
                self.send_header("content-range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("content-length", str(len(data) - first))
            self.send_header("last-modified", "Mon, 02 Nov 2026 10:00:00 GMT")
            self.end_headers()
            body, cut = data[first:], state.cut_after
            if cut is not None and len(body) > cut:
                state.cut_after = None
                self.wfile.write(body[:cut])
                self.close_connection = True
                return None
            self.wfile.write(body)
            return None

        def _empty(self, status: int, location: str | None = None) -> None:
            self.send_response(status)
            if location:
                self.send_header("location", location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
