"""What a request may cost: size, time, room; and that no client can make the server lose a slot."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import FAST_START, Serve
from tests.http.test_headers import server_timing
from tests.support.server import Server, running_server, wait_until
from tests.support.wire import Wire, WireAnswer, head

OCTETS = "Content-Type: application/octet-stream"
JSON = "Content-Type: application/json"
ROUTES = ["/predict/echo", "/v2/models/echo/infer"]
ONE_AT_A_TIME = ("--engine.instances", "1", "--engine.threads", "1", "--batching.max-batch-size", "1")

MAX_BODY_BYTES = 4096
BODY_TIMEOUT_S = 0.5


@pytest.fixture(scope="module")
def strict(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes 4096 bytes within half a second."""
    root = tmp_path_factory.mktemp("strict")
    (root / "echo").symlink_to(repository / "echo")
    limits = ("--server.max-body-bytes", str(MAX_BODY_BYTES), "--server.body-timeout-s", str(BODY_TIMEOUT_S))
    with running_server(*FAST_START, "--repository", str(root), *limits) as server:
        yield server


def error_of(answer: WireAnswer | httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


async def ask(client: httpx.AsyncClient, model: str, *values: int) -> httpx.Response:
    """`picky` or `slow`; an answer of 200 is checked."""
    answer = await client.post(f"/predict/{model}", json={"instances": list(values)})
    if answer.status_code == 200:
        factor = 11 if model == "picky" else 1
        assert [item["y"] for item in answer.json()["predictions"]] == [[factor * value] for value in values]
    return answer


def async_client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits, trust_env=False)


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_just_the_limit_is_taken(strict: Server, path: str, chunked: bool) -> None:
    body = bytes(i % 251 for i in range(MAX_BODY_BYTES))
    with Wire(strict) as wire:
        if chunked:
            wire.send(head("POST", path, OCTETS, "Transfer-Encoding: chunked"))
            for start in range(0, MAX_BODY_BYTES, 512):
                wire.send(b"200\r\n" + body[start : start + 512] + b"\r\n")
            wire.send(b"0\r\n\r\n")
        else:
            wire.post(path, body, OCTETS)
        answer = wire.answer()
    assert answer.status == 200
    if path.startswith("/predict"):
        assert [value for item in answer.json()["predictions"] for value in item["same"]] == list(body)
    else:
        assert body in answer.body


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 10**9, 2**63 - 1])
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_a_body_that_is_declared_too_long_is_413_before_it_is_sent(
    strict: Server, path: str, length: int, expect: tuple[str, ...]
) -> None:
    with Wire(strict) as wire:
        wire.post(path, b"", OCTETS, *expect, length=length)
        answer = wire.answer()
        assert answer.status == 413
        assert str(length) in error_of(answer)
        assert str(MAX_BODY_BYTES) in error_of(answer)
        assert answer.headers["connection"] == "close"
        assert wire.closed()


@pytest.mark.parametrize("path", ROUTES)
def test_a_chunked_body_is_413_as_soon_as_it_is_too_long(strict: Server, path: str) -> None:
    with Wire(strict) as wire:
        wire.send(head("POST", path, OCTETS, "Transfer-Encoding: chunked"))
        wire.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        wire.send(b"1\r\nx\r\n")  # and no end
        answer = wire.answer()
        assert answer.status == 413
        assert str(MAX_BODY_BYTES) in error_of(answer)
        assert answer.headers["connection"] == "close"


def test_clients_that_send_all_of_a_large_body_still_read_the_413(strict: Server) -> None:
    body = b"x" * (4 << 20)
    for _ in range(10):
        answer = httpx.post(f"{strict.url}/predict/echo", content=body, trust_env=False)
        assert answer.status_code == 413


def test_an_error_before_the_body_is_read_leaves_the_connection_usable(strict: Server) -> None:
    with Wire(strict) as wire:
        for path, status in (("/predict/nothing", 404), ("/nothing", 404), ("/health/live", 405)):
            wire.post(path, b"x" * 2000, OCTETS)
            assert wire.answer().status == status
        wire.post("/predict/echo", b"1234", OCTETS)
        assert wire.answer().json()["predictions"][0]["same"] == list(b"1234")


