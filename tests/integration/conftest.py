"""A real engine and a real client on a socket pair, with small ONNX models; no HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.batching.client import Client
from service.batching.link import link_pair
from service.engine.loop import Engine
from service.engine.repository import ModelSettings

SETTINGS = ModelSettings(
    device="cpu",
    cores=2,
    max_batch_size=8,
    max_queue_items=64,
    max_row_bytes=4096,
    instances=2,
    threads=1,
    tune_budget_s=0.0,
)
Start = Callable[..., AbstractAsyncContextManager[tuple[Engine, Client]]]


def write_model(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> None:
    """`x` INT64 [n] to `y` INT64 [n] through `nodes`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tenfold: y = 10 x · negative: y = -x · picky: fails where x > 99 · slow: y = x after about 100 ms."""
    root = tmp_path_factory.mktemp("models")
    ten, minus = np.array(10), np.array(-1)
    write_model(root / "tenfold/1/model.onnx", [helper.make_node("Mul", ["x", "ten"], ["y"])], {"ten": ten})
    write_model(root / "negative/1/model.onnx", [helper.make_node("Mul", ["x", "minus"], ["y"])], {"minus": minus})
    write_model(
        root / "picky/1/model.onnx", [helper.make_node("Gather", ["table", "x"], ["y"])], {"table": np.arange(100)}
    )
    # A product that does not depend on x, added times zero: the time is in MatMul, whatever the batch.
    side = np.ones((1100, 1100), np.float32)
    slow = [
        *(helper.make_node("MatMul", ["side" if i == 0 else f"p{i}", "side"], [f"p{i + 1}"]) for i in range(3)),
        helper.make_node("ReduceMin", ["p3"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["offset"], to=TensorProto.INT64),
        helper.make_node("Add", ["x", "offset"], ["y"]),
    ]
    # `zero` depends on x, so that onnxruntime cannot compute everything at load.
    slow[:0] = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["as_float", "none"], ["zero"]),
        helper.make_node("Add", ["constant_side", "zero"], ["side"]),
    ]
    write_model(root / "slow/1/model.onnx", slow, {"constant_side": side, "none": np.array(0, np.float32)})
    return root


@pytest.fixture
def start(repository: Path) -> Start:
    @asynccontextmanager
    async def started(max_queue_delay_us: int = 0, **changes: object) -> AsyncIterator[tuple[Engine, Client]]:
        frontend_link, engine_link = link_pair()
        client = Client(frontend_link)
        engine = Engine(repository, replace(SETTINGS, **changes), max_queue_delay_us, {0: engine_link})
        engine.start()
        await asyncio.wait_for(client.loaded.wait(), 30)
        try:
            yield engine, client
        finally:
            client.close()
            await asyncio.wait_for(asyncio.to_thread(engine.stop), 30)

    return started
