"""The admin API on a real server in this process, and a controller that the test plays.

Both ports are there, as in a frontend: `url` is the public one's, `admin` the other's.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import msgspec
import uvicorn

from service.batching.engines import Engines
from service.errors import ServiceError, UnknownModel
from service.frontend.app import Frontend
from service.frontend.protocol import Protocol
from service.lifecycle.controls import Controls
from service.lifecycle.messages import (
    Command,
    LoadModel,
    MoveAlias,
    Promote,
    SetGuard,
    SetLogLevel,
    SetShadow,
    SetSplit,
    Table,
    UnloadModel,
    VersionState,
)
from service.lifecycle.routing import Routing
from service.metrics import RequestMetrics, SharedCounts
from service.settings import Settings, read_settings

KEY = "a-key-of-24-characters.."
VERSIONS = (
    VersionState("echo", "2", "READY"),
    VersionState("echo", "10", "UNAVAILABLE", "golden row 3 differs"),
    VersionState("echo", "1", "UNAVAILABLE", "not loaded"),
    VersionState("other", "1", "READY"),
)


class PlayedControls(Controls):
    """Does at once what it is asked, to `VERSIONS`, and keeps what that was. `refusal` is raised instead, once."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(versions=VERSIONS)
        self.asked: list[Command] = []
        self.refusal: ServiceError | None = None

    async def ask(self, command: Command) -> None:
        self.asked.append(command)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        if isinstance(command, SetLogLevel):
            return
        if command.name not in {version.name for version in self.table.versions}:
            raise UnknownModel(f"no model {command.name!r}")
        self.tell(_after(self.table, command))


def _after(table: Table, command: Command) -> Table:
    match command:
        case LoadModel(name=name, version=version):
            return _with_state(table, name, version, "READY")
        case UnloadModel(name=name, version=version):
            return _with_state(table, name, version, "UNAVAILABLE")
    routing = table.routing.get(command.name, Routing())
    changed = _routed(routing, command)
    return msgspec.structs.replace(table, routing={**table.routing, command.name: changed})


def _routed(routing: Routing, command: Command) -> Routing:
    match command:
        case MoveAlias(alias=alias, version=None):
            aliases = {name: version for name, version in routing.aliases.items() if name != alias}
            return msgspec.structs.replace(routing, aliases=aliases)
        case MoveAlias(alias=alias, version=version):
            return msgspec.structs.replace(routing, aliases={**routing.aliases, alias: version})
        case SetSplit(split=split, sticky=sticky):
            return msgspec.structs.replace(routing, split=split, sticky=sticky)
        case SetShadow(shadow=shadow):
            return msgspec.structs.replace(routing, shadow=shadow)
        case SetGuard(guard=guard):
            return msgspec.structs.replace(routing, guard=guard)
        case Promote(alias=alias, to=to):
            aliases = {name: version for name, version in routing.aliases.items() if name != alias}
            return Routing(aliases={**aliases, to: routing.aliases.get(alias, "2")})
    raise AssertionError(f"a command that no test plays: {command}")


def _with_state(table: Table, name: str, version: str | None, state: str) -> Table:
    versions = tuple(
        VersionState(found.name, found.version, state)
        if found.name == name and version in (None, found.version)
        else found
        for found in table.versions
    )
    return msgspec.structs.replace(table, versions=versions)


@dataclass
class AdminServer:
    url: str
    admin: str
    controls: PlayedControls
    settings: Settings
    drained: threading.Event = field(default_factory=threading.Event)

    @property
    def asked(self) -> list[Command]:
        return self.controls.asked


@contextmanager
def admin_server(*flags: str) -> Iterator[AdminServer]:
    with ExitStack() as stack:
        public, admin = (stack.enter_context(_listener()) for _ in range(2))
        settings = read_settings(["--admin.port", str(admin.getsockname()[1]), *flags], "serve")
        urls = (f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in (public, admin))
        served = AdminServer(*urls, PlayedControls(), settings)
        began, ending = threading.Event(), threading.Event()

        async def serve() -> None:
            metrics = RequestMetrics(SharedCounts(1), 0)
            engines = metrics.engines = Engines([])
            frontend = Frontend(engines, settings, metrics, served.controls, served.drained.set)
            server = uvicorn.Server(
                uvicorn.Config(frontend, http=Protocol, ws="none", lifespan="off", access_log=False, log_config=None)
            )
            serving = asyncio.create_task(server.serve(sockets=[public, admin]))
            began.set()
            await asyncio.to_thread(ending.wait)
            server.should_exit = True
            await serving

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            assert began.wait(10)
            yield served
        finally:
            ending.set()
            thread.join()


def _listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.listen()
    return listener
