"""A whole lifecycle in one process: the controller, an engine and one frontend's side of both; no HTTP."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.batching.engines import Engines
from service.batching.link import link_pair
from service.controller.controller import Controller
from service.engine.loop import Engine
from service.engine.orders import Orders
from service.engine.serve import model_settings
from service.lifecycle.controls import Controls
from service.lifecycle.frames import make_place
from service.lifecycle.messages import Command
from service.metrics import SharedCounts
from service.settings import Settings


def write_version(root: Path, name: str, version: int, factor: int, ready: bool = True) -> Path:
    """y = factor * x, INT64 [n]: an answer tells which version gave it. There in one rename."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "times",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
        [onnx.numpy_helper.from_array(np.array(factor), "factor")],
    )
    folder = root / name / str(version)
    beside = root / name / f".{version}"
    beside.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (beside / "model.onnx").write_bytes(model.SerializeToString() if ready else b"no model")
    beside.rename(folder)
    return folder


def remove_version(root: Path, name: str, version: int) -> None:
    beside = root / name / f".gone-{version}"
    (root / name / str(version)).rename(beside)
    shutil.rmtree(beside)


@dataclass
class Lifecycle:
    """What a frontend sees of it."""

    root: Path
    engines: Engines
    controls: Controls
    engine: Engine
    controller: asyncio.Task[None]
    counts: SharedCounts

    async def ask(self, command: Command) -> None:
        async with asyncio.timeout(60):
            await self.controls.ask(command)

    async def predict(self, name: str, x: int, version: str | None = None) -> int:
        """What `version`, or whichever answers, makes of `x`. Raises what the request would be refused with."""
        model = self.engines.find(name, version)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with model.claim(1) as claim:
            claim.deadline = 2**63 - 1
            claim.write("x", np.array([x], "<i8").tobytes())
            claim.run(lambda _: done.set_result(None))
            await done
            if claim.error is not None:
                raise claim.error
            return int(claim.read("y")[0, 0])

    def state(self, name: str, version: int | str) -> str:
        """State and reason, as the index has them."""
        for each in self.controls.table.versions:
            if (each.name, each.version) == (name, str(version)):
                return f"{each.state} {each.reason}".strip()
        return "absent"

    async def pause(self) -> None:
        """A part of the time between two looks of the controller at its guards."""
        await asyncio.sleep(0.15)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(30):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"waited in vain for {what}; states: {self.controls.table.versions}")


Start = Callable[..., AbstractAsyncContextManager[Lifecycle]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Settings by section: `control={"mode": "poll"}`."""

    @asynccontextmanager
    async def started(root: Path = tmp_path / "models", **sections: dict[str, Any]) -> AsyncIterator[Lifecycle]:
        fast = {"instances": 1, "threads": 1, "tune_budget_s": 0, "device": "cpu", "cores": 2}
        given = {"engine": fast, "control": {"mode": "explicit"}} | sections
        settings = Settings(repository=root, **given)
        place, (ours, theirs) = make_place(), link_pair()
        loaded_as = model_settings(settings)
        engine = Engine(Orders(place, 0, loaded_as), loaded_as, 0, {0: theirs})
        engines = Engines([ours])
        engines.has_controller = True
        controls = Controls(engines.apply, engines.holds)
        engine.start()
        connected = asyncio.create_task(controls.run(place, 0))
        counts = SharedCounts(1)
        controller = asyncio.create_task(Controller(settings, 1, place, counts).run())
        lifecycle = Lifecycle(root, engines, controls, engine, controller, counts)
        try:
            async with asyncio.timeout(60):
                await engines.any_loaded()
            yield lifecycle
        finally:
            controller.cancel()
            connected.cancel()
            engines.close()
            await asyncio.to_thread(engine.stop)
            place.listener.close()

    return started
