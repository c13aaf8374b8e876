"""The client of `tune` against scripted servers: what it counts, and that slow and broken answers are not lost."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from service.tuning.load import Seen, Stage, content_length, run

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nserver-timing: x\r\n\r\nhello"
Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""(number of the request, over all connections; where to write)"""


async def load(answer: Answer, clients: int, warm_s: float = 0.05, seconds: float = 0.2) -> tuple[Seen, list[bytes]]:
    """What the client saw, and what the server was sent. Requests are of one byte."""
    sent: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(1):
            sent.append(request)
            await answer(len(sent), writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await run(Stage(port, clients, warm_s, seconds), itertools.cycle([b"a", b"b", b"c"])), sent


async def test_answers_in_pieces_are_counted_and_requests_sent_in_turn() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        for piece in (OK[:20], OK[20:-3], OK[-3:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    seen, sent = await load(answer, 2)
    assert (seen.failed, seen.said) == (0, "")
    assert 0 < seen.answers < len(sent)  # those of the warm-up are not counted
    assert {request: sent.count(request) * 3 // len(sent) for request in (b"a", b"b", b"c")} == dict.fromkeys(
        (b"a", b"b", b"c"), pytest.approx(1, abs=1)
    )


async def test_latency_and_throughput_are_those_of_the_server() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(OK)

    seen, _ = await load(answer, 4)
    assert 30 <= seen.p50_ms <= seen.p99_ms
    assert 0 < seen.answers / seen.seconds <= 4 / 0.03


async def test_a_window_without_enough_answers_is_longer() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(OK)

    seen, _ = await load(answer, 1, seconds=0.1)
    assert 0.4 <= seen.seconds < 0.6


async def test_an_answer_that_comes_after_the_window_is_in_p99() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.0 if number == 20 else 0.01)
        writer.write(OK)

    seen, _ = await load(answer, 1, seconds=0.1)
    assert seen.seconds < 0.7
    assert seen.p99_ms > 500


async def test_another_status_is_a_failure_and_its_body_is_kept() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        writer.write(OK if number > 3 else b"HTTP/1.1 503 Unavailable\r\ncontent-length: 4\r\n\r\nfull")

    seen, _ = await load(answer, 1)
    assert (seen.failed, seen.said) == (3, "full")
    assert seen.answers > 0


async def test_connections_that_break_are_failures_and_end_the_stage() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with asyncio.timeout(5):
        seen, _ = await load(answer, 3)
    assert (seen.answers, seen.failed) == (0, 3)
    assert "the connection broke" in seen.said


async def test_no_percentile_is_made_up_where_no_request_fits_the_window() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(OK)

    seen, _ = await load(answer, 2, seconds=0.05)
    assert seen.failed == 2
    assert seen.said


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12", 12),
        (b"HTTP/1.1 200 OK\r\ncontent-length:7\r\nx: y", 7),
        (b"HTTP/1.1 204 No Content", 0),
    ],
)
def test_the_length_of_a_body_is_read_from_its_head(head: bytes, length: int) -> None:
    assert content_length(head) == length
