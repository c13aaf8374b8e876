"""What HTTP costs before anything is predicted: six ways to answer a POST of 784 bytes with 60 fixed ones.

One process each, in turns, wrk with 64 connections. Needs granian, uvicorn, uvloop, httptools, litestar and wrk.
"""

import asyncio
import functools
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BODY = b'{"model":"tiny","version":"1","predictions":[{"scores":[1]}]}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
SECONDS, ROUNDS, CLIENTS = 3, 5, 64


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def rsgi(scope, protocol):
    await protocol()
    protocol.response_bytes(200, [("content-type", "application/json")], BODY)


def litestar_app():
    from litestar import Litestar
    from litestar import asgi as route
    from litestar.types import Receive, Scope, Send

    @route("/predict", is_mount=True, copy_scope=False)
    async def predict(scope: Scope, receive: Receive, send: Send) -> None:
        await asgi(scope, receive, send)

    return Litestar([predict], openapi_config=None, logging_config=None)


litestar = litestar_app() if os.environ.get("WAY", "").endswith("litestar") else None


class Protocol(asyncio.Protocol):
    """The head parsed once for equal bytes, the answer written in the turn that brings the body."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        end = data.find(b"\r\n\r\n")
        if len(data) - end - 4 == body_bytes(data[:end]):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY))


@functools.lru_cache(1024)
def body_bytes(head):
    return int(re.search(rb"(?i)content-length: (\d+)", head)[1])


async def serve_protocol(port):
    import uvloop  # noqa: F401

    await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port)
    await asyncio.Event().wait()


def command(way, port):
    here = f"{Path(__file__).stem}"
    uvicorn = ["-m", "uvicorn", "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
    granian = ["-m", "granian", "--port", str(port), "--workers", "1", "--no-access-log", "--log-level", "error", "--loop", "uvloop"]
    return {
        "uvicorn, Litestar @asgi": [*uvicorn, f"{here}:litestar"],
        "granian, Litestar @asgi": [*granian, "--interface", "asgi", f"{here}:litestar"],
        "uvicorn, bare ASGI": [*uvicorn, f"{here}:asgi"],
        "granian, bare ASGI": [*granian, "--interface", "asgi", f"{here}:asgi"],
        "granian, bare RSGI": [*granian, "--interface", "rsgi", f"{here}:rsgi"],
        "uvloop, a protocol of one's own": [__file__, "--protocol", str(port)],
    }[way]


WAYS = [
    "uvicorn, Litestar @asgi",
    "granian, Litestar @asgi",
    "uvicorn, bare ASGI",
    "granian, bare ASGI",
    "granian, bare RSGI",
    "uvloop, a protocol of one's own",
]


def ticks(root):
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        children.setdefault(int(fields[1]), []).append((int(text.split()[0]), int(fields[11]) + int(fields[12])))
        if int(text.split()[0]) == root:
            own = int(fields[11]) + int(fields[12])
    return own + sum(ticks(pid) for pid, _ in children.get(root, []))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(way):
    port = free_port()
    environment = os.environ | {"WAY": "litestar" if "Litestar" in way else "", "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, *command(way, port)], cwd=Path(__file__).parent, env=environment)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write('wrk.method="POST"\nwrk.body=string.rep("a",784)\nwrk.headers["Content-Type"]="application/octet-stream"\n')
            script.flush()
            line = ["wrk", "-t1", f"-c{CLIENTS}", "--latency", "-s", script.name, f"http://127.0.0.1:{port}/predict/tiny"]
            subprocess.run([*line, "-d1s"], capture_output=True, check=True)
            before = ticks(process.pid)
            said = subprocess.run([*line, f"-d{SECONDS}s"], capture_output=True, text=True, check=True).stdout
            used = (ticks(process.pid) - before) / os.sysconf("SC_CLK_TCK")
        assert "Non-2xx" not in said, said
        n = int(re.search(r"(\d+) requests in", said)[1])
        return n / SECONDS, 1e6 * used / n
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()


def main():
    if sys.argv[1:2] == ["--protocol"]:
        import uvloop

        uvloop.run(serve_protocol(int(sys.argv[2])))
    seen = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            seen[way].append(measure(way))
    for way, runs in seen.items():
        rates, costs = zip(*runs, strict=True)
        print(
            f"{way:34}{statistics.median(rates):9,.0f} requests/s  ({min(rates):,.0f} to {max(rates):,.0f})"
            f"{statistics.median(costs):9.1f} us of CPU a request  ({min(costs):.1f} to {max(costs):.1f})"
        )


if __name__ == "__main__":
    main()
