"""The port, the frontends that share it, and the end: what is in flight is finished and the rest refused."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from service.frontend.grpc import health_pb2
from service.frontend.grpc import open_inference_pb2 as messages
from service.settings import read_settings
from service.supervisor import StartError, require_grpc
from tests.grpc.conftest import FAST_START, Serve
from tests.grpc.test_many import ONE_AT_A_TIME, channel, slow
from tests.support.rpc import address, arrays, client, request, stub
from tests.support.server import Server, running_server, starting_server, wait_until

HIDDEN = "import sys\nsys.modules['grpc'] = None\n"


def taken(server: Server) -> float:
    """Items that have a slot, or had one and are answered."""
    metrics = server.metrics()
    return metrics["shoal_items_in_flight", "slow"] + metrics["shoal_items_total", "slow"]


def not_ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/health/ready", trust_env=False).status_code == 503


# ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def frontends_that_listen(server: Server) -> int:
    """Sockets that listen on the port, as the kernel lists them."""
    port = f"{int(address(server).rpartition(':')[2]):04X}"
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return sum(line[1].endswith(f":{port}") and line[3] == "0A" for line in lines[1:])


def with_grpc(server: Server) -> list[int]:
    """The server's processes that have loaded grpcio."""
    pid = server.process.pid
    processes = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return [process for process in processes if "cygrpc" in mapped_by(process)]


def mapped_by(process: int) -> str:
    """What the kernel lists as mapped; nothing of a process that is gone by now."""
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_every_frontend_listens_on_the_port_and_answers(server: Server) -> None:
    assert frontends_that_listen(server) == 2
    for i in range(40):  # connections of their own: the kernel spreads them
        with client(server) as rpc:
            answer = rpc.ModelInfer(request("picky", {"x": ("INT64", np.array([i % 10]))}))
            assert arrays(answer)["y"].tolist() == [11 * (i % 10)]


@pytest.mark.parametrize("frontends", ["0", "1"])
def test_one_process_or_one_frontend_answers(serve: Serve, frontends: str) -> None:
    with client(serve("--frontends", frontends)) as rpc:
        assert rpc.ServerReady(messages.ServerReadyRequest()).ready is True
        assert arrays(rpc.ModelInfer(slow(5)))["y"].tolist() == [5]


def test_a_killed_frontend_is_replaced_with_its_port(serve: Serve) -> None:
    server = serve("--frontends", "2")
    first = with_grpc(server)
    assert len(first) == 2, "grpcio belongs to the frontends alone"
    os.kill(first[0], signal.SIGKILL)
    wait_until(lambda: len(with_grpc(server)) == 2 and frontends_that_listen(server) == 2, "a new frontend", 10)
    for i in range(10):
        with client(server) as rpc:
            assert arrays(rpc.ModelInfer(slow(i)))["y"].tolist() == [i]


def test_without_a_port_there_is_no_grpc(tmp_path: Path) -> None:
    with running_server("--port", "0", "--frontends", "2", "--repository", str(tmp_path)) as server:
        assert not [line for line in server.printed if "gRPC" in line]
        assert with_grpc(server) == []


@pytest.mark.parametrize("share", [False, True])
def test_a_port_that_is_taken_is_said_and_ends_with_1(repository: Path, share: bool) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        flags = ("--port", "0", "--server.grpc-port", port, "--repository", str(repository))
        with starting_server(*flags) as (server, _):
            assert server.wait() == 1
            assert port in server.log()
            assert "--server.grpc-port" in server.log()
            assert "Traceback" not in server.log()


