"""SIGTERM: what is in flight is finished, balancers get time to notice, and nobody is left waiting."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import FAST_START, Serve
from tests.support.server import Server, starting_server, wait_until
from tests.support.wire import Wire

JSON = "Content-Type: application/json"
ONE_AT_A_TIME = ("--engine.instances", "1", "--engine.threads", "1", "--batching.max-batch-size", "1")


@pytest.fixture
def models(only: Callable[..., Path]) -> Path:
    return only("slow", "echo")


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False)


async def slow(client: httpx.AsyncClient, value: int) -> httpx.Response:
    answer = await client.post("/predict/slow", json={"instances": [value]})
    assert (answer.status_code, answer.json()["predictions"]) == (200, [{"y": [value]}])
    return answer


async def begin(server: Server, client: httpx.AsyncClient, n: int) -> list[asyncio.Task[httpx.Response]]:
    """`n` slow requests, all of them in flight."""
    tasks = [asyncio.create_task(slow(client, i)) for i in range(n)]
    await asyncio.to_thread(wait_until, lambda: taken(server) >= n, "requests in flight")
    return tasks


def taken(server: Server) -> float:
    """Items that have a slot, or had one and are answered."""
    metrics = server.metrics()
    return metrics["shoal_items_in_flight", "slow"] + metrics["shoal_items_total", "slow"]


def get(server: Server, path: str) -> httpx.Response:
    return httpx.get(server.url + path, trust_env=False)


def post_echo(server: Server) -> httpx.Response:
    """On a connection of its own."""
    return httpx.post(f"{server.url}/predict/echo", json={"instances": [[1, 2, 3, 4]]}, trust_env=False)


def not_ready(server: Server) -> bool:
    return get(server, "/health/ready").status_code == 503


async def test_while_leaving_everything_is_answered_and_connections_are_given_up(serve: Serve, models: Path) -> None:
    server = serve(*ONE_AT_A_TIME, "--server.drain-delay-s", "1", models=models)
    async with client_of(server) as client:
        tasks = await begin(server, client, 6)
        server.signal()
        begun = time.monotonic()
        await asyncio.to_thread(wait_until, lambda: not_ready(server), "ready to go false", 0.5)
        for path in ("/health/ready", "/v2/health/ready"):
            answer = get(server, path)
            assert answer.status_code == 503
            assert answer.json() == {"ready": False, "error": "the server is draining"}
        assert get(server, "/health/live").status_code == 200
        for path, status in (("/predict/echo", 200), ("/predict/nothing", 404)):
            answer = await client.post(path, json={"instances": [[9, 8, 7, 6]]})
            assert answer.status_code == status
            assert answer.headers["connection"] == "close"
        answers = await asyncio.gather(*tasks)
        assert answers[-1].headers["connection"] == "close"
    assert await asyncio.to_thread(server.wait) == 0
    assert 1.0 <= time.monotonic() - begun < 4


@pytest.mark.parametrize("path", ["/health/live", "/v2/models/echo", "/metrics"])
def test_while_leaving_connections_for_anything_are_given_up(serve: Serve, models: Path, path: str) -> None:
    server = serve("--server.drain-delay-s", "0.5", models=models)
    server.signal()
    wait_until(lambda: not_ready(server), "ready to go false")
    answer = get(server, path)
    assert (answer.status_code, answer.headers.get("connection")) == (200, "close")


async def test_without_a_delay_what_is_in_flight_is_finished_and_the_rest_refused(serve: Serve, models: Path) -> None:
    server = serve(*ONE_AT_A_TIME, models=models)
    async with client_of(server) as client:
        tasks = await begin(server, client, 6)
        server.signal()
        refused = 0
        while True:  # until the listener is closed
            try:
                answer = await asyncio.to_thread(post_echo, server)
            except httpx.TransportError:
                break
            if answer.status_code != 200:  # the signal has arrived
                refused += 1
                assert answer.status_code == 503
                assert "draining" in answer.json()["error"]
                assert answer.headers["connection"] == "close"
                assert int(answer.headers["retry-after"]) >= 1
        assert not tasks[-1].done(), "nothing was in flight any more: this shows nothing"
        await asyncio.gather(*tasks)
    assert await asyncio.to_thread(server.wait) == 0


async def test_answers_in_flight_say_that_the_connection_closes(serve: Serve, models: Path) -> None:
    server = serve(*ONE_AT_A_TIME, models=models)
    async with client_of(server) as client:
        tasks = await begin(server, client, 5)
        server.signal()
        answers = await asyncio.gather(*tasks)
        assert answers[-1].headers.get("connection") == "close"


async def test_a_second_signal_skips_the_delay_and_not_the_requests(serve: Serve, models: Path) -> None:
    server = serve(*ONE_AT_A_TIME, "--server.drain-delay-s", "30", models=models)
    async with client_of(server) as client:
        tasks = await begin(server, client, 6)
        server.signal()
        await asyncio.to_thread(wait_until, lambda: not_ready(server), "ready to go false")
        server.signal()
        await asyncio.gather(*tasks)
    assert await asyncio.to_thread(server.wait, 3) == 0


def test_an_interrupt_from_the_keyboard_drains_as_well(serve: Serve, models: Path) -> None:
    server = serve(models=models)
    server.signal(signal.SIGINT)
    assert server.wait(5) == 0


def test_the_drain_timeout_ends_the_wait_for_a_body_that_does_not_come(serve: Serve, models: Path) -> None:
    server = serve("--server.drain-timeout-s", "1", models=models)
    with Wire(server) as wire:
        wire.post("/predict/echo", b"", JSON, length=100)
        time.sleep(0.1)
        server.signal()
        assert_given_up(wire)
        assert server.wait(4) == 0


def assert_given_up(wire: Wire) -> None:
    """503 in our form, or nothing at all."""
    try:
        answer = wire.answer()
    except ConnectionError:
        return
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/json"
    assert "draining" in answer.json()["error"]


def test_a_third_signal_ends_the_wait_for_requests(serve: Serve, models: Path) -> None:
    server = serve("--server.drain-delay-s", "30", models=models)
    with Wire(server) as wire:
        wire.post("/predict/echo", b"", JSON, length=100)
        time.sleep(0.1)
        for _ in range(3):
            server.signal()
            time.sleep(0.3)
        assert_given_up(wire)
        assert server.wait(3) == 0


def test_idle_connections_do_not_hold_the_end_up(serve: Serve, models: Path) -> None:
    server = serve(models=models)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server)) for _ in range(20)]
        for wire in wires[:10]:
            wire.post("/predict/echo", b'{"instances": [[1, 2, 3, 4]]}', JSON)
            assert wire.answer().status == 200
        server.signal()
        assert server.wait(3) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def loads_for_seconds(repository: Path, tmp_path: Path) -> Path:
    root = tmp_path / "loads for seconds"
    for i in range(12):
        (root / f"slow-{i:02}").mkdir(parents=True)
        (root / f"slow-{i:02}" / "1").symlink_to(repository / "slow" / "1")
    return root


def test_while_models_load_the_server_is_live_and_not_ready_and_can_be_ended(loads_for_seconds: Path) -> None:
    port = free_port()
    flags = ("--port", str(port), *FAST_START[2:], "--repository", str(loads_for_seconds))
    with starting_server(*flags) as (server, _):
        server.url = f"http://127.0.0.1:{port}"

        def live() -> bool:
            try:
                return get(server, "/health/live").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(live, "live", 20)
        answer = get(server, "/health/ready")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "error": "models are loading"})
        assert int(answer.headers["retry-after"]) >= 1
        for path in ("/v2/models/slow-11", "/v2/models/slow-11/ready"):
            answer = get(server, path)
            assert answer.status_code == 503
            assert answer.json() == {"error": "model 'slow-11' is not ready: models are loading"}
        server.signal()
        assert server.wait(5) == 0, server.log()
        assert "Traceback" not in server.log()


def test_a_port_that_is_taken_is_said_and_ends_with_1(models: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = str(listener.getsockname()[1])
        with starting_server("--port", port, "--repository", str(models)) as (server, _):
            assert server.wait() == 1
            assert port in server.log()
            assert "--port" in server.log()
            assert "Traceback" not in server.log()
