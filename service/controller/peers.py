"""The controller's connections: who is there, what they are told, and what they answer.

An engine does what it is told in turn and answers each order by its number; one that goes away fails what it had not
answered. A frontend is told the whole table at each change.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Awaitable, Callable

from msgspec import Struct

from service.lifecycle.catalogue import FoundVersion
from service.lifecycle.frames import Closed, Place, frame, receive, user_of
from service.lifecycle.messages import (
    Ask,
    Hello,
    Load,
    Loaded,
    Plan,
    Refused,
    Serving,
    Table,
    ToController,
    Told,
    Unload,
    Unloaded,
)

log = logging.getLogger(__name__)

_PATIENCE_S = 2.0
_PATIENCE_WITH_ENGINES_S = 30.0


class EngineLost(Exception):
    """The engine went away with an order that it had not answered."""


class EnginePeer:
    """One engine, as long as it is connected.

    serving   what it said that it has when it came
    has       what it has now
    """

    def __init__(self, number: int, serving: tuple[Serving, ...], writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.serving = serving
        self.has = {(each.name, each.version) for each in serving}
        self._writer = writer
        self._numbers = itertools.count()
        self._pending: dict[int, asyncio.Future[Loaded | Refused | Unloaded]] = {}

    async def load(self, found: FoundVersion, plan: Plan | None, budget_s: float) -> Loaded | Refused:
        """Raises EngineLost."""
        number = next(self._numbers)
        order = Load(number, found.name, found.version, str(found.path), found.overrides, plan, budget_s)
        answer = await self._order(number, order)
        assert not isinstance(answer, Unloaded), "bug: an unload answered a load"
        if isinstance(answer, Loaded):
            self.has.add((found.name, found.version))
        return answer

    async def unload(self, name: str, version: str) -> None:
        """Raises EngineLost."""
        number = next(self._numbers)
        self.has.discard((name, version))
        await self._order(number, Unload(number, name, version))

    def send(self, message: Struct) -> None:
        self._writer.write(frame(message))

    def answered(self, answer: Loaded | Refused | Unloaded) -> None:
        self._pending[answer.id].set_result(answer)

    def lost(self) -> None:
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(EngineLost(f"engine {self.number} is gone"))

    async def _order(self, number: int, order: Load | Unload) -> Loaded | Refused | Unloaded:
        pending: asyncio.Future[Loaded | Refused | Unloaded] = asyncio.get_running_loop().create_future()
        self._pending[number] = pending
        try:
            self.send(order)
            return await pending
        finally:
            del self._pending[number]


class FrontendPeer:
    """`told`: the generation of the table that it answers by."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.told = 0


class Peers:
    """Everybody who is connected, in the event loop's thread.

    engine_came     a new engine, and what it serves
    frontend_came   a new frontend's last table
    asked           a frontend's wish; what it returns is sent as the reply
    """

    def __init__(
        self,
        place: Place,
        engine_came: Callable[[EnginePeer], None],
        frontend_came: Callable[[Table | None], None],
        asked: Callable[[Ask], Awaitable[Struct]],
    ) -> None:
        self.engines: dict[int, EnginePeer] = {}
        self.frontends: dict[int, FrontendPeer] = {}
        self.changed = asyncio.Event()
        self._place = place
        self._engine_came = engine_came
        self._frontend_came = frontend_came
        self._asked = asked
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept who connects, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._place.listener)
            self.keep(asyncio.create_task(self._serve(connection)))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Until it ends, as nobody else holds it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tell_frontends(self, message: Struct) -> None:
        data = frame(message)
        for frontend in self.frontends.values():
            frontend.writer.write(data)

    async def until_an_engine(self) -> None:
        """One that died is replaced soon; where it is not, whoever waits must see to it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_WITH_ENGINES_S):
                while not self.engines:
                    self.changed.clear()
                    await self.changed.wait()

    async def until_told(self, generation: int) -> None:
        """Until every frontend answers by this table; one that has gone, or hangs, is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while any(frontend.told < generation for frontend in self.frontends.values()):
                    self.changed.clear()
                    await self.changed.wait()

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            if user_of(connection) != os.geteuid():
                return
            hello = await receive(reader, Hello)
            if hello.secret != self._place.secret:
                return
            if hello.role == "engine":
                await self._serve_engine(hello, reader, writer)
            else:
                await self._serve_frontend(hello, reader, writer)
        except Closed:
            pass
        finally:
            writer.close()

    async def _serve_engine(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = self.engines[hello.number] = EnginePeer(hello.number, hello.serving, writer)
        self._engine_came(engine)
        self.changed.set()
        try:
            while True:
                message: ToController = await receive(reader, ToController)  # type: ignore[arg-type]  # a union
                if isinstance(message, Loaded | Refused | Unloaded):
                    engine.answered(message)
        finally:
            engine.lost()
            if self.engines.get(hello.number) is engine:
                del self.engines[hello.number]
            self.changed.set()

    async def _serve_frontend(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frontend = self.frontends[hello.number] = FrontendPeer(writer)
        self._frontend_came(hello.table)
        self.changed.set()
        try:
            while True:
                message: ToController = await receive(reader, ToController)  # type: ignore[arg-type]  # a union
                if isinstance(message, Told):
                    frontend.told = message.generation
                    self.changed.set()
                elif isinstance(message, Ask):
                    self.keep(asyncio.create_task(self._reply(message, writer)))
        finally:
            if self.frontends.get(hello.number) is frontend:
                del self.frontends[hello.number]
            self.changed.set()

    async def _reply(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(await self._asked(ask)))
