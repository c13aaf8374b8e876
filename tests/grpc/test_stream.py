"""ModelStreamInfer: many requests on one stream, answered in order; errors, who does not read, streams that end."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from service.frontend.grpc.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from service.frontend.grpc.stream import MOST_IN_FLIGHT
from tests.grpc.conftest import Serve
from tests.grpc.test_infer_tensors import floats
from tests.grpc.test_many import ONE_AT_A_TIME, channel, slow
from tests.support.rpc import arrays, request, stub
from tests.support.server import Server, wait_until
from tests.support.tensors import same


def value_of(answer: ModelStreamInferResponse) -> int:
    assert answer.error_message == ""
    return int(arrays(answer.infer_response)["y"][0])


async def test_two_hundred_requests_of_one_stream_are_answered_in_order(server: Server) -> None:
    inputs = [floats(1 + i % 3, 1 + i % 5, seed=i) for i in range(200)]

    def requests() -> Iterator[ModelInferRequest]:
        for i, x in enumerate(inputs):
            yield request("ragged", {"x": ("FP32", x)}, raw=i % 2 == 0, outputs=["double"], id=str(i))

    async with channel(server) as connection:
        answers = [answer async for answer in stub(connection).ModelStreamInfer(requests())]
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(200)]
    for x, answer in zip(inputs, answers, strict=True):
        assert answer.error_message == ""
        assert same(arrays(answer.infer_response), {"double": x + x})
        assert answer.infer_response.parameters["triton_final_response"].bool_param is True
    await asyncio.to_thread(server.assert_settled)


async def test_requests_of_one_stream_run_together(serve: Serve) -> None:
    server = serve("--engine.instances", "1", "--engine.threads", "1")
    async with channel(server) as connection:
        begun = time.monotonic()
        answers = [answer async for answer in stub(connection).ModelStreamInfer(slow(i) for i in range(40))]
        assert [value_of(answer) for answer in answers] == list(range(40))
        assert time.monotonic() - begun < 2, "forty of 100 ms each: these ran alone"


async def test_an_error_answers_its_request_and_the_stream_goes_on(server: Server) -> None:
    messages = [
        request("picky", {"x": ("INT64", np.array([3]))}, id="good"),
        request("picky", {"x": ("INT64", np.array([10]))}, id="fails"),
        request("nothing", {}, id="unknown"),
        request("picky", {"x": ("INT32", np.array([3], np.int32))}, id="wrong", model_version="1"),
        request("picky", {"x": ("INT64", np.array([9]))}, id="good again"),
    ]
    async with channel(server) as connection:
        answers = [answer async for answer in stub(connection).ModelStreamInfer(iter(messages))]
    assert [answer.infer_response.id for answer in answers] == [message.id for message in messages]
    assert [answer.infer_response.model_name for answer in answers] == [message.model_name for message in messages]
    said = ["", "failed on this input", "'nothing'", "'x' has datatype INT32", ""]
    assert all(words in answer.error_message for words, answer in zip(said, answers, strict=True))
    assert [value_of(answers[0]), value_of(answers[4])] == [33, 99]
    assert answers[1].error_message


async def test_answers_come_while_the_stream_is_open(server: Server) -> None:
    async with channel(server) as connection:
        stream = stub(connection).ModelStreamInfer()
        for i in range(5):
            await stream.write(request("picky", {"x": ("INT64", np.array([i]))}))
            assert value_of(await stream.read()) == 11 * i
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() == grpc.StatusCode.OK


async def test_a_stream_without_a_request_ends_well(server: Server) -> None:
    async with channel(server) as connection:
        assert [answer async for answer in stub(connection).ModelStreamInfer(iter(()))] == []


async def test_a_cancelled_stream_frees_its_slots(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME, "--batching.max-queue-items", "32")
    async with channel(server) as connection:
        calls = stub(connection)
        for _ in range(3):  # more than there are slots, if they were lost
            stream = calls.ModelStreamInfer()
            for i in range(30):
                await stream.write(slow(i))
            await asyncio.to_thread(wait_until, lambda: server.items_in_flight() >= 12, "requests in flight", 10)
            stream.cancel()
            await asyncio.to_thread(wait_until, lambda: server.items_in_flight() == 0, "free slots", 10)
        assert arrays(await calls.ModelInfer(slow(7)))["y"].tolist() == [7]


async def test_the_deadline_of_a_stream_ends_it(serve: Serve) -> None:
    server = serve(*ONE_AT_A_TIME)
    async with channel(server) as connection:
        stream = stub(connection).ModelStreamInfer((slow(i) for i in range(20)), timeout=0.5)
        answers: list[ModelStreamInferResponse] = []

        async def take_all() -> None:
            async for answer in stream:
                answers.append(answer)  # noqa: PERF401 those before the error count

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await take_all()
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # The last ones may say that their deadline passed, in the moment before gRPC does.
    good = [value_of(answer) for answer in answers if not answer.error_message]
    assert 0 < len(good) < 20
    assert good == list(range(len(good)))
    await asyncio.to_thread(server.assert_settled)


async def test_who_does_not_read_is_soon_not_read_either(serve: Serve) -> None:
    """5,000 requests whose answers of 200 KB nobody takes: the server runs some, and waits."""
    server = serve("--engine.instances", "1", models=("ragged",))
    x = np.ones((1, 50_000), np.float32)
    message = request("ragged", {"x": ("FP32", x)}, outputs=["double"])

    async def requests() -> AsyncIterator[ModelInferRequest]:
        for _ in range(5000):
            yield message

    async with channel(server) as connection:
        stream = stub(connection).ModelStreamInfer(requests())

        def items() -> float:
            return server.metrics()["shoal_items_total", "ragged"]

        await asyncio.to_thread(wait_until, lambda: items() >= MOST_IN_FLIGHT, "a full stream", 10)
        before = -1.0
        while before != (before := await asyncio.to_thread(items)):
            await asyncio.sleep(0.5)
        assert before < 500
        for _ in range(int(before)):
            assert np.array_equal(arrays((await stream.read()).infer_response)["double"], x + x)
        await asyncio.to_thread(wait_until, lambda: items() > before, "the stream to go on")
        stream.cancel()
    await asyncio.to_thread(server.assert_settled)
