"""A frontend as a process of its own: the HTTP server, and the supervisor's socket beside it."""

import asyncio
import os
import signal
import socket

import uvloop

from service.batching.link import Link
from service.control import Connect, receive
from service.frontend.http import name_process
from service.frontend.serve import HttpServer, Say
from service.lifecycle.frames import Place
from service.metrics import SharedCounts
from service.settings import Settings


def run_frontend(
    settings: Settings,
    number: int,
    listeners: list[socket.socket],
    links: list[Link],
    counts: SharedCounts,
    control: socket.socket,
    say: Say | None,
    succeeds: bool,
    place: Place,
) -> int:
    """Until the supervisor says so, or is gone; the exit status.

    listeners  the public port's, and that of the admin port where there is one
    succeeds   another had this place: its clients have been answered, so this one has models before it takes any
    """

    name_process()
    supervisor = os.getppid()

    def drain() -> None:
        if os.getppid() == supervisor:  # else it is gone, and so are we soon
            os.kill(supervisor, signal.SIGTERM)

    async def run() -> bool:
        server = HttpServer(settings, links, counts, number, place, drain)
        loop = asyncio.get_running_loop()

        def obey() -> None:
            match receive(control):
                case Connect(number=engine, link=link):
                    server.connect(engine, link)
                case "leave":
                    server.leave()
                case "alone":
                    loop.remove_reader(control.fileno())
                    server.leave()

        loop.add_reader(control.fileno(), obey)
        if succeeds:
            await server.until_models_answer()
        return await server.run(listeners, say, end_with_engines=False)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0
