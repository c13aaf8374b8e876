"""A frontend in this process, and an engine that the test plays: versions are ready or refused as the test says.

Every version has x INT64 [n, 1] and y INT64 [n, 1] = 1000 version + x, so that an answer tells whose it is. An item is
answered in the turn of the event loop that brings it.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from models.manifest import TensorInput, TensorSpec
from service.batching.arena import Arena, create_arena
from service.batching.engines import Engines
from service.batching.link import ANSWER, Kind, ModelFacts, ModelFailed, ModelReady, ModelsLoaded, Status, link_pair
from service.frontend.app import Frontend
from service.lifecycle.controls import Controls
from service.lifecycle.messages import State, Table, VersionState
from service.lifecycle.routing import Routing
from service.metrics import RequestMetrics, SharedCounts
from service.settings import Settings

_CAPACITY = 8
_INPUTS = (TensorSpec("x", "INT64", (-1, 1)),)
_OUTPUTS = (TensorSpec("y", "INT64", (-1, 1)),)


class PlayedEngine:
    """In the test's event loop."""

    def __init__(self) -> None:
        self.frontends_end, self._link = link_pair()
        self._served: list[tuple[int, Arena]] = []  # by index: number and rows
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._link.fileno(), self._answer)

    async def announce(self, name: str, *versions: str) -> None:
        for version in versions:
            fd, arena = create_arena(_INPUTS, _OUTPUTS, _CAPACITY)
            facts = ModelFacts(
                name, version, "", _INPUTS, _OUTPUTS, TensorInput(), None, _CAPACITY, 4, 1, 1, items_per_s=1.0
            )
            self._link.send_event(ModelReady(len(self._served), (0, _CAPACITY), facts), fd)
            os.close(fd)
            self._served.append((int(version), arena))
        await self._until_read()

    async def refuse(self, name: str, version: str, reason: str) -> None:
        self._link.send_event(ModelFailed(name, version, reason))
        await self._until_read()

    async def loaded(self) -> None:
        self._link.send_event(ModelsLoaded())
        await self._until_read()

    def close(self) -> None:
        self._loop.remove_reader(self._link.fileno())
        self._link.close()

    def _answer(self) -> None:
        commits, _ = self._link.receive_commits()
        for _, _, index, slot, _, _ in commits:
            version, arena = self._served[index]
            row = arena.inputs["x"].array[slot] + 1000 * version
            arena.outputs["y"].write([slot], row.tobytes())
            self._link.send(ANSWER.pack(Kind.ANSWER, Status.OK, index, slot, 1, 1, 1, 1, 0))

    async def _until_read(self) -> None:
        for _ in range(3):  # turns of the loop, in which the client reads what was sent
            await asyncio.sleep(0)


class Played:
    """`http` speaks to the frontend; `tell` is the controller's word."""

    def __init__(self, engine: PlayedEngine) -> None:
        self.engine = engine
        self.settings = Settings()
        self.metrics = RequestMetrics(SharedCounts(1), 0)
        self.engines = self.metrics.engines = Engines([engine.frontends_end], self.metrics)
        self.frontend = Frontend(self.engines, self.settings, self.metrics, Controls())
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.frontend), base_url="http://played")  # type: ignore[arg-type]

    def tell(self, routing: Routing | None = None, **states: tuple[State, str]) -> None:
        """Of the model m. States and reasons by version, with a letter in front: `v4=("LOADING", "")`."""
        versions = tuple(VersionState("m", key[1:], *state) for key, state in states.items())
        self.engines.apply(Table(1, versions, {} if routing is None else {"m": routing}))


@asynccontextmanager
async def played(*versions: str) -> AsyncIterator[Played]:
    """With these versions of the model m ready."""
    engine = PlayedEngine()
    frontend = Played(engine)
    try:
        await engine.announce("m", *versions)
        await engine.loaded()
        async with frontend.http:
            yield frontend
    finally:
        frontend.engines.close()
        engine.close()