@pytest.mark.parametrize("body", [b"5\r\nab", b"zz\r\n", b"5\r\nabcdeXX"])
def test_broken_chunks_do_not_hurt_the_server(strict: Server, body: bytes) -> None:
    with Wire(strict) as wire:
        wire.send(head("POST", "/predict/echo", OCTETS, "Transfer-Encoding: chunked") + body)
        assert wire.answer().status in (400, 408)
    assert httpx.get(f"{strict.url}/health/ready", trust_env=False).status_code == 200


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("sent", [b"", b"half of it"])
def test_a_body_that_does_not_arrive_is_408(strict: Server, path: str, sent: bytes) -> None:
    with Wire(strict) as wire:
        begun = time.monotonic()
        wire.post(path, sent, OCTETS, length=100)
        answer = wire.answer()
        assert BODY_TIMEOUT_S * 0.9 < time.monotonic() - begun < BODY_TIMEOUT_S + 1
        assert answer.status == 408
        assert "0.5 s" in error_of(answer)
        assert answer.headers["connection"] == "close"
        assert wire.closed()


def test_a_body_that_drips_does_not_extend_its_time(strict: Server) -> None:
    with Wire(strict) as wire:
        begun = time.monotonic()
        wire.post("/predict/echo", b"", OCTETS, length=100)
        wire.socket.settimeout(0.05)
        while time.monotonic() - begun < 3:
            try:
                wire.send(b"x")
                answer = wire.answer()
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("no answer")
        assert answer.status == 408
        assert time.monotonic() - begun < BODY_TIMEOUT_S + 1


def test_a_body_that_ends_in_time_is_answered_though_it_came_in_parts(strict: Server) -> None:
    with Wire(strict) as wire:
        wire.post("/predict/echo", b"12", OCTETS, length=8)
        time.sleep(0.1)
        wire.send(b"345678")
        predictions = wire.answer().json()["predictions"]
    assert [item["same"] for item in predictions] == [list(b"1234"), list(b"5678")]


REQUEST_TIMEOUT_MS = 400


