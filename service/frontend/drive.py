"""Runs a handler's coroutine without a task: at once, and on in the very turn of the event loop that brings the answer.

A handler awaits a committed claim, and perhaps a future before (an image that a thread decodes); nothing else. A task
would cost a context, a turn of the loop at its start and another after each wait (docs/adr/0013).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Drive(Generic[T]):
    """`ended` is called once: with what the coroutine returned, or what it raised."""

    __slots__ = ("_coroutine", "_ended")

    def __init__(self, coroutine: Coroutine[Any, Any, T], ended: Callable[[T | Exception], None]) -> None:
        self._coroutine: Coroutine[Any, Any, T] | None = coroutine
        self._ended = ended

    def go_on(self, _: object = None) -> None:
        """To the next wait, or to the end."""
        if self._coroutine is None:
            return  # closed while it waited
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as end:
            self._coroutine = None
            self._ended(end.value)
        except Exception as error:  # noqa: BLE001 it is handed on, as a task would
            self._coroutine = None
            self._ended(error)
        else:
            if isinstance(awaited, asyncio.Future):
                awaited._asyncio_future_blocking = False  # as a task does that takes on what a coroutine awaits
            awaited.add_done_callback(self.go_on)

    def close(self) -> None:
        """Nobody wants the answer any more: the coroutine ends where it waits."""
        if self._coroutine is not None:
            coroutine, self._coroutine = self._coroutine, None
            coroutine.close()


async def driven(coroutine: Coroutine[Any, Any, T]) -> T:
    """In a task, what a coroutine for `Drive` returns."""
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def ended(value: T | Exception) -> None:
        if outcome.done():
            return
        if isinstance(value, Exception):
            outcome.set_exception(value)
        else:
            outcome.set_result(value)

    drive = Drive(coroutine, ended)
    drive.go_on()
    try:
        return await outcome
    finally:
        drive.close()
