"""Many calls at once, deadlines, and calls that are given up: each answer is its own input's, and slots come free."""

import asyncio
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from service.frontend.grpc.open_inference_pb2 import ModelInferRequest
from tests.grpc.conftest import FAST_START, Serve
from tests.grpc.test_infer_tensors import floats
from tests.support.rpc import NO_LIMIT, address, arrays, request, stub
from tests.support.server import Server, running_server, wait_until
from tests.support.tensors import same

ONE_AT_A_TIME = ("--engine.instances", "1", "--engine.threads", "1", "--batching.max-batch-size", "1")
CANCELLED = asyncio.CancelledError


def channel(server: Server) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address(server), options=[*NO_LIMIT, ("grpc.use_local_subchannel_pool", 1)])


def slow(value: int, **more: object) -> ModelInferRequest:
    return request("slow", {"x": ("INT64", np.array([value]))}, **more)


async def test_sixty_four_calls_at_once_on_each_of_four_connections_get_their_own_answers(server: Server) -> None:
    async def ask(calls: object, i: int) -> None:
        x = floats(1 + i % 3, 1 + i % 5, seed=i)
        answer = await calls.ModelInfer(request("ragged", {"x": ("FP32", x)}, raw=i % 2 == 0, id=str(i)))
        assert answer.id == str(i)
        found = arrays(answer)
        assert same({"double": found["double"]}, {"double": x + x})
        assert np.allclose(found["total"], x.sum(axis=1), atol=1e-5)

    channels = [channel(server) for _ in range(4)]
    await asyncio.gather(*(ask(stub(channels[i % 4]), i) for i in range(256)))
    for each in channels:
        await each.close()
    await asyncio.to_thread(server.assert_settled)


async def test_concurrent_calls_run_together(serve: Serve) -> None:
    server = serve("--engine.instances", "1", "--engine.threads", "1")
    async with channel(server) as connection:
        calls = stub(connection)
        begun = time.monotonic()
        answers = await asyncio.gather(*(calls.ModelInfer(slow(i)) for i in range(40)))
        assert [arrays(answer)["y"].tolist() for answer in answers] == [[i] for i in range(40)]
        assert time.monotonic() - begun < 2, "forty of 100 ms each: these ran alone"


async def test_the_calls_deadline_ends_it_and_frees_its_slots(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME)
    async with channel(server) as connection:
        calls = stub(connection)
        await calls.ModelInfer(slow(0))  # connected
        outcomes = await asyncio.gather(
            *(calls.ModelInfer(slow(i), timeout=10 if i < 2 else 0.3) for i in range(12)), return_exceptions=True
        )
    late = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(late) >= 5
    assert {error.code() for error in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert [arrays(outcome)["y"].tolist() for outcome in outcomes[:2]] == [[0], [1]]
    await asyncio.to_thread(server.assert_settled)
    assert server.metrics()["shoal_request_errors_total", "slow"] == len(late)


async def test_the_servers_timeout_and_the_requests_hold_without_a_deadline(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--server.request-timeout-ms", "1000")
    async with channel(server) as connection:
        calls = stub(connection)
        for messages in (
            [slow(i) for i in range(24)],
            [slow(0), *(slow(i, parameters={"timeout": 20_000}) for i in range(1, 4))],
        ):
            await asyncio.to_thread(server.assert_settled)
            outcomes = await asyncio.gather(*map(calls.ModelInfer, messages), return_exceptions=True)
            late = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
            assert late
            assert {error.code() for error in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert "deadline" in late[0].details()
            assert len(late) < len(outcomes)
    await asyncio.to_thread(server.assert_settled)


async def test_a_models_own_timeout_holds_without_a_deadline(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/1").symlink_to(repository / "slow/1")
    (tmp_path / "slow/model.toml").write_text("[requests]\ntimeout_ms = 20\n")
    with running_server(*FAST_START, *ONE_AT_A_TIME, "--repository", str(tmp_path)) as server:
        async with channel(server) as connection:
            calls = stub(connection)
            outcomes = await asyncio.gather(*(calls.ModelInfer(slow(i)) for i in range(6)), return_exceptions=True)
        late = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert len(late) >= 5  # each waits for the 100 ms of those before it
        assert {error.code() for error in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await asyncio.to_thread(server.assert_settled)


async def test_what_waits_runs_by_priority(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME)
    order: list[str] = []
    async with channel(server) as connection:
        calls = stub(connection)

        async def ask(name: str, priority: int) -> None:
            await calls.ModelInfer(slow(1, parameters={"priority": priority}))
            order.append(name)

        tasks = [asyncio.create_task(ask("first", 1))]
        await asyncio.to_thread(wait_until, lambda: server.items_in_flight() == 1, "the first in flight")
        for name, priority in (("low", 9), ("middle", 5), ("high", 1)):
            tasks.append(asyncio.create_task(ask(name, priority)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
    assert order == ["first", "high", "middle", "low"]


async def test_cancelled_calls_free_their_slots_and_hurt_nobody(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--batching.max-queue-items", "16")
    async with channel(server) as connection:
        calls = stub(connection)
        for _ in range(3):  # more than there are slots, if they were lost
            running = [calls.ModelInfer(slow(i)) for i in range(10)]
            await asyncio.to_thread(wait_until, lambda: server.items_in_flight() >= 6, "calls in flight", 10)
            for call in running[1:]:
                call.cancel()
            assert arrays(await running[0])["y"].tolist() == [0]
            for call in running[1:]:
                with pytest.raises(CANCELLED):
                    await call
            await asyncio.to_thread(wait_until, lambda: server.items_in_flight() == 0, "free slots", 10)
        answers = await asyncio.gather(*(calls.ModelInfer(slow(i)) for i in range(12)))
        assert [arrays(answer)["y"].tolist() for answer in answers] == [[i] for i in range(12)]


async def test_a_connection_that_is_lost_frees_its_slots(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME)
    connection = channel(server)
    running = [stub(connection).ModelInfer(slow(i)) for i in range(10)]
    await asyncio.to_thread(wait_until, lambda: server.items_in_flight() >= 4, "calls in flight")
    await connection.close(None)
    await asyncio.gather(*running, return_exceptions=True)
    await asyncio.to_thread(server.assert_settled)


async def test_beyond_the_room_there_is_calls_are_refused_at_once(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--batching.max-queue-items", "4")
    async with channel(server) as connection:
        calls = stub(connection)
        outcomes = await asyncio.gather(*(calls.ModelInfer(slow(i)) for i in range(12)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert refused
    assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert "overloaded" in refused[0].details()
    for i, outcome in enumerate(outcomes):
        assert outcome in refused or arrays(outcome)["y"].tolist() == [i]
