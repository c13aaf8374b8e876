"""A frontend's connection to the controller: what the controller says is true, and what a client asks of it."""

import asyncio
from collections.abc import Callable

from service.errors import ControllerGone
from service.lifecycle.messages import Command, Table


class Controls:
    """In the event loop's thread. `changed` is called with each new table."""

    def __init__(self, changed: Callable[[Table], None] = lambda _: None) -> None:
        self.table = Table()
        self._changed = changed
        self._replies: dict[int, asyncio.Future[None]] = {}

    def tell(self, table: Table) -> None:
        """What holds from now on."""
        self.table = table
        self._changed(table)

    async def ask(self, command: Command) -> None:
        """Until it is done. Raises ServiceError: what the controller refuses, or ControllerGone."""
        raise ControllerGone("the controller is not there; try again")
