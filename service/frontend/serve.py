"""One frontend from start to end: an event loop with uvicorn, gRPC where it is asked for, the links to the engines, and
the supervisor's word.

leave ─► leaving: ready is false, requests are answered as before, for `drain_delay_s`
      ─► closing: no new connections, new predictions refused, those in flight finished, for `drain_timeout_s`
      ─► the end.   A second `leave` skips what is left of the delay, a third the waiting.
"""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvicorn

from models.manifest import EXAMPLE_FILE, EXAMPLE_ROW_FILE
from service.batching.engines import Engines
from service.batching.link import Link
from service.frontend.app import ENDED, Frontend
from service.frontend.protocol import Protocol
from service.lifecycle.controls import Controls
from service.lifecycle.frames import Place
from service.metrics import RequestMetrics, SharedCounts
from service.settings import Settings

if TYPE_CHECKING:
    from service.frontend.grpc.server import GrpcServer

log = logging.getLogger(__name__)

_BACKLOG = 2048
_PATIENCE_S = 2.0
_LOOK_AGAIN_S = 0.005

Say = Callable[[str], None]


class HttpServer:
    """Made in the event loop it serves in. Controlled by `leave` and `connect`, from that loop's thread.

    drain   begins the end of the whole service; None: that of this process is all of it
    """

    def __init__(
        self,
        settings: Settings,
        links: list[Link],
        counts: SharedCounts,
        number: int,
        place: Place,
        drain: Callable[[], None] | None = None,
    ) -> None:
        metrics = self._metrics = RequestMetrics(counts, number)
        self._engines = metrics.engines = Engines(links, metrics)
        self._loaded = counts.loaded
        self._number = number
        self._settings = settings
        self._engines.has_controller = True
        self._controls = Controls(self._engines.apply, self._engines.holds)
        self._place = place
        self._frontend = Frontend(self._engines, settings, metrics, self._controls, drain or self.leave)
        self._server = _Server(
            uvicorn.Config(
                self._frontend,
                http=Protocol,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                access_log=False,
                log_config=None,
                server_header=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=settings.server.drain_timeout_s,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._grpc: GrpcServer | None = None
        self._connected: asyncio.Task[None] | None = None

    async def run(self, listeners: list[socket.socket], say: Say | None, end_with_engines: bool) -> bool:
        """Serve until told to leave. The first listener is the public port's. `say` prints where to look, once.
        False: the engines ended first.
        """
        port = listeners[0].getsockname()[1]
        watchers = [asyncio.create_task(self._announce(port, say)), self._connect_controls()]
        if end_with_engines:
            watchers.append(asyncio.create_task(self._end_with_engines()))
        try:
            await self._start_grpc()
            await self._server.serve(sockets=listeners)
            for connection in list(self._server.server_state.connections):
                cast(Protocol, connection).give_up(ENDED)
            if self._grpc is not None:
                self._grpc.close()  # where nobody has told us to leave
                await self._grpc.finished()
        finally:
            for watcher in watchers:
                watcher.cancel()
            alive = self._engines.alive
            self._engines.close()
            if self._grpc is not None:
                await self._grpc.ended()
        return alive

    async def until_models_answer(self) -> None:
        """For a while at most. What connects meanwhile waits in the listener's backlog."""
        self._connect_controls()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._engines.any_loaded()

    def connect(self, engine: int, link: Link) -> None:
        self._engines.connect(engine, link)

    def leave(self) -> None:
        health, delay_s = self._frontend.health, self._settings.server.drain_delay_s
        match health.state:
            case "serving":
                health.state = "leaving"
                log.info("draining: not ready, still answering for %g s", delay_s)
                asyncio.get_running_loop().call_later(delay_s, self._close)
            case "leaving":
                self._close()
            case "closing":
                self._server.force_exit = True
                if self._grpc is not None:
                    self._grpc.close(at_once=True)

    def _close(self) -> None:
        self._frontend.health.state = "closing"
        self._server.should_exit = True
        if self._grpc is not None:
            self._grpc.close()

    def _connect_controls(self) -> asyncio.Task[None]:
        if self._connected is None:
            self._connected = asyncio.create_task(self._controls.run(self._place, self._number))
        return self._connected

    async def _start_grpc(self) -> None:
        server = self._settings.server
        if server.grpc_port is not None:
            # Here, as an extra need not be installed, and as grpcio starts threads, which no fork may follow.
            from service.frontend.grpc.server import GrpcServer

            self._grpc = GrpcServer(self._frontend, self._engines, self._settings, self._metrics)
            await self._grpc.start(server.host, server.grpc_port)

    async def _announce(self, port: int, say: Say | None) -> None:
        """Once all frontends have models, say where to look; and keep the garbage collector off what lives for ever."""
        await self._engines.any_loaded()
        self._loaded[self._number] = 1
        # A full collection walks everything that was ever imported; frozen, it is not walked again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        if say is None:
            return
        while not all(self._loaded):  # noqa: ASYNC110 other processes' memory has no event; they are soon as far
            await asyncio.sleep(_LOOK_AGAIN_S)
        for line in _where_to_look(self._engines, self._settings, port):
            say(line)

    async def _end_with_engines(self) -> None:
        await self._engines.all_lost()
        log.error("the engine is gone; the process ends")
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: the supervisor decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _where_to_look(engines: Engines, settings: Settings, port: int) -> Iterator[str]:
    host = _shown(settings.server.host)
    url = f"http://{host}:{port}"
    yield f"Shoal serves on {url}"
    for model in sorted(engines.models(), key=lambda model: model.facts.name):
        facts = model.facts
        yield (
            f"  model     {facts.name} version {facts.version}: {facts.instances} instances x {facts.threads} threads, "
            f"batches up to {facts.max_batch_size}"
        )
    for (name, version), reason in engines.failures.items():
        yield f"  refused   {name} version {version}: {reason}"
    yield f"  API       {url}/docs"
    if settings.admin.port is not None:
        yield f"  admin     http://{_shown(settings.admin.host)}:{settings.admin.port}"
    if settings.server.grpc_port is not None:
        yield f"  gRPC      {host}:{settings.server.grpc_port}"
    yield f"  metrics   {url}/metrics"
    if engines.models():
        yield f"  try       {_curl(engines, settings.repository, url)}"
    elif engines.failures:
        yield "  no model answers"
    else:
        yield f"  no model answers; put one at {settings.repository}/<name>/1/model.onnx"


def _shown(host: str) -> str:
    """As it stands in a URL that works here."""
    host = "localhost" if host in ("0.0.0.0", "127.0.0.1", "::") else host  # noqa: S104 an address to compare with
    return f"[{host}]" if ":" in host else host


def _curl(engines: Engines, repository: Path, url: str) -> str:
    """A line that works as it stands: an image that a model brings, or an example row, else its metadata."""
    names = {model.facts.name: repository / model.facts.name / model.facts.version for model in engines.models()}
    for name, folder in names.items():
        if (folder / EXAMPLE_FILE).is_file():
            return f"curl --data-binary @{folder / EXAMPLE_FILE} {url}/predict/{name}"
    for name, folder in names.items():
        if (folder / EXAMPLE_ROW_FILE).is_file():
            json = "-H 'Content-Type: application/json'"
            return f"curl {json} -d @{folder / EXAMPLE_ROW_FILE} {url}/predict/{name}"
    return f"curl {url}/v2/models/{next(iter(names))}"
