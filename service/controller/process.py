"""The controller as a process of its own."""

import asyncio
import signal
import socket

import uvloop

from service.controller.controller import Controller
from service.lifecycle.frames import Place
from service.metrics import SharedCounts
from service.settings import Settings


def run_controller(
    settings: Settings, n_engines: int, place: Place, counts: SharedCounts, control: socket.socket
) -> int:
    """Until the supervisor closes its end of `control`, or is gone; the exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    async def run() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(control, ended.set)
        controller = asyncio.create_task(Controller(settings, n_engines, place, counts).run())
        end = asyncio.create_task(ended.wait())
        await asyncio.wait({controller, end}, return_when=asyncio.FIRST_COMPLETED)
        if controller.done():
            controller.result()  # raises what it ended with: a bug
        controller.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0
