"""A frontend's connection to the controller: what the controller says is true, and what a client asks of it."""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Callable

from service import errors
from service.errors import ControllerGone, EngineError
from service.lifecycle.frames import Closed, Place, frame, receive
from service.lifecycle.messages import Ask, Command, Hello, Reply, SetLog, Table, Told
from service.log import set_level

log = logging.getLogger(__name__)

_AGAIN_S = 0.05
_LOOK_AGAIN_S = 0.002
_PATIENCE_S = 1.0


class Controls:
    """In the event loop's thread.

    changed   called with each new table
    holds     whether every version that a table says is ready is there
    """

    def __init__(
        self,
        changed: Callable[[Table], None] = lambda _: None,
        holds: Callable[[Table], bool] = lambda _: True,
    ) -> None:
        self.table = Table()
        self._changed = changed
        self._holds = holds
        self._replies: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None

    def tell(self, table: Table) -> None:
        """What holds from now on."""
        self.table = table
        self._changed(table)

    async def ask(self, command: Command) -> None:
        """Until it is done. Raises ServiceError: what the controller refuses, or ControllerGone."""
        if self._writer is None:
            raise ControllerGone("the controller is not there; try again")
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame(Ask(number, command)))
            await reply
        finally:
            del self._replies[number]

    async def run(self, place: Place, number: int) -> None:
        """Stay connected, for ever. `number` of the frontend."""
        while True:
            with contextlib.suppress(OSError, Closed):
                await self._serve(place, number)
            self._writer = None
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(ControllerGone("the controller went away; what was asked may have been done"))
            await asyncio.sleep(_AGAIN_S)

    async def _serve(self, place: Place, number: int) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(place.address)  # the listener takes it at once, whoever accepts
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        telling: asyncio.Task[None] | None = None
        try:
            writer.write(frame(Hello(place.secret, "frontend", number, table=self.table)))
            self._writer = writer
            while True:
                match await receive(reader, Table | Reply | SetLog):  # type: ignore[arg-type]  # a union is no type
                    case Table() as table:
                        self.tell(table)
                        if telling is not None:
                            telling.cancel()  # what it was about is old
                        telling = asyncio.create_task(self._say_that_it_holds(table, writer))
                    case Reply() as answer:
                        self._answer(answer)
                    case SetLog(level=level):
                        set_level(level)
        finally:
            writer.close()

    async def _say_that_it_holds(self, table: Table, writer: asyncio.StreamWriter) -> None:
        """Versions are announced on another socket, so they may come a moment later, or, with their engine, never."""
        give_up_at = asyncio.get_running_loop().time() + _PATIENCE_S
        while not self._holds(table) and asyncio.get_running_loop().time() < give_up_at:  # noqa: ASYNC110 no event
            await asyncio.sleep(_LOOK_AGAIN_S)
        writer.write(frame(Told(table.generation)))

    def _answer(self, answer: Reply) -> None:
        reply = self._replies.get(answer.id)
        if reply is None or reply.done():
            return  # its client did not wait
        if not answer.error:
            reply.set_result(None)
            return
        kind = getattr(errors, answer.error, EngineError)
        reply.set_exception(kind(answer.message))