async def test_a_request_whose_turn_does_not_come_is_504_in_time_and_frees_its_slot(
    serve: Serve, only: Callable[..., Path]
) -> None:
    timeout = ("--server.request-timeout-ms", str(REQUEST_TIMEOUT_MS))
    server = serve(*ONE_AT_A_TIME, *timeout, models=only("slow", "echo"))
    async with async_client(server) as client:

        async def timed(value: int) -> tuple[httpx.Response, float]:
            begun = time.monotonic()
            return await ask(client, "slow", value), time.monotonic() - begun

        answers = await asyncio.gather(*(timed(i) for i in range(20)))
        late = [(answer, seconds) for answer, seconds in answers if answer.status_code != 200]
        assert late, "all were answered in time: this shows nothing"
        for answer, seconds in late:
            assert answer.status_code == 504
            assert "deadline" in error_of(answer)
            assert REQUEST_TIMEOUT_MS * 0.9e-3 < seconds < REQUEST_TIMEOUT_MS * 1e-3 + 0.6
        server.assert_settled()
        assert (await client.post("/predict/echo", json={"instances": [[1, 2, 3, 4]] * 1000})).status_code == 200
        key = "shoal_request_errors_total", "slow"
        assert server.metrics()[key] == len(late)


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_server_refuses_at_once_and_recovers_every_slot(serve: Serve, only: Callable[..., Path]) -> None:
    server = serve(*ONE_AT_A_TIME, "--batching.max-queue-items", "16", models=only("slow", "echo"))
    async with async_client(server) as client:
        answers: list[httpx.Response] = []

        async def keep(value: int) -> None:
            answers.append(await ask(client, "slow", value))

        await asyncio.gather(*(keep(i) for i in range(24)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(answers) - len(refused) == 16
        for answer in refused:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert "overloaded" in error_of(answer)
            assert "16" in error_of(answer)
        assert all(answer in refused for answer in answers[:7]), "a refusal waited for the engine"
        server.assert_settled()
        assert (await ask(client, "slow", *range(16))).status_code == 200, "a slot was lost"
        too_many = await ask(client, "slow", *range(17))
        assert too_many.status_code == 400, "it could never be answered"
        assert "at most 16" in error_of(too_many)


async def test_a_full_model_does_not_keep_another_from_answering(serve: Serve, only: Callable[..., Path]) -> None:
    flags = ("--batching.max-queue-items", "16", "--batching.max-batch-size", "1", "--engine.instances", "1")
    server = serve(*flags, "--engine.cores", "2", models=only("slow", "picky"))
    async with async_client(server) as client:
        crowd = [asyncio.create_task(ask(client, "slow", i)) for i in range(16)]
        await asyncio.to_thread(wait_until, lambda: server.items_in_flight() >= 8, "a full model")
        begun = time.monotonic()
        assert (await ask(client, "picky", 4)).status_code == 200
        assert time.monotonic() - begun < 0.5
        assert not crowd[-1].done(), "the crowd had gone: this shows nothing"
        assert {answer.status_code for answer in await asyncio.gather(*crowd)} == {200}


async def test_max_queue_items_is_kept_however_small(serve: Serve, only: Callable[..., Path]) -> None:
    server = serve(*ONE_AT_A_TIME, "--batching.max-queue-items", "2", models=only("slow"))
    async with async_client(server) as client:
        answers = await asyncio.gather(*(ask(client, "slow", i) for i in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 6


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_item_that_fails_does_so_alone_among_its_batch(serve: Serve, only: Callable[..., Path]) -> None:
    server = serve("--batching.max-queue-delay-us", "20000", models=only("picky"))
    async with async_client(server) as client:
        values = [i % 13 for i in range(104)]
        answers = await asyncio.gather(*(ask(client, "picky", value) for value in values))
        for value, answer in zip(values, answers, strict=True):
            assert answer.status_code == (500 if value > 9 else 200), value
            if value > 9:
                assert "the model failed on this input" in error_of(answer)
                assert answer.headers["x-request-id"] in error_of(answer)
        batches = [server_timing(answer.headers)["batch"] for answer in answers if answer.status_code == 200]
        assert max(batches) > 1, "nothing shared a batch: this shows nothing"
        mixed = await asyncio.gather(ask(client, "picky", 1, 10, 2), ask(client, "picky", 3, 4, 5))
        assert [answer.status_code for answer in mixed] == [500, 200]
    server.assert_settled()
    metrics = server.metrics()
    assert metrics["shoal_request_errors_total", "picky"] == len([value for value in values if value > 9]) + 1


# ── clients that leave ───────────────────────────────────────────────────────────────────────────────────────────────


def reset(wire: Wire) -> None:
    """Close with a reset instead of an end of file."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


@pytest.mark.parametrize("leave", [lambda wire: wire.socket.close(), reset], ids=["closes", "resets"])
@pytest.mark.parametrize(
    "sent", [head("POST", "/predict/echo", JSON, "Content-Length: 1000") + b'{"instances"', b"POST /pre", b""]
)
def test_a_client_that_leaves_within_its_request_costs_nothing(
    server: Server, http: httpx.Client, leave: Callable[[Wire], None], sent: bytes
) -> None:
    for _ in range(10):
        with Wire(server) as wire:
            wire.send(sent)
            leave(wire)
    server.assert_settled()
    assert_every_slot_is_free(http, "echo", [1, 2, 3, 4])


@pytest.mark.parametrize("leave", [lambda wire: wire.socket.close(), reset], ids=["closes", "resets"])
def test_a_client_that_does_not_wait_for_its_answer_gives_its_slot_back(
    server: Server, http: httpx.Client, leave: Callable[[Wire], None]
) -> None:
    for i in range(8):
        with Wire(server) as wire:
            wire.post("/predict/slow", b'{"instances": [%d]}' % i, JSON)
            if i == 0:
                wait_until(lambda: server.items_in_flight() > 0, "a running item")
            leave(wire)
    server.assert_settled()
    assert_every_slot_is_free(http, "slow", 5)


def assert_every_slot_is_free(http: httpx.Client, model: str, item: object) -> None:
    if model == "echo":
        assert http.post("/predict/echo", json={"instances": [item] * 1024}).status_code == 200
    assert http.post(f"/predict/{model}", json={"instances": [item]}).status_code == 200


def test_a_prediction_that_asks_for_an_upgrade_is_answered_as_if_it_had_not(server: Server) -> None:
    with Wire(server) as wire:
        wire.post("/predict/echo", bytes(4), OCTETS, "Connection: upgrade", "Upgrade: websocket")
        assert wire.answer().status in (200, 400)
    with Wire(server) as wire:
        wire.post("/predict/echo", bytes(4), OCTETS)
        assert wire.answer().status == 200
