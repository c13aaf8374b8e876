"""Labels and splits over gRPC, in one process with an engine that the test plays."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from service.frontend.grpc.calls import SERVICE
from service.frontend.grpc.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
)
from service.frontend.grpc.server import GrpcServer
from service.lifecycle.routing import Routing, choose, point_of
from tests.support.versions import Played, played

ALIASES = {"stable": "3", "canary": "4"}
HALVES = {"stable": 50.0, "canary": 50.0}


@asynccontextmanager
async def served(*versions: str) -> AsyncIterator[tuple[Played, grpc.aio.Channel]]:
    async with played(*versions) as frontend:
        server = GrpcServer(frontend.frontend, frontend.engines, frontend.settings, frontend.metrics)
        with socket.socket() as held:  # the port is ours until the server shares it
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            await server.start("127.0.0.1", port)
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    yield frontend, channel
            finally:
                server.close(at_once=True)
                await server.ended()


def message(x: int, version: str = "") -> bytes:
    request = ModelInferRequest(model_name="m", model_version=version)
    request.inputs.add(name="x", datatype="INT64", shape=[1, 1])
    request.raw_input_contents.append(np.int64(x).tobytes())
    return request.SerializeToString()


async def ask(channel: grpc.aio.Channel, sent: bytes, **metadata: str) -> str:
    """The version that answered, by the rows and by its word."""
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=ModelInferResponse.FromString)
    answer = await call(sent, metadata=tuple((key.replace("_", "-"), value) for key, value in metadata.items()))
    (y,) = np.frombuffer(answer.raw_output_contents[0], np.int64)
    assert answer.model_version == str(y // 1000)
    return str(answer.model_version)


async def test_a_label_stands_for_its_version() -> None:
    async with served("2", "3", "4") as (frontend, channel):
        frontend.tell(Routing(ALIASES))
        for label, version in (*ALIASES.items(), ("2", "2"), ("", "3")):
            assert await ask(channel, message(5, label)) == version


async def test_labels_that_are_unknown_are_not_found_and_those_that_are_not_ready_unavailable() -> None:
    async with served("3") as (frontend, channel):
        frontend.tell(Routing(ALIASES), v4=("LOADING", ""))
        ready = channel.unary_unary(
            f"/{SERVICE}/ModelReady", ModelReadyRequest.SerializeToString, ModelReadyResponse.FromString
        )
        for label, code, words in (
            ("beta", grpc.StatusCode.NOT_FOUND, "labels: canary, stable"),
            ("canary", grpc.StatusCode.UNAVAILABLE, "version 4 (canary) is not ready: it is loading"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await ask(channel, message(5, label))
            assert refusal.value.code() == code
            assert words in str(refusal.value.details())
        assert not (await ready(ModelReadyRequest(name="m", version="canary"))).ready
        assert (await ready(ModelReadyRequest(name="m", version="stable"))).ready


async def test_a_call_s_metadata_decides_as_a_header_does_and_the_message_as_the_body() -> None:
    async with served("3", "4") as (frontend, channel):
        routing = Routing(ALIASES, HALVES, "header:X-User")
        frontend.tell(routing)
        users = ("anna", "ben", "cleo", "dora", "emil", "fritz")
        expected = [choose(routing, ("3", "4"), point_of(user.encode())) for user in users]
        assert {*expected} == {"3", "4"}
        assert [await ask(channel, message(5), x_user=user) for user in users] == expected
        frontend.tell(Routing(ALIASES, HALVES, "body"))
        for x in range(8):
            sent = message(x)
            assert await ask(channel, sent) == choose(routing, ("3", "4"), point_of(sent))


async def test_requests_of_a_stream_are_split_one_by_one() -> None:
    async with served("3", "4") as (frontend, channel):
        frontend.tell(Routing(ALIASES, HALVES))
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")([message(x) for x in range(40)])
        assert len([answer async for answer in call]) == 40
        for version in ("3", "4"):
            assert frontend.metrics.totals([("m", version)])["m", version].items > 0


async def test_the_index_has_the_states() -> None:
    async with served("3") as (frontend, channel):
        frontend.tell(None, v4=("LOADING", ""), v5=("UNAVAILABLE", "damaged"))
        index = channel.unary_unary(
            f"/{SERVICE}/RepositoryIndex", RepositoryIndexRequest.SerializeToString, RepositoryIndexResponse.FromString
        )
        answer = await index(RepositoryIndexRequest())
        assert [(each.version, each.state, each.reason) for each in answer.models] == [
            ("3", "READY", ""),
            ("4", "LOADING", ""),
            ("5", "UNAVAILABLE", "damaged"),
        ]
