"""ModelStreamInfer: requests of one stream run side by side and are answered in their order.

    read ──► at most MOST_IN_FLIGHT requests: running, or answered and not yet taken ──in order──► write

A client that sends many gets batches, as many clients would; one whose requests differ in cost waits for the slowest
before. In order, because clients of streams pair by order. The next message is read when there is room, and room is
made when an answer has been taken: a client that does not read its answers is soon not read either, and gRPC's own
window stops it.
An error answers its request (`error_message`) and the stream goes on. When the server drains, what was read is
answered, and the stream ends with UNAVAILABLE.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import grpc

from service.errors import Draining
from service.frontend.grpc.codes import abort

MOST_IN_FLIGHT = 64  # of one stream; what a default batch takes

AnswerOne = Callable[[bytes], Awaitable[bytes]]
"""A request's message to its answer's. Raises nothing: errors are answers."""

_Answers = asyncio.Queue["asyncio.Task[bytes] | None"]
"""In the order of the requests; None is the end."""


class Streams:
    """All that are open. Of one event loop."""

    def __init__(self) -> None:
        self._closing = False
        self._readers: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Nothing more is read."""
        self._closing = True
        for reader in self._readers:
            reader.cancel()

    async def serve(self, context: grpc.aio.ServicerContext, answer: AnswerOne) -> None:
        """Until the client has sent its last and has all answers, the call is cancelled, or the server drains."""
        answers: _Answers = asyncio.Queue()
        room = asyncio.Semaphore(MOST_IN_FLIGHT)
        reader = asyncio.create_task(_read(context, answer, answers, room))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        if self._closing:
            reader.cancel()
        try:
            while (task := await answers.get()) is not None:
                await context.write(await task)
                room.release()
        except grpc.aio.InternalError:
            return  # the call ended while this was written: its deadline, or the client; gRPC has said so
        finally:
            await _abandon(reader, answers)
        if self._closing:
            await abort(context, Draining("the server is draining; open the stream to another"))


async def _read(
    context: grpc.aio.ServicerContext, answer: AnswerOne, answers: _Answers, room: asyncio.Semaphore
) -> None:
    try:
        while True:
            await room.acquire()
            message = await context.read()
            if message is grpc.aio.EOF:
                break
            answers.put_nowait(asyncio.ensure_future(answer(message)))
    finally:
        answers.put_nowait(None)


async def _abandon(reader: "asyncio.Task[None]", answers: _Answers) -> None:
    """Cancel what is under way: its slots are free as soon as the engine lets go."""
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.InternalError):  # the call has ended
        await reader
    while not answers.empty():
        if (task := answers.get_nowait()) is not None:
            task.cancel()