def test_without_the_extra_the_start_ends_and_says_how_to_get_it(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    flags = ("--repository", str(repository))
    with starting_server(*FAST_START, *flags, environment={"PYTHONPATH": str(tmp_path)}) as (server, _):
        assert server.wait() == 1
        (line,) = server.log().splitlines()
        assert "pip install 'shoal[cpu,grpc]'" in line


def test_the_extra_is_not_asked_for_where_there_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    require_grpc(read_settings([], "serve"))
    with pytest.raises(StartError, match=r"--server\.grpc-port 5"):
        require_grpc(read_settings(["--server.grpc-port", "5"], "serve"))


# ── end ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_while_leaving_nothing_is_ready_and_everything_is_answered(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--server.drain-delay-s", "1")
    async with channel(server) as connection:
        calls = stub(connection)
        running = [calls.ModelInfer(slow(i)) for i in range(6)]
        await asyncio.to_thread(wait_until, lambda: taken(server) >= 6, "calls in flight")
        server.signal()
        await asyncio.to_thread(wait_until, lambda: not_ready(server), "ready to go false")
        assert (await calls.ServerReady(messages.ServerReadyRequest())).ready is False
        assert (await calls.ModelReady(messages.ModelReadyRequest(name="slow"))).ready is False
        assert (await calls.ServerLive(messages.ServerLiveRequest())).live is True
        probed = await calls.Check(health_pb2.HealthCheckRequest())
        assert probed.status == health_pb2.HealthCheckResponse.NOT_SERVING
        late = await calls.ModelInfer(request("echo", {"x": ("UINT8", np.array([[1, 2, 3, 4]], np.uint8))}))
        assert arrays(late)["same"].tolist() == [[1, 2, 3, 4]]
        assert [arrays(await call)["y"].tolist() for call in running] == [[i] for i in range(6)]
    assert await asyncio.to_thread(server.wait, 5) == 0


@pytest.mark.parametrize("frontends", ["0", "2"])
async def test_without_a_delay_what_is_in_flight_is_finished_and_the_rest_refused(serve: Serve, frontends: str) -> None:
    server = serve(*ONE_AT_A_TIME, "--frontends", frontends)
    async with channel(server) as connection:
        calls = stub(connection)
        running = [asyncio.ensure_future(calls.ModelInfer(slow(i))) for i in range(24)]
        await asyncio.to_thread(wait_until, lambda: taken(server) >= 24, "calls in flight")
        server.signal()
        await asyncio.to_thread(wait_until, lambda: frontends_that_listen(server) == 0, "the end of listening")
        assert await calls.ServerLive(messages.ServerLiveRequest()).code() == grpc.StatusCode.UNAVAILABLE
        assert not running[-1].done(), "nothing was in flight any more: this shows nothing"
        assert [arrays(await call)["y"].tolist() for call in running] == [[i] for i in range(24)]
    assert await asyncio.to_thread(server.wait, 5) == 0


async def test_a_stream_is_answered_for_what_it_sent_and_ended(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME)
    async with channel(server) as connection:
        stream = stub(connection).ModelStreamInfer()
        for i in range(6):
            await stream.write(slow(i))
        await asyncio.to_thread(wait_until, lambda: taken(server) >= 6, "requests in flight")
        server.signal()
        for i in range(6):
            answer = await stream.read()
            assert arrays(answer.infer_response)["y"].tolist() == [i]
        with pytest.raises(grpc.aio.AioRpcError, match="the server is draining") as raised:
            await stream.read()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert await asyncio.to_thread(server.wait, 5) == 0


async def test_idle_streams_and_connections_do_not_hold_the_end_up(serve: Serve) -> None:
    server = serve()
    async with channel(server) as connection:
        calls = stub(connection)
        streams = [calls.ModelStreamInfer() for _ in range(5)]
        for stream in streams:
            await stream.write(slow(3))
            assert arrays((await stream.read()).infer_response)["y"].tolist() == [3]
        server.signal()
        assert await asyncio.to_thread(server.wait, 3) == 0
        assert {await stream.code() for stream in streams} == {grpc.StatusCode.UNAVAILABLE}


async def test_the_drain_timeout_ends_the_wait_with_an_answer(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--server.drain-timeout-s", "1")
    async with channel(server) as connection:
        calls = stub(connection)
        running = [calls.ModelInfer(slow(i)) for i in range(40)]
        await asyncio.to_thread(wait_until, lambda: taken(server) >= 40, "calls in flight")
        server.signal()
        begun = time.monotonic()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        late = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert late
        assert len(late) < len(outcomes)
        assert {error.code() for error in late} == {grpc.StatusCode.UNAVAILABLE}
    assert await asyncio.to_thread(server.wait, 5) == 0
    assert time.monotonic() - begun < 4


async def test_a_third_signal_ends_the_wait_for_calls(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--server.drain-delay-s", "30")
    async with channel(server) as connection:
        calls = stub(connection)
        running = [calls.ModelInfer(slow(i)) for i in range(60)]
        await asyncio.to_thread(wait_until, lambda: taken(server) >= 60, "calls in flight")
        for _ in range(3):
            server.signal()
            await asyncio.sleep(0.3)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert isinstance(outcomes[-1], grpc.aio.AioRpcError)
    assert await asyncio.to_thread(server.wait, 3) == 0
