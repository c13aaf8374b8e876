"""The client of a search: connections with one request in flight each, as fast as the answers come.

A process of its own (`python -m service.tuning.load REQUESTS`), so that it takes no turn from the server's interpreter.
It reads one JSON line for each stage from standard input, writes one line with the result, and ends at end of file, so
it outlives nobody. REQUESTS holds whole HTTP requests (msgpack, a list of byte strings), sent in turn.

    warm-up ──► window of `seconds`, longer until ENOUGH answers came, at most LONGEST times as long ──► rest
    answers count towards throughput when they arrive in the window; latencies are of requests sent in it, the
    slowest of which arrive in the rest: cut off, they would be missing from p99

The loop is closed: a client waits for its answer before it sends again, so the offered load follows the server.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import uvloop
from msgspec import Struct

ENOUGH = 500  # answers: p99 is the fifth slowest of them
LONGEST = 4
_REST_S = 30.0
_CONNECT_AT_ONCE = 64

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"


class Stage(Struct, frozen=True):
    """`warm_s` and `seconds` are lengths, one after the other."""

    port: int
    clients: int
    warm_s: float
    seconds: float


class Seen(Struct, frozen=True):
    """What the clients saw. `failed` are answers other than 200 and connections that broke; `said` is one's body."""

    answers: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_seconds: float
    said: str = ""


class Tally:
    """What all connections of a stage share. `arrived` and `latencies` (ns): see the drawing above."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.window_at: int | None = None  # monotonic ns; None: warming up
        self.stopping = False
        self.arrived = 0
        self.failed = 0
        self.said = ""
        self.latencies: list[int] = []
        self.busy = 0  # connections that wait for an answer
        self.idle = asyncio.Event()


class Connection(asyncio.Protocol):
    """One client. Answers carry Content-Length, as all of the service's do."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._sent_at = 0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's shares no class with asyncio's
        self._send()

    def data_received(self, chunk: bytes) -> None:
        answer = self._answer = self._answer + chunk if self._answer else chunk
        if (head := answer.find(_END_OF_HEAD)) < 0 or len(answer) < head + 4 + content_length(answer[:head]):
            return
        self._answer = b""
        self._count(answer[9:12] == b"200", answer[head + 4 :])
        self._waiting = False
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._waiting = False
            self._fail(f"the connection broke: {error or 'end of file'}")
            self._leave()

    def _send(self) -> None:
        tally = self._tally
        if tally.stopping:
            self._leave()
            return
        assert self._transport is not None
        self._waiting = True
        self._sent_at = time.monotonic_ns()
        self._transport.write(next(tally.requests))

    def _count(self, ok: bool, body: bytes) -> None:
        tally = self._tally
        if not ok:
            self._fail(body[:200].decode(errors="replace"))
            return
        if tally.window_at is None:
            return
        if not tally.stopping:
            tally.arrived += 1
        if self._sent_at >= tally.window_at:
            tally.latencies.append(time.monotonic_ns() - self._sent_at)

    def _fail(self, said: str) -> None:
        self._tally.failed += 1
        self._tally.said = self._tally.said or said

    def _leave(self) -> None:
        self._tally.busy -= 1
        if self._transport is not None:
            self._transport.close()
        if not self._tally.busy:
            self._tally.idle.set()


def content_length(head: bytes) -> int:
    """The length of the body that follows this head; 0 where it does not say."""
    lowered = head.lower()
    at = lowered.find(_LENGTH)
    return int(lowered[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def run(stage: Stage, requests: Iterator[bytes]) -> Seen:
    """Raises OSError when the server does not take the connections."""
    loop = asyncio.get_running_loop()
    tally = Tally(requests)
    for first in range(0, stage.clients, _CONNECT_AT_ONCE):
        n = min(_CONNECT_AT_ONCE, stage.clients - first)
        tally.busy += n
        await asyncio.gather(
            *(loop.create_connection(lambda: Connection(tally), "127.0.0.1", stage.port) for _ in range(n))
        )
    await _until_idle(tally, stage.warm_s)
    cpu_seconds = time.process_time()
    begun = tally.window_at = time.monotonic_ns()
    await _until_idle(tally, stage.seconds)
    while tally.busy and tally.arrived < ENOUGH and _seconds_since(begun) < LONGEST * stage.seconds:
        await _until_idle(tally, stage.seconds / 4)
    seconds, cpu_seconds = _seconds_since(begun), time.process_time() - cpu_seconds
    tally.stopping = True
    await _until_idle(tally, _REST_S)
    tally.failed += tally.busy  # without an answer for so long
    if not tally.latencies:  # every request took longer than the window; no percentile is better than a made-up one
        tally.failed, tally.said = tally.failed or stage.clients, tally.said or "no request was sent and answered"
    p50, p99 = np.percentile(tally.latencies or [0], (50, 99)) / 1e6
    return Seen(tally.arrived, seconds, float(p50), float(p99), tally.failed, cpu_seconds, tally.said)


async def _until_idle(tally: Tally, seconds: float) -> None:
    """`seconds`, or less where no connection waits for an answer any more: all broke, or all are done."""
    if tally.busy:
        try:
            await asyncio.wait_for(tally.idle.wait(), seconds)
        except TimeoutError:
            return


def _seconds_since(begun: int) -> float:
    return (time.monotonic_ns() - begun) / 1e9


def main(arguments: list[str]) -> int:
    requests = itertools.cycle(msgspec.msgpack.decode(Path(arguments[0]).read_bytes(), type=list[bytes]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            stage = msgspec.json.decode(line, type=Stage)
            try:
                seen = runner.run(run(stage, requests))
            except OSError as error:
                seen = Seen(0, 0.0, 0.0, 0.0, stage.clients, 0.0, f"no connection: {error}")
            print(msgspec.json.encode(seen).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
